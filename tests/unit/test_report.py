"""The demo's report: whichever witness says something else than the others, it is a fault."""

from __future__ import annotations

from typing import Any

import pytest
from test_stall import COUNTS, MS

from edgeqc.sim.report import build, faults


def witnesses() -> dict[str, Any]:
    """Two parts; PLC, archive and MQTT say the same of them."""
    parts = [("pass", 1), ("reject", 10)]
    times = {"deadline_ns": 60 * MS, "frame_ns": 0, "scored_ns": 0, "prepared_ns": 0}
    return {
        "judged": [
            {"part": n, "part_id": f"P{n}", "triggered_ns": n * MS, "result": result, "code": code, "sequence": n}
            | {"latency_ms": 5.0, "faults": []}
            for n, (result, code) in enumerate(parts, 1)
        ],
        "rows": [
            {"sequence": n, "part_id": f"P{n}", "verdict": result, "code": code, "late": 0, "trigger_ns": n * MS}
            | {"delivered_ns": (n + 5) * MS, **times}
            for n, (result, code) in enumerate(parts, 1)
        ],
        "messages": [
            {"trigger_id": n, "result": result, "result_code": code} for n, (result, code) in enumerate(parts, 1)
        ],
        "summary": {
            **dict.fromkeys(COUNTS, 0),
            "triggers": 2,
            "confusion": {},
            "latency_ms": {},
            "budget_ms": 75.0,
            "allowance_ms": 5.0,
        },
    }


def found(said: dict[str, Any]) -> list[str]:
    counters = dict.fromkeys(("bad_frames", "missed", "stale", "doubled", "images_given_up", "zero_copy"), 0)
    wrong = faults(build(**said, counters=counters, camera="gige", backend="onnxruntime"))
    return [text.rpartition("(")[2].rstrip(")") for text in wrong]


def test_who_agrees_is_no_fault() -> None:
    assert found(witnesses()) == []


@pytest.mark.parametrize(
    ("who", "number", "changes", "fault"),
    [
        ("judged", 0, {"result": "reject"}, "plc_mismatch"),
        ("judged", 0, {"code": 10}, "plc_mismatch"),
        ("judged", 0, {"result": "none", "faults": ["none"]}, "unaccounted"),
        ("judged", 0, {"faults": ["late"], "latency_ms": 90.0}, "late"),
        ("rows", 0, {"part_id": "P7"}, "plc_mismatch"),
        ("messages", 0, {"result": "reject"}, "mqtt_mismatch"),
        ("messages", 1, {"result_code": 100}, "mqtt_mismatch"),
        *(("summary", None, {name: 1}, fault) for name, fault in (
            ("duplicates", "duplicates"),
            ("wrong_part", "plc_mismatch"),
            ("both_bits", "plc_mismatch"),
            ("sequence", "plc_sequence"),
            ("code", "plc_code"),
            ("heartbeat_stuck", "heartbeat_stuck"),
        )),
    ],
)  # fmt: skip
def test_whoever_says_something_else_is_a_fault(
    who: str, number: int | None, changes: dict[str, Any], fault: str
) -> None:
    said = witnesses()
    (said[who] if number is None else said[who][number]).update(changes)
    assert found(said) == [fault]


def test_a_message_that_is_missing_and_a_part_that_nobody_saw_are_faults() -> None:
    said = witnesses()
    del said["messages"][0]
    assert found(said) == ["mqtt_missing"]
    said = witnesses()
    said["rows"].append({**said["rows"][0], "sequence": 9, "part_id": "P9"})
    said["messages"].append({**said["messages"][0], "trigger_id": 9})
    assert found(said) == ["archive_only"]
