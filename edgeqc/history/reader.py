"""Reading the history, while it is written or long after: chunk by chunk, past damage, or aligned onto a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeqc.core.align import Aligner, GridRow, Mark, Samples, Times
from edgeqc.history.block import DamagedHistoryError, Tag, decode_block, decode_header, find_block, read_head
from edgeqc.history.writer import segments
from edgeqc.records import NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some samples, in the order of their tags; `samples.places` count in `History.tags`, `at_ns` is UTC."""

    samples: Samples
    source_ns: Times
    """The peers' UTC as it came; 0 where they gave none."""
    run: str
    first_ns: int
    last_ns: int


class History:
    """A ring of files, or part of one."""

    def __init__(self, folder: Path, tags: Sequence[str] | None = None) -> None:
        """Look into `folder`; only these tags, in this order, else all there ever were, by name.

        KeyError names a tag that is in no file.
        """
        self.damaged = 0
        """Blocks and files left out because they are not whole, as far as it was read."""
        self._folder = folder
        found: dict[str, Tag] = {}
        for path in segments(folder):
            try:
                header, _ = decode_header(_head_of(path))
            except (DamagedHistoryError, OSError, ValueError, KeyError):
                continue
            found.update({tag.name: tag for tag in header.tags})
        for name in tags or ():
            if name not in found:
                raise KeyError(name)
        self.tags: tuple[Tag, ...] = tuple(found[name] for name in (sorted(found) if tags is None else tags))
        """The columns."""

    def chunks(self, since_ns: int | None = None, until_ns: int | None = None) -> Iterator[Chunk]:
        """Give what was recorded from `since_ns` on and before `until_ns` (UTC), oldest file first."""
        since_ns = -_FOREVER if since_ns is None else since_ns
        until_ns = _FOREVER if until_ns is None else until_ns
        columns = {tag.name: place for place, tag in enumerate(self.tags)}
        paths = segments(self._folder)
        for path in paths:
            try:
                data = path.read_bytes()
                header, at = decode_header(data)
            except (DamagedHistoryError, OSError, ValueError, KeyError):
                self.damaged += 1
                continue
            wanted = np.array([columns.get(tag.name, -1) for tag in header.tags], np.int32)
            for samples, source_ns in self._blocks(data, at, since_ns, until_ns):
                inside = (samples.places >= 0) & (samples.places < len(wanted))
                places = wanted[np.where(inside, samples.places, 0)]
                keep = inside & (places >= 0) & (samples.at_ns >= since_ns) & (samples.at_ns < until_ns)
                if keep.any():
                    kept = samples._replace(places=places).picked(keep)
                    yield Chunk(
                        samples=kept,
                        source_ns=source_ns[keep],
                        run=header.run,
                        first_ns=int(kept.at_ns.min()),
                        last_ns=int(kept.at_ns.max()),
                    )

    def rows(
        self,
        period_ns: int,
        since_ns: int | None = None,
        until_ns: int | None = None,
        *,
        late_ns: int = 10 * NS_PER_S,
    ) -> Iterator[GridRow]:
        """Give the same on a grid (UTC), as the daemon aligns it; samples later than `late_ns` miss their row."""
        aligner: Aligner | None = None
        everything = np.arange(len(self.tags), dtype=np.int32)
        run, last_ns = "", 0
        for chunk in self.chunks(since_ns, until_ns):
            if aligner is None:
                aligner = Aligner(len(self.tags), period_ns=period_ns, late_ns=late_ns, start_ns=chunk.first_ns)
            elif chunk.run != run:
                aligner.gap(everything, last_ns + 1)  # nothing is known of the time between two runs
            run, last_ns = chunk.run, max(last_ns, chunk.last_ns)
            aligner.put(chunk.samples)
            yield from aligner.all_rows(last_ns)
        if aligner is not None:
            yield from aligner.all_rows(last_ns + late_ns)

    def _blocks(self, data: bytes, at: int, since_ns: int, until_ns: int) -> Iterator[tuple[Samples, Times]]:
        """Give each whole block that has to do with that time."""
        while at < len(data):
            try:
                head = read_head(data, at)
                if head.last_ns >= since_ns and head.first_ns < until_ns:
                    yield decode_block(data, at)
                at = head.end
            except DamagedHistoryError:
                self.damaged += 1
                at = find_block(data, at + 1)
                if at < 0:
                    return


_FOREVER: Final = 2**62
_HEAD_BYTES: Final = 4 << 20
"""Of a file: enough for the names of any configuration."""
QUALITY_NAMES: Final = {Mark.BAD: "bad", Mark.UNCERTAIN: "uncertain", Mark.GOOD: "good", Mark.GAP: "gap"}


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
