"""The archive's tables: their layout, and how a part becomes a row and a row a part again."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from pathlib import Path
from typing import Final

from edgeqc.records import (
    RESULT_CODE,
    Cause,
    Defect,
    Ledger,
    PartRecord,
    Trigger,
    Verdict,
    ViewRecord,
)

FILE_NAME: Final = "archive.db"
_CHECK_S: Final = 2.0
"""How long the check at the start may take: a big archive is checked as far as this gets."""
_PROGRESS_STEPS: Final = 10_000
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_SCHEMA: Final = """
CREATE TABLE parts(
    id INTEGER PRIMARY KEY, station TEXT NOT NULL, sequence INTEGER NOT NULL, part_id TEXT NOT NULL,
    trigger_wall_ns INTEGER NOT NULL, run_id TEXT NOT NULL,
    verdict TEXT NOT NULL, cause TEXT NOT NULL, code INTEGER NOT NULL, score REAL, threshold REAL, late_score REAL,
    recipe TEXT NOT NULL, model TEXT NOT NULL, model_digest BLOB NOT NULL, frame_id INTEGER NOT NULL,
    trigger_ns INTEGER NOT NULL, frame_ns INTEGER NOT NULL, transfer_ns INTEGER NOT NULL, prepared_ns INTEGER NOT NULL,
    scored_ns INTEGER NOT NULL, decided_ns INTEGER NOT NULL, journaled_ns INTEGER NOT NULL,
    delivered_ns INTEGER NOT NULL, deadline_ns INTEGER NOT NULL,
    delivered INTEGER, late INTEGER, plc_reason TEXT NOT NULL,
    defects TEXT NOT NULL, image TEXT, open INTEGER NOT NULL,
    UNIQUE(station, sequence, trigger_wall_ns));
CREATE INDEX parts_by_time ON parts(trigger_wall_ns);
CREATE INDEX parts_by_part ON parts(part_id);
CREATE INDEX parts_open ON parts(station) WHERE open;
CREATE TABLE events(
    id INTEGER PRIMARY KEY, source TEXT NOT NULL, sequence INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
    name TEXT NOT NULL, facts TEXT NOT NULL);
CREATE INDEX events_by_time ON events(wall_ns);
CREATE TABLE alerts(
    id INTEGER PRIMARY KEY, source TEXT NOT NULL, sequence INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
    alert_id TEXT NOT NULL, active INTEGER NOT NULL, priority TEXT NOT NULL, ne107 TEXT NOT NULL, text TEXT NOT NULL,
    action TEXT NOT NULL, value REAL, limit_value REAL, unit TEXT NOT NULL, since_ns INTEGER NOT NULL,
    count INTEGER NOT NULL);
CREATE INDEX alerts_by_id ON alerts(alert_id, id);
CREATE TABLE images(
    path TEXT PRIMARY KEY, station TEXT NOT NULL, sequence INTEGER NOT NULL, bytes INTEGER NOT NULL,
    ring INTEGER NOT NULL, stored_wall_ns INTEGER NOT NULL);
CREATE TABLE journals(
    writer TEXT PRIMARY KEY, segment INTEGER NOT NULL, offset INTEGER NOT NULL, run_id TEXT NOT NULL DEFAULT '',
    version TEXT NOT NULL DEFAULT '', config_digest TEXT NOT NULL DEFAULT '', backend TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '', model_digest TEXT NOT NULL DEFAULT '');
CREATE TABLE outbox(
    id INTEGER PRIMARY KEY AUTOINCREMENT, urgent INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
    retain INTEGER NOT NULL, mono_ns INTEGER NOT NULL, boot TEXT NOT NULL);
CREATE INDEX outbox_in_order ON outbox(urgent, id);
CREATE TABLE dead_letters(
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, reason TEXT NOT NULL,
    wall_ns INTEGER NOT NULL);
"""

_MIGRATIONS: Final = (
    """
ALTER TABLE alerts ADD COLUMN below TEXT NOT NULL DEFAULT 'normal';
ALTER TABLE alerts ADD COLUMN cover TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN event TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN teller TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN acked_by TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN acked_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN cover_by TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN until_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE alerts ADD COLUMN first_up INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN contribution TEXT NOT NULL DEFAULT '[]';
ALTER TABLE alerts ADD COLUMN latched INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN suppressed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN confirm_ns INTEGER NOT NULL DEFAULT 0;
UPDATE alerts SET below='active_unacked' WHERE active;
CREATE INDEX alerts_by_time ON alerts(wall_ns);
CREATE TABLE IF NOT EXISTS recipes(
    writer TEXT NOT NULL, recipe TEXT NOT NULL, model TEXT NOT NULL, model_digest TEXT NOT NULL, backend TEXT NOT NULL,
    why TEXT NOT NULL, vouched TEXT NOT NULL, PRIMARY KEY(writer, recipe));
