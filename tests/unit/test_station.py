"""The order of what the PLC is told, with two threads wanting to tell it something."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stationbench import Line, part, soon

from edgeqc.core.account import TriggerAccount
from edgeqc.core.handshake import Form, Given, Rules
from edgeqc.core.keeping import KeepRule
from edgeqc.core.stopping import StopLimits, StopReason, StopRule
from edgeqc.core.views import View
from edgeqc.errors import JournalError, PeerError
from edgeqc.records import (
    NS_PER_S,
    RESULT_CODE,
    Cause,
    Delivery,
    FrameStatus,
    PartRecord,
    PlcResult,
    PlcTrigger,
    Quality,
    SnapshotTag,
    Verdict,
    ViewRecord,
)
from edgeqc.settings import JournalSync, ReplayTagSource, StationSettings
from edgeqc.shm.slots import FrameSlots
from edgeqc.shm.tagtable import FILE_NAME, TagTable
from edgeqc.station.lender import Lender
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Look, Part, Recipe
from edgeqc.station.plckeeper import Manners
from edgeqc.station.tagwatch import TagWatch
from edgeqc.station.underway import UnderWay


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.close()


def test_a_part_is_settled_once_whoever_comes_second(line: Line) -> None:
    one = part(1)
    assert line.outcome.settle(one, Verdict.REJECT, Cause.NO_FRAME)
    assert not line.outcome.settle(one, Verdict.PASS, Cause.OK)
    assert [told.verdict for told in line.plc.told] == [Verdict.REJECT]
    assert line.row.get("verdicts") == 1


def test_who_comes_second_already_sees_that_the_slot_is_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(tmp_path, keep_rejects=True)
    one = part(1)
    one.slot = 2
    seen: list[bool] = []

    def second() -> None:
        line.outcome.settle(one, Verdict.PASS, Cause.OK)
        seen.append(one.lent)

    thread = threading.Thread(target=second)

    def slow_keeps(_rule: KeepRule, _verdict: Verdict, _passed: int) -> bool:
        thread.start()
        thread.join(0.2)  # the other thread has every chance to come past
        return True

    monkeypatch.setattr(KeepRule, "keeps", slow_keeps)
    try:
        line.outcome.settle(one, Verdict.REJECT, Cause.LATE)
        thread.join()
        assert seen == [True]
    finally:
        line.close()


def test_a_pass_is_in_the_journal_before_the_plc_hears_of_it(line: Line) -> None:
    line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    record, delivery = line.journaled()
    assert isinstance(record, PartRecord)
    assert isinstance(delivery, Delivery)
    assert record.verdict is Verdict.PASS
    assert record.ledger.decided_ns < delivery.delivered_ns
    assert delivery.delivered


def test_busy_never_hides_a_verdict_that_is_out(line: Line) -> None:
    one = part(1)
    line.outcome.settle(one, Verdict.REJECT, Cause.NO_FRAME)  # the guard, while the line waited for the camera
    line.keeper.show_busy(1, "P1", soon(), unless=lambda: one.settled)
    assert [told.verdict for told in line.plc.told] == [Verdict.REJECT]


def test_busy_takes_the_last_parts_result_off(line: Line) -> None:
    line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    two = part(2)
    line.keeper.show_busy(2, "P2", soon(), unless=lambda: two.settled)
    last = line.plc.told[-1]
    assert (last.verdict, last.busy, last.part_id, last.code) == (None, True, "P2", 0)


def test_the_end_of_a_hold_never_takes_the_next_parts_result(tmp_path: Path) -> None:
    hold_ns = 20 * NS_PER_S
    line = Line(tmp_path, manners=Manners(rules=Rules(hold_ns=hold_ns)))
    try:
        line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
        first_due_ns = line.keeper.due_ns
        assert first_due_ns is not None
        line.outcome.settle(part(2), Verdict.PASS, Cause.OK)
        line.keeper.expire(first_due_ns)
        assert line.plc.told[-1].verdict is Verdict.PASS
        assert line.keeper.due_ns is not None
        line.keeper._handshake._until_ns = 0  # its time is over
        line.keeper.expire(time.monotonic_ns())
        assert line.plc.told[-1].verdict is None
    finally:
        line.close()


BUFFERED = Manners(rules=Rules(form=Form.BUFFERED, depth=3))


def test_a_result_whose_time_is_over_goes_with_the_next_trigger_also_where_parts_overlap(tmp_path: Path) -> None:
    line = Line(tmp_path, manners=Manners(rules=Rules(hold_ns=1)))
    try:
        for sequence in (1, 2):
            line.keeper.show_busy(sequence, f"P{sequence}", soon(), unless=lambda: False)
        line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
        line.keeper.show_busy(3, "P3", soon(), unless=lambda: False)
        told = line.plc.told[-1]
        assert (told.sequence, told.verdict, told.busy) == (3, None, True)
    finally:
        line.close()


def test_a_result_that_waits_is_delivered_when_its_turn_has_come(tmp_path: Path) -> None:
    line = Line(tmp_path, manners=BUFFERED)
    try:
        for sequence in (1, 2, 3, 4):
            line.outcome.settle(part(sequence), Verdict.PASS, Cause.OK)
        delivered = [body for body in line.journaled() if isinstance(body, Delivery)]
        assert [(one.sequence, one.delivered) for one in delivered] == [(1, True), (4, False)]
        assert "buffer is full" in delivered[1].reason
        line.plc.says = replace(line.plc.says, ack=1)
        line.keeper.read_trigger(soon())
        assert (line.plc.told[-1].sequence, line.plc.told[-1].waiting, line.plc.told[-1].overrun) == (2, 2, True)
        delivered = [body for body in line.journaled() if isinstance(body, Delivery)]
        assert [(one.sequence, one.delivered) for one in delivered] == [(1, True), (4, False), (2, True)]
        line.plc.broken = True
        with pytest.raises(PeerError):
            line.keeper.touch(soon())
        delivered = [body for body in line.journaled() if isinstance(body, Delivery)]
        assert [(one.sequence, one.delivered) for one in delivered[3:]] == [(3, False)]
        assert line.row.get("verdicts") == 4
    finally:
        line.close()


def test_a_fresh_link_begins_clear_whatever_waited(tmp_path: Path) -> None:
    line = Line(tmp_path, manners=BUFFERED)
    try:
        for sequence in (1, 2):
            line.outcome.settle(part(sequence), Verdict.PASS, Cause.OK)
        line.plc.broken = True
        with pytest.raises(PeerError):
            line.keeper.touch(soon())
        line.plc.told.clear()
        line.plc.broken = False
        until = time.monotonic() + 5
        while not line.keeper.up:
            assert time.monotonic() < until
            time.sleep(0.01)  # the keeper's own pace
        assert [(told.verdict, told.waiting) for told in line.plc.told] == [(None, 0)]
    finally:
        line.close()


def test_a_part_that_comes_before_anybody_has_looked_is_a_part(tmp_path: Path) -> None:
    line = Line(tmp_path, manners=Manners(triggers=True))
    try:
        line.plc.says = PlcTrigger(counter=1, part_id="P1", read_ns=0)  # the PLC saw READY; nobody has polled yet
        account = TriggerAccount(fresh_ns=NS_PER_S)
        opening = line.keeper.opening()
        assert opening is not None
        assert not account.reading(opening.counter, opening.part_id, opening.read_ns).part
        seen = line.keeper.read_trigger(soon())
        arrival = account.reading(seen.counter, seen.part_id, seen.read_ns)
        assert (arrival.part, arrival.missed) == (True, 0)
        assert line.keeper.opening() is None, "it is told once"
    finally:
        line.close()


def test_a_stop_while_the_link_is_being_opened_waits_for_nobody(tmp_path: Path) -> None:
    line = Line(tmp_path)
    opening, may_open = threading.Event(), threading.Event()
    plc = line.plc

    def slow(result: PlcResult, until_ns: int) -> None:
        opening.set()
        may_open.wait(5)
        plc.told.append(result)

    try:
        line.keeper.beat(ready=True, fault=False, until_ns=soon())
        plc.broken = True
        with pytest.raises(PeerError):
            line.keeper.beat(ready=True, fault=False, until_ns=soon())
        plc.told.clear()
        plc.write_result = slow  # type: ignore[method-assign]
        assert opening.wait(5)
        threading.Timer(0.1, may_open.set).start()
        began_s = time.monotonic()
        line.keeper.stop()
        assert time.monotonic() - began_s < 4
        assert not any(told.ready for told in plc.told), "READY is said anew on a fresh link"
    finally:
        line.close()


def test_a_link_that_is_lost_between_the_lock_and_the_write_is_told_once(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The triggers' thread drops it while the line is about to write; the guard waits for the lock and tidies up behind."""
    keeper, offer = line.keeper, line.keeper._handshake.result

    def lost(result: PlcResult) -> Given:
        given = offer(result)
        link = keeper._link
        assert link is not None
        keeper._drop(link, "hung up")
        return given

    monkeypatch.setattr(keeper._handshake, "result", lost)
    leave = keeper._hold.__class__.__exit__

    def leave_and_tidy(self: object, *why: object) -> None:
        leave(self, *why)  # type: ignore[arg-type]
        monkeypatch.undo()
        with keeper._held(soon()):
            pass

    monkeypatch.setattr(keeper._hold.__class__, "__exit__", leave_and_tidy)
    assert line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    deliveries = [body for body in line.journaled() if isinstance(body, Delivery)]
    assert [(one.sequence, one.delivered, one.reason) for one in deliveries] == [(1, False, "hung up")]


