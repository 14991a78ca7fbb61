"""A Modbus peer that answers wrongly: each wrong answer is refused in time, and the next good one is right."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import open_link
from edgeqc.plc.registers import pack_trigger
from edgeqc.ports import PlcLink
from edgeqc.records import PlcResult, Verdict
from edgeqc.settings import HandshakeSettings, ModbusPlcSettings

BOUND_MS = 300
SLACK_S = 2.0
"""For a shared, noisy machine; without a bound a call would hang for ever."""
RESULT = PlcResult(
    sequence=7, part_id="P000007", verdict=Verdict.REJECT, code=10, busy=False, ready=True, fault=False, score=0.5
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    transaction: int
    unit: int
    pdu: bytes


Answer = Callable[[socket.socket, Request], None]


def frame(transaction: int, unit: int, pdu: bytes, protocol: int = 0) -> bytes:
    return struct.pack(">HHHB", transaction, protocol, len(pdu) + 1, unit) + pdu


def right(request: Request) -> bytes:
    """PDU of the true answer: trigger block with counter 42, or the acknowledgement of the write."""
    if request.pdu[0] == 3:
        return struct.pack(">BB9H", 3, 18, *pack_trigger(42, "P000042")[:9])
    return request.pdu[:5]


def good(sock: socket.socket, request: Request) -> None:
    sock.sendall(frame(request.transaction, request.unit, right(request)))


class Peer:
    """Answers the first request as the test says, all others well."""

    def __init__(self) -> None:
        self.answer: Answer = good
        self.heard: list[bytes] = []
        """PDU of each request."""
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._start(self._accept)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(sock)
                self._start(lambda sock=sock: self._serve(sock))  # type: ignore[misc]

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError, EOFError):
            while True:
                transaction, _, length, unit = struct.unpack(">HHHB", read(sock, 7))
                request = Request(transaction=transaction, unit=unit, pdu=read(sock, length - 1))
                self.heard.append(request.pdu)
                answer, self.answer = self.answer, good
                answer(sock, request)


def read(sock: socket.socket, size: int) -> bytes:
    some = b""
    while len(some) < size:
        more = sock.recv(size - len(some))
        if not more:
            raise EOFError
        some += more
    return some


@pytest.fixture
def peer() -> Iterator[Peer]:
    with closing(Peer()) as made:
        yield made


def link_to(peer: Peer) -> closing[PlcLink]:
    settings = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=peer.port, device_id=5)
    return closing(open_link(settings, peer="press", state_dir=Path("unused")))


def within(ms: float = BOUND_MS) -> int:
    return time.monotonic_ns() + int(ms * 1e6)


def ask(link: PlcLink, kind: str, until_ns: int) -> None:
    """One right answer, or the error that the link raised."""
    if kind == "read":
        seen = link.read_trigger(until_ns)
        assert (seen.counter, seen.part_id) == (42, "P000042")
    else:
        link.write_result(RESULT, until_ns)


def later(delay_s: float, answer: Answer) -> Answer:
    def wait(sock: socket.socket, request: Request) -> None:
        time.sleep(delay_s)  # the delay is what the case is about
        answer(sock, request)

    return wait


def sends(make: Callable[[Request], bytes]) -> Answer:
    return lambda sock, request: sock.sendall(make(request))


def with_pdu(make: Callable[[bytes], bytes]) -> Answer:
    return sends(lambda request: frame(request.transaction, request.unit, make(right(request))))


def with_transaction(make: Callable[[int], int]) -> Answer:
    return sends(lambda request: frame(make(request.transaction) & 0xFFFF, request.unit, right(request)))


def in_pieces(sock: socket.socket, request: Request) -> None:
    whole = frame(request.transaction, request.unit, right(request))
    for piece in (whole[:5], whole[5:8], whole[8:]):
        sock.sendall(piece)
        time.sleep(0.03)  # so that each piece arrives alone


def hangs_up(sock: socket.socket, _request: Request) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def twice(sock: socket.socket, request: Request) -> None:
    sock.sendall(frame(request.transaction, request.unit, right(request)) * 2)


WELL_FORMED: dict[str, tuple[Answer, str]] = {
    "wrong unit": (sends(lambda r: frame(r.transaction, 77, right(r))), "unit 77, asked 5"),
    "wrong function code": (with_pdu(lambda pdu: bytes([4]) + pdu[1:]), "function code 4"),
    "one register or byte too few": (with_pdu(lambda pdu: pdu[:1] + bytes([pdu[1] - 2 & 0xFF]) + pdu[2:-2]), "bytes"),
    "one register too many": (with_pdu(lambda pdu: pdu[:1] + bytes([pdu[1] + 2 & 0xFF]) + pdu[2:] + b"\0\0"), "bytes"),
    "exception busy": (with_pdu(lambda pdu: bytes([pdu[0] | 0x80, 6])), "exception 6 DEVICE_BUSY"),
    "exception unknown": (with_pdu(lambda pdu: bytes([pdu[0] | 0x80, 99])), "exception 99 unknown"),
    "exception of another function": (with_pdu(lambda _: bytes([0x81, 2])), "function code 129"),
    "bare function code": (with_pdu(lambda pdu: pdu[:1] + b"\0"), "bytes"),
}
"""Answers that leave the connection in step: the same link goes on."""
READ_ONLY: dict[str, tuple[Answer, str]] = {
    "byte count lies high": (with_pdu(lambda pdu: pdu[:1] + bytes([250]) + pdu[2:]), "byte count 250"),
    "byte count lies low": (with_pdu(lambda pdu: pdu[:1] + bytes([16]) + pdu[2:]), "byte count 16"),
}
WRITE_ONLY: dict[str, tuple[Answer, str]] = {
    "other address": (with_pdu(lambda pdu: pdu[:1] + b"\0\x65" + pdu[3:]), "16 registers at 101"),
    "other count": (with_pdu(lambda pdu: pdu[:3] + b"\0\x0f"), "15 registers at 100"),
}
ENDING: dict[str, tuple[Answer, str]] = {
    "transaction id 0": (with_transaction(lambda _: 0), "transaction 0, never asked"),
    "transaction id to come": (with_transaction(lambda t: t + 5), "never asked"),
    "garbage": (sends(lambda _: b"\xde\xad\xbe\xef" * 8), "not Modbus"),
    "other protocol": (sends(lambda r: frame(r.transaction, r.unit, right(r), protocol=1)), "not Modbus"),
    "huge length": (sends(lambda r: struct.pack(">HHHB", r.transaction, 0, 65_000, r.unit)), "not Modbus"),
    "no length": (sends(lambda r: struct.pack(">HHHBB", r.transaction, 0, 1, r.unit, 3)), "not Modbus"),
    "hangs up": (hangs_up, "closed the connection"),
    "truncated": (sends(lambda r: frame(r.transaction, r.unit, right(r))[:9]), "broke off"),
}
"""Answers after which the stream cannot be trusted: the link says so until another one is opened."""


def cases(*tables: tuple[str, dict[str, tuple[Answer, str]]]) -> list[object]:
    return [
        pytest.param(kind, answer, says, id=f"{kind}: {name}")
        for kind, table in tables
        for name, (answer, says) in table.items()
    ]


@pytest.mark.parametrize(
    ("kind", "answer", "says"),
    cases(("read", WELL_FORMED), ("write", WELL_FORMED), ("read", READ_ONLY), ("write", WRITE_ONLY)),
)
def test_wrong_answer_is_refused_and_the_link_goes_on(kind: str, answer: Answer, says: str, peer: Peer) -> None:
    with link_to(peer) as link:
        peer.answer = answer
        with pytest.raises(PeerError, match=says) as refused:
            ask(link, kind, within(5000))
        assert not isinstance(refused.value, PeerTimeoutError)
        ask(link, kind, within(5000))
    assert len(peer.heard) == 2


@pytest.mark.parametrize(("kind", "answer", "says"), cases(("read", ENDING), ("write", ENDING)))
def test_answer_out_of_step_ends_the_link(kind: str, answer: Answer, says: str, peer: Peer) -> None:
    with link_to(peer) as link:
        peer.answer = answer
        until = within()
        with pytest.raises(PeerError, match=says):
            ask(link, kind, until)
        assert time.monotonic_ns() - until < SLACK_S * 1e9
        with pytest.raises(PeerError, match=f"connection given up: .*{says}"):
            ask(link, kind, within())
        ask(link, "write" if kind == "read" else "read", within(5000))  # the other connection is not concerned
    with link_to(peer) as another:
        ask(another, kind, within(5000))


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("answer", [in_pieces, twice, later(0.1, good)], ids=["in pieces", "twice", "slow"])
def test_odd_but_right_answer_is_taken(kind: str, answer: Answer, peer: Peer) -> None:
    with link_to(peer) as link:
        peer.answer = answer
        ask(link, kind, within(5000))
        ask(link, kind, within(5000))


@pytest.mark.parametrize("kind", ["read", "write"])
def test_late_answer_is_never_taken_for_the_next_one(kind: str, peer: Peer) -> None:
    with link_to(peer) as link:
        old = with_pdu(lambda pdu: pdu[:2] + b"\x0b\xad" + pdu[4:] if pdu[0] == 3 else pdu)
        peer.answer = later(0.4, old)
        until = within(100)
        with pytest.raises(PeerTimeoutError, match="no reply in time"):
            ask(link, kind, until)
        assert 0 <= time.monotonic_ns() - until < SLACK_S * 1e9
        ask(link, kind, within(5000))


def test_nothing_is_sent_while_a_reply_is_due_so_a_hung_peer_has_one_stale_write_at_most(peer: Peer) -> None:
    with link_to(peer) as link:
        peer.answer = later(0.5, good)
        for _ in range(4):
            with pytest.raises(PeerTimeoutError):
                link.write_result(RESULT, within(50))
        link.write_result(RESULT, within(5000))
    assert len(peer.heard) == 2


def test_peer_that_stays_silent_ends_the_link_after_a_second(peer: Peer) -> None:
    with link_to(peer) as link:
        peer.answer = lambda _sock, _request: None
        for ms, says in ((100, "no reply in time"), (1100, "no reply for 1 s")):
            with pytest.raises(PeerTimeoutError, match=says):
                ask(link, "read", within(ms))
        with pytest.raises(PeerError, match="connection given up: no reply for 1 s"):
            ask(link, "read", within(100))


def test_link_to_a_peer_that_never_accepts_more_is_bounded() -> None:
    with socket.socket() as full:  # a backlog of 0 takes one connection; the link's second one must not hang for ever
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            began = time.monotonic()
            settings = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=full.getsockname()[1])
            with pytest.raises(PeerTimeoutError, match="does not answer"):
                open_link(settings, peer="press", state_dir=Path("unused"))
            assert time.monotonic() - began < 4 + SLACK_S


def test_a_block_that_reads_back_otherwise_is_an_error_that_names_the_register(peer: Peer) -> None:
    settings = ModbusPlcSettings(
        type="modbus", host="127.0.0.1", port=peer.port, device_id=5, handshake=HandshakeSettings(read_back=True)
    )

    def held(request: Request) -> bytes:
        if request.pdu[0] == 16:
            return request.pdu[:5]
        written = bytearray(next(pdu for pdu in reversed(peer.heard) if pdu[0] == 16)[6:])
        written[7] ^= 1  # the PLC program writes the result code, too
        return bytes([3, len(written)]) + bytes(written)

    def answer(sock: socket.socket, request: Request) -> None:
        peer.answer = answer
        sock.sendall(frame(request.transaction, request.unit, held(request)))

    peer.answer = answer
    with (
        closing(open_link(settings, peer="press", state_dir=Path("unused"))) as link,
        pytest.raises(PeerError, match="register 103 reads back as 11, 10 was written"),
    ):
        link.write_result(RESULT, within(5000))
