"""Parts, frames and triggers are reconciled by counters, ids and clocks; never by "the latest"."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqc.core.account import GVSP_CYCLE, REMEMBERED_IDS, Arrival, TriggerAccount
from edgeqc.core.exposure import Claim, Exposures
from edgeqc.core.flight import Flight
from edgeqc.core.invariant import announcement, balance, signals
from edgeqc.core.views import View, rule, without
from edgeqc.records import NS_PER_MS, Cause, FrameStatus, Verdict

MS = NS_PER_MS
TAKT = 40 * MS


def arrival(waited_ms: int, **changes: object) -> Arrival:
    return Arrival(part=True, waited_ns=waited_ms * MS, **changes)  # type: ignore[arg-type]


def account(counter: int = 0, part_id: str = "") -> TriggerAccount:
    made = TriggerAccount(fresh_ns=10 * MS)
    assert made.reading(counter, part_id, 0) == Arrival()
    return made


def test_what_stands_in_the_block_at_first_is_of_another_life() -> None:
    assert TriggerAccount(fresh_ns=MS).reading(77, "P77", 5) == Arrival()


def test_each_count_is_a_part() -> None:
    triggers = account()
    assert triggers.reading(0, "", 2 * MS) == Arrival()
    assert triggers.reading(1, "P1", 4 * MS) == arrival(2)
    assert triggers.reading(1, "P1", 6 * MS) == Arrival()
    assert triggers.reading(2, "P2", 8 * MS) == arrival(2)


def test_a_counter_that_jumps_has_missed_parts_also_over_its_wrap() -> None:
    triggers = account(65_534)
    assert triggers.reading(1, "P", 2 * MS) == arrival(2, missed=2)


def test_nothing_passes_under_the_0_that_a_restart_near_the_wrap_leaves() -> None:
    assert account(65_500).reading(0, "", 2 * MS) == arrival(2, missed=35, fresh=False)
    assert account(65_535).reading(0, "P", 2 * MS) == arrival(2)  # counted on over the wrap


def test_a_trigger_seen_after_a_silent_link_is_not_fresh() -> None:
    triggers = account()
    assert triggers.reading(1, "P1", 11 * MS) == arrival(11, fresh=False)
    assert triggers.reading(2, "P2", 12 * MS) == arrival(1)


def test_a_trigger_whose_moment_is_known_is_fresh_whenever_it_is_looked_at() -> None:
    triggers = account()
    assert triggers.reading(1, "P1", 90 * MS, exact=True) == arrival(0)


def test_a_reading_that_was_overtaken_says_nothing() -> None:
    account = TriggerAccount(fresh_ns=10 * MS)
    account.reading(258, "P258", 1 * MS)
    assert account.reading(260, "P260", 9 * MS).missed == 1
    assert account.reading(259, "P259", 8 * MS) == Arrival(), "the first of a fresh link, which was read before that"
    assert account.reading(261, "P261", 10 * MS) == Arrival(part=True, waited_ns=1 * MS)


def test_the_part_id_of_the_part_before_is_a_doubled_part() -> None:
    triggers = account()
    triggers.reading(1, "P1", MS)
    assert triggers.reading(2, "P1", 2 * MS) == arrival(1, doubled=True)


def test_the_part_id_of_an_earlier_part_is_a_swapped_part() -> None:
    triggers = account()
    for counter, part_id in enumerate(("P1", "P2", "P3"), start=1):
        triggers.reading(counter, part_id, MS)
    assert triggers.reading(4, "P2", 2 * MS) == arrival(1, swapped=True)


def test_parts_without_an_id_are_never_doubled() -> None:
    triggers = account()
    triggers.reading(1, "", MS)
    assert triggers.reading(2, "", 2 * MS) == arrival(1)


def test_an_id_may_come_again_when_nobody_remembers_it() -> None:
    triggers = account()
    for counter in range(1, REMEMBERED_IDS + 3):
        triggers.reading(counter, f"P{counter}", MS)
    assert not triggers.reading(REMEMBERED_IDS + 3, "P1", MS).swapped


def test_a_plc_that_restarted_at_zero_has_no_part_yet() -> None:
    triggers = account(500)
    assert triggers.reading(0, "", MS) == Arrival(restarted=True)
    assert triggers.reading(1, "P1", 2 * MS) == arrival(1)


@pytest.mark.parametrize("before", [500, 32_768, 40_000, 60_000])
def test_a_restart_is_no_jump_over_thousands_of_parts_whatever_the_count_was(before: int) -> None:
    assert account(before).reading(1, "P1", MS) == arrival(1, fresh=False, restarted=True)
    assert account(before).reading(0, "", MS) == Arrival(restarted=True)


def test_a_plc_that_restarted_and_counted_on_had_parts_nobody_saw() -> None:
    triggers = account(500)
    assert triggers.reading(3, "P3", MS) == arrival(1, fresh=False, missed=2, restarted=True)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 65_535))
def test_every_count_of_the_plc_is_a_part_or_a_missed_one(steps: list[int], start: int) -> None:
    triggers = account(start)
    counter, parts = start, 0
    for at, step in enumerate(steps):
        counter = (counter + step) % 65_536
        arrival = triggers.reading(counter, "", at * MS)
        parts += arrival.part + arrival.missed
    assert parts == sum(steps)


def exposures(**changes: int) -> Exposures:
    return Exposures(**{"least_ns": 2 * MS, "most_ns": 100 * MS, **changes})


def synced(first_id: int = 10) -> Exposures:
    made = exposures()
    made.exposed(1, 0, 0 + 10 * MS)
    assert made.frame(first_id, 5 * MS, 6 * MS).claim is Claim.OWN
    return made


def test_a_frame_belongs_to_the_part_it_was_exposed_for() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    assert camera.outstanding == 2
    match = camera.frame(11, TAKT + 5 * MS, TAKT + 9 * MS)
    assert (match.claim, match.sequence, match.without) == (Claim.OWN, 2, ())
    assert camera.frame(12, 2 * TAKT + 5 * MS, 2 * TAKT + 9 * MS).sequence == 3


def test_a_frame_lost_on_its_way_leaves_only_its_own_part_without() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    match = camera.frame(12, 2 * TAKT + 5 * MS, 2 * TAKT + 9 * MS)
    assert (match.claim, match.sequence, match.without) == (Claim.OWN, 3, (2,))


def test_a_trigger_that_the_camera_ignored_gives_no_part_anothers_frame() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    match = camera.frame(11, 2 * TAKT + 5 * MS, 2 * TAKT + 9 * MS)  # part 3's picture under part 2's number
    assert (match.claim, match.without) == (Claim.SWAPPED, (2, 3))
    assert not camera.ready(2 * TAKT + 10 * MS)
    assert camera.ready(2 * TAKT + 100 * MS)


def test_a_late_frame_is_never_the_next_parts() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    assert camera.overdue(TAKT + 101 * MS) == (2,)
    assert not camera.ready(TAKT + 99 * MS)
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    match = camera.frame(11, 2 * TAKT + 20 * MS, 2 * TAKT + 21 * MS)  # part 2's, delayed by more than a takt
    assert match.claim is Claim.SWAPPED


def test_a_frame_that_was_exposed_when_the_part_had_moved_on_is_stale() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    match = camera.frame(11, TAKT + 16 * MS, TAKT + 17 * MS)  # usually 5 ms
    assert (match.claim, match.without) == (Claim.STALE, (2,))
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    assert camera.frame(12, 2 * TAKT + 6 * MS, 2 * TAKT + 7 * MS).claim is Claim.OWN


def test_a_longer_exposure_is_followed_slowly() -> None:
    camera = synced()
    claims = []
    for sequence in range(2, 40):
        at = sequence * TAKT
        camera.exposed(sequence, at, at + 10 * MS)
        claims.append(camera.frame(sequence + 9, at + 5 * MS + sequence * MS // 4, at + 20 * MS).claim)
    assert set(claims) == {Claim.OWN}


def test_a_frame_that_comes_twice_is_judged_once() -> None:
    camera = synced()
    assert camera.frame(10, 5 * MS, 7 * MS).claim is Claim.DOUBLED
    assert camera.frame(11, 6 * MS, 7 * MS).claim is Claim.DOUBLED  # under another number, but of the same exposure


def test_a_frame_that_nobody_asked_for_is_a_phantom() -> None:
    assert exposures().frame(1, 5 * MS, 6 * MS).claim is Claim.PHANTOM
    camera = synced()
    assert camera.frame(11, 300 * MS, 301 * MS).claim is Claim.PHANTOM
    camera.exposed(2, 320 * MS, 320 * MS + 10 * MS)
    assert camera.frame(12, 325 * MS, 326 * MS).claim is Claim.OWN


def test_an_old_counter_is_a_stale_frame() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    assert camera.frame(9, TAKT + 5 * MS, TAKT + 6 * MS).claim is Claim.STALE


def test_a_given_up_parts_frame_may_still_come_when_the_counter_went_back() -> None:
    """Two frames are overtaken, so that their parts are given up; the second must not be the next part's."""
    camera = synced()
    for sequence in range(2, 6):
        camera.exposed(sequence, sequence * TAKT, sequence * TAKT + 10 * MS)
    first_ns = 3 * TAKT + 4 * MS
    assert camera.frame(12, first_ns, first_ns + MS).sequence == 3  # 2's, number 11, is overtaken
    first_ns = 5 * TAKT + 4 * MS
    assert camera.frame(14, first_ns, first_ns + MS).without == (4,)
    assert camera.frame(11, first_ns + MS, first_ns + 2 * MS).claim is Claim.STALE
    assert not camera.ready(6 * TAKT)  # 4's is still under way
    assert camera.frame(13, 6 * TAKT, 6 * TAKT + MS).claim is Claim.STALE
    assert camera.ready(4 * TAKT + 100 * MS)


