"""The PLC link the other way round: the PLC is the Modbus client, it writes the trigger block here and polls the result.

A result counts as delivered when the PLC has fetched it: one read that covers the result block from its sequence to its
part id, answered. One that was not fetched by its deadline is taken out of the block in the same moment as the caller is
told so; hence nobody can fetch a PASS too late, and there is no write that could be executed later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from edgeqc.core.refusals import Refusals
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import registers
from edgeqc.plc.gate_served import GateBlocks, ServedGate
from edgeqc.plc.modbus_server import ILLEGAL_ADDRESS, ModbusServer, Refusal
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, PlcTrigger
from edgeqc.settings import ModbusServerPlcSettings
from edgeqc.settings.gate import DelayGate, EncoderGate

OPEN_S: Final = 2.0
"""How long `open` waits for the PLC to ask for something."""


class HandshakeServer:
    """Listens from the first `open` on, whether a link is in use or not, so that the PLC finds somebody at any time."""

    def __init__(
        self, settings: ModbusServerPlcSettings, *, peer: str, gate: DelayGate | EncoderGate | None = None
    ) -> None:
        """Nothing is opened yet. With `gate`, its two blocks are served, too."""
        self._settings, self._peer = settings, peer
        self._gate = None if gate is None else GateBlocks(gate, peer=peer)
        self._blocks = _Blocks(settings, peer, self._gate)
        self._server: ModbusServer | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._starting = threading.Lock()
        self._refusals = Refusals()
        self._log = structlog.get_logger().bind(peer=peer)

    @property
    def port(self) -> int:
        """Where it listens; 0 = it does not yet."""
        return self._server.port if self._server is not None else 0

    def open(self, wait_s: float = OPEN_S) -> ServedLink:
        """Wait for a PLC that asks for registers. PeerError where none does, or the port cannot be had."""
        self._listen()
        if not self._blocks.wait_for_plc(time.monotonic_ns() + int(wait_s * NS_PER_S)):
            where = f"{self._settings.bind}:{self.port}"
            raise PeerError(self._peer, f"no PLC asks for registers at {where}; is it set up to poll this box?")
        return ServedLink(self._blocks)

    def open_gate(self) -> ServedGate:
        """Wait for a PLC that writes the gate's inputs. PeerError where none does, or the port cannot be had."""
        if self._gate is None:
            raise ValueError("no gate is served here")
        self._listen()
        return self._gate.open()

    def open_alone(self) -> ServedLink:
        """Give the only link there will be: with it the server closes."""
        try:
            self.open(_ALONE_S)
        except PeerError:
            self.close()
            raise
        return ServedLink(self._blocks, on_close=self.close)

    def close(self) -> None:
        """Stop listening. Links are dead after this."""
        self._stopping = True
        if self._server is not None:
            self._server.wake()
        if self._thread is not None:
            self._thread.join()

    def _listen(self) -> None:
        with self._starting:  # the station's thread and the gate's
            if self._server is not None:
                return
            self._server = ModbusServer(
                self._settings,
                self._settings.port,
                self._blocks,
                unit=self._settings.device_id,
                on_event=self._tell,
            )
            self._thread = threading.Thread(target=self._run, args=(self._server,), name="plc-server", daemon=True)
            self._thread.start()

    def _tell(self, name: str, host: str, reason: str) -> None:
        untold = self._refusals.take((host, reason), time.monotonic_ns()) if name == "client_refused" else 0
        if untold is not None:
            self._log.info(name, client=host, reason=reason, **({"untold": untold} if untold else {}))

    def _run(self, server: ModbusServer) -> None:
        while not self._stopping:
            server.turn(_TURN_S)
        server.close()


class ServedLink:
    """A `PlcLink`. It ends when the PLC has asked for nothing for `silence_ms`, or did not fetch a result in time."""

    def __init__(self, blocks: _Blocks, *, on_close: Callable[[], None] | None = None) -> None:
        """Not for callers: see `HandshakeServer.open`. `on_close` is called once, after `close`."""
        self._blocks, self._on_close = blocks, on_close

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        """Give what the PLC wrote last, at once; `read_ns` is when a new counter came, not when it was looked at."""
        del until_ns  # nothing is waited for
        return self._blocks.trigger()

    def write_result(self, result: PlcResult, until_ns: int) -> None:
        """Put the result before the PLC; with a verdict, return when the PLC has fetched it.

        PeerTimeoutError at `until_ns`: the verdict was taken back, it never was visible and never will be.
        """
        self._blocks.show(result, until_ns)

    def close(self) -> None:
        """Take back what the PLC is shown."""
        self._blocks.hide()
        if self._on_close is not None:
            self._on_close()


