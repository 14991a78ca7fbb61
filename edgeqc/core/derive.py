"""Tags made of other tags: difference, ratio, rate, count. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgeqc.core.align import Mark
from edgeqc.records import NS_PER_S

_AGES_NS: Final = NS_PER_S
"""A rate's input that was silent for so long has kept its value: most servers send changes within that."""
_POINTS_MOST: Final = 1024
"""Of a rate's window; a faster tag's window is shorter by that."""


class How(StrEnum):
    """What is made of the inputs."""

    DIFFERENCE = "difference"
    """First less second."""
    RATIO = "ratio"
    """First by second; BAD where the second is 0."""
    RATE = "rate"
    """Change of the one input per second, over a window."""
    COUNT = "count"
    """The one input's increments added up since the start: over wraps, and past resets of the PLC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one derived tag comes about."""

    how: How
    inputs: tuple[int, ...]
    """Places of the tags it is made of: two for difference and ratio, one for rate and count."""
    window_ns: int = 10 * NS_PER_S
    """Of a rate."""
    wraps_at: float = math.inf
    """The input is a counter that goes from this (excluded) to 0 again, e.g. 65536; inf: it is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A value of a derived tag."""

    rule: int
    """Which of the rules."""
    at_ns: int
    value: float
    """NaN where the mark is BAD or GAP."""
    mark: Mark


class Deriver:
    """All rules, fed sample by sample in the order of arrival."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Nothing is known of any input yet."""
        self.inputs: frozenset[int] = frozenset(place for rule in rules for place in rule.inputs)
        """The tags that matter here."""
        self._of: dict[int, list[int]] = {}
        for number, rule in enumerate(rules):
            for place in dict.fromkeys(rule.inputs):
                self._of.setdefault(place, []).append(number)
        self._makers = [_Maker(rule) for rule in rules]

    def feed(self, place: int, at_ns: int, value: float, mark: Mark) -> list[Made]:
        """Take one sample; give what it changes."""
        made: list[Made] = []
        for number in self._of.get(place, ()):
            result = self._makers[number].feed(place, at_ns, value, mark)
            if result is not None:
                made.append(Made(rule=number, at_ns=result[0], value=result[1], mark=result[2]))
        return made

    def age(self, now_ns: int) -> list[Made]:
        """Give the rates that have changed because nothing came: servers and dead bands tell changes only."""
        made = []
        for number, maker in enumerate(self._makers):
            result = maker.age(now_ns)
            if result is not None:
                made.append(Made(rule=number, at_ns=now_ns, value=result[0], mark=result[1]))
        return made


class _Maker:
    """One rule and what it remembers."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._last: dict[int, tuple[int, float, Mark]] = {}
        self._points: deque[tuple[int, float]] = deque(maxlen=_POINTS_MOST)
        self._total = 0.0
        self._counted = math.nan
        """The input's value up to which `_total` counts: BAD samples in between leave it."""
        self._told = math.nan
        """The rate that was told last; NaN: none."""

    def feed(self, place: int, at_ns: int, value: float, mark: Mark) -> tuple[int, float, Mark] | None:
        before = self._last.get(place)
        if before is not None and at_ns < before[0]:
            if mark not in {Mark.BAD, Mark.GAP}:
                return None  # what is late cannot change what was told already, but for that nothing is known
            at_ns = before[0]
        self._last[place] = (at_ns, value, mark)
        if any(wanted not in self._last for wanted in self._rule.inputs):
            return None
        inputs = [self._last[wanted] for wanted in self._rule.inputs]
        newest_ns = max(moment for moment, _, _ in inputs)
        worst = _worst([each for _, _, each in inputs])
        if worst in {Mark.BAD, Mark.GAP}:
            self._points.clear()  # a rate over a gap would be an invention
            self._told = math.nan
            return newest_ns, math.nan, worst
        result = self._make([number for _, number, _ in inputs], newest_ns)
        if result is None:
            return None
        return (newest_ns, result, worst) if math.isfinite(result) else (newest_ns, math.nan, Mark.BAD)

    def _make(self, inputs: list[float], at_ns: int) -> float | None:
        match self._rule.how:
            case How.DIFFERENCE:
                return inputs[0] - inputs[1]
            case How.RATIO:
                return inputs[0] / inputs[1] if inputs[1] else math.nan
            case How.COUNT:
                self._count(inputs[0])
                return self._total
            case How.RATE:
                self._count(inputs[0])
                return self._rate(at_ns)

    def _count(self, value: float) -> None:
        if not math.isnan(self._counted):
            self._total += _step(self._counted, value, self._rule.wraps_at)
        self._counted = value

    def _rate(self, at_ns: int) -> float | None:
        points = self._points
        if points and points[-1][0] == at_ns:
            points.pop()
        points.append((at_ns, self._total))
        # the oldest point may lie before the window, by one step: else a slow tag would have no rate at all
        while len(points) > 2 and points[1][0] <= at_ns - self._rule.window_ns:  # noqa: PLR2004 - the two of a slope
            points.popleft()
        began_ns, total = points[0]
        if at_ns == began_ns:
            return None
        self._told = (self._total - total) * NS_PER_S / (at_ns - began_ns)
        return self._told

    def age(self, now_ns: int) -> tuple[float, Mark] | None:
        """The rate as of now where its input has kept its value for a while; None where that is nothing new."""
        points, since_ns = self._points, now_ns - self._rule.window_ns
        if not points or now_ns - points[-1][0] < _AGES_NS:
            return None
        if len(points) == 1 and points[0][0] > since_ns:
            return None  # one value, seen for less than a window, is no rate
        began_ns, total = max((point for point in points if point[0] <= since_ns), default=points[0])
        rate = (self._total - total) * NS_PER_S / (now_ns - began_ns)
        if rate == self._told:
            return None
        self._told = rate
        return rate, self._last[self._rule.inputs[0]][2]


def _step(before: float, value: float, wraps_at: float) -> float:
    """The increment from one reading of a tag to the next.

    A counter that fell by more than half its range has wrapped; one that fell by less was reset, and counts from 0.
    """
    if not math.isfinite(wraps_at) or value >= before:
        return value - before
    wrapped = value + wraps_at - before
    return wrapped if wrapped < wraps_at / 2 else value


def _worst(marks: Sequence[Mark]) -> Mark:
    return min(marks, key=_ORDER.index)


_ORDER: Final = (Mark.GAP, Mark.BAD, Mark.UNCERTAIN, Mark.GOOD)
