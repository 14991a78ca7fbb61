"""Writing a journal: microseconds for the caller, the disk is the business of a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeqc.errors import JournalError
from edgeqc.journal import segment
from edgeqc.journal.codec import RECORD_BYTES, Body, DamagedRecordError, Entry, decode, encode
from edgeqc.journal.ondisk import OnDisk
from edgeqc.journal.reader import archived_segment
from edgeqc.records import NS_PER_S, PartRecord
from edgeqc.settings import JournalSettings

_MB: Final = 1 << 20
_RETRY_S: Final = 1.0
"""A full disk is tried again this often."""
_REFUSALS_MOST: Final = 5
"""In a row, a second apart; then the journal goes on without the segment."""
_KEPT_SEGMENTS: Final = 2
"""Archived segments that stay for `edgeqc journal` to show."""
_UNSYNCED_PARTS: Final = 1000
"""The numbers of so many parts are passed over after a boot, and where the last segment is full: the PLC may know parts whose
records a power cut took, or for which the disk had no room. At 50 a second it is what a disk that hangs keeps back for 20 s."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FULL: Final = "disk_full"
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_POPULATE_WRITE: Final = 23
"""MADV_POPULATE_WRITE, Linux 5.14 and later; Python has no name for it."""


class JournalWriter:
    """Appends to one journal. Thread-safe. One writer per folder (the supervisor starts one process per writer).

    A torn tail is cleared when opening, an unreadable segment is set aside under another name; neither stops the line.
    """

    def __init__(self, folder: Path, settings: JournalSettings) -> None:
        """Open `folder` (made if missing), named for its writer.

        Args:
            folder: state_dir/journal/<writer>.
            settings: sizes and the sync rule.

        Raises:
            JournalError: the disk will not even take one segment, or nothing at all.
        """
        self.folder = folder
        self.writer = folder.name
        self.repaired: dict[str, int] = {"torn": 0, "quarantined": 0}
        """What was found wrong at the start: torn tails cleared, segment files set aside."""
        self.last_part_sequence = 0
        """Highest that a part has had, or may have had before a power cut: numbering goes on from here."""
        self.dropped_segments = 0
        """Segments deleted unread because the budget was used up."""
        self._settings = settings
        self._on_trouble: Callable[[str, dict[str, str | int]], None] = lambda _name, _facts: None
        self._telling = threading.Lock()
        self._troubles: dict[str, dict[str, str | int]] = {}
        """What stands, by its name."""
        self._size = settings.segment_mb * _MB
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._synced = threading.Condition()
        self._synced_sequence = 0
        self._stopping = False
        self._sequence = 0
        self._ready: int | None = None
        self._retired: OnDisk | None = None
        """The segment before, until its last records are on the disk too."""
        self._sync_at_ns = 0
        """A disk that refuses is not asked before that."""
        self._left = False
        """A segment was left before its end, and nothing has been taken since."""
        self._ballast = folder.parent / "ballast"
        self._boot = uuid.UUID(_BOOT_ID.read_text().strip()).bytes
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._resume()
        except OSError as exc:
            raise JournalError(f"{exc.filename or folder}: {exc.strerror}; the journal cannot be written") from exc
        self._thread = threading.Thread(target=self._keep_disk, name="journal-sync", daemon=True)
        self._thread.start()

    def listen(self, on_trouble: Callable[[str, dict[str, str | int]], None]) -> None:
        """Tell this of disk trouble and recovery (event name, facts; `disk_ok`), by the sync thread; now of what stands.

        It may append, and must not block.
        """
        with self._telling:
            self._on_trouble = on_trouble
            for name, facts in self._troubles.items():
                on_trouble(name, facts)

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
            if isinstance(body, PartRecord):
                self.last_part_sequence = max(self.last_part_sequence, body.trigger.sequence)
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
                os.fdatasync(self._disk.descriptor)
            self._memory.close()
            for disk in (self._disk, self._retired):
                if disk is not None:
                    os.close(disk.descriptor)
            self._offset = self._size

    def _resume(self) -> None:
        """Go on behind the last record, in the newest segment or in a fresh one: never in one that a reader may be past."""
        newest, place, booted = 0, None, False
        for number in reversed(segment.numbers(self.folder)):
            path = segment.path_of(self.folder, number)
            with path.open("rb") as file:
                data = file.read(RECORD_BYTES)
            if not data.strip(b"\0"):
                continue  # made ready, never used
            newest = newest or number
            end, torn = self._scan(path)
            head = segment.read_header(data)
            if head is None:
                path.rename(path.with_name(f"{path.stem}.damaged-{time.time_ns()}"))
                self.repaired["quarantined"] += 1
                continue
            self._clear(path, torn, end)
            self._sequence = max(self._sequence, head.records)
            self.last_part_sequence = max(self.last_part_sequence, head.parts)
            booted = head.boot != self._boot
            # of another size: another one was configured, or the file was cut; what is in it can still be read
            if number == newest and path.stat().st_size == self._size:
                place = number, end
            break
        full = place is not None and place[1] + RECORD_BYTES > self._size  # the disk may have had no other
        if (booted or full) and self.last_part_sequence:
            self.last_part_sequence += _UNSYNCED_PARTS
        if place is not None and not booted:
            self._map(*place)
            return
        try:
            # after a power cut the archive may have read what never reached the disk: what was written in its place
            # would be taken for read
            self._begin(newest + 1)
        except JournalError:
            if place is None:
                raise
            self._map(*place)

    def _scan(self, path: Path) -> tuple[int, list[int]]:
        """Take the numbers of a segment's records; the offset behind the last of them, and those of damaged ones."""
        end = RECORD_BYTES
        torn: list[int] = []
        try:
            data = path.read_bytes()
        except OSError:
            return end, torn
        for offset in range(RECORD_BYTES, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
            record = data[offset : offset + RECORD_BYTES]
            try:
                entry: Entry = decode(record, writer=self.writer)
            except DamagedRecordError:
                if record.strip(b"\0"):
                    torn.append(offset)
                continue
            end, self._sequence = offset + RECORD_BYTES, max(self._sequence, entry.sequence)
            if isinstance(entry.body, PartRecord):
                self.last_part_sequence = max(self.last_part_sequence, entry.body.trigger.sequence)
        return end, torn

    def _clear(self, path: Path, torn: list[int], end: int) -> None:
        """Clear a torn tail: a reader waits for what is behind the last record to become whole."""
        tail = [offset for offset in torn if offset >= end]
        if tail:
            with path.open("r+b") as file:
                for offset in tail:
                    file.seek(offset)
                    file.write(bytes(RECORD_BYTES))
        self.repaired["torn"] += len(torn)

    def _begin(self, number: int) -> None:
        path = segment.path_of(self.folder, number)
        if not segment.unused(path, self._size):
            try:
                segment.make(path, self._size)
            except OSError as exc:
                self._ballast.unlink(missing_ok=True)
                try:
                    segment.make(path, self._size)
                except OSError:
                    raise JournalError(f"{path}: {exc.strerror}; the journal needs {self._size} bytes") from exc
        self._map(number, RECORD_BYTES)
        self._head()

    def _map(self, number: int, offset: int) -> None:
        descriptor = os.open(segment.path_of(self.folder, number), os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(descriptor, self._size)
        except OSError:
            os.close(descriptor)
            raise
        self._disk, self._memory = OnDisk(descriptor), memory
        self._number, self._offset = number, offset

    def _head(self) -> None:
        """Say in a segment just begun where the numbers stood."""
        head = segment.Header(
            number=self._number,
            writer=self.writer,
            records=self._sequence,
            parts=self.last_part_sequence,
            boot=self._boot,
        )
        self._memory[:RECORD_BYTES] = segment.header(head)

    def _rotate(self) -> None:
        """Go on in the segment that the sync thread has made ready. Holds the lock."""
        if self._ready is None or self._retired is not None:
            self._wake.set()
            raise JournalError(f"{self.folder}: segment {self._number} is full and the disk has given no other")
        old, memory = self._disk, self._memory
        try:
            self._map(self._ready, RECORD_BYTES)
        except OSError as exc:  # no descriptor, no memory: the next record tries again
            raise JournalError(f"{self.folder}: segment {self._ready} cannot be opened: {exc.strerror}") from exc
        memory.close()
        self._head()
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
        if time.monotonic_ns() < self._sync_at_ns:
            return
        # Only this thread and `close`, which joins it, close descriptors: these stay open while they are synced.
        with self._lock:
            sequence, end, disk, retired = self._sequence, self._offset, self._disk, self._retired
        if sequence == self._synced_sequence and retired is None and not disk.refused:
            return
        before = None if retired is None else retired.bring(self._size)
        now = disk.bring(min(end, self._size))
        if retired is not None and (before is None or retired.refused >= _REFUSALS_MOST):
            # what it does not take now it never will: what comes after must not wait for it
            with self._lock:
                self._retired = None
            os.close(retired.descriptor)
        if now is not None and disk.refused >= _REFUSALS_MOST:
            self._leave(disk)
        if (error := before or now) is not None:
            self._sync_at_ns = time.monotonic_ns() + int(_RETRY_S * NS_PER_S)
            self._trouble("journal_sync_failed", {"reason": error.strerror or "", "errno": error.errno or 0})
            return
        self._left = False
        with self._synced:
            self._synced_sequence = sequence
            self._synced.notify_all()
        self._make_writable()
        self._over("journal_sync_failed")

    def _leave(self, disk: OnDisk) -> None:
        """Go on in the next segment: where this one lies the disk takes nothing. Where there is no other, stay.

        Only once until something is taken: a disk that takes nothing anywhere would get one after the other.
        """
        with self._lock:
            if self._ready is not None and disk is self._disk and not self._left:
                self._left = True
                self._offset = self._size

    def _make_writable(self) -> None:
        """Take the page fault that the next record would find.

        A page that was brought to the disk is read-only until it is written again: 30 us, on the decision path.
        """
        with contextlib.suppress(OSError, ValueError):  # an old kernel; the segment was changed just now
            self._memory.madvise(_POPULATE_WRITE, self._offset // mmap.PAGESIZE * mmap.PAGESIZE, mmap.PAGESIZE)

    def _make_ready(self) -> bool:
        """Have a segment to go on in. What fails is told and tried again: this thread must not end."""
        number = self._number + 1
        path = segment.path_of(self.folder, number)
        try:
            self._keep_budget()
            if not segment.unused(path, self._size):
                self._make(path)
        except OSError as exc:
            self._trouble(_FULL if exc.errno in _NO_ROOM else "disk_refuses", {"reason": exc.strerror or ""})
            return False
        with self._lock:
            self._ready = number
        self._over("disk_refuses")
        if self._make_ballast():
            self._over(_FULL)
        return True

    def _make(self, path: Path) -> None:
        """Make a segment, at the ballast's expense if need be."""
        try:
            segment.make(path, self._size)
        except OSError as exc:
            if exc.errno not in _NO_ROOM or not self._ballast.exists():
                raise
            self._ballast.unlink()
            self._trouble(_FULL, {"reason": exc.strerror or "", "ballast_freed": 1})
            segment.make(path, self._size)

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
        dropped = found[: max(0, len(found) - most)]
        for number in dropped:
            segment.path_of(self.folder, number).unlink(missing_ok=True)
            self.dropped_segments += 1
            self._trouble("journal_budget_used_up", {"segment": number, "budget_mb": self._settings.budget_mb})
        if not dropped:
            self._over("journal_budget_used_up")

    def _trouble(self, name: str, facts: dict[str, str | int]) -> None:
        with self._telling:
            if name not in self._troubles:
                self._troubles[name] = facts
                self._on_trouble(name, facts)

    def _over(self, name: str) -> None:
        with self._telling:
            if self._troubles.pop(name, None) is not None and not self._troubles:
                self._on_trouble("disk_ok", {})
