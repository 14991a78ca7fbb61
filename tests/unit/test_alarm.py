"""What an alarm may become, and when it is raised and cleared."""

import itertools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeqc.core.alarm import COVERS, MOVES, Alarm, AlarmEvent, AlarmState, DeadBand, IllegalMoveError, Trip, TripRule
from edgeqc.records import NS_PER_S

BELOW = [state for state, event in MOVES if event is AlarmEvent.RAISE]
COVER = [None, AlarmState.SHELVED, AlarmState.SUPPRESSED, AlarmState.OUT_OF_SERVICE]
EVERY = [Alarm(below, cover) for below, cover in itertools.product(BELOW, COVER)]

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded box draws slowly
events = st.lists(st.sampled_from(AlarmEvent), max_size=30)
values = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=200)


def walk(steps: list[AlarmEvent]) -> Alarm:
    alarm = Alarm()
    for event in steps:
        if alarm.allows(event):
            alarm = alarm.after(event)
    return alarm


def test_an_alarm_lives_through_unacked_acked_and_normal():
    alarm = Alarm().after(AlarmEvent.RAISE)
    assert alarm.state is AlarmState.ACTIVE_UNACKED
    alarm = alarm.after(AlarmEvent.ACK)
    assert alarm.state is AlarmState.ACTIVE_ACKED
    assert alarm.after(AlarmEvent.CLEAR).at_rest


def test_what_clears_unseen_stays_until_it_is_acknowledged():
    alarm = walk([AlarmEvent.RAISE, AlarmEvent.CLEAR])
    assert alarm.state is AlarmState.CLEARED_UNACKED
    assert not alarm.at_rest
    assert alarm.after(AlarmEvent.ACK).at_rest


def test_what_needs_no_acknowledgement_vanishes():
    assert walk([AlarmEvent.RAISE, AlarmEvent.VANISH]).at_rest


def test_an_alarm_that_comes_again_must_be_acknowledged_again():
    alarm = walk([AlarmEvent.RAISE, AlarmEvent.ACK, AlarmEvent.CLEAR, AlarmEvent.RAISE])
    assert alarm.state is AlarmState.ACTIVE_UNACKED


def test_a_shelved_alarm_is_silent_and_shows_how_things_are_afterwards():
    shelved = walk([AlarmEvent.SHELVE, AlarmEvent.RAISE])
    assert shelved.state is AlarmState.SHELVED
    assert shelved.active
    assert shelved.after(AlarmEvent.UNSHELVE).state is AlarmState.ACTIVE_UNACKED
    assert shelved.after(AlarmEvent.CLEAR).after(AlarmEvent.UNSHELVE).at_rest


def test_a_persons_cover_outlasts_the_machines():
    alarm = walk([AlarmEvent.SUPPRESS, AlarmEvent.SHELVE])
    assert alarm.state is AlarmState.SHELVED
    assert not alarm.allows(AlarmEvent.SUPPRESS)
    assert not alarm.allows(AlarmEvent.UNSUPPRESS)


@pytest.mark.parametrize(
    ("steps", "event"),
    [
        ([], AlarmEvent.ACK),
        ([AlarmEvent.RAISE, AlarmEvent.ACK], AlarmEvent.ACK),
        ([AlarmEvent.RAISE, AlarmEvent.SHELVE], AlarmEvent.ACK),
        ([], AlarmEvent.UNSHELVE),
        ([AlarmEvent.REMOVE], AlarmEvent.SHELVE),
        ([AlarmEvent.SHELVE], AlarmEvent.RETURN),
    ],
)
def test_an_illegal_move_is_refused_with_the_state_it_met(steps, event):
    alarm = walk(steps)
    with pytest.raises(IllegalMoveError, match=alarm.state.value):
        alarm.after(event)


def test_the_condition_may_be_told_in_every_state():
    for alarm in EVERY:
        for event in (AlarmEvent.RAISE, AlarmEvent.CLEAR, AlarmEvent.VANISH):
            assert alarm.after(event).active is (event is AlarmEvent.RAISE)
            assert alarm.after(event).cover is alarm.cover


def test_every_cover_can_be_lifted():
    lifts = {AlarmState.SHELVED, AlarmState.SUPPRESSED, AlarmState.OUT_OF_SERVICE}
    assert {cover for (cover, _), after in COVERS.items() if cover is not None and after is None} == lifts


@calm
@given(events)
def test_the_condition_is_followed_whatever_hides_it(steps):
    active = False
    alarm = Alarm()
    for event in steps:
        if not alarm.allows(event):
            continue
        alarm = alarm.after(event)
        if event is AlarmEvent.RAISE:
            active = True
        elif event in {AlarmEvent.CLEAR, AlarmEvent.VANISH}:
            active = False
        assert alarm.active is active