def test_a_part_whose_result_found_the_link_held_is_not_under_way_for_ever(line: Line) -> None:
    line.keeper.show_busy(1, "P1", soon(), unless=lambda: False)
    with line.keeper._lock, pytest.raises(PeerError, match="busy with another write"):
        line.keeper.show(replace(line.keeper.shown, sequence=1, verdict=Verdict.PASS), time.monotonic_ns())
    line.keeper.touch(soon())
    assert not line.plc.told[-1].busy


def test_a_plc_program_that_stands_still_takes_ready_off(tmp_path: Path) -> None:
    line = Line(tmp_path, manners=Manners(plc_heartbeat_ns=NS_PER_S))
    try:
        for at_ns, alive in ((1, True), (NS_PER_S, True), (NS_PER_S + 2, False)):
            line.plc.says = PlcTrigger(counter=0, part_id="", read_ns=at_ns, heartbeat=5)
            line.keeper.read_trigger(soon())
            line.keeper.beat(ready=True, fault=False, until_ns=soon())
            assert line.plc.told[-1].ready is alive
        line.plc.says = PlcTrigger(counter=0, part_id="", read_ns=NS_PER_S + 3, heartbeat=6)
        line.keeper.read_trigger(soon())
        assert line.programs == [False, True]
    finally:
        line.close()


