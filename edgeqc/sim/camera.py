"""A simulated GigE Vision camera: a process of its own that sends images over real GVCP and GVSP packets.

`python -m edgeqc.sim.camera --address 127.0.0.2 --images parts.npy --stage /dev/shm/stage`
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from edgeqc.cores import real_time
from edgeqc.errors import EdgeqcError
from edgeqc.sim.gige import GigeServer
from edgeqc.sim.stage import Stage

HARDWARE_PRIORITY: Final = 10
"""SCHED_FIFO, where allowed: below the station's threads, above everything else."""
START_S: Final = 20.0
"""Python and numpy take a second to start on an idle core, more on a busy one."""
STOP_S: Final = 5.0
TRIES: Final = 20
"""Loopback addresses tried before giving up; one in 16,000 is taken per camera that runs."""
_TAKEN: Final = 75
"""Exit code: another camera listens at this address."""


class SimCamera:
    """The process from outside: start, stop, kill, freeze. Picks a free loopback address of its own."""

    def __init__(self, images: Path, stage: Path, *, address: str | None = None, first_frame_id: int = 1) -> None:
        """Prepare only; `images`: .npy, (n, height, width) uint8."""
        self._images, self._stage, self._first_id = images, stage, first_frame_id
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens; known from the first start on."""
        if self._address is None:
            raise EdgeqcError("the camera has not been started")
        return self._address

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise EdgeqcError("the camera does not run")
        return self._process.pid

    def start(self) -> None:
        """Start, or start again at the same address; returns when it answers. EdgeqcError where it does not."""
        if self._process is not None:
            raise EdgeqcError("the camera runs already")
        if self._address is not None:
            if not self._started(self._address):
                raise EdgeqcError(f"another camera listens at {self._address}")
            return
        for _ in range(TRIES):
            # 127/8 is this box on Linux without any set-up; not 127.0.0.x, which people use by hand
            address = f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{random.randrange(1, 255)}"
            if self._started(address):
                self._address = address
                return
        raise EdgeqcError("no free loopback address for a camera")

    def kill(self) -> None:
        """End it as a pulled plug does (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def freeze(self) -> None:
        """Freeze it (SIGSTOP): silent like a pulled cable."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it in order; killed where it does not go."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        self._reap()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _started(self, address: str) -> bool:
        """Start at `address`; False where it is taken."""
        words = [sys.executable, "-m", "edgeqc.sim.camera", "--address", address, "--with-parent"]
        words += ["--images", str(self._images), "--stage", str(self._stage), "--first-frame-id", str(self._first_id)]
        self._process = subprocess.Popen(  # noqa: S603 - this very package
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None  # noqa: S101 - PIPE was asked for
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        if ready and self._process.stdout.readline().startswith(b"READY"):
            return True
        self._process.kill()
        code = self._process.returncode if self._process.poll() is not None else self._process.wait()
        self._reap()
        if code == _TAKEN:
            return False
        raise EdgeqcError(f"the simulated camera at {address} did not start (exit code {code})")

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> int:
    """Be the camera until stdin ends (with --with-parent) or a signal comes."""
    parser = argparse.ArgumentParser(description="simulated GigE Vision camera")
    parser.add_argument("--address", required=True, help="loopback address to listen on (GVCP port 3956)")
    parser.add_argument("--images", required=True, type=Path, help=".npy file, (n, height, width) uint8")
    parser.add_argument("--stage", required=True, type=Path, help="shared memory of the simulated line")
    parser.add_argument("--first-frame-id", type=int, default=1, help="frame id after each start of acquisition")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    words = parser.parse_args()
    images = np.load(words.images, mmap_mode="r")
    if images.ndim != 3 or images.dtype != np.uint8:  # noqa: PLR2004 - n, height, width
        sys.stderr.write(f"{words.images}: {images.dtype}{images.shape} is not uint8 (n, height, width)\n")
        return 2
    try:
        server = GigeServer(words.address, images, Stage.attach(words.stage), first_frame_id=words.first_frame_id)
    except OSError as exc:
        sys.stderr.write(f"{words.address}: {exc}\n")
        return _TAKEN
    real_time(HARDWARE_PRIORITY)  # a camera does not share a core with whatever else this box does
    sys.stdout.write(f"READY {words.address}\n")
    sys.stdout.flush()
    try:
        server.run(parent=sys.stdin.fileno() if words.with_parent else None)
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
