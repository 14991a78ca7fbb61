"""The files of a package's folder, read whole and within limits: regular ones only, and never through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgeqc.errors import PackageError

MODEL_LIMIT_BYTES: Final = 256 << 20
"""Over ten times the largest model that fits a takt on such a box (12 MB); what the daemon's memory budget bears."""
TEXT_LIMIT_BYTES: Final = 256 << 10
FILES_MOST: Final = 64
WHOLE_LIMIT_BYTES: Final = 512 << 20
"""A model of the greatest size in fp32, fp16 and twice in int8; an import holds all of it in memory beside the line."""


def read_whole(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, signature included. PackageError for folders and links in it, and for too much of it."""
    if not folder.is_dir():
        raise PackageError(f"{folder}: is no folder")
    return read_files(folder, sorted(entry.name for entry in os.scandir(folder)))


def read_files(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """These files of a folder. PackageError likewise."""
    wanted = list(names)
    if len(wanted) > FILES_MOST:
        raise PackageError(f"{folder}: {len(wanted)} files are over {FILES_MOST}")
    files: dict[str, bytes] = {}
    left = WHOLE_LIMIT_BYTES
    for name in wanted:
        files[name] = read_file(folder / name, min(MODEL_LIMIT_BYTES, left))
        left -= len(files[name])
    return files


def read_file(path: Path, limit: int) -> bytes:
    """The whole of a regular file; PackageError for a link, a folder, a device, and for more than `limit` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        reason = "is a symbolic link" if path.is_symlink() else exc.strerror
        raise PackageError(f"{path}: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PackageError(f"{path}: is not a regular file")
        if status.st_size > limit:
            raise PackageError(f"{path}: {status.st_size} bytes are over {limit}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    except OSError as exc:
        raise PackageError(f"{path}: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
