"""One named piece of shared memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


class Block:
    """A file in the run directory, mapped whole.

    Views on `memory` (numpy arrays, memoryviews) keep the mapping alive; `close` then only forgets it.
    """

    def __init__(self, path: Path, *, size: int | None = None, writable: bool = True) -> None:
        """Map `path`; with `size`, make it first if it is missing or of another size (its content is then zeros)."""
        flags = os.O_RDWR if writable else os.O_RDONLY
        if size is not None:
            _make(path, size)
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            self.size = os.fstat(descriptor).st_size
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self.memory = mmap.mmap(descriptor, self.size, access=access)
        finally:
            os.close(descriptor)
        self.path = path

    def close(self) -> None:
        """Unmap, or leave it to the last view."""
        try:
            self.memory.close()
        except BufferError:
            return  # a numpy view still points here; the mapping goes with it


def _make(path: Path, size: int) -> None:
    """Make the file whole before anyone can see it, so that nobody maps a half-made one."""
    try:
        if path.stat().st_size == size:
            return
    except FileNotFoundError:
        pass
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)  # now or never: a hole would be a SIGBUS on a full tmpfs later
    finally:
        os.close(descriptor)
    part.replace(path)
