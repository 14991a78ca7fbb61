"""The PLC link over Modbus TCP: blocking sockets of our own, two function codes, every reply checked to the byte.

The result write is on the decision path, right behind the engine, which leaves the caches cold: there pymodbus' PDU
classes cost more than the checks. And pymodbus's own clients accept transaction id 0, another function code and a wrong number of registers, wait out the whole
timeout when the peer hangs up, and repeat writes; a result must not rest on that.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
import time
from typing import Final, Self

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import registers
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, PlcTrigger
from edgeqc.settings import ModbusPlcSettings

CONNECT_S: Final = 2.0
"""For each of the two connections; a PLC on the same switch answers in milliseconds."""
RENEW_S: Final = 0.2
"""For a fresh connection in place of one that a relayed request has spoilt: the next poll waits for it."""
GAP_S: Final = 0.5
"""A relayed request waits so long for its turn. The station polls every few ms, but not while cameras keep it waiting."""
SILENCE_S: Final = 1.0
"""A peer that owes a reply for longer is not slow but gone, or keeps silent to a unit that it does not have."""
_CLOSE_S: Final = 0.5
_LOOK_NS: Final = 400_000
"""Longer than a simulated PLC on loopback takes. Sleeping for its answer and being woken costs 57 us at the median and
110 us at p99 (600 writes at 25/s beside an evicted cache, two cores); a PLC that takes a scan is slept for as ever."""
_MBAP: Final = struct.Struct(">HHHB")  # transaction, protocol (0), length of what follows, unit
_READ: Final = struct.Struct(">BHH")  # function code 3: first register, how many
_WRITE: Final = struct.Struct(">BHHB")  # function code 16: first register, how many, bytes of the values that follow
_WRITTEN: Final = struct.Struct(">BHH")
_READ_CODE: Final = 3
_WRITE_CODE: Final = 16
_LENGTH_MIN: Final = 3  # unit, function code, one byte
_LENGTH_MAX: Final = 254  # MODBUS Messaging on TCP/IP 1.0b, 3.1.3: an ADU has 260 bytes
_EXCEPTION: Final = 0x80
_KEEPALIVE_S: Final = 5  # a cable pulled between two parts is noticed even if nobody writes


class ModbusLink:
    """A `PlcLink`. Two connections, so that a trigger poll never waits for a result and neither for the other's reply.

    Never more than one request is under way on each: after a timeout the next call first waits, within its own bound,
    for the late reply and drops it. So a PLC that hung executes at most one stale write when it goes on.
    What ends a connection: a reply that breaks off or was never asked for, a frame that is not Modbus, a closed socket,
    `SILENCE_S` without the reply that is due. Each call after that says so; open another link.
    Requests of others (`relay`) go over the trigger connection, between two polls; never over that of the results.
    """

    def __init__(self, settings: ModbusPlcSettings, *, peer: str, alone: int = 0) -> None:
        """Connect, within twice `CONNECT_S`. Raises PeerError. `alone`: see `_Connection`."""
        self._peer = peer
        self._unit = settings.device_id
        self._at = settings.registers
        self._read_back = settings.handshake.read_back
        count = registers.HANDSHAKE_REGISTERS if settings.handshake.hears_plc else registers.TRIGGER_REGISTERS
        if settings.registers.recipe:
            count = registers.RECIPE_REGISTERS
        self._ask_trigger = _READ.pack(_READ_CODE, self._at.trigger, count)
        self._trigger_bytes = 2 + 2 * count
        self._reply = bytes(self._trigger_bytes)
        self._seen = registers.unpack_trigger(self._reply[2:])
        self._ask_result = _READ.pack(_READ_CODE, self._at.result, registers.RESULT_REGISTERS)
        self._write_head = _WRITE.pack(
            _WRITE_CODE, self._at.result, registers.RESULT_REGISTERS, 2 * registers.RESULT_REGISTERS
        )
        self._written = _WRITTEN.pack(_WRITE_CODE, self._at.result, registers.RESULT_REGISTERS)
        # another start at each connection: the first write after a reconnect moves it too
        self._heartbeat = itertools.count(time.monotonic_ns() // 1_000_000)
        self._begun = False
        """From the PLC's first acknowledgement, which is of the safe state, to `close`."""
        self._polled = False
        self._just_polled = threading.Event()
        self._triggers = _Connection(settings, peer)
        try:
            self._results = _Connection(settings, peer, alone=alone)
        except PeerError:
            self._triggers.close()
            raise

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        """Read the whole trigger block in one request."""
        with self._triggers.held(until_ns) as connection:
            reply = connection.exchange(self._ask_trigger, self._trigger_bytes, until_ns)
            read_ns = time.monotonic_ns()
        self._polled = True
        self._just_polled.set()
        if reply != self._reply:  # most polls find what the last one found
            self._reply, self._seen = reply, registers.unpack_trigger(reply[2:])
        seen = self._seen
        return PlcTrigger(
            counter=seen.counter,
            part_id=seen.part_id,
            read_ns=read_ns,
            ack=seen.ack,
            heartbeat=seen.heartbeat,
            recipe=seen.recipe,
        )

    def write_result(self, result: PlcResult, until_ns: int) -> None:
        """Write all 16 registers with one function code 16; never repeated by us."""
        with self._results.held(until_ns) as connection:
            values = registers.pack_result(result, next(self._heartbeat))
            reply = connection.exchange(self._write_head + values, _WRITTEN.size, until_ns)
            found = connection.exchange(self._ask_result, 2 + len(values), until_ns) if self._read_back else b""
        if self._read_back and found[2:] != values:
            raise PeerError(self._peer, _difference(values, found[2:], self._at.result))
        if reply != self._written:
            _, address, count = _WRITTEN.unpack(reply)
            raise PeerError(
                self._peer,
                f"acknowledged {count} registers at {address}, not {registers.RESULT_REGISTERS} at {self._at.result}",
            )
        self._begun = True

    def relay(self, request: bytes, within_ns: int) -> bytes:
        """Ask for somebody else: a PDU with function code 3 in, the PDU that answers it out, a refusal, too.

        The handshake goes first: it is sent right behind a poll of the trigger block, one for each, or at once where
        nobody polls. The reply has `within_ns`. One that stays out or is none costs its connection, and a fresh one is
        opened in its place, so that the next poll does not wait for what is still to come: SpoiltError. Where the PLC
        takes none, the link has ended with it. PeerError where nothing was asked.
        """
        until_ns = time.monotonic_ns() + int(GAP_S * NS_PER_S)
        self._just_polled.clear()
        if not self._begun:
            raise PeerError(self._peer, "there is no handshake yet, or no longer")
        if self._polled and not self._just_polled.wait(GAP_S):
            raise PeerTimeoutError(self._peer, "the handshake leaves no gap")
        with self._triggers.held(until_ns) as connection:
            return connection.relay(request, time.monotonic_ns() + within_ns)

    def close(self) -> None:
        """Wake whoever waits, then free both sockets."""
        self._begun = False
        self._just_polled.set()
        self._triggers.close()
        self._results.close()


