"""From a network to a package folder: ONNX, threshold, golden vectors, figures, and the manifest over them all."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import nn

from edgeqc.errors import EdgeqcError
from edgeqc.inference import writing
from edgeqc.inference.engine import open_engine
from edgeqc.inference.manifest import KIND, MAP, SCORE, Calibration
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import Package
from edgeqc.inference.preprocess import Preprocess
from edgeqc.inference.writing import Contents
from edgeqc.ports import Engine
from edgeqc.train.figures import image_auroc
from edgeqc.train.net import Exported, Traits
from edgeqc.train.samples import Raw, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What the manifest says of the model's making."""

    name: str
    version: str
    description: str
    licence: str
    data: str
    seed: int
    minutes: float
    images: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Image scores of a labelled set, by the deployed path."""

    score: NDArray[np.float64]
    flawed: NDArray[np.bool_]

    @property
    def auroc(self) -> float:
        """Chance that a bad part scores higher than a good one; ties count half."""
        found = image_auroc(self.score[~self.flawed], self.score[self.flawed])
        return 0.0 if math.isnan(found) else found

    def escapes(self, threshold: float) -> int:
        """Bad parts that would pass."""
        return int((self.score[self.flawed] < threshold).sum())

    def overkills(self, threshold: float) -> int:
        """Good parts that would be rejected."""
        return int((self.score[~self.flawed] >= threshold).sum())


def export_onnx(net: nn.Module, traits: Traits, task: Task, *, mirrored: bool = False) -> bytes:
    """The ONNX file: static shapes, batch normalising folded in, all weights inside.

    `mirrored`: it judges each image four times, mirrored, and takes the mean.
    """
    height, width = task.input_shape
    if height % traits.deepest or width % traits.deepest:
        raise ValueError(f"input shape {task.input_shape} is no multiple of {traits.deepest}")
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, but the other exporter needs a package more
        torch.onnx.export(
            Exported(net, traits.peak_cells, mirrored=mirrored).eval(),
            (torch.zeros(1, 1, height, width),),
            buffer,  # type: ignore[arg-type, unused-ignore]
            input_names=[task.spec.input],
            output_names=[SCORE, MAP, KIND],
            opset_version=_OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def run_scores(
    engine: Engine, task: Task, frames: Iterator[Raw], told: Callable[[int], None] = lambda _count: None
) -> tuple[Scores, NDArray[np.float32]]:
    """Score frames by the line's own path; also returns a few prepared inputs for the golden vectors.

    A frame in which no part is found scores 1: the line rejects it.
    """
    preprocess = Preprocess(task.spec, task.input_shape, task.frame_shape, task.region)
    scores: list[float] = []
    flawed: list[bool] = []
    kept: list[NDArray[np.float32]] = []
    slot = engine.acquire()
    try:
        for count, frame in enumerate(frames, 1):
            image = slot.input(task.spec.input)
            if preprocess.into(frame.pixels, image).found:
                if len(kept) < _GOLDEN_CASES and (frame.kind >= 0) == bool(len(kept) % 2):
                    kept.append(np.array(image, np.float32))
                engine.submit(slot)
                engine.wait(slot, time.monotonic_ns())
                scores.append(float(np.asarray(slot.output(SCORE))[0]))
            else:
                scores.append(1.0)
            flawed.append(frame.kind >= 0)
            told(count)
    finally:
        slot.release()
    return Scores(score=np.array(scores), flawed=np.array(flawed, np.bool_)), np.stack(kept)


def best_threshold(scores: Scores) -> float:
    """The middle, in logits, of the widest stretch where escapes plus three times the overkills (as rates) are fewest.

    Three: a line that stops for good parts is switched off, so overkill weighs more here than its price.
    """
    logits = np.sort(np.unique(_logit(scores.score)))
    edges = np.concatenate([[logits[0] - 1], (logits[1:] + logits[:-1]) / 2, [logits[-1] + 1]])
    goods, bads = max(1, int((~scores.flawed).sum())), max(1, int(scores.flawed.sum()))
    cuts = 1 / (1 + np.exp(-edges))
    costs = np.array([scores.escapes(cut) / bads + 3 * scores.overkills(cut) / goods for cut in cuts])
    best = np.flatnonzero(costs <= costs.min() + 1e-12)
    gaps = np.diff(np.concatenate([[edges[0]], logits, [edges[-1]]]))
    return float(cuts[best[gaps[best].argmax()]])


def write_package(
    folder: Path,
    *,
    task: Task,
    model: bytes,
    origin: Origin,
    calibration: Calibration,
    test: Scores,
    golden: NDArray[np.float32],
    key: Ed25519PrivateKey | None,
) -> Package:
    """Write all files, sign them, open the package as the daemon would, and return it.

    Whatever goes wrong before, the disk that is full included, an earlier package in `folder` stays as it is.
    """
    threshold = calibration.threshold
    engine = OnnxRuntimeEngine(model)
    arrays = {f"input.{task.spec.input}": golden}
    for name, values in _outputs(engine, task, golden).items():
        arrays[f"output.{name}"] = values
    manifest = {
        "format": 1,
        "name": origin.name,
        "version": origin.version,
        "description": origin.description,
        "licence": origin.licence,
        "inputs": _tensors(engine, "inputs"),
        "outputs": _tensors(engine, "outputs"),
        "preprocess": task.spec.model_dump(mode="json"),
        "classes": list(task.classes),
        "golden_tolerance": _TOLERANCE,
        "training": {
            "data": "".join(filter(str.isprintable, origin.data)),  # it holds a folder's name
            "seed": origin.seed,
            "minutes": round(origin.minutes, 1),
            "images": origin.images,
            "parameters": origin.parameters,
            "frame": list(task.frame_shape),
            "region": task.region.model_dump(mode="json"),
        },
        "figures": {
            "data": "images that took no part in training or in setting the threshold",
            "auroc": round(test.auroc, 5),
            "defects": int(test.flawed.sum()),
            "escapes": test.escapes(threshold),
            "goods": int((~test.flawed).sum()),
            "overkills": test.overkills(threshold),
        },
    }
    contents = Contents(manifest=manifest, model=model, calibration=said(calibration), golden=arrays)
    package = writing.write_package(folder, contents, key=key)
    open_engine(package).close()
    return package


def said(calibration: Calibration) -> dict[str, Any]:
    """A calibration as its file has it: what is not said is left out."""
    return calibration.model_dump(mode="json", exclude_none=True)


def validated(validation: Scores) -> Calibration:
    """A threshold from pictures that were held back, without a promise."""
    threshold = round(best_threshold(validation), 4)
    return Calibration(
        threshold=threshold,
        map_threshold=min(0.5, threshold),  # so that a rejected part always has a place to point at
        goods=int((~validation.flawed).sum()),
        defects=int(validation.flawed.sum()),
    )


def golden_of(task: Task, frames: Iterator[Raw]) -> NDArray[np.float32]:
    """Frames as the engine's inputs, for the golden vectors."""
    preprocess = Preprocess(task.spec, task.input_shape, task.frame_shape, task.region)
    cases = []
    for frame in frames:
        image = np.zeros((1, 1, *task.input_shape), np.float32)
        if preprocess.into(frame.pixels, image).found:
            cases.append(image)
    if not cases:
        raise EdgeqcError("no part is found in any picture; is --region right?")
    return np.stack(cases)


_OPSET: Final = 17
_GOLDEN_CASES: Final = 4
_TOLERANCE: Final = 0.02
"""On probabilities. In fp32 CPUs differ by 1e-5; the rest is for backends of less precision, and they must hold it."""


def _outputs(engine: Engine, task: Task, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    rows: dict[str, list[NDArray[np.float32]]] = {tensor.name: [] for tensor in engine.io.outputs}
    slot = engine.acquire()
    for case in inputs:
        np.copyto(slot.input(task.spec.input), case)
        engine.submit(slot)
        engine.wait(slot, time.monotonic_ns())
        for name, kept in rows.items():
            kept.append(np.array(slot.output(name), np.float32))
    slot.release()
    return {name: np.stack(kept) for name, kept in rows.items()}


def _tensors(engine: Engine, side: str) -> list[dict[str, Any]]:
    return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in getattr(engine.io, side)]


def _logit(score: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(score, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float64)
