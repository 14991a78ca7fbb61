"""Tailing the journals of all processes into the archive."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from edgeqc.journal import Entry, JournalReader, list_journals
from edgeqc.office.archive import Archive
from edgeqc.office.books import Tailed
from edgeqc.office.view import ArchiveView
from edgeqc.records import NS_PER_S

_ENTRIES: Final = 500
_LOOK_NS: Final = NS_PER_S
"""How often new journals are looked for."""


class Tail:
    """Reads on from where the archive is. Used by one thread."""

    def __init__(self, state_dir: Path, archive: Archive, take_image: Callable[[Entry], str | None]) -> None:
        """`take_image` is asked once for every record read; it returns the file that its image will be in, if any."""
        self._state_dir = state_dir
        self._archive = archive
        self._take_image = take_image
        self._view: ArchiveView | None = None
        self._readers: dict[str, JournalReader] = {}
        self._held: dict[str, Tailed] = {}
        self._looked_ns = 0
        self._lost_before = 0
        self._failing: set[Path] = set()
        """Journals that could not be read last time."""
        self._log = structlog.get_logger("edgeqc.tail")

    def turn(self) -> bool:
        """Offer what is new to the archive; True when something was read or is held back."""
        began_ns = time.monotonic_ns()
        view = self._archive.view
        if view is None:
            return False
        if view is not self._view:
            self.close()
            self._view = view
        if began_ns - self._looked_ns > _LOOK_NS:
            self._look(view)
            self._looked_ns = began_ns
        busy = False
        for name, reader in self._readers.items():
            busy |= self._forward(name, reader)
        if not busy:
            self._archive.caught_up_ns = began_ns
        return busy

    @property
    def lost(self) -> int:
        """Records and segments that could not be read, since the office started."""
        return self._lost_before + sum(each.lost + each.segments_missed for each in self._readers.values())

    def close(self) -> None:
        """Forget the readers; the next turn begins at the archive's cursors."""
        self._lost_before = self.lost
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._held.clear()
        self._looked_ns = 0

    def _look(self, view: ArchiveView) -> None:
        new = [folder for folder in list_journals(self._state_dir) if folder.name not in self._readers]
        if new:
            cursors = view.cursors()
            for folder in new:
                self._readers[folder.name] = JournalReader(folder, cursors.get(folder.name))

    def _forward(self, name: str, reader: JournalReader) -> bool:
        """Read one batch and offer it; what the archive does not take now is held and offered again."""
        batch = self._held.pop(name, None) or self._read(reader)
        if batch is None:
            return False
        if not self._archive.offer(batch):
            self._held[name] = batch
        return True

    def _read(self, reader: JournalReader) -> Tailed | None:
        before = reader.cursor
        try:
            entries = reader.read(_ENTRIES)
        except OSError as exc:
            if reader.folder not in self._failing:
                self._log.error("journal_unreadable", journal=reader.folder.name, reason=str(exc))
            self._failing.add(reader.folder)
            return None
        self._failing.discard(reader.folder)
        if not entries and reader.cursor.segment == before.segment:
            return None
        images: dict[int, str] = {}
        for entry in entries:
            if (path := self._take_image(entry)) is not None:
                images[entry.sequence] = path
        return Tailed(folder=reader.folder, entries=entries, cursor=reader.cursor, images=images)
