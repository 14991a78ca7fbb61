"""The configuration's derived tags: which rule feeds which place of the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from edgeqc.core.align import Mark, Samples
from edgeqc.core.derive import Deriver, Made, Rule
from edgeqc.records import NS_PER_S
from edgeqc.settings import DerivedTagSettings, DerivedTagSource, TagSourceSettings
from edgeqc.shm.tagtable import TagTable


class Derived:
    """All derived tags of all sources."""

    def __init__(self, table: TagTable, sources: Sequence[TagSourceSettings]) -> None:
        """Look up every tag that is made of others; `table` was made for these `sources`."""
        own = [source for source in sources if isinstance(source, DerivedTagSource)]
        self.sources: tuple[str, ...] = tuple(source.name for source in own)
        tags = [tag for source in own for tag in source.tags]
        self._tags = tags
        self._places = [table.index(tag.name) for tag in tags]
        self._deriver = Deriver([_rule(tag, table) for tag in tags])
        self._is_input = np.zeros(len(table.names), np.bool_)
        self._is_input[list(self._deriver.inputs)] = True

    def feed(self, samples: Samples) -> Samples | None:
        """Give what these samples make, in order; None where they make nothing."""
        if not self._tags:
            return None
        told: list[_Told] = []
        for number in np.flatnonzero(self._is_input[samples.places]).tolist():
            self._follow(
                self._deriver.feed(
                    int(samples.places[number]),
                    int(samples.at_ns[number]),
                    float(samples.values[number]),
                    Mark(int(samples.marks[number])),
                ),
                told,
            )
        return _samples(told)

    def age(self, now_ns: int) -> Samples | None:
        """The same of time alone: what changes because no sample came."""
        told: list[_Told] = []
        self._follow(self._deriver.age(now_ns), told)
        return _samples(told)

    def _follow(self, made: list[Made], told: list[_Told]) -> None:
        """Add what was made, and what is made of it: a derived tag may be an input of later ones."""
        waiting = list(made)
        while waiting:
            one = waiting.pop(0)
            place = self._places[one.rule]
            value, mark = _scaled(self._tags[one.rule], one.value, one.mark)
            told.append((place, one.at_ns, value, mark))
            if place in self._deriver.inputs:
                waiting += self._deriver.feed(place, one.at_ns, value, mark)


_Told = tuple[int, int, float, Mark]
"""Place, moment, value, mark."""


def _samples(told: list[_Told]) -> Samples | None:
    if not told:
        return None
    places, moments, values, marks = zip(*told, strict=True)
    return Samples(
        np.array(places, np.int32),
        np.array(moments, np.int64),
        np.array(values, np.float64),
        np.array(marks, np.uint8),
    )


def _rule(tag: DerivedTagSettings, table: TagTable) -> Rule:
    return Rule(
        how=tag.how,
        inputs=tuple(table.index(name) for name in tag.of),
        window_ns=int(tag.window_s * NS_PER_S),
        wraps_at=math.inf if tag.wraps_at is None else tag.wraps_at,
    )


def _scaled(tag: DerivedTagSettings, value: float, mark: Mark) -> tuple[float, Mark]:
    """In the tag's unit; UNCERTAIN outside its range."""
    if mark in _WORTHLESS:
        return math.nan, mark
    value = value * tag.scale + tag.offset
    inside = (tag.min is None or value >= tag.min) and (tag.max is None or value <= tag.max)
    return value, mark if inside else Mark.UNCERTAIN


_WORTHLESS: Final = frozenset({Mark.BAD, Mark.GAP})
