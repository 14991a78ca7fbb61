"""The daemon as a service: installed as systemd/README.md says, under the unit's whole sandbox, on a simulated line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import ENGINE, STANDARD
from linebench import Bench, until
from pid1 import Pid1, booted

from edgeqc.cameras.aravis import aravis_available
from edgeqc.sim.images import PartImages
from edgeqc.sim.line import STATION, Plan, SimLine
from edgeqc.sim.report import archived

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).parents[2]
PARTS = 30
SLOW: dict[str, Any] = {**STANDARD, "rate_hz": 6.25, "budget_ms": 150.0}
"""It is the sandbox that is tried here, not the pace."""
INSTALL = """
cp -a /etc /run/etc
mount --bind /run/etc /etc
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p /opt/edgeqc/python /opt/edgeqc/checkout /opt/edgeqc/releases/1/venv/bin
mount --bind "$3" /opt/edgeqc/checkout
mount --bind "$4" /opt/edgeqc/python
ln -s releases/1 /opt/edgeqc/current
cd /opt/edgeqc/current/venv
ln -s /opt/edgeqc/checkout/.venv/lib lib
ln -s "/opt/edgeqc/python/bin/$5" bin/python
printf 'home = /opt/edgeqc/python/bin\n' >pyvenv.cfg
printf '#!/bin/sh\nexec /opt/edgeqc/current/venv/bin/python -m edgeqc "$@"\n' >bin/edgeqc
chmod 755 bin/edgeqc
cd /
mkdir /var/lib/edgeqc
mount --bind "$6" /var/lib/edgeqc
systemd-sysusers "$3/systemd/edgeqc.sysusers.conf"
systemd-tmpfiles --create "$3/systemd/edgeqc.tmpfiles.conf"
printf 'PYTHONPATH=/opt/edgeqc/checkout\\nLD_LIBRARY_PATH=/opt/edgeqc/python/lib\\n' >/etc/default/edgeqc
install -m 640 -g edgeqc /run/out/line.yaml /etc/edgeqc/line.yaml
install -m 644 "$3/engines/trust/demo-part.pub" /etc/edgeqc/trust/
printf 'scada-says\\n' | install -m 600 -o edgeqc -g edgeqc /dev/stdin /etc/edgeqc/secrets/scada
"""
ONLY_HERE = """
[Unit]
DefaultDependencies=no
[Service]
StandardOutput=append:/run/out/daemon.log
StandardError=inherit
"""
"""A PID 1 without basic.target, and without journald."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The unit as it runs."""

    init: Pid1
    bench: Bench

    def property(self, name: str, unit: str = "edgeqc") -> str:
        return self.init.systemctl("show", "--value", f"--property={name}", unit).strip()


