"""One segment file: a header record and then record slots, all zeros until written.

A segment is made whole (allocated, zeroed and synced) before it is used: a mapped hole on a full disk would be a
SIGBUS, and blocks that were written once cost no allocation when the records come.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeqc.journal.codec import RECORD_BYTES

SUFFIX: Final = ".eqj"
_MAGIC: Final = b"EQCJRNL1"
_HEADER: Final = struct.Struct("<8sIQ32sQQ16s")
_CHUNK: Final = bytes(1 << 18)


def path_of(folder: Path, number: int) -> Path:
    """Where segment `number` lies."""
    return folder / f"{number:012d}{SUFFIX}"


def numbers(folder: Path) -> list[int]:
    """The segments in a folder, oldest first."""
    names = [name.removesuffix(SUFFIX) for name in _names(folder) if name.endswith(SUFFIX)]
    return sorted(int(name) for name in names if name.isdigit())


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - pathlib takes five times as long, and readers ask all the time
    except FileNotFoundError:
        return []


def make(path: Path, size: int) -> None:
    """Make an unused segment; OSError (ENOSPC) where the disk will not have it, and then nothing is left behind."""
    part = path.with_suffix(".part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        for offset in range(0, size, len(_CHUNK)):
            os.pwrite(descriptor, _CHUNK[: size - offset], offset)
        os.fsync(descriptor)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """A file that is synced is not on the disk by its name yet."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unused(path: Path, size: int) -> bool:
    """Is there a segment of this size that nobody has begun? A power cut may leave records without their header."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            return not any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(len(_CHUNK)), b""))
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a segment in use says of itself."""

    number: int
    writer: str
    records: int = 0
    """Highest sequence of a record in the segments before it."""
    parts: int = 0
    """Highest sequence of a part in them: the part itself may have been deleted since."""
    boot: bytes = bytes(16)
    """In which it was begun (the kernel's boot id)."""


def header(head: Header) -> bytes:
    """The first RECORD_BYTES of a segment in use."""
    body = _HEADER.pack(_MAGIC, 1, head.number, head.writer.encode()[:32], head.records, head.parts, head.boot)
    body += bytes(RECORD_BYTES - 4 - len(body))
    return body + struct.pack("<I", zlib.crc32(body))


def read_header(data: bytes) -> Header | None:
    """What the segment says of itself; None where it says nothing, or nothing that can be read."""
    if len(data) < RECORD_BYTES or struct.unpack_from("<I", data, RECORD_BYTES - 4)[0] != zlib.crc32(
        data[: RECORD_BYTES - 4]
    ):
        return None
    magic, _, number, writer, records, parts, boot = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    name = writer.rstrip(b"\0").decode("utf-8", "replace")
    return Header(number=number, writer=name, records=records, parts=parts, boot=boot)
