"""What a station sees of the machine's tags: are the required ones good, and what held at an exposure."""

from __future__ import annotations

import math
import time
from pathlib import Path

from edgeqc.errors import EdgeqcError
from edgeqc.records import Quality, SnapshotTag
from edgeqc.settings import StationSettings
from edgeqc.shm.tagtable import FILE_NAME, TagTable


class TagWatch:
    """Reads the watch process's table. `good` is the line thread's, `snapshot` whose triggers the parts; never waits."""

    def __init__(self, run_dir: Path, station: StationSettings) -> None:
        """The watch process makes the table; until it is there, no required tag is good."""
        self._path = run_dir / FILE_NAME
        self._required = station.required_tags
        names = station.required_tags if station.snapshot_tags is None else station.snapshot_tags
        self._shown = tuple(dict.fromkeys(names))
        self._table: TagTable | None = None
        self._required_places: list[int] = []
        self._shown_places: list[int] = []

    def good(self) -> bool:
        """Every required tag is Good, and its server was heard of within its `stale_ms`."""
        if not self._required:
            return True
        table = self._attached()
        if table is None:
            return False
        now_ns = time.monotonic_ns()
        return all(table.read(place, now_ns).quality is Quality.GOOD for place in self._required_places)

    def snapshot(self, at_ns: int) -> tuple[SnapshotTag, ...]:
        """What was known of the snapshot's tags at this moment, a fraction of a second ago. 3 us a tag."""
        if not self._shown:
            return ()
        table = self._attached()
        if table is None:
            return tuple(
                SnapshotTag(name=name, value=math.nan, quality=Quality.BAD, age_s=math.inf) for name in self._shown
            )
        now_ns = time.monotonic_ns()
        found = []
        for place in self._shown_places:
            value = table.read_at(place, at_ns, now_ns)
            age_s = (at_ns - value.received_ns) / 1e9 if value.received_ns else math.inf
            found.append(SnapshotTag(name=value.name, value=value.value, quality=value.quality, age_s=age_s))
        return tuple(found)

    def _attached(self) -> TagTable | None:
        if self._table is None:
            try:
                table = TagTable.attach(self._path)
                self._required_places = [table.index(name) for name in self._required]
                self._shown_places = [table.index(name) for name in self._shown]
            except (OSError, EdgeqcError, KeyError):
                return None
            self._table = table
        return self._table
