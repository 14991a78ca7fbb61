"""Who is late because the box stood still is told apart from who is late."""

from __future__ import annotations

from typing import Any

import pytest

from edgeqc.sim.report import build
from edgeqc.sim.stall import Stall, merged, stalled_ns

MS = 1_000_000
COUNTS = (
    "duplicates",
    "wrong_part",
    "both_bits",
    "valid_without_bit",
    "bit_without_valid",
    "sequence",
    "code",
    "heartbeat_stuck",
)


def judged(**changes: Any) -> dict[str, Any]:
    part = {"part": 1, "part_id": "P1", "triggered_ns": 1000 * MS, "result": "pass", "code": 1, "sequence": 1}
    return {**part, "latency_ms": 100.0, "faults": ["late"], **changes}


def report(part: dict[str, Any], stalls: list[Stall]) -> dict[str, Any]:
    row = {"sequence": 1, "part_id": "P1", "verdict": "pass", "code": 1, "late": 0}
    row |= dict.fromkeys(("delivered_ns", "trigger_ns", "deadline_ns", "frame_ns", "scored_ns", "prepared_ns"), 0)
    return build(
        judged=[part],
        summary={
            **dict.fromkeys(COUNTS, 0),
            "triggers": 1,
            "confusion": {},
            "latency_ms": {},
            "budget_ms": 75.0,
            "allowance_ms": 5.0,
        },
        rows=[row],
        messages=None,
        counters=dict.fromkeys(
            ("bad_frames", "missed", "stale", "doubled", "images_given_up", "zero_copy"),
            0,
        ),
        camera="gige",
        backend="onnxruntime",
        stalls=stalls,
    )


def test_stalls_of_all_cores_are_one_time_line() -> None:
    assert merged([(30, 40), (0, 10), (5, 20)]) == [(0, 20), (30, 40)]
    assert stalled_ns([(0, 20), (30, 40)], 10, 35) == 15
    assert stalled_ns([(0, 20)], 20, 90) == 0


@pytest.mark.parametrize(("stood_still_ms", "late"), [(20, 0), (19, 1), (0, 1)])
def test_a_part_is_excused_for_as_long_as_the_box_stood_still_and_no_longer(stood_still_ms: int, late: int) -> None:
    found = report(judged(), [(1010 * MS, (1010 + stood_still_ms) * MS)])  # 100 ms against 75 + 5
    assert (found["late"], found["stalled"], found["unaccounted"]) == (late, 1 - late, 0)


def test_a_stall_at_another_time_excuses_nobody() -> None:
    found = report(judged(), [(500 * MS, 900 * MS), (1101 * MS, 1500 * MS)])
    assert (found["late"], found["stalled"]) == (1, 0)


@pytest.mark.parametrize(("stood_still_ms", "unaccounted"), [(41, 0), (39, 1)])
def test_a_part_without_an_answer_is_excused_by_half_its_time_only(stood_still_ms: int, unaccounted: int) -> None:
    part = judged(result="none", code=0, sequence=0, latency_ms=None, faults=["none"])
    found = report(part, [(1000 * MS, (1000 + stood_still_ms) * MS)])
    assert (found["unaccounted"], found["stalled"]) == (unaccounted, 1 - unaccounted)