@calm
@given(events)
def test_no_active_alarm_is_shown_as_normal(steps):
    alarm = walk(steps)
    assert not (alarm.active and alarm.at_rest)


@calm
@given(events)
def test_only_an_acknowledgement_acknowledges(steps):
    steps = [event for event in steps if event is not AlarmEvent.ACK]
    assert walk(steps).state is not AlarmState.ACTIVE_ACKED


def follow(rule: TripRule, numbers: list[float], *, step_ns: int = NS_PER_S) -> list[bool]:
    trip = Trip(rule)
    found = []
    for place, number in enumerate(numbers):
        trip.update(number, place * step_ns)
        found.append(trip.on)
    return found


def test_a_plain_limit_follows_the_value():
    assert follow(TripRule(limit=1), [0, 2, 2, 0.5, 2]) == [False, True, True, False, True]


def test_hysteresis_holds_an_alarm_between_the_limits():
    assert follow(TripRule(limit=1, hysteresis=0.4), [2, 0.8, 0.7, 0.5, 0.8]) == [True, True, True, False, False]


def test_a_short_excursion_is_no_alarm_and_a_short_gap_no_end():
    rule = TripRule(limit=1, on_delay_ns=2 * NS_PER_S, off_delay_ns=3 * NS_PER_S)
    assert follow(rule, [2, 2, 0, 2, 2, 2, 0, 0, 2, 0, 0, 0, 0]) == [False] * 5 + [True] * 7 + [False]


def test_an_alarm_ends_when_it_has_fallen_to_its_share_of_the_peak():
    rule = TripRule(limit=1, peak_ratio=0.4)
    assert follow(rule, [10, 5, 4.1, 3.9, 0.5]) == [True, True, True, False, False]


def test_the_machines_recovery_raises_nothing_and_a_new_fault_does():
    rule = TripRule(limit=1, peak_ratio=0.4, floor_ratio=2)
    recovery = [10, 3.9, 3.5, 3.6, 3, 2.9]
    assert follow(rule, recovery) == [True] + [False] * 5
    assert follow(rule, [*recovery, 6])[-1]
    assert follow(rule, [*recovery, 0.1, 1.5])[-1]  # once at rest, its plain limit holds again


def test_a_floor_expires_so_that_a_fault_that_stays_is_raised_again():
    rule = TripRule(limit=1, peak_ratio=0.4, floor_ratio=2, floor_ns=60 * NS_PER_S)
    found = follow(rule, [10, *[3.0] * 70])
    assert not any(found[1:61])
    assert found[-1]


def test_no_number_is_no_news():
    rule = TripRule(limit=1, on_delay_ns=NS_PER_S)
    assert follow(rule, [2, math.nan, 2, 2, math.nan, math.nan]) == [False, False, False, True, True, True]


@calm
@given(values, st.floats(0, 0.9), st.floats(0, 3))
def test_nothing_below_the_limit_raises_and_nothing_above_the_peak_clears(numbers, peak_ratio, floor_ratio):
    trip = Trip(TripRule(limit=2, peak_ratio=peak_ratio, floor_ratio=floor_ratio))
    peak = 0.0
    for place, number in enumerate(numbers):
        changed = trip.update(number, place)
        if changed and trip.on:
            assert number > 2
            peak = number
        elif changed:
            assert number < max(2, peak_ratio * peak)
        elif trip.on:
            peak = max(peak, number)


@calm
@given(values, values)
def test_a_kept_trip_goes_on_as_if_nothing_had_been(first, second):
    rule = TripRule(limit=2, peak_ratio=0.4, floor_ratio=2)
    whole, before, after = Trip(rule), Trip(rule), Trip(rule)
    for place, number in enumerate(first):
        whole.update(number, place)
        before.update(number, place)
    after.restore(before.kept(), len(first))
    for place, number in enumerate(second):
        whole.update(number, place)
        after.update(number, place)
        assert (whole.on, whole.limit) == (after.on, after.limit)


def test_a_damaged_memory_is_refused():
    trip = Trip(TripRule(limit=1))
    for kept in ({}, {"on": True, "peak": "x", "floor": 0}, {"on": True, "peak": math.nan, "floor": 0}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            trip.restore(kept, 0)
    assert not trip.on


def test_a_value_is_told_again_only_when_it_has_moved():
    band = DeadBand(share=0.1, at_least=0.5)
    assert [band.moved(value) for value in (10, 10.9, 11.1, 10.1, 0.3, 0.7, 0.9)] == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    band.forget()
    assert band.moved(0.9)
