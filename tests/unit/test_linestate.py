from __future__ import annotations

import numpy as np
import pytest

from edgeqc.core.align import GridRow, Mark
from edgeqc.core.linestate import Condition, LineState, StateMachine

S = 1_000_000_000
SPEED, RECIPE = 0, 1


def row(at_s: float, speed: float | None, recipe: float | None = 0.0) -> GridRow:
    values = np.array([np.nan if value is None else value for value in (speed, recipe)])
    return GridRow(
        at_ns=int(at_s * S),
        values=values,
        marks=np.where(np.isnan(values), Mark.GAP, Mark.GOOD).astype(np.uint8),
        ages_s=np.zeros(2, np.float32),
    )


@pytest.fixture
def machine() -> StateMachine:
    return StateMachine(
        running=[Condition(place=SPEED, low=5.0)],
        changeover=[Condition(place=RECIPE, low=1.0, high=1.0)],
        warm_up_ns=10 * S,
    )


def test_a_machine_that_starts_warms_up_before_it_runs(machine: StateMachine):
    assert machine.step(row(0, 0.0)) is LineState.STOPPED
    assert machine.step(row(1, 6.0)) is LineState.WARM_UP
    assert machine.step(row(10.9, 6.0)) is LineState.WARM_UP
    assert machine.step(row(11, 6.0)) is LineState.RUNNING
    assert machine.since_ns == 11 * S
    assert machine.step(row(12, 4.9)) is LineState.STOPPED
    assert machine.step(row(13, 9.0)) is LineState.WARM_UP


def test_a_changeover_is_one_whether_it_turns_or_not(machine: StateMachine):
    machine.step(row(0, 6.0))
    assert machine.step(row(11, 6.0)) is LineState.RUNNING
    assert machine.step(row(12, 6.0, 1.0)) is LineState.CHANGEOVER
    assert machine.step(row(13, 0.0, 1.0)) is LineState.CHANGEOVER
    assert machine.step(row(14, 6.0, 0.0)) is LineState.WARM_UP


def test_what_cannot_be_seen_is_unknown_and_never_running(machine: StateMachine):
    machine.step(row(0, 6.0))
    assert machine.step(row(11, 6.0)) is LineState.RUNNING
    assert machine.step(row(12, None)) is LineState.UNKNOWN
    assert machine.step(row(13, 6.0)) is LineState.WARM_UP
    assert machine.step(row(14, 6.0, None)) is LineState.UNKNOWN


def test_one_condition_that_fails_is_enough_to_say_stopped():
    machine = StateMachine(running=[Condition(place=SPEED, low=5.0), Condition(place=RECIPE, low=1.0)])
    assert machine.step(row(0, 0.0, None)) is LineState.STOPPED
    assert machine.step(row(1, 6.0, 1.0)) is LineState.RUNNING


def test_a_short_stop_is_none_where_states_must_settle():
    machine = StateMachine(running=[Condition(place=SPEED, low=5.0)], settle_ns=2 * S)
    machine.step(row(0, 6.0))
    assert machine.step(row(2, 6.0)) is LineState.RUNNING
    machine.step(row(3, 0.0))
    assert machine.step(row(4.9, 0.0)) is LineState.RUNNING
    machine.step(row(5.0, 6.0))
    assert machine.step(row(9, 6.0)) is LineState.RUNNING
    machine.step(row(10, 0.0))
    assert machine.step(row(12, 0.0)) is LineState.STOPPED
