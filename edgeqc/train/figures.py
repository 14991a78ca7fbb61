"""Figures of a scored set: how well good and bad are told apart, and how sure one may be of that. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.threshold import upper_bound
from edgeqc.train.scoring import BINS, Scored

DRAWS: Final = 1000
"""Bootstrap draws of whole groups: pictures of one group are alike, and drawing pictures would feign certainty."""
PRO_LIMIT: Final = 0.3
"""False positive rate up to which AUPRO integrates: MVTec AD (Bergmann et al., IJCV 2021, section 5)."""


class OfPart(Protocol):
    """A picture's score, and of which part it is."""

    @property
    def score(self) -> float:
        """0..1, higher is worse."""

    @property
    def group(self) -> str:
        """Parts that are not independent share it."""

    @property
    def part(self) -> str:
        """Within the group; "" = the group's good pictures are one part, its bad ones another."""

    @property
    def is_defect(self) -> bool:
        """Is it bad."""


def image_auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Chance that a bad part scores higher than a good one; ties count half. NaN where either is missing."""
    if not len(good) or not len(bad):
        return float("nan")
    ordered = np.sort(good)
    higher = np.searchsorted(ordered, bad, "left").sum()
    equal = np.searchsorted(ordered, bad, "right").sum() - higher
    return float((higher + equal / 2) / (len(good) * len(bad)))


def image_ap(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Average precision: the mean over bad parts of the precision at their score. NaN where there are none."""
    if not len(bad):
        return float("nan")
    cuts, times = np.unique(bad, return_counts=True)
    hits = len(bad) - np.searchsorted(np.sort(bad), cuts, "left")
    alarms = len(good) - np.searchsorted(np.sort(good), cuts, "left")
    return float((times * hits / (hits + alarms)).sum() / len(bad))


def image_figures(scored: Sequence[Scored], threshold: float, *, seed: int = 1) -> dict[str, Any]:
    """Everything that needs scores alone, with bootstrap intervals over groups.

    `escape` and `overkill` count pictures; their bounds count groups (`group_bound`), so that they may lie far over them.
    """
    scores = np.array([one.score for one in scored])
    bad = np.array([one.picture.is_defect for one in scored], np.bool_)
    groups = np.array([one.group for one in scored])
    return _score_figures(scores, bad, groups, threshold, seed=seed)


def per_part(scored: Sequence[Scored], threshold: float, part_threshold: float | None) -> dict[str, Any]:
    """Several views or exposures of one part judged together, each way with a threshold of its own.

    `worst`: by the highest score and the pictures' threshold, as a line judges several cameras. `mean`: by the mean of the
    scores and the parts' own threshold; without one only what needs none. A part is what the index calls so; where it
    doesn't, the pictures of one group with one label. Rates count parts, their bounds groups (`group_bound`).
    """
    found: dict[str, Any] = {}
    for name, limit in (("worst", threshold), ("mean", part_threshold)):
        parts = parts_of(scored, worst=name == "worst")
        scores, bad, groups = (np.array(values) for values in zip(*parts, strict=True))
        figures = _score_figures(scores, bad.astype(np.bool_), groups, 1.1 if limit is None else limit, seed=1)
        found |= {"n_good": figures["n_good"], "n_bad": figures["n_bad"]}
        if limit is None:
            figures = {name: figures[name] for name in ("image_auroc", "image_ap")}
        found[name] = figures
    return found


def parts_of(pictures: Iterable[OfPart], *, worst: bool = False) -> list[tuple[float, bool, str]]:
    """(score, is it bad, group) of each part: the mean of its pictures' scores, or the highest."""
    parts: dict[tuple[str, str, bool], list[float]] = {}
    for one in pictures:
        parts.setdefault((one.group, one.part, one.is_defect), []).append(one.score)
    return [(max(values) if worst else float(np.mean(values)), bad, group) for (group, _, bad), values in parts.items()]


def group_bound(events: Iterable[tuple[str, bool]]) -> float | None:
    """Upper 95 % bound (Clopper and Pearson) of the share of groups with at least one event; None where there is no group.

    `events`: (group, did it happen) of each picture. Pictures of one group are alike, so that counting them would feign
    certainty. What is bounded is how often any picture of a group does it; one picture of a group does it no more often.
    """
    groups: dict[str, bool] = {}
    for group, happened in events:
        groups[group] = groups.get(group, False) or happened
    return upper_bound(sum(groups.values()), len(groups)) if groups else None


