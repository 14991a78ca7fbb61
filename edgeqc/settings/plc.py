"""The PLC: its address, registers or nodes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeqc.core.handshake import DEPTH, Form
from edgeqc.settings.base import Host, Model, Node, OpcuaUrl, Secret
from edgeqc.settings.listener import Listener


class HandshakeSettings(Model):
    """How results are handed over to the PLC. README draws each form."""

    form: Form = Field(
        Form.PULSE,
        description="pulse: shown for result_hold_ms; ack: shown until the PLC acknowledges it; buffered: results wait "
        "in order, each acknowledgement brings the next",
    )
    depth: int = Field(DEPTH, ge=2, le=64, description="results that are shown or wait at a time; form buffered only")
    plc_heartbeat_ms: float | None = Field(
        None,
        ge=20,
        le=60_000,
        description="the PLC's program changes its heartbeat at least so often, else READY goes off; null: not watched",
    )
    read_back: bool = Field(False, description="read each result back after the write, and compare")

    @property
    def hears_plc(self) -> bool:
        """Does the PLC say more than what it triggers?"""
        return self.form is not Form.PULSE or self.plc_heartbeat_ms is not None


class ModbusRegisters(Model):
    """Holding registers, counted from 0. README has the map of both blocks."""

    trigger: int = Field(
        0,
        ge=0,
        le=65_523,
        description="first register of the trigger block: counter, part id (8), ack (2), heartbeat, recipe",
    )
    result: int = Field(100, ge=0, le=65_519, description="first register of the result block (16 registers)")
    recipe: bool = Field(False, description="the trigger block holds the recipe's number, too; changeover needs it")

    @property
    def overlap(self) -> bool:
        """Do the two blocks, at their full length, share registers? They may in a PLC that has them apart by type."""
        return self.trigger < self.result + 16 and self.result < self.trigger + 13


class ModbusPlcSettings(Model):
    """A PLC that answers Modbus TCP."""

    type: Literal["modbus"]
    host: Host
    port: int = Field(502, ge=1, le=65_535)
    device_id: int = Field(1, ge=0, le=255)
    registers: ModbusRegisters = ModbusRegisters()
    handshake: HandshakeSettings = HandshakeSettings()


class ModbusServerPlcSettings(Listener):
    """A PLC that is a Modbus client itself: it writes the trigger block here and polls the result block."""

    type: Literal["modbus-server"]
    port: int = Field(1503, ge=0, le=65_535, description="502 needs the right to it (CAP_NET_BIND_SERVICE)")
    device_id: int = Field(1, ge=0, le=255)
    connections: int = Field(2, ge=1, le=8, description="at a time; one more is refused")
    idle_s: float = Field(10, ge=1, le=3600, description="a connection that asks nothing for so long is closed")
    silence_ms: float = Field(
        1000, ge=20, le=60_000, description="the PLC has asked for nothing for so long: the link counts as lost"
    )
    registers: ModbusRegisters = ModbusRegisters()
    handshake: HandshakeSettings = HandshakeSettings()


class OpcuaSecurity(StrEnum):
    """How the channel is protected."""

    NONE = "none"
    SIGN_ENCRYPT = "sign_encrypt"


class OpcuaEndpoint(Model):
    """Where an OPC UA server is and how to be let in."""

    url: OpcuaUrl
    security: OpcuaSecurity = Field(OpcuaSecurity.SIGN_ENCRYPT, description="none is logged loudly at each start")
    server_certificate: Path | None = Field(None, description="the server's certificate (DER), pinned")
    trust: Path | None = Field(
        None, description="instead: folder of certificates (servers' or authorities'); an empty one trusts nobody"
    )
    certificate: Path | None = Field(None, description="our own certificate; made in the state directory if null")
    private_key: Path | None = None
    user: str | None = None
    password: Secret | None = None

    def half_identity(self) -> list[str]:
        """What lacks its other half, each as `key: what`."""
        halves = (("certificate", "private_key"), ("private_key", "certificate"), ("password", "user"))
        return [
            f"{other}: is missing, {key} is nothing without it"
            for key, other in halves
            if getattr(self, key) is not None and getattr(self, other) is None
        ]


class OpcuaNodes(Model):
    """NodeIds of the handshake, in any OPC UA text form. Those that are null are left out."""

    trigger: Node
    part_id: Node
    result_sequence: Node
    result_part_id: Node
    result_pass: Node
    result_fail: Node
    result_code: Node
    result_score: Node
    busy: Node
    ready: Node
    fault: Node
    heartbeat: Node
    result_valid: Node | None = None
    overrun: Node | None = None
    stop: Node | None = Field(None, description="Boolean: the station asks for a line stop (station.stop)")
    trigger_ack: Node | None = None
    waiting: Node | None = None
    result_ack: Node | None = Field(None, description="forms ack and buffered need it")
    plc_heartbeat: Node | None = Field(None, description="plc_heartbeat_ms needs it")
    recipe: Node | None = Field(None, description="number of the recipe; changeover needs it")


class OpcuaPlcSettings(OpcuaEndpoint):
    """A PLC that answers OPC UA."""

    type: Literal["opcua"]
    nodes: OpcuaNodes
    handshake: HandshakeSettings = HandshakeSettings()


class NoPlcSettings(Model):
    """No PLC: verdicts go to the journal and MQTT only."""

    type: Literal["none"]


PlcSettings = Annotated[
    ModbusPlcSettings | ModbusServerPlcSettings | OpcuaPlcSettings | NoPlcSettings, Field(discriminator="type")
]
