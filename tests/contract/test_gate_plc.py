"""The gate at PLCs that answer Modbus, that poll us, and that answer OPC UA: parts are followed by the encoder there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from asyncua import ua
from asyncua.server.server import Server
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from edgeqc.cli.peers import look_at_gate
from edgeqc.core.track import GateEvent, GateFact
from edgeqc.errors import PeerError
from edgeqc.plc import PlcDoor, plc_door
from edgeqc.plc.gate import GateLink
from edgeqc.plc.modbus_served import HandshakeServer
from edgeqc.plc.registers import TriggerImage
from edgeqc.records import AlertChange, Event, Trigger
from edgeqc.settings import ModbusPlcSettings, ModbusServerPlcSettings, OpcuaPlcSettings, PlcSettings, StationSettings
from edgeqc.settings.gate import DelayGate, EncoderGate
from edgeqc.settings.plc import OpcuaNodes
from edgeqc.sim.plc_modbus import ModbusPlc
from edgeqc.station.gate import GateWatch
from edgeqc.station.part import Part

PATIENCE_S = 20.0
"""For a shared, noisy machine."""
TRAVEL_S = 0.5
START = (1 << 32) - 500
"""The encoder wraps on the way."""
GATE: dict[str, Any] = {
    "tracking": "encoder", "travel_pulses": 1000, "length_pulses": 100, "confirm_pulses": 200, "confirmed": True,
    "poll_ms": 2,
}  # fmt: skip
INPUTS, OUTPUT = 120, 140
NODES = {
    "encoder": ua.VariantType.UInt32, "running": ua.VariantType.Boolean, "confirmations": ua.VariantType.UInt16, "looked": ua.VariantType.Boolean,
    "eject": ua.VariantType.Boolean, "sequence": ua.VariantType.UInt32, "ejections": ua.VariantType.UInt16,
    "position": ua.VariantType.UInt32, "heartbeat": ua.VariantType.UInt16,
}  # fmt: skip


class GatePlc(ABC):
    """A PLC with a conveyor: `drive` turns the encoder, the output is what the box wrote last. A loop in a thread."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.encoder = START
        self.confirmations = 0
        self.running = True
        self.looked = False
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.open())
        self._ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.shut())
        self.loop.close()

    def drive(self, pulses: int) -> None:
        self.encoder += pulses
        self._put()

    def confirm(self) -> None:
        self.confirmations += 1
        self._put()

    def run(self, on: bool) -> None:
        """Let the line run, or stop it."""
        self.running = on
        self._put()

    def look(self, on: bool) -> None:
        """Somebody has looked."""
        self.looked = on
        self._put()

    def refuse(self) -> None:
        """Take no output from now on."""
        asyncio.run_coroutine_threadsafe(self.shun(), self.loop).result(PATIENCE_S)

    def _put(self) -> None:
        asyncio.run_coroutine_threadsafe(self.put(), self.loop).result(PATIENCE_S)

    @property
    def inputs(self) -> bytes:
        return struct.pack(
            ">IHH", self.encoder % (1 << 32), self.confirmations & 0xFFFF, self.running | self.looked << 1
        )

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def shut(self) -> None: ...

    @abstractmethod
    async def put(self) -> None:
        """Show encoder, confirmations and whether the line runs."""

    @abstractmethod
    async def shun(self) -> None:
        """Take no output."""

    @property
    @abstractmethod
    def link(self) -> PlcSettings:
        """How it is reached, or reaches us."""

    @property
    def gate(self) -> EncoderGate:
        return EncoderGate(**GATE)

    @property
    def door(self) -> PlcDoor:
        """What opens links to it."""
        return self.door_of(self.gate)

    def door_of(self, gate: EncoderGate | DelayGate) -> PlcDoor:
        return plc_door(self.link, peer="press", state_dir=self.state_dir, gate=gate)

    @property
    @abstractmethod
    def output(self) -> tuple[bool, int, int, int, int]:
        """EJECT, sequence, ejections, position, heartbeat."""

    @abstractmethod
    def hang_up(self) -> None:
        """End the connection."""


