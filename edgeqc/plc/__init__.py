"""The link to the PLC: trigger in, result out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeqc.plc.gate import GateLink
from edgeqc.ports import PlcLink
from edgeqc.settings import (
    ModbusPlcSettings,
    ModbusServerPlcSettings,
    NoPlcSettings,
    OpcuaPlcSettings,
    PlcSettings,
)
from edgeqc.settings.gate import DelayGate, EncoderGate

if TYPE_CHECKING:
    from edgeqc.plc.relay import TagRelay


@dataclass(frozen=True, slots=True)
class PlcDoor:
    """Where a station's links come from, one after the other."""

    open: Callable[[], PlcLink]
    """As `open_link`."""
    open_gate: Callable[[], GateLink]
    """As `open_gate`; a defect where there is no gate."""
    close: Callable[[], None]
    """After the last link was closed: stop listening, where the PLC comes to us."""


def plc_door(
    settings: PlcSettings,
    *,
    peer: str,
    state_dir: Path,
    alone: int = 0,
    gate: DelayGate | EncoderGate | None = None,
    relay: TagRelay | None = None,
) -> PlcDoor:
    """Give what opens link after link. A PLC that comes to us finds the port open between them too.

    `alone`: the thread (its `threading.get_ident()`) that has a core to itself and need not sleep for an answer.
    `gate`: the gate that edgeqc opens. `relay`: for tags over the links to a PLC that answers Modbus; closed with the door.
    """
    if isinstance(settings, ModbusServerPlcSettings):
        from edgeqc.plc.modbus_served import HandshakeServer  # noqa: PLC0415 - see open_link

        server = HandshakeServer(settings, peer=peer, gate=gate)
        return PlcDoor(server.open, server.open_gate, server.close)

    def opened() -> PlcLink:
        link = open_link(settings, peer=peer, state_dir=state_dir, alone=alone)
        if relay is not None:
            relay.use(link)
        return link

    return PlcDoor(
        opened,
        lambda: open_gate(settings, gate, peer=peer, state_dir=state_dir),
        lambda: relay.close() if relay is not None else None,
    )


def open_gate(settings: PlcSettings, gate: DelayGate | EncoderGate | None, *, peer: str, state_dir: Path) -> GateLink:
    """Connect to the gate's inputs and output in a PLC that answers; as `open_link`."""
    match settings:
        case ModbusPlcSettings() if gate is not None:
            from edgeqc.plc.gate_modbus import ModbusGate  # noqa: PLC0415 - see open_link

            return ModbusGate(settings, gate.registers, peer=peer)
        case OpcuaPlcSettings() if gate is not None and gate.nodes is not None:
            from edgeqc.plc.opcua import OpcuaGate  # noqa: PLC0415

            return OpcuaGate(settings, gate.nodes, peer=peer, state_dir=state_dir)
        case _:
            raise ValueError("a station without a gate, or without a PLC that answers, has no link to it")


def open_link(settings: PlcSettings, *, peer: str, state_dir: Path, alone: int = 0) -> PlcLink:
    """Connect to the PLC; blocks for 4 s at most. Raises PeerError when it can't.

    `peer` is the name that errors and logs carry, `state_dir` holds our OPC UA certificate, `alone` is as for
    `plc_door`. A station without a PLC has no link: calling this for one is a defect.
    """
    # imported on demand: asyncua alone takes 0.4 s and 26 MiB that a Modbus station needs not have
    match settings:
        case ModbusPlcSettings():
            from edgeqc.plc.modbus import ModbusLink  # noqa: PLC0415

            return ModbusLink(settings, peer=peer, alone=alone)
        case ModbusServerPlcSettings():
            from edgeqc.plc.modbus_served import HandshakeServer  # noqa: PLC0415

            return HandshakeServer(settings, peer=peer).open_alone()
        case OpcuaPlcSettings():
            from edgeqc.plc.opcua import OpcuaLink  # noqa: PLC0415

            return OpcuaLink(settings, peer=peer, state_dir=state_dir)
        case NoPlcSettings():
            raise ValueError("a station with `plc: {type: none}` has no link")
