"""What only one of a box may have: a core, a camera, a port to listen on, what is written in a PLC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Final

from edgeqc.settings.camera import GigeCameraSettings, OpencvCameraSettings
from edgeqc.settings.gate import GateNodes
from edgeqc.settings.plc import ModbusPlcSettings, ModbusServerPlcSettings, OpcuaNodes, OpcuaPlcSettings
from edgeqc.settings.server import ModbusServerSettings, OpcuaServerSettings, ServerSettings
from edgeqc.settings.station import StationSettings

RESULT_REGISTERS: Final = 16
GATE_REGISTERS: Final = 8
_READ_NODES: Final = frozenset({"trigger", "part_id", "result_ack", "plc_heartbeat", "recipe"})
_READ_GATE_NODES: Final = frozenset({"encoder", "confirmations", "running", "looked"})
_ALL: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


def shared(stations: Sequence[StationSettings], server: ServerSettings) -> list[str]:
    """Each path at which something stands that another one has already, as `path: what`."""
    return [*_claimed_twice(stations), *_ports_twice(stations, server), *_registers_twice(stations)]


def _claimed_twice(stations: Sequence[StationSettings]) -> Iterator[str]:
    first: dict[tuple[str, str], str] = {}
    for whose, value, path in (*_cores(stations), *_cameras(stations), *_nodes(stations)):
        if (before := first.setdefault((whose, value), path)) != path:
            yield f"{path}: {value} is {before} already"


def _ports_twice(stations: Sequence[StationSettings], server: ServerSettings) -> Iterator[str]:
    for (one, path), (other, later) in combinations(_listeners(stations, server), 2):
        if one.port and one.port == other.port and (one.bind == other.bind or _ALL & {one.bind, other.bind}):
            yield f"{later}.port: {other.port} is {path}.port already"


def _registers_twice(stations: Sequence[StationSettings]) -> Iterator[str]:
    for (whose, one, path), (whose_other, other, later) in combinations(_blocks(stations), 2):
        if whose == whose_other and one.start < other.stop and other.start < one.stop:
            written = f"{path} ({one.start} to {one.stop - 1})"
            yield f"{later}: {other.start} to {other.stop - 1} of that PLC are written by {written}, too"


def _cores(stations: Sequence[StationSettings]) -> Iterator[tuple[str, str, str]]:
    """What one line thread has to itself."""
    for index, station in enumerate(stations):
        if station.cpu is not None:
            yield "core", f"core {station.cpu}", f"stations[{index}].cpu"


def _cameras(stations: Sequence[StationSettings]) -> Iterator[tuple[str, str, str]]:
    """What lets only one client in."""
    for index, station in enumerate(stations):
        for number, camera in enumerate(station.all_cameras):
            path = f"stations[{index}].camera" + ("" if station.camera is not None else f"s[{number}]")
            if isinstance(camera, GigeCameraSettings):
                yield "camera", camera.address, f"{path}.address"
            elif isinstance(camera, OpencvCameraSettings) and camera.is_device:
                yield "camera", camera.source, f"{path}.source"


def _nodes(stations: Sequence[StationSettings]) -> Iterator[tuple[str, str, str]]:
    """Every variable that is written, by its server."""
    for index, station in enumerate(stations):
        if not isinstance(station.plc, OpcuaPlcSettings):
            continue
        gate = None if station.tracked_gate is None else station.tracked_gate.nodes
        for place, nodes, read in (("plc", station.plc.nodes, _READ_NODES), ("gate", gate, _READ_GATE_NODES)):
            for name, node in _named(nodes):
                if name not in read:
                    yield station.plc.url, node, f"stations[{index}].{place}.nodes.{name}"


def _named(nodes: OpcuaNodes | GateNodes | None) -> Iterator[tuple[str, str]]:
    for name, node in nodes or ():
        if node is not None:
            yield name, node


_Listening = ModbusServerPlcSettings | ModbusServerSettings | OpcuaServerSettings


def _listeners(stations: Sequence[StationSettings], server: ServerSettings) -> Iterator[tuple[_Listening, str]]:
    for index, station in enumerate(stations):
        if isinstance(station.plc, ModbusServerPlcSettings):
            yield station.plc, f"stations[{index}].plc"
    if server.modbus is not None:
        yield server.modbus, "server.modbus"
    if server.opcua is not None:
        yield server.opcua, "server.opcua"


def _blocks(stations: Sequence[StationSettings]) -> Iterator[tuple[tuple[str, int, int], range, str]]:
    """The registers that are written in each PLC that answers Modbus; of one station's own the station tells."""
    for index, station in enumerate(stations):
        plc = station.plc
        if isinstance(plc, ModbusPlcSettings):
            whose = (plc.host.lower(), plc.port, plc.device_id)
            at = plc.registers.result
            yield whose, range(at, at + RESULT_REGISTERS), f"stations[{index}].plc.registers.result"
            if station.tracked_gate is not None:
                at = station.tracked_gate.registers.output
                yield whose, range(at, at + GATE_REGISTERS), f"stations[{index}].gate.registers.output"
