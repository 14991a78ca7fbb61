"""The gate's two Modbus blocks, on a connection of their own: tracking never waits for a verdict, nor a verdict for it.

| inputs (the PLC writes, we read all 4 at once) | |
|---|---|
| +0, +1 | encoder: pulses, 32 bit, high word first, wraps |
| +2     | confirmations: counts parts that the sensor behind the ejector saw; wraps at 65535 |
| +3     | bit 0: the line runs (tracking `delay`); bit 1: somebody has looked, take the gate's stop request back |

| output (we write all 8 at once, at each poll) | |
|---|---|
| +0     | bit 0 EJECT: the part at the gate goes out |
| +1, +2 | sequence of that part, or of the last one that was ejected |
| +3     | ejections: one more at each part that is to go out, also where two follow each other without a gap |
| +4, +5 | encoder value at which that part is at the gate; 0 with tracking `delay` |
| +6     | heartbeat: another value at each write; where it stands still the PLC takes EJECT for off |
| +7     | reserved, 0 |
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import Final

from edgeqc.core.track import GateOutput
from edgeqc.errors import PeerError
from edgeqc.plc.modbus import _Connection
from edgeqc.settings import ModbusPlcSettings
from edgeqc.settings.gate import GateRegisters

INPUT_REGISTERS: Final = 4
OUTPUT_REGISTERS: Final = 8
_READ_CODE: Final = 3
_WRITE_CODE: Final = 16
_ASK: Final = struct.Struct(">BHH")
_INPUTS: Final = struct.Struct(">IHH")
_WRITE: Final = struct.Struct(">BHHB")
_OUTPUT: Final = struct.Struct(">HIHIHH")
_WRITTEN: Final = struct.Struct(">BHH")
_RUNS, _LOOKED = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GateInputs:
    """What one read gave."""

    encoder: int
    confirmations: int
    running: bool
    looked: bool
    """Somebody has looked at the gate: its stop request may end."""
    read_ns: int


class ModbusGate:
    """One connection, used once. One thread."""

    def __init__(self, settings: ModbusPlcSettings, registers: GateRegisters, *, peer: str) -> None:
        """Connect; PeerError when it can't."""
        self._peer = peer
        self._registers = registers
        self._heartbeat = 0
        self._connection = _Connection(settings, peer)

    def read(self, until_ns: int) -> GateInputs:
        """Read all inputs in one request. PeerError."""
        request = _ASK.pack(_READ_CODE, self._registers.inputs, INPUT_REGISTERS)
        with self._connection.held(until_ns) as connection:
            reply = connection.exchange(request, 2 + _INPUTS.size, until_ns)
        encoder, confirmations, state = _INPUTS.unpack(reply[2:])
        return GateInputs(
            encoder=encoder,
            confirmations=confirmations,
            running=bool(state & _RUNS),
            looked=bool(state & _LOOKED),
            read_ns=time.monotonic_ns(),
        )

    def write(self, output: GateOutput, encoder_at: int, until_ns: int) -> None:
        """Write the whole output in one request; `encoder_at`: the encoder's value for the part at the gate. PeerError."""
        self._heartbeat = self._heartbeat % 0xFFFF + 1
        values = _OUTPUT.pack(
            int(output.eject),
            output.sequence & 0xFFFF_FFFF,
            output.ejections & 0xFFFF,
            encoder_at & 0xFFFF_FFFF,
            self._heartbeat,
            0,
        )
        request = _WRITE.pack(_WRITE_CODE, self._registers.output, OUTPUT_REGISTERS, len(values)) + values
        with self._connection.held(until_ns) as connection:
            reply = connection.exchange(request, _WRITTEN.size, until_ns)
        _, address, count = _WRITTEN.unpack(reply)
        if (address, count) != (self._registers.output, OUTPUT_REGISTERS):
            raise PeerError(self._peer, f"acknowledged {count} registers at {address}")

    def close(self) -> None:
        """Never raises."""
        self._connection.close()
