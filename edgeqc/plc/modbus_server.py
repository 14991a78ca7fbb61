"""A Modbus TCP server: one thread, bounded in everything, made for clients that are strangers.

The station serves its handshake with it and the server process what SCADA reads. What a client may cost: `connections`
sockets, one frame each of memory, and `_BURST` requests before the others have their turn. Who sends what is no
Modbus, breaks off, or takes no answers is disconnected; who is not on the list of peers is, before a byte is read.

Ours and not pymodbus': there a request costs 0.3 ms and some garbage, and frames, lengths and peers are not bounded.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from edgeqc.errors import PeerError
from edgeqc.settings.listener import Listener

MAX_READ: Final = 125
MAX_WRITE: Final = 123
MAX_WRITE_OF_BOTH: Final = 121
"""Registers a request (MODBUS Application Protocol 1.1b3: 6.3, 6.12, 6.17)."""


class Refusal(int):
    """An exception code, given in place of an answer."""


ILLEGAL_FUNCTION: Final = Refusal(1)
ILLEGAL_ADDRESS: Final = Refusal(2)
ILLEGAL_VALUE: Final = Refusal(3)
NO_SUCH_UNIT: Final = Refusal(11)


class Bank(Protocol):
    """The registers behind a server. Called by the server's thread only; never blocks, never raises."""

    def read(self, address: int, count: int) -> bytes | Refusal:
        """Give `count` registers from `address` on, as they are at one moment: 2 bytes each, high byte first."""

    def write(self, address: int, data: bytes) -> Refusal | None:
        """Take the registers from `address` on, all or none; None = taken."""

    def sent(self) -> None:
        """What was read since the last call of this or `unsent` is on its way to its client."""

    def unsent(self) -> None:
        """It never will be: the client was cut off first."""


