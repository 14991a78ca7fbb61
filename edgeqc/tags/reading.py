"""From what a server says to a tag value: scale, offset, plausibility. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from edgeqc.records import Quality, TagValue
from edgeqc.settings import TagSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one tag's raw numbers are understood."""

    name: str
    scale: float
    offset: float
    low: float
    high: float
    element: int | None = None
    """Which one of an array."""

    @classmethod
    def of(cls, tag: TagSettings) -> Self:
        """As configured."""
        return cls(
            name=tag.name,
            scale=tag.scale,
            offset=tag.offset,
            low=-math.inf if tag.min is None else tag.min,
            high=math.inf if tag.max is None else tag.max,
            element=tag.element,
        )

    def value(self, raw: object, quality: Quality, source_ts: float, received_ns: int) -> TagValue:
        """Give the tag's value: BAD where `raw` (or its element) is no finite number, UNCERTAIN where it is outside min..max."""
        if self.element is not None:
            raw = raw[self.element] if isinstance(raw, list) and self.element < len(raw) else None
        number = raw * self.scale + self.offset if isinstance(raw, int | float) else math.nan
        if not math.isfinite(number):
            number, quality = math.nan, Quality.BAD
        elif quality is Quality.GOOD and not self.low <= number <= self.high:
            quality = Quality.UNCERTAIN
        return TagValue(name=self.name, value=number, quality=quality, source_ts=source_ts, received_ns=received_ns)

    def bad(self, received_ns: int) -> TagValue:
        """Give the value of a tag that its server refuses."""
        return self.value(None, Quality.BAD, 0.0, received_ns)
