"""The systemd unit: without a typo, hardened, and still able to do real time. The last is tried under a real PID 1."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pid1 import booted

UNITS = Path(__file__).parents[2] / "systemd"
UNIT = UNITS / "edgeqc.service"
EXPOSURE_LIMIT = 18  # tenths
BOOT_S = 30

PROBE = """
import ctypes, json, os, resource, socket, sys, threading, time
found = {}
def attempt(name, call):
    def body():
        try:
            call()
            found[name] = "ok"
        except OSError as error:
            found[name] = error.strerror
    thread = threading.Thread(target=body); thread.start(); thread.join()
libc = ctypes.CDLL(None, use_errno=True)
def libc_call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
found["rtprio"] = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
found["memlock"] = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
attempt("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20)))
attempt("batch", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
attempt("affinity", lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}))
page = ctypes.create_string_buffer(4096)
attempt("mlock", lambda: libc_call("mlock", page, 4096))
def write(folder):
    with open(os.path.join(folder, "probe"), "w") as file:
        file.write("1")
attempt("state", lambda: write(os.environ["STATE_DIRECTORY"]))
attempt("run", lambda: write(os.environ["RUNTIME_DIRECTORY"]))
attempt("shm", lambda: write("/dev/shm"))
attempt("etc", lambda: write("/etc"))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
attempt("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close())
attempt("interfaces", lambda: socket.if_nameindex())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
attempt("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
attempt("unshare", lambda: libc_call("unshare", 0x10000000))
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
found["callback"] = CALLBACK(lambda number: number + 1)(41)
found["caps"] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")][0]
found["uid"] = os.getuid()
address = os.environ["NOTIFY_SOCKET"]
def notify(message):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, "\\0" + address[1:] if address[0] == "@" else address)
notify(b"READY=1\\nSTATUS=probed")
print(json.dumps(found), flush=True)
while True:
    notify(b"WATCHDOG=1")
    time.sleep(0.5)
"""


def test_unit_has_no_typo(tmp_path):
    done = systemd_analyze("verify", installed(tmp_path))
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_typo_would_be_seen(tmp_path):
    unit = installed(tmp_path)
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in systemd_analyze("verify", unit).stderr


def test_unit_is_hardened(tmp_path):
    done = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", installed(tmp_path))
    assert done.returncode == 0, done.stdout


def test_unit_that_builds_plans_has_no_typo_is_hardened_and_comes_before_the_daemon(tmp_path):
    unit = tmp_path / "edgeqc-engines.service"
    unit.write_text((UNITS / unit.name).read_text().replace("/opt/edgeqc/current/venv/bin/edgeqc", "/bin/true"))
    done = systemd_analyze("verify", unit)
    assert (done.returncode, done.stderr) == (0, "")
    done = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", unit)
    assert done.returncode == 0, done.stdout
    text = unit.read_text()
    assert "Before=edgeqc.service" in text
    assert "WantedBy=edgeqc.service" in text


def test_drop_in_for_a_gpu_has_no_typo_and_opens_only_what_it_says(tmp_path):
    unit = installed(tmp_path)
    folder = tmp_path / f"{unit.name}.d"
    folder.mkdir()
    (folder / "gpu.conf").write_text((UNITS / "edgeqc-gpu.conf").read_text())
    done = systemd_analyze("verify", unit)
    assert (done.returncode, done.stderr) == (0, "")
    keys = {
        line.split("=")[0] for line in (folder / "gpu.conf").read_text().splitlines() if "=" in line and line[0] != "#"
    }
    assert keys == {"PrivateDevices", "DeviceAllow", "SupplementaryGroups", "MemoryDenyWriteExecute"}


def test_unit_never_gives_up_but_for_faults_that_stay():
    text = UNIT.read_text()
    assert "StartLimitIntervalSec=0" in text
    assert "Restart=always" in text
    assert "RestartPreventExitStatus=3 5 7\n" in text


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """What a process under the unit's own directives can do, and what it can without the line that gives real time."""
    folder = tmp_path_factory.mktemp("pid1")
    units, out = folder / "units", folder / "out"
    units.mkdir()
    out.mkdir()
    (out / "probe.py").write_text(PROBE)
    out.chmod(0o755)
    text = UNIT.read_text()
    (units / "right.service").write_text(probing(text, "right"))
    without = re.sub(r"^SystemCallFilter=sched_.*\n", "", text, flags=re.MULTILINE)
    assert without != text
    (units / "wrong.service").write_text(probing(without, "wrong"))
    with booted(folder, wants="right.service wrong.service") as init:
        return {name: read(out / f"{name}.log", init) for name in ("right", "wrong")}


def test_process_under_the_unit_keeps_what_the_line_needs(probed):
    right = probed["right"]
    for name in ("affinity", "batch", "mlock", "state", "run", "shm", "udp", "unix", "interfaces", "netlink"):
        assert right[name] == "ok", (name, right)
    assert right["callback"] == 42


def test_process_under_the_unit_has_no_more_than_that(probed):
    right = probed["right"]
    assert right["etc"] == "Read-only file system"
    for name in ("clock", "unshare"):
        assert right[name] == "Operation not permitted", (name, right)
    assert right["packet"] != "ok"
    assert int(right["caps"], 16) == 0
    assert right["uid"] != 0


def test_fifo_is_allowed_by_the_limit_alone(probed):
    right = probed["right"]
    if right["rtprio"] < 20:
        pytest.skip(
            f"this box lets nobody raise RLIMIT_RTPRIO (it is {right['rtprio']}): FIFO under the unit is NOT tested"
        )
    assert right["fifo"] == "ok"


def test_without_its_system_call_line_the_unit_would_take_real_time_away(probed):
    wrong = probed["wrong"]
    assert wrong["affinity"] == wrong["batch"] == "Operation not permitted"


def installed(folder):
    """The unit with a program that is there."""
    program = folder / "edgeqc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = folder / "edgeqc.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={program}", UNIT.read_text(), flags=re.MULTILINE))
    return unit


def probing(text, name):
    """The unit's own directives around the probe; only what a bare PID 1 does not have is changed."""
    text = re.sub(r"^ExecStart=.*", "ExecStart=/usr/bin/python3 /run/out/probe.py", text, flags=re.MULTILINE)
    text = re.sub(r"^User=.*\nGroup=.*", "User=nobody\nGroup=nogroup", text, flags=re.MULTILINE)
    text = re.sub(r"^(After|Wants|Documentation)=.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(StateDirectory|RuntimeDirectory)=edgeqc", rf"\1=edgeqc-{name}", text, flags=re.MULTILINE)
    text = text.replace("[Unit]", "[Unit]\nDefaultDependencies=no")
    return text.replace("[Service]", f"[Service]\nStandardOutput=append:/run/out/{name}.log\nStandardError=inherit")


def systemd_analyze(*arguments):
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("EDGEQC_REQUIRE_PEERS") == "1":
            pytest.fail("systemd-analyze is missing")
        pytest.skip("needs systemd-analyze")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=30, check=False)


def read(log, init):
    """The probe's one line; what systemd said where there is none."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline and not init.ended:
        if log.exists() and log.read_text().endswith("\n"):
            lines = log.read_text().splitlines()
            if lines[0].startswith("{"):
                return json.loads(lines[0])
            break
        time.sleep(0.05)  # another process writes it
    sys.stderr.write(init.console.read_text(errors="replace"))
    return pytest.fail(f"{log.name}: no answer from under the unit: {log.read_text() if log.exists() else '-'}")
