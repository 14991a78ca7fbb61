"""The link to the PLC: trigger in, result out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeqc.ports import PlcLink
from edgeqc.settings import (
    ModbusPlcSettings,
    ModbusServerPlcSettings,
    NoPlcSettings,
    OpcuaPlcSettings,
    PlcSettings,
)


@dataclass(frozen=True, slots=True)
class PlcDoor:
    """Where a station's links come from, one after the other."""

    open: Callable[[], PlcLink]
    """As `open_link`."""
    close: Callable[[], None]
    """After the last link was closed: stop listening, where the PLC comes to us."""


def plc_door(settings: PlcSettings, *, peer: str, state_dir: Path, alone: int = 0) -> PlcDoor:
    """Give what opens link after link. A PLC that comes to us finds the port open between them too.

    `alone`: the thread (its `threading.get_ident()`) that has a core to itself and need not sleep for an answer.
    """
    if isinstance(settings, ModbusServerPlcSettings):
        from edgeqc.plc.modbus_served import HandshakeServer  # noqa: PLC0415 - see open_link

        server = HandshakeServer(settings, peer=peer)
        return PlcDoor(server.open, server.close)
    return PlcDoor(lambda: open_link(settings, peer=peer, state_dir=state_dir, alone=alone), lambda: None)


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