def test_a_heartbeat_never_brings_an_older_result_back(line: Line) -> None:
    line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    line.outcome.settle(part(2), Verdict.REJECT, Cause.DEFECT)
    line.keeper.beat(ready=True, fault=False, until_ns=soon())
    assert (line.plc.told[-1].sequence, line.plc.told[-1].verdict) == (2, Verdict.REJECT)


def test_no_pass_is_begun_that_may_come_late(line: Line) -> None:
    line.outcome.settle(part(1, left_s=-0.001), Verdict.PASS, Cause.OK)
    assert line.plc.told[-1].verdict is Verdict.REJECT
    assert line.plc.told[-1].code == 100


def test_a_pass_without_a_link_is_a_reject_with_its_cause(line: Line) -> None:
    line.plc.broken = True
    with pytest.raises(PeerError):
        line.keeper.beat(ready=True, fault=False, until_ns=soon())
    line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    record = line.journaled()[0]
    assert isinstance(record, PartRecord)
    assert (record.verdict, record.cause) == (Verdict.REJECT, Cause.PLC)
    assert line.plc.told == []


def test_what_cannot_be_recorded_is_not_passed_and_is_recorded_later(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_body: object) -> int:
        raise JournalError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(line.journal, "append", full)
        line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
    assert (line.plc.told[-1].verdict, line.plc.told[-1].code) == (Verdict.REJECT, 105)
    assert line.journaled() == []
    line.outcome.retry_journal(soon())
    record, delivery = line.journaled()
    assert isinstance(record, PartRecord)
    assert isinstance(delivery, Delivery)
    assert (delivery.verdict, delivery.cause) == (Verdict.REJECT, Cause.JOURNAL)


def test_a_pass_that_the_disk_does_not_confirm_in_time_is_a_reject(tmp_path: Path) -> None:
    line = Line(tmp_path, sync=JournalSync.EACH)
    try:
        line.journal.wait_synced = lambda _sequence, _until_ns: False  # type: ignore[method-assign]
        line.outcome.settle(part(1), Verdict.PASS, Cause.OK)
        assert (line.plc.told[-1].verdict, line.plc.told[-1].code) == (Verdict.REJECT, 105)
    finally:
        line.close()


