"""From scores to a calibration: threshold with a promise on overkill, hold band, and what is known of the escape."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeqc.core.threshold import (
    CONFIDENCE,
    allowed_exceedances,
    least_goods,
    lower_bound,
    promised_overkill,
    threshold_of,
)
from edgeqc.errors import EdgeqcError
from edgeqc.inference.manifest import Calibration, Promise
from edgeqc.train.dataset import GOOD_LABELS
from edgeqc.train.figures import group_bound, parts_of
from edgeqc.train.scoring import Scored

OF_PART: Final = "part"
OF_PICTURE: Final = "picture"
"""What a group of a scores.csv stands for: several pictures, each a group of its own, may show one part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the line asks of a threshold."""

    overkill: float = 0.02
    """At most this share of good parts may be rejected."""
    confidence: float = CONFIDENCE
    hold: float = 0.1
    """About this share of good parts may lie at or over the lower limit, from which on a part is held for a person."""
    parts: bool = True
    """Is each group a part of its own? Where pictures of one part are several groups nothing can be promised."""
    recipe: str = ""
    camera: str = ""
    """Which recipe and camera the scores are of; "" = not said."""

    def outlook(self, goods: int) -> str:
        """One sentence on what so many independent good parts can promise."""
        need = least_goods(self.overkill, self.confidence)
        if not self.parts:
            return "They can promise nothing: pictures were split, not parts."
        if goods >= need:
            return f"They can promise {self.overkill:.3g} overkill with {self.confidence:.0%} confidence."
        best = promised_overkill(goods, self.confidence)
        return (
            f"{need - goods} more groups of good parts are needed to promise {self.overkill:.3g} overkill with "
            f"{self.confidence:.0%} confidence; these can promise {best:.3g} at best."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One picture's score and truth."""

    score: float
    is_defect: bool
    group: str
    """Pictures of one group are not independent; the promise counts groups."""
    part: str = ""
    """Within the group: pictures of one and the same part share it; "" = not known."""


def readings_of(scored: Iterable[Scored]) -> list[Reading]:
    """Of pictures that were just scored."""
    return [Reading(score=one.score, is_defect=one.is_defect, group=one.group, part=one.part) for one in scored]


def read_scores(file: Path) -> tuple[list[Reading], bool]:
    """Of a scores.csv (path, label, group, score, at will part, group_is), and whether its groups are parts.

    EdgeqcError names the line.
    """
    readings, parts = [], True
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for line, row in enumerate(csv.DictReader(stream), 2):
                score = float(row["score"])
                if not 0 <= score <= 1:
                    raise EdgeqcError(f"{file}:{line}: score {score} is not in 0..1")
                label = row["label"].strip().lower()
                group = row.get("group") or row["path"]
                part = row.get("part") or ""
                readings.append(Reading(score=score, is_defect=label not in GOOD_LABELS, group=group, part=part))
                group_is = row.get("group_is") or OF_PART
                if group_is not in {OF_PART, OF_PICTURE}:
                    raise EdgeqcError(f"{file}:{line}: group_is {group_is} is neither {OF_PART} nor {OF_PICTURE}")
                parts = parts and group_is == OF_PART
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise EdgeqcError(f"{file}: {type(exc).__name__}: {exc}; needs path, label, group, score") from exc
    return readings, parts


def promise_of(readings: Sequence[Reading], rule: Rule) -> str:
    """What is missing for the promise; empty where these readings can carry it."""
    worst = worst_of_groups(readings)
    allowed = _allowed(len(worst), rule)
    if allowed < 0:
        return rule.outlook(len(worst))
    surest = sum(score >= 1 for score in worst)
    if surest <= allowed:
        return ""
    return (
        f"{surest} of {len(worst)} groups of good parts score 1, which every threshold rejects, and {rule.overkill:.3g} "
        f"overkill allows {allowed}. Look at their pictures: either no part was found on them (region, contrast), or the "
        "net is sure of a defect (a wrong label?)."
    )


def _allowed(goods: int, rule: Rule) -> int:
    """How many of so many good groups may be rejected for the promise to hold; -1 where there can be none."""
    return allowed_exceedances(goods, rule.overkill, rule.confidence) if rule.parts else -1


