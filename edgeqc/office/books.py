"""What the office tells its archive, and what each of that does to the tables."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgeqc.journal import Cursor, Entry
from edgeqc.office.alarms import AlarmCommand
from edgeqc.office.intake import Intake
from edgeqc.office.transaction import Outcome
from edgeqc.records import NS_PER_S, AlertChange, Event

_TIDY_ROWS: Final = 500
_DROP_ROWS: Final = 50
_DEAD_LETTERS: Final = 10_000
_SIZE: Final = "length(topic) + length(payload)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tailed:
    """Entries of one journal, in order, and the place behind them."""

    folder: Path
    entries: list[Entry]
    cursor: Cursor
    images: dict[int, str]
    """Files promised, by the sequence of the record that has the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Messages that the broker has taken."""

    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A message that the broker will never take: it goes to the dead letters."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStored:
    """An image is on the disk."""

    path: str
    station: str
    sequence: int
    size: int
    ring: bool
    """Kept only for being among the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesGone:
    """Images were deleted."""

    paths: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """The office's own news."""

    body: Event | AlertChange
    wall_ns: int
    mono_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asks of an alarm."""

    command: AlarmCommand
    answer: Future[dict[str, Any]]
    """Set once it is on the disk: status, and data or error."""
    wall_ns: int
    mono_ns: int


Command = Tailed | Settled | Refused | ImageStored | ImagesGone | Noted | Asked


@dataclass(slots=True, kw_only=True)
class Tally:
    """What is in the outbox and what became of its messages."""

    rows: int = 0
    size: int = 0
    """Bytes of topics and payloads."""
    dropped: int = 0
    """Messages that went unsent because the outbox was full, since the office started."""
    dead: int = 0
    """Messages that the broker refused, since the archive began."""


class Books:
    """The archive's tables, written command by command inside transactions that the caller begins and ends."""

    def __init__(self, database: sqlite3.Connection, intake: Intake, *, budget: int | None, dropped: int) -> None:
        """Count what is there; `budget`: bytes of undelivered messages, None where there is no broker."""
        self._database = database
        self.intake = intake
        self._budget = budget
        rows, size = database.execute(f"SELECT count(*), coalesce(sum({_SIZE}), 0) FROM outbox").fetchone()  # noqa: S608 - constant
        dead = database.execute("SELECT coalesce(max(id), 0) FROM dead_letters").fetchone()[0]
        self.tally = Tally(rows=rows, size=size, dropped=dropped, dead=dead)
        """With the transaction under way."""

    def begin(self) -> None:
        """Begin a transaction."""
        self.intake.begin()
        self._database.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Bring it to the disk."""
        self._database.execute("COMMIT")

    def rollback(self, last: Tally) -> None:
        """Forget it; the tally is again that of the last transaction committed. Raises nothing."""
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("ROLLBACK")  # a full disk has often rolled back by itself
        self.tally = replace(last)

    def apply(self, command: Command, outcome: Outcome) -> None:
        """Enter one command."""
        execute = self._database.execute
        match command:
            case Tailed():
                self.intake.take(command.entries, command.images, outcome, now_ns=time.monotonic_ns())
                self.intake.remember(command.folder.name, command.cursor)
            case Settled():
                self._delete_messages("id IN (SELECT value FROM json_each(?))", json.dumps(command.ids))
            case Refused():
                self.tally.dead += execute(
                    "INSERT INTO dead_letters(topic, payload, reason, wall_ns) "
                    "SELECT topic, payload, ?, ? FROM outbox WHERE id=?",
                    (command.reason, time.time_ns(), command.id),
                ).rowcount
                execute("DELETE FROM dead_letters WHERE id <= (SELECT max(id) FROM dead_letters) - ?", (_DEAD_LETTERS,))
                self._delete_messages("id=?", command.id)
            case ImageStored():
                execute(
                    "INSERT OR REPLACE INTO images(path, station, sequence, bytes, ring, stored_wall_ns) "
                    "VALUES(?, ?, ?, ?, ?, ?)",
                    (command.path, command.station, command.sequence, command.size, command.ring, time.time_ns()),
                )
            case ImagesGone():
                self._database.executemany("DELETE FROM images WHERE path=?", [(path,) for path in command.paths])
            case Noted():
                self.intake.note(command.body, outcome, wall_ns=command.wall_ns, mono_ns=command.mono_ns)
            case Asked():
                self.intake.obey(
                    command.command, command.answer, outcome, wall_ns=command.wall_ns, mono_ns=command.mono_ns
                )

    def keep_budget(self, outcome: Outcome) -> None:
        """Count what the transaction posted; beyond the budget the oldest goes, alerts last."""
        self.tally.rows += outcome.messages
        self.tally.size += outcome.message_bytes
        while self._budget is not None and self.tally.size > self._budget:
            gone = self._delete_messages("id IN (SELECT id FROM outbox ORDER BY urgent, id LIMIT ?)", _DROP_ROWS)
            if not gone:
                return
            self.tally.dropped += gone

    def tidy(self, *, rows_days: int) -> bool:
        """Delete some of what is past its days; False once there is nothing left to delete."""
        oldest_ns = time.time_ns() - rows_days * 86_400 * NS_PER_S
        statements = (
            "DELETE FROM parts WHERE id IN (SELECT id FROM parts WHERE trigger_wall_ns<? AND NOT open LIMIT ?)",
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE wall_ns<? LIMIT ?)",
            "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE wall_ns<? "  # noqa: ISC004 - one statement
            "EXCEPT SELECT max(id) FROM alerts GROUP BY alert_id LIMIT ?)",
        )
        return sum(self._database.execute(each, (oldest_ns, _TIDY_ROWS)).rowcount for each in statements) > 0

    def _delete_messages(self, where: str, value: object) -> int:
        rows = self._database.execute(f"DELETE FROM outbox WHERE {where} RETURNING {_SIZE}", (value,)).fetchall()  # noqa: S608 - constants
        self.tally.rows -= len(rows)
        self.tally.size -= sum(row[0] for row in rows)
        return len(rows)