def test_a_score_that_comes_late_is_recorded_and_changes_nothing(line: Line) -> None:
    one = part(1)
    line.outcome.settle(one, Verdict.REJECT, Cause.LATE)
    line.outcome.late_score(one, Verdict.REJECT, Cause.LATE, score=one.score)
    deliveries = [body for body in line.journaled() if isinstance(body, Delivery)]
    assert [math.isnan(delivery.late_score) for delivery in deliveries] == [True, False]
    assert len(line.plc.told) == 1


def test_a_missed_part_is_recorded_but_not_announced(line: Line) -> None:
    missed = part(1)
    missed.announced = False
    line.outcome.settle(missed, Verdict.REJECT, Cause.NO_FRAME)
    assert line.plc.told == []
    delivery = line.journaled()[1]
    assert isinstance(delivery, Delivery)
    assert not delivery.delivered


def test_a_slot_that_the_office_keeps_too_long_is_taken_back(tmp_path: Path) -> None:
    slots = FrameSlots.create(tmp_path / "slots", per_bank=4, shape=(16, 16))
    home: list[int] = []
    lender = Lender(slots, most=2, take_back=home.append)
    leases = [lender.lend(slot) for slot in range(3)]
    lender.collect()
    assert (home, lender.given_up) == ([0], 1)
    assert slots.borrow(0, leases[0]) is None, "the image is no longer there"
    assert slots.borrow(1, leases[1]) is not None
    lender.collect()
    assert home == [0, 1]


def test_a_lease_that_was_given_back_gives_no_picture_of_another_part(tmp_path: Path) -> None:
    """A record that is read again, as when the archive is filled anew: its slot has gone to the camera since."""
    slots = FrameSlots.create(tmp_path / "slots", per_bank=4, shape=(16, 16))
    lease = slots.lend(0)
    slots.pixels(0)[:] = 11
    first = slots.borrow(0, lease)
    assert first is not None
    assert first[0].max() == 11
    slots.pixels(0)[:] = 99  # the next part's, which is not lent
    assert slots.borrow(0, lease) is None
    unread = slots.lend(1)
    again = FrameSlots.create(tmp_path / "slots", per_bank=4, shape=(16, 16))  # the station has begun anew
    assert again.borrow(1, unread) is None
    del slots, again


def test_the_machine_at_the_exposure_is_journaled_once_the_plc_has_its_answer(line: Line) -> None:
    one = part(1)
    one.process = tuple(
        SnapshotTag(name=f"zone{number}-temperature", value=float(number), quality=Quality.GOOD, age_s=0.05)
        for number in range(40)
    )
    assert line.outcome.settle(one, Verdict.PASS, Cause.OK)
    record, *snapshots, delivery = line.journaled()
    assert isinstance(record, PartRecord)
    assert isinstance(delivery, Delivery)
    assert len(snapshots) > 1
    assert {snapshot.sequence for snapshot in snapshots} == {1}
    assert [tag.value for snapshot in snapshots for tag in snapshot.tags] == list(range(40))


def tag_station(**fields: object) -> StationSettings:
    return StationSettings.model_validate(
        {
            "name": "top",
            "takt_ms": 100,
            "budget_ms": 50,
            "camera": {"type": "replay", "folder": "x", "width_px": 64, "height_px": 64},
            "recipe": {"engine": "x"},
            "plc": {"type": "none"},
            **fields,
        }
    )


def tag_table(folder: Path) -> TagTable:
    source = ReplayTagSource.model_validate(
        {
            "name": "oven",
            "type": "replay",
            "file": "x.csv",
            "stale_ms": 1000,
            "tags": [{"name": "heat"}, {"name": "belt"}],
        }
    )
    return TagTable.create(folder / FILE_NAME, [source])


def test_a_required_tag_must_be_good_and_its_server_heard_of_lately(tmp_path: Path) -> None:
    watch = TagWatch(tmp_path, tag_station(required_tags=["heat"]))
    assert not watch.good()  # there is no table yet
    table = tag_table(tmp_path)
    now_ns = time.monotonic_ns()
    assert not watch.good()
    table.write_alive(0, now_ns)
    table.write(0, 200.0, Quality.GOOD, 0.0, now_ns)
    assert watch.good()
    for quality in (Quality.UNCERTAIN, Quality.BAD):
        table.write(0, 200.0, quality, 0.0, now_ns)
        assert not watch.good()
    table.write(0, 200.0, Quality.GOOD, 0.0, now_ns)
    table.write_alive(0, now_ns - 2 * NS_PER_S)
    assert not watch.good()
    assert TagWatch(tmp_path, tag_station()).good()  # nothing is required
    table.close()


