"""What is looked for on a product: the region, the engine, the threshold."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeqc.settings.base import Model, Name


class RegionMode(StrEnum):
    """Which part of the frame is judged."""

    FULL = "full"
    FIXED = "fixed"
    LOCATE = "locate"


class RegionSettings(Model):
    """The region of interest: all, a fixed box, or the part found against its background."""

    mode: RegionMode = RegionMode.FULL
    x_px: int = Field(0, ge=0)
    y_px: int = Field(0, ge=0)
    width_px: int = Field(0, ge=0)
    height_px: int = Field(0, ge=0)
    background: Literal["dark", "bright"] = Field("dark", description="locate: what surrounds the part")
    contrast: int = Field(24, ge=1, le=254, description="locate: grey levels between background and part")
    margin_px: int = Field(0, ge=0, le=512)


class ViewSettings(Model):
    """How one of several cameras' frames are judged; what is left out is as the recipe says."""

    engine: Path | None = Field(
        None, description="a model package of its own: views that differ need models that differ"
    )
    backend: Literal["onnxruntime", "openvino", "tensorrt", "auto"] | None = None
    precision: Literal["fp32", "bf16", "fp16", "int8", "auto"] | None = None
    threshold: float | None = Field(
        None, ge=0, le=1, description="null: the recipe's, or with an engine of its own that package's calibration"
    )
    region: RegionSettings | None = None


class RecipeSettings(Model):
    """What is looked for on this product."""

    name: Name = "default"
    number: int = Field(0, ge=0, le=65_535, description="what the PLC calls it; needed with changeover")
    engine: Path = Field(description="folder of the model package, e.g. engines/demo-part/1")
    backend: Literal["onnxruntime", "openvino", "tensorrt", "auto"] = Field(
        "onnxruntime", description="auto: each that is installed and allowed is tried at the start, the fastest taken"
    )
    precision: Literal["fp32", "bf16", "fp16", "int8", "auto"] = Field(
        "fp32", description="bf16: openvino computes the fp32 file so; fp16, int8: the package must have that file"
    )
    threads: int = Field(1, ge=1, le=64)
    threshold: float | None = Field(None, ge=0, le=1, description="null: the package's own calibration")
    hold: bool = Field(
        False, description="reject parts of the calibration's hold band, too, with cause hold: for a person to look at"
    )
    region: RegionSettings = RegionSettings()
    keep_warm_ms: float = Field(
        50,
        ge=0,
        le=10_000,
        description="an idle engine runs a blank part this often, and once just before a part is due; 0 = never",
    )
    views: dict[Name, ViewSettings] = Field(
        default_factory=dict, description="with several cameras: by camera name, what is judged otherwise there"
    )

    def seen_by(self, camera: str) -> RecipeSettings:
        """The recipe for one camera's frames: with what its view has of its own."""
        view = self.views.get(camera)
        if view is None:
            return self
        own = {name: value for name in ViewSettings.model_fields if (value := getattr(view, name)) is not None}
        if view.engine is not None:
            own["threshold"] = view.threshold  # never that of another engine
        return self.model_copy(update=own)


class ChangeoverSettings(Model):
    """Several products on one line: with each trigger the PLC says by number which recipe judges the part.

    All recipes are loaded, warm and checked before the line is armed. A number that is none of them is a reject.
    """

    recipes: list[RecipeSettings] = Field(min_length=1, max_length=15, description="beside the station's `recipe`")
    memory_mb: int = Field(
        512, ge=64, le=65_536, description="what the engines of all recipes may take together; over it, nothing starts"
    )


class EngineSettings(Model):
    """Whose engine packages may run on this box."""

    trust: Path = Field(
        Path("/etc/edgeqc/trust"), description="folder of public keys (*.pub): packages that one of them signed may run"
    )
    unsigned: Literal["refuse", "allow"] = Field(
        "refuse", description="packages that none of these keys signed; allow is logged loudly at each start"
    )
