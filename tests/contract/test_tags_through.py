"""Tags over the connection that a station has to its PLC: reads only, and the handshake goes first."""

from __future__ import annotations

import asyncio
import itertools
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from test_tags_modbus import Feed, frame, until

from edgeqc.core.account import TriggerAccount
from edgeqc.core.backoff import Backoff
from edgeqc.errors import PeerError
from edgeqc.plc import plc_door
from edgeqc.plc.modbus import ModbusLink
from edgeqc.plc.registers import RESULT_REGISTERS, Status, pack_trigger, unpack_result
from edgeqc.plc.relay import CLIENTS, TagRelay, relay_path
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, Quality, Verdict
from edgeqc.settings import ModbusPlcSettings, ModbusTagSource
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper

UNIT = 3
TAGS_AT, TAGS = 1000, 600
"""The PLC's further registers: register r holds r."""
PATIENT_S = 10.0
"""For an answer where it is not the test's to be late: a starved box stands still for a second now and then."""
POLL_S = 0.002
PATIENCE_S = 30.0
QUICK_PAUSES = Backoff(first_s=0.05, most_s=0.05)


class Plc:
    """A PLC that answers Modbus: the two blocks of the handshake, and tags. A thread per connection, as PLCs have it."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []
        """Function code and first register of each request, of all connections, in the order in which they came."""
        self.results: list[tuple[int, str, bool]] = []
        """Sequence, part id and PASS of each result."""
        self.accepted = 0
        self.most_open = 0
        self.answers_tags = threading.Event()
        """While it is off, a request for tags keeps its connection waiting, and is answered when it is on again."""
        self.answers_tags.set()
        self.hangs_up_on_tags = False
        self.slots = 100
        """Connections that it takes; while all are in use it refuses further ones. Each is free again once its client has
        gone, and nothing that the client asked for is still under way."""
        self.port = 0
        self._counter, self._part_id = 0, ""
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._stopping = False
        self._open: dict[socket.socket, threading.Thread] = {}

    def start(self) -> None:
        self._stopping = False
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def stop(self) -> None:
        self.answers_tags.set()
        with self._freed:
            self._stopping = True
            self._freed.notify_all()
            with suppress(OSError):  # it may refuse already
                self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE_S)
        self._listener.close()
        with self._lock:
            left = list(self._open.items())
        for client, thread in left:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)

    def trigger(self) -> str:
        """The next part is there."""
        with self._lock:
            self._counter += 1
            self._part_id = f"P{self._counter:06d}"
            return self._part_id

    @property
    def tag_requests(self) -> int:
        return sum(code == 3 and address >= TAGS_AT for code, address in list(self.heard))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            with self._lock:
                self.accepted += 1
                self._open[client] = thread
                self.most_open = max(self.most_open, len(self._open))
            thread.start()
            with self._freed:
                if len(self._open) == self.slots:
                    self._listener.close()
                    self._freed.wait_for(lambda: len(self._open) < self.slots or self._stopping)
                    if self._stopping:
                        return
                    self._listener = socket.create_server(("127.0.0.1", self.port))

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, struct.error), client, client.makefile("rb") as stream:
            while head := stream.read(7):
                transaction, _, length, unit = struct.unpack(">HHHB", head)
                pdu = stream.read(length - 1)
                assert unit == UNIT
                answer = self._answer(pdu)
                if answer is None:
                    break
                client.sendall(frame(transaction, unit, answer))
        with self._freed:
            del self._open[client]
            self._freed.notify_all()

    def _answer(self, pdu: bytes) -> bytes | None:
        code, address, count = struct.unpack(">BHH", pdu[:5])
        with self._lock:
            self.heard.append((code, address))
            if code == 16 and address == 100:
                image = unpack_result(struct.unpack(f">{RESULT_REGISTERS}H", pdu[6:]))
                if Status.RESULT_VALID in image.status:
                    self.results.append((image.sequence, image.part_id, Status.PASS in image.status))
                return pdu[:5]
            trigger = pack_trigger(self._counter, self._part_id)
        if code == 3 and address == 0:
            return struct.pack(f">BB{count}H", 3, 2 * count, *trigger[:count])
        if self.hangs_up_on_tags:
            return None
        assert self.answers_tags.wait(PATIENCE_S)
        if address < TAGS_AT or address + count > TAGS_AT + TAGS:
            return bytes((code | 0x80, 2))
        return struct.pack(f">BB{count}H", 3, 2 * count, *range(address, address + count))


class Station:
    """What a station has of the PLC: keeper, poll and relay. Each part passes as soon as its trigger is seen."""

    def __init__(self, plc: Plc, state_dir: Path, *, within_ms: float = 1000 * PATIENT_S, polls: bool = True) -> None:
        settings = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=plc.port, device_id=UNIT)
        relay = TagRelay(relay_path(state_dir, "top"), unit=UNIT, within_ns=int(within_ms * NS_PER_MS))
        self._door = plc_door(settings, peer="plc top", state_dir=state_dir, relay=relay)
        self.lost: list[str] = []
        """Why each link ended."""
        self.faults: list[str] = []
        """Polls and verdicts that failed, parts that were missed."""
        self.keeper = PlcKeeper(
            self._door.open,
            peer="plc top",
            events=PlcEvents(
                link=lambda up, reason: None if up else self.lost.append(reason),
                program=lambda _alive: None,
                turn=lambda _sequence, _at_ns, _reason: None,
            ),
            manners=Manners(triggers=polls),
        )
        self._polls = polls
        self._stopping = False
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.keeper.start()
        self._thread.start()

    def close(self) -> None:
        self._stopping = True
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
            self.keeper.stop()
        self._door.close()

    def _run(self) -> None:
        account, sequence = TriggerAccount(fresh_ns=NS_PER_S), 0
        while self._polls and not self._stopping:
            time.sleep(POLL_S)
            if not self.keeper.up:
                continue
            try:
                reading = self.keeper.opening() or self.keeper.read_trigger(within())
                arrival = account.reading(reading.counter, reading.part_id, reading.read_ns)
                if arrival.missed:
                    self.faults.append(f"missed {arrival.missed}")
                if arrival.part:
                    sequence += 1
                    self.keeper.show(passed(sequence, reading.part_id), within())
            except PeerError as exc:
                self.faults.append(str(exc))


def passed(sequence: int, part_id: str) -> PlcResult:
    return PlcResult(
        sequence=sequence, part_id=part_id, verdict=Verdict.PASS, code=1, busy=False, ready=True, fault=False, score=0.1
    )


def within() -> int:
    return time.monotonic_ns() + int(PATIENT_S * NS_PER_S)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("plc.modbus.SILENCE_S", "plc.modbus.GAP_S", "plc.modbus.RENEW_S", "tags.modbus.LONGEST_REPLY_S"):
        monkeypatch.setattr(f"edgeqc.{bound}", PATIENT_S)


@pytest.fixture
def plc() -> Iterator[Plc]:
    made = Plc()
    made.start()
    yield made
    made.stop()


@contextmanager
def station(plc: Plc, state_dir: Path, **options: Any) -> Iterator[Station]:
    with closing(Station(plc, state_dir, **options)) as made:
        made.start()
        wait_for(lambda: made.keeper.up)
        yield made


def source(*registers: int, **changes: object) -> ModbusTagSource:
    return ModbusTagSource.model_validate(
        {
            "name": "press",
            "type": "modbus",
            "through": "top",
            "device_id": UNIT,
            "poll_ms": 20,
            "stale_ms": 60_000,
            "tags": [{"name": f"tag-{at}", "register": at, "type": "uint16"} for at in registers],
        }
        | changes
    )


async def parts(plc: Plc, count: int) -> None:
    """So many parts come to the station, each when the one before has its verdict."""
    for _ in range(count):
        part_id = plc.trigger()
        await until(lambda part_id=part_id: any(part_id == got for _, got, _ in plc.results), f"verdict of {part_id}")


def all_passed_once(plc: Plc, count: int) -> bool:
    return plc.results == [(number, f"P{number:06d}", True) for number in range(1, count + 1)]


def handshake_went_first(plc: Plc) -> bool:
    """Was the trigger block read before each request for tags, since the one before?"""
    reads = [address for code, address in plc.heard if code == 3]
    return all(min(pair) < TAGS_AT for pair in itertools.pairwise(reads))


async def test_tags_come_over_the_stations_own_connection_behind_its_polls(plc: Plc, tmp_path: Path):
    """Five requests of up to 125 registers for each poll of the tags, without a pause, beside the parts."""
    registers = range(TAGS_AT, TAGS_AT + TAGS, 5)
    with station(plc, tmp_path) as top:
        async with Feed(source(*registers, poll_ms=10), tmp_path) as sink:
            await until(lambda: len(sink.values) == len(registers), "values of all tags")
            before = plc.tag_requests
            await parts(plc, 40)
            await until(lambda: plc.tag_requests > before + 20, "requests for tags beside the parts")
            assert [value.value for value in sink.values.values()] == list(registers)
            assert {value.quality for value in sink.values.values()} == {Quality.GOOD}
            assert sink.reasons == []
        assert top.lost == []
        assert top.faults == []
    assert all_passed_once(plc, 40)
    assert handshake_went_first(plc)
    assert (plc.accepted, plc.most_open) == (2, 2)  # triggers and results, as without tags


async def test_a_plc_that_is_slow_for_tags_alone_delays_no_verdict(
    plc: Plc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It does not answer any request for tags before twenty parts have their verdicts: whoever waits for it, hangs."""
    monkeypatch.setattr("edgeqc.plc.relay._PAUSES", QUICK_PAUSES)
    with structlog.testing.capture_logs() as logs, station(plc, tmp_path, within_ms=200) as top:
        async with Feed(source(TAGS_AT), tmp_path) as sink:
            await until(lambda: len(sink.values) == 1, "values")
            plc.answers_tags.clear()
            before = plc.tag_requests
            await until(lambda: plc.tag_requests > before + 2, "requests that are not answered")
            await until(lambda: bool(sink.reasons), "loss of the tags")
            assert "station top is away, or too slow for tags" in sink.reasons[-1]
            await parts(plc, 20)
            plc.answers_tags.set()
            await until(lambda: len(sink.values) == 1, "values again, by themselves")
            await parts(plc, 5)
        assert top.lost == []
        assert top.faults == []
    assert all_passed_once(plc, 25)
    assert handshake_went_first(plc)
    assert [log["reason"] for log in logs if log["event"] == "tags_held_back"] == ["no reply in time"]


