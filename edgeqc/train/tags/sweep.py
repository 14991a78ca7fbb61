"""What other limits, peaks and floors of the alarm would have done: all of them at once, and picked on some files for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.alarm import TripRule
from edgeqc.core.deviation import Floats
from edgeqc.train.tags.metrics import Counts, Flags

LIMITS: Final = tuple(float(limit) for limit in np.round(np.arange(0.9, 2.61, 0.05), 3))
PEAK_RATIOS: Final = (0.2, 0.3, 0.4, 0.5)
FLOOR_RATIOS: Final = (1.2, 1.5, 2.0)


class Sweep:
    """Runs every combination of the alarm's limit, peak and floor over every file; the scores are as they are."""

    def __init__(self, scores: Sequence[Floats], truths: Sequence[Flags]) -> None:
        grid = [
            TripRule(limit=limit, peak_ratio=peak, floor_ratio=floor)
            for peak in PEAK_RATIOS
            for floor in FLOOR_RATIOS
            for limit in LIMITS
        ]
        self.rules = grid
        self._counts = np.stack(
            [_count(trips(score, grid), truth) for score, truth in zip(scores, truths, strict=True)]
        )  # (files, rules, 4)

    def leave_one_out(self, *, only_limit: bool, most_far: float | None, rule: TripRule) -> Counts:
        """Pick the rule of best F1 on all files but one, apply it to that one, and count over all.

        Args:
            only_limit: the ratios are those of `rule`; only the limit is picked.
            most_far: of the files picked on, per cent; None: any.
            rule: see above.
        """
        allowed = np.array(
            [
                not only_limit or (one.peak_ratio, one.floor_ratio) == (rule.peak_ratio, rule.floor_ratio)
                for one in self.rules
            ]
        )
        total = self._counts.sum(axis=0)
        picked = Counts(0, 0, 0, 0)
        for file in self._counts:
            tp, fp, fn, tn = (total - file).T.astype(np.float64)
            f1 = np.where(allowed, 2 * tp / np.maximum(2 * tp + fp + fn, 1), -1.0)
            if most_far is not None:
                far = 100 * fp / np.maximum(fp + tn, 1)
                f1 = np.where(far <= most_far, f1, f1 - 1)
            picked += Counts(*(int(number) for number in file[int(f1.argmax())]))
        return picked


def trips(scores: Floats, rules: Sequence[TripRule]) -> NDArray[np.bool_]:
    """Give (rows, rules): whether each rule's alarm stands; the same as a `Trip` per rule without delays."""
    limit = np.array([rule.limit for rule in rules])
    peak_ratio = np.array([rule.peak_ratio for rule in rules])
    floor_ratio = np.array([rule.floor_ratio for rule in rules])
    on = np.zeros(len(rules), np.bool_)
    peak, floor = np.zeros(len(rules)), np.zeros(len(rules))
    found = np.zeros((len(scores), len(rules)), np.bool_)
    for row, score in enumerate(scores):
        peak = np.where(on, np.maximum(peak, score), peak)
        floor = np.where(~on & (floor > 0), np.minimum(floor, score), floor)
        ends = on & (score < np.maximum(limit, peak_ratio * peak))
        begins = ~on & (score > np.maximum(limit, floor_ratio * floor))
        peak, floor = np.where(begins, score, peak), np.where(ends, score, np.where(begins, 0.0, floor))
        on = (on | begins) & ~ends
        found[row] = on
    return found


def _count(said: NDArray[np.bool_], truth: Flags) -> NDArray[np.int64]:
    tp = (said & truth[:, None]).sum(axis=0)
    fp = (said & ~truth[:, None]).sum(axis=0)
    fn = int(truth.sum()) - tp
    return np.stack([tp, fp, fn, int((~truth).sum()) - fp], axis=1)
