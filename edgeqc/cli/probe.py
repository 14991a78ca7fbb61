"""`edgeqc plc`: live values of a PLC with all that they could mean, so that the right meaning is found in a minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from edgeqc.cli.console import emit, show, talk, tell
from edgeqc.cli.meanings import Known, plain, show_matches, show_node, show_registers, text

if TYPE_CHECKING:
    from edgeqc.cli.probe_modbus import ModbusProbe
    from edgeqc.cli.probe_opcua import OpcuaProbe
    from edgeqc.settings import OpcuaEndpoint, Settings, TagSourceSettings

Register = Annotated[
    list[int] | None,
    typer.Option("--register", "-r", min=0, max=65_535, help="Modbus: first register, from 0; again for more."),
]
Count = Annotated[int, typer.Option("--count", "-c", min=1, max=1000, help="Modbus: how many from there on.")]
Unit = Annotated[int, typer.Option(min=0, max=255, help="Modbus: unit (device) id.")]
Node = Annotated[list[str] | None, typer.Option("--node", "-n", help="OPC UA: NodeId; again for more.")]
Expect = Annotated[
    float | None,
    typer.Option(help="A value that the machine's panel shows: says which type, order and scale give it."),
]
Live = Annotated[float | None, typer.Option(metavar="SECONDS", min=0.05, help="Look again this often, until Ctrl+C.")]

_PORT: Final = 502
_REGISTERS: Final = 65_536
_COUNT: Final = 8
_SCHEMA: Final = "edgeqc.plc.probe/1"
_OBJECTS: Final = "i=85"
"""Where a server's own nodes begin (OPC 10000-5, 8.2.4)."""


def application() -> typer.Typer:
    """The commands under `plc`."""
    app = typer.Typer(help="Look into a PLC, and at what a PLC or SCADA finds in this box.", no_args_is_help=True)
    app.command("probe")(probe)
    app.command("map")(register_map)
    return app


def probe(  # noqa: PLR0917 - each is a switch of the command
    target: Annotated[
        str, typer.Argument(help="tcp://HOST:PORT (Modbus), opc.tcp://HOST:PORT (OPC UA), or a configuration file.")
    ],
    register: Register = None,
    count: Count = _COUNT,
    table: Annotated[str, typer.Option(help="Modbus: holding, input, coil or discrete.")] = "holding",
    unit: Unit = 1,
    node: Node = None,
    browse: Annotated[bool, typer.Option("--browse", help="OPC UA: also what is below the nodes.")] = False,
    expect: Expect = None,
    tolerance: Annotated[float | None, typer.Option(min=0, help="How far from it; default: 0.5 %.")] = None,
    station: Annotated[str | None, typer.Option(help="Configuration file: this station's PLC.")] = None,
    source: Annotated[str | None, typer.Option(help="Configuration file: this tag source.")] = None,
    security: Annotated[str, typer.Option(help="OPC UA by address: sign_encrypt or none.")] = "sign_encrypt",
    server_certificate: Annotated[Path | None, typer.Option(help="OPC UA by address: the server's.")] = None,
    user: Annotated[str | None, typer.Option(help="OPC UA by address.")] = None,
    password: Annotated[str | None, typer.Option(help="OPC UA.", envvar="EDGEQC_PROBE_PASSWORD")] = None,
    live: Live = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per look.")] = False,
) -> None:
    """Read registers or nodes and show all that they could mean, side by side. Nothing is written.

    --expect 201.5 says which type, word order and scale give the value that the machine's panel shows. A configuration
    file is asked for the PLC of --station or the tags of --source; while the daemon runs, mind how many clients the PLC
    bears.
    """
    from edgeqc.logs import configure  # noqa: PLC0415 - structlog takes 50 ms

    configure(process="probe")  # warnings go to stderr, data to stdout
    known = Known(expect, tolerance)
    if beyond := [start for start in register or () if start + count > _REGISTERS]:
        raise typer.BadParameter(f"{beyond[0]} and {count} on ends over {_REGISTERS - 1}", param_hint="--register")
    if "://" in target:
        plan = _by_address(target, [(start, count) for start in register or [0]], unit, node, security)
    else:
        plan = _by_file(Path(target), station, source)
        if register:
            plan.spans = [(start, count) for start in register]
        plan.nodes = node or plan.nodes
    if plan.endpoint is None:
        from edgeqc.cli.probe_modbus import Kind, ModbusProbe  # noqa: PLC0415 - pymodbus takes 0.1 s

        if table not in tuple(Kind):
            raise typer.BadParameter(f"{table} is none of {', '.join(Kind)}", param_hint="--table")
        with ModbusProbe(plan.host, plan.port, plan.unit) as modbus:
            _again(live, lambda: _look_modbus(modbus, Kind(table), plan, known, as_json=as_json))
        return
    from edgeqc.cli.probe_opcua import OpcuaProbe  # noqa: PLC0415 - asyncua takes 0.5 s

    endpoint = plan.endpoint
    if "://" in target:
        endpoint = endpoint.model_copy(
            update={"server_certificate": server_certificate, "user": user, "password": password}
        )
    with OpcuaProbe(endpoint, plan.state_dir) as opcua:
        everything = browse or plan.nodes == [_OBJECTS]
        _again(live, lambda: _look_opcua(opcua, plan.nodes, known, browse=everything, as_json=as_json))