def test_a_camera_that_counts_anew_is_not_stale_for_ever() -> None:
    camera = synced(40_000)
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    assert camera.frame(20_000, TAKT + 5 * MS, TAKT + 6 * MS).claim is Claim.STALE
    late = TAKT + 101 * MS
    assert camera.ready(late)
    camera.exposed(3, late, late + 10 * MS)
    assert camera.frame(20_001, late + 5 * MS, late + 6 * MS).claim is Claim.OWN


def test_one_part_at_a_time_until_the_cameras_counter_is_known() -> None:
    camera = exposures()
    assert camera.ready(0)
    camera.exposed(1, 0, 0 + 10 * MS)
    assert not camera.ready(MS)
    camera.frame(7, 4 * MS, 5 * MS)
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    assert camera.ready(TAKT)


def test_a_fresh_connection_counts_from_where_it_likes() -> None:
    camera = synced()
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    assert camera.reopened() == (2,)
    camera.exposed(3, 2 * TAKT, 2 * TAKT + 10 * MS)
    assert camera.frame(1, 2 * TAKT + 5 * MS, 2 * TAKT + 6 * MS).claim is Claim.OWN


@pytest.mark.parametrize("before", [1, 65_534, 65_535])
def test_the_cameras_counter_skips_zero(before: int) -> None:
    camera = synced(before)
    camera.exposed(2, TAKT, TAKT + 10 * MS)
    following = before % GVSP_CYCLE + 1
    assert camera.frame(following, TAKT + 5 * MS, TAKT + 6 * MS).sequence == 2


