"""The PLC: its address, registers or nodes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeqc.settings.base import Model, Node, Secret


class ModbusRegisters(Model):
    """Holding registers, counted from 0. README has the map of both blocks."""

    trigger: int = Field(0, ge=0, le=65_527, description="first register of the trigger block: counter, part id (8)")
    result: int = Field(100, ge=0, le=65_519, description="first register of the result block (16 registers)")


class ModbusPlcSettings(Model):
    """A PLC that answers Modbus TCP."""

    type: Literal["modbus"]
    host: str
    port: int = Field(502, ge=1, le=65_535)
    device_id: int = Field(1, ge=0, le=255)
    registers: ModbusRegisters = ModbusRegisters()


class OpcuaSecurity(StrEnum):
    """How the channel is protected."""

    NONE = "none"
    SIGN_ENCRYPT = "sign_encrypt"


class OpcuaEndpoint(Model):
    """Where an OPC UA server is and how to be let in."""

    url: str = Field(pattern=r"^opc\.tcp://.+")
    security: OpcuaSecurity = Field(OpcuaSecurity.SIGN_ENCRYPT, description="none is logged loudly at each start")
    server_certificate: Path | None = Field(None, description="the server's certificate (DER), pinned")
    certificate: Path | None = Field(None, description="our own certificate; made in the state directory if null")
    private_key: Path | None = None
    user: str | None = None
    password: Secret | None = None


class OpcuaNodes(Model):
    """NodeIds of the handshake, in any OPC UA text form."""

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


class OpcuaPlcSettings(OpcuaEndpoint):
    """A PLC that answers OPC UA."""

    type: Literal["opcua"]
    nodes: OpcuaNodes


class NoPlcSettings(Model):
    """No PLC: verdicts go to the journal and MQTT only."""

    type: Literal["none"]


PlcSettings = Annotated[ModbusPlcSettings | OpcuaPlcSettings | NoPlcSettings, Field(discriminator="type")]
