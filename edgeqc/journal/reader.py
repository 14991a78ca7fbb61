"""Reading a journal while it is written, from any process."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeqc.journal import segment
from edgeqc.journal.codec import RECORD_BYTES, DamagedRecordError, Entry, decode

_ARCHIVED: Final = "archived"
_EMPTY: Final = bytes(RECORD_BYTES)
_BATCH: Final = 256
"""Records read from the file at a time: 128 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a journal: the next record to be read."""

    segment: int
    offset: int


def list_journals(state_dir: Path) -> list[Path]:
    """The folders of all journals under a state directory, one per writer."""
    root = state_dir / "journal"
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def mark_archived(folder: Path, cursor: Cursor) -> None:
    """Tell the writer that everything before `cursor` is in the archive: older segments may go."""
    part = folder / f".{_ARCHIVED}"
    part.write_text(f"{cursor.segment} {cursor.offset}\n")
    part.replace(folder / _ARCHIVED)


def archived_segment(folder: Path) -> int:
    """Segments below this number are archived; 0 where nothing is known."""
    try:
        return int((folder / _ARCHIVED).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def recent_cursor(folder: Path) -> Cursor:
    """Where to begin for someone who wants what is new, and a little of what came before: the newest two segments."""
    used = []
    for number in segment.numbers(folder):
        with contextlib.suppress(OSError), segment.path_of(folder, number).open("rb") as file:
            if segment.read_header(file.read(RECORD_BYTES)) is not None:
                used.append(number)
    return Cursor(segment=used[-2:][0] if used else 0, offset=RECORD_BYTES)


class JournalReader:
    """Tails one journal. Not thread-safe. Skips what is damaged or gone, and counts it."""

    def __init__(self, folder: Path, cursor: Cursor | None = None) -> None:
        """Start at `cursor`, or at the oldest record there is."""
        self.folder = folder
        self.cursor = cursor or Cursor(segment=0, offset=RECORD_BYTES)
        self.lost = 0
        """Records that were damaged, as far as they can be told apart."""
        self.segments_missed = 0
        """Segments deleted before they were read (disk budget)."""
        self._descriptor = -1
        self._open_segment = -1

    def read(self, limit: int = 500) -> list[Entry]:
        """The next entries in order, at most `limit`; [] when there is nothing new. Never blocks."""
        entries: list[Entry] = []
        try:
            self._read_on(entries, limit)
        except OSError:
            if not entries:
                raise
        return entries  # what was read is behind the cursor already, whatever stood in the way then

    def _read_on(self, entries: list[Entry], limit: int) -> None:
        while len(entries) < limit:
            if not self._opened():
                break
            data = self._at_cursor(RECORD_BYTES * min(_BATCH, limit - len(entries)))
            fresh: list[Entry] = []
            taken = self._take(data, fresh)
            self.cursor = Cursor(segment=self.cursor.segment, offset=self.cursor.offset + taken)
            entries += fresh  # never without the cursor, or they would be read twice
            if taken == len(data) and data:
                continue
            # Only once a later segment is in use is this one final: what was empty before must be looked at again.
            later = self._later_segment()
            if later is None:
                break
            rest = self._at_cursor(RECORD_BYTES)
            if len(rest) < RECORD_BYTES or not rest.strip(b"\0"):  # less than a record: the file was cut there
                self._move_to(later)

    def _at_cursor(self, size: int) -> bytes:
        """What is there; records that the disk cannot give any more are passed over, and counted, a page at a time."""
        while True:
            try:
                return os.pread(self._descriptor, size, self.cursor.offset)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
            beyond = (self.cursor.offset // mmap.PAGESIZE + 1) * mmap.PAGESIZE
            self.lost += (beyond - self.cursor.offset) // RECORD_BYTES
            self.cursor = Cursor(segment=self.cursor.segment, offset=beyond)

    def close(self) -> None:
        """Close the segment that is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = self._open_segment = -1

    def _take(self, data: bytes, entries: list[Entry]) -> int:
        """Decode whole records; returns how many bytes are done with."""
        done = 0
        for start in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            record = data[start : start + RECORD_BYTES]
            if record == _EMPTY:
                break
            try:
                entries.append(decode(record, writer=self.folder.name))
            except DamagedRecordError:
                if not self._followed(start):
                    break  # it may be half-written just now; the writer clears a torn tail when it starts
                self.lost += 1
            done = start + RECORD_BYTES
        return done

    def _followed(self, start: int) -> bool:
        """Is there anything behind this record? Then it is damaged, not unfinished."""
        try:
            after = os.pread(self._descriptor, RECORD_BYTES, self.cursor.offset + start + RECORD_BYTES)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return True  # the disk lost it: nobody is writing there
        return bool(after.strip(b"\0")) or self._later_segment() is not None

    def _later_segment(self) -> int | None:
        """The next segment that is in use."""
        for number in segment.numbers(self.folder):
            if number > self.cursor.segment:
                try:
                    with segment.path_of(self.folder, number).open("rb", buffering=0) as file:
                        if segment.read_header(file.read(RECORD_BYTES)) is not None:
                            return number
                except FileNotFoundError:
                    continue
        return None

    def _move_to(self, later: int) -> None:
        if self.cursor.segment:
            self.segments_missed += later - self.cursor.segment - 1
        self.cursor = Cursor(segment=later, offset=RECORD_BYTES)

    def _opened(self) -> bool:
        if self._open_segment == self.cursor.segment:
            return True
        self.close()
        try:
            self._descriptor = os.open(segment.path_of(self.folder, self.cursor.segment), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            later = self._later_segment()
            if later is None:
                return False
            self.segments_missed += bool(self.cursor.segment)
            self._move_to(later)
            return self._opened()
        self._open_segment = self.cursor.segment
        return True
