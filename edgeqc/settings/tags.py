"""The machine's values and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeqc.core.datatype import REGISTER_BITS, WordOrder
from edgeqc.settings.base import Model, Name, Node
from edgeqc.settings.plc import OpcuaEndpoint


class TagSettings(Model):
    """One value of the machine."""

    name: Name
    node: Node | None = Field(None, description="OPC UA NodeId")
    register_address: int | None = Field(None, ge=0, le=65_535, alias="register", description="Modbus holding register")
    type: Literal["uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64", "bool"] = "float64"
    word_order: WordOrder = Field(
        WordOrder.ABCD, description="which byte of a 32-bit value is where; `edgeqc plc probe` shows all four"
    )
    bit: int | None = Field(
        None, ge=0, lt=REGISTER_BITS, description="type bool: this bit of the register, 0 is the lowest; null: any"
    )
    element: int | None = Field(None, ge=0, le=65_535, description="OPC UA: which one of an array, from 0")
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    min: float | None = None
    max: float | None = None


class TagSourceBase(Model):
    """A server of tag values."""

    name: Name
    stale_ms: float = Field(2000, ge=50, description="no sign of life for this long: the source is stale, tags BAD")
    tags: list[TagSettings] = Field(min_length=1)

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        key = {"opcua": "node", "modbus": "register_address"}.get(getattr(self, "type", ""))
        faults = [
            f"tags[{place}].{key.removesuffix('_address')}: is missing, {tag.name} is nowhere without it"
            for place, tag in enumerate(self.tags)
            if key and getattr(tag, key) is None
        ]
        faults += [
            f"tags[{place}].bit: {tag.bit} is a bit of a register, {tag.name} is {tag.type}, not bool"
            for place, tag in enumerate(self.tags)
            if tag.bit is not None and tag.type != "bool"
        ]
        return faults


class OpcuaTagSource(TagSourceBase, OpcuaEndpoint):
    """Tags by OPC UA subscription."""

    type: Literal["opcua"]
    publishing_ms: float = Field(100, ge=10, le=60_000)
    sampling_ms: float = Field(50, ge=0, le=60_000)


class ModbusTagSource(TagSourceBase):
    """Tags by polling Modbus holding registers."""

    type: Literal["modbus"]
    host: str
    port: int = Field(502, ge=1, le=65_535)
    device_id: int = Field(1, ge=0, le=255)
    poll_ms: float = Field(100, ge=10, le=60_000)


class ReplayTagSource(TagSourceBase):
    """Tags from a CSV file: first column seconds, then one column per tag name."""

    type: Literal["replay"]
    file: Path
    speed: float = Field(1.0, gt=0, le=1000)


TagSourceSettings = Annotated[OpcuaTagSource | ModbusTagSource | ReplayTagSource, Field(discriminator="type")]
