"""What the journals' entries become: rows of the archive, and messages for the broker in the same transaction."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, Final

from edgeqc.journal import Cursor, Entry
from edgeqc.office import payloads
from edgeqc.office.alarms import OFFICE, QUIET_PRIORITIES, AlarmBook, AlarmCommand, RefusedCommandError, told
from edgeqc.office.audit import AUDITED
from edgeqc.office.openparts import OpenParts
from edgeqc.office.payloads import AlertState
from edgeqc.office.runs import Runs
from edgeqc.office.transaction import Outcome
from edgeqc.records import RECIPE_READY, AlertChange, Delivery, Event, PartRecord, Snapshot, Started, ViewRecord


class Intake:
    """One connection's way in. Used by the archive's thread only, inside its transactions."""

    def __init__(
        self,
        database: sqlite3.Connection,
        *,
        node: str,
        cameras: dict[str, tuple[str, ...]],
        boot: str,
        publish: bool,
        now_ns: int,
        scales: Mapping[str, Mapping[str, float]] | None = None,
        flooded: bool = False,
    ) -> None:
        """Begin with what is open in the archive.

        Args:
            database: the archive's writing connection.
            node: this box's name in payloads.
            cameras: camera names by station.
            boot: the kernel's boot id: monotonic times of another boot mean nothing.
            publish: False where no broker is configured: no messages are made.
            now_ns: monotonic.
            scales: um per px by station and camera, where they are set.
            flooded: does a flood of alarms stand, by what was last told?
        """
        self._database = database
        self._node = node
        self._cameras = cameras
        self._scales = scales or {}
        self._boot = boot
        self._publish = publish
        self._last_own = self._own_before = 0
        self._flooded_before = flooded  # and its end is told once it is on the disk
        self.reload(now_ns=now_ns)

    def reload(self, *, now_ns: int) -> None:
        """Take what is open from the archive: at the start, and after a transaction was rolled back."""
        self._last_own = self._own_before  # what is done again has the number it had: the audit trail knows it by that
        self.alarms = AlarmBook(self._database, flooded=self._flooded_before)
        self._runs = Runs(self._database)
        self._parts = OpenParts(
            self._database,
            self._runs,
            node=self._node,
            cameras=self._cameras,
            scales=self._scales,
            post=self._post,
            now_ns=now_ns,
        )

    def begin(self) -> None:
        """A transaction begins."""
        self._own_before = self._last_own
        self._flooded_before = self.alarms.flooded

    def take(self, entries: list[Entry], images: dict[int, str], outcome: Outcome, *, now_ns: int) -> None:
        """Enter the entries of one journal, in order; `images` are the files promised, by the record's sequence."""
        for entry in entries:
            try:
                self._enter(entry, images, outcome, now_ns)
            except (ValueError, TypeError, KeyError, OverflowError, sqlite3.DataError, sqlite3.ProgrammingError) as exc:
                outcome.refused.append(f"{entry.writer} {entry.sequence}: {exc!r}"[:255])

    def remember(self, writer: str, cursor: Cursor) -> None:
        """Everything before the cursor is in."""
        self._database.execute(
            "INSERT INTO journals(writer, segment, offset) VALUES(?, ?, ?) "
            "ON CONFLICT(writer) DO UPDATE SET segment=excluded.segment, offset=excluded.offset",
            (writer, cursor.segment, cursor.offset),
        )

    def expire(self, outcome: Outcome, *, now_ns: int) -> None:
        """Publish what waits for its delivery for too long; `now_ns`: up to when all journals are read."""
        self._parts.expire(outcome, now_ns=now_ns)

    @property
    def waiting(self) -> bool:
        """Is any part's delivery still to come?"""
        return self._parts.waiting

    def note(self, body: Event | AlertChange, outcome: Outcome, *, wall_ns: int, mono_ns: int) -> None:
        """The office's own news."""
        entry = Entry(writer=OFFICE, sequence=self._own(wall_ns), wall_ns=wall_ns, mono_ns=mono_ns, body=body)
        if isinstance(body, Event):
            self._enter_event(entry, body.name, body.facts, outcome)
        else:
            self._enter_alert(entry, body, outcome)

    def obey(
        self,
        command: AlarmCommand,
        answer: Future[dict[str, Any]],
        outcome: Outcome,
        *,
        wall_ns: int,
        mono_ns: int,
    ) -> None:
        """Do what a person asks of an alarm; the answer is given once it is on the disk."""
        said: dict[str, Any]
        try:
            states = self.alarms.obey(command, sequence=self._own(wall_ns, room=_MANY), wall_ns=wall_ns)
        except RefusedCommandError as exc:
            said = {"status": "error", "error": {"code": "refused", "message": str(exc)}}
        else:
            for state in states:
                self._tell_alarm(state, mono_ns, outcome)
            said = {"status": "ok", "data": {"alarms": [told(state) for state in states]}}
        facts: dict[str, str | int | float | bool] = {
            "verb": command.verb.value,
            "id": command.id[:200],
            "by": command.by[:200],
            "why": command.why[:200],
            "via": command.via,
            "ok": said["status"] == "ok",
        }
        self.note(Event(name="alarm_command", facts=facts), outcome, wall_ns=wall_ns, mono_ns=mono_ns)
        outcome.answers.append((answer, said))

    def follow_up(self, outcome: Outcome, *, wall_ns: int, mono_ns: int) -> None:
        """End what nobody told again, empty the shelf of what has been there for its time."""
        flooded = self.alarms.flooded
        for state in self.alarms.expire(sequence=self._own(wall_ns, room=_MANY), wall_ns=wall_ns):
            self._tell_alarm(state, mono_ns, outcome)
        if self.alarms.flooded is not flooded:
            outcome.flooded = self.alarms.flooded

    def _own(self, wall_ns: int, *, room: int = 1) -> int:
        """Number for the office's own news: microseconds, so that it is unique after a new archive began."""
        number = max(self._last_own + 1, wall_ns // 1000)
        self._last_own = number + room - 1
        return number

    def _enter(self, entry: Entry, images: dict[int, str], outcome: Outcome, now_ns: int) -> None:
        match entry.body:
            case PartRecord() as record:
                self._parts.part(entry, record, images.get(entry.sequence), outcome, now_ns)
            case ViewRecord() as view:
                self._parts.view(entry, view, images.get(entry.sequence))
            case Snapshot() as snapshot:
                self._parts.snapshot(entry, snapshot)
            case Delivery() as delivery:
                self._parts.delivery(entry, delivery, outcome)
            case Started() as started:
                self._enter_started(entry, started, outcome)
            case Event() as event:
                self._enter_event(entry, event.name, event.facts, outcome)
            case AlertChange() as change:
                self._enter_alert(entry, change, outcome)

    def _enter_started(self, entry: Entry, started: Started, outcome: Outcome) -> None:
        self._parts.started(entry.writer, outcome)
        self._runs.started(entry.writer, started)
        outcome.started = True
        self.alarms.started(entry.writer, entry.wall_ns, read_wall_ns=time.time_ns())
        self._enter_event(entry, "started", asdict(started), outcome)

    def _enter_event(self, entry: Entry, name: str, facts: dict[str, Any], outcome: Outcome) -> None:
        if name == RECIPE_READY:
            self._runs.recipe(entry.writer, facts)
            outcome.started = True
        if name in AUDITED:
            outcome.audited.append(entry)
        if name == "process_ended" and facts.get("process") == OFFICE:
            self.alarms.office_ended(entry.wall_ns, read_wall_ns=time.time_ns())
        payload = payloads.event(
            name, facts, node=self._node, source=entry.writer, sequence=entry.sequence, wall_ns=entry.wall_ns
        )
        body = payloads.encode(payload)
        self._database.execute(
            "INSERT INTO events(source, sequence, wall_ns, name, facts) VALUES(?, ?, ?, ?, ?)",
            (entry.writer, entry.sequence, entry.wall_ns, name, json.dumps(facts)),
        )
        self._post(payloads.EVENT, body, entry.mono_ns, outcome)

    def _enter_alert(self, entry: Entry, change: AlertChange, outcome: Outcome) -> None:
        state = self.alarms.take(change, source=entry.writer, sequence=entry.sequence, wall_ns=entry.wall_ns)
        self._tell_alarm(state, entry.mono_ns, outcome)

    def _tell_alarm(self, state: AlertState, mono_ns: int, outcome: Outcome) -> None:
        """Tell the broker how the alarm stands; nobody needs the least of them in the middle of a flood."""
        if self.alarms.flooded and state.change.priority in QUIET_PRIORITIES and not state.alarm.at_rest:
            return
        topic = payloads.ALERT + state.change.id
        body = payloads.encode(payloads.alert(state, node=self._node))
        self._post(topic, body, mono_ns, outcome, urgent=True, retain=not state.alarm.at_rest)
        if state.alarm.at_rest:
            self._post(topic, b"", mono_ns, outcome, urgent=True, retain=True)

    def _post(
        self, topic: str, body: bytes, mono_ns: int, outcome: Outcome, *, urgent: bool = False, retain: bool = False
    ) -> None:
        if not self._publish:
            return
        self._database.execute(
            "INSERT INTO outbox(urgent, topic, payload, retain, mono_ns, boot) VALUES(?, ?, ?, ?, ?, ?)",
            (urgent, topic, body, retain, mono_ns, self._boot),
        )
        outcome.messages += 1
        outcome.message_bytes += len(topic) + len(body)


_MANY: Final = 10_000
"""Numbers set aside where it is not known how many alarms will be told."""
