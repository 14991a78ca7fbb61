"""What a tag model's package says of itself: `manifest.yaml` and `calibration.json`, their shape and limits."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeqc.core.alarm import TripRule
from edgeqc.core.deviation import DeviationModel, MonitorModel, Scale
from edgeqc.inference.manifest import Line, Lines, Sha256, Word

MACHINES: Final = "machines"
"""Name of the network's batch axis, which the file leaves open."""
TAGS: Final = "tags"
"""Input (machines, tags) float32: one row, scaled by `forecast_scale`."""
HIDDEN: Final = "hidden"
"""Input (members, machines, hidden) float32: carried from run to run."""
HIDDEN_NEXT: Final = "hidden_next"
FORECAST: Final = "forecast"
"""Output (members, machines, tags) float32: the next row, by each member."""
QUANTILE: Final = "quantile"
"""Output (machines, 3 tags) float32: of the next row: 5 %, 50 %, 95 %, each for all tags."""

MAX_TAGS: Final = 64
"""Of one machine's model: beyond, a cause is no longer told from three names."""

Numbers = Annotated[tuple[float, ...], Field(min_length=1, max_length=MAX_TAGS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ScaleNumbers(_Strict):
    """A `Scale`."""

    centre: Numbers
    width: Numbers

    def scale(self) -> Scale:
        """As the core has it."""
        return Scale(centre=np.array(self.centre), width=np.array(self.width))

    @model_validator(mode="after")
    def _over_zero(self) -> Self:
        if min(self.width) <= 0 or len(self.width) != len(self.centre):
            raise ValueError("as many widths as centres, all over 0")
        return self


class MonitorNumbers(_Strict):
    """A `MonitorModel`."""

    scale: ScaleNumbers
    axes: tuple[Numbers, ...] = Field(min_length=1, max_length=MAX_TAGS)
    variances: Numbers
    t2_usual: float = Field(gt=0)
    q_usual: float = Field(gt=0)
    smoothing: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        tags = len(self.scale.centre)
        if any(len(axis) != tags for axis in self.axes) or len(self.variances) != len(self.axes):
            raise ValueError(f"axes and variances do not fit {tags} tags")
        if min(self.variances) <= 0:
            raise ValueError("variances must be over 0")
        return self


class AlarmNumbers(_Strict):
    """When the deviation is an alarm; see `TripRule`. The line's configuration may say otherwise."""

    limit: float = Field(gt=0)
    hysteresis: float = Field(0, ge=0)
    peak_ratio: float = Field(0, ge=0, lt=1)
    floor_ratio: float = Field(0, ge=0)
    floor_s: float = Field(0, ge=0)
    on_delay_s: float = Field(0, ge=0)
    off_delay_s: float = Field(0, ge=0)

    def rule(self) -> TripRule:
        """As the core has it."""
        return TripRule(
            limit=self.limit,
            hysteresis=self.hysteresis,
            peak_ratio=self.peak_ratio,
            floor_ratio=self.floor_ratio,
            floor_ns=round(self.floor_s * 1e9),
            on_delay_ns=round(self.on_delay_s * 1e9),
            off_delay_ns=round(self.off_delay_s * 1e9),
        )


class Promise(_Strict):
    """What is promised of false alarms, and on what ground."""

    per_day: float = Field(gt=0, description="false alarms a day that were asked for at most")
    method: Literal["pot", "given"]
    kept: bool = Field(description="is the promise borne out by the good time that was not learned from?")
    bound_per_day: float = Field(ge=0, description="95 % upper bound on false alarms a day, from that time")
    hours: float = Field(ge=0, description="of that time")
    alarms: int = Field(ge=0, description="in that time, with the limit that was set")
    standing_ratio: float | None = Field(
        None, ge=0, le=1, description="share of that time in which the alarm stood; null: not counted"
    )


class TagCalibration(_Strict):
    """The whole of `calibration.json`: what is usual on this machine, and where alarm begins."""

    forecast_scale: ScaleNumbers
    level_scale: ScaleNumbers
    level_usual: Numbers
    surprise_usual: float = Field(gt=0)
    distance_usual: float = Field(gt=0)
    offset_usual: float = Field(gt=0)
    score_usual: float = Field(gt=0)
    plain_usual: float = Field(gt=0)
    surprise_smoothing: float = Field(gt=0, le=1)
    level_smoothing: float = Field(gt=0, le=1)
    monitor: MonitorNumbers
    settle_rows: int = Field(ge=1, le=100_000, description="after a start or a gap nothing is judged for so long")
    alarm: AlarmNumbers
    plain_limit: float = Field(gt=0, description="alarm.limit for the score without a forecast")
    monitor_limit: float = Field(gt=0, description="of T2 and Q; far above usual, since they also see harmless drift")
    promise: Promise | None = None

    def model(self) -> DeviationModel:
        """As the core has it."""
        monitor = self.monitor
        return DeviationModel(
            forecast_scale=self.forecast_scale.scale(),
            level_scale=self.level_scale.scale(),
            level_usual=np.array(self.level_usual),
            surprise_usual=self.surprise_usual,
            distance_usual=self.distance_usual,
            offset_usual=self.offset_usual,
            score_usual=self.score_usual,
            plain_usual=self.plain_usual,
            surprise_smoothing=self.surprise_smoothing,
            level_smoothing=self.level_smoothing,
            monitor=MonitorModel(
                scale=monitor.scale.scale(),
                axes=np.array(monitor.axes),
                variances=np.array(monitor.variances),
                t2_usual=monitor.t2_usual,
                q_usual=monitor.q_usual,
                smoothing=monitor.smoothing,
            ),
        )


class Tag(_Strict):
    """One tag as the model knows it."""

    name: str = Field(min_length=1, max_length=64)
    unit: str = Field("", max_length=20)


class TagTraining(_Strict):
    """Where the model came from."""

    data: Line = Field(max_length=500)
    seed: int
    minutes: float = Field(ge=0)
    rows: int = Field(ge=0)
    parameters: int = Field(ge=0)
    states: tuple[Word, ...] = Field((), description="line states that it learned; empty: any")


class TagFiles(_Strict):
    """SHA-256 of the other files; a package without a network has no model and no golden file."""

    calibration: Sha256
    model: Sha256 | None = None
    golden: Sha256 | None = None


class TagManifest(_Strict):
    """The whole of `manifest.yaml`."""

    format: Literal[1]
    kind: Literal["tags"]
    name: Word
    version: Word
    description: Lines = Field("", max_length=1000)
    licence: Line = Field(min_length=1, max_length=200)
    files: TagFiles
    tags: tuple[Tag, ...] = Field(min_length=1, max_length=MAX_TAGS)
    grid_ms: float = Field(ge=10, le=3_600_000, description="one row each; the model knows no other pace")
    members: int = Field(0, ge=0, le=16)
    hidden: int = Field(0, ge=0, le=1024)
    golden_tolerance: float = Field(1e-3, gt=0, le=0.1)
    training: TagTraining
    figures: dict[str, float | int | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _network(self) -> Self:
        has = {self.files.model is not None, self.files.golden is not None, self.members > 0, self.hidden > 0}
        if len(has) > 1:
            raise ValueError("files.model, files.golden, members and hidden go together: all of them or none")
        return self