def register_map(
    file: Annotated[Path, typer.Argument(help="The line's configuration.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the registers that SCADA finds in this box (server.modbus), with their addresses in this configuration."""
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.server.registers import lines  # noqa: PLC0415 - heavy

    found = list(lines([each.name for each in loading.load(file).stations]))
    if as_json:
        emit("edgeqc.plc.map/1", {"registers": found})
        return
    show(
        ("address", "name", "type", "registers", "access", "what"),
        [[str(value) for value in line.values()] for line in found],
    )


@dataclass(kw_only=True, eq=False)
class Plan:
    """Whom to ask for what."""

    host: str = ""
    port: int = _PORT
    unit: int = 1
    spans: list[tuple[int, int]] = field(default_factory=list)
    """First register and how many."""
    endpoint: OpcuaEndpoint | None = None
    """None: Modbus."""
    nodes: list[str] = field(default_factory=list)
    state_dir: Path = Path()


def _by_address(target: str, spans: list[tuple[int, int]], unit: int, node: list[str] | None, security: str) -> Plan:
    wrong = typer.BadParameter(f"{target} is neither tcp://HOST:PORT nor opc.tcp://HOST:PORT", param_hint="TARGET")
    try:
        parts = urlsplit(target)
        port = parts.port or _PORT
    except ValueError:  # a port over 65535, a broken IPv6 address
        raise wrong from None
    if not parts.hostname or parts.port == 0:
        raise wrong
    if parts.scheme == "opc.tcp":
        from edgeqc.loading import default_paths  # noqa: PLC0415 - heavy
        from edgeqc.settings import OpcuaEndpoint, OpcuaSecurity  # noqa: PLC0415 - heavy

        if security not in tuple(OpcuaSecurity):
            raise typer.BadParameter(f"{security} is none of {', '.join(OpcuaSecurity)}", param_hint="--security")
        endpoint = OpcuaEndpoint(url=target, security=OpcuaSecurity(security))
        return Plan(endpoint=endpoint, nodes=node or [_OBJECTS], state_dir=default_paths()[0])
    if parts.scheme != "tcp":
        raise wrong
    return Plan(host=parts.hostname, port=port, unit=unit, spans=spans)


def _by_file(file: Path, station: str | None, source: str | None) -> Plan:
    from edgeqc import loading  # noqa: PLC0415 - heavy

    settings = loading.load(file)
    stations = {f"--station {each.name}": ("stations", index, "plc") for index, each in enumerate(settings.stations)}
    places = stations | {f"--source {each.name}": ("tags", index) for index, each in enumerate(settings.tags)}
    asked = f"--source {source}" if source is not None else f"--station {station or settings.stations[0].name}"
    if asked not in places:
        raise typer.BadParameter(f"{asked}: there are {', '.join(places)}", param_hint=asked.split(maxsplit=1)[0])
    settings = loading.resolved(settings, within=places[asked])  # the secrets of this peer, of no other
    index = places[asked][1]
    peer = settings.stations[index].plc if asked in stations else _reached(settings.tags[index], settings)
    plan = _of_peer(peer, loading.paths(settings)[0])
    if plan is None:
        raise typer.BadParameter(
            f"{asked} is of type {peer.type}: there is no server to ask. There are {', '.join(places)}",
            param_hint=asked.split(maxsplit=1)[0],
        )
    return plan


def _reached(source: TagSourceSettings, settings: Settings) -> TagSourceSettings:
    """The same, with the PLC's own address where the tags are read through a station."""
    from edgeqc.settings import ModbusPlcSettings, ModbusTagSource  # noqa: PLC0415 - heavy

    if isinstance(source, ModbusTagSource):
        for station in settings.stations:
            if station.name == source.through and isinstance(station.plc, ModbusPlcSettings):
                return source.model_copy(update={"host": station.plc.host, "port": station.plc.port})
    return source


def _of_peer(peer: Any, state_dir: Path) -> Plan | None:
    from edgeqc.core.reads import plan_reads  # noqa: PLC0415 - beside what it belongs to
    from edgeqc.settings import (  # noqa: PLC0415 - heavy
        ModbusPlcSettings,
        ModbusTagSource,
        OpcuaPlcSettings,
        OpcuaTagSource,
    )

    match peer:
        case ModbusPlcSettings():
            spans = [(peer.registers.trigger, 13), (peer.registers.result, 16)]
            return Plan(host=peer.host, port=peer.port, unit=peer.device_id, spans=spans)
        case ModbusTagSource():
            spans = [(read.address, read.count) for read in plan_reads(peer.spans, 0)]
            return Plan(host=peer.host or "", port=peer.port, unit=peer.device_id, spans=spans)
        case OpcuaPlcSettings():
            nodes = [text for text in peer.nodes.model_dump().values() if text]
            return Plan(endpoint=peer, nodes=nodes, state_dir=state_dir)
        case OpcuaTagSource():
            return Plan(endpoint=peer, nodes=[tag.node for tag in peer.tags if tag.node], state_dir=state_dir)
        case _:
            return None


def _again(live: float | None, look: Callable[[], None]) -> None:
    """Once, or until Ctrl+C."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            look()
            if live is None:
                return
            time.sleep(live)  # as often as was asked for
            talk("")


def _look_modbus(modbus: ModbusProbe, kind: Any, plan: Plan, known: Known, *, as_json: bool) -> None:
    from edgeqc.cli.probe_modbus import Kind  # noqa: PLC0415 - see probe

    for address, count in plan.spans:
        found = modbus.look(kind, address, count)
        if kind in {Kind.COIL, Kind.DISCRETE}:
            values = {address + place: int(bit) for place, bit in enumerate(found.data)}
            if as_json:
                emit(_SCHEMA, {"table": str(kind), "bits": values, "refused": found.refused})
            else:
                show((str(kind), "value"), [[str(at), str(bit)] for at, bit in values.items()])
            continue
        matching = known.matches(found.data, address)
        if as_json:
            emit(
                _SCHEMA,
                {"table": str(kind), "took_ms": round(found.took_ms, 3), "refused": found.refused}
                | plain(found.data, address, matching),
            )
            continue
        tell(f"{kind} registers {address}..{address + count - 1} of unit {plan.unit}, read in {found.took_ms:.1f} ms")
        show_registers(found.data, address, found.refused)
        show_matches(known, matching)


def _look_opcua(opcua: OpcuaProbe, nodes: list[str], known: Known, *, browse: bool, as_json: bool) -> None:
    reports = opcua.look(nodes, browse=browse)
    if as_json:
        for report in reports:
            fields = {name: value for name, value in vars(report).items() if name != "registers"}
            if report.registers:
                fields |= plain(report.registers, 0, known.matches(report.registers, 0))
            emit(_SCHEMA, fields)
        return
    show(
        ("node", "name", "type", "access", "status", "value", "source time"),
        [
            [
                report.by_uri or report.node,
                report.name,
                report.type + ("[]" if report.array else ""),
                report.access,
                report.fault or report.status,
                text(report.value),
                report.source_ts,
            ]
            for report in reports
        ],
    )
    for report in reports:
        show_node(report, known)
