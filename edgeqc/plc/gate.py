"""What a gate's link gives and takes, whoever connects to whom; its blocks, as Modbus has them.

| inputs (the PLC writes; one request) | |
|---|---|
| +0, +1 | encoder: pulses, 32 bit, high word first, wraps |
| +2     | confirmations: counts parts that the sensor behind the ejector saw; wraps at 65535 |
| +3     | bit 0: the line runs (tracking `delay`); bit 1: somebody has looked, take the gate's stop request back |

| output (edgeqc's, all 8 at once, anew at each poll) | |
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
from dataclasses import dataclass
from typing import Final, Protocol

from edgeqc.core.track import GateOutput
from edgeqc.records import NS_PER_MS
from edgeqc.settings.gate import DelayGate, EncoderGate

INPUT_REGISTERS: Final = 4
OUTPUT_REGISTERS: Final = 8
_INPUTS: Final = struct.Struct(">IHH")
_OUTPUT: Final = struct.Struct(">HIHIHH")
_RUNS, _LOOKED = 1, 2
_GAP_POLLS: Final = 20
_GAP_LEAST_NS: Final = 100 * NS_PER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class GateInputs:
    """What one read gave."""

    encoder: int
    confirmations: int
    running: bool
    looked: bool
    """Somebody has looked at the gate: its stop request may end."""
    read_ns: int
    """When it was so; two reads with the same time are of the same reading."""


class GateLink(Protocol):
    """One link to the gate's inputs and output, used once, apart from the station's: neither waits for the other.

    Used by one thread. Raises PeerError, PeerTimeoutError at `until_ns`.
    """

    def read(self, until_ns: int) -> GateInputs:
        """Give all inputs, of one moment."""

    def write(self, output: GateOutput, encoder_at: int, until_ns: int) -> None:
        """Return when the PLC has the whole output; `encoder_at`: the encoder's value for the part at the gate."""

    def close(self) -> None:
        """Never raises."""


def longest_gap_ns(settings: DelayGate | EncoderGate) -> int:
    """After so long without a reading nobody knows whether the line ran."""
    return max(_GAP_POLLS * int(settings.poll_ms * NS_PER_MS), _GAP_LEAST_NS)


def unpack_inputs(values: bytes, read_ns: int) -> GateInputs:
    """Take the input block apart."""
    encoder, confirmations, state = _INPUTS.unpack(values)
    return GateInputs(
        encoder=encoder,
        confirmations=confirmations,
        running=bool(state & _RUNS),
        looked=bool(state & _LOOKED),
        read_ns=read_ns,
    )


def pack_output(output: GateOutput, encoder_at: int, heartbeat: int) -> bytes:
    """Put the output block together; numbers wrap at their registers."""
    return _OUTPUT.pack(
        int(output.eject),
        output.sequence & 0xFFFF_FFFF,
        output.ejections & 0xFFFF,
        encoder_at & 0xFFFF_FFFF,
        heartbeat & 0xFFFF,
        0,
    )
