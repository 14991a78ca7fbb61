"""Where good ends, with a promise: split conformal thresholds, and exact binomial bounds on rates.

The threshold is an order statistic of good parts' scores, so the chance that the next good part is over it is
Beta(j + 1, n - j) whatever the scores' distribution (Vovk 2012, "Conditional validity of inductive conformal predictors";
exchangeable parts assumed). Bounds are Clopper and Pearson's (Biometrika 26, 1934). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

CONFIDENCE: Final = 0.95


def allowed_exceedances(goods: int, overkill: float, confidence: float = CONFIDENCE) -> int:
    """How many of `goods` calibration parts may lie over the threshold so that its overkill is at most `overkill`.

    -1 where even none is too many: the set is too small to promise anything. In `confidence` of all calibrations the
    promise holds.
    """
    _checked(overkill, confidence)
    allowed = -1
    while allowed + 1 < goods and at_most(allowed + 1, goods, overkill) <= 1 - confidence:
        allowed += 1
    return allowed


def least_goods(overkill: float, confidence: float = CONFIDENCE) -> int:
    """How many good parts it takes to promise this overkill at all: 149 for 2 %, 299 for 1 %, 2995 for 0.1 %."""
    _checked(overkill, confidence)
    return math.ceil(math.log(1 - confidence) / math.log1p(-overkill))


def promised_overkill(goods: int, confidence: float = CONFIDENCE) -> float:
    """The least overkill that this many good parts can promise; 1 where there are none."""
    return 1.0 if goods == 0 else 1 - (1 - confidence) ** (1 / goods)


def threshold_of(scores: Sequence[float], exceedances: int) -> float:
    """The lowest threshold that at most `exceedances` of these good scores reach (a part at it or over is rejected)."""
    if not 0 <= exceedances < len(scores):
        raise ValueError(f"{exceedances} exceedances of {len(scores)} scores")
    return math.nextafter(sorted(scores)[len(scores) - 1 - exceedances], math.inf)


def upper_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of a rate of which `events` in `trials` were seen; 1 where nothing was tried."""
    if events >= trials:
        return 1.0
    return _bisected(lambda rate: at_most(events, trials, rate) > 1 - confidence)


def lower_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided lower bound of a rate."""
    return 1 - upper_bound(trials - events, trials, confidence) if trials else 0.0


def at_most(events: int, trials: int, rate: float) -> float:
    """Chance of so many events or fewer in so many trials: the binomial distribution, summed in logarithms."""
    if events >= trials or rate <= 0:
        return 1.0
    if events < 0 or rate >= 1:
        return 0.0
    odds, rest = math.log(rate), math.log1p(-rate)
    whole = math.lgamma(trials + 1)
    terms = [
        whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * odds + (trials - k) * rest
        for k in range(events + 1)
    ]
    most = max(terms)
    return min(1.0, math.exp(most) * math.fsum(math.exp(term - most) for term in terms))


def _bisected(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if below(middle):
            low = middle
        else:
            high = middle
    return high


_HALVINGS: Final = 50


def _checked(overkill: float, confidence: float) -> None:
    if not 0 < overkill < 1 or not 0 < confidence < 1:
        raise ValueError(f"overkill {overkill} and confidence {confidence} must lie between 0 and 1")
