"""What a package is worth on labelled pictures: the whole report as one dictionary, and the pictures that go with it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc import __version__
from edgeqc.errors import EngineError, PackageError
from edgeqc.ports import Engine
from edgeqc.train.dataset import Picture
from edgeqc.train.examine import Finding, mask_of
from edgeqc.train.figures import (
    image_figures,
    latency_ms,
    per_class,
    per_group,
    per_part,
    per_width,
    pixel_figures,
)
from edgeqc.train.overlay import overlay, png
from edgeqc.train.runs import Run
from edgeqc.train.samples import Task
from edgeqc.train.scoring import Scored, Scorer, load

SCHEMA: Final = "edgeqc.eval.vision/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One picture for the report."""

    picture: Picture
    score: float
    rejected: bool
    plain: bytes
    """PNG."""
    overlaid: bytes
    """PNG."""


def evaluated(
    run: Run, scored: Sequence[Scored], *, findings: Sequence[Finding], data: str, split: str, command: str = ""
) -> dict[str, Any]:
    """Everything that follows from the scores of one run: image, pixel, per class, per group, per part, agreement."""
    calibration = run.package.calibration
    threshold = calibration.threshold
    found = {
        "schema": SCHEMA,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "edgeqc": __version__,
        "package": run.package.name,
        "model_sha256": run.package.digest.hex(),
        "run": run.label,
        "trained": run.package.manifest.training.model_dump(mode="json", exclude={"region"}),
        "command": command,
        "data": data,
        "split": split or "all",
        "left_out": sum(finding.left_out for finding in findings),
        **image_figures(scored, threshold),
        **pixel_figures(scored, calibration.map_threshold),
        "map_threshold": calibration.map_threshold,
        "per_class": per_class(scored, threshold, calibration.map_threshold),
        "per_width": per_width(scored, threshold),
        "per_group": per_group(scored, threshold),
        "per_part": per_part(scored, threshold, calibration.part_threshold),
        "held": _held(scored, calibration.hold_threshold, threshold),
        "promise": calibration.promise.model_dump() if calibration.promise else None,
        "latency_ms": latency_ms(scored),
    }
    found["agreement"] = agreement(found)
    return found


def agreement(found: dict[str, Any]) -> dict[str, Any]:
    """Agreement with the reference in the words of AIAG's Measurement Systems Analysis (attribute study, 3rd edition).

    Acceptable: effectiveness 90 % or more, miss rate 2 % or less, false alarm rate 5 % or less; marginal 80, 5 and 10.
    Without good or without bad pictures there is no grade: None.
    """
    table, n = found["confusion"], found["n_good"] + found["n_bad"]
    right = table["bad_rejected"] + table["good_passed"]
    effectiveness, miss, false = right / n, found["escape"], found["overkill"]
    rejected = (table["bad_rejected"] + table["good_rejected"]) / n
    chance = rejected * found["n_bad"] / n + (1 - rejected) * found["n_good"] / n
    grade = "unacceptable" if found["n_good"] and found["n_bad"] else None
    for word, least, most_miss, most_false in (("acceptable", 0.9, 0.02, 0.05), ("marginal", 0.8, 0.05, 0.10)):
        if effectiveness >= least and miss <= most_miss and false <= most_false:
            grade = word
            break
    return {
        "effectiveness": effectiveness,
        "miss_rate": miss,
        "false_alarm_rate": false,
        "kappa": (effectiveness - chance) / (1 - chance) if chance < 1 else None,
        "grade": grade,
    }


def latencies(runs: Sequence[Run], task: Task, *, threads: int, count: int = 200) -> dict[str, Any]:
    """Each way the package may run here: p50 and p99 of the engine alone, or why it does not run."""
    found: dict[str, Any] = {}
    for run in runs:
        try:
            engine = run.open(threads)
        except (PackageError, EngineError) as exc:
            found[run.label] = {"not_run": str(exc)[:300]}
            continue
        try:
            found[run.label] = {"engine": engine.backend, **_timed(engine, task, count)}
        finally:
            engine.close()
    return found


def repeatability(
    scorer: Scorer, pictures: Sequence[Picture], threshold: float, *, times: int, seed: int = 1
) -> dict[str, Any]:
    """The same part shown `times` times: shifted by up to a pixel, 2 % more or less light, camera noise of 1 %.

    These are the differences between two shots of one part on a good fixture; a real study shows the part itself again.
    """
    rng = np.random.default_rng(seed)
    alike, spread = 0, []
    for picture in pictures:
        pixels = load(picture.path)
        scores = np.array([scorer.judge(_again(pixels, rng))[0] for _ in range(times)])
        alike += int((scores >= threshold).all() or (scores < threshold).all())
        spread.append(float(scores.std()))
    return {
        "parts": len(pictures),
        "times": times,
        "same_verdict": alike / len(pictures) if pictures else None,
        "score_sd": float(np.median(spread)) if spread else None,
        "how": "shift +-1 px, light +-2 %, noise 1 %: simulated from one picture each",
    }


