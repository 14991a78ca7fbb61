"""How the bench of tags takes the time from a sample to its alarm."""

from pathlib import Path

import numpy as np
import pytest

from edgeqc.core.align import Mark, Samples
from edgeqc.history import HistoryWriter
from edgeqc.history.block import Tag
from edgeqc.sim.benchmachines import TOLD
from edgeqc.sim.benchtags import _delays_ms

MS = 1_000_000
BEGAN = 1_700_000_000_000 * MS
PERIOD_MS = 1006
"""Between two rises of nodeopcua.js."""
RISES = [BEGAN + (503 + PERIOD_MS * rise) * MS for rise in range(10)]
ENDED = RISES[-1] + 503 * MS


@pytest.fixture
def folder(tmp_path) -> Path:
    """A recording of the tag: 1 at each rise, 0 half a period later."""
    stamps = np.array([each + half for each in RISES for half in (0, 503 * MS)], np.int64)
    count = len(stamps)
    recording = HistoryWriter(tmp_path, [Tag(name=TOLD, unit="")], run="a", mb=64, days=30, keep_free_mb=0)
    recording.add(
        Samples(
            np.zeros(count, np.int32),
            np.arange(count, dtype=np.int64) * MS,
            np.tile([1.0, 0.0], len(RISES)),
            np.full(count, Mark.GOOD, np.uint8),
        ),
        stamps,
    )
    recording.close()
    return tmp_path


def told(delay_ms: int) -> list[int]:
    return [rise + delay_ms * MS for rise in RISES]


@pytest.mark.parametrize("delay_ms", [94, 1100, 2600])
def test_a_delay_over_the_period_reads_as_what_it_is(folder, delay_ms):
    rises, delays_ms = _delays_ms(folder, told(delay_ms), BEGAN, ENDED)
    assert (rises, delays_ms) == (10, pytest.approx([delay_ms] * 10))


def test_an_alarm_that_never_came_leaves_a_rise_without_one(folder):
    rises, delays_ms = _delays_ms(folder, told(94)[:7], BEGAN, ENDED)
    assert (rises, len(delays_ms)) == (10, 7)


def test_an_alarm_lost_among_others_is_not_passed_over(folder):
    alarms = told(94)
    del alarms[4]
    rises, delays_ms = _delays_ms(folder, alarms, BEGAN, ENDED)
    assert (rises, len(delays_ms)) == (10, 9)
    assert max(delays_ms) == pytest.approx(94 + PERIOD_MS)


def test_an_alarm_before_the_first_rise_is_of_none(folder):
    rises, delays_ms = _delays_ms(folder, [BEGAN, *told(94)], BEGAN, ENDED)
    assert (rises, delays_ms) == (10, pytest.approx([94] * 10))