class SpoiltError(PeerError):
    """A relayed request was not answered as it must; the connection that it was on is replaced, or given up."""


class _Connection:
    """One socket and the requests on it, one at a time."""

    def __init__(self, settings: ModbusPlcSettings, peer: str, *, alone: int = 0) -> None:
        """Connect. The thread `alone` has a core to itself: it looks for an answer for a while before it sleeps for it."""
        self._peer = peer
        self._alone = alone
        self._lock = threading.Lock()
        self._transaction = 0
        self._received = bytearray()
        self._asked_ns = 0
        """When the request under way was sent; 0 = none is."""
        self._dead = ""
        """Why nothing can be asked any more."""
        self._closing = False
        self._unit = settings.device_id
        self._where = (settings.host, settings.port)
        self._connect(CONNECT_S)

    def _connect(self, timeout_s: float) -> None:
        host, port = self._where
        try:
            self._socket = socket.create_connection(self._where, timeout=timeout_s)
        except TimeoutError as exc:
            raise PeerTimeoutError(self._peer, f"{host}:{port} does not answer") from exc
        except OSError as exc:
            raise PeerError(self._peer, f"{host}:{port}: {exc.strerror or exc}") from exc
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_S)
        # send, poll, recv: a socket with a timeout would take twice as many system calls
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def held(self, until_ns: int) -> Self:
        """Have the connection to oneself for the length of a `with`, or PeerTimeoutError at `until_ns`."""
        if not self._lock.acquire(timeout=max(0.0, _left_ms(until_ns) / 1000)):
            raise PeerTimeoutError(self._peer, "another request holds the connection")
        return self

    def __enter__(self) -> Self:
        """Hold it already, by `held`."""
        return self

    def __exit__(self, *_raised: object) -> None:
        """Let the next one have it."""
        self._lock.release()

    def exchange(self, request: bytes, reply_bytes: int, until_ns: int) -> bytes:
        """Send a PDU once and return the one that answers it, `reply_bytes` long. Hold the lock."""
        return self._checked(request, reply_bytes, *self._answer(request, until_ns))

    def relay(self, request: bytes, until_ns: int) -> bytes:
        """As `ModbusLink.relay`. Hold the lock."""
        if self._dead:
            raise PeerError(self._peer, f"connection given up: {self._dead}")
        if self._asked_ns:
            raise PeerTimeoutError(self._peer, "the PLC owes the handshake a reply")
        _, _, count = _READ.unpack(request)
        try:
            unit, pdu = self._answer(request, until_ns)
            if unit == self._unit and len(pdu) == 2 and pdu[0] == _READ_CODE | _EXCEPTION:  # noqa: PLR2004 - code and reason
                return pdu
            return self._checked(request, 2 + 2 * count, unit, pdu)
        except PeerError as exc:
            with contextlib.suppress(PeerError):  # whoever polls next finds out that there is none
                self._renew(exc.reason)
            raise SpoiltError(self._peer, exc.reason) from exc

    def _renew(self, reason: str) -> None:
        """A fresh connection in place of this one, which stays given up where the PLC takes none. PeerError."""
        error = self._give_up(reason)
        if self._closing:
            raise error
        self._connect(RENEW_S)
        self._received.clear()
        self._asked_ns = 0
        self._dead = ""

    def _answer(self, request: bytes, until_ns: int) -> tuple[int, bytes]:
        """Send a PDU once; unit and PDU that answer it. Hold the lock."""
        if self._dead:
            raise PeerError(self._peer, f"connection given up: {self._dead}")
        if self._asked_ns:
            self._reply(until_ns)  # late: nobody waits for it any more
        self._transaction = self._transaction % 0xFFFF + 1  # never 0: that is what careless peers answer with
        wanted = _MBAP.pack(self._transaction, 0, len(request) + 1, self._unit) + request
        if _left_ms(until_ns) <= 0:
            raise PeerTimeoutError(self._peer, "no time left")
        self._asked_ns = time.monotonic_ns()
        try:
            sent = self._socket.send(wanted)
        except OSError as exc:
            raise self._give_up(exc.strerror or str(exc)) from exc
        if sent != len(wanted):  # nothing else is under way, so the buffer was empty: this is no socket to wait for
            raise self._give_up("the socket takes no more")
        return self._reply(until_ns)

    def close(self) -> None:
        """Wake a call that is under way, wait for it to notice, close."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        held = self._lock.acquire(timeout=_CLOSE_S)
        self._dead = self._dead or "closed"
        self._socket.close()
        if held:
            self._lock.release()

    def _checked(self, request: bytes, reply_bytes: int, unit: int, pdu: bytes) -> bytes:
        """Refuse a well-formed frame that is not the answer to this request; the connection stays in step."""
        if unit != self._unit:
            raise PeerError(self._peer, f"reply from unit {unit}, asked {self._unit}")
        if pdu[0] == request[0] | _EXCEPTION and len(pdu) == 2:  # noqa: PLR2004 - code and reason
            raise PeerError(self._peer, f"exception {pdu[1]} {_exception_name(pdu[1])}")
        if pdu[0] != request[0]:
            raise PeerError(self._peer, f"reply with function code {pdu[0]}, asked {request[0]}")
        if len(pdu) != reply_bytes:
            raise PeerError(self._peer, f"reply of {len(pdu)} bytes, {reply_bytes} expected")
        if pdu[0] == _READ_CODE and pdu[1] != reply_bytes - 2:
            raise PeerError(self._peer, f"byte count {pdu[1]} in a reply with {reply_bytes - 2}")
        return pdu

    def _reply(self, until_ns: int) -> tuple[int, bytes]:
        """Unit and PDU that answer the request under way."""
        while True:
            try:
                transaction, unit, pdu = self._next_frame(until_ns)
            except PeerTimeoutError as exc:
                if time.monotonic_ns() - self._asked_ns > SILENCE_S * NS_PER_S:
                    raise self._give_up(f"no reply for {SILENCE_S:g} s", PeerTimeoutError) from exc
                raise
            age = self._transaction - transaction & 0xFFFF
            if age == 0:
                self._asked_ns = 0
                return unit, pdu
            if transaction == 0 or age >= 1 << 15:  # an older one was answered twice: skip it
                raise self._give_up(f"reply to transaction {transaction}, never asked")

    def _next_frame(self, until_ns: int) -> tuple[int, int, bytes]:
        """Transaction, unit and PDU of the next frame in the stream."""
        self._fill(_MBAP.size, until_ns)
        transaction, protocol, length, unit = _MBAP.unpack_from(self._received)
        if protocol != 0 or not _LENGTH_MIN <= length <= _LENGTH_MAX:
            raise self._give_up(f"not Modbus: {self._received[:16].hex()}")
        end = _MBAP.size - 1 + length
        if len(self._received) < end:
            self._fill(end, until_ns)
        pdu = bytes(self._received[_MBAP.size : end])
        del self._received[:end]
        return transaction, unit, pdu

    def _fill(self, size: int, until_ns: int) -> None:
        """Receive until `size` bytes are there."""
        while len(self._received) < size:
            if not self._looked(until_ns) and not self._poll.poll(max(0.0, _left_ms(until_ns))):
                if self._received:
                    raise self._give_up("a reply broke off", PeerTimeoutError)
                raise PeerTimeoutError(self._peer, "no reply in time")
            try:
                some = self._socket.recv(4096)
            except OSError as exc:
                raise self._give_up(exc.strerror or str(exc)) from exc
            if not some:
                raise self._give_up("the peer closed the connection")
            self._received += some

    def _looked(self, until_ns: int) -> bool:
        """Is there something to receive? Where the core is the thread's own, it looks on for a while."""
        if threading.get_ident() != self._alone:
            return False
        until_ns = min(until_ns, self._asked_ns + _LOOK_NS)
        while time.monotonic_ns() < until_ns:
            if self._poll.poll(0):
                return True
        return False

    def _give_up(self, reason: str, error: type[PeerError] = PeerError) -> PeerError:
        """The stream is out of step or gone."""
        self._dead = self._dead or reason
        self._socket.close()
        return error(self._peer, reason)


def _difference(wanted: bytes, found: bytes, first: int) -> str:
    """Name the first register that does not read as it was written."""
    place = next(place for place in range(0, len(wanted), 2) if wanted[place : place + 2] != found[place : place + 2])
    return (
        f"register {first + place // 2} reads back as {int.from_bytes(found[place : place + 2])}, "
        f"{int.from_bytes(wanted[place : place + 2])} was written: does the PLC program write there too?"
    )


def _left_ms(until_ns: int) -> float:
    return (until_ns - time.monotonic_ns()) / NS_PER_MS


def _exception_name(code: int) -> str:
    return _EXCEPTIONS.get(code, "unknown")


_EXCEPTIONS: Final = {
    1: "ILLEGAL_FUNCTION",
    2: "ILLEGAL_ADDRESS",
    3: "ILLEGAL_VALUE",
    4: "DEVICE_FAILURE",
    5: "ACKNOWLEDGE",
    6: "DEVICE_BUSY",
    8: "MEMORY_PARITY_ERROR",
    10: "GATEWAY_PATH_UNAVAILABLE",
    11: "GATEWAY_NO_RESPONSE",
}
"""MODBUS Application Protocol 1.1b3, 7."""