def per_class(scored: Sequence[Scored], threshold: float, map_threshold: float) -> dict[str, dict[str, Any]]:
    """Each kind of defect against all good parts; `escape` counts pictures, its bound groups (`group_bound`)."""
    good = np.array([one.score for one in scored if not one.picture.is_defect])
    found = {}
    for label in sorted({one.picture.label for one in scored if one.picture.is_defect}):
        of = [one for one in scored if one.picture.label == label]
        bad = np.array([one.score for one in of])
        escaped = int((bad < threshold).sum())
        found[label] = {
            "n": len(of),
            "n_groups": len({one.group for one in of}),
            "image_auroc": image_auroc(good, bad),
            "escape": escaped / len(of),
            "escape_upper95": group_bound((one.group, one.score < threshold) for one in of),
            "pixel_f1": _f1(of, map_threshold),
        }
    return found


def per_width(scored: Sequence[Scored], threshold: float) -> list[dict[str, Any]]:
    """Bad pictures with a mark by the width of their widest defect, thinnest first, in quarters as far as widths differ.

    It says from which size on defects are found: whether optics or more pictures of a kind are what is missing.
    `escape` counts pictures, its bound groups (`group_bound`).
    """
    marked = [one for one in scored if one.picture.is_defect and one.width_px]
    if not marked:
        return []
    widths = np.array([one.width_px for one in marked])
    edges = np.unique(np.quantile(widths, (0.25, 0.5, 0.75, 1.0), method="higher"))
    quarters = np.searchsorted(edges, widths)
    found = []
    for index, edge in enumerate(edges):
        of = [one for one, quarter in zip(marked, quarters, strict=True) if quarter == index]
        escaped = sum(one.score < threshold for one in of)
        found.append(
            {
                "least_px": min(one.width_px for one in of),
                "most_px": float(edge),
                "n": len(of),
                "n_groups": len({one.group for one in of}),
                "labels": sorted({one.picture.label for one in of}),
                "escape": escaped / len(of),
                "escape_upper95": group_bound((one.group, one.score < threshold) for one in of),
            }
        )
    return found


def per_group(scored: Sequence[Scored], threshold: float) -> dict[str, dict[str, Any]]:
    """Each group by itself: where the mistakes are."""
    found: dict[str, dict[str, Any]] = {}
    for one in scored:
        row = found.setdefault(
            one.picture.group, {"n_good": 0, "n_bad": 0, "good_rejected": 0, "bad_passed": 0, "labels": []}
        )
        kind, wrong = ("bad", "bad_passed") if one.picture.is_defect else ("good", "good_rejected")
        row[f"n_{kind}"] += 1
        row[wrong] += int((one.score < threshold) == one.picture.is_defect)
        if one.picture.label not in row["labels"]:
            row["labels"].append(one.picture.label)
    return found


def pixel_figures(scored: Sequence[Scored], map_threshold: float) -> dict[str, Any]:
    """Pixel F1 and mIoU at the map's threshold over all pictures pooled, and AUPRO; None where nothing is marked."""
    known = [one for one in scored if one.picture.is_marked]
    if not any(len(one.pieces) for one in known):
        return {"pixel_f1": None, "miou": None, "aupro": None, "n_marked": 0}
    on, off = _pooled(known)
    cut = _bin(map_threshold)
    hit, missed, false, clear = on[cut:].sum(), on[:cut].sum(), off[cut:].sum(), off[:cut].sum()
    defect_iou, ground_iou = hit / (hit + missed + false), clear / (clear + missed + false)
    return {
        "pixel_f1": float(2 * hit / (2 * hit + missed + false)),
        "miou": float((defect_iou + ground_iou) / 2),
        "defect_iou": float(defect_iou),
        "aupro": _aupro(np.concatenate([one.pieces for one in known]), off),
        "n_marked": sum(one.picture.is_defect for one in known),
    }