""",
    """
CREATE TABLE snapshots(part INTEGER PRIMARY KEY, tags TEXT NOT NULL);
CREATE TRIGGER part_gone AFTER DELETE ON parts BEGIN DELETE FROM snapshots WHERE part = OLD.id; END;
""",
    """
ALTER TABLE parts ADD COLUMN view INTEGER NOT NULL DEFAULT 0;
CREATE TABLE views(
    part INTEGER NOT NULL, place INTEGER NOT NULL, camera TEXT NOT NULL, verdict TEXT NOT NULL, cause TEXT NOT NULL,
    score REAL, threshold REAL, model TEXT NOT NULL, model_digest BLOB NOT NULL, frame_id INTEGER NOT NULL,
    frame_ns INTEGER NOT NULL, transfer_ns INTEGER NOT NULL, prepared_ns INTEGER NOT NULL, scored_ns INTEGER NOT NULL,
    defects TEXT NOT NULL, image TEXT, PRIMARY KEY(part, place)) WITHOUT ROWID;
CREATE TRIGGER part_gone_with_views AFTER DELETE ON parts BEGIN DELETE FROM views WHERE part = OLD.id; END;
ALTER TABLE recipes RENAME TO recipes_before;
CREATE TABLE recipes(
    writer TEXT NOT NULL, recipe TEXT NOT NULL, camera TEXT NOT NULL, model TEXT NOT NULL, model_digest TEXT NOT NULL,
    backend TEXT NOT NULL, why TEXT NOT NULL, vouched TEXT NOT NULL, PRIMARY KEY(writer, recipe, camera));
INSERT INTO recipes SELECT writer, recipe, '', model, model_digest, backend, why, vouched FROM recipes_before
    ORDER BY rowid;
DROP TABLE recipes_before;
""",
)
"""What each version of the layout added to the one before it; append only: archives of every age are on boxes."""
SCHEMA_VERSION: Final = 1 + len(_MIGRATIONS)

PART_COLUMNS: Final = (
    "station",
    "sequence",
    "part_id",
    "trigger_wall_ns",
    "run_id",
    "verdict",
    "cause",
    "code",
    "score",
    "threshold",
    "recipe",
    "model",
    "model_digest",
    "frame_id",
    "trigger_ns",
    "frame_ns",
    "transfer_ns",
    "prepared_ns",
    "scored_ns",
    "decided_ns",
    "journaled_ns",
    "delivered_ns",
    "deadline_ns",
    "plc_reason",
    "defects",
    "image",
    "open",
    "view",
)
INSERT_PART: Final = (
    f"INSERT INTO parts({', '.join(PART_COLUMNS)}) VALUES({', '.join('?' * len(PART_COLUMNS))}) ON CONFLICT DO NOTHING"
)


def open_archive(path: Path) -> sqlite3.Connection:
    """Open for writing, made if missing; every commit reaches the disk.

    Raises:
        sqlite3.DatabaseError: with `is_damaged` true where the file is not, or no longer, a database of ours.
    """
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
    database.row_factory = sqlite3.Row
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA journal_size_limit={16 << 20}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        steps = (_SCHEMA, *_MIGRATIONS)[version:]
        if steps:
            database.executescript(f"BEGIN IMMEDIATE;{''.join(steps)}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        _check(database)
    except BaseException:
        database.close()
        raise
    return database


def is_damaged(fault: sqlite3.Error | OSError) -> bool:
    """Is it the file that is broken, rather than the disk that is full or away?"""
    return getattr(fault, "sqlite_errorcode", 0) & 0xFF in _CORRUPT


def set_aside(path: Path) -> Path:
    """Rename a damaged archive with its WAL, so that a new one can begin. OSError if even that fails."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    attempt = 0
    while target.exists():
        attempt += 1
        target = path.with_name(f"{path.name}.damaged-{stamp}-{attempt}")
    path.rename(target)
    for suffix in ("-wal", "-shm"):
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(target.with_name(target.name + suffix))
    return target


