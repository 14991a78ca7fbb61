"""How samples lie in a history file: a header that names the tags, then blocks of columns, each with a CRC.

    file   "EQCHIS1", a line feed | length u32 | crc u32 | JSON {"run": ..., "tags": [{"name": ..., "unit": ...}, ...]}
    block  magic u32 | crc u32 (of all behind it) | length u32 | samples u32 | first_ns i64 | last_ns i64 | zlib of the columns

A file that goes on where another one ends begins with a standing block, told apart by its magic: each tag's newest sample
once more, at its own time, because the file that has it may be gone.

Columns are sorted by tag, then in the order of arrival; times are told as differences and all bytes of one significance
lie together, which makes 1000 tags at 10 Hz about 3 bytes a sample (`scripts/bench tags` prints it).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.align import Samples, Times

MAGIC: Final = b"EQCHIS1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A column of the history."""

    name: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of itself."""

    run: str
    """The run of the daemon that wrote it: between two runs nothing is known."""
    tags: tuple[Tag, ...]


class DamagedHistoryError(Exception):
    """These bytes are no whole header or block."""


def encode_header(header: Header) -> bytes:
    """As a file begins."""
    fields = {"run": header.run, "tags": [{"name": tag.name, "unit": tag.unit} for tag in header.tags]}
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return MAGIC + _HEAD.pack(len(body), zlib.crc32(body)) + body


def decode_header(data: bytes) -> tuple[Header, int]:
    """Give the header and where the first block begins. DamagedHistoryError."""
    start = len(MAGIC) + _HEAD.size
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise DamagedHistoryError("no history file")
    length, crc = _HEAD.unpack_from(data, len(MAGIC))
    body = data[start : start + length]
    if len(body) != length or zlib.crc32(body) != crc:
        raise DamagedHistoryError("damaged header")
    fields = json.loads(body)
    tags = tuple(Tag(name=tag["name"], unit=tag["unit"]) for tag in fields["tags"])
    return Header(run=fields["run"], tags=tags), start + length


def encode_block(samples: Samples, source_ns: Times, *, standing: bool = False) -> bytes:
    """One block; `samples.at_ns` is UTC. `standing`: told before, in another file."""
    order = np.argsort(samples.places, kind="stable")
    ordered = samples.picked(order)
    apart = np.where(source_ns[order] > 0, source_ns[order] - ordered.at_ns, _NO_STAMP)
    columns: Sequence[NDArray[Any]] = (
        _differences(ordered.places.astype(np.int64)).astype(np.int32),
        _differences(ordered.at_ns),
        _differences(apart),
        ordered.values,
        ordered.marks,
    )
    packed = zlib.compress(b"".join(_shuffled(column) for column in columns), _LEVEL)
    rest = _REST.pack(len(packed), len(order), int(samples.at_ns.min()), int(samples.at_ns.max()))
    magic = _STANDING_MAGIC if standing else _BLOCK_MAGIC
    return struct.pack("<II", magic, zlib.crc32(packed, zlib.crc32(rest))) + rest + packed


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHead:
    """What a block says before it is unpacked."""

    end: int
    """Where the next one begins."""
    first_ns: int
    last_ns: int
    standing: bool


def read_head(data: bytes, at: int) -> BlockHead:
    """Look at the block that begins at `at`. DamagedHistoryError where there is none, or not all of it."""
    if at + _BLOCK_HEAD > len(data):
        raise DamagedHistoryError("cut short")
    magic, _ = struct.unpack_from("<II", data, at)
    length, _, first_ns, last_ns = _REST.unpack_from(data, at + 8)
    if magic not in {_BLOCK_MAGIC, _STANDING_MAGIC} or at + _BLOCK_HEAD + length > len(data):
        raise DamagedHistoryError("no block, or cut short")
    return BlockHead(
        end=at + _BLOCK_HEAD + length, first_ns=first_ns, last_ns=last_ns, standing=magic == _STANDING_MAGIC
    )


def decode_block(data: bytes, at: int) -> tuple[Samples, Times]:
    """Give the samples of the block at `at`, and the peers' stamps (0 = none). DamagedHistoryError."""
    end = read_head(data, at).end
    _, crc = struct.unpack_from("<II", data, at)
    if zlib.crc32(data[at + 8 : end]) != crc:
        raise DamagedHistoryError("checksum")
    _, count, _, _ = _REST.unpack_from(data, at + 8)
    try:
        raw = zlib.decompress(data[at + _BLOCK_HEAD : end])
    except zlib.error as exc:
        raise DamagedHistoryError(str(exc)) from exc
    columns, start = [], 0
    for kind in _COLUMNS:
        size = np.dtype(kind).itemsize * count
        columns.append(_unshuffled(raw[start : start + size], kind, count))
        start += size
    places, at_ns, apart, values, marks = columns
    at_ns = np.cumsum(at_ns)
    apart = np.cumsum(apart)
    samples = Samples(np.cumsum(places).astype(np.int32), at_ns, values, marks)
    return samples, np.where(apart == _NO_STAMP, 0, at_ns + apart)


def find_block(data: bytes, at: int) -> int:
    """Where the next block that is no standing one begins at or after `at`, behind damage; -1 where there is none."""
    return data.find(struct.pack("<I", _BLOCK_MAGIC), at)


_HEAD: Final = struct.Struct("<II")
_REST: Final = struct.Struct("<IIqq")
_BLOCK_HEAD: Final = 8 + _REST.size
_BLOCK_MAGIC: Final = 0x4B4C4251
_STANDING_MAGIC: Final = 0x444E5453
_LEVEL: Final = 1
"""Of zlib: 6 is four times slower for a tenth less."""
_NO_STAMP: Final = -(2**62)
_COLUMNS: Final = ("<i4", "<i8", "<i8", "<f8", "<u1")


def _differences(column: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(column, prepend=np.int64(0))


def _shuffled(column: NDArray[Any]) -> bytes:
    little = np.ascontiguousarray(column.astype(column.dtype.newbyteorder("<"), copy=False))
    return little.view(np.uint8).reshape(len(little), -1).T.tobytes()


def _unshuffled(raw: bytes, kind: str, count: int) -> NDArray[Any]:
    size = np.dtype(kind).itemsize
    if len(raw) != size * count:
        raise DamagedHistoryError("a column is cut short")
    bytes_of = np.frombuffer(raw, np.uint8).reshape(size, count).T
    return np.ascontiguousarray(bytes_of).view(kind).reshape(count)