class ModbusServer(GatePlc):
    """It answers Modbus."""

    async def open(self) -> None:
        self.server = ModbusPlc(lambda _image, _at: None)
        await self.put()
        await self.server.start(0, TriggerImage(counter=0, part_id="", ack=0, heartbeat=0, recipe=0))

    async def shut(self) -> None:
        await self.server.stop()

    async def put(self) -> None:
        self.server._memory[2 * INPUTS : 2 * INPUTS + 8] = self.inputs

    async def shun(self) -> None:
        await self.server.refuse(True)

    @property
    def link(self) -> PlcSettings:
        assert self.server._server is not None
        port = self.server._server.sockets[0].getsockname()[1]
        return ModbusPlcSettings(type="modbus", host="127.0.0.1", port=port)

    @property
    def output(self) -> tuple[bool, int, int, int, int]:
        return output_of(bytes(self.server._memory[2 * OUTPUT : 2 * OUTPUT + 16]))

    def hang_up(self) -> None:
        self.loop.call_soon_threadsafe(lambda: [transport.abort() for transport in list(self.server._open)])


class ModbusClient(GatePlc):
    """It comes to us: in each cycle it writes the inputs and fetches the output (function code 23), by pymodbus."""

    async def open(self) -> None:
        self._port = 0
        self._server = HandshakeServer(self.link, peer="press", gate=self.gate)
        with contextlib.suppress(PeerError):  # nobody has asked yet; it listens from now on
            self._server.open(0)
        self._port = self._server.port
        self._fetched = bytes(16)
        self._running = self._fetches = True
        self._cycle = asyncio.create_task(self._cycles(), name="plc cycles")

    async def shut(self) -> None:
        self._running = False  # pymodbus may take a cancellation for a fault of the peer
        await self._cycle
        self._client.close()
        await asyncio.to_thread(self._server.close)

    async def put(self) -> None:
        """The next cycle writes them."""

    async def shun(self) -> None:
        self._fetches = False

    async def _cycles(self) -> None:
        self._client = AsyncModbusTcpClient("127.0.0.1", port=self._port, timeout=0.5, retries=0)
        while self._running:
            if not self._client.connected:
                await self._client.connect()
            with contextlib.suppress(ModbusException):  # hung up in the middle: the next cycle connects
                values = list(struct.unpack(">4H", self.inputs))
                if self._fetches:
                    reply = await self._client.readwrite_registers(
                        read_address=OUTPUT, read_count=8, write_address=INPUTS, values=values
                    )
                    self._fetched = struct.pack(">8H", *reply.registers)
                else:
                    await self._client.write_registers(INPUTS, values)
            await asyncio.sleep(0.002)  # a PLC's cycle

    @property
    def link(self) -> ModbusServerPlcSettings:
        return ModbusServerPlcSettings(type="modbus-server", bind="127.0.0.1", peers=["127.0.0.1"], port=self._port)

    @property
    def gate(self) -> EncoderGate:
        return EncoderGate(**GATE | {"poll_ms": 10})

    def door_of(self, gate: EncoderGate | DelayGate) -> PlcDoor:
        return PlcDoor(self._server.open, self._server.open_gate, self._server.close)

    @property
    def output(self) -> tuple[bool, int, int, int, int]:
        return output_of(self._fetched)

    def hang_up(self) -> None:
        self.loop.call_soon_threadsafe(self._client.close)


class OpcuaServer(GatePlc):
    """It answers OPC UA, by asyncua's server."""

    async def open(self) -> None:
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        self._server = Server()
        await self._server.init()
        self._server.set_endpoint("opc.tcp://127.0.0.1:0")
        self._server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await self._server.register_namespace("urn:edgeqc:test:gate")
        self._ids = {name: ua.NodeId(f"Gate.{name}", space) for name in NODES}
        for name, kind in NODES.items():
            node = await self._server.nodes.objects.add_variable(
                self._ids[name], name, False if kind is ua.VariantType.Boolean else 0, kind
            )
            if name not in {"encoder", "running", "confirmations", "looked"}:
                await node.set_writable()
        await self.put()
        await self._server.start()

    async def shut(self) -> None:
        await self._server.stop()

    async def put(self) -> None:
        shown = {
            "encoder": self.encoder % (1 << 32),
            "running": self.running,
            "looked": self.looked,
            "confirmations": self.confirmations & 0xFFFF,
        }
        for name, value in shown.items():
            await self._server.write_attribute_value(self._ids[name], ua.DataValue(ua.Variant(value, NODES[name])))

    async def shun(self) -> None:
        await self._server.get_node(self._ids["eject"]).set_read_only()

    @property
    def gate(self) -> EncoderGate:
        return EncoderGate(**GATE | {"nodes": {name: node.to_string() for name, node in self._ids.items()}})

    @property
    def link(self) -> PlcSettings:
        assert self._server.bserver is not None
        port = self._server.bserver._server.sockets[0].getsockname()[1]
        return OpcuaPlcSettings.model_validate(
            {
                "type": "opcua",
                "url": f"opc.tcp://127.0.0.1:{port}",
                "security": "none",
                "nodes": {name: "i=1" for name, field in OpcuaNodes.model_fields.items() if field.is_required()},
            }
        )

    @property
    def output(self) -> tuple[bool, int, int, int, int]:
        names = ("eject", "sequence", "ejections", "position", "heartbeat")
        aspace = self._server.iserver.aspace
        eject, *numbers = (
            aspace.read_attribute_value(self._ids[name], ua.AttributeIds.Value).Value.Value for name in names
        )
        return (bool(eject), *numbers)  # type: ignore[return-value]

    def hang_up(self) -> None:
        (decoder,) = [child for child in psutil.Process().children() if "opcua_peer" in " ".join(child.cmdline())]
        decoder.kill()


