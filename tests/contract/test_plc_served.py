"""The PLC comes to us: its handshake with the station's own Modbus server, by pymodbus and by mbpoll (libmodbus)."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymodbus.client import ModbusTcpClient

from edgeqc.core.track import GateOutput
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import modbus_served, open_link
from edgeqc.plc.modbus_served import HandshakeServer, ServedLink
from edgeqc.plc.registers import Status, pack_trigger, unpack_result
from edgeqc.records import NS_PER_MS, PlcResult, Verdict
from edgeqc.settings import ModbusServerPlcSettings, StationSettings
from edgeqc.settings.gate import EncoderGate
from edgeqc.station import rules
from edgeqc.station.plckeeper import Manners, PlcEvents, PlcKeeper

TRIGGER, RESULT = 0, 100
INPUTS, OUTPUT = 120, 140
_A_WHILE_S = 0.3
"""For what would happen at once if it did."""


def settings(**changes: Any) -> ModbusServerPlcSettings:
    return ModbusServerPlcSettings.model_validate(
        {"type": "modbus-server", "bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0, "silence_ms": 500} | changes
    )


@pytest.fixture
def server() -> Iterator[HandshakeServer]:
    one = HandshakeServer(settings(), peer="press")
    yield one
    one.close()


def within(ms: float = 500) -> int:
    return time.monotonic_ns() + int(ms * NS_PER_MS)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def result(sequence: int, verdict: Verdict | None = Verdict.PASS, part_id: str = "P1") -> PlcResult:
    return PlcResult(
        sequence=sequence,
        part_id=part_id,
        verdict=verdict,
        code=0 if verdict is None else 1,
        busy=False,
        ready=True,
        fault=False,
        score=0.25,
    )


class Plc:
    """A PLC's program: it polls the result block all the time, and raises triggers when told to."""

    def __init__(self, port: int, *, every_s: float = 0.002) -> None:
        self.client = ModbusTcpClient("127.0.0.1", port=port, timeout=2)
        assert self.client.connect()
        self._every_s = every_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.seen: list[tuple[int, Status]] = []
        """Changes of (sequence, status) as the PLC sees them."""
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def trigger(self, counter: int, part_id: str, **more: int) -> None:
        with self._lock:
            assert not self.client.write_registers(TRIGGER, pack_trigger(counter, part_id, **more)).isError()

    def saw(self, sequence: int, status: Status) -> bool:
        """Is this what it sees now? Its answer has gone out, it may still be on its way."""
        end = time.monotonic() + 2
        while (not self.seen or self.seen[-1] != (sequence, status)) and time.monotonic() < end:
            time.sleep(0.001)
        return self.seen[-1] == (sequence, status)

    def freeze(self) -> None:
        self._lock.acquire()

    def thaw(self) -> None:
        self._lock.release()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.client.close()

    def _poll(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                reply = self.client.read_holding_registers(RESULT, count=16)
            assert not reply.isError(), reply
            image = unpack_result(reply.registers)
            if not self.seen or self.seen[-1] != (image.sequence, image.status):
                self.seen.append((image.sequence, image.status))
            self._stop.wait(self._every_s)  # the PLC's cycle


@contextlib.contextmanager
def connected(server: HandshakeServer, **plc: Any) -> Iterator[tuple[ServedLink, Plc]]:
    with pytest.raises(PeerError, match="no PLC asks for registers"):
        server.open(0.01)
    program = Plc(server.port, **plc)
    try:
        with contextlib.closing(server.open()) as link:
            yield link, program
    finally:
        program.close()


def status_of(client: ModbusTcpClient) -> Status:
    """The status register alone, which is no fetch of the result."""
    return Status(client.read_holding_registers(RESULT + 2, count=1).registers[0])


def read_and_be_cut_off(port: int, address: int, count: int) -> None:
    """A request that is answered, and in the same packet something that costs the client its connection before that."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, address, count) + b"no Modbus")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(512) == b""


def test_a_trigger_is_seen_with_the_moment_at_which_it_came(server: HandshakeServer) -> None:
    with connected(server) as (link, plc):
        before = link.read_trigger(within())
        began_ns = time.monotonic_ns()
        plc.trigger(before.counter + 1, "A-17", ack=65_537, heartbeat=9, recipe=3)
        came_ns = time.monotonic_ns()
        time.sleep(0.03)  # it is looked at later than it came
        seen = link.read_trigger(within())
        assert (seen.counter, seen.part_id, seen.ack, seen.heartbeat, seen.recipe) == (
            before.counter + 1,
            "A-17",
            65_537,
            9,
            3,
        )
        assert began_ns <= seen.read_ns <= came_ns
        assert (seen.exact, link.read_trigger(within()).exact) == (True, False)
        assert link.read_trigger(within()).read_ns > came_ns  # nothing new: the link is alive now


def test_ready_waits_for_a_plc_that_has_not_written_its_counter_yet(server: HandshakeServer) -> None:
    """Else the trigger that it raises first could not be told from an old one, and its part would have no record."""
    lost: list[str] = []
    events = PlcEvents(
        link=lambda up, reason: None if up else lost.append(reason),
        program=lambda _alive: None,
        turn=lambda _sequence, _at_ns, _reason: None,
    )
    keeper = PlcKeeper(server.open, peer="press", events=events, manners=Manners(triggers=True))
    with connected(server) as (link, plc):
        assert not link.read_trigger(within()).written
        keeper.start()
        try:
            until(lambda: bool(lost))
            assert "has not written its trigger block yet" in lost[0]
            with pytest.raises(PeerError):
                keeper.beat(ready=True, fault=False, until_ns=within())
            assert not any(status & Status.READY for _sequence, status in plc.seen)
            plc.trigger(41, "A-1")
            until(lambda: keeper.up)
            keeper.beat(ready=True, fault=False, until_ns=within())
            assert plc.saw(0, Status.READY)
            opening = keeper.opening()
            assert opening is not None
            assert opening.counter == 41
            plc.trigger(42, "A-2")
            assert keeper.read_trigger(within()).part_id == "A-2"
        finally:
            keeper.stop()


def test_a_waiting_result_has_as_long_to_be_fetched_as_any_other(server: HandshakeServer) -> None:
    """The PLC looks each 100 ms, as plc_write_ms: 300 allows it to."""
    turns: list[tuple[int, bool]] = []
    lost: list[str] = []
    events = PlcEvents(
        link=lambda up, reason: None if up else lost.append(reason),
        program=lambda _alive: None,
        turn=lambda sequence, at_ns, _reason: turns.append((sequence, at_ns > 0)),
    )
    station = StationSettings.model_validate(
        {
            "name": "top",
            "takt_ms": 1000,
            "budget_ms": 900,
            "plc_write_ms": 300,
            "camera": {"type": "replay", "folder": ".", "width_px": 64, "height_px": 64},
            "recipe": {"engine": "."},
            "plc": {
                "type": "modbus-server",
                "bind": "127.0.0.1",
                "peers": ["127.0.0.1"],
                "handshake": {"form": "buffered"},
            },
        }
    )
    assert isinstance(station.plc, ModbusServerPlcSettings)
    manners = rules.manners(station, station.plc.handshake)
    keeper = PlcKeeper(server.open, peer="press", events=events, manners=manners)
    with connected(server, every_s=0.1) as (_, plc):
        plc.trigger(1, "P1")
        keeper.start()
        try:
            until(lambda: keeper.up)
            assert keeper.show(result(7), within(2000))
            assert not keeper.show(result(8, Verdict.REJECT), within(2000)), "it waits for the acknowledgement of 7"
            plc.trigger(1, "P1", ack=7)
            until(lambda: keeper.read_trigger(within()).ack == 7 and bool(turns))
            assert turns == [(8, True)]
            assert not lost
        finally:
            keeper.stop()


def test_a_result_is_delivered_when_the_plc_has_fetched_it(server: HandshakeServer) -> None:
    with connected(server) as (link, plc):
        link.write_result(result(1), within())
        assert plc.saw(1, Status.PASS | Status.RESULT_VALID | Status.READY)
        link.write_result(result(1, None), within())
        link.write_result(result(2, Verdict.REJECT), within())
        assert plc.saw(2, Status.REJECT | Status.RESULT_VALID | Status.READY)


def test_a_pass_that_is_not_fetched_in_time_is_never_seen(server: HandshakeServer) -> None:
    with connected(server) as (link, plc):
        plc.freeze()
        with pytest.raises(PeerTimeoutError, match="did not fetch the result in time"):
            link.write_result(result(7), within(50))
        plc.thaw()
        time.sleep(0.05)  # some polls
        assert all(sequence != 7 or not status & Status.RESULT_VALID for sequence, status in plc.seen)
        link.write_result(result(8, Verdict.REJECT), within())
        assert plc.saw(8, Status.REJECT | Status.RESULT_VALID | Status.READY)


def test_no_result_is_ever_seen_with_both_or_with_another_parts_number(server: HandshakeServer) -> None:
    with connected(server, every_s=0.0) as (link, plc):
        for sequence in range(1, 200):
            link.write_result(result(sequence, (Verdict.PASS, Verdict.REJECT)[sequence % 2]), within())
            link.write_result(result(sequence, None), within())
        for sequence, status in plc.seen:
            if status & Status.RESULT_VALID:
                assert bool(status & Status.PASS) == (sequence % 2 == 0)
                assert bool(status & Status.REJECT) == (sequence % 2 == 1)


def test_the_heartbeat_does_not_wait_for_the_plc(server: HandshakeServer) -> None:
    with connected(server) as (link, plc):
        link.write_result(result(1), within())
        plc.freeze()
        try:
            began_ns = time.monotonic_ns()
            link.write_result(result(1), within())
            link.write_result(result(1, None), within())
            assert time.monotonic_ns() - began_ns < 100 * NS_PER_MS
        finally:
            plc.thaw()


def test_a_plc_that_falls_silent_loses_the_link_and_gets_the_next_one_when_it_is_back(server: HandshakeServer) -> None:
    with connected(server) as (link, plc):
        plc.freeze()
        try:
            time.sleep(0.55)  # silence_ms and a bit
            with pytest.raises(PeerError, match=r"has asked for nothing for \d+ ms"):
                link.read_trigger(within())
            link.close()
        finally:
            plc.thaw()
        with contextlib.closing(server.open()) as again:
            again.write_result(result(3), within())
            assert plc.saw(3, Status.PASS | Status.RESULT_VALID | Status.READY)


def test_only_the_trigger_block_can_be_written(server: HandshakeServer) -> None:
    with connected(server) as (link, _plc), ModbusTcpClient("127.0.0.1", port=server.port) as client:
        for address, values in ((RESULT, [1]), (RESULT + 2, [5]), (12, [1, 1]), (13, [1]), (500, [1])):
            assert client.write_registers(address, values).exception_code == 2
        assert client.read_holding_registers(13, count=1).exception_code == 2
        assert client.read_holding_registers(RESULT, count=17).exception_code == 2
        assert client.read_holding_registers(TRIGGER, count=13).registers[0] == link.read_trigger(within()).counter
        assert not client.write_register(TRIGGER, 77).isError()
        assert link.read_trigger(within()).counter == 77


def test_a_read_of_the_status_alone_is_no_delivery(server: HandshakeServer) -> None:
    with pytest.raises(PeerError, match="no PLC asks"):
        server.open(0.01)
    with ModbusTcpClient("127.0.0.1", port=server.port) as client:
        client.read_holding_registers(RESULT + 2, count=1)
        with contextlib.closing(server.open()) as link:
            stop = threading.Event()

            def poll() -> None:
                while not stop.is_set():
                    client.read_holding_registers(RESULT + 2, count=1)

            thread = threading.Thread(target=poll)
            thread.start()
            try:
                with pytest.raises(PeerTimeoutError):
                    link.write_result(result(1), within(100))
            finally:
                stop.set()
                thread.join()


def test_an_answer_that_never_went_out_is_no_delivery() -> None:
    """Read by a client that is then cut off, with another client's answer behind it: that one did not carry the PASS."""
    with contextlib.closing(HandshakeServer(settings(silence_ms=20_000), peer="press")) as server:
        with pytest.raises(PeerError, match="no PLC asks"):
            server.open(0.01)
        with ModbusTcpClient("127.0.0.1", port=server.port) as client:
            assert not status_of(client)
            with contextlib.closing(server.open()) as link:
                delivery = threading.Thread(target=lambda: link.write_result(result(1), within(20_000)))
                delivery.start()
                until(lambda: Status.PASS in status_of(client))
                read_and_be_cut_off(server.port, RESULT, 16)
                assert Status.PASS in status_of(client)
                delivery.join(_A_WHILE_S)
                assert delivery.is_alive()
                client.read_holding_registers(RESULT, count=16)
                delivery.join()
                assert Status.PASS in status_of(client)  # it was not taken back: this was the delivery


def test_a_gate_output_whose_answer_never_went_out_is_not_written() -> None:
    gate = EncoderGate(tracking="encoder", travel_pulses=1000, length_pulses=100, poll_ms=1000)
    eject = GateOutput(eject=True, sequence=7, part_id="P7", position=0, ejections=1)
    written: list[bool] = []
    with contextlib.closing(HandshakeServer(settings(), peer="press", gate=gate)) as server:
        with pytest.raises(PeerError, match="has not written the gate's inputs"):
            server.open_gate()
        with ModbusTcpClient("127.0.0.1", port=server.port) as client:
            assert not client.write_registers(INPUTS, [0, 0, 0, 0]).isError()
            with contextlib.closing(server.open_gate()) as link:
                write = threading.Thread(target=lambda: (link.write(eject, 1000, within(20_000)), written.append(True)))
                write.start()
                until(lambda: client.read_holding_registers(OUTPUT, count=1).registers == [1])
                read_and_be_cut_off(server.port, OUTPUT, 8)
                assert client.read_holding_registers(OUTPUT, count=1).registers == [1]
                write.join(_A_WHILE_S)
                assert write.is_alive()
                client.read_holding_registers(OUTPUT, count=8)
                write.join()
    assert written


def test_a_part_of_the_gates_inputs_is_refused_and_makes_the_others_no_fresher() -> None:
    gate = EncoderGate(tracking="encoder", travel_pulses=1000, length_pulses=100, poll_ms=1000)
    with contextlib.closing(HandshakeServer(settings(), peer="press", gate=gate)) as server:
        with pytest.raises(PeerError, match="has not written the gate's inputs"):
            server.open_gate()
        with ModbusTcpClient("127.0.0.1", port=server.port) as client:
            assert client.write_register(INPUTS + 3, 2).exception_code == 3  # an HMI: somebody has looked
            for address, values in ((INPUTS, [0, 9]), (INPUTS, [0, 9, 0]), (INPUTS + 1, [9, 0, 2])):
                assert client.write_registers(address, values).exception_code == 3
            for address, values in ((INPUTS, [0] * 5), (INPUTS + 1, [0] * 4), (INPUTS - 1, [0] * 4), (OUTPUT, [0] * 4)):
                assert client.write_registers(address, values).exception_code == 2
            assert client.read_holding_registers(INPUTS, count=4).registers == [0, 0, 0, 0]
            with pytest.raises(PeerError, match="has not written the gate's inputs"):
                server.open_gate()
            assert not client.write_registers(INPUTS, [0, 9, 5, 2]).isError()
            with contextlib.closing(server.open_gate()) as link:
                seen = link.read(within())
            assert (seen.encoder, seen.confirmations, seen.looked) == (9, 5, True)


def test_one_request_can_trigger_and_fetch(server: HandshakeServer) -> None:
    """Function code 23: what many PLCs use for both directions at once."""
    with connected(server) as (link, _plc), ModbusTcpClient("127.0.0.1", port=server.port) as client:
        link.write_result(result(5), within())
        reply = client.readwrite_registers(
            read_address=RESULT, read_count=16, write_address=TRIGGER, values=pack_trigger(42, "B-2")
        )
        assert unpack_result(reply.registers).sequence == 5
        assert link.read_trigger(within()).part_id == "B-2"


def test_libmodbus_writes_a_trigger_and_reads_the_result(server: HandshakeServer) -> None:
    with connected(server) as (link, _plc):
        link.write_result(result(9, Verdict.REJECT), within())
        command = ["mbpoll", "-0", "-1", "-q", "-p", str(server.port), "-t", "4", "-r"]
        shown = subprocess.run(
            [*command, str(RESULT), "-c", "16", "127.0.0.1"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        assert "[101]: \t9" in shown
        assert "[102]: \t14" in shown  # REJECT, RESULT_VALID, READY
        subprocess.run([*command, "0", "127.0.0.1", "1234"], capture_output=True, timeout=10, check=True)
        assert link.read_trigger(within()).counter == 1234


def test_a_stranger_is_not_let_in(server: HandshakeServer) -> None:
    strict = HandshakeServer(settings(peers=["10.1.2.3"]), peer="press")
    try:
        with pytest.raises(PeerError, match="no PLC asks"):
            strict.open(0.01)
        with (
            contextlib.suppress(ConnectionResetError),  # by the time it is made, it may be reset
            socket.create_connection(("127.0.0.1", strict.port), timeout=2) as connection,
        ):
            assert connection.recv(1) == b""
    finally:
        strict.close()


def test_a_flood_by_one_client_leaves_the_others_theirs(server: HandshakeServer) -> None:
    with connected(server) as (link, plc), socket.create_connection(("127.0.0.1", server.port), timeout=2) as flood:
        stop = threading.Event()
        request = struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, RESULT, 16) * 16

        def pour() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    flood.sendall(request)
                    flood.recv(4096)

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            for sequence in range(1, 20):
                link.write_result(result(sequence), within(1000))
                assert plc.saw(sequence, Status.PASS | Status.RESULT_VALID | Status.READY)
        finally:
            stop.set()
            thread.join()


def test_a_port_in_use_is_said(server: HandshakeServer) -> None:
    with pytest.raises(PeerError, match="no PLC asks"):
        server.open(0.01)
    other = HandshakeServer(settings(port=server.port), peer="press")
    with pytest.raises(PeerError, match="cannot listen here: Address already in use"):
        other.open(0.01)
    other.close()


def test_a_link_opened_alone_closes_its_port_with_itself(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    opened: list[ServedLink] = []
    thread = threading.Thread(
        target=lambda: opened.append(open_link(settings(port=port), peer="press", state_dir=tmp_path))
    )
    thread.start()
    client = ModbusTcpClient("127.0.0.1", port=port, timeout=2)
    end = time.monotonic() + 3
    while not client.connect():
        assert time.monotonic() < end
    client.read_holding_registers(RESULT, count=16)
    thread.join()
    client.close()
    opened[0].close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.parametrize("arrives", [True, False])
def test_what_is_on_its_way_to_the_plc_is_not_taken_back_as_never_seen(arrives: bool) -> None:
    """The server's thread has read the block for an answer, and is held up on a busy box before it sends it."""
    blocks = modbus_served._Blocks(settings(silence_ms=5000), "press", None)
    blocks.read(RESULT, 16)
    blocks.sent()
    link = ServedLink(blocks)

    def answer() -> None:
        until(lambda: blocks._result.verdict is not None)
        blocks.read(RESULT, 16)
        time.sleep(0.1)  # behind the deadline
        blocks.sent() if arrives else blocks.unsent()

    server_thread = threading.Thread(target=answer)
    server_thread.start()
    until_ns = time.monotonic_ns() + 50 * NS_PER_MS
    if arrives:
        link.write_result(result(7), until_ns)
        assert blocks._result.verdict is not None
    else:
        with pytest.raises(PeerTimeoutError, match="taken back"):
            link.write_result(result(7), until_ns)
        assert blocks._result.verdict is None
    server_thread.join()
