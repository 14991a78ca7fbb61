"""What the status board and the tag table say, as the health payload's components."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from edgeqc.errors import EdgeqcError
from edgeqc.records import NS_PER_MS, Ne107
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, Row, State
from edgeqc.shm.tagtable import FILE_NAME, TagTable, summarise


def components(settings: Settings, board: Board, run_dir: Path) -> dict[str, dict[str, Any]]:
    """Every process, camera, PLC and tag source by name, each with its NE 107 state."""
    now_ns = time.monotonic_ns()
    found: dict[str, dict[str, Any]] = {f"process.{row.name}": _process(row) for row in board.rows.values()}
    for station in settings.stations:
        row = board[f"station-{station.name}"]
        found[f"station.{station.name}"] = _station(row)
        found[f"camera.{station.name}"] = _camera(row, now_ns)
        if station.plc.type != "none":
            up = bool(row.get("plc_up"))
            found[f"plc.{station.name}"] = {
                "ne107": _ne107(up),
                "connected": up,
                "reconnected": row.get("plc_reconnected"),
                "errors": row.get("plc_errors"),
            }
    if settings.machines:
        watch = board["watch"]
        alarms, watched = watch.get("machine_alarms"), watch.get("machines")
        unwatched = len(settings.machines) - watched
        found["machines"] = {
            "ne107": Ne107.FAILURE if unwatched else Ne107.OUT_OF_SPECIFICATION if alarms else Ne107.NORMAL,
            "watched": watched,
            "unwatched": unwatched,
            "alarms": alarms,
            "rows": watch.get("machine_rows"),
        }
    if settings.tags:
        with contextlib.suppress(OSError, EdgeqcError):  # the watch process has not made the table yet
            table = TagTable.attach(run_dir / FILE_NAME)
            found.update(summarise(table, now_ns))
            table.close()
    return found


def _ne107(up: bool) -> str:
    return (Ne107.NORMAL if up else Ne107.FAILURE).value


def _process(row: Row) -> dict[str, Any]:
    return {"ne107": _ne107(row.state is State.READY), "state": row.state.name.lower(), "restarts": row.restarts}


def _station(row: Row) -> dict[str, Any]:
    counted = ("triggers", "verdicts", "passed", "rejected", "fail_safe", "late", "missed", "doubled", "stale")
    return {
        "ne107": _ne107(row.state is State.READY),
        "backend": row.backend,
        **{name: row.get(name) for name in counted},
        "bad_frames": row.get("bad_frames"),
        "images_given_up": row.get("images_given_up"),
        "journal_errors": row.get("journal_errors"),
    }


def _camera(row: Row, now_ns: int) -> dict[str, Any]:
    up, frame_at_ns = bool(row.get("camera_up")), row.get("frame_at_ns")
    return {
        "ne107": _ne107(up),
        "connected": up,
        "frame_age_ms": (now_ns - frame_at_ns) // NS_PER_MS if frame_at_ns else None,
        "reopened": row.get("camera_reopened"),
        "zero_copy": bool(row.get("zero_copy")),
    }
