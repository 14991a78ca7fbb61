"""The supervisor keeps the line running, whatever happens to one process, to its journal or to the box."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edgeqc import loading
from edgeqc.errors import JournalError
from edgeqc.journal import JournalReader
from edgeqc.records import NS_PER_S, AlertChange, Event
from edgeqc.shm.board import State
from edgeqc.supervisor import Supervisor

LINE = {
    "version": 1,
    "node": "box",
    "stations": [
        {
            "name": "top",
            "takt_ms": 100,
            "budget_ms": 80,
            "camera": {"type": "replay", "folder": "parts", "width_px": 64, "height_px": 48},
            "recipe": {"engine": "engines/part/1"},
            "plc": {"type": "none"},
        }
    ],
}


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """With a station that is starting, for the last 100 s; no process is started."""
    (tmp_path / "line.yaml").write_text(json.dumps(LINE))
    (tmp_path / "run").mkdir()
    made = Supervisor(
        loading.load(tmp_path / "line.yaml"),
        state_dir=tmp_path / "state",
        run_dir=tmp_path / "run",
        log=structlog.get_logger(),
    )
    station = made._children[0]
    station.row.state, station.row.started_ns = State.STARTING, NS_PER_S
    yield made
    for child in made._children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()
    made._journal.close()
    made._children.clear()  # pytest holds the fixture itself a little longer, and these the mapping
    del made._board


def test_station_that_loads_many_recipes_is_hung_only_without_a_sign_of_life(supervisor: Supervisor) -> None:
    station = supervisor._children[0]
    assert supervisor._hung(station, 60 * NS_PER_S) == ""
    assert supervisor._hung(station, 100 * NS_PER_S) == "start"
    station.row.beat("line")
    beaten_ns = station.row.beats()["line"]
    assert supervisor._hung(station, beaten_ns + 59 * NS_PER_S) == ""
    assert supervisor._hung(station, beaten_ns + 61 * NS_PER_S) == "start"


@pytest.mark.parametrize("state", [State.STOPPING, State.FAILED])
def test_a_process_that_hangs_while_it_ends_is_killed(supervisor: Supervisor, state: State) -> None:
    """As in a driver that does not let go of its device; its guard may beat on meanwhile."""
    station = supervisor._children[0]
    station.row.state, station.row.started_ns = state, NS_PER_S
    station.row.beat("line", 100 * NS_PER_S)
    station.row.beat("guard", 200 * NS_PER_S)
    assert supervisor._hung(station, 108 * NS_PER_S) == ""
    assert supervisor._hung(station, 110 * NS_PER_S) == "stop"


def test_systemd_is_asked_for_time_until_all_are_ready(supervisor, tmp_path, monkeypatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setattr(supervisor, "_watchdog_ns", NS_PER_S)

        def told(now_ns: int) -> set[str]:
            supervisor._notify(now_ns)
            systemd.setblocking(False)
            lines: set[str] = set()
            while True:
                try:
                    lines |= set(systemd.recv(1024).decode().splitlines())
                except BlockingIOError:
                    return lines

        assert {"WATCHDOG=1", "EXTEND_TIMEOUT_USEC=120000000"} <= told(10 * NS_PER_S)
        for child in supervisor._children:
            child.row.state = State.READY
        assert {"READY=1", "WATCHDOG=1"} <= told(20 * NS_PER_S)
        assert told(30 * NS_PER_S) == {"WATCHDOG=1"}


def test_a_process_that_cannot_be_started_now_is_tried_again_and_the_others_run_on(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there is no memory for the office just now."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    now_ns = time.monotonic_ns()
    for number in range(5):
        supervisor._round(now_ns + number * NS_PER_S // 4)
    reader = JournalReader(tmp_path / "state" / "journal" / "supervisor")
    ended = [entry.body.facts["process"] for entry in reader.read() if isinstance(entry.body, Event)]
    reader.close()
    assert ended.count("office") >= 3
    assert not supervisor._stopping


def test_a_journal_that_takes_nothing_ends_no_line(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_body: object) -> int:
        raise JournalError("no room")

    monkeypatch.setattr(supervisor._journal, "append", full)
    station = supervisor._children[0]
    station.process = subprocess.Popen([sys.executable, "-c", ""])
    station.process.wait()
    supervisor._tend(station, time.monotonic_ns())
    assert station.process is None
    assert station.row.restarts == 1


def test_a_box_that_stood_still_has_no_process_killed_for_it(supervisor: Supervisor) -> None:
    """A snapshot of a virtual machine: nobody could beat, and the supervisor is the first to look."""
    began_ns = supervisor._round_ns
    for child in supervisor._children:
        child.process = subprocess.Popen(["sleep", "60"])
        child.row.state = State.READY
        for loop in child.job.limits_ns:
            child.row.beat(loop)
    woke_ns = began_ns + 60 * NS_PER_S
    supervisor._round(woke_ns)
    assert not any(child.killed for child in supervisor._children)
    supervisor._round(woke_ns + NS_PER_S // 4)
    supervisor._round(woke_ns + NS_PER_S // 2)
    assert not any(child.killed for child in supervisor._children)
    for quarter in range(3, 6):  # who still does not beat hangs
        supervisor._round(woke_ns + quarter * NS_PER_S // 4)
    assert all(child.killed for child in supervisor._children)


@pytest.mark.parametrize(("lives_s", "killed", "told"), [(5, False, True), (12, False, False), (30, True, True)])
def test_a_process_that_keeps_ending_is_told_of_however_slowly_it_does(
    supervisor: Supervisor, tmp_path: Path, lives_s: int, killed: bool, told: bool
) -> None:
    """It needs seconds to start each time, or a loop of it hangs again when its limit is over."""
    office = next(child for child in supervisor._children if child.job.name == "office")
    for number in range(1, 6):
        began_ns = number * 40 * NS_PER_S
        office.row.state, office.row.started_ns, office.killed = State.READY, began_ns, killed
        supervisor._notify(began_ns + lives_s * NS_PER_S)
        supervisor._ended(office, -9, began_ns + lives_s * NS_PER_S)
    reader = JournalReader(tmp_path / "state" / "journal" / "supervisor")
    alerts = [entry.body.active for entry in reader.read() if isinstance(entry.body, AlertChange)]
    reader.close()
    assert alerts == [True] * told


def test_an_alert_that_a_process_keeps_ending_is_over_when_it_lives_also_if_it_ended_once_more(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    office = next(child for child in supervisor._children if child.job.name == "office")
    for second in (1, 2, 3, 4, 13):  # more than is free in ten seconds, and once more when that is long ago
        supervisor._ended(office, -9, second * NS_PER_S)
    office.row.state, office.row.started_ns = State.READY, 14 * NS_PER_S  # and the station is still starting
    supervisor._notify(20 * NS_PER_S)
    supervisor._notify(25 * NS_PER_S)
    reader = JournalReader(tmp_path / "state" / "journal" / "supervisor")
    alerts = [entry.body.active for entry in reader.read() if isinstance(entry.body, AlertChange)]
    reader.close()
    assert alerts == [True, False]
