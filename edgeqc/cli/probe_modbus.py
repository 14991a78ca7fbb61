"""Reading registers of a PLC that nobody knows yet."""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from edgeqc.core.reads import MAX_REGISTERS
from edgeqc.errors import PeerError, PeerTimeoutError

TIMEOUT_S: Final = 2.0
_BITS_AT_ONCE: Final = 2000
_ILLEGAL_ADDRESS: Final = 2
_EXCEPTIONS: Final = {
    1: "the device does not know this function code: another --table?",
    2: "the device has no such register; many manuals count from 1, or write 40001 for register 0",
    3: "the device refuses the number of registers",
    4: "the device failed",
    6: "the device is busy",
    10: "the gateway has no path to this unit",
    11: "no unit with this number answers behind the gateway: another --unit?",
}


class Kind(StrEnum):
    """Modbus' four kinds of data."""

    HOLDING = "holding"
    INPUT = "input"
    COIL = "coil"
    DISCRETE = "discrete"


@dataclass(kw_only=True, eq=False)
class Registers:
    """What one look gave."""

    table: Kind
    address: int
    data: bytes = b""
    """Registers, two bytes each; coils and discrete inputs one byte each, 0 or 1."""
    refused: list[int] = field(default_factory=list)
    """Addresses that the device does not have; they read 0 here."""
    took_ms: float = 0.0


class ModbusProbe:
    """One connection to one device."""

    def __init__(self, host: str, port: int, unit: int) -> None:
        """Nothing is connected before `with`."""
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL + 1)  # what matters comes as PeerError
        self._peer = f"{host}:{port} unit {unit}"
        self._unit = unit
        self._client = ModbusTcpClient(host, port=port, timeout=TIMEOUT_S, retries=0)

    def __enter__(self) -> Self:
        if not self._client.connect():  # type: ignore[no-untyped-call]
            raise PeerError(self._peer, "nobody answers there: address, port, cable, and is Modbus TCP switched on?")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()  # type: ignore[no-untyped-call]

    def look(self, table: Kind, address: int, count: int) -> Registers:
        """Read `count` from `address` on; where some do not exist, which. PeerError says what the device said."""
        found = Registers(table=table, address=address)
        began_s = time.monotonic()
        most = MAX_REGISTERS if table in {Kind.HOLDING, Kind.INPUT} else _BITS_AT_ONCE
        for start in range(address, address + count, most):
            found.data += self._read(table, start, min(most, address + count - start), found.refused)
        found.took_ms = (time.monotonic() - began_s) * 1000
        if len(found.refused) == count:
            raise PeerError(self._peer, f"{table} {address}: {_EXCEPTIONS[_ILLEGAL_ADDRESS]}")
        return found

    def _read(self, table: Kind, address: int, count: int, refused: list[int]) -> bytes:
        reply = self._ask(table, address, count)
        if not reply.isError():
            return self._content(table, reply, count)
        code = getattr(reply, "exception_code", 0)
        if code != _ILLEGAL_ADDRESS:
            raise PeerError(self._peer, f"{table} {address}: exception {code}: {_EXCEPTIONS.get(code, 'unknown')}")
        if count == 1:  # one register that is not there spoils a whole request
            refused.append(address)
            return bytes(2 if table in {Kind.HOLDING, Kind.INPUT} else 1)
        half = count // 2
        return self._read(table, address, half, refused) + self._read(table, address + half, count - half, refused)

    def _ask(self, table: Kind, address: int, count: int) -> ModbusPDU:
        read = {
            Kind.HOLDING: self._client.read_holding_registers,
            Kind.INPUT: self._client.read_input_registers,
            Kind.COIL: self._client.read_coils,
            Kind.DISCRETE: self._client.read_discrete_inputs,
        }[table]
        try:
            return read(address, count=count, device_id=self._unit)
        except ModbusException as exc:
            raise PeerTimeoutError(
                self._peer, f"{table} {address}: no answer within {TIMEOUT_S:g} s; a wrong --unit gets none either"
            ) from exc

    def _content(self, table: Kind, reply: ModbusPDU, count: int) -> bytes:
        if table in {Kind.HOLDING, Kind.INPUT}:
            if len(reply.registers) != count:
                raise PeerError(self._peer, f"{len(reply.registers)} registers came, {count} were asked for")
            return struct.pack(f">{count}H", *reply.registers)
        if len(reply.bits) < count:
            raise PeerError(self._peer, f"{len(reply.bits)} bits came, {count} were asked for")
        return bytes(reply.bits[:count])
