"""Tags from a CSV file, in its own time: a machine's recording instead of the machine."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import math
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from edgeqc.errors import PeerError
from edgeqc.ports import TagSink
from edgeqc.records import NS_PER_S, TagRemark
from edgeqc.settings import ReplayTagSource
from edgeqc.tags.connection import keep_connected
from edgeqc.tags.reading import Readings


class ReplayTags:
    """One file's tags: first column seconds, then a column per tag name. Starts again at the end.

    An empty cell is no update, text that is no number is BAD, a tag without a column is BAD.
    """

    def __init__(self, settings: ReplayTagSource, *, sink: TagSink) -> None:
        """Open the file in `run`, not here."""
        self._settings = settings
        self._sink = sink
        self._readings = Readings(settings.name, settings.tags)

    async def run(self) -> None:
        """Feed the sink until cancelled."""
        await keep_connected(self._settings.name, self._sink, self._serve)

    async def _serve(self) -> None:
        """Play the file once after the other."""
        settings = self._settings
        began = False
        while True:
            with contextlib.closing(_rows(settings.file, settings.name)) as rows:
                columns = next(rows)
                if not began:
                    self._begin(columns)
                    began = True
                played = await self._play(columns, rows)
            if not played:
                raise PeerError(settings.name, f"{settings.file}: no rows")
            await asyncio.sleep(_TURN_S)

    def _begin(self, columns: list[str]) -> None:
        name = self._settings.name
        self._sink.back(name)
        names = self._readings.names
        missing = [place for place, tag in enumerate(names) if tag not in columns[1:]]
        if missing:
            self._sink.take(self._readings.refused(missing, time.monotonic_ns()))
        text = f"{self._settings.file} has no column {', '.join(names[place] for place in missing)}" if missing else ""
        self._sink.remark(name, TagRemark.REFUSED, text)

    async def _play(self, columns: list[str], rows: Iterator[list[str]]) -> int:
        """Feed all rows, each at its time; give their number."""
        began_ns, first_s = time.monotonic_ns(), math.nan
        count = 0
        for row in rows:
            at_s = _number(row[0])
            if not math.isfinite(at_s):
                raise PeerError(self._settings.name, f"{self._settings.file}: row {count + 2} has no time: {row[0]!r}")
            if not count:
                first_s = at_s
            await self._until(began_ns + int((at_s - first_s) / self._settings.speed * NS_PER_S))
            await self._sink.room()
            self._feed(columns, row)
            count += 1
        return count

    async def _until(self, due_ns: int) -> None:
        """Sleep, giving signs of life: a recording with rare rows is not a dead source."""
        settings = self._settings
        while True:
            now_ns = time.monotonic_ns()
            self._sink.alive(settings.name, now_ns)
            if now_ns >= due_ns:
                return
            await asyncio.sleep(min((due_ns - now_ns) / NS_PER_S, settings.stale_ms / 3000))

    def _feed(self, columns: list[str], row: list[str]) -> None:
        now_ns = time.monotonic_ns()
        cells = {column: cell for column, cell in zip(columns[1:], row[1:], strict=False) if cell.strip()}
        places = [place for place, name in enumerate(self._readings.names) if name in cells]
        self._sink.take(
            self._readings.batch(
                np.array(places, np.int32),
                np.array([_number(cells[self._readings.names[place]]) for place in places], np.float64),
                received_ns=now_ns,
                source_ns=np.full(len(places), time.time_ns(), np.int64),
                complete_to_ns=now_ns,
            )
        )


_TURN_S: Final = 0.01
"""Before the file starts again: a file of one row must not keep the loop busy."""


def _rows(path: Path, peer: str) -> Generator[list[str]]:
    """Give the header, then all rows that are not empty. Raises PeerError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if not header:
                raise PeerError(peer, f"{path}: is empty")
            yield [column.strip() for column in header]
            yield from (row for row in rows if row)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise PeerError(peer, f"{path}: {exc}") from exc


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
