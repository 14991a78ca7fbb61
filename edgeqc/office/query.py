"""What `edgeqc records` shows: the archive's parts, from any process, whether the daemon runs or not."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from edgeqc.errors import EdgeqcError
from edgeqc.office import tables
from edgeqc.office.overlay import BESIDE
from edgeqc.office.payloads import rfc3339

COLUMNS: Final = (
    "ts",
    "station",
    "sequence",
    "part_id",
    "verdict",
    "cause",
    "code",
    "score",
    "threshold",
    "late_score",
    "recipe",
    "model",
    "model_sha256",
    "camera",
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
    "latency_ms",
    "delivered",
    "late",
    "plc_reason",
    "defects",
    "image",
    "views",
    "process",
    "run_id",
)
"""Of a row as `query` gives it, in the order of the CSV."""

_QUERY: Final = """
SELECT parts.*, images.path AS stored, snapshots.tags AS tags,
(SELECT camera FROM views WHERE part = parts.id AND place = parts.view) AS camera,
(SELECT json_group_array(json_object(
    'camera', camera, 'verdict', verdict, 'cause', cause, 'score', score, 'threshold', threshold, 'model', model,
    'model_sha256', lower(hex(model_digest)), 'frame_id', frame_id, 'frame_ns', frame_ns, 'transfer_ns', transfer_ns,
    'prepared_ns', prepared_ns, 'scored_ns', scored_ns, 'defects', json(defects),
    'image', (SELECT path FROM images WHERE path = image)))
    FROM (SELECT * FROM views WHERE part = parts.id ORDER BY place)) AS views
FROM parts
LEFT JOIN images ON images.path = parts.image LEFT JOIN snapshots ON snapshots.part = parts.id
WHERE {wanted}
ORDER BY trigger_wall_ns DESC, id DESC LIMIT :limit
"""
_CONDITIONS: Final = {
    "since": "trigger_wall_ns >= :since",
    "until": "trigger_wall_ns < :until",
    "station": "parts.station = :station",
    "verdict": "verdict = :verdict",
    "cause": "cause = :cause",
    "part_id": "part_id = :part_id",
    "last": "(trigger_wall_ns, parts.id) < (:last, :last_id)",
}
"""Only those that are asked for: with the others in the query, as `:since IS NULL OR ...`, SQLite uses no index."""
_PAGE: Final = 500
_SAME: Final = ("station", "sequence", "part_id", "verdict", "cause", "code", "score", "threshold", "late_score")
_SAME_LATER: Final = ("recipe", "model", "frame_id", "deadline_ns", "plc_reason", "run_id")


def query(
    state_dir: Path,
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    station: str | None = None,
    verdict: str | None = None,
    cause: str | None = None,
    part_id: str | None = None,
    limit: int = 100,
) -> Iterator[dict[str, Any]]:
    """Parts, newest first, one dict of COLUMNS each; times are UTC ns. `limit` < 0: all of them.

    Raises:
        EdgeqcError: there is no archive, or it cannot be read; the message says which and what to do.
    """
    path = state_dir / tables.FILE_NAME
    if not path.exists():
        raise EdgeqcError(f"{path}: no archive yet: has the daemon run with this state_dir?")
    values = {
        "since": since_ns,
        "until": until_ns,
        "station": station,
        "verdict": verdict,
        "cause": cause,
        "part_id": part_id,
        "limit": limit,
    }
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)
    except sqlite3.Error as exc:
        raise EdgeqcError(f"{path}: {exc}: may you read this folder?") from exc
    try:
        database.row_factory = sqlite3.Row
        yield from map(_facts, _rows(database, values))
    except sqlite3.Error as exc:
        raise EdgeqcError(f"{path}: {exc}: may you read and write this folder? (reading needs its -shm file)") from exc
    finally:
        database.close()


def _rows(database: sqlite3.Connection, values: dict[str, Any]) -> Iterator[sqlite3.Row]:
    """Some at a time: while somebody looks at them no read is open, behind which the archive's WAL would only grow."""
    left = values["limit"]
    while left:
        wanted = [condition for name, condition in _CONDITIONS.items() if values.get(name) is not None]
        size = _PAGE if left < 0 else min(_PAGE, left)
        query = _QUERY.format(wanted=" AND ".join(wanted) or "1")
        rows = database.execute(query, {**values, "limit": size}).fetchall()
        yield from rows
        if len(rows) < size:
            return
        left -= size if left > 0 else 0
        values = {**values, "last": rows[-1]["trigger_wall_ns"], "last_id": rows[-1]["id"]}


def export_csv(rows: Iterable[dict[str, Any]], out: TextIO) -> int:
    """Write a header and the rows; returns how many. Defects, views and the machine's tags are JSON in their columns."""
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    count = 0
    for row in rows:
        texts = {name: json.dumps(row[name], ensure_ascii=False) for name in ("defects", "views", "process")}
        writer.writerow({**row, **texts})
        count += 1
    return count


def export_json(rows: Iterable[dict[str, Any]], out: TextIO) -> int:
    """Write one JSON object a line, each with its schema; returns how many."""
    count = 0
    for row in rows:
        out.write(json.dumps({"schema": "edgeqc.record/1", **row}, ensure_ascii=False) + "\n")
        count += 1
    return count


def export_images(state_dir: Path, rows: Iterable[dict[str, Any]], folder: Path) -> int:
    """Copy the rows' images, defect maps and overlays, verdict in the name; returns how many parts had one."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for row in rows:
        name = f"{row['station']}-{row['sequence']:08d}-{row['verdict']}-{row['cause']}"
        images = {f"-{view['camera']}": view["image"] for view in row["views"]} or {"": row["image"]}
        copied = [
            _copied(state_dir / path, folder / f"{name}{camera}") for camera, path in images.items() if path is not None
        ]
        count += any(copied)
    return count


def _copied(source: Path, target: Path) -> bool:
    """Copy an image and what is beside it; False where it was deleted since the rows were read."""
    try:
        shutil.copyfile(source, f"{target}.png")
    except FileNotFoundError:
        return False
    for suffix in BESIDE:
        if source.with_suffix(suffix).exists():
            shutil.copyfile(source.with_suffix(suffix), f"{target}{suffix}")
    return True


def _facts(row: sqlite3.Row) -> dict[str, Any]:
    times = {f"{name}_ns": row[f"{name}_ns"] for name in _STAGES}
    latency_ns = row["delivered_ns"] - row["trigger_ns"]
    facts = {
        "ts": rfc3339(row["trigger_wall_ns"]),
        **{name: row[name] for name in (*_SAME, *_SAME_LATER)},
        **times,
        "model_sha256": row["model_digest"].hex(),
        "latency_ms": round(latency_ns / 1e6, 3) if row["delivered_ns"] else None,
        "delivered": None if row["delivered"] is None else bool(row["delivered"]),
        "late": None if row["late"] is None else bool(row["late"]),
        "defects": json.loads(row["defects"]),
        "image": row["stored"],
        "process": json.loads(row["tags"] or "{}"),
        "camera": row["camera"],
        "views": json.loads(row["views"]),
    }
    return {name: facts[name] for name in COLUMNS}


_STAGES: Final = ("trigger", "frame", "transfer", "prepared", "scored", "decided", "journaled", "delivered")
