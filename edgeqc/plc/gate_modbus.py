"""The gate's two blocks in a PLC that answers Modbus, on a connection of their own."""

from __future__ import annotations

import itertools
import struct
import time
from typing import Final

from edgeqc.core.track import GateOutput
from edgeqc.errors import PeerError
from edgeqc.plc import gate
from edgeqc.plc.gate import INPUT_REGISTERS, OUTPUT_REGISTERS, GateInputs
from edgeqc.plc.modbus import _Connection
from edgeqc.records import NS_PER_MS
from edgeqc.settings import ModbusPlcSettings
from edgeqc.settings.gate import GateRegisters

_READ_CODE: Final = 3
_WRITE_CODE: Final = 16
_ASK: Final = struct.Struct(">BHH")
_WRITE: Final = struct.Struct(">BHHB")
_WRITTEN: Final = struct.Struct(">BHH")


class ModbusGate:
    """A `GateLink`. One connection."""

    def __init__(self, settings: ModbusPlcSettings, registers: GateRegisters, *, peer: str) -> None:
        """Connect; PeerError when it can't."""
        self._peer = peer
        self._registers = registers
        # another start at each connection: the first write after a reconnect moves it too
        self._heartbeat = itertools.count(time.monotonic_ns() // NS_PER_MS)
        self._connection = _Connection(settings, peer)

    def read(self, until_ns: int) -> GateInputs:
        """Read all inputs in one request. PeerError."""
        request = _ASK.pack(_READ_CODE, self._registers.inputs, INPUT_REGISTERS)
        with self._connection.held(until_ns) as connection:
            reply = connection.exchange(request, 2 + 2 * INPUT_REGISTERS, until_ns)
        return gate.unpack_inputs(reply[2:], time.monotonic_ns())

    def write(self, output: GateOutput, encoder_at: int, until_ns: int) -> None:
        """Write the whole output in one request. PeerError."""
        values = gate.pack_output(output, encoder_at, next(self._heartbeat))
        request = _WRITE.pack(_WRITE_CODE, self._registers.output, OUTPUT_REGISTERS, len(values)) + values
        with self._connection.held(until_ns) as connection:
            reply = connection.exchange(request, _WRITTEN.size, until_ns)
        _, address, count = _WRITTEN.unpack(reply)
        if (address, count) != (self._registers.output, OUTPUT_REGISTERS):
            raise PeerError(self._peer, f"acknowledged {count} registers at {address}")

    def close(self) -> None:
        """Never raises."""
        self._connection.close()