def processes(init: Pid1) -> list[psutil.Process]:
    """The daemon's, as this side of the namespace sees them."""
    found = []
    for each in psutil.Process(init.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if each.cmdline()[1:3] == ["-m", "edgeqc"]:
                found.append(each)
    return found


@pytest.fixture
def service(tmp_path: Path, images: PartImages) -> Iterator[Service]:
    """Of a box on which the line runs, with every process that the daemon has."""
    if not aravis_available() and os.environ.get("EDGEQC_REQUIRE_PEERS") != "1":
        pytest.skip("libaravis is not installed: apt-get install libaravis-0.8-0")
    units, out = tmp_path / "box" / "units", tmp_path / "box" / "out"
    units.mkdir(parents=True)
    out.mkdir()
    for name in ("edgeqc-engines.service", "edgeqc.service"):
        text = (ROOT / "systemd" / name).read_text()
        (units / name).write_text(re.sub(r"^(After|Wants)=.*\n", "", text, flags=re.MULTILINE))
        (units / f"{name}.d").mkdir()
        (units / f"{name}.d" / "here.conf").write_text(ONLY_HERE)
    with SimLine(Plan(folder=tmp_path, images=images, engine=ENGINE, side_load=20, **SLOW)) as line:
        (out / "line.yaml").write_text(yaml.safe_dump(installed(line.settings())))
        arguments = (str(ROOT), sys.base_prefix, f"python3.{sys.version_info.minor}", str(line.state_dir))
        line.state_dir.mkdir()
        with booted(
            tmp_path / "box", wants="edgeqc-engines.service edgeqc.service", more=INSTALL, arguments=arguments
        ) as init:
            line.log = out / "daemon.log"
            try:
                until(lambda: init.ended or bool(processes(init)))
                assert not init.ended
                line.run_dir = init.root / "run/edgeqc"
                Path(f"/proc/{processes(init)[0].pid}/autogroup").write_text("-20")  # as conftest has it for the others
                line.wait_ready()
                assert line.plc is not None
                line.plc.go()
                yield Service(init=init, bench=Bench(line))
            except BaseException:
                sys.stderr.write(init.console.read_text(errors="replace")[-5000:])
                sys.stderr.write(line.log.read_text()[-5000:] if line.log.exists() else "the daemon said nothing\n")
                raise


def installed(settings: dict[str, Any]) -> dict[str, Any]:
    """The line's configuration, with the box's own paths, and with servers for SCADA."""
    del settings["state_dir"]
    settings["engines"] = {"trust": "/etc/edgeqc/trust"}
    settings["stations"][0]["recipe"]["engine"] = f"/opt/edgeqc/checkout/{ENGINE.relative_to(ROOT)}"
    settings["server"] = {
        "modbus": {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0},
        "opcua": {
            "bind": "127.0.0.1",
            "peers": ["127.0.0.1"],
            "port": 0,
            "users": [{"name": "scada", "password": "secret://scada"}],
        },
    }
    return settings


def test_line_runs_under_the_whole_sandbox_of_the_unit(service: Service) -> None:
    bench = service.bench
    bench.recovered(PARTS)
    engines = [service.property(name, "edgeqc-engines") for name in ("Result", "ExecMainStatus")]
    assert engines == ["success", "0"]
    assert "no recipe runs on tensorrt; nothing to build" in bench.line.log.read_text()
    assert service.property("ActiveState") == "active"
    assert "station-top ready" in service.property("StatusText")
    counters = bench.row.counters()
    fed = service.property("WatchdogTimestampMonotonic")
    until(lambda: service.property("WatchdogTimestampMonotonic") != fed)
    running = processes(service.init)
    roles = {" ".join(process.cmdline()[3:5]).removesuffix(" --run-dir") for process in running}
    assert roles == {
        "run /etc/edgeqc/line.yaml",
        f"station {STATION}",
        "watch",
        "server modbus",
        "server opcua",
        "office",
    }
    for process in running:
        confined(process)
    service.init.systemctl("stop", "edgeqc")
    assert (service.property("Result"), service.property("ExecMainStatus")) == ("success", "0")
    assert service.property("NRestarts") == "0"
    rows = {row["sequence"]: row for row in archived(bench.line.state_dir)}
    answered = [part for part in bench.line.judged() if part["result"] != "none"]
    assert len(answered) >= PARTS
    assert all(part["code"] == rows[part["sequence"]]["code"] for part in answered)
    assert counters["zero_copy"]
    missing = [event["what"] for event in bench.logged("right_missing")]
    if psutil.Process(service.init.pid).rlimit(psutil.RLIMIT_RTPRIO)[1] >= 20:
        assert missing == []
    else:  # nobody here may raise that limit
        assert all("SCHED_FIFO" in what for what in missing)
    left = {path.name for path in bench.line.state_dir.iterdir()}
    assert {"journal", "archive.db", "pki"} <= left
    assert bench.line.state_dir.stat().st_mode & 0o777 == 0o750


def confined(process: psutil.Process) -> None:
    """It is the unit's sandbox that the line ran in, in each of its processes."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert process.uids().effective != 0
    mounts = Path(f"/proc/{process.pid}/mounts").read_text().splitlines()
    options = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts}
    assert {options[place] for place in ("/", "/etc", "/opt/edgeqc/checkout")} == {"ro"}