@settings(deadline=None)
@given(st.data())
def test_no_part_is_ever_given_another_parts_picture(data: st.DataObject) -> None:
    """Triggers are ignored, frames lost, delayed, doubled; the picture's own part is known here and compared."""
    camera = exposures(most_ns=60 * MS)
    frame_id = data.draw(st.integers(1, 65_535))
    now = 0
    arriving: list[tuple[int, int, int]] = []
    for sequence in range(1, 25):
        now += data.draw(st.integers(8, 30)) * MS
        for at, number, owner in [frame for frame in arriving if frame[0] <= now]:
            match = camera.frame(number, at - MS, at)
            assert match.claim is not Claim.OWN or match.sequence == owner
        arriving = [frame for frame in arriving if frame[0] > now]
        camera.overdue(now)
        if not camera.ready(now):
            continue
        camera.exposed(sequence, now, now + 10 * MS)
        fate = data.draw(st.sampled_from(["good", "good", "good", "ignored", "lost", "late", "doubled"]))
        if fate == "ignored":
            continue
        frame_id = frame_id % GVSP_CYCLE + 1
        delay = data.draw(st.integers(10, 55)) if fate == "late" else 4
        if fate != "lost":
            arriving.append((now + delay * MS, frame_id, sequence))
        if fate == "doubled":
            arriving.append((now + (delay + 1) * MS, frame_id, sequence))
        arriving.sort()


