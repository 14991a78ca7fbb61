"""How tag detectors are measured and taught: by definitions that can be worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeqc.core.alarm import Trip, TripRule
from edgeqc.core.tail import FEWEST_PEAKS, cluster_peaks, fit_tail, rate_bound
from edgeqc.core.teach import robust_scale, teach
from edgeqc.errors import EdgeqcError
from edgeqc.train.tags.metrics import Counts, auc, nab
from edgeqc.train.tags.recording import good_stretches, joined, read_csv
from edgeqc.train.tags.reference import t2_and_q
from edgeqc.train.tags.sweep import Sweep, trips

SKAB = Path(__file__).parents[3] / "shared" / "data" / "skab"
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def flags(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


def test_rows_are_counted_one_by_one_without_adjustment():
    counts = Counts.of(flags("0110010"), flags("0011010"))
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (2, 1, 1, 3)
    assert counts.told() == {"f1": 0.6667, "far": 25.0, "mar": 33.33}


def test_auc_counts_ties_half():
    assert auc(np.array([0.1, 0.5, 0.5, 0.9]), flags("0011")) == pytest.approx(0.875)
    assert np.isnan(auc(np.array([0.1, 0.2]), flags("00")))


def seconds(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float64)


def test_nab_is_nothing_for_silence_and_all_for_telling_at_once():
    change = np.zeros(400, bool)
    change[100] = True
    silent = np.zeros(400, bool)
    at_once = np.arange(400) >= 100
    assert nab([(seconds(400), silent, change)])["standard"] == 0
    assert nab([(seconds(400), at_once, change)])["standard"] == pytest.approx(100, abs=0.1)


def test_nab_falls_with_delay_and_takes_off_for_what_was_no_change():
    change = np.zeros(400, bool)
    change[100] = True
    scores = [
        nab([(seconds(400), np.arange(400) >= 100 + delay, change)])["standard"] for delay in (0, 20, 30, 45, 60, 61)
    ]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] == pytest.approx(72.2, abs=0.3)  # the middle: half way from 1 to -0.11
    assert scores[-1] == pytest.approx(-5.5)  # a miss and a false one
    twice = (np.arange(400) >= 100) & ~((np.arange(400) >= 300) & (np.arange(400) < 310))
    assert nab([(seconds(400), twice, change)])["standard"] == pytest.approx(100 - 2 * 5.5, abs=0.1)


def test_windows_that_meet_are_cut_on_the_right():
    change = np.zeros(400, bool)
    change[[100, 130]] = True
    assert nab([(seconds(400), np.arange(400) >= 130, change)])["standard"] == pytest.approx(
        (2 - 0.11 / 1 + 0) * 25, abs=14
    )


@pytest.mark.skipif(not SKAB.exists(), reason="../shared/data/skab is not there")
def test_the_reference_and_the_trivial_rows_come_out_as_published():
    paths = [path for path in sorted(SKAB.rglob("*.csv")) if path.name not in {"index.csv", "anomaly-free.csv"}]
    recordings = [read_csv(path) for path in paths]
    said = np.concatenate([t2_and_q(one.values, 400) for one in recordings])
    truth = np.concatenate([one.anomaly[400:] for one in recordings])
    ranged = [(np.arange(400, len(one)) >= 570) & (np.arange(400, len(one)) < 970) for one in recordings]
    assert Counts.of(said, truth).told() == {"f1": 0.7773, "far": 26.03, "mar": 21.79}
    assert Counts.of(np.concatenate(ranged), truth).f1 == pytest.approx(0.913, abs=0.0005)
    told = nab([(one.seconds[400:], flag, one.changepoint[400:]) for one, flag in zip(recordings, ranged, strict=True)])
    assert told == pytest.approx({"standard": 20.46, "low_fp": 18.46, "low_fn": 23.64})


@calm
@given(st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=80))
def test_a_sweep_says_what_each_trip_would(numbers):
    rules = [
        TripRule(limit=limit, peak_ratio=peak, floor_ratio=floor)
        for limit in (1, 3)
        for peak in (0, 0.4)
        for floor in (0, 2)
    ]
    found = trips(np.array(numbers), rules)
    for column, rule in enumerate(rules):
        trip = Trip(rule)
        for row, number in enumerate(numbers):
            trip.update(number, row)
            assert trip.on == found[row, column]


def test_constants_are_never_picked_on_the_file_they_are_applied_to():
    quiet, truth = np.full(50, 0.5), np.zeros(50, bool)
    loud = np.where(np.arange(50) >= 25, 1.5, 0.5)
    picked = Sweep([loud, quiet], [np.arange(50) >= 25, truth]).leave_one_out(
        only_limit=True, most_far=None, rule=TripRule(limit=1.65, peak_ratio=0.4, floor_ratio=2.0)
    )
    assert picked.fp == 0
    assert picked.tp + picked.fn == 25


def test_a_tail_gives_the_level_that_is_crossed_so_often():
    lots = np.random.default_rng(5)
    scores = lots.exponential(1.0, 200_000)
    tail = fit_tail(scores, apart=0)
    assert tail is not None
    level = tail.level(1e-4)
    assert level == pytest.approx(-np.log(1e-4), rel=0.1)
    assert (scores > level).mean() == pytest.approx(1e-4, rel=0.6)


def test_one_excursion_is_one_event_and_few_fit_no_tail():
    scores = np.zeros(5000)
    scores[100:150] = scores[3000:3010] = 5
    assert len(cluster_peaks(scores, 1, 60)) == 2
    assert fit_tail(scores) is None
    assert FEWEST_PEAKS > 2


def test_a_quiet_time_proves_no_more_than_three_over_its_length():
    assert rate_bound(0, 1.0) == pytest.approx(2.996, abs=0.001)
    assert rate_bound(0, 30.0) == pytest.approx(0.0999, abs=0.0001)
    assert rate_bound(3, 1.0) == pytest.approx(7.754, abs=0.001)  # chi-square tables


def test_labels_and_order_are_read_and_stretches_end_at_gaps(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("t;state;x;y;anomaly\n3;4;1;2;0\n1;4;1;2;0\n2;running;1;;1\n4;stopped;1;2;0\n90;running;1;2;0\n")
    recording = read_csv(file)
    assert recording.tags == ("x", "y")
    assert recording.seconds.tolist() == [1, 2, 3, 4, 90]
    assert recording.states == ("running", "running", "running", "stopped", "running")
    assert recording.anomaly.tolist() == [False, True, False, False, False]
    assert good_stretches(recording, states=["running"], gap_s=5, least_rows=1) == [
        slice(0, 1),
        slice(2, 3),
        slice(4, 5),
    ]
    assert good_stretches(recording, gap_s=1000, least_rows=2) == [slice(2, 5)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "first column"),
        ("a,b\n1,2\n", "first column"),
        ("t,x\n", "0 rows"),
        ("t,x\n1,2,3\n", ":2: 3 columns"),
        ("t,x\nyesterday,2\n", ":2: 'yesterday' is no time"),
        ("t,x\n1,2\nnan,2\n", ":3: 'nan' is no time: seconds"),
        ("t,x\n1,2\n\n-inf,2\n", ":4: '-inf' is no time: seconds"),
        ("t,x\n1e300,2\n", ":2: '1e300' is no time: seconds"),
        ("t,x\n1700000000000,2\n", ":2: '1700000000000' is no time: seconds"),
        ("t,x,state\n2,2,4\n1,2,inf\n", r":3: 'inf' is no state: a word, or a number \(0 unknown, 1 stopped"),
        ("t,x,state\n2,2,1e999\n", ":2: '1e999' is no state"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_line(tmp_path, text, reason):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(EdgeqcError, match=reason):
        read_csv(tmp_path / "a.csv")


def test_files_of_other_tags_are_not_joined(tmp_path):
    (tmp_path / "a.csv").write_text("t,x\n1,2\n")
    (tmp_path / "b.csv").write_text("t,y\n2,2\n")
    with pytest.raises(EdgeqcError, match="other columns"):
        joined([read_csv(tmp_path / "a.csv"), read_csv(tmp_path / "b.csv")])


def test_rows_that_are_in_two_files_are_not_learned_from_and_promised_by(tmp_path):
    """Two daily exports of the last seven days; trials that each count from 0 are something else."""
    rows = [f"{second},{second % 7}.5" for second in range(1_800_001_000, 1_800_001_200)]
    (tmp_path / "a.csv").write_text("\n".join(["t,x", *rows[:150]]))
    (tmp_path / "b.csv").write_text("\n".join(["t,x", *rows[50:]]))
    with pytest.raises(EdgeqcError, match=r"b\.csv: 100 of its rows are in .*a\.csv, too"):
        joined([read_csv(tmp_path / "a.csv"), read_csv(tmp_path / "b.csv")])
    (tmp_path / "c.csv").write_text(
        "\n".join(["t,x", *(f"{second},{second % 5}.25" for second in range(1_800_001_000, 1_800_001_150))])
    )
    assert len(joined([read_csv(tmp_path / "a.csv"), read_csv(tmp_path / "c.csv")])) == 300
    (tmp_path / "b.csv").write_text("\n".join(["t,x", *rows[150:]]))
    assert len(joined([read_csv(tmp_path / "b.csv"), read_csv(tmp_path / "a.csv")])) == 200


def test_a_tag_that_stands_still_does_not_break_what_is_taught():
    rows = np.column_stack([np.random.default_rng(1).normal(0, 1, 500), np.full(500, 7.0)])
    model = teach(rows, None, forecast_scale=robust_scale(rows), whole=[slice(0, 500)])
    assert np.isfinite(model.level_usual).all()
    assert model.monitor.t2_usual > 0
