"""Tags by polling Modbus TCP holding registers (function code 3): one request at a time, every reply checked whole.

The frames are read here and not by pymodbus's client: that one accepts transaction id 0, another function code and a
wrong number of registers, and waits out its timeout when the peer hangs up.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from edgeqc.core.datatype import decode
from edgeqc.core.reads import Read, plan_reads, split_read
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc.relay import NO_ANSWER, relay_path
from edgeqc.ports import TagSink
from edgeqc.records import TagRemark
from edgeqc.settings import ModbusTagSource
from edgeqc.tags.connection import keep_connected
from edgeqc.tags.pace import Pace
from edgeqc.tags.reading import Readings

CONNECT_TIMEOUT_S: Final = 2.0
LONGEST_REPLY_S: Final = 1.0
"""A PLC answers in milliseconds, a serial gateway in some hundred; half of stale_ms where that is less."""


class ModbusTags:
    """One Modbus server's tags."""

    def __init__(self, settings: ModbusTagSource, *, sink: TagSink, state_dir: Path, pace: Pace) -> None:
        """Connect in `run`, not here. `state_dir`: where the station is found that the tags are read through."""
        self._settings = settings
        self._state_dir = state_dir
        self._pace = pace
        self._sink = sink
        self._readings = Readings(settings.name, settings.tags)
        self._spans = settings.spans
        self._log = structlog.get_logger().bind(source=settings.name)

    async def run(self) -> None:
        """Feed the sink until cancelled."""
        await keep_connected(self._settings.name, self._sink, self._serve)

    async def _serve(self) -> None:
        """One connection, from connect to its end."""
        settings = self._settings
        connection = await _Connection.open(settings, self._state_dir, self._pace)
        try:
            reads = plan_reads(self._spans)
            await connection.read(reads[0].address, reads[0].count)  # a server that hangs takes connections, too
            self._sink.back(settings.name)
            self._log.info("tag_source_up", reads_per_poll=len(reads), poll_ms=settings.poll_ms)
            refused: dict[str, str] = {}
            self._tell_refused(refused)
            told: dict[str, str] = {}
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                await self._sink.room()
                reads = [kept for read in reads for kept in await self._poll(connection, read, refused)]
                if refused != told:
                    self._tell_refused(refused)
                    told = dict(refused)
                # a poll that took longer than its time is not made up for
                due = max(due + settings.poll_ms / 1000, loop.time())
                await asyncio.sleep(due - loop.time())
        finally:
            connection.close()

    async def _poll(self, connection: _Connection, read: Read, refused: dict[str, str]) -> list[Read]:
        """Read once and feed the sink; give what to ask for next time in its place."""
        settings = self._settings
        reply = await connection.read(read.address, read.count)
        now_ns = time.monotonic_ns()
        self._sink.alive(settings.name, now_ns)
        names = self._readings.names
        if isinstance(reply, int):
            halves = split_read(read, self._spans) if reply in _SPOILED else []
            if not halves:
                for place in read.places:
                    refused[names[place]] = f"exception {reply} {_EXCEPTIONS.get(reply, '')}".strip()
                self._sink.take(self._readings.refused(read.places, now_ns))
            return halves or [read]
        raw = [self._decode(reply, read, place) for place in read.places]
        if refused:
            for place in read.places:
                refused.pop(names[place], None)
        self._sink.take(
            self._readings.batch(
                np.array(read.places, np.int32), np.array(raw), received_ns=now_ns, complete_to_ns=now_ns
            )
        )
        return [read]

    def _decode(self, reply: bytes, read: Read, place: int) -> float:
        tag, span = self._settings.tags[place], self._spans[place]
        start = 2 * (span.address - read.address)
        return float(decode(reply[start : start + 2 * span.count], tag.type, tag.word_order, bit=tag.bit))

    def _tell_refused(self, refused: dict[str, str]) -> None:
        named = [f"{name}: {reason}" for name, reason in sorted(refused.items())]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        self._sink.remark(self._settings.name, TagRemark.REFUSED, ", ".join(named[:_NAMED]) + more)


