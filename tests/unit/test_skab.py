"""The SKAB protocol's report, on a recording of its form: what it says of the alarm is of the alarm that packages have."""

import numpy as np
import pytest

from edgeqc.train.tags.metrics import nab
from edgeqc.train.tags.page import compared
from edgeqc.train.tags.recording import read_csv
from edgeqc.train.tags.skab import TRAIN_ROWS, evaluate

FAULT = slice(600, 700)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two files: noise, from the 400th row on more of it, and a fault that eases half way."""
    folder = tmp_path_factory.mktemp("skab")
    for seed in (4, 5):
        rows = np.random.default_rng(seed).normal(0, 1, (900, 4))
        rows[TRAIN_ROWS:] *= 1.6
        rows[600:640] += 3
        rows[640:700] += 1.6
        lines = ["t,a,b,c,d,anomaly,changepoint"]
        for at, row in enumerate(rows):
            faulty = FAULT.start <= at < FAULT.stop
            values = ",".join(f"{value:.4f}" for value in row)
            lines.append(f"{at},{values},{int(faulty)},{int(at in {FAULT.start, FAULT.stop})}")
        (folder / f"{seed}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def evaluated(data):
    return evaluate(data, network=False)


def test_change_points_are_told_by_the_alarm_that_packages_have(data, evaluated):
    report, curves = evaluated
    files = [read_csv(path) for path in sorted(data.glob("*.csv"))]
    own = nab(
        [
            (one.seconds[TRAIN_ROWS:], curve.alarm, one.changepoint[TRAIN_ROWS:])
            for one, curve in zip(files, curves, strict=True)
        ]
    )
    assert report["nab"] == own
    assert report["nab_with_change_rule"] != own


def test_t2_and_q_are_held_against_the_limit_that_packages_have(evaluated):
    """They reach 7.7 in the first file; a package raises an alarm of theirs at 8."""
    report, _ = evaluated
    assert report["monitor"] == {"f1": 0.0, "far": 0.0, "mar": 100.0}


def test_what_was_picked_on_other_files_is_called_by_its_name(evaluated):
    report, _ = evaluated
    labels = [row[0] for row in compared(report)]
    assert labels[1:3] == [
        "limit, peak and floor picked on the other files",
        "only the limit picked on the other files",
    ]
    assert not any("constants" in label for label in labels)
