"""Reading the archive while its own thread writes it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeqc.journal import Cursor
from edgeqc.office import tables
from edgeqc.office.alarmrows import state_of
from edgeqc.office.payloads import AlertState, RecipeState


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A message that the broker has not acknowledged."""

    id: int
    urgent: bool
    topic: str
    """Below the prefix."""
    payload: bytes
    retain: bool
    mono_ns: int
    """When its record was made; means something only in the boot that `boot` names."""
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What a process said when it last started."""

    writer: str
    run_id: str
    backend: str
    model: str
    model_digest: str


class ArchiveView:
    """One archive file, for reading; thread-safe. What cannot be read just now reads as nothing."""

    def __init__(self, path: Path, on_damage: Callable[[], None]) -> None:
        """Open; `on_damage` is called (on the reader's thread) when the file turns out to be broken."""
        self._lock = threading.Lock()
        self._on_damage = on_damage
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA query_only=1")

    def cursors(self) -> dict[str, Cursor]:
        """How far each journal is archived, by writer."""
        rows = self._rows("SELECT * FROM journals WHERE offset > 0")
        return {row["writer"]: Cursor(segment=row["segment"], offset=row["offset"]) for row in rows}

    def runs(self) -> list[RunRow]:
        """The last start of every process that told one."""
        return [
            RunRow(
                writer=row["writer"],
                run_id=row["run_id"],
                backend=row["backend"],
                model=row["model"],
                model_digest=row["model_digest"],
            )
            for row in self._rows("SELECT * FROM journals ORDER BY writer")
        ]

    def recipes(self) -> list[RecipeState]:
        """Every recipe of every station, in the order in which they were loaded."""
        return [RecipeState(**dict(row)) for row in self._rows("SELECT * FROM recipes ORDER BY rowid")]

    def undelivered(self, *, urgent: bool, after: int, limit: int) -> list[OutboxRow]:
        """The next messages of a lane behind row `after`, in order."""
        rows = self._rows(
            "SELECT * FROM outbox WHERE urgent=? AND id>? ORDER BY id LIMIT ?", (int(urgent), after, limit)
        )
        return [
            OutboxRow(
                id=row["id"],
                urgent=bool(row["urgent"]),
                topic=row["topic"],
                payload=row["payload"],
                retain=bool(row["retain"]),
                mono_ns=row["mono_ns"],
                boot=row["boot"],
            )
            for row in rows
        ]

    def last_message(self) -> int:
        """The newest row of the outbox; 0 where it is empty."""
        rows = self._rows("SELECT coalesce(max(id), 0) AS id FROM outbox")
        return int(rows[0]["id"]) if rows else 0

    def alerts(self) -> list[AlertState]:
        """Every alert there ever was, as it stands."""
        rows = self._rows("SELECT * FROM alerts WHERE id IN (SELECT max(id) FROM alerts GROUP BY alert_id) ORDER BY id")
        return [state_of(row) for row in rows]

    def images(self) -> dict[str, bool]:
        """Stored image files, oldest first: is it kept only because it is among the newest?"""
        return {row["path"]: bool(row["ring"]) for row in self._rows("SELECT path, ring FROM images ORDER BY rowid")}

    def close(self) -> None:
        """Whoever still reads gets nothing."""
        with self._lock:
            self._database.close()

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._database.execute(query, values).fetchall()
            except sqlite3.Error as exc:
                if tables.is_damaged(exc):
                    self._on_damage()
                return []
