"""Writing a journal: microseconds for the caller, the disk is the business of a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeqc.errors import JournalError
from edgeqc.journal import segment
from edgeqc.journal.codec import RECORD_BYTES, Body, DamagedRecordError, Entry, decode, encode
from edgeqc.journal.reader import archived_segment
from edgeqc.records import PartRecord
from edgeqc.settings import JournalSettings

_MB: Final = 1 << 20
_RETRY_S: Final = 1.0
"""A full disk is tried again this often."""
_KEPT_SEGMENTS: Final = 2
"""Archived segments that stay for `edgeqc journal` to show."""
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE, Linux 5.14 and later; Python has no name for it."""


class JournalWriter:
    """Appends to one journal. Thread-safe. One writer per folder (the supervisor starts one process per writer).

    A torn tail is cleared when opening, an unreadable segment is set aside under another name; neither stops the line.
    """

    def __init__(
        self,
        folder: Path,
        settings: JournalSettings,
        *,
        on_trouble: Callable[[str, dict[str, str | int]], None] | None = None,
    ) -> None:
        """Open `folder` (made if missing), named for its writer.

        Args:
            folder: state_dir/journal/<writer>.
            settings: sizes and the sync rule.
            on_trouble: told of disk trouble and recovery (event name, facts), from the sync thread.

        Raises:
            JournalError: the disk will not even take one segment.
        """
        self.folder = folder
        self.writer = folder.name
        self.repaired: dict[str, int] = {"torn": 0, "quarantined": 0}
        """What was found wrong at the start: torn tails cleared, segment files set aside."""
        self.last_part_sequence = 0
        """Highest part sequence in the journal at the start: numbering goes on from here."""
        self.dropped_segments = 0
        """Segments deleted unread because the budget was used up."""
        self._settings = settings
        self._on_trouble = on_trouble or (lambda _name, _facts: None)
        self._size = settings.segment_mb * _MB
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._synced = threading.Condition()
        self._synced_sequence = 0
        self._stopping = False
        self._troubled = False
        self._sequence = 0
        self._ready: int | None = None
        self._retired = -1
        """Descriptor of the segment before, until its last records are on the disk too."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ballast = folder.parent / "ballast"
        self._resume()
        self._thread = threading.Thread(target=self._keep_disk, name="journal-sync", daemon=True)
        self._thread.start()

    @property
    def sequence(self) -> int:
        """Of the last record appended."""
        return self._sequence

    def append(self, body: Body) -> int:
        """Append one record and return its sequence; it survives this process from here on.

        Raises:
            JournalError: the segment is full and the disk gave no other. Nothing was written.
        """
        wall_ns = time.time_ns()
        with self._lock:
            if self._offset + RECORD_BYTES > self._size:
                self._rotate()
            sequence = self._sequence + 1
            record = encode(body, sequence=sequence, wall_ns=wall_ns, mono_ns=time.monotonic_ns())
            self._memory[self._offset : self._offset + RECORD_BYTES] = record
            self._offset += RECORD_BYTES
            self._sequence = sequence
        return sequence

    def wait_synced(self, sequence: int, until_ns: int) -> bool:
        """Block until the record is on the disk; False at `until_ns` (monotonic)."""
        self._wake.set()
        with self._synced:
            while self._synced_sequence < sequence:
                left_s = (until_ns - time.monotonic_ns()) / 1e9
                if left_s <= 0 or not self._synced.wait(left_s):
                    return self._synced_sequence >= sequence
        return True

    def close(self) -> None:
        """Bring everything to the disk and end the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)
        with self._lock:
            with contextlib.suppress(OSError):
                os.fdatasync(self._descriptor)
            self._memory.close()
            os.close(self._descriptor)
            self._offset = self._size

    def _resume(self) -> None:
        """Go on behind the last good record there is."""
        numbers = segment.numbers(self.folder)
        for number in reversed(numbers):
            path = segment.path_of(self.folder, number)
            if path.stat().st_size != self._size:
                # Another segment size was configured, or the file was cut: what is in it can still be read.
                self._sequence = max(self._sequence, self._scan(path)[1])
                continue
            with path.open("rb") as file:
                head = file.read(RECORD_BYTES)
            if not head.strip(b"\0"):
                continue  # made ready, never used
            if segment.read_header(head) is None:
                path.rename(path.with_name(f"{path.stem}.damaged-{time.time_ns()}"))
                self.repaired["quarantined"] += 1
                continue
            offset, sequence = self._scan(path)
            self._sequence = max(self._sequence, sequence)
            # A fresh segment may hold no part yet, nor, killed just after it was begun, any record: its number goes on.
            earlier = [other for other in reversed(numbers) if other < number]
            while earlier and not (self._sequence and self.last_part_sequence):
                self._sequence = max(self._sequence, self._scan(segment.path_of(self.folder, earlier.pop(0)))[1])
                if self._sequence:
                    break  # parts are looked for in one segment more only
            self._map(number, offset)
            return
        used = segment.numbers(self.folder)
        self._begin(max(used, default=0) + 1)

    def _scan(self, path: Path) -> tuple[int, int]:
        """(offset behind the last written record, highest sequence) of a segment; clears a torn tail."""
        end, highest = RECORD_BYTES, 0
        try:
            data = path.read_bytes()
        except OSError:
            return end, highest
        torn: list[int] = []
        for offset in range(RECORD_BYTES, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            record = data[offset : offset + RECORD_BYTES]
            try:
                entry: Entry = decode(record, writer=self.writer)
            except DamagedRecordError:
                if record.strip(b"\0"):
                    torn.append(offset)
                continue
            end, highest = offset + RECORD_BYTES, max(highest, entry.sequence)
            if isinstance(entry.body, PartRecord):
                self.last_part_sequence = max(self.last_part_sequence, entry.body.trigger.sequence)
        tail = [offset for offset in torn if offset >= end]
        if tail:
            with path.open("r+b") as file:
                for offset in tail:
                    file.seek(offset)
                    file.write(bytes(RECORD_BYTES))
        self.repaired["torn"] += len(torn)
        return end, highest

    def _begin(self, number: int) -> None:
        path = segment.path_of(self.folder, number)
        if not path.exists() or path.stat().st_size != self._size:
            try:
                segment.make(path, self._size)
            except OSError as exc:
                self._ballast.unlink(missing_ok=True)
                try:
                    segment.make(path, self._size)
                except OSError:
                    raise JournalError(f"{path}: {exc.strerror}; the journal needs {self._size} bytes") from exc
        self._map(number, RECORD_BYTES)
        self._memory[:RECORD_BYTES] = segment.header(number, self.writer)

    def _map(self, number: int, offset: int) -> None:
        self._descriptor = os.open(segment.path_of(self.folder, number), os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(self._descriptor, self._size)
        self._number, self._offset = number, offset

    def _rotate(self) -> None:
        """Go on in the segment that the sync thread has made ready. Holds the lock."""
        if self._ready is None or self._retired >= 0:
            self._wake.set()
            raise JournalError(f"{self.folder}: segment {self._number} is full and the disk has no room for another")
        old = self._descriptor
        self._memory.close()
        self._map(self._ready, RECORD_BYTES)
        self._memory[:RECORD_BYTES] = segment.header(self._number, self.writer)
        self._ready = None
        self._retired = old
        self._wake.set()

    def _keep_disk(self) -> None:
        """The sync thread: brings records to the disk, keeps a segment ready, keeps the budget."""
        period_s = self._settings.group_ms / 1000
        retry_at = 0.0
        while not self._stopping:
            self._wake.wait(period_s)
            self._wake.clear()
            self._sync()
            if self._ready is None and time.monotonic() >= retry_at:
                retry_at = 0.0 if self._make_ready() else time.monotonic() + _RETRY_S
        self._sync()

    def _sync(self) -> None:
        """Bring what was appended to the disk. What fails is told and tried again: this thread must not end."""
        # Only this thread and `close`, which joins it, close descriptors: these stay open while they are synced.
        with self._lock:
            sequence, descriptor, retired = self._sequence, self._descriptor, self._retired
        try:
            if retired >= 0:
                os.fdatasync(retired)
                with self._lock:
                    self._retired = -1
                os.close(retired)
            if sequence > self._synced_sequence or retired >= 0:
                os.fdatasync(descriptor)
                with self._synced:
                    self._synced_sequence = sequence
                    self._synced.notify_all()
                self._make_writable()
        except OSError as exc:
            self._trouble("journal_sync_failed", {"reason": exc.strerror or "", "errno": exc.errno or 0})

    def _make_writable(self) -> None:
        """Take the page fault that the next record would find.

        A page that was brought to the disk is read-only until it is written again: 30 us, on the decision path.
        """
        with contextlib.suppress(OSError, ValueError):  # an old kernel; the segment was changed just now
            self._memory.madvise(_POPULATE_WRITE, self._offset // mmap.PAGESIZE * mmap.PAGESIZE, mmap.PAGESIZE)

    def _make_ready(self) -> bool:
        self._keep_budget()
        number = self._number + 1
        path = segment.path_of(self.folder, number)
        try:
            if not path.exists() or path.stat().st_size != self._size:
                segment.make(path, self._size)
        except OSError as exc:
            freed = exc.errno in {errno.ENOSPC, errno.EDQUOT} and self._ballast.exists()
            self._ballast.unlink(missing_ok=True)
            self._trouble("disk_full", {"reason": exc.strerror or "", "ballast_freed": int(freed)})
            return False if not freed else self._make_ready()
        with self._lock:
            self._ready = number
        if self._make_ballast() and self._troubled:
            self._troubled = False
            self._on_trouble("disk_ok", {})
        return True

    def _make_ballast(self) -> bool:
        """Put the ballast back; False while there is no room for it (then trouble lasts)."""
        if self._settings.ballast_mb == 0 or self._ballast.exists():
            return True
        try:
            segment.make(self._ballast, self._settings.ballast_mb * _MB)
        except OSError:
            return False
        return True

    def _keep_budget(self) -> None:
        """Delete archived segments, and when the budget is used up the oldest of all: the newest records count most."""
        found = [number for number in segment.numbers(self.folder) if number < self._number]
        archived = archived_segment(self.folder)
        for number in found[: max(0, len(found) - _KEPT_SEGMENTS)]:
            if number < archived:
                segment.path_of(self.folder, number).unlink(missing_ok=True)
        found = [number for number in segment.numbers(self.folder) if number < self._number]
        most = max(1, self._settings.budget_mb // self._settings.segment_mb - 2)
        for number in found[: max(0, len(found) - most)]:
            segment.path_of(self.folder, number).unlink(missing_ok=True)
            self.dropped_segments += 1
            self._trouble("journal_budget_used_up", {"segment": number, "budget_mb": self._settings.budget_mb})

    def _trouble(self, name: str, facts: dict[str, str | int]) -> None:
        if not self._troubled:
            self._on_trouble(name, facts)
        self._troubled = True
