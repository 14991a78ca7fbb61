"""The simulated PLC's Modbus TCP server, with the two blocks of edgeqc.plc.registers.

On the loop's own sockets, 25 us a request: what a PLC library adds here (0.3 ms) would count as the daemon's overhead.
Nothing of it is the daemon's: client and server share the map of the registers only.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Final

from edgeqc.plc.registers import RESULT_REGISTERS, ResultImage, TriggerImage, pack_trigger, unpack_result

REGISTERS: Final = 200
"""All that there are; the next address is refused."""
TRIGGER_AT: Final = 0
RESULT_AT: Final = 100
_HEAD: Final = struct.Struct(">HHHBB")  # transaction, protocol, length from unit on, unit, function code
_SPAN: Final = struct.Struct(">HH")  # first register, how many
_READ, _WRITE_ONE, _WRITE = 3, 6, 16
_LONGEST: Final = 254
_ILLEGAL_FUNCTION, _ILLEGAL_ADDRESS, _ILLEGAL_VALUE, _BUSY = 1, 2, 3, 6


class ModbusPlc:
    """Holds the blocks; tells each result write at the moment it arrives."""

    def __init__(self, on_write: Callable[[ResultImage, int], None]) -> None:
        """`on_write` gets the block and the monotonic time in ns, before the daemon gets its acknowledgement."""
        self._on_write = on_write
        self._memory = bytearray(2 * REGISTERS)
        self._refusing = False
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Transport] = set()

    async def start(self, port: int, says: TriggerImage) -> None:
        """Serve on 127.0.0.1, the trigger block as given; clients can connect when it returns."""
        await self.show(says)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", port)

    async def show(self, says: TriggerImage) -> None:
        """Put this into the trigger block."""
        block = pack_trigger(says.counter, says.part_id, ack=says.ack, heartbeat=says.heartbeat, recipe=says.recipe)
        struct.pack_into(f">{len(block)}H", self._memory, 2 * TRIGGER_AT, *block)

    async def refuse(self, on: bool) -> None:
        """Answer writes with exception 6 (busy), or take them again."""
        self._refusing = on

    async def stop(self) -> None:
        """Hang up."""
        if self._server is not None:
            self._server.close()
            for transport in list(self._open):
                transport.abort()
            await self._server.wait_closed()

    def came(self, transport: asyncio.Transport) -> None:
        """Somebody connected."""
        self._open.add(transport)

    def left(self, transport: asyncio.Transport) -> None:
        """Somebody is gone."""
        self._open.discard(transport)

    def answer(self, code: int, body: bytes) -> bytes:
        """Do what a request asks for; the PDU that answers it."""
        done = self._do(code, body)
        return bytes((code | 0x80, done)) if isinstance(done, int) else bytes((code,)) + done

    def _do(self, code: int, body: bytes) -> bytes | int:
        """What follows the function code in the answer, or the exception's number."""
        if code not in {_READ, _WRITE_ONE, _WRITE}:
            return _ILLEGAL_FUNCTION
        if len(body) < _SPAN.size:
            return _ILLEGAL_VALUE
        address, count = _SPAN.unpack_from(body)
        count = 1 if code == _WRITE_ONE else count
        if address + count > REGISTERS:
            return _ILLEGAL_ADDRESS
        begin, end = 2 * address, 2 * (address + count)
        if code == _READ:
            return bytes((2 * count,)) + self._memory[begin:end]
        values = body[2:4] if code == _WRITE_ONE else body[5:]
        if len(values) != 2 * count or self._refusing:
            return _BUSY if self._refusing else _ILLEGAL_VALUE
        now_ns = time.monotonic_ns()
        self._memory[begin:end] = values
        if address <= RESULT_AT and address + count >= RESULT_AT + RESULT_REGISTERS:
            block = struct.unpack_from(f">{RESULT_REGISTERS}H", self._memory, 2 * RESULT_AT)
            self._on_write(unpack_result(block), now_ns)
        return body[:4]


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, plc: ModbusPlc) -> None:
        self._plc = plc
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server has no other
        self._transport = transport
        self._plc.came(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        if self._transport is not None:
            self._plc.left(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        transport, received = self._transport, self._received
        while transport is not None and len(received) >= _HEAD.size:
            transaction, protocol, length, unit, code = _HEAD.unpack_from(received)
            end = 6 + length
            if protocol != 0 or length > _LONGEST:
                transport.abort()
                return
            if len(received) < end:
                return
            pdu = self._plc.answer(code, bytes(received[_HEAD.size : end]))
            del received[:end]
            transport.write(struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu)
