"""What the journals' entries become: rows of the archive, and messages for the broker in the same transaction."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from edgeqc.journal import Cursor, Entry
from edgeqc.office import payloads, tables, verdicts
from edgeqc.office.alarms import OFFICE, QUIET_PRIORITIES, AlarmBook, AlarmCommand, RefusedCommandError, told
from edgeqc.office.audit import AUDITED
from edgeqc.office.payloads import AlertState, Model, Payload
from edgeqc.office.verdicts import Seen
from edgeqc.records import (
    NS_PER_S,
    RECIPE_READY,
    RESULT_CODE,
    AlertChange,
    Delivery,
    Event,
    PartRecord,
    Snapshot,
    Started,
    ViewRecord,
)

DELIVERY_WAIT_NS: Final = 2 * NS_PER_S
"""A verdict whose delivery is not told for this long is published as unknown: the station died, or the PLC lets it wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A part whose story is complete, and the payload that tells it."""

    record: PartRecord
    delivery: Delivery | None
    payload: Payload


@dataclass(slots=True, kw_only=True)
class _Open:
    """A part whose delivery is still to come."""

    record: PartRecord
    row: int
    mono_ns: int
    seen_ns: int
    model: Model
    image: str | None
    process: dict[str, Payload] = field(default_factory=dict)
    views: list[Seen] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a transaction did: told to others only once it is committed."""

    closed: list[Closed] = field(default_factory=list)
    messages: int = 0
    message_bytes: int = 0
    started: bool = False
    doubled: int = 0
    """Entries that were in the archive already."""
    refused: list[str] = field(default_factory=list)
    """Entries that could not be understood, one line each."""
    audited: list[Entry] = field(default_factory=list)
    """Changes that go into the audit trail before this is on the disk."""
    answers: list[tuple[Future[dict[str, Any]], dict[str, Any]]] = field(default_factory=list)
    """What whoever gave a command is told."""
    flooded: bool | None = None
    """A flood of alarms began or ended; None: neither."""


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
        """
        self._database = database
        self._node = node
        self._cameras = cameras
        self._scales = scales or {}
        self._boot = boot
        self._publish = publish
        self._last_own = self._own_before = 0
        self.reload(now_ns=now_ns)

    def reload(self, *, now_ns: int) -> None:
        """Take what is open from the archive: at the start, and after a transaction was rolled back."""
        self._last_own = self._own_before  # what is done again has the number it had: the audit trail knows it by that
        self.alarms = AlarmBook(self._database)
        self._open: dict[str, dict[int, _Open]] = {}
        self._runs: dict[str, sqlite3.Row] = {
            row["writer"]: row for row in self._database.execute("SELECT * FROM journals")
        }
        self._models: dict[tuple[str, str, str], str] = {
            (row["writer"], row["recipe"], row["camera"]): row["model"]
            for row in self._database.execute("SELECT * FROM recipes")
        }
        """Writer, recipe and camera (empty where there is one) to the model, as name@version."""
        for row in self._database.execute(
            # Left to itself SQLite walks all parts for the order's sake: seconds for each million.
            "SELECT parts.*, tags FROM parts INDEXED BY parts_open LEFT JOIN snapshots ON part = id "
            "WHERE open ORDER BY id"
        ):
            record = tables.part_of(row)
            self._open.setdefault(f"station-{record.station}", {})[record.trigger.sequence] = _Open(
                record=record,
                row=row["id"],
                mono_ns=record.ledger.journaled_ns,
                seen_ns=now_ns,
                model=Model.parse(row["model"]),
                image=row["image"],
                process=json.loads(row["tags"] or "{}"),
                views=[
                    Seen(record=tables.view_of(view, record), model=Model.parse(view["model"]), image=view["image"])
                    for view in self._database.execute("SELECT * FROM views WHERE part=? ORDER BY place", (row["id"],))
                ],
            )

    def begin(self) -> None:
        """A transaction begins."""
        self._own_before = self._last_own

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
        """Publish what waits for its delivery since DELIVERY_WAIT_NS; `now_ns`: up to when all journals are read."""
        for writer, parts in self._open.items():
            for sequence in [key for key, part in parts.items() if now_ns - part.seen_ns > DELIVERY_WAIT_NS]:
                self._close(writer, sequence, None, outcome, unknown="not told within 2 s")

    @property
    def waiting(self) -> bool:
        """Is any part's delivery still to come?"""
        return any(self._open.values())

    def note(self, body: Event | AlertChange, outcome: Outcome, *, wall_ns: int, mono_ns: int) -> None:
        """The office's own news. Its alerts are shown directly (they may say that this very archive is full)."""
        entry = Entry(writer=OFFICE, sequence=self._own(wall_ns), wall_ns=wall_ns, mono_ns=mono_ns, body=body)
        if isinstance(body, Event):
            self._enter_event(entry, body.name, body.facts, outcome)
        else:
            self.alarms.take(body, source=entry.writer, sequence=entry.sequence, wall_ns=wall_ns)

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
                self._enter_part(entry, record, images.get(entry.sequence), outcome, now_ns)
            case ViewRecord() as view:
                self._enter_view(entry, view, images.get(entry.sequence))
            case Snapshot() as snapshot:
                self._enter_snapshot(entry, snapshot)
            case Delivery() as delivery:
                self._enter_delivery(entry, delivery, outcome)
            case Started() as started:
                self._enter_started(entry, started, outcome)
            case Event() as event:
                self._enter_event(entry, event.name, event.facts, outcome)
            case AlertChange() as change:
                self._enter_alert(entry, change, outcome)

    def _enter_part(self, entry: Entry, record: PartRecord, image: str | None, outcome: Outcome, now_ns: int) -> None:
        run = self._runs.get(entry.writer)
        names = self._cameras.get(record.station, ())
        camera = names[record.view] if 0 <= record.view < len(names) and len(names) > 1 else ""
        model = self._models.get((entry.writer, record.recipe, camera)) or (run["model"] if run is not None else "")
        row = tables.part_row(
            record,
            run_id=run["run_id"] if run is not None else "",
            model=model,
            journaled_ns=entry.mono_ns,
            image=image,
        )
        inserted = self._database.execute(tables.INSERT_PART, row)
        if inserted.rowcount == 0 or inserted.lastrowid is None:
            outcome.doubled += 1
            return
        if not record.ledger.journaled_ns:
            record = replace(record, ledger=replace(record.ledger, journaled_ns=entry.mono_ns))
        parts = self._open.setdefault(entry.writer, {})
        parts[record.trigger.sequence] = _Open(
            record=record,
            row=inserted.lastrowid,
            mono_ns=entry.mono_ns,
            seen_ns=now_ns,
            model=Model.parse(model),
            image=image,
        )

    def _enter_view(self, entry: Entry, view: ViewRecord, image: str | None) -> None:
        """Keep it for the part's message, and in the archive at once. The part's image is that of the deciding view."""
        part = self._open.get(entry.writer, {}).get(view.sequence)
        found = self._database.execute(
            "SELECT id, recipe, view FROM parts WHERE station=? AND sequence=? ORDER BY id DESC LIMIT 1",
            (entry.writer.removeprefix("station-"), view.sequence),
        ).fetchone()
        if found is None:
            return
        model = self._models.get((entry.writer, found["recipe"], view.camera), "")
        row = tables.view_row(found["id"], view, model=model, image=image)
        if not self._database.execute(tables.INSERT_VIEW, row).rowcount:
            return
        decides = view.place == found["view"]
        if decides:
            self._database.execute("UPDATE parts SET image=? WHERE id=?", (image, found["id"]))
        if part is not None:
            part.views.append(Seen(record=view, model=Model.parse(model), image=image))
            part.image = image if decides else part.image

    def _enter_snapshot(self, entry: Entry, snapshot: Snapshot) -> None:
        """Keep it for the part's message, and in the archive at once."""
        part = self._open.get(entry.writer, {}).get(snapshot.sequence)
        told = verdicts.process(snapshot.tags)
        if part is not None:
            part.process.update(told)
            row, told = part.row, part.process
        else:  # the message is out already, without it: the archive learns it all the same
            found = self._database.execute(
                "SELECT max(id) FROM parts WHERE station=? AND sequence=?",
                (entry.writer.removeprefix("station-"), snapshot.sequence),
            ).fetchone()
            if found[0] is None:
                return
            row = found[0]
        self._database.execute(
            "INSERT INTO snapshots(part, tags) VALUES(?, ?) ON CONFLICT(part) DO UPDATE SET tags=excluded.tags",
            (row, json.dumps(told)),
        )

    def _enter_delivery(self, entry: Entry, delivery: Delivery, outcome: Outcome) -> None:
        if not delivery.delivered and not math.isnan(delivery.late_score):
            # A score after the fail-safe verdict; that verdict's own delivery may still be on its way, or long through.
            self._database.execute(
                _LATE_SCORE, (delivery.late_score, entry.writer.removeprefix("station-"), delivery.sequence)
            )
            return
        if delivery.sequence in self._open.get(entry.writer, {}):
            self._close(entry.writer, delivery.sequence, delivery, outcome)
            return
        # Its verdict was published as unknown already: the archive learns the end all the same.
        self._database.execute(
            _COMPLETE_LATER,
            (*_completion(delivery), entry.writer.removeprefix("station-"), delivery.sequence),
        )

    def _enter_started(self, entry: Entry, started: Started, outcome: Outcome) -> None:
        for sequence in list(self._open.get(entry.writer, {})):
            self._close(entry.writer, sequence, None, outcome, unknown="the station ended before it could tell")
        self._database.execute(
            "INSERT INTO journals(writer, segment, offset, run_id, version, config_digest, backend, model, model_digest) "
            "VALUES(?, 0, 0, ?, ?, ?, ?, ?, ?) ON CONFLICT(writer) DO UPDATE SET run_id=excluded.run_id, "
            "version=excluded.version, config_digest=excluded.config_digest, backend=excluded.backend, "
            "model=excluded.model, model_digest=excluded.model_digest",
            (
                entry.writer,
                started.run_id,
                started.version,
                started.config_digest,
                started.backend,
                started.model,
                started.model_digest,
            ),
        )
        self._runs[entry.writer] = self._database.execute(
            "SELECT * FROM journals WHERE writer=?", (entry.writer,)
        ).fetchone()
        outcome.started = True
        self._database.execute("DELETE FROM recipes WHERE writer=?", (entry.writer,))
        self._models = {key: model for key, model in self._models.items() if key[0] != entry.writer}
        self.alarms.started(entry.writer, entry.wall_ns)
        self._enter_event(entry, "started", asdict(started), outcome)

    def _enter_recipe(self, entry: Entry, facts: dict[str, Any], outcome: Outcome) -> None:
        """A station tells what judges by one of its recipes; `info` shows it."""
        row = {"writer": entry.writer, **{name: str(facts.get(name, "")) for name in _RECIPE}}
        self._database.execute(
            f"INSERT OR REPLACE INTO recipes({', '.join(row)}) VALUES({', '.join('?' * len(row))})",
            tuple(row.values()),
        )
        self._models[entry.writer, row["recipe"], row["camera"]] = row["model"]
        outcome.started = True

    def _enter_event(self, entry: Entry, name: str, facts: dict[str, Any], outcome: Outcome) -> None:
        if name == RECIPE_READY:
            self._enter_recipe(entry, facts, outcome)
        if name in AUDITED:
            outcome.audited.append(entry)
        if name == "process_ended" and facts.get("process") == OFFICE:
            self.alarms.office_ended(entry.wall_ns)
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

    def _close(
        self, writer: str, sequence: int, delivery: Delivery | None, outcome: Outcome, *, unknown: str = ""
    ) -> None:
        part = self._open[writer][sequence]
        payload = verdicts.verdict(
            part.record,
            delivery,
            node=self._node,
            model=part.model,
            cameras=self._cameras.get(part.record.station, ()),
            image=part.image,
            snapshot=part.process,
            views=part.views,
            um_per_px=self._scales.get(part.record.station),
            unknown=unknown,
        )
        body = payloads.encode(payload)
        if delivery is not None:
            self._database.execute(_COMPLETE, (*_completion(delivery), part.row))
        else:
            self._database.execute("UPDATE parts SET open=0 WHERE id=?", (part.row,))
        self._post(payloads.VERDICT, body, part.mono_ns, outcome)
        outcome.closed.append(Closed(record=part.record, delivery=delivery, payload=payload))
        del self._open[writer][sequence]

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


_RECIPE: Final = ("recipe", "camera", "model", "model_digest", "backend", "why", "vouched")
_MANY: Final = 10_000
"""Numbers set aside where it is not known how many alarms will be told."""
_LATE_SCORE: Final = "UPDATE parts SET late_score=? WHERE id=(SELECT max(id) FROM parts WHERE station=? AND sequence=?)"
_COMPLETE: Final = (
    "UPDATE parts SET verdict=?, cause=?, code=?, delivered=?, delivered_ns=?, late=?, "
    "late_score=coalesce(?, late_score), plc_reason=?, "
    "open=0 WHERE id=?"
)
_COMPLETE_LATER: Final = _COMPLETE.replace(
    "WHERE id=?", "WHERE id=(SELECT max(id) FROM parts WHERE station=? AND sequence=? AND delivered IS NULL)"
)


def _completion(delivery: Delivery) -> tuple[object, ...]:
    """Values for _COMPLETE. What was announced is what counts."""
    return (
        delivery.verdict.value,
        delivery.cause.value,
        RESULT_CODE[delivery.cause],
        delivery.delivered,
        delivery.delivered_ns,
        delivery.late,
        None if math.isnan(delivery.late_score) else delivery.late_score,
        delivery.reason,
    )