class _Blocks:
    """Trigger and result block: the server's thread on one side, the station's threads on the other."""

    def __init__(self, settings: ModbusServerPlcSettings, peer: str, gate: GateBlocks | None) -> None:
        self._peer, self._gate = peer, gate
        self._silence_ns = int(settings.silence_ms * NS_PER_MS)
        self._trigger_at, self._result_at = settings.registers.trigger, settings.registers.result
        self._changed = threading.Condition()
        self._trigger = bytearray(2 * registers.RECIPE_REGISTERS)
        self._triggered_ns = 0
        """When the counter that is in the block came."""
        self._written = False
        """Has the PLC written its counter since we listen?"""
        self._told_counter: int | None = None
        self._asked_ns = 0
        """When the PLC asked last for anything."""
        self._result = PlcResult(
            sequence=0, part_id="", verdict=None, code=0, busy=False, ready=False, fault=False, score=0.0
        )
        self._heartbeat = time.monotonic_ns() // NS_PER_MS
        self._image = bytes(2 * registers.RESULT_REGISTERS)
        self._serial = 0
        """Counts results that are shown."""
        self._read = 0
        """The serial that was read last; its answer may still be on its way to the socket."""
        self._fetched = 0
        """The serial whose answer has gone out."""

    # the server's thread

    def read(self, address: int, count: int) -> bytes | Refusal:
        """See Bank."""
        end = address + count
        with self._changed:
            self._asked_ns = time.monotonic_ns()
            if self._result_at <= address and end <= self._result_at + registers.RESULT_REGISTERS:
                first = address - self._result_at
                if first == 0 and count >= _WHOLE:
                    self._read = self._serial
                self._changed.notify_all()
                return self._image[2 * first : 2 * (first + count)]
            if self._trigger_at <= address and end <= self._trigger_at + registers.RECIPE_REGISTERS:
                first = address - self._trigger_at
                return bytes(self._trigger[2 * first : 2 * (first + count)])
        return ILLEGAL_ADDRESS if self._gate is None else self._gate.read(address, count)

    def write(self, address: int, data: bytes) -> Refusal | None:
        """See Bank: the trigger block, and the gate's inputs where there are any."""
        first = address - self._trigger_at
        if first < 0 or first + len(data) // 2 > registers.RECIPE_REGISTERS:
            refused = ILLEGAL_ADDRESS if self._gate is None else self._gate.write(address, data)
            if refused is None:
                with self._changed:
                    self._asked_ns = time.monotonic_ns()
                    self._changed.notify_all()
            return refused
        with self._changed:
            self._asked_ns = time.monotonic_ns()
            before = bytes(self._trigger[:2])
            self._trigger[2 * first : 2 * first + len(data)] = data
            self._written = self._written or first == 0
            if bytes(self._trigger[:2]) != before:
                self._triggered_ns = self._asked_ns
            self._changed.notify_all()
        return None

    def sent(self) -> None:
        """See Bank."""
        with self._changed:
            self._fetched = self._read
            self._changed.notify_all()
        if self._gate is not None:
            self._gate.sent()

    def unsent(self) -> None:
        """See Bank: it counts as not read."""
        with self._changed:
            self._read = self._fetched
            self._changed.notify_all()
        if self._gate is not None:
            self._gate.unsent()

    # the station's threads

    def wait_for_plc(self, until_ns: int) -> bool:
        """Is there a PLC that asks, or will there be one by then?"""
        with self._changed:
            return self._changed.wait_for(self._alive, max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))

    def trigger(self) -> PlcTrigger:
        with self._changed:
            self._check()
            seen = registers.unpack_trigger(bytes(self._trigger))
            new = seen.counter != self._told_counter
            self._told_counter = seen.counter
            exact = new and self._triggered_ns > 0
            return PlcTrigger(
                counter=seen.counter,
                part_id=seen.part_id,
                read_ns=self._triggered_ns if exact else time.monotonic_ns(),
                exact=exact,
                ack=seen.ack,
                heartbeat=seen.heartbeat,
                recipe=seen.recipe,
                written=self._written,
            )

    def show(self, result: PlcResult, until_ns: int) -> None:
        with self._changed:
            self._check()
            known = _same_result(result, self._result)
            self._put(result)
            if result.verdict is None or (known and self._fetched == self._serial):
                return
            if not known:
                self._serial += 1
            serial = self._serial
            if self._wait_fetched(serial, until_ns):
                return
            if self._serial == serial:
                self._take_back()
        raise PeerTimeoutError(self._peer, "the PLC did not fetch the result in time; it was taken back")

    def hide(self) -> None:
        with self._changed:
            self._take_back()

    def _wait_fetched(self, serial: int, until_ns: int) -> bool:
        """Did the PLC get this one? Hold the lock, which is given up meanwhile."""
        left_s = (until_ns - time.monotonic_ns()) / NS_PER_S
        self._changed.wait_for(lambda: self._fetched >= serial or self._serial != serial, max(0.0, left_s))
        if self._fetched < serial <= self._read:
            # It is being answered at this very moment: what the PLC may have must not be taken back as never seen.
            self._changed.wait_for(lambda: not self._fetched < serial <= self._read, _ANSWER_S)
        return self._fetched >= serial

    def _take_back(self) -> None:
        """PASS, REJECT and RESULT_VALID off. Hold the lock."""
        shown = self._result
        self._put(
            PlcResult(
                sequence=shown.sequence,
                part_id=shown.part_id,
                verdict=None,
                code=0,
                busy=False,
                ready=False,
                fault=shown.fault,
                score=0.0,
                trigger_ack=shown.trigger_ack,
            )
        )
        self._serial += 1
        self._changed.notify_all()

    def _put(self, result: PlcResult) -> None:
        self._heartbeat += 1
        self._result = result
        self._image = registers.pack_result(result, self._heartbeat)

    def _alive(self) -> bool:
        return self._asked_ns > 0 and time.monotonic_ns() - self._asked_ns < self._silence_ns

    def _check(self) -> None:
        if not self._alive():
            silent_ms = (time.monotonic_ns() - self._asked_ns) / NS_PER_MS
            raise PeerError(self._peer, f"the PLC has asked for nothing for {silent_ms:.0f} ms")


_ALONE_S: Final = 4.0
_TURN_S: Final = 1.0
_ANSWER_S: Final = 1.0
"""The server's thread does not wait between reading a block and sending it, but a busy box may let it."""
_WHOLE: Final = 14
"""Registers from the sequence to the end of the part id."""


def _same_result(result: PlcResult, shown: PlcResult) -> bool:
    """Does the block hold this very result already?"""
    return (result.sequence, result.part_id, result.verdict, result.code) == (
        shown.sequence,
        shown.part_id,
        shown.verdict,
        shown.code,
    )
