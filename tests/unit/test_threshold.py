"""Thresholds that keep their promise: the Beta bound, exact rate bounds, and 200 calibrations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqc.core.threshold import (
    allowed_exceedances,
    at_most,
    least_goods,
    lower_bound,
    promised_overkill,
    threshold_of,
    upper_bound,
)


@pytest.mark.parametrize(
    ("goods", "overkill", "allowed"),
    [(299, 0.01, 0), (298, 0.01, -1), (1000, 0.01, 4), (3000, 0.005, 8), (10_000, 0.001, 4), (0, 0.02, -1)],
)
def test_allowed_exceedances_are_those_of_the_beta_law(goods, overkill, allowed):
    assert allowed_exceedances(goods, overkill) == allowed


def test_fewer_good_parts_than_least_goods_promise_nothing():
    for overkill in (0.001, 0.01, 0.02, 0.1):
        least = least_goods(overkill)
        assert allowed_exceedances(least, overkill) == 0
        assert allowed_exceedances(least - 1, overkill) == -1
        assert promised_overkill(least) <= overkill < promised_overkill(least - 1)


def test_promise_holds_in_at_least_19_of_20_of_200_calibrations():
    """Scores are lognormal, a law that the threshold knows nothing of; each calibration is judged on its true overkill."""
    rng = np.random.default_rng(7)
    overkill, goods, kept, seen = 0.02, 400, 0, []
    for _ in range(200):
        calibration = rng.lognormal(size=goods)
        threshold = threshold_of(list(calibration), allowed_exceedances(goods, overkill))
        fresh = rng.lognormal(size=20_000)
        seen.append(float((fresh >= threshold).mean()))
        kept += seen[-1] <= overkill
    assert 1 - at_most(kept - 1, 200, 0.95) > 1e-4  # were 95 % true, so few would hardly ever keep it
    assert kept >= 180
    assert np.mean(seen) > overkill / 4  # and it is not kept by rejecting nothing


def test_plain_quantile_breaks_the_promise_half_of_the_time():
    rng = np.random.default_rng(8)
    broken = 0
    for _ in range(200):
        threshold = threshold_of(list(rng.random(400)), int(0.02 * 400))
        broken += 1 - threshold > 0.02
    assert broken > 60


def test_threshold_is_just_over_the_scores_that_must_pass():
    assert threshold_of([0.1, 0.2, 0.3, 0.9], 1) == np.nextafter(0.3, 1)
    assert sum(score >= threshold_of([0.5] * 9, 0) for score in [0.5] * 9) == 0


def test_threshold_of_nothing_is_refused():
    with pytest.raises(ValueError, match="exceedances"):
        threshold_of([], 0)


def test_no_miss_in_300_proves_one_percent():
    assert upper_bound(0, 300) == pytest.approx(0.00994, abs=1e-4)
    assert upper_bound(5, 87) == pytest.approx(0.117042, abs=1e-5)
    assert lower_bound(5, 87) == pytest.approx(0.022916, abs=1e-5)
    assert upper_bound(3, 3) == 1
    assert lower_bound(0, 0) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 0.5), st.data())
def test_at_most_is_a_distribution(trials, rate, data):
    events = data.draw(st.integers(0, trials))
    chance = at_most(events, trials, rate)
    assert 0 <= chance <= 1
    assert chance >= at_most(events - 1, trials, rate)
    assert at_most(trials, trials, rate) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_bound_is_where_the_chance_is_five_percent(trials, data):
    events = data.draw(st.integers(0, trials - 1))
    assert at_most(events, trials, upper_bound(events, trials)) == pytest.approx(0.05, abs=1e-6)
