"""Parts on their way from the camera to the gate: each is ejected there unless it has passed.

A part is tracked from its trigger on, not from its verdict: where the verdict stays out, the part is ejected. Positions
are those of an `Axis`: pulses, or nanoseconds for which the line ran.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgeqc.core.account import MODBUS_CYCLE, Step, move


class GateFact(StrEnum):
    """What happened to a part at the gate."""

    EJECT = "eject"
    """It is at the gate and the output is on for it."""
    WENT_BY = "went_by"
    """It had to be ejected, and passed the gate while nobody was looking: it is among the good ones."""
    UNTRACKED = "untracked"
    """It has to be ejected, but nobody knows where it is: missed at the camera, or the encoder's thread was lost."""
    NOT_MOVING = "not_moving"
    """By the encoder, or by its running time, the conveyor has not moved on since the part before it."""
    NOT_EJECTED = "not_ejected"
    """The output was on for it and the confirmation stayed out: the ejector did not fire."""
    TOO_SHORT = "too_short"
    """Its output was on at one reading only: too short for the line's speed and the poll, it may have begun too late."""
    EJECTED_UNASKED = "ejected_unasked"
    """A confirmation came for which no output was on."""


FAILURES = frozenset({GateFact.WENT_BY, GateFact.UNTRACKED, GateFact.NOT_MOVING, GateFact.NOT_EJECTED})
"""A bad part may be among the good ones."""


_LEAST_READINGS: Final = 2
"""Of the conveyor while an output is on: with fewer it may have begun behind its middle, which is aimed at the part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEvent:
    """One fact of one part."""

    fact: GateFact
    sequence: int = 0
    """0 where no part is known to it."""
    part_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLayout:
    """Lengths on the axis."""

    travel: int
    """From the camera's trigger to the gate."""
    length: int
    """For which the output is on."""
    confirm: int = 0
    """Behind that, within which the confirmation must come; 0: there is no confirmation input."""
    capacity: int = 4096
    """Parts between camera and gate; beyond, the oldest is given up as untracked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutput:
    """What the PLC or the ejector is told."""

    eject: bool
    sequence: int
    """Of the part at the gate, or of the last one that was ejected."""
    part_id: str
    position: int
    """At which its output began, on the axis."""
    ejections: int
    """Counts outputs that were begun: a part more, even where two follow each other without a gap."""


OFF: Final = GateOutput(eject=False, sequence=0, part_id="", position=0, ejections=0)


@dataclass(slots=True, kw_only=True)
class _Tracked:
    sequence: int
    part_id: str
    gate: int
    passed: bool = False
    ejected: bool = False
    readings: int = 0
    """At which its output was on."""
    gone: bool = False
    """It is behind the gate, and what there was to tell is told."""


class Gate:
    """One gate. Not thread-safe. Parts come in order; positions may stand still and go back a little."""

    def __init__(self, layout: GateLayout) -> None:
        """Nothing is on its way."""
        self._layout = layout
        self._parts: deque[_Tracked] = deque()
        self._unconfirmed: deque[_Tracked] = deque()
        self._confirmations: int | None = None
        self.output = OFF

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, sequence: int, part_id: str, position: int | None) -> list[GateEvent]:
        """A part was triggered at this position; None: nobody knows where it is."""
        if position is None:
            return [GateEvent(fact=GateFact.UNTRACKED, sequence=sequence, part_id=part_id)]
        self._parts.append(_Tracked(sequence=sequence, part_id=part_id, gate=position + self._layout.travel))
        if len(self._parts) <= self._layout.capacity:
            return []
        return self._lose([self._parts.popleft()])

    def passed(self, sequence: int) -> None:
        """The PLC has acknowledged this part's PASS. Too late, where its output is on."""
        for tracked in self._parts:
            if tracked.sequence == sequence:
                tracked.passed = not tracked.ejected
                return

    def move(self, position: int) -> list[GateEvent]:
        """The conveyor is here now; `output` says what is to be on."""
        events: list[GateEvent] = []
        layout = self._layout
        here: _Tracked | None = None
        for tracked in self._parts:
            if tracked.gate > position:
                break
            if tracked.passed or tracked.gone:
                continue
            if position < tracked.gate + layout.length:
                here = tracked
                tracked.readings += 1
                events += self._eject(tracked)
                continue
            tracked.gone = True
            if not tracked.ejected:
                events.append(_event(GateFact.WENT_BY, tracked))
            elif tracked.readings < _LEAST_READINGS:
                events.append(_event(GateFact.TOO_SHORT, tracked))
        while self._parts and position >= self._parts[0].gate + layout.length:
            self._parts.popleft()
        if (here is not None) is not self.output.eject:
            self.output = _switched(self.output, on=here is not None)
        return events + self._overdue(position)

    def interrupted(self) -> None:
        """The output may not have been what `output` says: a part that was at the gate then has not been ejected for sure.

        If it is still there when the output works again it is ejected anew, else it is told as gone by.
        """
        for tracked in self._parts:
            tracked.ejected, tracked.readings = False, 0
        self._unconfirmed = deque(one for one in self._unconfirmed if all(one is not other for other in self._parts))
        self.output = _switched(self.output, on=False)

    def lost(self) -> list[GateEvent]:
        """Nobody knows any more how far the conveyor has moved: the parts on their way cannot be told apart now."""
        events = self._lose([tracked for tracked in self._parts if not (tracked.ejected or tracked.gone)])
        events += [_event(GateFact.NOT_EJECTED, tracked) for tracked in self._unconfirmed]
        self._parts.clear()
        self._unconfirmed.clear()
        self._confirmations = None
        self.output = _switched(self.output, on=False)
        return events

    def confirmed(self, count: int) -> list[GateEvent]:
        """The counter of parts that the sensor behind the ejector saw; wraps at 16 bit, starts anew with the PLC."""
        moved = move(self._confirmations, count, cycle=MODBUS_CYCLE)
        self._confirmations = count
        if moved.step not in {Step.NEXT, Step.MISSED}:
            return []
        events = []
        for _ in range(moved.missed + 1):
            if self._unconfirmed:
                self._unconfirmed.popleft()
            else:
                events.append(GateEvent(fact=GateFact.EJECTED_UNASKED))
        return events

    def _eject(self, tracked: _Tracked) -> list[GateEvent]:
        if tracked.ejected:
            return []
        tracked.ejected = True
        if self._layout.confirm:
            self._unconfirmed.append(tracked)
        self.output = GateOutput(
            eject=True,
            sequence=tracked.sequence,
            part_id=tracked.part_id,
            position=tracked.gate,
            ejections=self.output.ejections + 1,
        )
        return [_event(GateFact.EJECT, tracked)]

    def _overdue(self, position: int) -> list[GateEvent]:
        events: list[GateEvent] = []
        room = self._layout.length + self._layout.confirm
        while self._unconfirmed and position >= self._unconfirmed[0].gate + room:
            events.append(_event(GateFact.NOT_EJECTED, self._unconfirmed.popleft()))
        return events

    def _lose(self, parts: list[_Tracked]) -> list[GateEvent]:
        return [_event(GateFact.UNTRACKED, tracked) for tracked in parts if not tracked.passed]


def _event(fact: GateFact, tracked: _Tracked) -> GateEvent:
    return GateEvent(fact=fact, sequence=tracked.sequence, part_id=tracked.part_id)


def _switched(output: GateOutput, *, on: bool) -> GateOutput:
    return GateOutput(
        eject=on,
        sequence=output.sequence,
        part_id=output.part_id,
        position=output.position,
        ejections=output.ejections,
    )
