from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqc.core.peerclock import JUMP_NS, PeerClock

S = 1_000_000_000
MS = 1_000_000
UTC = 1_790_000_000 * S


def run(clock: PeerClock, start_s: float, seconds: float, offset_ns: int, delay_ns: int = 2 * MS) -> int:
    """A message each 100 ms; how many jumps were told."""
    jumps = 0
    for number in range(int(seconds * 10)):
        now = int(start_s * S) + number * 100 * MS
        jumps += clock.read(now - delay_ns + offset_ns, now)
    return jumps


def test_a_stamp_is_told_in_our_time():
    clock = PeerClock()
    run(clock, 0, 10, UTC)
    assert clock.ours_ns(UTC + 20 * S) == pytest.approx(20 * S, abs=5 * MS)


def test_a_clock_that_is_hours_off_is_known_to_be_and_does_no_harm():
    clock = PeerClock()
    assert run(clock, 0, 10, UTC + 2 * 3600 * S) == 0
    assert clock.wrong_by_ns(UTC) == pytest.approx(2 * 3600 * S, abs=5 * MS)
    assert clock.ours_ns(UTC + 2 * 3600 * S + 10 * S) == pytest.approx(10 * S, abs=5 * MS)


@pytest.mark.parametrize("jump_s", [3600, 2, -2, -3600])
def test_a_jump_is_told_once_and_followed(jump_s: int):
    clock = PeerClock()
    assert run(clock, 0, 10, UTC) == 0
    assert run(clock, 10, 10, UTC + jump_s * S) == 1
    assert clock.last_jump_ns == pytest.approx(jump_s * S, abs=10 * MS)
    assert clock.ours_ns(UTC + jump_s * S + 20 * S) == pytest.approx(20 * S, abs=10 * MS)


def test_a_backlog_that_catches_up_is_no_jump():
    clock = PeerClock()
    run(clock, 0, 10, UTC)
    jumps = sum(
        clock.read(UTC + 10 * S + number * 200 * MS, 40 * S + number * 20 * MS) for number in range(166)
    )  # what was held for 30 s comes ten times faster than it was made
    assert jumps == 0
    assert clock.ours_ns(UTC + 40 * S) == pytest.approx(40 * S, abs=50 * MS)


def test_one_slow_message_changes_nothing():
    clock = PeerClock()
    run(clock, 0, 10, UTC)
    assert not clock.read(UTC + 10 * S, 18 * S)
    assert clock.ours_ns(UTC + 18 * S) == pytest.approx(18 * S, abs=10 * MS)


def test_nothing_is_said_before_the_first_reading():
    with pytest.raises(ValueError, match="no reading"):
        PeerClock().ours_ns(0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(-90, 90))
def test_drift_is_followed_within_the_delays(seed: int, drift_ppm: int):
    """What a stamp means is never off by more than the network's delay and a tenth of a second."""
    chance, clock = random.Random(seed), PeerClock()
    for number in range(1500):
        sent = number * S
        now = sent + int(chance.expovariate(1 / (20 * MS)))
        assert not clock.read(UTC + sent + sent * drift_ppm // 1_000_000, now)
    assert abs(clock.ours_ns(UTC + 1500 * S + 1500 * S * drift_ppm // 1_000_000) - 1500 * S) < 100 * MS < JUMP_NS
