"""What the machine is doing, told from its tags: a model judges only in states that it was trained in. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Final

from edgeqc.core.align import GridRow, Mark


class LineState(IntEnum):
    """The states; the numbers are what the state's tag and the history hold."""

    UNKNOWN = 0
    """A tag that would tell is Bad or away."""
    STOPPED = 1
    CHANGEOVER = 2
    WARM_UP = 3
    """It runs, but not for long enough yet."""
    RUNNING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A tag's value lies within bounds, both included."""

    place: int
    """The tag's column in the grid."""
    low: float = -math.inf
    high: float = math.inf


class StateMachine:
    """One machine's state, row by row."""

    def __init__(
        self,
        *,
        running: Sequence[Condition],
        changeover: Sequence[Condition] = (),
        warm_up_ns: int = 0,
        settle_ns: int = 0,
    ) -> None:
        """Begin as UNKNOWN.

        Args:
            running: it runs where all of these hold.
            changeover: it is being changed over where all of these hold, running or not; empty: never.
            warm_up_ns: after each start it is WARM_UP for so long.
            settle_ns: what the tags say must hold so long before it counts.
        """
        self.state = LineState.UNKNOWN
        self.since_ns = 0
        """The grid's time at which `state` began."""
        self._running = tuple(running)
        self._changeover = tuple(changeover)
        self._warm_up_ns = warm_up_ns
        self._settle_ns = settle_ns
        self._seen = _Seen.NOTHING
        self._seen_since_ns = 0

    def step(self, row: GridRow) -> LineState:
        """The state at this row's moment. Rows come in order; a skipped one does no harm."""
        seen = self._look(row)
        if seen is not self._seen:
            self._seen, self._seen_since_ns = seen, row.at_ns
        if row.at_ns - self._seen_since_ns >= self._settle_ns or seen is _Seen.NOTHING:
            self._move(_MOVES[self.state, seen], row.at_ns)
        if self.state is LineState.WARM_UP and row.at_ns - self.since_ns >= self._warm_up_ns:
            self._move(LineState.RUNNING, row.at_ns)
        return self.state

    def _look(self, row: GridRow) -> _Seen:
        if self._changeover:
            held = _hold(self._changeover, row)
            if held is None:
                return _Seen.NOTHING
            if held:
                return _Seen.CHANGEOVER
        held = _hold(self._running, row)
        if held is None:
            return _Seen.NOTHING
        return _Seen.RUN if held else _Seen.STOP

    def _move(self, state: LineState, at_ns: int) -> None:
        if state is not self.state:
            self.state, self.since_ns = state, at_ns


class _Seen(IntEnum):
    NOTHING = auto()
    STOP = auto()
    CHANGEOVER = auto()
    RUN = auto()


_MOVES: Final = {
    (state, seen): after
    for seen, after in (
        (_Seen.NOTHING, LineState.UNKNOWN),
        (_Seen.STOP, LineState.STOPPED),
        (_Seen.CHANGEOVER, LineState.CHANGEOVER),
        (_Seen.RUN, LineState.WARM_UP),
    )
    for state in LineState
} | {(LineState.RUNNING, _Seen.RUN): LineState.RUNNING}
"""Whatever it was, it is what is seen; only one that has warmed up stays so."""


def _hold(conditions: Sequence[Condition], row: GridRow) -> bool | None:
    """Do all hold? None where a tag among them is not known."""
    known = True
    for condition in conditions:
        if row.marks[condition.place] in {Mark.BAD, Mark.GAP}:
            known = False
        elif not condition.low <= float(row.values[condition.place]) <= condition.high:
            return False  # one that does not hold is enough, whatever the others are
    return True if known else None
