from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqc.core import align
from edgeqc.core.align import Aligner, GridRow, Mark, Samples

MS = 1_000_000


def put(aligner: Aligner, *samples: tuple[int, int, float] | tuple[int, int, float, Mark]) -> None:
    """Each: place, ms, value, mark."""
    aligner.put(
        Samples(
            np.array([sample[0] for sample in samples], np.int32),
            np.array([sample[1] * MS for sample in samples], np.int64),
            np.array([sample[2] for sample in samples], np.float64),
            np.array([sample[3] if len(sample) > 3 else Mark.GOOD for sample in samples], np.uint8),
        )
    )


def rows(aligner: Aligner, now_ms: int) -> list[GridRow]:
    return list(aligner.rows(now_ms * MS))


def grid(tags: int = 1, **fields) -> Aligner:
    return Aligner(tags, **{"period_ns": 100 * MS, "late_ns": 200 * MS, "start_ns": 0, **fields})


def column(found: list[GridRow], place: int = 0) -> list[float | None]:
    return [None if math.isnan(row.values[place]) else float(row.values[place]) for row in found]


def test_a_row_has_the_last_sample_before_its_moment():
    aligner = grid()
    put(aligner, (0, 30, 1.0), (0, 90, 2.0), (0, 100, 3.0), (0, 101, 4.0))
    found = rows(aligner, 400)
    assert [row.at_ns // MS for row in found] == [0, 100, 200]
    assert column(found) == [None, 3.0, 4.0]
    assert found[2].ages_s[0] == pytest.approx(0.099)


def test_a_row_waits_for_late_samples():
    aligner = grid()
    put(aligner, (0, 90, 2.0))
    assert rows(aligner, 199) == []
    assert [row.at_ns // MS for row in rows(aligner, 299)] == [0]
    put(aligner, (0, 95, 7.0))  # out of order by little
    assert column(rows(aligner, 300)) == [7.0]
    assert aligner.late == 0


def test_what_comes_after_its_row_counts_from_the_next_on_and_is_counted():
    aligner = grid()
    put(aligner, (0, 50, 1.0))
    rows(aligner, 300)
    put(aligner, (0, 80, 2.0))
    assert column(rows(aligner, 400)) == [2.0]
    assert aligner.late == 1


def test_an_older_sample_never_replaces_a_newer_one():
    aligner = grid()
    put(aligner, (0, 50, 1.0))
    rows(aligner, 300)
    put(aligner, (0, 40, 9.0))
    assert column(rows(aligner, 400)) == [1.0]


def test_bad_and_gap_have_no_value_and_say_which():
    aligner = grid(3)
    put(aligner, (0, 0, 5.0, Mark.BAD), (1, 0, 6.0, Mark.UNCERTAIN))
    (row,) = rows(aligner, 200)
    assert list(row.marks) == [Mark.BAD, Mark.UNCERTAIN, Mark.GAP]
    assert column([row], 0) == [None]
    assert column([row], 1) == [6.0]
    assert math.isinf(row.ages_s[2])


def test_a_gap_lasts_until_a_later_sample():
    aligner = grid()
    put(aligner, (0, 0, 1.0))
    aligner.gap(np.array([0], np.int32), 150 * MS)
    put(aligner, (0, 120, 3.0), (0, 350, 2.0))
    found = rows(aligner, 600)
    assert column(found) == [1.0, 1.0, None, None, 2.0]
    assert [Mark(row.marks[0]) for row in found][2] is Mark.GAP


def test_a_held_value_grows_old_and_then_is_a_gap():
    aligner = grid(hold_ns=250 * MS)
    put(aligner, (0, 0, 1.0))
    assert column(rows(aligner, 600)) == [1.0, 1.0, 1.0, None, None]


def test_after_a_long_sleep_rows_are_left_out_and_counted():
    aligner = grid()
    put(aligner, (0, 0, 1.0))
    rows(aligner, 200)
    found = rows(aligner, 10 * 60_000 + 200)
    assert len(found) == align.MOST_ROWS
    assert found[0].skipped == 6000 - align.MOST_ROWS
    assert found[-1].at_ns == 600_000 * MS
    assert {row.skipped for row in found[1:]} == {0}


def test_a_million_queued_samples_are_taken_in_order_and_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(align, "PENDING_MOST", 10_000)
    aligner = grid(10)
    for start in range(0, 1_000_000, 2_000):
        index = np.arange(start, start + 2_000)
        aligner.put(
            Samples(
                (index % 10).astype(np.int32),
                index.astype(np.int64) * 10_000,
                index.astype(np.float64),
                np.full(2_000, Mark.GOOD, np.uint8),
            )
        )
    found = rows(aligner, 10_200)
    assert aligner.dropped == 990_000
    assert found[-1].values[9] == 999_999


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2000), st.sampled_from(list(Mark))), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_the_order_and_packing_of_samples_in_time_do_not_matter(samples, chance):
    """Whatever comes before its row is due gives the same grid; distinct moments, since of equal ones the last counts."""
    samples = list(
        {(place, at): (place, at, float(number), mark) for number, (place, at, mark) in enumerate(samples)}.values()
    )
    one, many = grid(3), grid(3)
    put(one, *sorted(samples, key=lambda sample: sample[1]))
    shuffled = list(samples)
    chance.shuffle(shuffled)
    for sample in shuffled:
        put(many, sample)
    expected = rows(one, 2500)
    stepwise = [row for now in range(2200, 2501, 100) for row in rows(many, now)]
    assert len(expected) == len(stepwise) == 24
    for left, right in zip(expected, stepwise, strict=True):
        np.testing.assert_array_equal(left.values, right.values)
        np.testing.assert_array_equal(left.marks, right.marks)
        np.testing.assert_array_equal(left.ages_s, right.ages_s)
    assert many.late == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3000), st.integers(0, 400)), min_size=1, max_size=60))
def test_no_value_is_made_up_and_none_comes_from_the_future(samples):
    aligner = grid(2)
    arriving = sorted((at + delay, place, at, float(number)) for number, (place, at, delay) in enumerate(samples))
    known: set[tuple[int, float, int]] = set()
    for now in range(0, 4000, 50):
        while arriving and arriving[0][0] <= now:
            _, place, at, value = arriving.pop(0)
            put(aligner, (place, at, value))
            known.add((place, value, at))
        for row in rows(aligner, now):
            for place in (0, 1):
                value = float(row.values[place])
                if math.isnan(value):
                    assert row.marks[place] == Mark.GAP
                    assert not any(p == place and at * MS <= row.at_ns for p, _, at in known)
                else:
                    at = next(at for p, v, at in known if p == place and v == value)
                    assert at * MS <= row.at_ns
                    assert at == max(a for p, _, a in known if p == place and a * MS <= row.at_ns)