def test_a_snapshot_has_what_held_at_the_exposure_with_quality_and_age(tmp_path: Path) -> None:
    station = tag_station(required_tags=["heat"], snapshot_tags=["belt", "heat"])
    assert [(tag.name, tag.quality) for tag in TagWatch(tmp_path, station).snapshot(1)] == [
        ("belt", Quality.BAD),
        ("heat", Quality.BAD),
    ]
    table, watch, now_ns = tag_table(tmp_path), TagWatch(tmp_path, station), time.monotonic_ns()
    table.write_alive(0, now_ns)
    table.write(0, 200.0, Quality.GOOD, 0.0, now_ns - 100_000_000)
    exposed_ns = now_ns - 20_000_000
    table.write(0, 300.0, Quality.GOOD, 0.0, now_ns - 5_000_000)  # came after the exposure
    belt, heat = watch.snapshot(exposed_ns)
    assert (heat.value, heat.quality) == (200.0, Quality.GOOD)
    assert heat.age_s == pytest.approx(0.08)
    assert (belt.quality, belt.age_s) == (Quality.BAD, math.inf)
    assert [tag.name for tag in TagWatch(tmp_path, tag_station(required_tags=["heat"])).snapshot(now_ns)] == ["heat"]
    assert TagWatch(tmp_path, tag_station(required_tags=["heat"], snapshot_tags=[])).snapshot(now_ns) == ()
    table.close()


def test_parts_are_told_to_the_plc_in_the_order_they_came(line: Line) -> None:
    one, two, three = part(1), part(2), part(3)
    for each in (one, two, three):
        line.outcome.under_way.admit(each)
    assert line.outcome.settle(two, Verdict.PASS, Cause.OK)
    assert line.outcome.settle(three, Verdict.REJECT, Cause.DEFECT)
    assert line.plc.told == []
    assert line.outcome.settle(one, Verdict.REJECT, Cause.DEFECT)
    assert [told.sequence for told in line.plc.told] == [1, 2, 3]
    assert [told.verdict for told in line.plc.told] == [Verdict.REJECT, Verdict.PASS, Verdict.REJECT]
    assert len(line.outcome.under_way) == 0


def test_a_pass_that_rests_on_another_parts_frame_is_a_reject_that_says_so(line: Line) -> None:
    one = part(1)
    one.views = [View(name="cam", sequence=7, frame=FrameStatus.OK, score=0.1, threshold=0.5)]
    line.outcome.settle(one, Verdict.PASS, Cause.OK)
    assert [(told.verdict, told.code) for told in line.plc.told] == [(Verdict.REJECT, RESULT_CODE[Cause.IDENTITY])]
    assert line.row.get("violations") == 1


def test_three_fail_safe_verdicts_in_a_row_ask_the_plc_to_stop_the_line(tmp_path: Path) -> None:
    made = Line(tmp_path)
    asked: list[StopReason | None] = []
    rule = StopRule(StopLimits(fail_safe_in_a_row=3))

    def on_stop() -> None:
        asked.append(rule.reason)
        made.keeper.ask_stop(rule.reason is not None)

    outcome = Outcome(
        station="top",
        journal=made.journal,
        sync=JournalSync.GROUP,
        plc=made.keeper,
        lenders={
            "cam": Lender(FrameSlots.create(tmp_path / "more", per_bank=4, shape=(16, 16)), most=1, take_back=print)
        },
        keep=KeepRule(rejects=False, every_nth_pass=0, newest=0),
        row=made.row,
        stop=rule,
        on_stop=on_stop,
    )
    try:
        for sequence in range(1, 4):
            outcome.settle(part(sequence), Verdict.REJECT, Cause.NO_FRAME)
        assert asked == [StopReason.FAIL_SAFE]
        made.keeper.touch(soon())
        assert made.plc.told[-1].stop
        for sequence in range(4, 7):
            outcome.settle(part(sequence), Verdict.PASS, Cause.OK)
        assert asked == [StopReason.FAIL_SAFE, None]
        made.keeper.touch(soon())
        assert not made.plc.told[-1].stop
    finally:
        made.close()


