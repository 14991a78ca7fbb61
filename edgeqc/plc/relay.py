"""Lets the process that reads the tags use the connection that a station has to its PLC: reads only, behind the handshake.

A Unix socket in the state directory that speaks Modbus TCP. A thread of its own takes one request after the other, so
nobody of the station ever waits for whoever is at the other end.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Final

import structlog

from edgeqc.core.backoff import Backoff
from edgeqc.core.reads import MAX_REGISTERS
from edgeqc.errors import PeerError
from edgeqc.plc.modbus import ModbusLink, SpoiltError
from edgeqc.ports import PlcLink
from edgeqc.records import NS_PER_S

CLIENTS: Final = 8
"""At a time: tag sources through one station. One more is turned away."""
NO_ANSWER: Final = 11
"""Exception: there is no link, or the PLC did not answer in time."""
_ILLEGAL_FUNCTION, _ILLEGAL_ADDRESS, _ILLEGAL_VALUE, _NO_PATH = 1, 2, 3, 10
_PAUSES: Final = Backoff(first_s=1.0, most_s=60.0)
"""Each request that the PLC answers too late costs the handshake one late poll, or its link where the PLC takes no other
connection. They hold over links: else such a PLC would lose each soon after it was opened."""
_FORGOTTEN_NS: Final = 300 * NS_PER_S
"""A PLC that answered in time for so long is patient again."""
_REST_S: Final = 0.001
"""Behind each answer: whatever a client does, this thread of the station stays idle for most of the time."""
_STOP_S: Final = 2.0
_MBAP: Final = struct.Struct(">HHHB")  # transaction, protocol (0), length of what follows, unit
_READ: Final = struct.Struct(">BHH")  # function code 3: first register, how many
_READ_CODE: Final = 3
_LENGTH_MIN, _LENGTH_MAX = 3, 254
_ADU_BYTES: Final = 260
_EXCEPTION: Final = 0x80


def relay_path(state_dir: Path, station: str) -> Path:
    """The socket of a station's relay."""
    return state_dir / "relay" / f"{station}.sock"


class TagRelay:
    """Answers requests with what the PLC says over the link of the moment."""

    def __init__(self, path: Path, *, unit: int, within_ns: int) -> None:
        """Listen. `unit`: the PLC's; `within_ns`: for each answer of the PLC.

        Where the socket cannot be had it is said loudly, and there are no tags through this station.
        """
        self._link: ModbusLink | None = None
        self._path, self._unit, self._within_ns = path, unit, within_ns
        self._log = structlog.get_logger().bind(relay=str(path))
        self._failures = 0
        self._failed_ns = 0
        self._held_until_ns = 0
        self._closing = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._thread = threading.Thread(target=self._run, name="tag-relay", daemon=True)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # of a station that was killed
            self._listener.bind(str(path))
            path.chmod(0o600)  # before anybody can connect
            self._listener.listen(CLIENTS)
        except OSError as exc:
            self._listener.close()
            self._log.error("tags_not_relayed", reason=exc.strerror or str(exc))
            return
        self._thread.start()

    def use(self, link: PlcLink) -> None:
        """Ask over this link from now on. One that does not speak Modbus as a client is a defect."""
        if not isinstance(link, ModbusLink):
            raise TypeError(f"tags cannot be read over {type(link).__name__}")
        self._link = link

    def close(self) -> None:
        """Hang up and stop listening; a second or so."""
        self._closing = True
        if self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while not self._closing:
                for descriptor, _ in poll.poll():
                    if descriptor != self._listener.fileno():
                        if not self._heard(*self._clients[descriptor]):
                            poll.unregister(descriptor)
                            self._clients.pop(descriptor)[0].close()
                        time.sleep(_REST_S)
                    elif not self._closing:
                        self._accept(poll)
        except Exception as exc:  # noqa: BLE001 - the thread's root: the tags are lost, the station goes on
            self._log.critical("tag_relay_failed", reason=f"{type(exc).__name__}: {exc}")
        finally:
            self._listener.close()
            for client, _ in self._clients.values():
                client.close()
            self._path.unlink(missing_ok=True)

    def _accept(self, poll: select.poll) -> None:
        client, _ = self._listener.accept()
        if len(self._clients) >= CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client, bytearray()
        poll.register(client, select.POLLIN)

    def _heard(self, client: socket.socket, received: bytearray) -> bool:
        """Take what came, and answer once a request is whole; False where the client is to go.

        That is one that hangs up, does not speak Modbus, asks before it was answered, or does not take its answer.
        """
        try:
            some = client.recv(_ADU_BYTES)
            received += some
            if len(received) < _MBAP.size:
                return bool(some)
            transaction, protocol, length, unit = _MBAP.unpack_from(received)
            end = _MBAP.size - 1 + length
            if not some or protocol != 0 or not _LENGTH_MIN <= length <= _LENGTH_MAX or len(received) > end:
                return False
            if len(received) == end:
                pdu = self._answer(unit, bytes(received[_MBAP.size :]))
                received.clear()
                reply = _MBAP.pack(transaction, 0, len(pdu) + 1, unit) + pdu
                return client.send(reply) == len(reply)
        except OSError:
            return False
        return True

    def _answer(self, unit: int, request: bytes) -> bytes:
        """The PDU that answers a request, most of which never reach the PLC."""
        reason = self._refusal(unit, request)
        if not reason and (link := self._link) is not None and time.monotonic_ns() >= self._held_until_ns:
            try:
                return link.relay(request, self._within_ns)
            except SpoiltError as exc:
                self._hold_back(exc.reason)
            except PeerError:
                pass  # the station's keeper says who is gone, and why
        return bytes((request[0] | _EXCEPTION, reason or NO_ANSWER))

    def _refusal(self, unit: int, request: bytes) -> int:
        """With which exception a request is refused; 0: it may pass."""
        if request[0] != _READ_CODE:
            return _ILLEGAL_FUNCTION
        if unit != self._unit:
            return _NO_PATH
        if len(request) != _READ.size:
            return _ILLEGAL_VALUE
        _, address, count = _READ.unpack(request)
        if not 1 <= count <= MAX_REGISTERS:
            return _ILLEGAL_VALUE
        return _ILLEGAL_ADDRESS if address + count > 1 << 16 else 0

    def _hold_back(self, reason: str) -> None:
        """Leave the PLC alone for a while, longer each time; told once."""
        now_ns = time.monotonic_ns()
        self._failures = self._failures + 1 if now_ns - self._failed_ns < _FORGOTTEN_NS else 1
        self._failed_ns = now_ns
        pause_s = _PAUSES.delay_s(self._failures, random.random())  # noqa: S311 - jitter, not a secret
        self._held_until_ns = now_ns + int(pause_s * NS_PER_S)
        if self._failures == 1:
            self._log.warning("tags_held_back", reason=reason, within_ms=self._within_ns / 1e6)
