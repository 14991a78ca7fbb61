"""What came last of each tag: what is shown of it in the shared table, which samples are none, and which sensors are stuck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.align import Marks, Places, Samples, Times
from edgeqc.records import NS_PER_S, Quality, TagFault
from edgeqc.settings import TagSourceSettings
from edgeqc.shm.tagtable import TagTable

Flags = NDArray[np.bool_]


class Taken(NamedTuple):
    """Samples on the daemon's own time, and when their peer said they were."""

    samples: Samples
    """`at_ns` is monotonic."""
    source_ns: Times
    """The peer's UTC as it came; 0 where it gave none."""

    def picked(self, which: Flags) -> Taken:
        """Some of them."""
        return Taken(self.samples.picked(which), self.source_ns[which])


class Newest:
    """Of all tags, by place. On the thread of the sources."""

    def __init__(self, table: TagTable, sources: Sequence[TagSourceSettings]) -> None:
        """Nothing is known yet; `table` was made for these `sources`."""
        count = len(table.names)
        self.qualities = np.zeros(count, np.uint8)
        """As shown: `Quality`."""
        self.faults = np.zeros(count, np.uint8)
        """As shown: `TagFault`."""
        self.values = np.full(count, np.nan)
        """As shown."""
        bands = [getattr(tag, "deadband", 0.0) for source in sources for tag in source.tags]
        self._deadband = np.array(bands)
        self.has_dead_bands = bool(self._deadband.any())
        self._table = table
        self._at_ns = np.zeros(count, np.int64)
        self._changed_ns = np.zeros(count, np.int64)
        self._read = np.full(count, np.nan)
        """What came last of each tag, inside its dead band too."""
        stuck = [getattr(tag, "stuck_s", None) for source in sources for tag in source.tags]
        self._stuck_ns = np.array([int(span * NS_PER_S) if span else 0 for span in stuck], np.int64)

    def moved(self, samples: Samples, received_ns: int) -> Flags:
        """Which samples say that their sensor is not stuck: however little it moves, inside a dead band too."""
        moved: Flags = ~(samples.values == self._read[samples.places])
        self._read[samples.places] = samples.values
        self._changed_ns[samples.places[moved]] = received_ns
        return moved

    def outside_dead_band(self, samples: Samples) -> Flags:
        """Which samples are samples: those of tags that left what is shown by their dead band, or differ in quality.

        All of such a tag: one that left it and came back between two batches must not be shown where it was between.
        """
        band = self._deadband[samples.places]
        still: Flags = (
            (band > 0)
            & (np.abs(samples.values - self.values[samples.places]) < band)
            & (samples.marks == self.qualities[samples.places])
        )
        outside: Flags = np.isin(samples.places, samples.places[~still])
        return outside

    def keep_fresh(self, still: Taken, received_ns: int) -> None:
        """What was read again inside its dead band goes on to have its last value, which was received now.

        Its moment stays: whoever is handed the samples gets none of these, and must not get a late one that is shown nowhere.
        """
        places = still.samples.places
        for place, at_ns, stamp_ns in zip(
            places.tolist(), still.samples.at_ns.tolist(), still.source_ns.tolist(), strict=True
        ):
            if at_ns >= self._at_ns[place]:
                self._table.write(
                    place, float(self.values[place]), int(self.qualities[place]), stamp_ns / NS_PER_S, received_ns
                )

    def show(self, samples: Samples, source_ns: Times, faults: Marks, received_ns: int) -> None:
        """Put what is the newest of each tag into the table."""
        # the last one of each tag, which is the newest but for late ones
        newest = dict(zip(samples.places.tolist(), range(len(samples.places)), strict=True))
        last = np.array(list(newest.values()), np.intp)
        # a late sample says nothing of now; that a tag is bad does
        last = last[(samples.at_ns[last] >= self._at_ns[samples.places[last]]) | (samples.marks[last] == Quality.BAD)]
        places, values, qualities = samples.places[last], samples.values[last], samples.marks[last]
        self.values[places] = values
        self._at_ns[places] = samples.at_ns[last]
        self.qualities[places] = qualities
        self.faults[places] = faults[last]
        stamps_s = source_ns[last] / NS_PER_S
        for place, value, quality, source_ts in zip(
            places.tolist(), values.tolist(), qualities.tolist(), stamps_s.tolist(), strict=True
        ):
            self._table.write(place, value, quality, source_ts, received_ns)

    def stuck(self, now_ns: int) -> Places:
        """Which tags have not changed at all for their `stuck_s`, and are shown as GOOD still."""
        due = (
            (self._stuck_ns > 0)
            & (self._changed_ns > 0)
            & (now_ns - self._changed_ns > self._stuck_ns)
            & (self.qualities == Quality.GOOD)
        )
        return np.flatnonzero(due).astype(np.int32)

    def forget(self, places: range) -> None:
        """Nothing is known of these tags any more; their last values stay in the table, as BAD."""
        for place in places:
            if self.qualities[place] != Quality.BAD:
                last = self._table.read(place, 0)
                self._table.write(place, last.value, Quality.BAD, last.source_ts, last.received_ns)
        span = slice(places.start, places.stop)
        self.qualities[span] = Quality.BAD
        self.faults[span] = TagFault.NONE
        self.values[span] = self._read[span] = np.nan
        self._changed_ns[span] = 0
