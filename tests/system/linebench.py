"""A line under test: what the system tests do to it and read from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeqc.jobs import Job, jobs
from edgeqc.loading import restore
from edgeqc.shm.board import Board, Row, State
from edgeqc.sim.line import STATION, SimLine
from edgeqc.sim.report import archived, build

ENDLESS = 100_000
"""Parts of a line that a test ends."""
COMES_S = 90
"""For whatever comes without a promised time: a starved box takes ten times as long to start a process as a free one."""
_COUNTED = ("duplicates", "wrong_part", "both_bits", "valid_without_bit", "bit_without_valid")
"""Of the PLC's summary: what happened since the section began is the difference."""
_SINCE = ("bad_frames", "missed", "stale", "doubled", "images_given_up")


class Bench:
    """A line under test, with what the checks need."""

    def __init__(self, line: SimLine) -> None:
        self.line = line
        self.first_part = 1
        self._began_ns = time.monotonic_ns()
        self._events_before = 0
        self._counters_before: dict[str, int] = {}
        self._summary_before: dict[str, Any] = {}

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
            for found in self.events()[self._events_before :]
            if found["event"] == event and all(found.get(key) == value for key, value in facts.items())
        ]

    def part_is(self, number: int, timeout_s: float = COMES_S) -> None:
        """Wait until that part stands before the camera."""
        until(lambda: self.stage.part >= number, timeout_s)

    def judged_after(self, at_ns: int) -> list[dict[str, Any]]:
        """The PLC's judgement of parts that were triggered after a moment (written a second after their deadline)."""
        return [part for part in self.line.judged() if part["triggered_ns"] >= at_ns]

    def recovered(self, parts: int = 4) -> None:
        """Wait until so many more parts were judged (no fail-safe verdicts) and announced."""
        enough = self._judged() + parts
        until(lambda: self._judged() >= enough)

    def _judged(self) -> int:
        counters = self.row.counters()
        return counters["verdicts"] - counters["fail_safe"]

    def restarted(self, name: str, old: int) -> None:
        """Wait until another process than `old` does this job, and is ready."""
        until(lambda: self.pid(name) not in {0, old} and self.board[name].state is State.READY)

    def begin_section(self) -> None:
        """What `section` says is of the parts from here on."""
        self.recovered(2)  # what a test before has left behind is not of this one
        self.first_part = self.stage.part + 1
        self._events_before = len(self.events())
        self._counters_before = self.row.counters()
        self._summary_before = self.plc.so_far()

    def section(self) -> dict[str, Any]:
        """Hold the witnesses against each other for the parts since `begin_section`, while the line runs on."""
        last = self.stage.part
        until(lambda: any(part["part"] >= last for part in self.line.judged()))
        seen = self.line.judged()
        judged = [part for part in seen if self.first_part <= part["part"] <= last]
        answered = {part["sequence"] for part in judged if part["result"] != "none"}
        # by number: a part whose trigger was read late is dated back, maybe to before it was raised
        earlier = max((part["sequence"] for part in seen if part["part"] < self.first_part), default=0)
        end = time.monotonic() + COMES_S
        while True:
            rows = [
                row for row in archived(self.line.state_dir) if earlier < row["sequence"] <= max(answered, default=0)
            ]
            mine = {row["sequence"] for row in rows}
            untold = mine - {message["trigger_id"] for message in self.line.told()}
            if answered <= mine and not untold:
                break
            if time.monotonic() > end:
                print("not archived:", answered - mine, "not told:", untold)  # noqa: T201 - as in `account`
                break
            time.sleep(0.05)
        now, before = self.plc.so_far(), self._summary_before
        counters = self.row.counters()
        return build(
            judged=judged,
            summary=now | {name: now[name] - before[name] for name in _COUNTED} | {"triggers": len(judged)},
            rows=rows,
            messages=[message for message in self.line.told() if message["trigger_id"] in mine],
            counters=counters | {name: counters[name] - self._counters_before[name] for name in _SINCE},
            camera=self.line.plan.camera,
            backend=self.row.backend,
            stalls=self.line.stalls(),
        )

    def parts(self) -> list[dict[str, Any]]:
        """The PLC's judgement of the section's parts so far."""
        return [part for part in self.line.judged() if part["part"] >= self.first_part]

    def passes(self, parts: int) -> None:
        """Wait until so many more parts have stood before the camera."""
        self.part_is(self.stage.part + parts)

    def finish(self, timeout_s: float = COMES_S) -> dict[str, Any]:
        """Let the parts through that were ordered, no further ones where none were; stop in order; `account`."""
        if self.line.plan.parts == ENDLESS:
            self.plc.end()
        self.plc.wait_done(timeout_s)
        return self.account()

    def rows(self) -> list[dict[str, Any]]:
        """The archive's parts, in order; the daemon has ended."""
        return archived(self.line.state_dir)

    def account(self) -> dict[str, Any]:
        """Stop in order and hold the witnesses against each other; the PLC has written its summary."""
        summary = self.plc.summary()
        if self.line.listener is not None and self.line.plan.broker_acl is None:
            self.line.listener.wait(self.row.get("verdicts"), "/verdict", timeout_s=COMES_S)
        for job in jobs(restore((self.line.run_dir / "settings.json").read_bytes())):
            _gives_signs_of_life(self.board[job.name], job, self._began_ns)
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


def set_going(line: SimLine) -> Bench:
    """Wait until the daemon is ready, then let the parts come."""
    line.wait_ready(COMES_S)
    assert line.plc is not None
    line.plc.go()
    return Bench(line)


def _gives_signs_of_life(row: Row, job: Job, since_ns: int) -> None:
    """Each loop that the supervisor has a limit for comes round: one that never did would end a process that works."""
    silent = set(job.limits_ns)

    def all_came_round() -> bool:
        silent.difference_update(loop for loop, at_ns in row.beats().items() if at_ns > since_ns)
        return not silent

    until(all_came_round, what=f"{job.name}: one of {sorted(silent)} gives no sign of life")


def until(condition: Callable[[], bool], timeout_s: float = COMES_S, what: str = "it did not come") -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} within {timeout_s} s"
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