def worst(
    scorer: Scorer, scored: Sequence[Scored], threshold: float, limit: float, *, most: int = 8
) -> dict[str, list[Shown]]:
    """The mistakes that went furthest wrong, and some that went right, as pictures with their maps: two of a group at most."""
    goods = sorted((one for one in scored if not one.picture.is_defect), key=lambda one: -one.score)
    bads = sorted((one for one in scored if one.picture.is_defect), key=lambda one: one.score)
    sets = {
        "escapes": [one for one in bads if one.score < threshold],
        "overkill": [one for one in goods if one.score >= threshold],
        "found": [one for one in reversed(bads) if one.score >= threshold],
    }
    return {
        name: [_shown(scorer, one, threshold, limit) for one in _of_many_groups(ones)[:most]]
        for name, ones in sets.items()
    }


def compared(
    runs: Sequence[Run], pictures: Sequence[Picture], task: Task, *, threads: int, told: Callable[[int], None]
) -> dict[str, Any]:
    """Every precision and backend that runs here on the same pictures, each with its own calibration."""
    found: dict[str, Any] = {}
    for run in runs:
        try:
            engine = run.open(threads)
        except (PackageError, EngineError) as exc:
            found[run.label] = {"not_run": str(exc)[:300]}
            continue
        try:
            scored = list(Scorer(engine, task)(pictures, told))
            figures = image_figures(scored, run.package.calibration.threshold)
            names = ("image_auroc", "image_ap", "overkill", "escape", "threshold")
            found[run.label] = {
                "engine": engine.backend,
                **{name: figures[name] for name in names},
                **pixel_figures(scored, run.package.calibration.map_threshold),
                "latency_ms": latency_ms(scored),
                "calibrated_on": run.package.calibration.backend or "not said",
            }
        finally:
            engine.close()
    return found


_OF_A_GROUP: Final = 2
_NOISE: Final = 0.01
_LIGHT: Final = 0.02
_PICTURE_PX: Final = 360
_WARM: Final = 10
_TIMED_S: Final = 20.0
"""A slow or busy box gets fewer runs, not a longer report."""


def _of_many_groups(ones: Sequence[Scored]) -> list[Scored]:
    shown: Counter[str] = Counter()
    kept = []
    for one in ones:
        shown[one.group] += 1
        if shown[one.group] <= _OF_A_GROUP:
            kept.append(one)
    return kept


def _held(scored: Sequence[Scored], hold: float | None, threshold: float) -> dict[str, Any] | None:
    if hold is None:
        return None
    band = [one for one in scored if hold <= one.score < threshold]
    bad = sum(one.picture.is_defect for one in band)
    passed = sum(one.picture.is_defect and one.score < hold for one in scored)
    n_bad = sum(one.picture.is_defect for one in scored)
    return {
        "hold_threshold": hold,
        "good": len(band) - bad,
        "bad": bad,
        "escape_past_hold": passed / n_bad if n_bad else None,
    }


def _timed(engine: Engine, task: Task, count: int) -> dict[str, float]:
    times: list[float] = []
    slot = engine.acquire()
    try:
        target, draw = slot.input(task.spec.input), np.random.default_rng(1)
        of_levels = target.dtype == np.uint8
        noise = draw.integers(0, 256, target.shape) if of_levels else draw.standard_normal(target.shape) * 0.2
        np.copyto(target, noise, casting="unsafe")
        until = time.monotonic() + _TIMED_S
        for _ in range(count + _WARM):
            if len(times) > 2 * _WARM and time.monotonic() > until:
                break
            began = time.perf_counter_ns()
            engine.submit(slot)
            engine.wait(slot, time.monotonic_ns() + 30_000_000_000)
            times.append((time.perf_counter_ns() - began) / 1e6)
    finally:
        slot.release()
    return {
        "p50": float(np.median(times[_WARM:])),
        "p99": float(np.quantile(times[_WARM:], 0.99)),
        "n": len(times) - _WARM,
    }


def _again(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    shift = np.array([[1, 0, rng.uniform(-1, 1)], [0, 1, rng.uniform(-1, 1)]])
    moved = cv2.warpAffine(pixels, shift, pixels.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    lit = moved * rng.uniform(1 - _LIGHT, 1 + _LIGHT) + rng.normal(0, 255 * _NOISE, pixels.shape)
    return np.asarray(np.clip(np.round(lit), 0, 255), np.uint8)


def _shown(scorer: Scorer, one: Scored, threshold: float, limit: float) -> Shown:
    pixels = load(one.picture.path)
    _, heat, _ = scorer.judge(pixels)
    truth = mask_of(one.picture, (pixels.shape[0], pixels.shape[1]))
    return Shown(
        picture=one.picture,
        score=one.score,
        rejected=one.score >= threshold,
        plain=png(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), np.uint8), most_px=_PICTURE_PX),
        overlaid=png(overlay(pixels, heat, limit, truth), most_px=_PICTURE_PX),
    )


def plain(value: Any) -> Any:
    """As JSON can say it: what is not a number is null."""
    match value:
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() | np.floating():
            return float(value) if np.isfinite(value) else None
        case np.integer():
            return int(value)
        case _:
            return value


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.4f}"


def interval(ends: Sequence[float] | None) -> str:
    """From, to."""
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
