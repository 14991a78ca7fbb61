"""What SCADA and MES read over OPC UA: who gets in, what they may do, and clients that mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from asyncua import Client, ua
from asyncua.ua.uaerrors import BadNoData, BadUserAccessDenied
from server_box import Box, Served

from edgeqc.errors import PeerError
from edgeqc.plc import opcua_session
from edgeqc.records import Cause, Verdict
from edgeqc.settings import OpcuaEndpoint

pytestmark = pytest.mark.timeout(120)
USERS = [
    {"name": "scada", "password": "s3cret"},
    {"name": "shift", "password": "0perator", "role": "operator"},
]
HOME = {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": 0, "users": USERS}
TAGS = [{"type": "replay", "name": "oven", "file": "none.csv", "tags": [{"name": "zone1"}]}]


@contextlib.contextmanager
def open_served(folder: Path, **opcua: Any) -> Iterator[Served]:
    box = Box(folder, {"opcua": HOME | opcua}, tags=TAGS)
    try:
        one = Served(box, "opcua")
        try:
            yield one
        finally:
            one.close()
    finally:
        box.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with open_served(tmp_path_factory.mktemp("opcua"), connections=4) as one:
        yield one


def endpoint(served: Served, **changes: Any) -> OpcuaEndpoint:
    return OpcuaEndpoint.model_validate(
        {
            "url": f"opc.tcp://127.0.0.1:{served.port}/edgeqc",
            "server_certificate": served.box.state_dir / "pki" / "own.der",
            "user": "scada",
            "password": "s3cret",
        }
        | changes
    )


@contextlib.asynccontextmanager
async def client_of(served: Served, folder: Path, **changes: Any) -> AsyncIterator[Client]:
    client = await opcua_session.connect(
        endpoint(served, **changes), peer="edgeqc", state_dir=folder / "client", timeout_s=15
    )
    try:
        yield client
    finally:
        await opcua_session.close(client)


async def node(client: Client, name: str) -> Any:
    return client.get_node(f"ns={await client.get_namespace_index('urn:edgeqc')};s={name}")


async def until(ask: Callable[[], Awaitable[Any]], wanted: Any, *, within_s: float = 5.0) -> None:
    async def answer() -> Any:
        try:
            return await ask()
        except BadNoData as exc:  # a value that does not exist yet
            return exc

    end = time.monotonic() + within_s
    while (found := await answer()) != wanted:
        assert time.monotonic() < end, f"{found}, not {wanted}"
        await asyncio.sleep(0.02)  # polls as a client does


async def test_a_result_its_counters_and_the_box_are_there(served: Served, tmp_path: Path) -> None:
    async with client_of(served, tmp_path) as client:
        sequence = served.box.part(Verdict.REJECT, Cause.DEFECT, score=0.875, part_id="A1B2")
        result = await node(client, "Station.top.Result.Sequence")
        await until(result.read_value, sequence)
        shown = await node(client, "Station.top.Result.Json")
        await until(lambda: told(shown, "delivered"), wanted=True)
        found = json.loads(await shown.read_value())
        assert {
            key: found[key] for key in ("part_id", "verdict", "cause", "code", "score", "delivered", "station")
        } == {
            "part_id": "A1B2",
            "verdict": "reject",
            "cause": "defect",
            "code": 10,
            "score": 0.875,
            "delivered": True,
            "station": "top",
        }
        for name, wanted in (
            ("Station.top.Result.PartId", "A1B2"),
            ("Station.top.Result.Verdict", "reject"),
            ("Station.top.Result.LatencyMs", 5.0),
            ("Station.top.Counters.Rejected", served.box.board["station-top"].get("rejected")),
            ("Station.top.Ready", True),
            ("Box.State", "normal"),
            ("Box.Alerts", []),
        ):
            assert await (await node(client, name)).read_value() == wanted, name
        value = await (await node(client, "Station.top.Result.Score")).read_data_value()
        assert abs(value.SourceTimestamp.timestamp() - time.time()) < 10  # of the part, not of the reading
        with pytest.raises(ua.uaerrors.BadNoData):
            await (await node(client, "Station.side.Result.Score")).read_value()


async def told(shown: Any, key: str) -> Any:
    return json.loads(await shown.read_value())[key]


async def test_a_tag_without_a_watch_process_is_not_good(served: Served, tmp_path: Path) -> None:
    async with client_of(served, tmp_path) as client:
        tag = await (await node(client, "Tag.zone1")).read_data_value(raise_on_bad_status=False)
        assert not tag.StatusCode.is_good()


async def test_an_alert_arrives_by_subscription(served: Served, tmp_path: Path) -> None:
    async with client_of(served, tmp_path) as client:
        came: asyncio.Queue[list[str]] = asyncio.Queue()

        class Handler:
            def datachange_notification(self, _node: object, value: list[str], _data: object) -> None:
                came.put_nowait(value)

        subscription = await client.create_subscription(50, Handler())
        await subscription.subscribe_data_change(await node(client, "Box.Alerts"))
        async with asyncio.timeout(10):
            assert await came.get() == []
            served.box.alert("top.camera.lost", active=True)
            assert await came.get() == ["top.camera.lost"]
            served.box.alert("top.camera.lost", active=False)
            assert await came.get() == []
        await subscription.delete()


async def test_a_viewer_reads_and_an_operator_resets(served: Served, tmp_path: Path) -> None:
    served.box.part(Verdict.PASS, Cause.OK, part_id="LATEST")
    async with client_of(served, tmp_path) as client:
        station, method = await node(client, "Station.top"), await node(client, "Station.top.GetResults")
        shift = await node(client, "Station.top.Shift.Verdicts")
        await until(shift.read_value, served.box.board["station-top"].get("verdicts"))
        found = await station.call_method(method, ua.Variant(1, ua.VariantType.UInt32))
        assert [json.loads(text)["part_id"] for text in found] == ["LATEST"]
        with pytest.raises(ua.uaerrors.BadOutOfRange):
            await station.call_method(method, ua.Variant(101, ua.VariantType.UInt32))
        with pytest.raises(BadUserAccessDenied):
            await station.call_method(await node(client, "Station.top.ResetCounters"))
        assert await shift.read_value() > 0
        for name in ("Box.State", "Station.top.Result.Verdict", "Station.top.Shift.Verdicts"):
            with pytest.raises((BadUserAccessDenied, ua.uaerrors.BadNotWritable)):
                await (await node(client, name)).write_value(ua.Variant("pass"))
    async with client_of(served, tmp_path, user="shift", password="0perator") as client:
        await (await node(client, "Station.top")).call_method(await node(client, "Station.top.ResetCounters"))
        await until((await node(client, "Station.top.Shift.Verdicts")).read_value, 0)
        assert await (await node(client, "Station.top.Counters.Verdicts")).read_value() > 0
    served.wait_for("counters_reset", by="shift", stations="top")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"password": "guess"}, "BadUserAccessDenied"),
        ({"user": "nobody"}, "BadUserAccessDenied"),
        ({"user": None, "password": None}, "BadIdentityTokenRejected"),
        ({"security": "none"}, "No matching endpoints"),
    ],
)
async def test_nobody_else_gets_in(served: Served, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(PeerError, match=says):
        async with client_of(served, tmp_path, **changes):
            pass


async def test_a_guesser_is_locked_out_even_with_the_right_password(tmp_path: Path) -> None:
    with open_served(tmp_path) as served:
        for _ in range(5):
            with pytest.raises(PeerError, match="BadUserAccessDenied"):
                async with client_of(served, tmp_path, password="guess"):
                    pass
        with pytest.raises(PeerError, match="BadUserAccessDenied"):
            async with client_of(served, tmp_path):
                pass
        served.wait_for("login_refused", user="scada", reason="too many wrong passwords")
        async with client_of(served, tmp_path, user="shift", password="0perator"):
            pass


async def test_an_empty_folder_of_clients_trusts_nobody_and_a_certificate_in_it_is_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "clients"
    folder.mkdir()
    with (
        open_served(tmp_path, clients=str(folder)) as served,
        pytest.raises(PeerError, match="BadCertificateUntrusted"),
    ):
        async with client_of(served, tmp_path):
            pass
    (folder / "client.der").write_bytes((tmp_path / "client" / "pki" / "own.der").read_bytes())
    again = tmp_path / "again"
    again.mkdir()
    with open_served(again, clients=str(folder)) as served:
        async with client_of(served, tmp_path) as client:
            assert await (await node(client, "Box.State")).read_value() == "normal"
        with pytest.raises(PeerError, match="BadCertificateUntrusted"):
            async with client_of(served, tmp_path / "stranger"):
                pass


async def test_no_security_is_said_loudly(tmp_path: Path) -> None:
    with open_served(tmp_path, security="none", users=[], anonymous=True) as served:
        assert served.wait_for("opcua_server_unprotected")["level"] == "warning"
        async with client_of(
            served, tmp_path, security="none", server_certificate=None, user=None, password=None
        ) as client:
            assert await (await node(client, "Box.State")).read_value() == "normal"
            with pytest.raises(BadUserAccessDenied):
                await (await node(client, "Box")).call_method(await node(client, "Box.ResetCounters"))


def raw(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=5)


def gone(connection: socket.socket, *, within_s: float) -> bool:
    connection.settimeout(within_s)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):
            pass
    return True


def hello() -> bytes:
    url = b"opc.tcp://127.0.0.1/"
    body = struct.pack("<IIIII", 0, 65535, 65535, 0, 0) + struct.pack("<i", len(url)) + url
    return b"HELF" + struct.pack("<I", 8 + len(body)) + body


async def still_serves(served: Served, folder: Path) -> None:
    async with client_of(served, folder) as client:
        before = await (await node(client, "Box.Time")).read_value()
        await until(lambda: later(client, before), wanted=True)


async def later(client: Client, before: Any) -> bool:
    return await (await node(client, "Box.Time")).read_value() > before


async def test_a_chunk_that_never_ends_is_cut(served: Served, tmp_path: Path) -> None:
    before_mb = served.memory_mb
    with raw(served) as connection:
        connection.sendall(hello())
        connection.sendall(b"OPNF" + struct.pack("<I", 0x7FFF_FFFF))
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(bytes(65_536))
        assert gone(connection, within_s=5)
    served.wait_for("client_left")
    assert served.memory_mb < before_mb + 16
    await still_serves(served, tmp_path)


async def test_a_flood_of_chunks_is_cut(served: Served, tmp_path: Path) -> None:
    """Chunks that are said to go on for ever, before any login (FreeOpcUa/opcua-asyncio issue 1962)."""
    before_mb = served.memory_mb
    body = struct.pack("<II", 0, 0) + bytes(60_000)
    with raw(served) as connection:
        connection.sendall(hello())
        with contextlib.suppress(OSError):
            for _ in range(2000):
                connection.sendall(b"MSGC" + struct.pack("<I", 8 + len(body)) + body)
        assert gone(connection, within_s=15)
    assert served.memory_mb < before_mb + 32
    await still_serves(served, tmp_path)


async def test_silent_connections_are_let_go_and_never_more_than_agreed(served: Served, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(raw(served)) for _ in range(4)]
        assert gone(stack.enter_context(raw(served)), within_s=5)
        served.wait_for("client_refused", peer="127.0.0.1", reason="all 4 connections are in use")
        for connection in inside:
            assert gone(connection, within_s=20)
    await still_serves(served, tmp_path)


async def test_a_bomb_in_five_bytes_costs_nothing(served: Served, tmp_path: Path) -> None:
    """A Variant with 200 million elements of type Null: 11 s and 1.6 GiB for asyncua as it comes."""
    bomb = bytes((0x80,)) + struct.pack("<i", 200_000_000)
    async with client_of(served, tmp_path, user="shift", password="0perator") as client:
        before_mb = served.memory_mb
        target = await node(client, "Box.State")
        request = ua.WriteRequest()
        request.Parameters.NodesToWrite = [
            ua.WriteValue(
                NodeId=target.nodeid, AttributeId=ua.AttributeIds.Value, Value=ua.DataValue(ua.Variant(b"<>"))
            )
        ]
        plain = ua.ua_binary.struct_to_binary(request)
        variant = ua.ua_binary.variant_to_binary(ua.Variant(b"<>"))
        assert variant in plain
        busy_s = cpu_s(served)
        await send_raw(client, plain.replace(variant, bomb))
        await asyncio.sleep(1)  # nothing tells when the other side is done with it
        assert cpu_s(served) - busy_s < 0.5
        assert served.memory_mb < before_mb + 16
    await still_serves(served, tmp_path)


def cpu_s(served: Served) -> float:
    used = psutil.Process(served.process.pid).cpu_times()
    return used.user + used.system


async def send_raw(client: Client, body: bytes) -> None:
    """Send a message whose body is not what any client library would make."""
    connection = client.uaclient.protocol
    data = connection._connection.message_to_binary(body, message_type=ua.MessageType.SecureMessage, request_id=999_999)
    connection.transport.write(data)


async def test_a_frozen_server_holds_up_nobody_and_goes_on(served: Served, tmp_path: Path) -> None:
    os.kill(served.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(100):
        served.box.part(Verdict.PASS, Cause.OK)
    assert time.monotonic() - began < 2  # writing to board and journal, which nobody has to read
    os.kill(served.process.pid, signal.SIGCONT)
    async with client_of(served, tmp_path) as client:
        await until((await node(client, "Station.top.Result.Sequence")).read_value, served.box.sequence)


async def test_who_is_not_among_the_peers_is_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    with open_served(tmp_path, peers=["10.0.0.0/8"]) as served:
        with raw(served) as connection:
            assert gone(connection, within_s=5)
        assert served.wait_for("client_refused", peer="127.0.0.1")["reason"] == "is not among the peers"