def output_of(block: bytes) -> tuple[bool, int, int, int, int]:
    status, sequence, ejections, position, heartbeat, _ = struct.unpack(">HIHIHH", block)
    return bool(status & 1), sequence, ejections, position, heartbeat


@pytest.fixture(params=[ModbusServer, ModbusClient, OpcuaServer])
def plc(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GatePlc]:
    made: GatePlc = request.param(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def told() -> list[object]:
    return []


@pytest.fixture
def gate(plc: GatePlc, told: list[object]) -> Iterator[GateWatch]:
    with watching(plc, plc.gate, told) as watch:
        yield watch


@contextlib.contextmanager
def watching(
    plc: GatePlc, settings: EncoderGate | DelayGate, told: list[object], *, call_s: float = PATIENCE_S
) -> Iterator[GateWatch]:
    watch = GateWatch(
        settings,
        plc.door_of(settings).open_gate,
        station="top",
        note=told.append,
        on_failure=lambda: told.append("failure"),
        on_looked=lambda: told.append("looked"),
        on_link=lambda up, _reason: told.append("up" if up else "down"),
        call_ns=int(call_s * 1e9),
    )
    watch.start()
    try:
        beat = plc.output[4]
        until(lambda: plc.output[4] not in {0, beat})
        yield watch
    finally:
        watch.stop()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def settled(plc: GatePlc) -> None:
    """Two more polls have gone by."""
    beat = plc.output[4]
    until(lambda: (plc.output[4] - beat) % (1 << 16) >= 3)


def part(sequence: int) -> Part:
    now_ns = time.monotonic_ns()
    trigger = Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=now_ns, wall_ns=0)
    return Part(trigger=trigger, deadline_ns=now_ns, fail_safe_at_ns=now_ns)


def facts(told: list[object]) -> list[tuple[object, object]]:
    return [(one.facts["fact"], one.facts["part"]) for one in told if isinstance(one, Event) and one.name == "gate"]


def test_the_part_that_did_not_pass_is_ejected_at_the_gate_and_no_other(
    plc: GatePlc, gate: GateWatch, told: list[object]
) -> None:
    for sequence in (1, 2, 3):
        settled(plc)
        gate.part(part(sequence), placed=True)
        settled(plc)
        plc.drive(300)
    gate.passed(1)
    gate.passed(3)
    settled(plc)
    assert not plc.output[0]
    plc.drive(150)  # part 1 is at the gate: it passed
    settled(plc)
    assert not plc.output[0]
    plc.drive(270)  # part 2
    until(lambda: plc.output[0])
    assert plc.output[1:4] == (2, 1, (START + 1300) % (1 << 32))
    plc.confirm()
    settled(plc)
    plc.drive(100)
    until(lambda: not plc.output[0])
    plc.drive(300)  # part 3 and beyond
    settled(plc)
    assert plc.output[1:3] == (2, 1)
    assert facts(told) == [("eject", 2)]


def test_an_ejector_that_did_not_fire_is_an_alert_and_asks_for_a_stop(
    plc: GatePlc, gate: GateWatch, told: list[object]
) -> None:
    settled(plc)
    gate.part(part(1), placed=True)
    settled(plc)
    plc.drive(1050)
    until(lambda: plc.output[0])
    settled(plc)
    plc.drive(300)
    until(lambda: "failure" in told)
    assert facts(told) == [("eject", 1), ("not_ejected", 1)]
    assert [alert.id for alert in told if isinstance(alert, AlertChange) and alert.active] == ["top.gate"]


