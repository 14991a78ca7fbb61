"""What SCADA reads over Modbus, by independent clients: mbpoll (libmodbus), pymodbus, and sockets that mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import ModbusTcpClient
from server_box import Box, Served

from edgeqc.core.datatype import decode
from edgeqc.records import Cause, Delivery, Verdict
from edgeqc.server.registers import STATION_REGISTERS, STATIONS_AT, lines

pytestmark = pytest.mark.timeout(90)
HOME = {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0}
MAP = {line["name"]: line for line in lines(["top", "side"])}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with open_served(
        tmp_path_factory.mktemp("modbus"),
        writable=["watchdog", "reset_counters"],
        connections=4,
        idle_s=3,
    ) as one:
        yield one


@contextlib.contextmanager
def open_served(folder: Path, **modbus: Any) -> Iterator[Served]:
    box = Box(folder, {"modbus": HOME | modbus})
    try:
        one = Served(box, "modbus")
        try:
            yield one
        finally:
            one.close()
    finally:
        box.close()


@pytest.fixture
def client(served: Served) -> Iterator[ModbusTcpClient]:
    with ModbusTcpClient("127.0.0.1", port=served.port, timeout=3) as one:
        yield one


def value(client: ModbusTcpClient, name: str) -> Any:
    line = MAP[name]
    reply = client.read_holding_registers(line["address"], count=line["registers"])
    assert not reply.isError(), reply
    data = struct.pack(f">{line['registers']}H", *reply.registers)
    return decode(data, line["type"].rstrip("0123456789") if line["type"].startswith("string") else line["type"])


def until(ask: Callable[[], Any], wanted: Any, *, within_s: float = 3.0) -> None:
    end = time.monotonic() + within_s
    while (found := ask()) != wanted:
        assert time.monotonic() < end, f"{found}, not {wanted}"
        time.sleep(0.01)  # polls as a client does


def poll(served: Served, *arguments: str, write: tuple[str, ...] = ()) -> str:
    """One request by mbpoll, which is libmodbus; registers counted from 0."""
    command = ["mbpoll", "-0", "-1", "-q", "-p", str(served.port), *arguments, "127.0.0.1", *write]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout


def raw(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=3)


def ask(connection: socket.socket, pdu: bytes, *, unit: int = 1, transaction: int = 7) -> bytes:
    connection.sendall(struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu)
    reply = connection.recv(512)
    assert struct.unpack(">HHHB", reply[:7]) == (transaction, 0, len(reply) - 6, unit)
    return reply[7:]


def gone(connection: socket.socket, *, within_s: float = 6.0) -> bool:
    """Has the server ended the connection?"""
    connection.settimeout(within_s)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_result_is_there_for_an_independent_client(served: Served, client: ModbusTcpClient) -> None:
    sequence = served.box.part(Verdict.REJECT, Cause.DEFECT, score=0.875, part_id="A1B2")
    until(lambda: value(client, "top.sequence"), sequence)
    assert value(client, "top.result") == 0b110
    assert value(client, "top.code") == 10
    assert value(client, "top.score") == 8750
    assert value(client, "top.threshold") == 5000
    assert value(client, "top.part_id") == "A1B2"
    assert value(client, "top.latency_us") == 5000
    assert value(client, "top.delivered") == 1
    assert value(client, "top.station") == "top"
    assert value(client, "top.recipe") == "default"
    assert value(client, "side.station") == "side"
    assert value(client, "side.sequence") == 0
    assert value(client, "stations") == 2
    assert abs(value(client, "now_s") - time.time()) < 2
    out = poll(served, "-t", "4:int", "-B", "-r", str(STATIONS_AT + 40), "-c", "1")
    assert f"[140]: \t{sequence}" in out
    assert "[143]: \t10" in poll(served, "-t", "3", "-r", "143", "-c", "1")  # function code 4 reads the same


def test_a_score_that_comes_behind_the_verdict_changes_nothing_of_what_was_delivered(
    served: Served, client: ModbusTcpClient
) -> None:
    sequence = served.box.part(Verdict.REJECT, Cause.DEFECT)
    until(lambda: value(client, "top.sequence"), sequence)
    served.box.journal.append(
        Delivery(
            sequence=sequence,
            verdict=Verdict.REJECT,
            cause=Cause.LATE,
            delivered=False,
            delivered_ns=0,
            late=False,
            late_score=0.25,
        )
    )
    alerts = value(client, "alerts")
    served.box.alert("behind", active=True)
    until(lambda: value(client, "alerts"), alerts + 1)  # so that what came before it has been read
    served.box.alert("behind", active=False)
    assert (value(client, "top.delivered"), value(client, "top.code"), value(client, "top.latency_us")) == (1, 10, 5000)


def test_the_registers_of_one_request_are_of_one_moment(served: Served, client: ModbusTcpClient) -> None:
    before = value(client, "top.verdicts")
    for _ in range(200):
        served.box.part(Verdict.PASS, Cause.OK)
        reply = client.read_holding_registers(STATIONS_AT, count=STATION_REGISTERS).registers
        triggers, verdicts, passed, rejected = (reply[at] << 16 | reply[at + 1] for at in (2, 4, 6, 8))
        assert triggers >= verdicts >= passed + rejected - 1
    until(lambda: value(client, "top.verdicts"), before + 200)


def test_the_heartbeat_moves_on(client: ModbusTcpClient) -> None:
    first = value(client, "heartbeat")
    until(lambda: value(client, "heartbeat") != first, wanted=True)


def test_an_alert_and_a_lost_camera_are_a_failure(served: Served, client: ModbusTcpClient) -> None:
    until(lambda: value(client, "state"), 0)
    served.box.alert("top.plc.lost", active=True)
    until(lambda: (value(client, "alerts"), value(client, "state")), (1, 4))
    served.box.alert("top.plc.lost", active=False)
    until(lambda: (value(client, "alerts"), value(client, "state")), (0, 0))
    served.box.board["station-side"].put("camera_up", 0)
    until(lambda: (value(client, "side.flags"), value(client, "state")), (0b001, 4))
    served.box.board["station-side"].put("camera_up", 1)
    until(lambda: value(client, "state"), 0)


def test_counters_since_reset_begin_anew_and_the_others_go_on(served: Served, client: ModbusTcpClient) -> None:
    served.box.part(Verdict.PASS, Cause.OK)
    until(lambda: value(client, "top.verdicts"), served.box.board["station-top"].get("verdicts"))
    before = value(client, "top.verdicts")
    assert client.write_register(MAP["reset_counters"]["address"], 2).exception_code == 3
    assert value(client, "top.shift_verdicts") > 0
    poll(served, "-t", "4", "-r", str(MAP["reset_counters"]["address"]), write=("1",))
    until(lambda: value(client, "top.shift_verdicts"), 0)
    assert value(client, "top.verdicts") == before
    served.wait_for("counters_reset", by="a Modbus client")
    served.box.part(Verdict.REJECT, Cause.DEFECT)
    until(lambda: value(client, "top.shift_rejected"), 1)
    assert value(client, "top.shift_reject_ratio") == 10_000


def test_the_watchdog_holds_what_was_written_and_tells_its_age(client: ModbusTcpClient) -> None:
    at = MAP["watchdog"]["address"]
    assert not client.write_registers(at, [4711]).isError()
    assert value(client, "watchdog") == 4711
    assert value(client, "watchdog_age_ms") < 3000
    until(lambda: value(client, "watchdog_age_ms") > 20, wanted=True)


@pytest.mark.parametrize("name", ["map_version", "watchdog_age_ms", "top.result", "top.shift_verdicts"])
def test_nothing_but_the_named_registers_can_be_written(client: ModbusTcpClient, name: str) -> None:
    before = value(client, name)
    assert client.write_register(MAP[name]["address"], 1).exception_code == 2
    assert client.write_registers(MAP["watchdog"]["address"], [1, 2]).exception_code == 2
    both = client.readwrite_registers(read_address=0, read_count=1, write_address=MAP[name]["address"], values=[9])
    assert both.exception_code == 2
    if name != "watchdog_age_ms":
        assert value(client, name) == before


def test_a_register_that_the_configuration_does_not_name_cannot_be_written(tmp_path: Path) -> None:
    with open_served(tmp_path) as served, ModbusTcpClient("127.0.0.1", port=served.port) as client:
        for command in ("watchdog", "reset_counters"):
            assert client.write_register(MAP[command]["address"], 1).exception_code == 2


@pytest.mark.parametrize(
    ("pdu", "reason"),
    [
        (b"\x03\x00\x00\x00\x00", 3),  # no register
        (b"\x03\x00\x00\x00\x7e", 3),  # 126 of them
        (b"\x03\x01\x2c\x00\x01", 2),  # behind the end of the map
        (b"\x03\xff\xff\x00\x02", 2),
        (b"\x03\x00\x00", 3),  # cut
        (b"\x10\x00\x14\x00\x01\x04\x00\x01", 3),  # byte count lies
        (b"\x10\x00\x14\x00\x00\x00", 3),
        (b"\x17\x00\x00\x00\x01\x00\x14\x00\x01\x01\x00", 3),
        (b"\x01\x00\x00\x00\x01", 1),  # coils
        (b"\x05\x00\x00\xff\x00", 1),
        (b"\x2b\x0e\x01\x00", 1),
        (b"\x83\x00", 1),
    ],
)
def test_a_request_that_asks_wrongly_gets_its_exception(served: Served, pdu: bytes, reason: int) -> None:
    with raw(served) as connection:
        assert ask(connection, pdu) == bytes((pdu[0] & 0x7F | 0x80, reason))
        assert ask(connection, b"\x03\x00\x00\x00\x01") == b"\x03\x02\x00\x01"  # and is served on


def test_another_unit_is_told_that_it_is_not_here(served: Served) -> None:
    with raw(served) as connection:
        assert ask(connection, b"\x03\x00\x00\x00\x01", unit=77) == b"\x83\x0b"
        assert ask(connection, b"\x03\x00\x00\x00\x01", unit=255) == b"\x03\x02\x00\x01"


def test_requests_in_pieces_and_in_one_piece_are_answered_in_order(served: Served) -> None:
    request = b"".join(struct.pack(">HHHBBHH", transaction, 0, 6, 1, 3, 0, 1) for transaction in range(1, 17))
    with raw(served) as connection:
        for at in range(0, len(request), 5):
            connection.sendall(request[at : at + 5])
            time.sleep(0.001)  # one piece, one segment
        replies = b""
        while len(replies) < 16 * 11:
            replies += connection.recv(4096)
        assert [struct.unpack_from(">H", replies, 11 * index)[0] for index in range(16)] == list(range(1, 17))


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x01\x00\x01\x00\x06\x01\x03\x00\x00\x00\x01",  # another protocol id
        b"\x00\x01\x00\x00\xff\xff\x01\x03",  # a frame of 64 KiB
        b"\x00\x01\x00\x00\x00\x01\x01",  # too short for a function code
    ],
)
def test_who_does_not_speak_modbus_is_disconnected(served: Served, junk: bytes) -> None:
    with raw(served) as connection:
        connection.sendall(junk)
        assert gone(connection)


def test_half_a_request_is_not_waited_for(served: Served) -> None:
    with raw(served) as connection:
        connection.sendall(b"\x00\x01\x00\x00\x00\x06\x01")
        assert gone(connection)
    served.wait_for("client_left", reason="half a request for 2 s")


def test_who_asks_nothing_is_let_go(served: Served) -> None:
    with raw(served) as connection:
        assert gone(connection)
    served.wait_for("client_left", reason="asked nothing for 3 s")


def test_one_connection_too_many_is_refused_and_the_others_stay(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(raw(served)) for _ in range(4)]
        for connection in inside:
            ask(connection, b"\x03\x00\x00\x00\x01")
        with contextlib.suppress(ConnectionResetError):  # by the time it is made, it may be reset
            assert gone(stack.enter_context(raw(served)))
        for connection in inside:
            assert ask(connection, b"\x03\x00\x00\x00\x01") == b"\x03\x02\x00\x01"


async def test_a_flood_that_reads_no_answers_is_cut_and_costs_no_memory(served: Served) -> None:
    before_mb = served.memory_mb
    request = struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, 0, 125) * 32
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                while True:
                    writer.write(request)
                    await writer.drain()
        writer.transport.abort()
    assert served.memory_mb < before_mb + 8
    with raw(served) as connection:
        assert ask(connection, b"\x03\x00\x00\x00\x01") == b"\x03\x02\x00\x01"


def test_hundreds_of_connections_that_come_and_go_leave_nothing_behind(served: Served) -> None:
    files = Path(f"/proc/{served.process.pid}/fd")
    before = len(list(files.iterdir()))
    for _ in range(300):
        with contextlib.suppress(ConnectionResetError):  # the ones before it are still being closed
            raw(served).close()
    until(lambda: len(list(files.iterdir())) <= before, wanted=True)


def test_who_is_not_among_the_peers_is_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    with open_served(tmp_path, peers=["10.0.0.0/8"]) as served:
        with contextlib.suppress(ConnectionResetError), raw(served) as connection:  # it may be reset before it returns
            assert gone(connection)
        assert served.wait_for("client_refused", peer="127.0.0.1")["reason"] == "is not among the peers"


def test_a_port_in_use_is_said_and_ends_the_process(served: Served, tmp_path: Path) -> None:
    box = Box(tmp_path, {"modbus": HOME | {"port": served.port}})
    try:
        with pytest.raises(AssertionError, match=r"ended with 1: .*cannot listen here: Address already in use"):
            Served(box, "modbus")
    finally:
        box.close()


def test_a_process_with_an_old_journal_knows_the_last_result_at_once(tmp_path: Path) -> None:
    with open_served(tmp_path) as served:
        served.box.part(Verdict.PASS, Cause.OK, part_id="LAST")
        served.process.kill()
        served.process.wait()
        again = Served(served.box, "modbus")
        try:
            with ModbusTcpClient("127.0.0.1", port=again.port) as client:
                until(lambda: value(client, "top.part_id"), "LAST")
        finally:
            again.close()
