"""What `edgeqc alarm` shows: alarms as they stand, their history and their figures, from any process."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from edgeqc.core.alarm import AlarmState
from edgeqc.errors import EdgeqcError
from edgeqc.office import payloads, tables
from edgeqc.office.alarmrows import state_of
from edgeqc.office.alarms import FLOOD_BEGINS, FLOOD_NS
from edgeqc.records import NS_PER_S

CHATTER_RAISES: Final = 3
CHATTER_NS: Final = 60 * NS_PER_S
"""An alarm that is raised so often within so long chatters (ISA-18.2)."""
STALE_NS: Final = 24 * 3600 * NS_PER_S
"""An alarm that stands for longer is stale (ISA-18.2)."""
AVERAGE_LIMIT: Final = 150
"""Alarms a day that one person can look after (EEMUA 191: 'very likely to be acceptable')."""
_TOP: Final = 10


def standing(state_dir: Path, *, everything: bool = False) -> list[dict[str, Any]]:
    """Alarms as they stand, as their payloads, the newest last; `everything`: those that are normal, too. EdgeqcError."""
    rows = _rows(
        state_dir, "SELECT * FROM alerts WHERE id IN (SELECT max(id) FROM alerts GROUP BY alert_id) ORDER BY id"
    )
    return [payload for payload in map(_payload, rows) if everything or payload["state"] != AlarmState.NORMAL]


def history(
    state_dir: Path, *, alarm: str | None = None, since_ns: int | None = None, limit: int = -1
) -> list[dict[str, Any]]:
    """Every change of an alarm, or of all, the newest first. EdgeqcError."""
    rows = _rows(
        state_dir,
        "SELECT * FROM alerts WHERE (? IS NULL OR alert_id=?) AND (? IS NULL OR wall_ns>=?) ORDER BY id DESC LIMIT ?",
        (alarm, alarm, since_ns, since_ns, limit),
    )
    return [_payload(row) for row in rows]


def figures(state_dir: Path, *, since_ns: int, now_ns: int) -> dict[str, Any]:
    """The alarm system's own figures (ISA-18.2, EEMUA 191) over a time. EdgeqcError."""
    rows = _rows(
        state_dir,
        "SELECT alert_id, wall_ns, event, priority, since_ns FROM alerts WHERE wall_ns>=? ORDER BY wall_ns",
        (since_ns,),
    )
    raised = [row for row in rows if row["event"] == "raise"]
    days = max(now_ns - since_ns, 1) / (86_400 * NS_PER_S)
    counts = Counter(row["alert_id"] for row in raised)
    answered = [row["wall_ns"] - row["since_ns"] for row in rows if row["event"] == "ack"]
    loads = Counter((row["wall_ns"] - since_ns) // FLOOD_NS for row in raised)
    stands = standing(state_dir)
    return {
        "days": round(days, 3),
        "raised": len(raised),
        "per_day": round(len(raised) / days, 2),
        "per_day_limit": AVERAGE_LIMIT,
        "most_in_10_min": max(loads.values(), default=0),
        "flood_share": round(
            sum(count > FLOOD_BEGINS for count in loads.values()) * FLOOD_NS / max(now_ns - since_ns, 1), 4
        ),
        "priorities": dict(Counter(row["priority"] for row in raised)),
        "most_frequent": dict(counts.most_common(_TOP)),
        "most_frequent_share": round(sum(count for _, count in counts.most_common(_TOP)) / max(len(raised), 1), 3),
        "chattering": _chattering(raised),
        "stale": [
            one["id"]
            for one, began_ns in _began(state_dir)
            if now_ns - began_ns > STALE_NS and "active" in one["state"]
        ],
        "unacknowledged": sum(one["state"] in {"active_unacked", "cleared_unacked"} for one in stands),
        "shelved": sum(one["state"] == "shelved" for one in stands),
        "answered": len(answered),
        "answer_s_median": round(sorted(answered)[len(answered) // 2] / NS_PER_S, 1) if answered else None,
    }


def _began(state_dir: Path) -> list[tuple[dict[str, Any], int]]:
    rows = _rows(
        state_dir, "SELECT * FROM alerts WHERE id IN (SELECT max(id) FROM alerts GROUP BY alert_id) ORDER BY id"
    )
    return [(_payload(row), row["since_ns"]) for row in rows]


def _chattering(raised: list[sqlite3.Row]) -> list[str]:
    times: dict[str, list[int]] = {}
    found: list[str] = []
    for row in raised:
        times.setdefault(row["alert_id"], []).append(row["wall_ns"])
    for key, moments in times.items():
        step = CHATTER_RAISES - 1
        if any(late - early <= CHATTER_NS for early, late in zip(moments, moments[step:], strict=False)):
            found.append(key)
    return found


def _payload(row: sqlite3.Row) -> dict[str, Any]:
    return payloads.alert(state_of(row), node="")


def _rows(state_dir: Path, query: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
    path = state_dir / tables.FILE_NAME
    if not path.exists():
        raise EdgeqcError(f"{state_dir}: no archive yet; `edgeqc run` makes one")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query, values).fetchall()
    except sqlite3.Error as exc:
        raise EdgeqcError(f"{path}: {exc}") from exc
