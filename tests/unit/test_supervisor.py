"""What the supervisor makes of a process that takes its time to start, and what it tells systemd meanwhile."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edgeqc import loading
from edgeqc.records import NS_PER_S
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