class Flier:
    def __init__(self, due: int) -> None:
        self.fail_safe_at_ns = due
        self.settled = False


@given(st.permutations(range(6)))
def test_parts_are_told_in_the_order_they_came_whoever_is_ready_first(order: list[int]) -> None:
    flight: Flight[Flier] = Flight(depth=6)
    parts = [Flier(due) for due in range(6)]
    for part in parts:
        flight.open(part)
    assert flight.full
    told = []
    for index in order:
        assert flight.settle(parts[index])
        assert not flight.settle(parts[index])
        while (landed := flight.land()) is not None:
            told.append(landed.fail_safe_at_ns)
    assert told == list(range(6))
    assert len(flight) == 0


def test_every_part_that_is_due_is_named_and_none_before() -> None:
    flight: Flight[Flier] = Flight(depth=4)
    parts = [Flier(due) for due in (10, 20, 30)]
    for part in parts:
        flight.open(part)
    flight.settle(parts[0])
    assert flight.due_ns() == 20
    assert flight.overdue(19) == []
    assert flight.overdue(30) == parts[1:]
    flight.settle(parts[1])
    flight.settle(parts[2])
    assert flight.due_ns() is None


def view(score: float = 0.1, **changes: object) -> View:
    return View(**{"name": "cam", "sequence": 7, "frame": FrameStatus.OK, "score": score, "threshold": 0.5} | changes)  # type: ignore[arg-type]


def ruled(*views: View | None, now: int = 0) -> tuple[Verdict, Cause]:
    ruling = rule(views, sequence=7, now_ns=now, fail_safe_at_ns=10)
    return ruling.verdict, ruling.cause


def test_all_views_must_be_good_for_a_pass() -> None:
    assert ruled(view(), view()) == (Verdict.PASS, Cause.OK)
    assert ruled(view(), view(0.9)) == (Verdict.REJECT, Cause.DEFECT)
    assert ruled(view(), None) == (Verdict.REJECT, Cause.NO_FRAME)
    assert ruled(view(), view(math.nan)) == (Verdict.REJECT, Cause.ENGINE)
    assert ruled(view(), view(), now=10) == (Verdict.REJECT, Cause.LATE)
    assert ruled() == (Verdict.REJECT, Cause.NO_FRAME)


def test_what_is_known_of_a_part_outweighs_what_is_missing() -> None:
    assert ruled(None, view(0.9)) == (Verdict.REJECT, Cause.DEFECT)
    assert ruled(None, view(0.4, hold=0.3)) == (Verdict.REJECT, Cause.HOLD)


def test_a_view_in_the_hold_band_lets_no_part_pass() -> None:
    held = view(0.4, hold=0.3)
    assert not held.passing
    assert view(0.2, hold=0.3).passing
    assert ruled(view(), held) == (Verdict.REJECT, Cause.HOLD)
    assert ruled(held, view(0.9)) == (Verdict.REJECT, Cause.DEFECT)


def test_the_verdict_names_the_view_that_it_comes_from() -> None:
    def decides(*views: View | None) -> int:
        return rule(views, sequence=7, now_ns=0, fail_safe_at_ns=10).view

    assert decides(view(), None) == 1
    assert decides(view(), view(frame=FrameStatus.INCOMPLETE, score=math.nan)) == 1
    assert decides(None, view(0.9)) == 1
    assert decides(view(0.1), view(0.3), view(0.2)) == 1
    assert decides(view(0.6), view(0.7, threshold=0.65)) == 0  # further over its own threshold
    assert decides() == -1