def best_map_threshold(scored: Sequence[Scored], otherwise: float = 0.5) -> float:
    """The map threshold with the best pooled pixel F1: to be taken on pictures that are not the test's.

    `otherwise` where no defect is marked.
    """
    known = [one for one in scored if one.picture.is_marked]
    if not any(len(one.pieces) for one in known):
        return otherwise
    on, off = _pooled(known)
    hits, alarms = on[::-1].cumsum()[::-1], off[::-1].cumsum()[::-1]
    f1 = 2 * hits / np.maximum(1, hits + alarms + on.sum())
    return float(np.clip(f1.argmax(), 1, BINS - 1)) / BINS


def latency_ms(scored: Sequence[Scored]) -> dict[str, float]:
    """Of the engine alone, one picture at a time."""
    times = np.array([one.engine_ns for one in scored if one.engine_ns]) / 1e6
    return {"p50": float(np.median(times)), "p99": float(np.quantile(times, 0.99))} if len(times) else {}


def _score_figures(
    scores: NDArray[np.float64], bad: NDArray[np.bool_], groups: NDArray[np.str_], threshold: float, *, seed: int
) -> dict[str, Any]:
    n_bad, escaped = int(bad.sum()), int((scores[bad] < threshold).sum())
    figures: dict[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], float]] = {
        "image_auroc": lambda score, flaw: image_auroc(score[~flaw], score[flaw]),
        "image_ap": lambda score, flaw: image_ap(score[~flaw], score[flaw]),
        "overkill": lambda score, flaw: _rate(score[~flaw] >= threshold),
        "escape": lambda score, flaw: _rate(score[flaw] < threshold),
    }
    return {
        **{name: figure(scores, bad) for name, figure in figures.items()},
        "escape_upper95": group_bound(zip(groups[bad], scores[bad] < threshold, strict=True)),
        "overkill_upper95": group_bound(zip(groups[~bad], scores[~bad] >= threshold, strict=True)),
        "threshold": threshold,
        "n_good": int((~bad).sum()),
        "n_bad": n_bad,
        "n_groups": len(set(groups)),
        "ci95": _intervals(figures, scores, bad, groups, seed),
        "confusion": {
            "bad_rejected": n_bad - escaped,
            "bad_passed": escaped,
            "good_passed": int((scores[~bad] < threshold).sum()),
            "good_rejected": int((scores[~bad] >= threshold).sum()),
        },
    }


def _rate(events: NDArray[np.bool_]) -> float:
    return float(events.mean()) if len(events) else float("nan")


def _intervals(
    figures: dict[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], float]],
    scores: NDArray[np.float64],
    bad: NDArray[np.bool_],
    groups: NDArray[np.str_],
    seed: int,
) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    names, members = np.unique(groups, return_inverse=True)
    of = [np.flatnonzero(members == index) for index in range(len(names))]
    drawn: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(DRAWS):
        picked = np.concatenate([of[index] for index in rng.integers(len(of), size=len(of))])
        for name, figure in figures.items():
            drawn[name].append(figure(scores[picked], bad[picked]))
    return {
        name: [float(value) for value in np.nanquantile(values, (0.025, 0.975))]
        for name, values in drawn.items()
        if np.isfinite(values).any()
    }


def _pooled(scored: Sequence[Scored]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.sum([one.on for one in scored], axis=0), np.sum([one.off for one in scored], axis=0)


def _bin(value: float) -> int:
    return min(BINS - 1, int(value * BINS))


def _f1(scored: Sequence[Scored], map_threshold: float) -> float | None:
    known = [one for one in scored if len(one.pieces)]
    if not known:
        return None
    on, off = _pooled(known)
    cut = _bin(map_threshold)
    return float(2 * on[cut:].sum() / (2 * on[cut:].sum() + on[:cut].sum() + off[cut:].sum()))


def _aupro(pieces: NDArray[np.int64], off: NDArray[np.int64]) -> float:
    """Mean share of each defect that is found, over the false positive rate from 0 to the limit, as a share of it."""
    covered = (pieces[:, ::-1].cumsum(1) / pieces.sum(1, keepdims=True)).mean(0)
    false = off[::-1].cumsum() / off.sum()
    rates, shares = np.concatenate([[0.0], false]), np.concatenate([[0.0], covered])
    inside = rates <= PRO_LIMIT
    rates = np.append(rates[inside], PRO_LIMIT)
    shares = np.append(
        shares[inside], np.interp(PRO_LIMIT, np.concatenate([[0.0], false]), np.concatenate([[0.0], covered]))
    )
    return float(np.trapezoid(shares, rates) / PRO_LIMIT)
