"""The way of the tags: sources, intake, history, grid. The watch process judges what comes out; `tags record` only keeps it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edgeqc.history import HistoryWriter
from edgeqc.history.block import Tag
from edgeqc.settings import HistorySettings, Settings
from edgeqc.shm.tagtable import FILE_NAME, TagTable
from edgeqc.watch.grid import Moment, TagGrid
from edgeqc.watch.intake import TagIntake
from edgeqc.watch.sources import SourceThread


class TagFlow:
    """The sources run from `open` to `close`; `moments` moves what came along. One thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        table_dir: Path,
        state_dir: Path,
        history_dir: Path,
        history: HistorySettings,
        wake: Callable[[], None],
    ) -> None:
        """Make the table in `table_dir`; `wake` is called, from the sources' thread, when something came."""
        self.table = TagTable.create(table_dir / FILE_NAME, settings.tags)
        self.intake = TagIntake(self.table, settings.tags, wake=wake)
        self.grid = TagGrid(self.table, settings.tags, settings.grid, self.intake)
        self.sources = SourceThread(settings.tags, self.intake, state_dir=state_dir)
        self.history: HistoryWriter | None = None
        """None where nothing is to be recorded."""
        if history.mb:
            self.history = HistoryWriter(
                history_dir,
                [Tag(name=tag.name, unit=tag.unit) for source in settings.tags for tag in source.tags],
                run=secrets.token_hex(8),
                mb=history.mb,
                days=history.days,
                keep_free_mb=history.keep_free_mb,
            )

    def open(self) -> None:
        """Connect; returns at once."""
        if self.history is not None:
            self.history.start()
        self.sources.start()

    def close(self) -> None:
        """End connections and write what is left; blocks for some seconds at most."""
        self.sources.stop()
        self._take()
        if self.history is not None:
            self.history.close()
        self.table.close()

    def moments(self, now_ns: int) -> Iterator[Moment]:
        """Record what came, and give the rows of the grid whose time has come."""
        self._take()
        for moment in self.grid.moments(now_ns):
            if self.history is not None and moment.changed:
                states = self.grid.state_samples(moment)
                self.history.add(states, np.zeros(len(states.places), np.int64))
            yield moment

    def _take(self) -> None:
        taken = self.intake.drain()
        self.grid.put(taken)
        if self.history is not None:
            for samples, source_ns in taken:
                self.history.add(samples, source_ns)
