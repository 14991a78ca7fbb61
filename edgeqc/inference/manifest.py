"""What a model package says of itself: the shape of `manifest.yaml` and `calibration.json`, and their limits."""

from __future__ import annotations

from enum import StrEnum
from math import prod
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeqc.settings import RegionSettings

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Side = Annotated[int, Field(ge=1, le=16_384)]
Line = Annotated[str, Field(pattern=r"^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]*$")]
"""Text without what steers a terminal or turns the direction of writing: people read it where they decide on trust."""
Lines = Annotated[str, Field(pattern=r"^(?:[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]|[\n\t])*$")]

SCORE = "score"
"""Output (1,) float32: 0..1, higher is worse."""
MAP = "map"
"""Output (1, 1, h, w) float32: 0..1 per cell of the input, higher is worse."""
KIND = "kind"
"""Optional output (1, classes, h, w) float32: evidence for each class, largest wins."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Fit(StrEnum):
    """How a region of another shape becomes the engine's input."""

    LETTERBOX = "letterbox"
    STRETCH = "stretch"


class Normalise(StrEnum):
    """What grey levels become: `gain * level + offset`, or `gain * level / mean of the region + offset`."""

    LINEAR = "linear"
    MEAN = "mean"


class Preprocessing(_Strict):
    """How pixels become the engine's input."""

    input: str = "image"
    fit: Fit = Fit.LETTERBOX
    max_scale: float = Field(1.0, gt=0, le=16, description="letterbox: a small region is enlarged no further than this")
    fill: Annotated[int, Field(ge=0, le=255)] | Literal["mean"] = Field(
        0, description="letterbox: grey level around the region; mean: the region's own, so that no edge is made"
    )
    normalise: Normalise = Normalise.LINEAR
    gain: float = 1 / 255
    offset: float = 0.0


class Tensor(_Strict):
    """One input or output as the ONNX must have it."""

    name: Line = Field(min_length=1, max_length=128)
    dtype: Literal["float32", "uint8"] = "float32"
    shape: tuple[Side, ...] = Field(min_length=1, max_length=4)


class Files(_Strict):
    """SHA-256 of every other file of the package."""

    model: Sha256
    calibration: Sha256
    golden: Sha256


class Precision(StrEnum):
    """In what numbers a net computes. bf16 is a way to run the fp32 file; fp16 and int8 are files of their own."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class Backend(StrEnum):
    """What can run a model."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


class VariantName(StrEnum):
    """The files that a package may have beside `model.onnx`: `model.<name>.onnx`, `calibration.<name>.json`."""

    FP16 = "fp16"
    INT8_CPU = "int8-cpu"
    INT8_TENSORRT = "int8-tensorrt"


class Variant(_Strict):
    """The same net in another precision, with its own calibration where its scores differ."""

    model: Sha256
    calibration: Sha256 | None = None
    golden_tolerance: float = Field(gt=0, le=0.1)


class Training(_Strict):
    """Where the model came from."""

    data: Line
    seed: int
    minutes: float = Field(ge=0)
    images: int = Field(ge=0)
    parameters: int = Field(ge=0)
    frame: tuple[Side, Side] | None = Field(None, description="(height, width) of the frames, in px")
    region: RegionSettings | None = Field(None, description="how the part was found in them: the recipe says the same")


class Figures(_Strict):
    """What the model did on images that took no part in training."""

    data: Line
    auroc: float = Field(ge=0, le=1)
    defects: int = Field(ge=0)
    escapes: int = Field(ge=0)
    goods: int = Field(ge=0)
    overkills: int = Field(ge=0)
    threshold: float | None = Field(
        None, ge=0, le=1, description="that escapes and overkills are of, where the calibration has another since"
    )


