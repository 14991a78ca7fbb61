"""The rules of the decision core, one by one and against every input."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeqc.core
from edgeqc.core.account import GVSP_CYCLE, MODBUS_CYCLE, Step, move
from edgeqc.core.backoff import Backoff
from edgeqc.core.budget import Budget
from edgeqc.core.cadence import Cadence
from edgeqc.core.decide import decide, overdue
from edgeqc.core.keeping import KeepRule
from edgeqc.core.restart import RestartBudget
from edgeqc.records import JUDGED, NS_PER_S, RESULT_CODE, Cause, FrameStatus, Verdict

SECOND = NS_PER_S
any_score = st.floats(allow_nan=True, allow_infinity=True)


@given(
    frame=st.none() | st.sampled_from(FrameStatus),
    score=any_score,
    threshold=st.floats(0, 1),
    hold=st.none() | st.floats(),
    engine_ok=st.booleans(),
    tags_good=st.booleans(),
    now_ns=st.integers(0, 200),
    fail_safe_at_ns=st.integers(0, 200),
)
def test_pass_needs_everything_right(
    frame: FrameStatus | None,
    score: float,
    threshold: float,
    hold: float | None,
    engine_ok: bool,
    tags_good: bool,
    now_ns: int,
    fail_safe_at_ns: int,
) -> None:
    verdict, cause = decide(
        frame=frame,
        score=score,
        threshold=threshold,
        hold=hold,
        engine_ok=engine_ok,
        tags_good=tags_good,
        now_ns=now_ns,
        fail_safe_at_ns=fail_safe_at_ns,
    )
    right = frame is FrameStatus.OK and engine_ok and tags_good and now_ns < fail_safe_at_ns and 0 <= score < threshold
    right = right and score <= 1 and (hold is None or score < hold)
    assert (verdict is Verdict.PASS) == right
    assert (verdict is Verdict.PASS) == (cause is Cause.OK)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"score": 0.5}, Cause.DEFECT),
        ({"score": 0.5, "hold": 0.05}, Cause.DEFECT),
        ({"score": 0.1, "hold": 0.1}, Cause.HOLD),
        ({"score": 0.6, "hold": 0.7}, Cause.DEFECT),
        ({"score": 0.1, "hold": math.nan}, Cause.HOLD),
        ({"score": math.nan}, Cause.ENGINE),
        ({"score": math.inf}, Cause.ENGINE),
        ({"score": -0.1}, Cause.ENGINE),
        ({"score": 1.1}, Cause.ENGINE),
        ({"engine_ok": False}, Cause.ENGINE),
        ({"tags_good": False}, Cause.BAD_TAG),
        ({"frame": None}, Cause.NO_FRAME),
        ({"frame": FrameStatus.INCOMPLETE}, Cause.BAD_FRAME),
        ({"frame": FrameStatus.STALE}, Cause.BAD_FRAME),
        ({"now_ns": 100}, Cause.LATE),
    ],
)
def test_each_fault_has_its_cause(changes: dict[str, object], cause: Cause) -> None:
    good: dict[str, object] = {
        "frame": FrameStatus.OK,
        "score": 0.1,
        "threshold": 0.5,
        "now_ns": 99,
        "fail_safe_at_ns": 100,
    }
    assert decide(**{**good, **changes}) == (Verdict.REJECT, cause)  # type: ignore[arg-type]


def test_an_overdue_part_is_rejected_and_says_what_is_missing() -> None:
    assert overdue(frame_came=False) == (Verdict.REJECT, Cause.NO_FRAME)
    assert overdue(frame_came=True) == (Verdict.REJECT, Cause.LATE)


def test_every_cause_has_a_code_and_fail_safe_codes_start_at_100() -> None:
    assert set(RESULT_CODE) == set(Cause)
    assert len(set(RESULT_CODE.values())) == len(RESULT_CODE)
    for cause, code in RESULT_CODE.items():
        assert (1 <= code < 100) == (cause in JUDGED)


@given(st.integers(0, 2**62), st.integers(1, 10**6), st.integers(0, 10**6))
def test_the_fail_safe_verdict_leaves_time_for_the_write(at_ns: int, budget_us: int, write_us: int) -> None:
    budget = Budget.of_ms(budget_ms=budget_us / 1000, plc_write_ms=write_us / 1000, seen_late_ms=2)
    assert budget.deadline_ns(at_ns) - budget.fail_safe_at_ns(at_ns) == budget.plc_write_ns
    assert budget.deadline_ns(at_ns) == at_ns + budget.budget_ns - 2_000_000


@pytest.mark.parametrize(
    ("before", "after", "cycle", "step", "missed"),
    [
        (None, 65_400, GVSP_CYCLE, Step.FIRST, 0),
        (65_535, 1, GVSP_CYCLE, Step.NEXT, 0),
        (65_534, 1, GVSP_CYCLE, Step.MISSED, 1),
        (7, 7, GVSP_CYCLE, Step.SAME, 0),
        (7, 6, GVSP_CYCLE, Step.BACK, 0),
        (65_535, 0, MODBUS_CYCLE, Step.NEXT, 0),
        (65_534, 1, MODBUS_CYCLE, Step.MISSED, 2),
        (500, 0, MODBUS_CYCLE, Step.BACK, 0),
    ],
)
def test_counters_wrap_where_their_protocol_says(
    before: int | None, after: int, cycle: int, step: Step, missed: int
) -> None:
    got = move(before, after, cycle=cycle)
    assert (got.step, got.missed) == (step, missed)


@given(st.integers(1, 65_535), st.integers(1, 30_000), st.sampled_from([GVSP_CYCLE, MODBUS_CYCLE]))
def test_missed_counts_add_up(start: int, steps: int, cycle: int) -> None:
    got = move(start, (start + steps) % cycle, cycle=cycle)
    assert (got.missed + 1) == steps


def test_idle_work_is_done_only_where_it_ends_before_the_next_part() -> None:
    cadence = Cadence()
    assert cadence.leaves_room(0, 10)
    for at in (100, 200, 300):
        cadence.part(at)
    assert cadence.leaves_room(320, 70)
    assert not cadence.leaves_room(320, 90)
    assert not cadence.leaves_room(450, 10)
    assert cadence.leaves_room(700, 1000)
    assert cadence.due_ns() == 400


@given(st.integers(1, 100), st.floats(0, 1))
def test_backoff_stays_within_its_bounds(failures: int, lot: float) -> None:
    backoff = Backoff(first_s=0.1, most_s=1.0)
    assert 0.08 <= backoff.delay_s(failures, lot) <= 1.2


def test_restarts_are_free_then_slow_down_and_never_end() -> None:
    budget = RestartBudget()
    delays = [budget.ended(at * SECOND, 0.5) for at in range(8)]
    assert delays[:3] == [0, 0, 0]
    assert delays[3:] == sorted(delays[3:])
    assert 0 < delays[3] <= delays[-1] <= 6
    assert budget.degraded
    assert budget.ended(100 * SECOND, 0.5) == 0
    assert not budget.degraded


def test_images_are_kept_by_the_rule() -> None:
    rule = KeepRule(rejects=True, every_nth_pass=10, newest=0)
    assert rule.keeps(Verdict.REJECT, 3)
    assert rule.keeps(Verdict.PASS, 20)
    assert not rule.keeps(Verdict.PASS, 21)
    assert KeepRule(rejects=False, every_nth_pass=0, newest=5).keeps(Verdict.PASS, 1)
    assert not KeepRule(rejects=False, every_nth_pass=0, newest=0).keeps(Verdict.REJECT, 1)


def test_the_core_names_no_clock_and_draws_no_lots() -> None:
    banned = {"time", "datetime", "random", "os", "threading", "asyncio", "secrets"}
    lots = {"getnode", "uuid1", "uuid4"}  # of uuid, whose type a NodeId needs
    for path in Path(edgeqc.core.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not banned & {name.split(".")[0] for name in names}, path
            assert not (isinstance(node, ast.Attribute) and node.attr in lots), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == "uuid"), path
