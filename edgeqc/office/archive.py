"""The archive: one SQLite file, one thread that writes it.

Rows, messages and the journal's cursor are one transaction, so that each record is in exactly once whatever is killed
and whenever. A full disk makes it wait (the journal keeps the records), a damaged file is set aside and a new one
begun from the oldest journal segments that are still there; neither ends the office.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from edgeqc.office import audit, tables
from edgeqc.office.books import Asked, Books, Command, ImagesGone, ImageStored, Noted, Refused, Settled, Tailed, Tally
from edgeqc.office.intake import Intake
from edgeqc.office.transaction import Outcome
from edgeqc.office.view import ArchiveView
from edgeqc.records import NS_PER_S
from edgeqc.settings import ArchiveSettings

_IDLE_S: Final = 0.25
_LINGER_S: Final = 0.01
"""Commands are gathered this long: one sync of the disk (4 ms on an SSD) then serves them all."""
_BATCH: Final = 64
"""Commands per transaction."""
_TAILED_MAX: Final = 16
"""Tailed batches that may wait; beyond, the journal itself is the queue."""
_RETRY_S: Final = (0.1, 2.0)
"""First and longest wait between attempts on a disk that takes nothing."""
_TIDY_S: Final = 60.0
_CLOCK_STEP_NS: Final = 3600 * NS_PER_S
"""After a step of the wall clock beyond this nothing is deleted for its age until the office starts again."""


class Archive:
    """Owns the file and its thread. All methods may be called from any thread."""

    def __init__(
        self,
        path: Path,
        settings: ArchiveSettings,
        *,
        node: str,
        cameras: dict[str, tuple[str, ...]],
        boot: str,
        outbox_bytes: int | None,
        on_commit: Callable[[Outcome, list[Tailed]], None],
        on_trouble: Callable[[str | None], None],
        scales: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            path: the file; its folder exists.
            settings: how long rows are kept.
            node: this box's name in payloads.
            cameras: camera names by station.
            boot: the kernel's boot id.
            outbox_bytes: budget of undelivered messages; None: there is no broker, none are made.
            on_commit: told, on the archive's thread, what is now on the disk.
            on_trouble: told, on the archive's thread, why nothing can be written, at each attempt; None once it can.
            scales: um per px by station and camera, where they are set.
        """
        self.view: ArchiveView | None = None
        """None until the file is open; another object once a new file was begun."""
        self.caught_up_ns = 0
        """Monotonic: what the journals held at that time was offered. The tailing loop sets it."""
        self.commits = 0
        """Transactions, so that a reader knows whether to look again."""
        self.tally = Tally()
        """Of the outbox, as committed."""
        self._path = path
        self._settings = settings
        self._node = node
        self._cameras = cameras
        self._scales = scales
        self._boot = boot
        self._budget = outbox_bytes
        self._on_commit = on_commit
        self._on_trouble = on_trouble
        self._trail = audit.AuditTrail(path.with_name(audit.FILE_NAME))
        self._commands: queue.SimpleQueue[tuple[ArchiveView | None, Command]] = queue.SimpleQueue()
        self._room = threading.Semaphore(_TAILED_MAX)
        self._settling: set[int] = set()
        self._lock = threading.Lock()
        self._busy = False
        self._damaged = False
        self._trouble = False
        self._flooded = False
        """As told: a new file must not forget that a flood stands, or nobody would ever tell its end."""
        self._stopping = threading.Event()
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        self._tidied_s = time.monotonic()
        self._log = structlog.get_logger("edgeqc.archive")
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Write what is queued and end; what a full disk does not take stays in the journals."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def offer(self, batch: Tailed) -> bool:
        """Take the batch, or not now: then it stays the caller's."""
        view = self.view
        if view is None or not self._room.acquire(blocking=False):
            return False
        self._commands.put((view, batch))
        return True

    def put(self, command: Settled | Refused | ImageStored | ImagesGone | Noted | Asked) -> None:
        """Queue what its source keeps within bounds: messages in flight, queued images, own news."""
        ids = _ended(command)
        if ids:
            with self._lock:
                self._settling.update(ids)
        self._commands.put((self.view, command))

    def settling(self) -> set[int]:
        """Messages whose end is told but not yet written: ask before reading the outbox, and skip them."""
        with self._lock:
            return set(self._settling)

    @property
    def idle(self) -> bool:
        """Is everything written that was put?"""
        return self._commands.empty() and not self._busy

    @property
    def alive(self) -> bool:
        """False once the thread ended for a reason that nobody thought of."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not (self._stopping.is_set() and self._commands.empty()):
                database = self._open()
                if database is None:
                    if self._stopping.wait(_RETRY_S[0]):
                        return
                    continue
                try:
                    self._serve(database)
                finally:
                    view, self.view = self.view, None
                    if view is not None:
                        view.close()
                    database.close()
        except Exception:  # noqa: BLE001 - the thread's root: `alive` tells the office, which ends and is started again
            self._log.exception("archive_thread_failed")

    def _open(self) -> sqlite3.Connection | None:
        """The file, open and sound; None where it cannot be had just now."""
        if self._damaged:
            self._set_aside("found while running")
        try:
            return tables.open_archive(self._path)
        except sqlite3.Error as exc:
            if tables.is_damaged(exc):
                self._set_aside(str(exc))
            else:
                self._tell(str(exc))
            return None

    def _set_aside(self, reason: str) -> None:
        try:
            target = tables.set_aside(self._path)
        except OSError as exc:
            self._tell(f"damaged, and cannot be set aside: {exc}")
            return
        self._damaged = False
        self._log.error("archive_set_aside", reason=reason[:255], file=str(target))

    def _serve(self, database: sqlite3.Connection) -> None:
        """Write batches until told to stop or the file is found broken."""
        try:
            intake = Intake(
                database,
                node=self._node,
                cameras=self._cameras,
                scales=self._scales,
                boot=self._boot,
                publish=self._budget is not None,
                now_ns=time.monotonic_ns(),
                flooded=self._flooded,
            )
            books = Books(database, intake, budget=self._budget, dropped=self.tally.dropped)
            if (damage := self._trail.open()) is not None:
                self._log.error("audit_trail_set_aside", reason=damage[:255])
            view = ArchiveView(self._path, self._damage)
        except (sqlite3.Error, OSError) as exc:
            self._damaged = tables.is_damaged(exc)
            self._tell(str(exc))
            self._stopping.wait(_RETRY_S[0])
            return
        with self._lock:
            self._settling.clear()
        self.caught_up_ns = 0
        self.tally = replace(books.tally)
        self._tell(None)
        self.view = view
        while not self._damaged:
            batch = self._collect()
            if not batch and self._stopping.is_set():
                return
            # In this order: what was offered before the loop said so is then in this batch or an earlier one.
            through_ns = self.caught_up_ns
            if not self._commands.empty() or not intake.waiting:
                through_ns = 0
            if batch or through_ns or self._tidy_due() or intake.alarms.due(time.time_ns()):
                self._commit(books, batch, through_ns)
            self._busy = False

    def _collect(self) -> list[Command]:
        """What is queued for this file, after a short wait for more; what was meant for another file is forgotten."""
        batch: list[Command] = []
        until_s = time.monotonic() + _IDLE_S
        while len(batch) < _BATCH:
            try:
                view, command = self._commands.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            self._busy = True
            if not batch:
                until_s = time.monotonic() + (0.0 if self._stopping.is_set() else _LINGER_S)
            if view is self.view or isinstance(command, Noted | Asked):
                batch.append(command)
            elif isinstance(command, Tailed):
                self._room.release()
        return batch

    def _commit(self, books: Books, batch: list[Command], through_ns: int) -> None:
        """One transaction, tried until the disk takes it, the file is found broken, or the office stops."""
        wait_s = _RETRY_S[0]
        rolled_back = False
        while not self._damaged:
            try:
                if rolled_back:
                    books.intake.reload(now_ns=time.monotonic_ns())
                outcome = self._transact(books, batch, through_ns)
            except (sqlite3.Error, OSError) as exc:
                books.rollback(self.tally)
                rolled_back = True
                self._damaged = tables.is_damaged(exc)
                self._tell(str(exc))
                if self._stopping.wait(wait_s):
                    break
                wait_s = min(wait_s * 2, _RETRY_S[1])
            else:
                self._committed(books, batch, outcome)
                break
        for command in batch:
            if isinstance(command, Tailed):
                self._room.release()

    def _transact(self, books: Books, batch: list[Command], through_ns: int) -> Outcome:
        outcome = Outcome()
        books.begin()
        for command in batch:
            books.apply(command, outcome)
        if through_ns:
            books.intake.expire(outcome, now_ns=through_ns)
        if books.intake.alarms.due(time.time_ns()):
            books.intake.follow_up(outcome, wall_ns=time.time_ns(), mono_ns=time.monotonic_ns())
        books.keep_budget(outcome)
        if self._tidy_due():
            self._tidy(books)
        self._trail.write(outcome.audited)  # before anybody is answered, or the journal's cursor moves on
        books.commit()
        return outcome

    def _committed(self, books: Books, batch: list[Command], outcome: Outcome) -> None:
        self.tally = replace(books.tally)
        self._flooded = books.intake.alarms.flooded
        ids = [key for command in batch for key in _ended(command)]
        with self._lock:
            self._settling.difference_update(ids)
        self.commits += 1
        self._tell(None)
        for answer, said in outcome.answers:
            answer.set_result(said)
        for line in outcome.refused:
            self._log.error("journal_entry_refused", entry=line)
        self._on_commit(outcome, [command for command in batch if isinstance(command, Tailed)])

    def _tidy_due(self) -> bool:
        return time.monotonic() - self._tidied_s > _TIDY_S

    def _tidy(self, books: Books) -> None:
        """The next turn comes at once while there is more to delete. A stepped clock deletes nothing."""
        stepped = abs(time.time_ns() - time.monotonic_ns() - self._clock_ns) > _CLOCK_STEP_NS
        if stepped or not books.tidy(rows_days=self._settings.rows_days):
            self._tidied_s = time.monotonic()

    def _damage(self) -> None:
        """A reader found the file broken."""
        self._damaged = True

    def _tell(self, trouble: str | None) -> None:
        """Log the change; the office is told at each attempt, so that it can make room."""
        if trouble is None and self._trouble:
            self._log.info("archive_recovered")
            self._on_trouble(None)
        elif trouble is not None:
            if not self._trouble:
                self._log.error("archive_stuck", file=str(self._path), reason=trouble[:255])
            self._on_trouble(trouble)
        self._trouble = trouble is not None


def _ended(command: Command) -> list[int]:
    """Messages that the command ends."""
    match command:
        case Settled():
            return command.ids
        case Refused():
            return [command.id]
        case _:
            return []
