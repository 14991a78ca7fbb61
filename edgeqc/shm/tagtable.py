"""The newest value of every tag, for all processes: the watch process writes, the station and the office read.

Layout of the file: one header page, per source a row of 256 bytes, per tag its name, per tag an entry of 64 bytes: the
newest value and the one before it, so that a station can see what held at an exposure some milliseconds ago.
Rows and entries end in a CRC of what is before it. A reader takes its copy again until the CRC fits. A plain sequence
number would not do: aarch64 may show one process's stores to another in any order, and Python has no fence.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Final

from edgeqc.errors import EdgeqcError
from edgeqc.records import NS_PER_MS, Ne107, Quality, TagValue
from edgeqc.settings import TagSourceSettings
from edgeqc.shm.block import Block

FILE_NAME: Final = "tags"
"""Of the table in the run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """What is known of one tag server."""

    name: str
    up: bool
    alive_ns: int
    """Monotonic time of the last sign of life, with or without values; 0 = never."""
    changed_ns: int
    """Monotonic time at which `up` last changed."""
    updates_hz: float
    losses: int
    """How often it was lost since the watch process started."""
    reason: str
    """Why it was lost last; at most 120 bytes."""


class TagTable:
    """All tags of all sources in the order of the configuration. One writer, any number of readers."""

    def __init__(self, block: Block) -> None:
        """Map the file; EdgeqcError where it is not one of ours."""
        magic, sources, tags = _HEADER.unpack_from(block.memory, 0) if block.size >= _PAGE else (b"", 0, 0)
        if magic != _MAGIC or block.size != _size(sources, tags):
            raise EdgeqcError(f"{block.path}: not a tag table of this version")
        self.block = block
        names = _PAGE + sources * _ROW_STRIDE
        self._entries = names + tags * _NAME.size
        self.names: tuple[str, ...] = tuple(
            _text(_NAME.unpack_from(block.memory, names + index * _NAME.size)[0]) for index in range(tags)
        )
        fixed = [_FIXED.unpack_from(block.memory, _PAGE + index * _ROW_STRIDE) for index in range(sources)]
        self.sources: tuple[str, ...] = tuple(_text(name) for name, *_ in fixed)
        self.ranges: tuple[range, ...] = tuple(range(first, first + count) for _, first, count, _ in fixed)
        """Which tags each source has."""
        self.stale_ns: tuple[int, ...] = tuple(stale_ns for *_, stale_ns in fixed)
        self._source_of = [index for index, tags_of in enumerate(self.ranges) for _ in tags_of]
        self._index = {name: index for index, name in enumerate(self.names)}
        self._newest: list[bytes] = [_NO_VALUE] * tags
        """The writer's own copy of each tag's newest value, which is the next one's value before."""
        # One aligned machine word each, so never torn: the last sign of life.
        words = memoryview(block.memory)[_PAGE : _PAGE + sources * _ROW_STRIDE].cast("q")
        self._alive = words[_ALIVE_AT // 8 :: _ROW_STRIDE // 8] if sources else words

    @classmethod
    def create(cls, path: Path, sources: Sequence[TagSourceSettings]) -> TagTable:
        """Make the table, or take over one of the same shape; every tag is BAD until it is written."""
        tags = [tag.name for source in sources for tag in source.tags]
        block = Block(path, size=_size(len(sources), len(tags)))
        _HEADER.pack_into(block.memory, 0, b"", 0, 0)  # nobody attaches to a half-made table
        first = 0
        for index, source in enumerate(sources):
            at = _PAGE + index * _ROW_STRIDE
            stale_ns = round(source.stale_ms * NS_PER_MS)
            _FIXED.pack_into(block.memory, at, source.name.encode(), first, len(source.tags), stale_ns)
            first += len(source.tags)
        at = _PAGE + len(sources) * _ROW_STRIDE
        for index, name in enumerate(tags):
            _NAME.pack_into(block.memory, at + index * _NAME.size, name.encode())
        _HEADER.pack_into(block.memory, 0, _MAGIC, len(sources), len(tags))
        table = cls(block)
        for index in range(len(sources)):
            table._alive[index] = 0
            table.write_source(index, up=False, changed_ns=0, updates_hz=0.0, losses=0, reason="not connected yet")
        for index in range(len(tags)):
            table.write(index, math.nan, Quality.BAD, 0.0, 0)
        return table

    @classmethod
    def attach(cls, path: Path) -> TagTable:
        """Read the watch process's table. FileNotFoundError, or EdgeqcError while it is being made, until there is one."""
        return cls(Block(path, writable=False))

    def index(self, name: str) -> int:
        """Where a tag is; KeyError for a name that no source has."""
        return self._index[name]

    def source_of(self, index: int) -> int:
        """Which source a tag belongs to, as an index into `sources`."""
        return self._source_of[index]

    def read(self, index: int, now_ns: int) -> TagValue:
        """Give the newest value, BAD where its source shows no sign of life for longer than its `stale_ms`.

        So a value that never changes stays Good while its server is there, and nothing is Good once the server or
        the watch process is gone. Never blocks; 2 us.
        """
        newest, _ = self._pair(index)
        return self._told(index, newest, now_ns)

    def read_at(self, index: int, at_ns: int, now_ns: int) -> TagValue:
        """Give the value that had been received by `at_ns`, a moment ago: of the newest two; else as `read`."""
        newest, before = self._pair(index)
        return self._told(index, newest if newest[2] <= at_ns or not before[2] else before, now_ns)

    def _pair(self, index: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        fields = _unseal(self.block, self._entries + index * _ENTRY_STRIDE, _ENTRY, _NO_ENTRY)
        return fields[:4], fields[4:]

    def _told(self, index: int, entry: tuple[Any, ...], now_ns: int) -> TagValue:
        value, source_ts, received_ns, quality = entry
        source = self._source_of[index]
        if now_ns - self._alive[source] > self.stale_ns[source]:
            quality = Quality.BAD
        return TagValue(
            name=self.names[index],
            value=value,
            quality=_QUALITIES[quality],
            source_ts=source_ts,
            received_ns=received_ns,
        )

    def source(self, index: int) -> SourceState:
        """Give the state of a source as the watch process last told it."""
        at = _PAGE + index * _ROW_STRIDE + _STATE_AT
        up, losses, changed_ns, updates_hz, reason = _unseal(self.block, at, _STATE, _LOST_STATE)
        return SourceState(
            name=self.sources[index],
            up=bool(up),
            alive_ns=self._alive[index],
            changed_ns=changed_ns,
            updates_hz=updates_hz,
            losses=losses,
            reason=_text(reason),
        )

    def write(self, index: int, value: float, quality: int, source_ts: float, received_ns: int) -> None:
        """Keep a tag's newest value. The watch process only; 1 us."""
        newest = _VALUE.pack(value, source_ts, received_ns, quality)
        body = newest + self._newest[index]
        self._newest[index] = newest
        at = self._entries + index * _ENTRY_STRIDE
        self.block.memory[at : at + _ENTRY.size + 4] = body + zlib.crc32(body).to_bytes(4, "little")

    def write_alive(self, source: int, at_ns: int) -> None:
        """Keep a source's last sign of life. The watch process only."""
        self._alive[source] = at_ns

    def write_source(
        self, source: int, *, up: bool, changed_ns: int, updates_hz: float, losses: int, reason: str
    ) -> None:
        """Keep what is known of a source. The watch process only."""
        text = reason.encode()[:_REASON_BYTES]
        body = _STATE.pack(up, losses, changed_ns, updates_hz, text)
        at = _PAGE + source * _ROW_STRIDE + _STATE_AT
        self.block.memory[at : at + _STATE.size + 4] = body + zlib.crc32(body).to_bytes(4, "little")

    def close(self) -> None:
        """Forget the mapping; the file stays for the other processes."""
        self._alive.release()
        self.block.close()


def summarise(table: TagTable, now_ns: int) -> dict[str, dict[str, Any]]:
    """Give each source's component of the health payload, keyed `tags.<source>`. 3 us a tag."""
    return {f"tags.{name}": _component(table, index, now_ns) for index, name in enumerate(table.sources)}


def _component(table: TagTable, source: int, now_ns: int) -> dict[str, Any]:
    state = table.source(source)
    values = [table.read(index, now_ns) for index in table.ranges[source]]
    counts = {quality: sum(value.quality is quality for value in values) for quality in Quality}
    alive = state.alive_ns > 0 and now_ns - state.alive_ns <= table.stale_ns[source]
    received = [value.received_ns for value in values if value.received_ns]
    if not (state.up and alive) or counts[Quality.BAD]:
        ne107 = Ne107.FAILURE
    elif counts[Quality.UNCERTAIN]:
        ne107 = Ne107.OUT_OF_SPECIFICATION
    else:
        ne107 = Ne107.NORMAL
    component: dict[str, Any] = {
        "ne107": ne107.value,
        "connected": state.up and alive,
        "good": counts[Quality.GOOD],
        "uncertain": counts[Quality.UNCERTAIN],
        "bad": counts[Quality.BAD],
        "updates_hz": round(state.updates_hz, 1) if alive else 0.0,
        "silent_ms": (now_ns - state.alive_ns) // NS_PER_MS if state.alive_ns else None,
        "oldest_ms": (now_ns - min(received)) // NS_PER_MS if received else None,
        "losses": state.losses,
    }
    if not component["connected"]:
        component["reason"] = state.reason or "the watch process is silent"
    return component


_PAGE: Final = 4096
_MAGIC: Final = b"EQCTAGS2"
_HEADER: Final = Struct("=8sII")
_NAME: Final = Struct("=48s")
_FIXED: Final = Struct("=48sIIq")
"""Source: name, first tag, tags, stale_ns."""
_ALIVE_AT: Final = _FIXED.size
_STATE_AT: Final = _ALIVE_AT + 8
_REASON_BYTES: Final = 120
_STATE: Final = Struct(f"=BxxxIqd{_REASON_BYTES}s")
_ROW_STRIDE: Final = 256
_VALUE: Final = Struct("=ddqI")
"""value, source_ts, received_ns, quality."""
_ENTRY: Final = Struct("=ddqIddqI")
"""Tag: the newest value, the one before."""
_ENTRY_STRIDE: Final = 64  # with the CRC; a cache line
_QUALITIES: Final = tuple(sorted(Quality))
_NO_VALUE: Final = _VALUE.pack(math.nan, 0.0, 0, Quality.BAD)
_NO_ENTRY: Final = (math.nan, 0.0, 0, Quality.BAD, math.nan, 0.0, 0, Quality.BAD)
_LOST_STATE: Final = (0, 0, 0, 0.0, b"the watch process ended while writing this")
_TRIES: Final = 8
_PATIENCE_S: Final = 20e-6
"""Before each new try: the writer holds an entry for about 1 us."""


def _size(sources: int, tags: int) -> int:
    return _PAGE + sources * _ROW_STRIDE + tags * (_NAME.size + _ENTRY_STRIDE)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _unseal(block: Block, at: int, layout: Struct, damaged: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy what is sealed at `at`; `damaged` where the writer died half-way."""
    memory, size = block.memory, layout.size
    for attempt in range(_TRIES):
        raw = memory[at : at + size + 4]
        body = raw[:size]
        if zlib.crc32(body) == int.from_bytes(raw[size:], "little"):
            return layout.unpack(body)
        time.sleep(_PATIENCE_S if attempt else 0)
    return damaged
