"""A systemd of a test's own: PID 1 of its own namespaces and cgroup, with units of the test and nothing else of the box.

It shares the network, so that peers outside are reached; its `/var/lib` and `/run` are empty and in memory. What it puts
into the folder `out` (there: /run/out) is seen outside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_BEGIN = """
set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup 2>/dev/null || true
mkdir -p /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /var/lib
cp -r "$1" /var/lib/edgeqc-units
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /run/out
mount --bind "$2" /run/out
cp -r /var/lib/edgeqc-units/* /run/systemd/system/
"""
_END = """
export container=edgeqc-test
exec /lib/systemd/systemd --system --unit=mini.target --log-target=console --log-level=info --show-status=no
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pid1:
    """The systemd as it runs."""

    process: subprocess.Popen[bytes]
    pid: int
    """As this side of the namespace counts."""
    console: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def root(self) -> Path:
        """Its file system, from here."""
        return Path(f"/proc/{self.pid}/root")

    def systemctl(self, *arguments: str) -> str:
        command = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "systemctl", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@contextlib.contextmanager
def booted(folder: Path, *, wants: str, more: str = "", arguments: tuple[str, ...] = ()) -> Iterator[Pid1]:
    """Boot with the units in `folder`/units; `more` is shell that runs as root before that, `arguments` its $3 on.

    Skips with the reason where this box does not allow it.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: boots a systemd of its own in namespaces")
    tools = ("unshare", "nsenter", "/lib/systemd/systemd", "/usr/bin/python3")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    (folder / "units" / "mini.target").write_text(f"[Unit]\nDefaultDependencies=no\nWants={wants}\nAllowIsolate=yes\n")
    script = folder / "boot.sh"
    script.write_text(_BEGIN + more + _END)
    console = folder / "console.log"
    with own_cgroup() as cgroup, console.open("wb") as log:
        init = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--mount-proc",
             "bash", script, folder / "units", folder / "out", *arguments],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=lambda: enter(cgroup),  # noqa: PLW1509 - the child must be in its cgroup before it makes a namespace of it
        )  # fmt: skip
        try:
            while not (children := psutil.Process(init.pid).children()):
                assert init.poll() is None, console.read_text()
                time.sleep(0.01)
            yield Pid1(process=init, pid=children[0].pid, console=console)
        finally:
            init.send_signal(signal.SIGKILL)  # --kill-child takes the whole PID namespace with it
            init.wait()


@contextlib.contextmanager
def own_cgroup() -> Iterator[Path]:
    """A cgroup (v2) for the systemd under test; it leaves nothing in the host's."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    if not roots:
        pytest.skip("needs a cgroup2 mount")
    cgroup = roots[0] / f"edgeqc-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"needs a cgroup of its own: {error}")
    try:
        yield cgroup
    finally:
        deadline = time.monotonic() + 10
        while cgroup.exists() and time.monotonic() < deadline:
            for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                cgroup.rmdir()
            time.sleep(0.05)  # killed processes leave their cgroup a little later
        assert not cgroup.exists()


def enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