def part_row(
    record: PartRecord, *, run_id: str, model: str, journaled_ns: int, image: str | None
) -> tuple[object, ...]:
    """Values for INSERT_PART: a part whose delivery is still open."""
    ledger = record.ledger
    return (
        record.station,
        record.trigger.sequence,
        record.trigger.part_id,
        record.trigger.wall_ns,
        run_id,
        record.verdict.value,
        record.cause.value,
        RESULT_CODE[record.cause],
        record.score,  # SQLite stores NaN as NULL
        record.threshold,
        record.recipe,
        model,
        record.model_digest,
        record.frame_id,
        ledger.trigger_ns,
        ledger.frame_ns,
        ledger.transfer_ns,
        ledger.prepared_ns,
        ledger.scored_ns,
        ledger.decided_ns,
        ledger.journaled_ns or journaled_ns,
        ledger.delivered_ns,
        record.deadline_ns,
        "",
        json.dumps([_defect_facts(defect) for defect in record.defects]),
        image,
        1,
        record.view,
    )


def part_of(row: sqlite3.Row) -> PartRecord:
    """The part as its journal record told it; its image's lease is gone."""
    return PartRecord(
        station=row["station"],
        trigger=Trigger(
            sequence=row["sequence"],
            part_id=row["part_id"],
            at_ns=row["trigger_ns"],
            wall_ns=row["trigger_wall_ns"],
        ),
        frame_id=row["frame_id"],
        verdict=Verdict(row["verdict"]),
        cause=Cause(row["cause"]),
        score=math.nan if row["score"] is None else row["score"],
        threshold=math.nan if row["threshold"] is None else row["threshold"],
        ledger=Ledger(
            trigger_ns=row["trigger_ns"],
            frame_ns=row["frame_ns"],
            transfer_ns=row["transfer_ns"],
            prepared_ns=row["prepared_ns"],
            scored_ns=row["scored_ns"],
            decided_ns=row["decided_ns"],
            journaled_ns=row["journaled_ns"],
            delivered_ns=row["delivered_ns"],
        ),
        deadline_ns=row["deadline_ns"],
        recipe=row["recipe"],
        model_digest=row["model_digest"],
        defects=_defects(row["defects"]),
        view=row["view"],
    )


INSERT_VIEW: Final = f"INSERT INTO views VALUES({', '.join('?' * 16)}) ON CONFLICT DO NOTHING"


def view_row(part: int, view: ViewRecord, *, model: str, image: str | None) -> tuple[object, ...]:
    """Values for INSERT_VIEW; `part`: the row of the part."""
    return (
        part,
        view.place,
        view.camera,
        view.verdict.value,
        view.cause.value,
        view.score,
        view.threshold,
        model,
        view.model_digest,
        view.frame_id,
        view.frame_ns,
        view.transfer_ns,
        view.prepared_ns,
        view.scored_ns,
        json.dumps([_defect_facts(defect) for defect in view.defects]),
        image,
    )


def view_of(row: sqlite3.Row, part: PartRecord) -> ViewRecord:
    """The view as its journal record told it; its image's lease is gone."""
    return ViewRecord(
        sequence=part.trigger.sequence,
        wall_ns=part.trigger.wall_ns,
        place=row["place"],
        camera=row["camera"],
        verdict=Verdict(row["verdict"]),
        cause=Cause(row["cause"]),
        frame_id=row["frame_id"],
        score=math.nan if row["score"] is None else row["score"],
        threshold=math.nan if row["threshold"] is None else row["threshold"],
        model_digest=row["model_digest"],
        frame_ns=row["frame_ns"],
        transfer_ns=row["transfer_ns"],
        prepared_ns=row["prepared_ns"],
        scored_ns=row["scored_ns"],
        defects=_defects(row["defects"]),
        part_passed=part.verdict is Verdict.PASS,
    )


def _defects(text: str) -> tuple[Defect, ...]:
    return tuple(
        Defect(
            name=facts["class"],
            score=facts["score"],
            x_px=facts["bbox"][0],
            y_px=facts["bbox"][1],
            width_px=facts["bbox"][2],
            height_px=facts["bbox"][3],
            area_px=facts.get("area_px", 0),
        )
        for facts in json.loads(text)
    )


def _defect_facts(defect: Defect) -> dict[str, object]:
    return {
        "class": defect.name,
        "score": round(defect.score, 6),
        "bbox": [defect.x_px, defect.y_px, defect.width_px, defect.height_px],
        "area_px": defect.area_px,
    }


def _check(database: sqlite3.Connection) -> None:
    """Look through the file for at most _CHECK_S; raises sqlite3.DatabaseError (corrupt) at the first fault."""
    until = time.monotonic() + _CHECK_S
    database.set_progress_handler(lambda: time.monotonic() > until, _PROGRESS_STEPS)
    try:
        finding = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as exc:
        if getattr(exc, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        database.set_progress_handler(None, 0)
    if finding != "ok":
        fault = sqlite3.DatabaseError(str(finding)[:255])
        fault.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise fault
