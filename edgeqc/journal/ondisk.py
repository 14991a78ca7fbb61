"""Whether what was written is on the disk: Linux says so of each write once only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

_CHUNK_BYTES: Final = 1 << 16


@dataclass(slots=True)
class OnDisk:
    """A segment's descriptor, and what the disk says of it. Used by the sync thread."""

    descriptor: int
    refused: int = 0
    """Times in a row that the disk has not taken it."""

    def bring(self, end: int) -> OSError | None:
        """Bring what lies before `end`, where nothing changes any more, to the disk; what failed, if anything did."""
        try:
            if self.refused:
                self._write_anew(end)
            os.fdatasync(self.descriptor)
        except OSError as exc:
            self.refused += 1
            return exc
        self.refused = 0
        return None

    def _write_anew(self, end: int) -> None:
        """Linux tells of a write that failed once, to the next fdatasync, and takes its pages for written from then on.

        By system calls: they let other threads have the interpreter, and a page that is lost is an error, not SIGBUS.
        """
        for place in range(0, end, _CHUNK_BYTES):
            data = os.pread(self.descriptor, min(_CHUNK_BYTES, end - place), place)
            os.pwrite(self.descriptor, data, place)