def two_views(sequence: int, *scores: float | None) -> Part:
    """A part before two cameras; None: the frame did not come."""
    one = part(sequence)
    one.score, one.views = math.nan, []
    one.recipe = Recipe(name="cap", threshold=0.5, model_digest=bytes(32))
    one.looks = tuple(Look(fail_safe_at_ns=one.fail_safe_at_ns) for _ in scores)
    for place, (look, score) in enumerate(zip(one.looks, scores, strict=True)):
        seen = None
        if score is not None:
            look.slot, look.frame_id, look.frame_ns, look.score = place, sequence, one.trigger.at_ns + 1, score
            seen = View(name="ab"[place], sequence=sequence, frame=FrameStatus.OK, score=score, threshold=0.5)
        one.views.append(seen)
    return one


@pytest.fixture
def pair(tmp_path: Path, line: Line) -> Iterator[tuple[Line, Outcome]]:
    """An outcome before which two cameras look at each part."""
    slots = [FrameSlots.create(tmp_path / f"slots-{name}", per_bank=4, shape=(16, 16)) for name in "ab"]
    outcome = Outcome(
        station="top",
        journal=line.journal,
        sync=JournalSync.GROUP,
        plc=line.keeper,
        lenders={name: Lender(each, most=2, take_back=print) for name, each in zip("ab", slots, strict=True)},
        keep=KeepRule(rejects=True, every_nth_pass=0, newest=0),
        row=line.row,
        under_way=UnderWay((), depth=4, views=2),
    )
    yield line, outcome
    outcome.__dict__.clear()  # as in Line.close


def test_the_record_is_of_the_view_that_decided_and_each_view_has_its_own(pair: tuple[Line, Outcome]) -> None:
    line, outcome = pair
    one = two_views(1, 0.2, 0.9)
    outcome.under_way.admit(one)
    ruling = outcome.under_way.ruling(one, tags_good=True, now_ns=0)
    assert outcome.settle(one, ruling.verdict, ruling.cause, ruling.view)
    record, left, right, delivery = line.journaled()
    assert isinstance(record, PartRecord)
    assert isinstance(delivery, Delivery)
    assert (record.view, record.cause, record.score, record.slot) == (1, Cause.DEFECT, 0.9, -1)
    assert isinstance(left, ViewRecord)
    assert isinstance(right, ViewRecord)
    assert (left.camera, left.verdict, left.cause, left.score) == ("a", Verdict.PASS, Cause.OK, 0.2)
    assert (right.camera, right.verdict, right.cause, right.score) == ("b", Verdict.REJECT, Cause.DEFECT, 0.9)
    assert [(view.slot, view.lease > 0) for view in (left, right)] == [(0, True), (1, True)]
    assert all(look.lent for look in one.looks)
    assert line.plc.told[-1].score == 0.9


@pytest.mark.parametrize(
    ("scores", "cause", "view"),
    [
        ((0.2, None), Cause.NO_FRAME, 1),
        ((None, 0.2), Cause.NO_FRAME, 0),
        ((None, None), Cause.NO_FRAME, 0),
        ((0.9, None), Cause.DEFECT, 0),
        ((None, 0.9), Cause.DEFECT, 1),
    ],
)
def test_when_the_time_is_up_the_missing_view_is_named_unless_another_has_shown_a_defect(
    pair: tuple[Line, Outcome], scores: tuple[float | None, ...], cause: Cause, view: int
) -> None:
    line, outcome = pair
    one = two_views(1, *scores)
    outcome.give_up(one, *one.lacking)
    record, *views, _ = line.journaled()
    assert isinstance(record, PartRecord)
    assert (record.verdict, record.cause, record.view) == (Verdict.REJECT, cause, view)
    found = [(each.cause, each.slot >= 0) for each in views if isinstance(each, ViewRecord)]
    causes = {None: Cause.NO_FRAME, 0.2: Cause.OK, 0.9: Cause.DEFECT}
    assert found == [(causes[score], score is not None) for score in scores]


def test_a_view_whose_engine_has_not_answered_in_time_makes_it_late(pair: tuple[Line, Outcome]) -> None:
    line, outcome = pair
    one = two_views(1, 0.2, None)
    one.looks[1].frame_ns = one.trigger.at_ns + 1
    outcome.give_up(one, *one.lacking)
    assert (one.cause, one.view) == (Cause.LATE, 1)
    assert line.plc.told[-1].code == RESULT_CODE[Cause.LATE]