async def test_a_plc_that_hangs_up_on_tags_keeps_its_handshake(
    plc: Plc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgeqc.plc.relay._PAUSES", QUICK_PAUSES)
    with station(plc, tmp_path) as top:
        plc.hangs_up_on_tags = True
        async with Feed(source(TAGS_AT), tmp_path) as sink:
            await until(lambda: plc.tag_requests > 2 and bool(sink.reasons), "refused tags")
            await parts(plc, 10)
        assert top.lost == []
        assert top.faults == []
    assert all_passed_once(plc, 10)
    assert plc.most_open <= 3  # the old one may be closing while its successor is opened


async def test_tags_and_verdicts_come_back_with_the_plc(plc: Plc, tmp_path: Path):
    with station(plc, tmp_path) as top:
        async with Feed(source(TAGS_AT, TAGS_AT + 1), tmp_path) as sink:
            await until(lambda: len(sink.values) == 2, "values")
            await parts(plc, 3)
            await asyncio.to_thread(plc.stop)
            await until(lambda: bool(sink.reasons) and not top.keeper.up, "loss")
            plc.most_open = 0
            plc.start()
            await until(lambda: len(sink.values) == 2, "values again")
            await parts(plc, 3)
            assert plc.most_open == 2
        assert len(top.lost) >= 1
    assert len(plc.results) == 6


async def test_a_register_that_the_plc_does_not_have_spoils_its_own_tag_only(plc: Plc, tmp_path: Path):
    beyond = TAGS_AT + TAGS
    with station(plc, tmp_path):
        async with Feed(source(beyond - 1, beyond), tmp_path) as sink:
            await until(
                lambda: [value.quality for value in sink.values.values()] == [Quality.GOOD, Quality.BAD], "both tags"
            )
            assert sink.reasons == []
    assert plc.accepted == 2


async def test_a_station_that_does_not_run_is_a_lost_source_until_it_does(plc: Plc, tmp_path: Path):
    async with Feed(source(TAGS_AT), tmp_path) as sink:
        await until(lambda: bool(sink.reasons), "loss")
        assert "station top relays nothing: No such file or directory" in sink.reasons[0]
        with station(plc, tmp_path):
            await until(lambda: len(sink.values) == 1, "values")
            lost = len(sink.reasons)
        await until(lambda: len(sink.reasons) > lost, "loss with the station's end")


def ask(client: socket.socket, raw: bytes) -> bytes:
    """The PDU that answers this; empty where it is hung up on."""
    client.settimeout(PATIENCE_S)
    client.sendall(raw)
    return client.recv(260)[7:]


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


WRITE = struct.pack(">BHHB4H", 16, TAGS_AT, 4, 8, 1, 2, 3, 4)
REFUSED: dict[str, tuple[int, bytes, bytes]] = {
    "a write": (UNIT, WRITE, b"\x90\x01"),
    "a write of one register": (UNIT, struct.pack(">BHH", 6, TAGS_AT, 1), b"\x86\x01"),
    "a read and write": (UNIT, struct.pack(">B4HBH", 23, TAGS_AT, 1, TAGS_AT, 1, 2, 7), b"\x97\x01"),
    "input registers": (UNIT, struct.pack(">BHH", 4, TAGS_AT, 1), b"\x84\x01"),
    "another unit": (UNIT + 1, struct.pack(">BHH", 3, TAGS_AT, 1), b"\x83\x0a"),
    "no register": (UNIT, struct.pack(">BHH", 3, TAGS_AT, 0), b"\x83\x03"),
    "too many registers": (UNIT, struct.pack(">BHH", 3, TAGS_AT, 126), b"\x83\x03"),
    "registers beyond the last": (UNIT, struct.pack(">BHH", 3, 65_535, 2), b"\x83\x02"),
    "a read that is too short": (UNIT, b"\x03\x03\xe8\x00", b"\x83\x03"),
    "a read that is too long": (UNIT, struct.pack(">BHHH", 3, TAGS_AT, 1, 1), b"\x83\x03"),
}


def test_whatever_is_no_read_of_the_plcs_registers_is_refused(plc: Plc, tmp_path: Path):
    with station(plc, tmp_path) as top, connected(relay_path(tmp_path, "top")) as client:
        for what, (unit, pdu, answer) in REFUSED.items():
            assert ask(client, frame(7, unit, pdu)) == answer, what
        read = frame(8, UNIT, struct.pack(">BHH", 3, TAGS_AT, 2))
        assert ask(client, read) == struct.pack(">BBHH", 3, 4, TAGS_AT, TAGS_AT + 1)  # it is heard on
        assert top.faults == []
    assert {address for code, address in plc.heard if code != 3} == {100}  # edgeqc's own results
    assert plc.tag_requests == 1


HUNG_UP_ON = {
    "no Modbus": b"\xde\xad\xbe\xef" * 4,
    "another protocol": struct.pack(">HHHBBHH", 1, 5, 6, UNIT, 3, TAGS_AT, 1),
    "huge length": struct.pack(">HHHBB", 1, 0, 65_000, UNIT, 3),
    "two requests at once": 2 * frame(1, UNIT, struct.pack(">BHH", 3, TAGS_AT, 1)),
}


@pytest.mark.parametrize("what", sorted(HUNG_UP_ON))
def test_a_client_that_is_out_of_step_is_hung_up_on(what: str, plc: Plc, tmp_path: Path):
    with station(plc, tmp_path), connected(relay_path(tmp_path, "top")) as client:
        assert ask(client, HUNG_UP_ON[what]) == b""
        assert plc.tag_requests == 0


def test_without_a_link_nothing_is_asked_and_the_reply_says_so(plc: Plc, tmp_path: Path):
    path = relay_path(tmp_path, "top")
    with closing(Station(plc, tmp_path)), connected(path) as client:  # not started
        assert ask(client, frame(1, UNIT, struct.pack(">BHH", 3, TAGS_AT, 1))) == b"\x83\x0b"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert plc.accepted == 0
    assert not path.exists()


def test_a_plc_that_did_not_answer_in_time_is_left_alone_for_a_while(
    plc: Plc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgeqc.plc.relay._PAUSES", Backoff(first_s=PATIENCE_S, most_s=PATIENCE_S))
    plc.hangs_up_on_tags = True
    with station(plc, tmp_path) as top, connected(relay_path(tmp_path, "top")) as client:
        for _ in range(3):
            assert ask(client, frame(1, UNIT, struct.pack(">BHH", 3, TAGS_AT, 1))) == b"\x83\x0b"
        assert top.lost == []
    assert plc.tag_requests == 1


async def test_a_plc_without_a_spare_connection_that_is_slow_for_a_tag_loses_its_link_once(
    plc: Plc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The slow request holds one of its two connections, so it takes none in its place: not again with the next link."""
    monkeypatch.setattr("edgeqc.plc.relay._PAUSES", Backoff(first_s=PATIENCE_S, most_s=PATIENCE_S))
    plc.slots = 2
    read = frame(1, UNIT, struct.pack(">BHH", 3, TAGS_AT, 1))
    with structlog.testing.capture_logs() as logs, station(plc, tmp_path, within_ms=50) as top:
        await parts(plc, 5)
        with connected(relay_path(tmp_path, "top")) as client:
            plc.answers_tags.clear()
            assert await asyncio.to_thread(ask, client, read) == b"\x83\x0b"
            await until(lambda: bool(top.lost), "loss of the link")
            plc.answers_tags.set()  # late; only now the connection is free again
            await until(lambda: top.keeper.up, "another link")
            plc.answers_tags.clear()
            for _ in range(5):
                assert await asyncio.to_thread(ask, client, read) == b"\x83\x0b"
                await parts(plc, 5)
        assert len(top.lost) == 1
    assert plc.tag_requests == 1
    assert plc.most_open == 2
    assert all_passed_once(plc, 30)
    assert [log["reason"] for log in logs if log["event"] == "tags_held_back"] == ["no reply in time"]


def test_nothing_is_asked_before_the_plc_has_the_safe_state(plc: Plc, tmp_path: Path):
    settings = ModbusPlcSettings(type="modbus", host="127.0.0.1", port=plc.port, device_id=UNIT)
    read = struct.pack(">BHH", 3, TAGS_AT, 1)
    with closing(ModbusLink(settings, peer="plc")) as link:
        with pytest.raises(PeerError, match="no handshake yet"):
            link.relay(read, NS_PER_S)
        assert plc.heard == []
        link.write_result(replace(passed(0, ""), verdict=None), within())
        assert link.relay(read, int(PATIENT_S * NS_PER_S)) == struct.pack(">BBH", 3, 2, TAGS_AT)


async def test_a_station_that_does_not_poll_relays_at_once(plc: Plc, tmp_path: Path):
    """The camera brings the parts, and the PLC says nothing: there is nobody to go first."""
    with station(plc, tmp_path, polls=False):
        async with Feed(source(TAGS_AT), tmp_path) as sink:
            await until(lambda: len(sink.values) == 1, "values")
    assert {address for code, address in plc.heard if code == 3} == {TAGS_AT}


def test_one_client_too_many_is_turned_away(plc: Plc, tmp_path: Path):
    path = relay_path(tmp_path, "top")
    read = frame(1, UNIT, struct.pack(">BHH", 3, TAGS_AT, 1))
    with closing(Station(plc, tmp_path)):
        clients = [connected(path) for _ in range(CLIENTS)]
        assert {ask(client, read) for client in clients} == {b"\x83\x0b"}
        with connected(path) as late:
            late.settimeout(PATIENCE_S)
            assert late.recv(1) == b""
        for client in clients:
            client.close()


def test_a_socket_that_cannot_be_had_costs_the_tags_alone(plc: Plc, tmp_path: Path):
    deep = tmp_path / ("d" * 100)
    with structlog.testing.capture_logs() as logs, station(plc, deep):
        pass
    assert [log["event"] for log in logs] == ["tags_not_relayed"]


def test_a_socket_that_a_killed_station_left_is_taken_over(plc: Plc, tmp_path: Path):
    path = relay_path(tmp_path, "top")
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with closing(Station(plc, tmp_path)), connected(path) as client:
        assert ask(client, frame(1, UNIT, struct.pack(">BHH", 3, TAGS_AT, 1))) == b"\x83\x0b"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)  # polls the condition
