"""From what a server says to tag values: scale, offset, plausibility. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeqc.records import Quality, TagBatch, TagFault
from edgeqc.settings import TagSettings


class Readings:
    """How the raw numbers of one source's tags are understood."""

    def __init__(self, source: str, tags: Sequence[TagSettings]) -> None:
        """As configured."""
        self.source = source
        self.names = tuple(tag.name for tag in tags)
        self.elements = tuple(tag.element for tag in tags)
        self._scale = np.array([tag.scale for tag in tags])
        self._offset = np.array([tag.offset for tag in tags])
        self._low = np.array([-math.inf if tag.min is None else tag.min for tag in tags])
        self._high = np.array([math.inf if tag.max is None else tag.max for tag in tags])

    def batch(
        self,
        places: NDArray[np.int32],
        raw: NDArray[np.float64],
        *,
        received_ns: int,
        qualities: NDArray[np.uint8] | None = None,
        faults: NDArray[np.uint8] | None = None,
        source_ns: NDArray[np.int64] | None = None,
        sent_ns: int = 0,
        complete_to_ns: int = 0,
    ) -> TagBatch:
        """Give the samples: BAD where `raw` is no finite number, UNCERTAIN where the value is outside min..max.

        Without `qualities` all are GOOD; without `source_ns` the peer gave no times.
        """
        count = len(places)
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is no finite number: BAD
            values = raw * self._scale[places] + self._offset[places]
        qualities = np.full(count, Quality.GOOD, np.uint8) if qualities is None else qualities
        faults = np.zeros(count, np.uint8) if faults is None else faults
        faults[(qualities == Quality.BAD) & (faults == TagFault.NONE)] = TagFault.STATUS
        odd = ~np.isfinite(values)
        faults[odd & (faults == TagFault.NONE)] = TagFault.NOT_A_NUMBER
        outside = ~((values >= self._low[places]) & (values <= self._high[places]))
        qualities[outside & (qualities == Quality.GOOD)] = Quality.UNCERTAIN
        qualities[odd] = Quality.BAD
        values[qualities == Quality.BAD] = np.nan
        return TagBatch(
            source=self.source,
            places=places,
            values=values,
            qualities=qualities,
            faults=faults,
            source_ns=np.zeros(count, np.int64) if source_ns is None else source_ns,
            received_ns=received_ns,
            sent_ns=sent_ns,
            complete_to_ns=complete_to_ns,
        )

    def refused(self, places: Sequence[int], received_ns: int) -> TagBatch:
        """Give the samples of tags that the server will not give."""
        count = len(places)
        return self.batch(
            np.array(places, np.int32),
            np.full(count, np.nan),
            received_ns=received_ns,
            qualities=np.zeros(count, np.uint8),
            faults=np.full(count, TagFault.REFUSED, np.uint8),
        )

    def number(self, place: int, raw: object) -> float:
        """Give the number in what a server said: one element of an array, where that is asked for; NaN for none."""
        element = self.elements[place]
        if element is not None:
            raw = raw[element] if isinstance(raw, list) and element < len(raw) else None
        return float(raw) if isinstance(raw, int | float) else math.nan
