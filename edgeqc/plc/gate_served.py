"""The gate's two blocks where the PLC comes to us: it writes the inputs here and fetches the output.

An output counts as written when the PLC has fetched it, in one read from EJECT to the heartbeat at least, answered.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from edgeqc.core.track import OFF, GateOutput
from edgeqc.errors import PeerTimeoutError
from edgeqc.plc import gate
from edgeqc.plc.gate import INPUT_REGISTERS, OUTPUT_REGISTERS, GateInputs
from edgeqc.plc.modbus_server import ILLEGAL_ADDRESS, ILLEGAL_VALUE, Refusal
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.settings.gate import DelayGate, EncoderGate

_OPEN_NS: Final = 500 * NS_PER_MS
"""How long a link is waited for that finds no inputs."""
_WHOLE: Final = 7
"""Registers from EJECT to the heartbeat."""


class GateBlocks:
    """The registers: the server's thread on one side (a `Bank`), the gate's on the other."""

    def __init__(self, settings: DelayGate | EncoderGate, *, peer: str) -> None:
        """No inputs yet, the output off."""
        self._peer = peer
        self._at = settings.registers
        self._silence_ns = gate.longest_gap_ns(settings)
        self._changed = threading.Condition()
        self._inputs = bytes(2 * INPUT_REGISTERS)
        self._written_ns = 0
        """When inputs came last; 0: never."""
        self._heartbeat = time.monotonic_ns() // NS_PER_MS
        self._shown = OFF
        self._image = bytes(2 * OUTPUT_REGISTERS)
        self._serial = 0
        """Counts outputs that are shown."""
        self._read = 0
        """The serial that was read last; its answer may still be on its way to the socket."""
        self._fetched = 0
        """The serial whose answer has gone out."""

    # the server's thread

    def read(self, address: int, count: int) -> bytes | Refusal:
        """See Bank."""
        first = address - self._at.output
        if first < 0 or first + count > OUTPUT_REGISTERS:
            first = address - self._at.inputs
            if first < 0 or first + count > INPUT_REGISTERS:
                return ILLEGAL_ADDRESS
            return self._inputs[2 * first : 2 * (first + count)]
        with self._changed:
            if first == 0 and count >= _WHOLE:
                self._read = self._serial
            return self._image[2 * first : 2 * (first + count)]

    def write(self, address: int, data: bytes) -> Refusal | None:
        """See Bank: the inputs and nothing else, all of them: one time holds for all."""
        first = address - self._at.inputs
        if first < 0 or first + len(data) // 2 > INPUT_REGISTERS:
            return ILLEGAL_ADDRESS
        if len(data) != 2 * INPUT_REGISTERS:
            return ILLEGAL_VALUE
        with self._changed:
            self._inputs = data
            self._written_ns = time.monotonic_ns()
            self._changed.notify_all()
        return None

    def sent(self) -> None:
        """See Bank."""
        with self._changed:
            self._fetched = self._read
            self._changed.notify_all()

    def unsent(self) -> None:
        """See Bank: it counts as not read."""
        with self._changed:
            self._read = self._fetched

    # the gate's thread

    def open(self) -> ServedGate:
        """Wait for a PLC that writes the inputs. PeerError where none does."""
        self.inputs(time.monotonic_ns() + _OPEN_NS)
        return ServedGate(self)

    def inputs(self, until_ns: int) -> GateInputs:
        """Give what the PLC wrote last, with the time at which it came; what is too old is waited for anew."""
        with self._changed:
            if not self._changed.wait_for(self._fresh, _left_s(until_ns)):
                at = f"{self._at.inputs} to {self._at.inputs + INPUT_REGISTERS - 1}"
                reason = f"the PLC has not written the gate's inputs ({at}) for {self._silence_ns / NS_PER_MS:.0f} ms"
                raise PeerTimeoutError(self._peer, reason)
            return gate.unpack_inputs(self._inputs, self._written_ns)

    def show(self, output: GateOutput, encoder_at: int, until_ns: int) -> None:
        """Put the output before the PLC and return when it has been fetched."""
        with self._changed:
            serial = self._put(output, encoder_at)
            if not self._changed.wait_for(lambda: self._fetched >= serial, _left_s(until_ns)):
                raise PeerTimeoutError(
                    self._peer, f"the PLC did not fetch the gate's output ({self._at.output}) in time"
                )

    def hide(self) -> None:
        """EJECT off: nobody looks after it now."""
        with self._changed:
            if self._shown.eject:
                self._put(
                    GateOutput(
                        eject=False,
                        sequence=self._shown.sequence,
                        part_id="",
                        position=0,
                        ejections=self._shown.ejections,
                    ),
                    0,
                )

    def _put(self, output: GateOutput, encoder_at: int) -> int:
        self._heartbeat += 1
        self._shown, self._image = output, gate.pack_output(output, encoder_at, self._heartbeat)
        self._serial += 1
        return self._serial

    def _fresh(self) -> bool:
        return self._written_ns > 0 and time.monotonic_ns() - self._written_ns < self._silence_ns


class ServedGate:
    """A `GateLink`."""

    def __init__(self, blocks: GateBlocks) -> None:
        """Not for callers: see `GateBlocks.open`."""
        self._blocks = blocks

    def read(self, until_ns: int) -> GateInputs:
        """Give what the PLC wrote last, at once; PeerTimeoutError where that is too old."""
        return self._blocks.inputs(until_ns)

    def write(self, output: GateOutput, encoder_at: int, until_ns: int) -> None:
        """Return when the PLC has fetched the output. PeerTimeoutError."""
        self._blocks.show(output, encoder_at, until_ns)

    def close(self) -> None:
        """EJECT goes off."""
        self._blocks.hide()


def _left_s(until_ns: int) -> float:
    return max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S)
