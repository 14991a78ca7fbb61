"""Watches the PLC's trigger block in a thread of its own: no trigger is missed because the line is busy or stuck."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from edgeqc.core.account import MODBUS_CYCLE, Step, move
from edgeqc.core.decide import overdue
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_MS, Event
from edgeqc.shm.board import Row
from edgeqc.station.intake import Intake
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Part
from edgeqc.station.plckeeper import PlcKeeper

_READ_NS: Final = 300 * NS_PER_MS
"""For one read of the trigger block: a PLC that takes longer is as good as gone."""
_DOWN_S: Final = 0.02
"""Between looks at a link that is down."""


class TriggerWatch:
    """Polls, counts, opens parts, and hands them to the line in order."""

    def __init__(self, plc: PlcKeeper, intake: Intake, outcome: Outcome, row: Row, *, poll_ns: int) -> None:
        """`poll_ns`: from one read to the next."""
        self._plc = plc
        self._intake = intake
        self._outcome = outcome
        self._row = row
        self._poll_ns = poll_ns
        self._counter: int | None = None
        self._waiting: deque[Part] = deque()
        self._came = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="triggers", daemon=True)

    def start(self) -> None:
        """Begin to watch. What is in the block now is taken for old."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(timeout=1)

    def next(self, until_ns: int) -> Part | None:
        """The next triggered part, in order; None at `until_ns`. Line thread only."""
        while not self._waiting:
            self._came.clear()
            if self._waiting:
                break
            left_s = (until_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0 or not self._came.wait(left_s):
                return None
        return self._waiting.popleft()

    @property
    def more(self) -> bool:
        """Has another part been triggered since?"""
        return bool(self._waiting)

    def _run(self) -> None:
        next_ns = time.monotonic_ns()
        while not self._stopping:
            self._row.beat("triggers")
            try:
                self._look()
            except PeerError:
                time.sleep(_DOWN_S)
            next_ns = max(next_ns + self._poll_ns, time.monotonic_ns())
            time.sleep(max(0, next_ns - time.monotonic_ns()) / 1e9)

    def _look(self) -> None:
        reading = self._plc.read_trigger(time.monotonic_ns() + _READ_NS)
        self._intake.announce(reading.recipe)
        moved = move(self._counter, reading.counter, cycle=MODBUS_CYCLE)
        self._counter = reading.counter
        match moved.step:
            case Step.NEXT | Step.MISSED:
                self._row.count("missed", moved.missed)
                for _ in range(moved.missed):
                    self._outcome.settle(
                        self._intake.missed(reading.read_ns, reading.recipe), *overdue(frame_came=False)
                    )
                self._waiting.append(self._intake.open(reading.read_ns, reading.part_id, reading.recipe))
                self._came.set()
            case Step.BACK:
                self._outcome.note(Event(name="plc_counter_restarted", facts={"counter": reading.counter}))
            case Step.FIRST | Step.SAME:
                pass
