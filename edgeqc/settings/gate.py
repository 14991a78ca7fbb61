"""The gate behind the camera: how far away it is, and how we know where a part is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeqc.settings.base import Model, Node


class GateRegisters(Model):
    """Holding registers of the PLC, counted from 0. README has the map of both blocks."""

    inputs: int = Field(120, ge=0, le=65_532, description="encoder (2), confirmations, line state: 4 registers")
    output: int = Field(
        140, ge=0, le=65_528, description="eject, sequence, ejections, position, heartbeat: 8 registers"
    )


class GateNodes(Model):
    """NodeIds of the gate, in any OPC UA text form. Those that are null are left out."""

    encoder: Node | None = Field(None, description="32 bits or more, wraps; tracking encoder needs it")
    confirmations: Node | None = Field(None, description="counts parts behind the ejector; confirmed needs it")
    running: Node | None = Field(None, description="Boolean: the line runs; tracking delay needs it")
    looked: Node = Field(description="Boolean: somebody has looked, end the gate's stop request")
    eject: Node
    sequence: Node
    ejections: Node
    heartbeat: Node
    position: Node | None = Field(None, description="encoder value at which the part of `sequence` is at the gate")


class GateBase(Model):
    """What every gate that edgeqc opens has."""

    registers: GateRegisters = Field(GateRegisters(), description="plc.type modbus and modbus-server")
    nodes: GateNodes | None = Field(None, description="plc.type opcua needs them")
    poll_ms: float = Field(
        5.0, ge=1, le=1000, description="how often the gate's inputs are read and its output written"
    )
    confirmed: bool = Field(False, description="the PLC counts the parts that the sensor behind the ejector saw")


class DelayGate(GateBase):
    """The gate is so much running time away. A line whose speed changes needs an encoder."""

    tracking: Literal["delay"]
    travel_ms: float = Field(gt=0, le=3_600_000, description="camera trigger to gate, while the line runs")
    length_ms: float = Field(gt=0, le=60_000, description="output on; at least 2 x (trigger.poll_ms + gate.poll_ms)")
    confirm_ms: float = Field(500, gt=0, le=60_000, description="behind that, by when the confirmation must have come")


class EncoderGate(GateBase):
    """The gate is so many pulses of the conveyor's encoder away: stops and changes of speed do not matter."""

    tracking: Literal["encoder"]
    travel_pulses: int = Field(gt=0, le=1 << 24)
    length_pulses: int = Field(
        gt=0, le=1 << 20, description="output on; at least what passes in 2 x (trigger.poll_ms + gate.poll_ms)"
    )
    confirm_pulses: int = Field(500, gt=0, le=1 << 20)
    most_pulses_per_poll: int = Field(
        10_000, gt=0, le=1 << 24, description="a larger step is no movement: the counter was set anew"
    )


class PartIdGate(Model):
    """The PLC tracks its parts by part id and sequence, and opens the gate itself: edgeqc writes no output."""

    tracking: Literal["part_id"]


GateSettings = Annotated[DelayGate | EncoderGate | PartIdGate, Field(discriminator="tracking")]
