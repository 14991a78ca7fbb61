"""The guard: it owes every part its verdict, whatever else it has to do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stationbench import Line, part, soon

from edgeqc.errors import JournalError
from edgeqc.records import NS_PER_S, Cause, Event, PartRecord, Verdict
from edgeqc.station.guard import Guard


def guard(line: Line, *, ready: bool = True, heartbeat_ns: int = NS_PER_S) -> Guard:
    return Guard(
        outcome=line.outcome,
        plc=line.keeper,
        row=line.row,
        fail_safe_ns=NS_PER_S,
        heartbeat_ns=heartbeat_ns,
        healthy=lambda: True,
        ready=lambda: ready,
        priority=0,
    )


def test_a_part_that_is_under_way_when_the_station_stops_has_its_record(tmp_path: Path) -> None:
    line = Line(tmp_path)
    standing_by = guard(line)
    standing_by.start()
    parts = [part(1), part(2)]
    for one in parts:
        line.outcome.under_way.admit(one)
        standing_by.watch(one)
    line.keeper.stop()  # outputs are safe first
    standing_by.stop()
    found = [body for body in line.journaled() if isinstance(body, PartRecord)]
    line.close()
    assert [(one.trigger.sequence, one.verdict, one.cause) for one in found] == [
        (1, Verdict.REJECT, Cause.NO_FRAME),
        (2, Verdict.REJECT, Cause.NO_FRAME),
    ]


def test_a_part_that_was_seen_late_does_not_wait_for_the_guards_next_look(tmp_path: Path) -> None:
    line = Line(tmp_path)
    standing_by = guard(line)
    standing_by._look_ns = 60 * NS_PER_S
    standing_by.start()
    time.sleep(0.05)  # it sleeps
    late = part(1, left_s=0.02)
    line.outcome.under_way.admit(late)
    standing_by.watch(late)
    until_ns = time.monotonic_ns() + 30 * NS_PER_S
    while late.record is None and time.monotonic_ns() < until_ns:
        time.sleep(0.001)
    settled = late.settled
    standing_by.stop()
    line.close()
    assert settled


def test_records_that_waited_for_the_disk_keep_no_part_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(tmp_path)

    def full(_body: object) -> int:
        raise JournalError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(line.journal, "append", full)
        for number in range(1000):
            line.outcome.note(Event(name="tick", facts={"n": number}))
    assert line.outcome.retry_journal(time.monotonic_ns()), "a part is due now, and the rest may go later"
    assert len(line.journaled()) == 1
    while line.outcome.retry_journal(soon()):
        pass
    appended = line.journal.sequence
    line.close()
    assert appended == 1000


def test_records_that_were_lost_to_a_full_disk_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(tmp_path)

    def full(_body: object) -> int:
        raise JournalError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(line.journal, "append", full)
        for number in range(4096 + 7):
            line.outcome.note(Event(name="tick", facts={"n": number}))
    while line.outcome.retry_journal(soon()):
        pass
    wait_until_told = soon()
    told: list[Event] = []
    while not told and time.monotonic_ns() < wait_until_told:
        line.outcome.retry_journal(soon())  # a segment is full by then; the next one may still be made
        told = [body for body in line.journaled(8192) if isinstance(body, Event) and body.name != "tick"]
    line.close()
    assert told == [Event(name="journal_records_lost", facts={"count": 7})]


def test_a_gate_that_nobody_watches_takes_ready_off_and_is_no_fault_of_the_judging(tmp_path: Path) -> None:
    """FAULT says that every part is rejected; these are judged, and pass."""
    line = Line(tmp_path)
    standing_by = guard(line, ready=False)
    line.row.beat("line")
    standing_by.start()
    until_ns = time.monotonic_ns() + 5 * NS_PER_S
    while not line.plc.told and time.monotonic_ns() < until_ns:
        time.sleep(0.01)
    standing_by.stop()
    told = line.plc.told[-1]
    line.close()
    assert (told.ready, told.fault) == (False, False)


def test_where_parts_never_end_the_plc_is_told_all_the_same_how_the_station_is(tmp_path: Path) -> None:
    line = Line(tmp_path)
    standing_by = guard(line, ready=False, heartbeat_ns=NS_PER_S // 2)
    line.row.beat("line")
    standing_by.start()
    until_ns = time.monotonic_ns() + 5 * NS_PER_S
    parts = []
    while len(line.plc.told) < 3 and time.monotonic_ns() < until_ns:
        parts.append(part(len(parts) + 1))
        line.outcome.under_way.admit(parts[-1])
        standing_by.watch(parts[-1])
        time.sleep(0.05)  # the next part comes before the one before it has its verdict
        parts[-1].settled = True
        line.row.beat("line")
    told = len(line.plc.told)
    line.keeper.stop()
    standing_by.stop()
    line.close()
    assert told >= 3


def test_a_part_that_is_overdue_when_it_is_opened_is_told_and_recorded_once(tmp_path: Path) -> None:
    """The guard is quicker than whoever opens it: a frame that waited behind a slow engine, a poll that came late."""
    line = Line(tmp_path)
    exposed, admitted = part(1, left_s=-1), part(2, left_s=-1)
    for one in (exposed, admitted):
        line.outcome.give_up(one, *one.lacking)
    now_ns = time.monotonic_ns()
    assert line.outcome.under_way.open(exposed, fresh=True, known=True, now_ns=now_ns) is not None, "no picture of it"
    line.outcome.under_way.admit(admitted)
    line.outcome.settle(part(3), Verdict.PASS, Cause.OK)
    told = [result.sequence for result in line.plc.told]
    recorded = [body.trigger.sequence for body in line.journaled() if isinstance(body, PartRecord)]
    under_way = len(line.outcome.under_way)
    line.close()
    assert (told, recorded, under_way) == ([1, 2, 3], [1, 2, 3], 0)
