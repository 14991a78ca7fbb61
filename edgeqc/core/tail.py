"""Limits that are crossed so and so often: peaks over threshold, and what a quiet time proves. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_PEAKS: Final = 12
"""Below this a tail cannot be fitted: two parameters, and still some to tell a good fit from a bad one."""
_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A generalised Pareto tail over `above`, fitted to the peaks of clusters."""

    above: float
    shape: float
    scale: float
    peaks: int
    rows: int

    def level(self, per_row: float) -> float:
        """Give the level that a new cluster crosses `per_row` times a row, on average."""
        share = per_row * self.rows / self.peaks
        if share >= 1:
            return self.above
        if abs(self.shape) < _FLAT:
            return self.above - self.scale * math.log(share)
        return float(self.above + self.scale / self.shape * (share**-self.shape - 1))


def fit_tail(scores: Floats, *, quantile: float = 0.98, apart: int = 60) -> Tail | None:
    """Fit the tail of a good time's scores (rows,), in order; None where it has under FEWEST_PEAKS peaks.

    Rows above the quantile that are no more than `apart` rows from each other are one cluster with one peak: tag values
    are no independent draws, one excursion is one event. Probability-weighted moments (Hosking and Wallis 1987), which
    hold for the small samples there are.
    """
    above = float(np.quantile(scores, quantile))
    peaks = np.sort(cluster_peaks(scores, above, apart) - above)
    count = len(peaks)
    if count < FEWEST_PEAKS:
        return None
    mean = float(peaks.mean())
    weighted = float((peaks * (1 - (np.arange(1, count + 1) - 0.35) / count)).mean())
    apartness = mean - 2 * weighted
    if apartness <= 0:
        return None
    shape, scale = 2 - mean / apartness, 2 * mean * weighted / apartness
    # A tail that ends where the sample happens to end promises too much: exponential is the lightest believed.
    if shape < 0:
        shape, scale = 0.0, mean
    return Tail(above=above, shape=shape, scale=max(scale, 1e-9), peaks=count, rows=len(scores))


def cluster_peaks(scores: Floats, above: float, apart: int) -> Floats:
    """Give the highest score of each cluster of rows over `above`."""
    over = np.flatnonzero(scores > above)
    if not len(over):
        return np.zeros(0)
    groups = np.split(over, np.flatnonzero(np.diff(over) > apart) + 1)
    return np.array([scores[group].max() for group in groups])


def rate_bound(events: int, time: float) -> float:
    """Give the highest rate that `events` in `time` do not contradict with 95 % confidence (Poisson, exact)."""
    low, high = 0.0, 10.0 + 4.0 * events
    for _ in range(100):
        middle = (low + high) / 2
        term = chance = math.exp(-middle)
        for event in range(1, events + 1):
            term *= middle / event
            chance += term
        low, high = (middle, high) if chance > 1 - _CONFIDENCE else (low, middle)
    return high / time


_FLAT: Final = 1e-6
