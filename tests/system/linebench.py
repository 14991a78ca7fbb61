"""A line under test: what the system tests do to it and read from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeqc.shm.board import Board, Row, State
from edgeqc.sim.line import STATION, SimLine
from edgeqc.sim.report import archived, build


class Bench:
    """A line under test, with what the checks need."""

    def __init__(self, line: SimLine) -> None:
        self.line = line

    @property
    def board(self) -> Board:
        return Board.attach(self.line.run_dir)

    @property
    def row(self) -> Row:
        return self.board[f"station-{STATION}"]

    @property
    def plc(self) -> Any:
        assert self.line.plc is not None
        return self.line.plc

    @property
    def stage(self) -> Any:
        assert self.line.stage is not None
        return self.line.stage

    def pid(self, process: str) -> int:
        return self.board[process].pid

    def events(self) -> list[dict[str, Any]]:
        """The daemon's log so far."""
        return [json.loads(text) for text in self.line.log.read_text().splitlines() if text.startswith("{")]

    def logged(self, event: str, **facts: object) -> list[dict[str, Any]]:
        return [
            found
            for found in self.events()
            if found["event"] == event and all(found.get(key) == value for key, value in facts.items())
        ]

    def part_is(self, number: int, timeout_s: float = 20) -> None:
        """Wait until that part stands before the camera."""
        until(lambda: self.stage.part >= number, timeout_s)

    def judged_after(self, at_ns: int) -> list[dict[str, Any]]:
        """The PLC's judgement of parts that were triggered after a moment (written a second after their deadline)."""
        return [part for part in self.line.judged() if part["triggered_ns"] >= at_ns]

    def recovered(self, parts: int = 4) -> None:
        """Wait until so many more parts were judged (no fail-safe verdicts) and announced."""

        def judged() -> int:
            counters = self.row.counters()
            return counters["verdicts"] - counters["fail_safe"]

        enough = judged() + parts
        until(lambda: judged() >= enough, 20)

    def restarted(self, name: str, old: int) -> None:
        """Wait until another process than `old` does this job, and is ready."""
        until(lambda: self.pid(name) not in {0, old} and self.board[name].state is State.READY, 20)

    def finish(self) -> dict[str, Any]:
        """Bring no further part, stop in order, and hold the witnesses against each other."""
        self.plc.end()
        return self.all_through(10)

    def all_through(self, timeout_s: float = 40) -> dict[str, Any]:
        """Let all parts through that were ordered, stop in order, and hold the witnesses against each other."""
        self.plc.wait_done(timeout_s)
        return self.account()

    def rows(self) -> list[dict[str, Any]]:
        """The archive's parts, in order; the daemon has ended."""
        return archived(self.line.state_dir)

    def account(self) -> dict[str, Any]:
        """Stop in order and hold the witnesses against each other; the PLC has written its summary."""
        summary = self.plc.summary()
        if self.line.broker is not None:
            self.line.listener.wait(self.row.get("verdicts"), "/verdict", timeout_s=10)
        counters, backend = self.row.counters(), self.row.backend
        assert self.line.stop_daemon() == 0, self.line.log.read_text()[-3000:]
        rows = archived(self.line.state_dir)
        known = {row["sequence"]: row for row in rows}
        for part in self.line.judged():
            if part["result"] == "none" or part["sequence"] not in known:
                near = [row for row in rows if abs(row["trigger_ns"] - part["triggered_ns"]) < 10**8]
                print("unaccounted:", part, "near it:", near)  # noqa: T201 - pytest shows it where the test fails
        return build(
            judged=self.line.judged(),
            summary=summary,
            rows=rows,
            messages=self.line.told() if self.line.listener is not None else None,
            counters=counters,
            camera=self.line.plan.camera,
            backend=backend,
            stalls=self.line.stalls(),
        )


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"it did not come within {timeout_s} s"
        time.sleep(0.01)


def first_good_after(parts: list[dict[str, Any]], at_ns: int) -> float:
    """Seconds from a moment to the first part judged (not fail-safe) after it."""
    times = [part["triggered_ns"] for part in parts if part["triggered_ns"] >= at_ns and 0 < part["code"] < 100]
    assert times, "no part was judged again"
    return (times[0] - at_ns) / 1e9


def gone(pid: int) -> bool:
    """Has the process ended? One that nobody has reaped yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
