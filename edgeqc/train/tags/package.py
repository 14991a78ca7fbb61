"""The files of a tag model's package, from what was learned."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core import teach
from edgeqc.core.deviation import DeviationModel, Floats, Scale
from edgeqc.inference.documents import to_yaml
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.tagmanifest import FORECAST, HIDDEN, HIDDEN_NEXT, MACHINES, TAGS, AlarmNumbers, Promise
from edgeqc.inference.tagpackage import TagPackage, load_tag_package

LIMIT: Final = 1.65
PEAK_RATIO: Final = 0.4
FLOOR_RATIO: Final = 2.0
"""Of the alarm: a broad flat optimum on SKAB's 21 files (`edgeqc eval tags --protocol skab` shows the neighbourhood)."""
MONITOR_LIMIT: Final = 8.0
FLOOR_S: Final = 3600.0
"""A fault that settles short of clearing its floor is raised anew after an hour."""
GOLDEN_ROWS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the package shall be."""

    name: str
    version: str = "1"
    description: str = ""
    licence: str = "The data's owner's"
    network: bool = True
    seed: int = 1
    per_day: float | None = 1.0
    """False alarms a day to be promised; None: take LIMIT as it is and learn from every row."""
    alarm: AlarmNumbers = field(
        default_factory=lambda: AlarmNumbers(
            limit=LIMIT, peak_ratio=PEAK_RATIO, floor_ratio=FLOOR_RATIO, floor_s=FLOOR_S
        )
    )
    states: tuple[str, ...] = ()
    grid_ms: float | None = None
    """None: the recording's own pace."""
    units: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """What was learned, before its limits are known."""

    folder: Path
    source: str
    tags: tuple[str, ...]
    grid_ms: float
    wishes: Wishes
    taught: DeviationModel
    model: bytes | None
    """The ONNX file of one step; None: no network."""
    parameters: int
    rows: int
    sample: Floats
    """(rows, tags) for the golden vectors."""
    began: float
    """Monotonic seconds."""


def write(
    draft: Draft,
    alarm: AlarmNumbers,
    promise: Promise | None,
    *,
    plain_limit: float = LIMIT,
    monitor_limit: float = MONITOR_LIMIT,
) -> TagPackage:
    """Write all files with these limits, then load the package as the daemon would, and return it."""
    folder, wishes, taught, model = draft.folder, draft.wishes, draft.taught, draft.model
    folder.mkdir(parents=True, exist_ok=True)
    monitor = taught.monitor
    calibration = {
        "forecast_scale": _numbers(taught.forecast_scale),
        "level_scale": _numbers(taught.level_scale),
        "level_usual": taught.level_usual.tolist(),
        "surprise_usual": taught.surprise_usual,
        "distance_usual": taught.distance_usual,
        "offset_usual": taught.offset_usual,
        "score_usual": taught.score_usual,
        "plain_usual": taught.plain_usual,
        "surprise_smoothing": taught.surprise_smoothing,
        "level_smoothing": taught.level_smoothing,
        "monitor": {
            "scale": _numbers(monitor.scale),
            "axes": monitor.axes.tolist(),
            "variances": monitor.variances.tolist(),
            "t2_usual": monitor.t2_usual,
            "q_usual": monitor.q_usual,
            "smoothing": monitor.smoothing,
        },
        "settle_rows": teach.SETTLE_ROWS,
        "alarm": alarm.model_dump(),
        "plain_limit": plain_limit,
        "monitor_limit": monitor_limit,
        "promise": None if promise is None else promise.model_dump(),
    }
    files = {"calibration": _put(folder / "calibration.json", (json.dumps(calibration) + "\n").encode())}
    members = hidden = 0
    if model is not None:
        golden = np.asarray(
            taught.forecast_scale.apply(draft.sample),
            np.float32,
        )
        expected = forecast_after(model, golden)
        members = expected.shape[1]
        hidden = _hidden(model)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, tags=golden, forecast=expected)
        files |= {"model": _put(folder / "model.onnx", model), "golden": _put(folder / "golden.npz", buffer.getvalue())}
    manifest = {
        "format": 1,
        "kind": "tags",
        "name": wishes.name,
        "version": wishes.version,
        "description": wishes.description,
        "licence": wishes.licence,
        "files": files,
        "tags": [{"name": name, "unit": wishes.units.get(name, "")} for name in draft.tags],
        "grid_ms": draft.grid_ms,
        "members": members,
        "hidden": hidden,
        "training": {
            "data": "".join(filter(str.isprintable, draft.source))[:500],
            "seed": wishes.seed,
            "minutes": round((time.monotonic() - draft.began) / 60, 2),
            "rows": draft.rows,
            "parameters": draft.parameters,
            "states": list(wishes.states),
        },
    }
    (folder / "manifest.yaml").write_bytes(to_yaml(manifest))
    return load_tag_package(folder)


def forecast_rows(model: bytes, scaled: NDArray[np.float32], whole: Sequence[slice]) -> NDArray[np.float32]:
    """Give (rows, members, tags): each row's forecast from those before it; NaN where a stretch begins."""
    engine = OnnxRuntimeEngine(model, slots=1, carry={HIDDEN: HIDDEN_NEXT}, sizes={MACHINES: 1})
    slot = engine.acquire()
    source, told = slot.input(TAGS), slot.output(FORECAST)
    found = np.full((len(scaled), told.shape[0], scaled.shape[1]), np.nan, np.float32)
    for stretch in whole:
        slot.restore(None)
        for row in range(stretch.start, stretch.stop - 1):
            source[0] = scaled[row]
            engine.submit(slot)
            engine.wait(slot, time.monotonic_ns() + 1_000_000_000)
            found[row + 1] = told[:, 0, :]
    slot.release()
    engine.close()
    return found


def forecast_after(model: bytes, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give (rows, members, tags): what is forecast after each row, as `Forecaster.step` gives it."""
    following = np.concatenate([scaled, scaled[-1:]])
    return forecast_rows(model, following, [slice(0, len(following))])[1:]


def _numbers(scale: Scale) -> dict[str, Any]:
    return {"centre": scale.centre.tolist(), "width": scale.width.tolist()}


def _hidden(model: bytes) -> int:
    engine = OnnxRuntimeEngine(model, slots=1, carry={HIDDEN: HIDDEN_NEXT}, sizes={MACHINES: 1})
    try:
        return engine.io.state[0].shape[2]
    finally:
        engine.close()


def _put(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
