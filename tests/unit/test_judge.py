"""The simulated PLC's judgement: each wrong result is named, a right one is not."""

from __future__ import annotations

import math

import pytest

from edgeqc.plc.registers import ResultImage, Status
from edgeqc.sim.judge import SETTLE_NS, Judge, PartReport

MS = 1_000_000
BUDGET, ALLOWANCE = 20 * MS, 5 * MS
PASS = Status.PASS | Status.RESULT_VALID
REJECT = Status.REJECT | Status.RESULT_VALID


def judge(*, by_part_id: bool = True, truth: list[bool] | None = None) -> Judge:
    return Judge(budget_ns=BUDGET, allowance_ns=ALLOWANCE, by_part_id=by_part_id, truth=truth)


def image(
    sequence: int, part_id: str, status: Status = PASS, code: int | None = None, heartbeat: int | None = None
) -> ResultImage:
    if code is None:
        code = 1 if status & Status.PASS else 10
    beat = sequence if heartbeat is None else heartbeat
    return ResultImage(sequence=sequence, status=status, code=code, heartbeat=beat, score=math.nan, part_id=part_id)


def only(judged: Judge) -> PartReport:
    (report,) = judged.rest()
    return report


def test_right_result_in_time_has_no_fault() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A"), 7 * MS)
    report = only(j)
    assert (report.result, report.in_time, report.faults, report.latency_ms) == ("pass", True, [], 7.0)
    summary = j.summary()
    assert (summary["triggers"], summary["answered"], summary["pass"], summary["late"]) == (1, 1, 1, 0)


@pytest.mark.parametrize(("at_ns", "late"), [(BUDGET + ALLOWANCE, False), (BUDGET + ALLOWANCE + 1, True)])
def test_late_begins_after_budget_and_allowance(at_ns: int, late: bool) -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A", REJECT), at_ns)
    report = only(j)
    assert report.in_time is not late
    assert report.faults == (["late"] if late else [])
    assert j.summary()["late"] == int(late)


def test_part_without_result_is_none_and_not_late() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(0, "A", Status.READY | Status.BUSY, 0), 1 * MS)
    assert only(j).faults == ["none"]
    assert (j.summary()["none"], j.summary()["late"], j.summary()["answered"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (Status.PASS | Status.REJECT | Status.RESULT_VALID, 10, "both_bits"),
        (Status.RESULT_VALID, 10, "valid_without_bit"),
        (Status.PASS, 1, "bit_without_valid"),
        (PASS, 10, "code"),
        (REJECT, 1, "code"),
        (REJECT, 0, "code"),
    ],
)
def test_contradiction_within_a_result_is_named(status: Status, code: int, fault: str) -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A", status, code), MS)
    assert only(j).faults == [fault]
    assert j.summary()[fault] == 1


def test_both_bits_are_no_result() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A", PASS | Status.REJECT), MS)
    assert only(j).result == "none"


def test_result_for_an_unknown_part_is_wrong_and_leaves_the_part_unanswered() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "B"), MS)
    assert only(j).faults == ["none"]
    assert j.summary()["wrong_part"] == 1
    assert j.summary()["strays"] == ["B #1"]


def test_repeated_write_of_the_same_result_is_no_duplicate() -> None:
    j = judge()
    j.part(1, "A", 0)
    for beat in range(3):
        j.wrote(image(1, "A", heartbeat=beat), beat * MS)
    j.wrote(image(1, "A", Status.READY, 0, heartbeat=9), 4 * MS)
    assert only(j).faults == []


@pytest.mark.parametrize(
    ("second", "fault"),
    [(image(1, "A", REJECT), "contradiction"), (image(2, "A"), "duplicate"), (image(2, "A", REJECT), "contradiction")],
)
def test_second_result_for_a_part_is_a_duplicate_and_the_first_counts(second: ResultImage, fault: str) -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A"), MS)
    j.wrote(second, 2 * MS)
    report = only(j)
    assert (report.result, report.latency_ms, report.faults) == ("pass", 1.0, [fault])
    assert j.summary()["duplicates"] == 1
    assert j.summary()["contradictions"] == int(fault == "contradiction")


def test_sequence_that_does_not_rise_is_a_fault() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(5, "A"), MS)
    j.part(2, "B", 40 * MS)
    j.wrote(image(5, "B", heartbeat=6), 41 * MS)
    assert [report.faults for report in j.rest()] == [[], ["sequence"]]


def test_heartbeat_that_stands_still_is_counted_and_its_gap_measured() -> None:
    j = judge()
    for at, beat in ((0, 1), (10, 2), (40, 2)):
        j.wrote(image(0, "", Status.READY, 0, beat), at * MS)
    assert j.summary()["heartbeat_stuck"] == 1
    assert j.summary()["heartbeat_gap_max_ms"] == 30


def test_result_before_any_trigger_is_left_over_from_an_earlier_run() -> None:
    j = judge()
    j.wrote(image(7, "OLD"), 0)
    assert j.summary()["wrong_part"] == 0


def test_part_is_settled_one_second_after_its_deadline_and_only_once() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.part(2, "B", 40 * MS)
    end = BUDGET + ALLOWANCE + SETTLE_NS
    assert list(j.settled(end)) == []
    assert [report.part for report in j.settled(end + 1)] == [1]
    assert [report.part for report in j.rest()] == [2]
    assert list(j.rest()) == []


def test_results_in_order_belong_to_the_newest_exposure_before_them() -> None:
    j = judge(by_part_id=False)
    j.part(0, "", 0, judged=False)
    j.wrote(image(10, "10"), 5 * MS)
    j.part(1, "", 40 * MS)
    j.part(2, "", 80 * MS)
    j.wrote(image(11, "11", REJECT), 90 * MS)
    j.part(3, "", 120 * MS)
    j.wrote(image(12, "12"), 127 * MS)
    j.wrote(image(12, "12", heartbeat=0), 140 * MS)
    reports = list(j.rest())
    assert [(report.part, report.result, report.faults) for report in reports] == [
        (1, "none", ["none"]),
        (2, "reject", []),
        (3, "pass", []),
    ]


def test_more_results_than_exposures_are_wrong_parts() -> None:
    j = judge(by_part_id=False)
    j.part(1, "", 0)
    j.wrote(image(1, "1"), 5 * MS)
    j.wrote(image(2, "2"), 6 * MS)
    assert j.summary()["wrong_part"] == 1


def test_confusion_counts_what_is_known() -> None:
    j = judge(truth=[False, True])
    for number, status in ((1, REJECT), (2, PASS), (3, PASS), (4, REJECT)):
        j.part(number, str(number), number * 40 * MS)
        j.wrote(image(number, str(number), status), number * 40 * MS + MS)
    assert j.summary()["confusion"] == {"tp": 1, "fp": 1, "tn": 1, "fn": 1}


def test_fail_safe_results_are_counted() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A", REJECT, 100), MS)
    assert j.summary()["fail_safe"] == 1


def test_a_result_that_was_taken_back_and_is_shown_again_is_a_duplicate() -> None:
    j = judge()
    j.part(1, "A", 0)
    j.wrote(image(1, "A", heartbeat=1), 7 * MS)
    j.wrote(image(1, "A", heartbeat=2), 8 * MS)  # still shown: the heartbeat went on
    j.wrote(image(1, "A", Status.READY, 0, heartbeat=3), 9 * MS)
    assert only(j).faults == []
    j.wrote(image(1, "A", heartbeat=4), 500 * MS)
    assert j.summary()["duplicates"] == 1
