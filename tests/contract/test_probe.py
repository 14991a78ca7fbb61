"""`edgeqc plc probe` on a Modbus device (pymodbus' server) and on an OPC UA server (asyncua's), as an integrator uses it."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncua import Server, ua
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edgeqc.cli import main

pytestmark = pytest.mark.timeout(90)
VALUES = [
    *struct.unpack(">2H", struct.pack(">f", 201.5))[::-1],
    2015,
    0x8001,
    *struct.unpack(">4H", b"PART-17\0"),
]


class Background:
    """A loop in a thread of its own: the command blocks, as it does for its user."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, doing):
        return asyncio.run_coroutine_threadsafe(doing, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    one = Background()
    yield one
    one.close()


@pytest.fixture(scope="module")
def device(background: Background) -> Iterator[str]:
    async def start() -> ModbusTcpServer:
        data = SimData(0, values=VALUES + [0] * 8, datatype=DataType.REGISTERS)
        server = ModbusTcpServer(SimDevice(1, simdata=[data]), address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        return server

    server = background.run(start())
    yield f"tcp://127.0.0.1:{server.transport.sockets[0].getsockname()[1]}"
    background.run(server.shutdown())


@pytest.fixture(scope="module")
def plant(background: Background) -> Iterator[str]:
    async def start() -> Server:
        server = Server()
        await server.init()
        server.set_endpoint("opc.tcp://127.0.0.1:0")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await server.register_namespace("urn:plant:oven")
        oven = await server.nodes.objects.add_object(ua.NodeId("Oven", space), "Oven")
        await oven.add_variable(ua.NodeId("Zone1", space), "Zone1", 201.5)
        words = ua.Variant(VALUES, ua.VariantType.UInt16, is_array=True)
        await oven.add_variable(ua.NodeId("Words", space), "Words", words)
        await server.start()
        return server

    server = background.run(start())
    yield f"opc.tcp://127.0.0.1:{server.bserver.port}"
    background.run(server.stop())


def told(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["plc", "probe", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_all_meanings_stand_side_by_side(device: str, capsys) -> None:
    code, out, _ = told(capsys, device, "-r", "0", "-c", "8")
    assert code == 0
    (orders,) = [line.split() for line in out.splitlines() if line.split()[2:] == ["ABCD", "CDAB", "BADC", "DCBA"]]
    (float32,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["0", "float32"]]
    assert float32[orders.index("CDAB")] == "201.5"
    (flags,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["3", "0x8001"]]
    assert flags[2:4] == ["32769", "-32767"]
    assert flags[5:7] == ["0", "15"]
    assert "PART-17" in out


def test_a_known_value_names_its_type_order_and_scale(device: str, capsys) -> None:
    _, out, _ = told(capsys, device, "-r", "0", "-c", "4", "--expect", "201.5")
    assert "{register: 0, type: float32, word_order: CDAB}    # 201.5" in out
    assert "{register: 2, type: uint16, scale: 0.1}    # 201.5" in out


def test_a_value_that_is_not_there_is_said(device: str, capsys) -> None:
    _, _, err = told(capsys, device, "-r", "8", "-c", "4", "--expect", "77")
    assert "Nothing here gives 77" in err


def test_registers_that_do_not_exist_are_told_from_those_that_do(device: str, capsys) -> None:
    code, out, _ = told(capsys, device, "-r", "14", "-c", "6", "--json")
    assert code == 0
    assert json.loads(out)["refused"] == [16, 17, 18, 19]
    code, _, err = told(capsys, device, "-r", "500", "-c", "2")
    assert code == 4
    assert "no such register; many manuals count from 1" in err


def test_json_has_every_meaning(device: str, capsys) -> None:
    _, out, _ = told(capsys, device, "-r", "0", "-c", "2", "--expect", "201.5", "--json")
    found = json.loads(out)
    assert found["schema"] == "edgeqc.plc.probe/1"
    assert found["registers"] == VALUES[:2]
    assert [each["values"]["CDAB"] for each in found["readings"] if each["type"] == "float32"] == [201.5]
    assert found["matches"][0] == {"register": 0, "type": "float32", "word_order": "CDAB", "scale": 1.0, "value": 201.5}


def test_nobody_there_is_unreachable(capsys) -> None:
    code, _, err = told(capsys, "tcp://127.0.0.1:9")
    assert code == 4
    assert "nobody answers there" in err


@pytest.mark.parametrize(
    "arguments", [["gopher://x"], ["tcp://127.0.0.1", "--table", "tape"], ["opc.tcp://x", "--security", "some"]]
)
def test_what_makes_no_sense_is_a_usage_error(capsys, arguments: list[str]) -> None:
    assert told(capsys, *arguments)[0] == 2


def test_nodes_are_named_by_uri_with_type_and_rights(plant: str, capsys) -> None:
    code, out, err = told(capsys, plant, "--security", "none", "-n", "ns=2;s=Zone1", "-n", "ns=2;s=Nothing")
    assert code == 0, err
    (zone,) = [line for line in out.splitlines() if line.startswith("nsu=urn:plant:oven;s=Zone1")]
    assert zone.split()[1:5] == ["Zone1", "Double", "read", "Good"]
    assert "201.5" in zone
    assert "BadNodeIdUnknown" in out


def test_words_behind_a_node_are_understood_like_registers(plant: str, capsys) -> None:
    _, out, _ = told(capsys, plant, "--security", "none", "-n", "nsu=urn:plant:oven;s=Words", "--expect", "201.5")
    assert "{register: 0, type: float32, word_order: CDAB}    # 201.5" in out


def test_without_a_node_the_server_is_browsed(plant: str, capsys) -> None:
    _, out, err = told(capsys, plant, "--security", "none")
    assert "nsu=urn:plant:oven;s=Oven" in out, err


def test_a_namespace_that_the_server_lacks_is_said_with_those_it_has(plant: str, capsys) -> None:
    _, out, _ = told(capsys, plant, "--security", "none", "-n", "nsu=urn:gone;s=X")
    assert "the server has no namespace urn:gone; it has" in out
    assert "urn:plant:oven" in out


LINE = """version: 1
node: box
state_dir: {folder}
stations:
  - name: top
    takt_ms: 100
    budget_ms: 80
    camera: {{type: replay, folder: {folder}, width_px: 64, height_px: 64}}
    recipe: {{engine: {folder}}}
    plc: {{type: modbus, host: 127.0.0.1, port: {port}}}
tags:
  - type: modbus
    name: oven
    {where}
    tags:
      - {{name: zone1, register: 0, type: float32, word_order: CDAB}}
"""


@pytest.mark.parametrize("through", [False, True])
def test_a_configuration_file_says_where_and_what(device: str, tmp_path: Path, capsys, *, through: bool) -> None:
    """With `through` it is the station's PLC, over a connection of the probe's own."""
    port = device.rsplit(":", 1)[1]
    where = "through: top" if through else f"host: 127.0.0.1\n    port: {port}"
    (tmp_path / "line.yaml").write_text(LINE.format(folder=tmp_path, port=port, where=where))
    code, out, _ = told(capsys, str(tmp_path / "line.yaml"), "--source", "oven")
    assert code == 0
    assert "holding registers 0..1 of unit 1" in out
    code, _, err = told(capsys, str(tmp_path / "line.yaml"), "--source", "kiln")
    assert code == 2
    assert "oven" in err