def test_a_part_without_one_of_its_views_is_a_reject_whatever_the_others_say() -> None:
    def given_up(*views: View | None) -> tuple[Verdict, Cause, int]:
        ruling = without(views, sequence=7, cause=Cause.NO_FRAME, view=1)
        return ruling.verdict, ruling.cause, ruling.view

    assert given_up(None, None) == (Verdict.REJECT, Cause.NO_FRAME, 1)
    assert given_up(view(), None) == (Verdict.REJECT, Cause.NO_FRAME, 1)
    assert given_up(view(), view()) == (Verdict.REJECT, Cause.NO_FRAME, 1)
    assert given_up(view(), None, view(0.9)) == (Verdict.REJECT, Cause.DEFECT, 2)
    assert given_up(view(0.9, sequence=6), None) == (Verdict.REJECT, Cause.NO_FRAME, 1)


def test_a_view_of_another_part_is_no_view_of_this_one() -> None:
    assert ruled(view(), view(sequence=6)) == (Verdict.REJECT, Cause.IDENTITY)


@given(st.lists(st.none() | st.builds(view, st.floats(allow_nan=True, allow_infinity=True)), max_size=4))
def test_the_verdict_is_the_worst_of_the_views(views: list[View | None]) -> None:
    verdict, _ = ruled(*views)
    alone = [ruled(one)[0] for one in views]
    assert (verdict is Verdict.PASS) == (bool(alone) and all(one is Verdict.PASS for one in alone))


RIGHT: dict[str, object] = {
    "sequence": 7,
    "verdict": Verdict.PASS,
    "cause": Cause.OK,
    "score": 0.1,
    "record_sequence": 7,
    "frame_sequences": (7,),
    "passing": 1,
    "views": 1,
    "journaled": True,
    "last_sequence": 6,
    "now_ns": 0,
    "fail_safe_at_ns": 10,
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"last_sequence": 7}, ["I5 order"]),
        ({"cause": Cause.DEFECT}, ["I3 verdict and cause"]),
        ({"frame_sequences": (6,)}, ["I7 identity"]),
        ({"record_sequence": 6}, ["I7 identity"]),
        ({"frame_sequences": ()}, ["I7 views"]),
        ({"views": 2}, ["I7 views"]),
        ({"passing": 0}, ["I7 views"]),
        ({"frame_sequences": (7, 7), "views": 2}, ["I7 views"]),
        ({"score": math.nan}, ["I12 score"]),
        ({"score": 1.5}, ["I12 score"]),
        ({"journaled": False}, ["I4 journal"]),
        ({"record_sequence": 0}, ["I4 journal"]),
        ({"now_ns": 10}, ["I2 deadline"]),
        ({"verdict": Verdict.REJECT, "cause": Cause.LATE, "frame_sequences": (), "score": math.nan, "now_ns": 99}, []),
    ],
)
def test_what_must_hold_before_a_verdict_goes_out(changes: dict[str, object], named: list[str]) -> None:
    assert announcement(**{**RIGHT, **changes}) == named  # type: ignore[arg-type]


def test_triggers_and_verdicts_add_up() -> None:
    assert balance(triggers=5, passed=2, rejected=2, under_way=1) == []
    assert balance(triggers=5, passed=2, rejected=2, under_way=0) == ["I1 balance"]


def test_signals_never_contradict_each_other() -> None:
    right = {"passing": True, "rejecting": False, "valid": True, "fault": False, "code": 1, "ok_code": 1}
    assert signals(**right) == []
    assert signals(**{**right, "rejecting": True}) == ["I3 both"]
    assert signals(**{**right, "valid": False}) == ["I3 valid", "I3 code"]
    assert signals(**{**right, "code": 100}) == ["I3 code"]
    assert signals(**{**right, "passing": False, "valid": False, "code": 0}) == []
    assert signals(**{**right, "passing": False, "valid": False, "code": 100}) == ["I3 code"]
    assert signals(**{**right, "fault": True}) == ["I11 pass while fault"]
