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
    region: RegionSettings = RegionSettings()
    keep_warm_ms: float = Field(
        50,
        ge=0,
        le=10_000,
        description="an idle engine runs a blank part this often, and once just before a part is due; 0 = never",
    )


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