class ModbusServer:
    """Listens from the start; `turn` does the work."""

    def __init__(
        self, listener: Listener, port: int, bank: Bank, *, unit: int, on_event: Callable[[str, str, str], None]
    ) -> None:
        """Listen. `on_event(name, peer, reason)` is told of clients that come, go and are refused, each time.

        PeerError where the port cannot be had.
        """
        self._listener, self._bank, self._on_event = listener, bank, on_event
        self._units = frozenset({unit, 0, 255})  # 0 and 255 mean "you yourself" (Modbus on TCP/IP 1.0b, 4.4.2)
        self._peers = [ipaddress.ip_network(peer) for peer in listener.peers]
        self._clients: dict[socket.socket, _Client] = {}
        self.requests = 0
        self.refused = 0
        """Connections that were not let in."""
        family = socket.AF_INET6 if ":" in listener.bind else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((listener.bind, port))
            self._socket.listen(_BACKLOG)
        except OSError as exc:
            self._socket.close()
            raise PeerError(f"{listener.bind}:{port}", f"cannot listen here: {exc.strerror or exc}") from exc
        self._socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._looked_s = time.monotonic()
        self._share_s, self._share = self._looked_s, 0
        """Since when requests are counted, and the count then."""

    @property
    def port(self) -> int:
        """The one that was asked for, or that the system chose for 0."""
        return int(self._socket.getsockname()[1])

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def turn(self, timeout_s: float) -> None:
        """Answer what is there; wait up to `timeout_s` for something to be.

        Clients that ask without end get their share of the thread and no more.
        """
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._socket:
                self._accept()
            elif key.fileobj is self._wake_out:
                with contextlib.suppress(BlockingIOError):
                    self._wake_out.recv(64)
            else:
                client = self._clients.get(cast("socket.socket", key.fileobj))
                if client is not None:
                    self._serve(client)
        now_s = time.monotonic()
        if now_s - self._looked_s > _LOOK_S:
            self._looked_s = now_s
            self._drop_idle(now_s)
        if now_s - self._share_s >= _SHARE_S:
            self._share_s, self._share = now_s, self.requests
        elif self.requests - self._share >= _REQUESTS_PER_SHARE:
            time.sleep(self._share_s + _SHARE_S - now_s)  # a flood leaves the station's other threads their time

    def wake(self) -> None:
        """End the `turn` that waits now. From any thread."""
        with contextlib.suppress(OSError):  # full is as good; closed needs none
            self._wake_in.send(b"\0")

    def close(self) -> None:
        """Let all go. By the thread that turns, or after it."""
        for client in list(self._clients.values()):
            self._drop(client, "the server stops")
        self._selector.close()
        for each in (self._socket, self._wake_in, self._wake_out):
            each.close()

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError:  # gone again, or out of descriptors: the next turn tries anew
                return
            host = str(address[0])
            reason = self._why_not(host)
            if reason:
                self.refused += 1
                _reset(connection)
                self._on_event("client_refused", host, reason)
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = _Client(socket=connection, host=host, heard_s=time.monotonic())
            self._clients[connection] = client
            self._selector.register(connection, selectors.EVENT_READ)
            self._on_event("client_came", host, "")

    def _why_not(self, host: str) -> str:
        address = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        if not any((mapped or address) in network for network in self._peers):
            return "is not among the peers"
        if len(self._clients) >= self._listener.connections:
            return f"all {self._listener.connections} connections are in use"
        return ""

    def _serve(self, client: _Client) -> None:
        try:
            data = client.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError as exc:
            self._drop(client, exc.strerror or str(exc))
            return
        if not data:
            self._drop(client, "left")
            return
        client.received += data
        try:
            answers = list(itertools.islice(self._answers(client), _BURST))
        except _NotModbusError as exc:
            self._drop(client, str(exc))
            return
        now_s = time.monotonic()
        if answers:
            client.heard_s, client.partial_s = now_s, 0.0
        if len(answers) == _BURST and client.received:
            self._drop(client, f"asked over {_BURST} times without waiting for an answer")
            return
        client.partial_s = (client.partial_s or now_s) if client.received else 0.0
        if answers:
            self._send(client, b"".join(answers))

    def _answers(self, client: _Client) -> Iterator[bytes]:
        """Answer each whole request that is there."""
        while len(client.received) >= _HEAD.size:
            transaction, protocol, length, unit = _HEAD.unpack_from(client.received)
            if protocol != 0 or not _SHORTEST <= length <= _LONGEST:
                raise _NotModbusError(f"sent what is no Modbus: {bytes(client.received[:16]).hex()}")
            end = _HEAD.size - 1 + length
            if len(client.received) < end:
                return
            pdu = bytes(client.received[_HEAD.size : end])
            del client.received[:end]
            answer = self._answer(unit, pdu)
            self.requests += 1
            yield _HEAD.pack(transaction, 0, len(answer) + 1, unit) + answer

    def _send(self, client: _Client, answers: bytes) -> None:
        """All or nothing: the kernel takes some hundred answers of a client that reads none, then it goes."""
        try:
            sent = client.socket.send(answers)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._drop(client, exc.strerror or str(exc))
            return
        if sent == len(answers):
            self._bank.sent()
        else:
            self._drop(client, "takes no answers")

    def _answer(self, unit: int, pdu: bytes) -> bytes:
        code = pdu[0]
        found: bytes | Refusal
        if unit not in self._units:
            found = NO_SUCH_UNIT
        else:
            match code:
                case 3 | 4:
                    found = self._read(pdu)
                case 6:
                    found = self._write_one(pdu)
                case 16:
                    found = self._write_many(pdu)
                case 23:
                    found = self._write_and_read(pdu)
                case _:
                    found = ILLEGAL_FUNCTION
        if isinstance(found, Refusal):
            return bytes((code & 0x7F | 0x80, found))
        return bytes((code,)) + found

    def _read(self, pdu: bytes) -> bytes | Refusal:
        if len(pdu) != 1 + _SPAN.size:
            return ILLEGAL_VALUE
        address, count = _SPAN.unpack_from(pdu, 1)
        return self._registers(address, count)

    def _registers(self, address: int, count: int) -> bytes | Refusal:
        if not 1 <= count <= MAX_READ:
            return ILLEGAL_VALUE
        if address + count > _ADDRESSES:
            return ILLEGAL_ADDRESS
        found = self._bank.read(address, count)
        return found if isinstance(found, Refusal) else bytes((len(found),)) + found

    def _write_one(self, pdu: bytes) -> bytes | Refusal:
        if len(pdu) != 1 + _SPAN.size:
            return ILLEGAL_VALUE
        (address, _) = _SPAN.unpack_from(pdu, 1)
        return self._bank.write(address, pdu[3:5]) or pdu[1:]

    def _write_many(self, pdu: bytes) -> bytes | Refusal:
        if len(pdu) < 1 + _SPAN.size + 1:
            return ILLEGAL_VALUE
        address, count = _SPAN.unpack_from(pdu, 1)
        data = pdu[6:]
        if not 1 <= count <= MAX_WRITE or pdu[5] != 2 * count or len(data) != 2 * count:
            return ILLEGAL_VALUE
        if address + count > _ADDRESSES:
            return ILLEGAL_ADDRESS
        return self._bank.write(address, data) or pdu[1:5]

    def _write_and_read(self, pdu: bytes) -> bytes | Refusal:
        """Write first, then read (6.17)."""
        if len(pdu) < 1 + 2 * _SPAN.size + 1:
            return ILLEGAL_VALUE
        read_at, read_count = _SPAN.unpack_from(pdu, 1)
        address, count = _SPAN.unpack_from(pdu, 5)
        data = pdu[10:]
        if not 1 <= count <= MAX_WRITE_OF_BOTH or pdu[9] != 2 * count or len(data) != 2 * count:
            return ILLEGAL_VALUE
        if not 1 <= read_count <= MAX_READ:
            return ILLEGAL_VALUE
        if address + count > _ADDRESSES or read_at + read_count > _ADDRESSES:
            return ILLEGAL_ADDRESS
        return self._bank.write(address, data) or self._registers(read_at, read_count)

    def _drop_idle(self, now_s: float) -> None:
        for client in list(self._clients.values()):
            if client.partial_s and now_s - client.partial_s > _PARTIAL_S:
                self._drop(client, f"half a request for {_PARTIAL_S:g} s")
            elif now_s - client.heard_s > self._listener.idle_s:
                self._drop(client, f"asked nothing for {self._listener.idle_s:g} s")

    def _drop(self, client: _Client, reason: str) -> None:
        if self._clients.pop(client.socket, None) is not None:
            self._bank.unsent()
            self._selector.unregister(client.socket)
            _reset(client.socket) if reason != "left" else client.socket.close()
            self._on_event("client_left", client.host, reason)


