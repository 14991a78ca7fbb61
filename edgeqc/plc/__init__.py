"""The link to the PLC: trigger in, result out."""

from __future__ import annotations

from pathlib import Path

from edgeqc.ports import PlcLink
from edgeqc.settings import ModbusPlcSettings, NoPlcSettings, OpcuaPlcSettings, PlcSettings


def open_link(settings: PlcSettings, *, peer: str, state_dir: Path) -> PlcLink:
    """Connect to the PLC; blocks for 4 s at most. Raises PeerError when it can't.

    `peer` is the name that errors and logs carry, `state_dir` holds our OPC UA certificate. A station without a PLC
    has no link: calling this for one is a defect.
    """
    # imported on demand: asyncua alone takes 0.4 s and 26 MiB that a Modbus station needs not have
    match settings:
        case ModbusPlcSettings():
            from edgeqc.plc.modbus import ModbusLink  # noqa: PLC0415

            return ModbusLink(settings, peer=peer)
        case OpcuaPlcSettings():
            from edgeqc.plc.opcua import OpcuaLink  # noqa: PLC0415

            return OpcuaLink(settings, peer=peer, state_dir=state_dir)
        case NoPlcSettings():
            raise ValueError("a station with `plc: {type: none}` has no link")
