"""Writing the history: a thread of its own, a ring of files, and the first to give way when the disk gets full."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from edgeqc.core.align import Mark, Samples, Times
from edgeqc.history.block import Header, Tag, encode_block, encode_header
from edgeqc.records import NS_PER_S

FOLDER: Final = "history"
"""In the state directory."""
SUFFIX: Final = ".tags"
FLUSH_S: Final = 2.0
"""What a killed process loses at most."""
BLOCK_SAMPLES: Final = 65_536
"""At most in one block: 1.6 MB of columns."""
PENDING_SAMPLES: Final = 500_000
"""Waiting for the disk; beyond, the oldest are given up and counted."""


class HistoryWriter:
    """One run's recording. `add` is called by one thread and never waits for the disk."""

    def __init__(
        self, folder: Path, tags: Sequence[Tag], *, run: str, mb: float, days: float, keep_free_mb: float
    ) -> None:
        """Write into `folder`, made if missing; together with what is there it takes `mb` at most.

        Args:
            folder: of the ring.
            tags: by place.
            run: this run's id.
            mb: of all files together.
            days: files that are older go.
            keep_free_mb: with less room on the disk the oldest files go, and then nothing is written.
        """
        self.trouble = ""
        """Why nothing is written now; empty: all is well."""
        self.lost = 0
        """Samples that were not written."""
        self.written = 0
        self.written_bytes = 0
        self._folder = folder
        self._header = encode_header(Header(run=run, tags=tuple(tags)))
        self._tags = len(tags)
        self._newest = Samples(
            np.arange(len(tags), dtype=np.int32),
            np.full(len(tags), _NEVER, np.int64),
            np.full(len(tags), np.nan),
            np.full(len(tags), Mark.GAP, np.uint8),
        )
        """Of each tag, as written."""
        self._newest_source_ns = np.zeros(len(tags), np.int64)
        self._most_bytes = int(mb * _MB)
        self._segment_bytes = max(_SMALLEST_SEGMENT, min(_LARGEST_SEGMENT, self._most_bytes // _SEGMENTS))
        self._most_age_s = days * 86_400
        self._keep_free = int(keep_free_mb * _MB)
        self._clock_s = time.time() - time.monotonic()
        self._pending: deque[tuple[Samples, Times]] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._file: int | None = None
        self._path: Path | None = None
        self._size = 0
        self._opened_s = 0.0
        self._own: dict[Path, int] = {}
        """What this run has written, and as which of its files."""
        self._opened = 0
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)

    def start(self) -> None:
        """Begin writing."""
        self._thread.start()

    def add(self, samples: Samples, source_ns: Times) -> None:
        """Record samples (`at_ns` monotonic) with their peers' UTC stamps. The arrays are not changed, and are kept."""
        if not len(samples.places):
            return
        ahead_ns = time.time_ns() - time.monotonic_ns()
        with self._lock:
            self._pending.append((samples._replace(at_ns=samples.at_ns + ahead_ns), source_ns))
            self._waiting += len(samples.places)
            while self._waiting > PENDING_SAMPLES and len(self._pending) > 1:
                oldest = len(self._pending.popleft()[0].places)
                self._waiting -= oldest
                self.lost += oldest

    def close(self) -> None:
        """Write what is left, say that nothing is known from here on, and end; seconds at most."""
        everything = np.arange(self._tags, dtype=np.int32)
        self.add(
            Samples(
                everything,
                np.full(self._tags, time.monotonic_ns(), np.int64),
                np.full(self._tags, np.nan),
                np.full(self._tags, Mark.GAP, np.uint8),
            ),
            np.zeros(self._tags, np.int64),
        )
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        else:
            self.flush()
        self._close_segment()

    def flush(self) -> None:
        """Write what waits, now, on the caller's thread: the writer's own, or a test's."""
        while batch := self._next():
            samples, source_ns = batch
            try:
                self._make_room()
                self._append(encode_block(samples, source_ns))
            except OSError as exc:
                self.lost += len(samples.places)
                self._told(os.strerror(exc.errno) if exc.errno else str(exc))
            else:
                self.written += len(samples.places)
                self._keep(samples, source_ns)
                self._told("")

    # --- inside --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        log = structlog.get_logger()
        while True:
            stopping = self._stop.wait(FLUSH_S)
            try:
                self.flush()
            except Exception as exc:  # root of the thread: the recording may fail, the watch process not
                log.exception("history_failed")
                self.trouble = f"{type(exc).__name__}: {exc}"
            if stopping:
                return

    def _next(self) -> tuple[Samples, Times] | None:
        """Give what fits into one block."""
        with self._lock:
            taken, count = [], 0
            while self._pending and count < BLOCK_SAMPLES:
                taken.append(self._pending.popleft())
                count += len(taken[-1][0].places)
            self._waiting -= count
        if not taken:
            return None
        columns = zip(*(each for each, _ in taken), strict=True)
        return Samples(*(np.concatenate(column) for column in columns)), np.concatenate([each for _, each in taken])

    def _keep(self, samples: Samples, source_ns: Times) -> None:
        """Note each tag's newest; of several at one time the last given, as everywhere."""
        order = np.argsort(samples.at_ns, kind="stable")
        order = order[samples.at_ns[order] >= self._newest.at_ns[samples.places[order]]]
        places = samples.places[order]
        self._newest.at_ns[places] = samples.at_ns[order]
        self._newest.values[places] = samples.values[order]
        self._newest.marks[places] = samples.marks[order]
        self._newest_source_ns[places] = source_ns[order]

    def _append(self, block: bytes) -> None:
        """Write the block whole, or leave no trace of it."""
        if (
            self._file is None
            or self._size + len(block) > self._segment_bytes
            or time.time() - self._opened_s > _SEGMENT_S
        ):
            self._open_segment()
        file = self._file
        if file is None:
            raise OSError("no file")
        try:
            _write(file, block)
        except OSError:
            os.ftruncate(file, self._size)
            os.lseek(file, self._size, os.SEEK_SET)
            raise
        self._size += len(block)
        self.written_bytes += len(block)

    def _open_segment(self) -> None:
        self._close_segment()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.time_ns():020d}{SUFFIX}"
        known = self._newest.at_ns != _NEVER
        head = self._header
        if known.any():
            head += encode_block(self._newest.picked(known), self._newest_source_ns[known], standing=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            _write(file, head)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._opened += 1
        self._own[path] = self._opened
        self._file, self._path, self._size, self._opened_s = file, path, len(head), time.time()

    def _close_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = self._path = None

    @property
    def _stepped(self) -> bool:
        """Was the wall clock set by more than _CLOCK_STEP_S since the start? Then it says of no file how old it is."""
        return abs(time.time() - time.monotonic() - self._clock_s) > _CLOCK_STEP_S

    def _make_room(self) -> None:
        """Let the oldest files go until budget, age and free disk are kept. OSError where that is not enough."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files = segments(self._folder)
        sizes = {path: path.stat().st_size for path in files}
        total = sum(sizes.values())
        for path in self._oldest_first(files):
            too_old = not self._stepped and time.time() - began_ns(path) / NS_PER_S > self._most_age_s + _SEGMENT_S
            too_much = total + self._segment_bytes - self._size > self._most_bytes
            if too_old or too_much or self._free() < self._keep_free:
                path.unlink(missing_ok=True)
                self._own.pop(path, None)
                total -= sizes[path]
        if self._free() < self._keep_free:
            raise OSError(f"less than {self._keep_free // _MB} MB are free on the disk (history.keep_free_mb)")

    def _oldest_first(self, files: Sequence[Path]) -> list[Path]:
        """All but the one that is written, in the order in which they go.

        A name says when a file was begun by the clock of then: one from the future was before the clock was set back.
        What this run has written is the newest whatever it is called.
        """
        now_ns = time.time_ns()
        others = [path for path in files if path != self._path]
        return sorted(others, key=lambda path: (path in self._own, began_ns(path) <= now_ns, self._own.get(path, 0)))

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _told(self, trouble: str) -> None:
        if trouble != self.trouble:
            log = structlog.get_logger()
            if trouble:
                log.warning("history_not_written", reason=trouble, folder=str(self._folder))
            else:
                log.info("history_written_again", lost=self.lost)
        self.trouble = trouble


def _write(file: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.write(file, data[done:])


def began_ns(path: Path) -> int:
    """When a file was begun, by its name (UTC)."""
    return int(path.name.removesuffix(SUFFIX))


def segments(folder: Path) -> list[Path]:
    """The files of a ring, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name.removesuffix(SUFFIX).isdigit())


_MB: Final = 1 << 20
_SEGMENTS: Final = 16
"""The ring loses a sixteenth at a time."""
_LARGEST_SEGMENT: Final = 32 * _MB
_SMALLEST_SEGMENT: Final = _MB // 16
_SEGMENT_S: Final = 3600.0
_CLOCK_STEP_S: Final = 3600.0
_NEVER: Final = -(2**62)
_CLOSE_S: Final = 5.0
