"""Reading the history, while it is written or long after: chunk by chunk, past damage, or aligned onto a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.align import Aligner, GridRow, Mark, Samples, Times
from edgeqc.history.block import (
    BlockHead,
    DamagedHistoryError,
    Header,
    Tag,
    decode_block,
    decode_header,
    find_block,
    read_head,
)
from edgeqc.history.writer import began_ns, segments
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
    standing: bool = False
    """Each tag's newest sample of before the time that was asked for, or of what the ring has dropped."""


class History:
    """A ring of files, or part of one."""

    def __init__(self, folder: Path, tags: Sequence[str] | None = None) -> None:
        """Look into `folder`; only these tags, in this order, else all there ever were, by name.

        KeyError names a tag that is in no file.
        """
        self.damaged = 0
        """Blocks and files left out because they are not whole, as far as it was read."""
        self._folder = folder
        self._ends: dict[str, int] = {}
        """Up to when each run recorded anything, as far as it was read."""
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
        """Give what was recorded from `since_ns` on and before `until_ns` (UTC), oldest file first.

        Before it comes one that is `standing`, where something is known of the time before.
        """
        since_ns = -_FOREVER if since_ns is None else since_ns
        until_ns = _FOREVER if until_ns is None else until_ns
        paths = segments(self._folder)
        first = max((number for number, path in enumerate(paths) if began_ns(path) <= since_ns), default=0)
        for number, path in enumerate(paths):
            try:
                data = path.read_bytes()
                header, at = decode_header(data)
            except (DamagedHistoryError, OSError, ValueError, KeyError):
                self.damaged += 1
                continue
            stood: list[tuple[Samples, Times]] = []
            standing = number == first
            for head, told in self._blocks(data, at, header, since_ns if not standing else -_FOREVER, until_ns):
                goes_on = not head.standing and head.last_ns >= since_ns
                if goes_on:
                    self._ends[header.run] = max(self._ends.get(header.run, 0), min(head.last_ns, until_ns - 1))
                if standing:
                    stood.append(_picked(told, told[0].at_ns < (until_ns if head.standing else since_ns)))
                if goes_on:
                    if standing:
                        yield from _newest(stood, header.run)
                    standing = False
                    yield from _chunk(_picked(told, _within(told[0].at_ns, since_ns, until_ns)), header.run)
            if standing and paths[number + 1 :] and _run_of(paths[number + 1]) == header.run:
                yield from _newest(stood, header.run)

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
                start_ns = max(chunk.last_ns, since_ns or 0) if chunk.standing else chunk.first_ns
                aligner = Aligner(len(self.tags), period_ns=period_ns, late_ns=late_ns, start_ns=start_ns)
            elif chunk.run != run:
                aligner.gap(everything, last_ns + 1)  # nothing is known of the time between two runs
            run, last_ns = chunk.run, max(last_ns, chunk.last_ns)
            aligner.put(chunk.samples)
            yield from aligner.all_rows(last_ns)
        if aligner is not None:  # a tag that says nothing more stands until the recording ends
            yield from aligner.all_rows(max(last_ns, self._ends.get(run, 0)) + late_ns)

    def _blocks(
        self, data: bytes, at: int, header: Header, since_ns: int, until_ns: int
    ) -> Iterator[tuple[BlockHead, tuple[Samples, Times]]]:
        """Give each whole block of that time, and the first behind it, with what it says of our tags by their places here."""
        columns = {tag.name: place for place, tag in enumerate(self.tags)}
        wanted = np.array([columns.get(tag.name, -1) for tag in header.tags], np.int32)
        behind = False
        while 0 <= at < len(data):
            try:
                head = read_head(data, at)
                asked = head.last_ns >= since_ns and not (behind and head.first_ns >= until_ns)
                told = decode_block(data, at) if asked else None
                at = head.end
            except DamagedHistoryError:  # nor is a length to be trusted
                self.damaged += 1
                at = find_block(data, at + 1)
                continue
            if told is not None:
                behind = behind or head.first_ns >= until_ns
                samples, source_ns = told
                inside = (samples.places >= 0) & (samples.places < len(wanted))
                places = wanted[np.where(inside, samples.places, 0)]
                yield head, _picked((samples._replace(places=places), source_ns), inside & (places >= 0))


def _picked(told: tuple[Samples, Times], which: NDArray[np.bool_] | NDArray[np.intp]) -> tuple[Samples, Times]:
    return told[0].picked(which), told[1][which]


def _within(at_ns: Times, since_ns: int, until_ns: int) -> NDArray[np.bool_]:
    return (at_ns >= since_ns) & (at_ns < until_ns)


def _newest(told: list[tuple[Samples, Times]], run: str) -> Iterator[Chunk]:
    """Give each tag's newest sample, if there is any; of several at one time the last given."""
    if not told:
        return
    samples = Samples(*(np.concatenate(column) for column in zip(*(each for each, _ in told), strict=True)))
    source_ns = np.concatenate([each for _, each in told])
    order = np.argsort(samples.at_ns, kind="stable")[::-1]
    _, newest = np.unique(samples.places[order], return_index=True)
    yield from _chunk(_picked((samples, source_ns), order[newest]), run, standing=True)


def _chunk(told: tuple[Samples, Times], run: str, *, standing: bool = False) -> Iterator[Chunk]:
    samples, source_ns = told
    if len(source_ns):
        first_ns, last_ns = int(samples.at_ns.min()), int(samples.at_ns.max())
        yield Chunk(
            samples=samples, source_ns=source_ns, run=run, first_ns=first_ns, last_ns=last_ns, standing=standing
        )


def _run_of(path: Path) -> str:
    try:
        return decode_header(_head_of(path))[0].run
    except (DamagedHistoryError, OSError, ValueError, KeyError):
        return ""


_FOREVER: Final = 2**62
_HEAD_BYTES: Final = 4 << 20
"""Of a file: enough for the names of any configuration."""
QUALITY_NAMES: Final = {Mark.BAD: "bad", Mark.UNCERTAIN: "uncertain", Mark.GOOD: "good", Mark.GAP: "gap"}


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
