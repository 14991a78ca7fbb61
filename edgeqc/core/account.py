"""Counting parts by their counters: what was missed, doubled or stale is known, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

GVSP_CYCLE: Final = 65_535
"""GigE Vision's 16-bit block id skips 0: 65535 is followed by 1."""
MODBUS_CYCLE: Final = 65_536
"""A PLC counter in one register."""


class Step(StrEnum):
    """How a counter moved."""

    FIRST = "first"
    SAME = "same"
    NEXT = "next"
    MISSED = "missed"
    BACK = "back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From one reading of a counter to the next."""

    step: Step
    missed: int = 0
    """How many counts were never seen; only with MISSED."""


def move(before: int | None, after: int, *, cycle: int) -> Move:
    """How the counter moved from `before` (None: never seen) to `after`, modulo `cycle`.

    Half a cycle or more forward is a step back: a restarted peer, or an old frame.
    """
    if before is None:
        return Move(step=Step.FIRST)
    distance = (after - before) % cycle
    if distance == 0:
        return Move(step=Step.SAME)
    if distance == 1:
        return Move(step=Step.NEXT)
    if distance < cycle // 2:
        return Move(step=Step.MISSED, missed=distance - 1)
    return Move(step=Step.BACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What one reading of the PLC's trigger block says of parts."""

    part: bool = False
    """A part is there now: it gets a number and a verdict."""
    fresh: bool = True
    """Its trigger is as young as the last reading: it may be exposed. Otherwise it has moved nobody knows how far."""
    waited_ns: int = 0
    """It was triggered so long ago at the most: since the reading before."""
    missed: int = 0
    """Parts that went by unseen: known by their number only."""
    doubled: bool = False
    """It has the part id of the part before: one part triggered twice, or a PLC that forgot to write the id."""
    swapped: bool = False
    """It has the part id of an earlier part: parts overtook each other, or an old id is shown again."""
    restarted: bool = False
    """The counter went back: the PLC was restarted."""


NOTHING: Final = Arrival()
MOST_MISSED: Final = 1024
"""Parts that can go by unseen, in a minute without a link on a fast line. A counter that jumps further was set anew: by
its distance alone a PLC that restarted at 40000 would look like one that had counted 25536 parts on. One that restarts so
near to the wrap still does: missed parts are recorded that never were, and nothing passes under the number 0."""
REMEMBERED_IDS: Final = 64
"""Part ids that are told apart: more than any line has between trigger and gate."""


class PartIds:
    """The part ids seen last: two parts with one id are one too many. A part without one is nobody's double."""

    def __init__(self) -> None:
        """None was seen yet."""
        self._ids: dict[str, None] = {}
        self._last = ""

    def repeats(self, part_id: str) -> tuple[bool, bool]:
        """Is it that of the part before (doubled), or of an earlier one (swapped)? It is the last one from now on."""
        doubled = bool(part_id) and part_id == self._last
        swapped = bool(part_id) and not doubled and part_id in self._ids
        self._last = part_id
        if part_id:
            self._ids.pop(part_id, None)
            self._ids[part_id] = None
            if len(self._ids) > REMEMBERED_IDS:
                self._ids.pop(next(iter(self._ids)))
        return doubled, swapped

    def clear(self) -> None:
        """What comes is of another life."""
        self._ids.clear()
        self._last = ""


class TriggerAccount:
    """Counts the PLC's parts by its counter and part ids. One lane."""

    def __init__(self, *, cycle: int = MODBUS_CYCLE, fresh_ns: int) -> None:
        """`fresh_ns`: with readings further apart than this nobody knows when a part came."""
        self._cycle = cycle
        self._fresh_ns = fresh_ns
        self._counter: int | None = None
        self._read_ns = 0
        self._ids = PartIds()

    def reading(self, counter: int, part_id: str, read_ns: int, *, exact: bool = False) -> Arrival:
        """Account for one reading of counter and part id, taken at `read_ns` (monotonic); `exact`: the counter came then.

        One that was overtaken, as the first of a fresh link can be by the last of the link before, says nothing: its counter
        would look like one that went back.
        """
        if read_ns < self._read_ns:
            return NOTHING
        moved = move(self._counter, counter, cycle=self._cycle)
        gap_ns = 0 if exact else read_ns - self._read_ns
        self._counter, self._read_ns = counter, read_ns
        if moved.step in {Step.FIRST, Step.SAME}:
            return NOTHING  # what stands in the block when we come is of another life
        restarted = moved.step is Step.BACK or moved.missed > MOST_MISSED
        if restarted:
            self._ids.clear()
            if counter == 0:
                return Arrival(restarted=True)
        # A PLC that restarted has counted its parts from 1: those before the one at hand went by unseen.
        missed = moved.missed
        if restarted:
            missed = counter - 1 if counter <= MOST_MISSED else 0
        # Whoever jumps onto 0 may have been restarted: there may be no part at all, and none may pass under that number.
        known = not restarted and not (counter == 0 and missed)
        doubled, swapped = self._ids.repeats(part_id)
        return Arrival(
            part=True,
            fresh=known and gap_ns <= self._fresh_ns,
            waited_ns=gap_ns,
            missed=missed,
            doubled=doubled,
            swapped=swapped,
            restarted=restarted,
        )
