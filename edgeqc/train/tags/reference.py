"""T2+Q as on SKAB's leaderboard: the method that a network has to beat. Pure."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from edgeqc.core.deviation import Floats
from edgeqc.train.tags.metrics import Flags

_VARIANCE: Final = 0.85
_NORMAL_999: Final = 3.0902
"""99.9 % quantile of the normal distribution."""
_MEDIAN_ROWS: Final = 5


def t2_and_q(values: Floats, train_rows: int) -> Flags:
    """Give what T2+Q says of the rows after the first `train_rows`, which it learned.

    PCA of 85 % of the variance of scaled tags, 99.9 % limits of T2 (by F) and Q (Jackson and Mudholkar), both as running
    medians of 5 rows. Q's limit takes powers of a sum of variances where the paper has sums of powers, and takes the
    variances in the order in which LAPACK happens to give them, because the leaderboard's does.
    """
    train = values[:train_rows]
    moved = train.std(axis=0) > 0
    centre, width = train.mean(axis=0)[moved], train.std(axis=0)[moved]
    scaled = (train[:, moved] - centre) / width
    _, sizes, axes = np.linalg.svd(scaled, full_matrices=False)
    variances = sizes**2 / (train_rows - 1)
    count = int(np.searchsorted(np.cumsum(variances) / variances.sum(), _VARIANCE)) + 1
    tested = (values[train_rows:, moved] - centre) / width
    along = tested @ axes[:count].T
    t2 = _running_median((along**2 / variances[:count]).sum(axis=1))
    t2_limit = count * (train_rows - 1) * (train_rows + 1) / (train_rows * (train_rows - count))
    over = t2 > t2_limit * _f_quantile(count, train_rows - count, 0.999)
    if count == len(variances):
        return np.asarray(over)
    q = _running_median(((tested - along @ axes[:count]) ** 2).sum(axis=1))
    unsorted = np.linalg.eig(np.cov(scaled.T))[0].real
    return np.asarray(over | (q > _q_limit(float(unsorted[count:].sum()))))


def _q_limit(rest: float) -> float:
    first, second, third = rest, rest**2, rest**3
    power = 1 - 2 * first * third / (3 * second**2)
    inner = 1 + _NORMAL_999 * power * math.sqrt(2 * second) / first + second * power * (power - 1) / first**2
    return float(first * inner ** (1 / power))


def _running_median(values: Floats) -> Floats:
    """Of the row and the four before it; NaN, which is over no limit, until there are five."""
    windows = np.lib.stride_tricks.sliding_window_view(values, _MEDIAN_ROWS)
    return np.concatenate([np.full(_MEDIAN_ROWS - 1, np.nan), np.median(windows, axis=1)])


def _f_quantile(first: int, second: int, share: float) -> float:
    """Quantile of the F distribution, by summing its density: 1e-4 is near enough for a limit."""
    # F = (second x) / (first (1 - x)) with x of a beta law; x = u^2 takes the pole at zero out of its density.
    u = (np.arange(200_000) + 0.5) / 200_000
    log = (first - 1) * np.log(u) + (second / 2 - 1) * np.log1p(-(u**2))
    mass = np.cumsum(np.exp(log - log.max()))
    x = float(u[int(np.searchsorted(mass / mass[-1], share))] ** 2)
    return second * x / (first * (1 - x))