def test_a_part_that_goes_by_while_the_link_is_down_is_told(plc: GatePlc, gate: GateWatch, told: list[object]) -> None:
    settled(plc)
    gate.part(part(1), placed=True)
    settled(plc)
    plc.hang_up()
    plc.drive(1500)
    until(lambda: ("went_by", 1) in facts(told))
    assert "failure" in told


def test_by_running_time_a_part_comes_to_the_gate_only_while_the_line_runs(plc: GatePlc, told: list[object]) -> None:
    by_time = DelayGate(tracking="delay", travel_ms=TRAVEL_S * 1000, length_ms=2000, poll_ms=100, nodes=plc.gate.nodes)
    with watching(plc, by_time, told) as gate:
        plc.run(False)
        settled(plc)
        gate.part(part(1), placed=True)
        settled(plc)
        time.sleep(2 * TRAVEL_S)
        assert not plc.output[0]
        plc.run(True)
        until(lambda: plc.output[0])
        assert plc.output[1:3] == (1, 1)
        until(lambda: not plc.output[0])
    assert facts(told) == [("eject", 1)]


def test_a_bad_part_is_told_of_though_the_output_cannot_be_written(plc: GatePlc, told: list[object]) -> None:
    with watching(plc, plc.gate, told, call_s=2) as gate:
        settled(plc)
        gate.part(part(1), placed=True)
        settled(plc)
        plc.refuse()
        until(lambda: "down" in told)
        plc.drive(1500)
        until(lambda: ("went_by", 1) in facts(told))
        assert "failure" in told
        assert not gate.up
        assert told.count("down") == 1, "however often it is tried"


def test_only_a_looked_that_goes_on_ends_a_stop(plc: GatePlc, gate: GateWatch, told: list[object]) -> None:
    for on in (True, False, True):
        plc.look(on)
        settled(plc)
    assert told.count("looked") == 2
    plc.hang_up()  # still on when the gate is watched again
    until(lambda: told.count("up") == 2 or isinstance(plc, ModbusClient))  # it is back before it is missed
    settled(plc)
    assert told.count("looked") == 2


def test_a_part_that_nobody_can_place_is_told_at_once(gate: GateWatch, told: list[object]) -> None:
    gate.part(part(1), placed=False)
    assert facts(told) == [("untracked", 1)]
    assert "failure" in told


def test_a_look_shows_the_inputs_and_puts_the_output_off(plc: GatePlc) -> None:
    if isinstance(plc, ModbusClient):
        plc._server.close()  # the look listens in its stead
    station = StationSettings.model_validate(
        {
            "name": "press", "takt_ms": 100, "budget_ms": 80, "trigger": {"source": "plc"},
            "camera": {"type": "replay", "folder": "parts", "width_px": 640, "height_px": 480},
            "recipe": {"engine": "engines/part/1"}, "plc": plc.link, "gate": plc.gate,
        }
    )  # fmt: skip
    plc.confirm()
    before = plc.output[4]
    seen = look_at_gate(station, state_dir=plc.state_dir, write=False)
    assert (seen["encoder"], seen["confirmations"], seen["looked"]) == (START, 1, False)
    assert plc.output[4] == before or isinstance(plc, ModbusClient)  # there is always a block to fetch
    look_at_gate(station, state_dir=plc.state_dir, write=True)
    until(lambda: plc.output[4] not in {0, before})
    assert not plc.output[0]


def test_an_alert_that_stands_is_told_anew_when_a_bad_part_may_be_among_the_good_ones(told: list[object]) -> None:
    """What comes first may be the lesser thing: an output that was short."""

    def no_link() -> GateLink:
        raise PeerError("gate", "nobody connects here")

    watch = GateWatch(
        EncoderGate(tracking="encoder", travel_pulses=100, length_pulses=50),
        no_link,
        station="top",
        note=told.append,
        on_failure=lambda: None,
        on_looked=lambda: None,
        on_link=lambda _up, _reason: None,
    )
    for fact, sequence in (
        (GateFact.TOO_SHORT, 1),
        (GateFact.TOO_SHORT, 2),
        (GateFact.WENT_BY, 3),
        (GateFact.TOO_SHORT, 4),
    ):
        watch._tell([GateEvent(fact=fact, sequence=sequence, part_id="")])
    alerts = [one.text for one in told if isinstance(one, AlertChange)]
    assert [text.split(":")[0] for text in alerts] == ["part 1", "part 3"]
    assert "went by" in alerts[1]