def calibrated(readings: Sequence[Reading], rule: Rule, *, map_threshold: float, backend: str) -> Calibration:
    """The calibration these scores support; its `promise` is None where `promise_of` names a reason.

    A group counts as one good part with the highest score of its pictures: what holds for "no picture of the group is
    rejected" holds the more for one picture. Without a promise the threshold is the plain quantile of good pictures.
    The limit for the mean of a part's pictures is found by the same rule, where parts have several.
    `escape_upper95` bounds the share of groups of bad parts of which any picture passes.
    """
    goods = sorted(reading.score for reading in readings if not reading.is_defect)
    if not goods:
        raise EdgeqcError("no good picture to calibrate on")
    threshold, promise = _threshold(readings, rule)
    parts = [Reading(score=score, is_defect=bad, group=group) for score, bad, group in parts_of(readings)]
    hold = min(threshold, threshold_of(goods, min(len(goods) - 1, int(rule.hold * len(goods)))))
    return Calibration(
        threshold=threshold,
        map_threshold=map_threshold,
        goods=len(goods),
        defects=len(readings) - len(goods),
        hold_threshold=hold,
        part_threshold=_threshold(parts, rule)[0] if len(parts) < len(readings) else None,
        promise=promise,
        escape_upper95=group_bound((one.group, one.score < threshold) for one in readings if one.is_defect),
        backend=backend,
        recipe=rule.recipe,
        camera=rule.camera,
    )


def worst_of_groups(readings: Iterable[Reading]) -> list[float]:
    """The highest score of each group of good pictures."""
    worst: dict[str, float] = {}
    for reading in readings:
        if not reading.is_defect:
            worst[reading.group] = max(worst.get(reading.group, 0.0), reading.score)
    return sorted(worst.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What became of a promise when it was made again and again on one half of the good parts, and held to the other."""

    times: int
    overkill: float
    """What was promised."""
    goods: int
    """Independent good parts in each half."""
    kept: int
    """Calibrations whose overkill on the other half is at most what was promised, within its binomial interval."""
    seen: float
    """Mean overkill on the other halves."""


def rehearsed(readings: Sequence[Reading], rule: Rule, *, times: int = 200, seed: int = 1) -> Rehearsal:
    """Calibrate on random halves of the good groups. The promise is the rule's, or the least that a half can make."""
    if not rule.parts:
        raise EdgeqcError("no promise can be rehearsed: pictures were split, not parts")
    worst = np.array(worst_of_groups(readings))
    half = len(worst) // 2
    if not half:
        raise EdgeqcError("two groups of good pictures are the least to rehearse with")
    overkill = max(rule.overkill, promised_overkill(half, rule.confidence) * (1 + 1e-9))
    allowed = allowed_exceedances(half, overkill, rule.confidence)
    rng = np.random.default_rng(seed)
    kept, seen = 0, []
    for _ in range(times):
        order = rng.permutation(len(worst))
        threshold = min(1.0, threshold_of(worst[order[:half]].tolist(), allowed))  # as a line would have it
        over = int((worst[order[half:]] >= threshold).sum())
        kept += lower_bound(over, len(worst) - half, rule.confidence) <= overkill
        seen.append(over / (len(worst) - half))
    return Rehearsal(times=times, overkill=overkill, goods=half, kept=kept, seen=float(np.mean(seen)))


_EDGE: Final = 1e-6


def _threshold(readings: Sequence[Reading], rule: Rule) -> tuple[float, Promise | None]:
    """As `calibrated` says."""
    goods = sorted(reading.score for reading in readings if not reading.is_defect)
    worst = worst_of_groups(readings)
    promise = None
    if not promise_of(readings, rule):
        allowed = _allowed(len(worst), rule)
        threshold = threshold_of(worst, allowed)
        promise = Promise(overkill=rule.overkill, confidence=rule.confidence, goods=len(worst), exceedances=allowed)
    else:
        threshold = threshold_of(goods, min(len(goods) - 1, int(rule.overkill * len(goods))))
    return _between(min(1.0, threshold), sorted(reading.score for reading in readings if reading.is_defect)), promise


def _between(threshold: float, bads: Sequence[float]) -> float:
    """Where good and bad are apart half way between them, in logits.

    Where they overlap the overkill that is allowed is used in full: a gap among few bad parts says nothing of others.
    """
    if not bads or bads[0] <= threshold:
        return threshold
    low, high = (min(max(value, _EDGE), 1 - _EDGE) for value in (threshold, bads[0]))
    middle = (math.log(low / (1 - low)) + math.log(high / (1 - high))) / 2
    return min(bads[0], max(threshold, 1 / (1 + math.exp(-middle))))