class _NotModbusError(Exception):
    """What came can't be a request."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Client:
    socket: socket.socket
    host: str
    heard_s: float
    """When it asked last, or came."""
    received: bytearray = field(default_factory=bytearray)
    partial_s: float = 0.0
    """Since when a request of it is incomplete; 0 = none is."""


_HEAD: Final = struct.Struct(">HHHB")  # transaction, protocol (0), length of what follows, unit
_SPAN: Final = struct.Struct(">HH")  # first register, how many
_ADDRESSES: Final = 65_536
_SHORTEST: Final = 2  # unit, function code
_LONGEST: Final = 254  # MODBUS Messaging on TCP/IP 1.0b, 3.1.3: an ADU has 260 bytes
_RECEIVE: Final = 4096
_BURST: Final = 64
"""Requests of one client in one turn; SCADA systems have up to 16 on the way. 4096 bytes hold 341 of the shortest."""
_SHARE_S: Final = 0.01
_REQUESTS_PER_SHARE: Final = 30
"""3000 requests a second: SCADA polls 1 to 1000 times. At 40 us each a flood takes an eighth of a core."""
_BACKLOG: Final = 32
_LOOK_S: Final = 0.25
_PARTIAL_S: Final = 2.0
"""A request takes milliseconds, even from a controller that sends it in pieces."""


def _reset(connection: socket.socket) -> None:
    """Close without lingering: nothing stays in the kernel for a client that floods."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
