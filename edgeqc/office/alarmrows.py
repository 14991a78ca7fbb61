"""Alarms as rows of the archive: every change of one adds a row."""

from __future__ import annotations

import json
import sqlite3
from typing import Final

from edgeqc.core.alarm import Alarm, AlarmState
from edgeqc.office.payloads import AlertState
from edgeqc.records import AlertChange, Ne107


def enter(database: sqlite3.Connection, state: AlertState) -> None:
    """Add a row."""
    change = state.change
    database.execute(
        _INSERT,
        (
            state.source,
            state.sequence,
            state.wall_ns,
            change.id,
            change.active,
            change.priority,
            change.ne107.value,
            change.text,
            change.action,
            change.value,
            change.limit,
            change.unit,
            state.since_ns,
            state.count,
            state.alarm.below.value,
            state.alarm.cover.value if state.alarm.cover is not None else "",
            state.event,
            state.acked_by,
            state.acked_ns,
            state.cover_by,
            state.until_ns,
            state.note,
            state.first_up,
            json.dumps(change.contribution),
            change.latched,
            change.suppressed,
            state.confirm_ns,
            state.teller,
        ),
    )


def state_of(row: sqlite3.Row) -> AlertState:
    """The alarm that a row of `alerts` keeps."""
    return AlertState(
        source=row["source"],
        sequence=row["sequence"],
        wall_ns=row["wall_ns"],
        change=AlertChange(
            id=row["alert_id"],
            active=bool(row["active"]),
            priority=row["priority"],
            ne107=Ne107(row["ne107"]),
            text=row["text"],
            action=row["action"],
            value=row["value"],
            limit=row["limit_value"],
            unit=row["unit"],
            contribution=tuple((str(tag), float(share)) for tag, share in json.loads(row["contribution"])),
            latched=bool(row["latched"]),
            suppressed=bool(row["suppressed"]),
        ),
        since_ns=row["since_ns"],
        count=row["count"],
        alarm=Alarm(AlarmState(row["below"]), AlarmState(row["cover"]) if row["cover"] else None),
        event=row["event"],
        acked_by=row["acked_by"],
        acked_ns=row["acked_ns"],
        cover_by=row["cover_by"],
        until_ns=row["until_ns"],
        note=row["note"],
        first_up=bool(row["first_up"]),
        confirm_ns=row["confirm_ns"],
        teller=row["teller"],
    )


_COLUMNS: Final = (
    "source",
    "sequence",
    "wall_ns",
    "alert_id",
    "active",
    "priority",
    "ne107",
    "text",
    "action",
    "value",
    "limit_value",
    "unit",
    "since_ns",
    "count",
    "below",
    "cover",
    "event",
    "acked_by",
    "acked_ns",
    "cover_by",
    "until_ns",
    "note",
    "first_up",
    "contribution",
    "latched",
    "suppressed",
    "confirm_ns",
    "teller",
)
_INSERT: Final = f"INSERT INTO alerts({', '.join(_COLUMNS)}) VALUES({', '.join('?' * len(_COLUMNS))})"
