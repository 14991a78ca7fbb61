"""How good a detector was, as SKAB's leaderboard counts it: pooled rows, and change points after NAB. Pure.

Definitions: SKAB's core/metrics.py (version 0.9), written anew from what it does: rows are compared one by one, with no
adjustment; a change point has a window of 60 s to its right; where windows meet, the right one begins later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

WINDOW_S: Final = 60.0
_PROFILES: Final[dict[str, tuple[float, float, float]]] = {
    "standard": (1.0, -0.11, -1.0),
    "low_fp": (1.0, -0.22, -1.0),
    "low_fn": (1.0, -0.11, -2.0),
}
"""True positive at once, false positive, miss (Lavin and Ahmad 2015, table 1)."""
_STEPS: Final = 1000
"""In which SKAB's window is cut."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of a test, by what was said and what was so."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, said: Flags, truth: Flags) -> Counts:
        """Count them."""
        return cls(
            int((said & truth).sum()),
            int((said & ~truth).sum()),
            int((~said & truth).sum()),
            int((~said & ~truth).sum()),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.tp / max(2 * self.tp + self.fp + self.fn, 1)

    @property
    def far(self) -> float:
        """False alarm rate, per cent of the good rows."""
        return 100 * self.fp / max(self.fp + self.tn, 1)

    @property
    def mar(self) -> float:
        """Missed alarm rate, per cent of the anomalous rows."""
        return 100 * self.fn / max(self.fn + self.tp, 1)

    def told(self) -> dict[str, float]:
        """F1, FAR and MAR, rounded, for reports."""
        return {"f1": round(self.f1, 4), "far": round(self.far, 2), "mar": round(self.mar, 2)}


def auc(score: NDArray[np.float64], truth: Flags) -> float:
    """Chance that an anomalous row scores higher than a good one; ties count half. NaN where one kind is missing."""
    good, bad = score[~truth], score[truth]
    if not len(good) or not len(bad):
        return float("nan")
    good = np.sort(good)
    higher = np.searchsorted(good, bad, "left").sum()
    equal = np.searchsorted(good, bad, "right").sum() - higher
    return float((higher + equal / 2) / (len(good) * len(bad)))


def nab(files: list[tuple[NDArray[np.float64], Flags, Flags]]) -> dict[str, float]:
    """NAB score (0: nothing told, 100: every change told at once) over files of (seconds, said, change point) rows.

    A change is told where `said` changes.
    """
    told = {}
    for profile, (hit, false, miss) in _PROFILES.items():
        score = perfect = null = 0.0
        for seconds, said, changes in files:
            edges = seconds[np.flatnonzero(np.diff(said.astype(np.int8), prepend=said[:1].astype(np.int8)))]
            windows = _windows(seconds[changes])
            score += _score(edges, windows, hit, false, miss)
            perfect += len(windows) * hit
            null += len(windows) * miss
        told[profile] = round(float(100 * (score - null) / (perfect - null)), 2) if perfect > null else float("nan")
    return told


def _windows(changes: NDArray[np.float64]) -> list[tuple[float, float]]:
    windows: list[tuple[float, float]] = []
    for change in changes:
        start, end = float(change), float(change) + WINDOW_S
        if windows and windows[-1][1] >= start:
            start = windows[-1][1]
        windows.append((start, end))
    return windows


def _score(
    edges: NDArray[np.float64], windows: list[tuple[float, float]], hit: float, false: float, miss: float
) -> float:
    score = 0.0
    inside = np.zeros(len(edges), np.bool_)
    for start, end in windows:
        within = (edges >= start) & (edges <= end)
        inside |= within
        if not within.any():
            score += miss
            continue
        first = float(edges[within][0])
        share = (first - start) / (end - start) if end > start else 0.0
        step = min(int(share * _STEPS), _STEPS - 1)
        at = -np.pi / 2 + step * np.pi / (_STEPS - 1)
        score += (hit - false) / 2 * (1 - np.tanh(at) / np.tanh(np.pi / 2)) + false
    return score + false * int((~inside).sum())