class _Connection:
    """One socket. Whatever is not the reply to the one request under way ends it, so nothing can get out of step."""

    def __init__(
        self, settings: ModbusTagSource, pace: Pace, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._peer = settings.name
        self._through = settings.through
        self._unit = settings.device_id
        self._pace = pace
        self._reader = reader
        self._writer = writer
        self._timeout_s = min(LONGEST_REPLY_S, settings.stale_ms / 2000)
        self._transaction = 0

    @classmethod
    async def open(cls, settings: ModbusTagSource, state_dir: Path, pace: Pace) -> _Connection:
        """Connect within `CONNECT_TIMEOUT_S`. Raises PeerError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if settings.through is None:
                    reader, writer = await asyncio.open_connection(settings.host, settings.port)
                else:
                    reader, writer = await asyncio.open_unix_connection(relay_path(state_dir, settings.through))
        except TimeoutError as exc:
            raise PeerTimeoutError(settings.name, f"{settings.device} does not answer") from exc
        except OSError as exc:
            who = settings.device if settings.through is None else f"station {settings.through} relays nothing"
            raise PeerError(settings.name, f"{who}: {_reason(exc)}") from exc
        return cls(settings, pace, reader, writer)

    async def read(self, address: int, count: int) -> bytes | int:
        """Give the registers' bytes, or the exception code with which the peer refuses. Raises PeerError."""
        async with self._pace.turn():
            return await self._ask(address, count)

    async def _ask(self, address: int, count: int) -> bytes | int:
        self._transaction = self._transaction % 0xFFFF + 1  # never 0: that is what careless peers answer with
        request = _REQUEST.pack(self._transaction, 0, 6, self._unit, _READ_HOLDING, address, count)
        try:
            async with asyncio.timeout(self._timeout_s):
                self._writer.write(request)
                await self._writer.drain()
                return await self._reply(count)
        except TimeoutError as exc:
            raise PeerTimeoutError(self._peer, f"no reply within {self._timeout_s * 1000:.0f} ms") from exc
        except asyncio.IncompleteReadError as exc:
            raise PeerError(self._peer, "the peer closed the connection") from exc
        except OSError as exc:
            raise PeerError(self._peer, _reason(exc)) from exc

    async def _reply(self, count: int) -> bytes | int:
        head = await self._reader.readexactly(_HEAD.size)
        transaction, protocol, length, unit, function = _HEAD.unpack(head)
        if protocol != 0 or not _SHORTEST <= length <= _LONGEST:
            raise PeerError(self._peer, f"not Modbus: {head.hex()}")
        body = await self._reader.readexactly(length - 2)
        if transaction != self._transaction:
            raise PeerError(self._peer, f"reply to transaction {transaction}, asked {self._transaction}")
        if unit != self._unit:
            raise PeerError(self._peer, f"reply from unit {unit}, asked {self._unit}")
        if function == _READ_HOLDING | _REFUSED and len(body) == 1:
            if body[0] == NO_ANSWER and self._through is not None:
                raise PeerError(self._peer, f"the PLC of station {self._through} is away, or too slow for tags")
            return body[0]
        if function != _READ_HOLDING:
            raise PeerError(self._peer, f"reply with function code {function}, asked {_READ_HOLDING}")
        if len(body) != 1 + 2 * count or body[0] != 2 * count:
            raise PeerError(self._peer, f"{len(body) - 1} bytes (said {body[0]}) for {count} registers")
        return body[1:]

    def close(self) -> None:
        """Cut the socket: a hung peer would not take a farewell."""
        self._writer.transport.abort()


_REQUEST: Final = struct.Struct(">HHHBBHH")  # transaction, protocol, length, unit, function, address, count
_HEAD: Final = struct.Struct(">HHHBB")  # transaction, protocol, length from unit on, unit, function
_READ_HOLDING: Final = 3
_REFUSED: Final = 0x80
_NAMED: Final = 4
_SHORTEST: Final = 3
_LONGEST: Final = 254
_SPOILED: Final = (2, 3)
"""Exceptions by which one register spoils a whole request: halve it until that one stands alone."""
_EXCEPTIONS: Final = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    6: "device busy",
    10: "gateway path unavailable",
    11: "gateway target does not answer",
}


def _reason(exc: OSError) -> str:
    """What the system calls it; asyncio's own words leave out why."""
    return os.strerror(exc.errno) if exc.errno else str(exc)
