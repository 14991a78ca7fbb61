from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.core.align import Mark
from edgeqc.core.derive import Deriver, How, Made, Rule

S = 1_000_000_000


def last(made: list[Made]) -> tuple[float, Mark]:
    return made[-1].value, made[-1].mark


def test_a_difference_follows_either_input():
    deriver = Deriver([Rule(how=How.DIFFERENCE, inputs=(3, 7))])
    assert deriver.inputs == {3, 7}
    assert deriver.feed(3, 1 * S, 5.0, Mark.GOOD) == []
    assert last(deriver.feed(7, 2 * S, 2.0, Mark.GOOD)) == (3.0, Mark.GOOD)
    (made,) = deriver.feed(3, 3 * S, 6.0, Mark.GOOD)
    assert (made.rule, made.at_ns, made.value) == (0, 3 * S, 4.0)
    assert deriver.feed(9, 4 * S, 6.0, Mark.GOOD) == []


def test_a_derived_tag_is_as_good_as_its_worst_input():
    deriver = Deriver([Rule(how=How.DIFFERENCE, inputs=(0, 1))])
    deriver.feed(0, 0, 5.0, Mark.UNCERTAIN)
    assert last(deriver.feed(1, 1, 2.0, Mark.GOOD)) == (3.0, Mark.UNCERTAIN)
    value, mark = last(deriver.feed(1, 2, math.nan, Mark.BAD))
    assert math.isnan(value)
    assert mark is Mark.BAD
    assert last(deriver.feed(1, 3, math.nan, Mark.GAP))[1] is Mark.GAP
    assert last(deriver.feed(1, 4, 1.0, Mark.GOOD)) == (4.0, Mark.UNCERTAIN)


def test_a_ratio_by_zero_is_bad():
    deriver = Deriver([Rule(how=How.RATIO, inputs=(0, 1))])
    deriver.feed(0, 0, 6.0, Mark.GOOD)
    assert last(deriver.feed(1, 1, 4.0, Mark.GOOD)) == (1.5, Mark.GOOD)
    value, mark = last(deriver.feed(1, 2, 0.0, Mark.GOOD))
    assert math.isnan(value)
    assert mark is Mark.BAD


def test_a_rate_is_over_its_window():
    deriver = Deriver([Rule(how=How.RATE, inputs=(0,), window_ns=2 * S)])
    assert deriver.feed(0, 0, 10.0, Mark.GOOD) == []
    assert last(deriver.feed(0, 1 * S, 11.0, Mark.GOOD)) == (1.0, Mark.GOOD)
    assert last(deriver.feed(0, 2 * S, 12.0, Mark.GOOD)) == (1.0, Mark.GOOD)
    assert last(deriver.feed(0, 4 * S, 32.0, Mark.GOOD)) == (10.0, Mark.GOOD)


def test_a_rate_does_not_span_a_gap():
    deriver = Deriver([Rule(how=How.RATE, inputs=(0,), window_ns=10 * S)])
    deriver.feed(0, 0, 0.0, Mark.GOOD)
    deriver.feed(0, 1 * S, 1.0, Mark.GOOD)
    deriver.feed(0, 2 * S, math.nan, Mark.GAP)
    assert deriver.feed(0, 9 * S, 500.0, Mark.GOOD) == []
    assert last(deriver.feed(0, 10 * S, 501.0, Mark.GOOD)) == (1.0, Mark.GOOD)


def test_a_count_goes_on_over_a_wrap_and_past_a_reset():
    deriver = Deriver([Rule(how=How.COUNT, inputs=(0,), wraps_at=65536)])
    told = [last(deriver.feed(0, at, value, Mark.GOOD))[0] for at, value in enumerate([65530.0, 65535.0, 4.0, 10.0])]
    assert told == [0.0, 5.0, 10.0, 16.0]
    assert last(deriver.feed(0, 9, 2.0, Mark.GOOD))[0] == 18.0  # the PLC began anew and has made two since


def test_a_late_sample_changes_nothing():
    deriver = Deriver([Rule(how=How.COUNT, inputs=(0,))])
    deriver.feed(0, 5, 1.0, Mark.GOOD)
    assert deriver.feed(0, 4, 9.0, Mark.GOOD) == []
    assert last(deriver.feed(0, 6, 2.0, Mark.GOOD))[0] == 1.0


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=40), st.integers(0, 65535))
def test_a_wrapping_counter_counts_exactly(steps: list[int], start: int):
    deriver = Deriver([Rule(how=How.COUNT, inputs=(0,), wraps_at=65536)])
    deriver.feed(0, 0, float(start), Mark.GOOD)
    raw, made = start, [Made(rule=0, at_ns=0, value=0.0, mark=Mark.GOOD)]
    for at, step in enumerate(steps, 1):
        raw = (raw + step) % 65536
        made = deriver.feed(0, at, float(raw), Mark.GOOD)
    assert made[-1].value == pytest.approx(sum(steps))
