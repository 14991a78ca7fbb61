"""What a run of the simulated line came to: three witnesses (PLC, archive, MQTT) held against each other."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from edgeqc.records import NS_PER_MS
from edgeqc.sim.stall import Stall, stalled_ns

_QUANTILES: Final = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))


def archived(state_dir: Path) -> list[dict[str, Any]]:
    """Every part in the archive, in order."""
    database = sqlite3.connect(f"file:{state_dir / 'archive.db'}?mode=ro", uri=True)
    try:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM parts ORDER BY station, trigger_wall_ns").fetchall()
    finally:
        database.close()
    return [dict(row) for row in rows]


def build(
    *,
    judged: Sequence[dict[str, Any]],
    summary: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    messages: Iterable[dict[str, Any]] | None,
    counters: dict[str, int],
    camera: str,
    backend: str,
    stalls: Sequence[Stall] = (),
) -> dict[str, Any]:
    """The demo's report.

    Args:
        judged: the PLC's lines, one per part.
        summary: the PLC's summary.
        rows: the archive's parts.
        messages: verdict payloads as they came over MQTT, None where there is no broker.
        counters: the station's row of the status board.
        camera: gige or replay.
        backend: what the engine ran on.
        stalls: when the box itself stood still. Parts that would have been in time but for that are counted as `stalled`,
            not as late or unaccounted.
    """
    limit_ns = round((summary["budget_ms"] + summary["allowance_ms"]) * NS_PER_MS)
    excused = {part["part"] for part in judged if _stalled(part, limit_ns, stalls)}
    charged = [part for part in judged if part["part"] not in excused]
    by_sequence = {row["sequence"]: row for row in rows}
    answered = [part for part in judged if part["result"] != "none"]
    mismatch = sum(not _agrees(part, by_sequence.get(part["sequence"])) for part in answered)
    mismatch += sum(summary[name] for name in ("wrong_part", "both_bits", "valid_without_bit", "bit_without_valid"))
    told: Counter[int] = Counter()
    contradicted = 0
    for message in messages or ():
        told[int(message["trigger_id"])] += 1
        row = by_sequence.get(int(message["trigger_id"]))
        contradicted += row is None or (message["result"], message["result_code"]) != (row["verdict"], row["code"])
    not_told = sum(told[row["sequence"]] == 0 for row in rows) if messages is not None else 0
    delivered = [row for row in rows if row["delivered_ns"]]
    return {
        "triggers": summary["triggers"],
        "verdicts": len(answered),
        "pass": sum(row["verdict"] == "pass" for row in rows),
        "reject": sum(row["verdict"] == "reject" for row in rows),
        "fail_safe": sum(row["code"] >= 100 for row in rows),  # noqa: PLR2004 - records.RESULT_CODE
        "late": max(
            sum("late" in part["faults"] for part in charged),
            sum(row["late"] and not _row_stalled(row, stalls) for row in rows),
        ),
        "unaccounted": sum(part["result"] == "none" for part in charged)
        + sum(part["sequence"] not in by_sequence for part in answered),
        "stalled": len(excused),
        "duplicates": summary["duplicates"],
        "plc_mismatch": mismatch,
        "mqtt_received": len(told),
        "mqtt_duplicates": sum(count - 1 for count in told.values()),
        "mqtt_missing": not_told,
        "mqtt_mismatch": contradicted,
        "archive_rows": len(rows),
        "archive_only": _nobodys(rows, judged),
        "frames_bad": counters["bad_frames"],
        "frames_missed": counters["missed"],
        "frames_stale": counters["stale"] + counters["doubled"],
        "images_given_up": counters["images_given_up"],
        "camera": camera,
        "backend": backend,
        "confusion": summary["confusion"],
        "latency_ms": _quantiles(row["delivered_ns"] - row["trigger_ns"] for row in delivered),
        "engine_ms": _quantiles(row["scored_ns"] - row["prepared_ns"] for row in delivered if row["scored_ns"]),
        "transfer_ms": _quantiles(_transfer_ns(row) for row in delivered if row["frame_ns"]),
        "overhead_ms": _quantiles(
            row["delivered_ns"] - row["trigger_ns"] - _transfer_ns(row) - (row["scored_ns"] - row["prepared_ns"])
            for row in delivered
            if row["scored_ns"]
        ),
        "plc_sequence": summary["sequence"],
        "plc_code": summary["code"],
        "heartbeat_stuck": summary["heartbeat_stuck"],
        "plc_latency_ms": summary["latency_ms"],
        "plc_allowance_ms": summary["allowance_ms"],
        "zero_copy": bool(counters["zero_copy"]),
    }


def faults(report: dict[str, Any]) -> list[str]:
    """What makes the run a failure, in words; [] = everything is accounted for."""
    wrong = {
        "unaccounted": "triggers that nobody answered for",
        "plc_mismatch": "PLC results that contradict the verdict",
        "duplicates": "parts answered twice",
        "late": "verdicts after their deadline",
        "mqtt_missing": "verdicts that never came over MQTT",
        "mqtt_mismatch": "MQTT messages that contradict the archive",
        "archive_only": "parts in the archive that the PLC knows nothing of",
        "plc_sequence": "PLC results whose number is not above the one before",
        "plc_code": "PLC results whose code does not go with their bits",
        "heartbeat_stuck": "writes that did not move the heartbeat",
    }
    return [f"{report[name]} {text} ({name})" for name, text in wrong.items() if report[name]]


def _stalled(part: dict[str, Any], limit_ns: int, stalls: Sequence[Stall]) -> bool:
    """Would the part have been in time had the box not stood still? None at all: had it stood still for most of it."""
    begin_ns: int = part["triggered_ns"]
    if "late" in part["faults"]:
        took_ns = int(part["latency_ms"] * NS_PER_MS)
        return took_ns - stalled_ns(stalls, begin_ns, begin_ns + took_ns) <= limit_ns
    return bool("none" in part["faults"] and stalled_ns(stalls, begin_ns, begin_ns + limit_ns) > limit_ns / 2)


def _row_stalled(row: dict[str, Any], stalls: Sequence[Stall]) -> bool:
    return bool(row["delivered_ns"] - stalled_ns(stalls, row["trigger_ns"], row["delivered_ns"]) <= row["deadline_ns"])


def _nobodys(rows: Sequence[dict[str, Any]], judged: Sequence[dict[str, Any]]) -> int:
    """Parts that the archive says were delivered while the PLC looked, and that the PLC has no answer for."""
    if not judged:
        return 0
    first_ns, last_ns = judged[0]["triggered_ns"], judged[-1]["triggered_ns"]
    answered = {part["sequence"] for part in judged}
    return sum(
        bool(row["delivered_ns"]) and first_ns <= row["trigger_ns"] <= last_ns and row["sequence"] not in answered
        for row in rows
    )


def _agrees(part: dict[str, Any], row: dict[str, Any] | None) -> bool:
    """Does the archive say what the PLC saw: same verdict, same code, same part?"""
    if row is None:
        return False
    same_part = part["part_id"] == row["part_id"] or not part["part_id"].startswith("P")
    return bool(part["result"] == row["verdict"] and part["code"] == row["code"] and same_part)


def _transfer_ns(row: dict[str, Any]) -> int:
    """From the trigger to the whole frame; 0 where the frame was the trigger."""
    return max(0, int(row["frame_ns"]) - int(row["trigger_ns"]))


def _quantiles(values_ns: Iterable[int]) -> dict[str, float | None]:
    ordered = sorted(values_ns)
    if not ordered:
        return {name: None for name, _ in _QUANTILES}
    return {
        name: round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] / NS_PER_MS, 3)
        for name, share in _QUANTILES
    }
