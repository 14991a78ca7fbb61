"""The conveyor between camera and gate: each part is placed on it between two readings, and followed to the gate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edgeqc.core.axis import Axis
from edgeqc.core.track import Gate, GateEvent, GateFact, GateOutput


@dataclass(slots=True, kw_only=True)
class _Unplaced:
    sequence: int
    part_id: str
    at_ns: int
    passed: bool = False


class Conveyor:
    """One gate and the axis that leads to it. Not thread-safe. Parts come in order."""

    def __init__(self, axis: Axis, gate: Gate, *, most_gap_ns: int) -> None:
        """Nothing was read.

        Args:
            axis: of its own.
            gate: of its own.
            most_gap_ns: between readings further apart nobody knows where a part was triggered, nor, by running time,
                how far it moved.
        """
        self._axis, self._gate, self._most_gap_ns = axis, gate, most_gap_ns
        self._unplaced: deque[_Unplaced] = deque()
        """Parts triggered since the last reading."""
        self._read_ns: int | None = None
        self._seen_from_ns = 0
        """Of the reading since which none stayed out: where a part was before it nobody knows."""
        self._last_position: int | None = None
        """Of the part that was placed last."""

    @property
    def output(self) -> GateOutput:
        """What is to be on."""
        return self._gate.output

    @property
    def position(self) -> int:
        """On the axis, at the last reading."""
        return self._axis.position or 0

    def part(self, sequence: int, part_id: str, at_ns: int | None, *, now_ns: int) -> list[GateEvent]:
        """A part was triggered at this time; None: nobody knows when."""
        blind = self._read_ns is None or now_ns - self._read_ns > self._most_gap_ns
        if at_ns is None or blind:
            return self._gate.part(sequence, part_id, None)
        self._unplaced.append(_Unplaced(sequence=sequence, part_id=part_id, at_ns=at_ns))
        return self._place() if at_ns <= (self._read_ns or 0) else []

    def passed(self, sequence: int) -> None:
        """The PLC has acknowledged this part's PASS. Too late, where its output is on."""
        for part in self._unplaced:
            if part.sequence == sequence:
                part.passed = True
                return
        self._gate.passed(sequence)

    def encoder(self, raw: int, at_ns: int, *, confirmations: int | None) -> list[GateEvent]:
        """A reading of the encoder; `confirmations`: the counter behind the ejector, None where there is none."""
        return self._moved(lambda: self._axis.encoder(raw, at_ns), at_ns, confirmations)

    def clock(self, at_ns: int, *, running: bool, confirmations: int | None) -> list[GateEvent]:
        """A reading of whether the line runs; as `encoder`."""
        return self._moved(lambda: self._axis.clock(running=running, at_ns=at_ns), at_ns, confirmations)

    def interrupted(self) -> None:
        """The output may not have been what `output` says; see `Gate.interrupted`."""
        self._gate.interrupted()

    def _moved(self, read: Callable[[], bool], at_ns: int, confirmations: int | None) -> list[GateEvent]:
        seen = self._read_ns is not None and at_ns - self._read_ns <= self._most_gap_ns
        self._read_ns = at_ns
        events: list[GateEvent] = []
        if not read():
            seen, self._last_position = False, None
            events += self._gate.lost()
        if not seen:
            self._seen_from_ns = at_ns
        events += self._place()
        if confirmations is not None:
            events += self._gate.confirmed(confirmations)
        return events + self._gate.move(self.position)

    def _place(self) -> list[GateEvent]:
        """Put the parts that were triggered before the last reading where they were."""
        events: list[GateEvent] = []
        while self._unplaced and self._unplaced[0].at_ns <= (self._read_ns or 0):
            part = self._unplaced.popleft()
            position = self._axis.at(part.at_ns) if part.at_ns >= self._seen_from_ns else None
            if position is None:
                events += [] if part.passed else self._gate.part(part.sequence, part.part_id, None)
                continue
            events += self._gate.part(part.sequence, part.part_id, position)
            if part.passed:
                self._gate.passed(part.sequence)
            if self._last_position is not None and position <= self._last_position:
                events.append(GateEvent(fact=GateFact.NOT_MOVING, sequence=part.sequence, part_id=part.part_id))
            self._last_position = position
        return events