class Manifest(_Strict):
    """The whole of `manifest.yaml`."""

    format: Literal[1]
    name: Word
    version: Word
    description: Lines = Field("", max_length=1000)
    licence: Line = Field(min_length=1, max_length=200)
    files: Files
    inputs: tuple[Tensor, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=2, max_length=3)
    preprocess: Preprocessing = Preprocessing()
    classes: tuple[Word, ...] = Field(min_length=1, max_length=64)
    golden_tolerance: float = Field(gt=0, le=0.1)
    backends: tuple[Backend, ...] = Field(tuple(Backend), min_length=1, description="which may run it")
    bf16: bool = Field(True, description="may a backend compute the fp32 file in bf16?")
    variants: dict[VariantName, Variant] = Field(default_factory=dict)
    training: Training
    figures: Figures

    @property
    def takes_pixels(self) -> bool:
        """Does the model read grey levels as the camera has them (uint8, [1, height, width, 1])?"""
        return self.inputs[0].dtype == "uint8"

    @property
    def input_shape(self) -> tuple[int, int]:
        """(height, width) of the image that the model reads."""
        shape = self.inputs[0].shape
        return (shape[1], shape[2]) if self.takes_pixels else (shape[2], shape[3])

    @model_validator(mode="after")
    def _tensors(self) -> Self:
        faults = self._image_faults()
        faults += [f"outputs.{t.name}.dtype: {t.dtype} is not float32" for t in self.outputs if t.dtype != "float32"]
        shapes = {tensor.name: tensor.shape for tensor in self.outputs}
        if len(shapes) < len(self.outputs) or not {SCORE, MAP} <= set(shapes) <= {SCORE, MAP, KIND}:
            faults.append(f"outputs: {', '.join(t.name for t in self.outputs)}; must be score, map and, at will, kind")
        else:
            cells = shapes[MAP]
            if shapes[SCORE] != (1,):
                faults.append(f"outputs.score.shape: {list(shapes[SCORE])} is not [1]")
            if len(cells) != _IMAGE_RANK or cells[:2] != (1, 1):
                faults.append(f"outputs.map.shape: {list(cells)} is not [1, 1, height, width]")
            elif KIND in shapes and shapes[KIND] != (1, len(self.classes), *cells[2:]):
                faults.append(f"outputs.kind.shape: {list(shapes[KIND])} is not {[1, len(self.classes), *cells[2:]]}")
        if KIND not in shapes and len(self.classes) > 1:
            faults.append(f"classes: {len(self.classes)} need an output named kind")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _image_faults(self) -> list[str]:
        faults = []
        image = self.inputs[0]
        if image.name != self.preprocess.input:
            faults.append(f"preprocess.input: {self.preprocess.input} is no input; the model has {image.name}")
        if self.takes_pixels:
            if len(image.shape) != _IMAGE_RANK or (image.shape[0], image.shape[-1]) != (1, 1):
                faults.append(f"inputs[0].shape: {list(image.shape)} is not [1, height, width, 1], as uint8 has it")
            if (self.preprocess.normalise, self.preprocess.gain, self.preprocess.offset) != (Normalise.LINEAR, 1, 0):
                faults.append("preprocess: uint8 is given as it is: normalise must be linear, gain 1 and offset 0")
        elif len(image.shape) != _IMAGE_RANK or image.shape[:2] != (1, 1):
            faults.append(f"inputs[0].shape: {list(image.shape)} is not [1, 1, height, width]")
        if prod(image.shape) > _INPUT_LIMIT:
            faults.append(f"inputs[0].shape: {prod(image.shape)} values are over {_INPUT_LIMIT}")
        return faults


class Promise(_Strict):
    """With this confidence, at most this share of good parts is rejected (edgeqc.core.threshold)."""

    overkill: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    goods: int = Field(ge=1, description="independent good parts that it rests on")
    exceedances: int = Field(ge=0, description="how many of them are at the threshold or over it")


class Calibration(_Strict):
    """The whole of `calibration.json`: where good ends."""

    threshold: float = Field(ge=0, le=1, description="a part with this score or more is rejected")
    map_threshold: float = Field(gt=0, lt=1, description="a cell with this much or more belongs to a defect")
    goods: int = Field(ge=0, description="good parts that the threshold was set on")
    defects: int = Field(ge=0)
    hold_threshold: float | None = Field(
        None, ge=0, le=1, description="a part with this score or more, under the threshold, is for a person to look at"
    )
    part_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="for the mean score of several pictures of one part; the line judges each by itself",
    )
    promise: Promise | None = Field(None, description="null: too few good parts for any, or too many that score 1")
    escape_upper95: float | None = Field(None, ge=0, le=1, description="Clopper-Pearson bound of groups with an escape")
    backend: Line = Field("", max_length=200, description="whose scores these are")
    recipe: Line = Field("", max_length=100)
    camera: Line = Field("", max_length=100)


_IMAGE_RANK = 4
"""Batch, channel, height, width."""
_INPUT_LIMIT = 16_777_216  # values; 64 MiB of float32 per slot
