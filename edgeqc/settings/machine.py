"""Machines whose tags are watched, and their alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeqc.settings.base import Model, Name


class MachineAlarmSettings(Model):
    """When a machine's deviation is an alarm. What is null is as the model's package says."""

    limit: float | None = Field(
        None, gt=0, description="raised above it; 1 is what one row in a hundred of good time has"
    )
    hysteresis: float | None = Field(None, ge=0, description="cleared only below limit - hysteresis")
    peak_ratio: float | None = Field(
        None, ge=0, lt=1, description="cleared, too, below this share of the alarm's own peak: the machine recovers"
    )
    floor_ratio: float | None = Field(
        None, ge=0, description="after clearing raised only above this times the lowest value since"
    )
    floor_s: float | None = Field(
        None, ge=0, description="that is forgotten after this; 0: when the value is low again"
    )
    on_delay_s: float | None = Field(None, ge=0, le=3600)
    off_delay_s: float | None = Field(None, ge=0, le=3600)
    dead_band: float = Field(
        0.25, ge=0, le=10, description="a standing alarm is told again when its value moved by this share"
    )


JudgedState = Literal["unknown", "stopped", "changeover", "warm_up", "running"]


class MachineSettings(Model):
    """One machine under a tag model's eye."""

    name: Name
    model: Path = Field(description="folder of the tag package that `edgeqc train tags` made")
    tags: dict[str, Name] = Field(
        default_factory=dict, description="tag of the model: tag of this line, where the two have other names"
    )
    state: Name | None = Field(None, description="the `state` source that says what it is doing; null: always judged")
    judged_states: tuple[JudgedState, ...] = Field(
        ("running",), min_length=1, description="in any other state its alarm is suppressed"
    )
    priority: Literal["diagnostic", "low", "medium", "high", "critical"] = "high"
    action: str = Field("", max_length=80, description="what to do about it, for whoever reads the alarm")
    acknowledge: bool = Field(True, description="an alarm that is over stays shown until somebody has acknowledged it")
    alarm: MachineAlarmSettings = MachineAlarmSettings()
