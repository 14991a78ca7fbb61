"""Samples of many tags, each at its own pace, onto one grid of times. Pure.

A grid row holds what was known of every tag at that moment: the last sample at or before it (OPC UA tells changes, so
a value stands until the next one). Rows come `late_ns` after their moment, so that samples which are late or out of
order by less are in them. Nothing is made up: where a tag's server was away, or said Bad, the value is NaN and the
mark says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int32]
Times = NDArray[np.int64]
Values = NDArray[np.float64]
Marks = NDArray[np.uint8]

MOST_ROWS: Final = 600
"""At once: a minute of a 100 ms grid. A process that slept longer leaves rows out and says how many."""
PENDING_MOST: Final = 1_000_000
"""Samples that wait for their row, 25 MB; beyond, the oldest go and are counted."""


class Mark(IntEnum):
    """What a sample or a cell of the grid is worth; the first three are `Quality`'s numbers."""

    BAD = 0
    UNCERTAIN = 1
    GOOD = 2
    GAP = 3
    """No sample: the tag's server is away, or has never told it."""


class Samples(NamedTuple):
    """Samples of any tags: four arrays of one length, in the order in which they came."""

    places: Places
    """Which tag, as its column in the grid."""
    at_ns: Times
    values: Values
    marks: Marks

    def picked(self, which: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Samples:
        """Some of them."""
        return Samples(self.places[which], self.at_ns[which], self.values[which], self.marks[which])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridRow:
    """All tags at one moment of the grid. The arrays are the receiver's own, one element a tag."""

    at_ns: int
    """A multiple of the period, in the samples' own time."""
    values: Values
    """NaN where the mark is BAD or GAP."""
    marks: Marks
    ages_s: NDArray[np.float32]
    """Seconds from the sample to this moment; inf where there is none."""
    skipped: int = 0
    """Rows left out before this one because there was no time for them."""


class Aligner:
    """One grid over tags 0 .. n-1. One thread. Times are ns of one clock, whichever the caller keeps to."""

    def __init__(
        self, tags: int, *, period_ns: int, late_ns: int, hold_ns: int | None = None, start_ns: int | None = None
    ) -> None:
        """Every tag begins as GAP.

        Args:
            tags: how many.
            period_ns: of the grid.
            late_ns: a row waits so long for samples that are late.
            hold_ns: a sample older than this is a GAP; None where loss is told by `gap` (live sources).
            start_ns: the first row is the first multiple of the period at or after it; None: that of the first `rows`.
        """
        self.late = 0
        """Samples that came after their row was out. They count from the next row on, if they are still the newest."""
        self.dropped = 0
        """Samples given up because too many waited."""
        self.period_ns = period_ns
        self._late_ns = late_ns
        self._hold_ns = hold_ns
        self._next_ns = None if start_ns is None else -(-start_ns // period_ns) * period_ns
        self._out_ns = _NEVER
        """Moment of the last row given."""
        self._values = np.full(tags, np.nan)
        self._marks = np.full(tags, Mark.GAP, np.uint8)
        self._at_ns = np.full(tags, _NEVER, np.int64)
        self._pending: list[Samples] = []
        self._waiting = 0

    def put(self, samples: Samples) -> None:
        """Take samples in any order; of two of one tag at one time the later given counts. The arrays are kept."""
        self._pending.append(samples)
        self._waiting += len(samples.places)
        while self._waiting > PENDING_MOST and len(self._pending) > 1:
            oldest = self._pending.pop(0)
            self._waiting -= len(oldest.places)
            self.dropped += len(oldest.places)

    def gap(self, places: Places, at_ns: int) -> None:
        """From this moment on nothing is known of these tags, until samples of later moments come."""
        count = len(places)
        self.put(
            Samples(places, np.full(count, at_ns, np.int64), np.full(count, np.nan), np.full(count, Mark.GAP, np.uint8))
        )

    def rows(self, now_ns: int, *, complete_to_ns: int | None = None) -> Iterator[GridRow]:
        """Give every row whose moment is at least `late_ns` ago, in order, each once.

        A row need not wait so long where it is at or before `complete_to_ns`: nothing older is still to come.
        """
        sure_ns = now_ns - self._late_ns
        if complete_to_ns is not None:
            sure_ns = max(sure_ns, min(complete_to_ns, now_ns))
        due_ns = sure_ns // self.period_ns * self.period_ns
        if self._next_ns is None:
            self._next_ns = due_ns
        count = (due_ns - self._next_ns) // self.period_ns + 1
        if count <= 0:
            return
        skipped = max(0, count - MOST_ROWS)
        self._next_ns += skipped * self.period_ns
        ready = self._ready(due_ns)
        self.late += int(np.searchsorted(ready.at_ns, self._out_ns, side="right"))
        taken = 0
        while self._next_ns <= due_ns:
            end = int(np.searchsorted(ready.at_ns, self._next_ns, side="right"))
            self._apply(ready.picked(slice(taken, end)))
            taken = end
            row = self._row(self._next_ns, skipped)
            skipped = 0
            self._out_ns = self._next_ns
            self._next_ns += self.period_ns
            yield row

    def all_rows(self, now_ns: int) -> Iterator[GridRow]:
        """Give them as `rows`, but leave none out however long ago the last was: for recordings."""
        step_ns = (MOST_ROWS - 1) * self.period_ns
        if self._next_ns is not None:
            while self._next_ns + step_ns + self._late_ns < now_ns:
                yield from self.rows(self._next_ns + step_ns + self._late_ns)
        yield from self.rows(now_ns)

    def _ready(self, due_ns: int) -> Samples:
        """Take what belongs into rows up to `due_ns` out of those that wait, in the order of time."""
        waiting = Samples(*(np.concatenate(column) for column in zip(_NOTHING, *self._pending, strict=True)))
        order = np.argsort(waiting.at_ns, kind="stable")
        split = int(np.searchsorted(waiting.at_ns[order], due_ns, side="right"))
        self._pending = [waiting.picked(order[split:])]
        self._waiting = len(order) - split
        return waiting.picked(order[:split])

    def _apply(self, samples: Samples) -> None:
        newer = samples.at_ns >= self._at_ns[samples.places]
        places, at_ns, values, marks = samples if newer.all() else samples.picked(newer)
        # of several for one place the last one is kept: numpy promises that for assignment
        self._at_ns[places] = at_ns
        self._marks[places] = marks
        self._values[places] = values

    def _row(self, at_ns: int, skipped: int) -> GridRow:
        marks = self._marks.copy()
        ages_s = np.where(self._at_ns == _NEVER, np.inf, (at_ns - self._at_ns) / 1e9).astype(np.float32)
        if self._hold_ns is not None:
            marks[at_ns - self._at_ns > self._hold_ns] = Mark.GAP
        known = (marks == Mark.GOOD) | (marks == Mark.UNCERTAIN)
        ages_s[marks == Mark.GAP] = np.inf
        return GridRow(
            at_ns=at_ns,
            values=np.where(known, self._values, np.nan),
            marks=marks,
            ages_s=ages_s,
            skipped=skipped,
        )


_NEVER: Final = -(2**62)
_NOTHING: Final = Samples(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.uint8))
