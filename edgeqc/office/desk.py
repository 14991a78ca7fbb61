"""The office's desk: where journals, archive, images and outbox meet."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import edgeqc
from edgeqc.errors import EdgeqcError
from edgeqc.journal import Cursor, mark_archived
from edgeqc.loading import digest, resolved
from edgeqc.office import audit, payloads, tables
from edgeqc.office.archive import Archive
from edgeqc.office.books import Tailed
from edgeqc.office.commands import Commands
from edgeqc.office.courier import Message
from edgeqc.office.expiry import expiring
from edgeqc.office.figures import Figures
from edgeqc.office.images import ImageStore
from edgeqc.office.notices import Notice, Notices
from edgeqc.office.outbox import Outbox
from edgeqc.office.payloads import AlertState, Payload
from edgeqc.office.tail import Tail
from edgeqc.office.transaction import Outcome
from edgeqc.office.view import ArchiveView
from edgeqc.records import Ne107
from edgeqc.settings import Settings

_LAST_S: Final = 0.5
"""`verdict/last` is for panels: two a second."""
_LOOK_S: Final = 1.0
_CERTIFICATES_S: Final = 3600.0
_CALM_S: Final = 600.0
"""A notice about something that happens again and again ends after this long without it."""
_MB: Final = 1 << 20


class Desk:
    """Puts the pieces together. Its methods are the loop's; callbacks come from the pieces' own threads."""

    def __init__(
        self, settings: Settings, state_dir: Path, run_dir: Path, health: Callable[[], dict[str, Any]]
    ) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._health = health
        self._sequences: dict[str, int] = {}
        self._figures = Figures()
        self._archived: dict[Path, Cursor] = {}
        self._refused: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._view: ArchiveView | None = None
        mqtt = resolved(settings, within=("mqtt",)).mqtt
        if mqtt is not None and not mqtt.enabled:
            mqtt = None
        boot = _boot_id()
        self.archive = Archive(
            state_dir / tables.FILE_NAME,
            settings.archive,
            node=settings.node,
            cameras={
                station.name: tuple(camera.name for camera in station.all_cameras) for station in settings.stations
            },
            scales={
                station.name: {
                    camera.name: camera.um_per_px for camera in station.all_cameras if camera.um_per_px is not None
                }
                for station in settings.stations
            },
            boot=boot,
            outbox_bytes=mqtt.outbox_mb * _MB if mqtt is not None else None,
            on_commit=self._on_commit,
            on_trouble=self._on_trouble,
        )
        self.notices = Notices(self._show_notice, self.archive.put)
        self.images = ImageStore(
            state_dir,
            run_dir,
            settings.archive,
            {station.name: station.images for station in settings.stations},
            self.archive.put,
            cameras={station.name: len(station.all_cameras) for station in settings.stations},
        )
        self.tail = Tail(state_dir, self.archive, self.images.image_of)
        self.outbox: Outbox | None = None
        self.commands = Commands(
            self.archive.put,
            self._answer,
            node=settings.node,
            verbs=mqtt.commands if mqtt is not None else (),
        )
        if mqtt is not None:
            self.outbox = Outbox(
                mqtt,
                self.archive,
                node=settings.node,
                boot=boot,
                state_payload=self._state,
                greet=self._greet,
                alerts=self._alerts,
                on_refused=self._on_refused,
                on_command=self.commands.inbound if mqtt.commands else None,
            )

    def start(self) -> None:
        """Start the threads."""
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.archive.start()
        self.images.start()
        if self.outbox is not None:
            self.outbox.start()

    def turn(self) -> bool:
        """One round of the loop; True while there is something to tail."""
        busy = self.tail.turn()
        self.commands.turn()
        if self.archive.view is not self._view:
            self._view = self.archive.view
            if self._view is not None:
                self.images.reconcile(self._view.images())
        if self.outbox is not None and self.outbox.connected:
            self._show(self.outbox)
        if self._is_due("look", _LOOK_S):
            self._look()
        return busy

    @property
    def idle(self) -> bool:
        """Is nothing on its way any more?"""
        return self.archive.idle and self.images.idle and (self.outbox is None or self.outbox.idle)

    def close(self) -> None:
        """End the threads: broker first, so that its last acknowledgements reach the archive."""
        if self.outbox is not None:
            self.outbox.stop(1.5)
        self.images.stop(0.5)
        self.archive.stop(1.0)
        self.tail.close()

    def _show(self, outbox: Outbox) -> None:
        if self._is_due("last", _LAST_S) and (last := self._figures.take_last()) is not None:
            outbox.show(Message(topic=payloads.LAST_VERDICT, payload=payloads.encode(last), qos=0))
        if self._due.get("connection") != outbox.connections or self._is_due("health", self._health_s):
            self._due["connection"] = outbox.connections
            outbox.show(Message(topic=payloads.HEALTH, payload=payloads.encode(self._health_payload()), qos=0))

    @property
    def _health_s(self) -> float:
        return self._settings.mqtt.health_s if self._settings.mqtt is not None else 10.0

    def _is_due(self, what: str, period_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due.get(what, 0.0):
            return False
        self._due[what] = now_s + period_s
        return True

    def _look(self) -> None:
        """Once a second: are the threads there, and what must a person be told?"""
        alive = {"archive": self.archive.alive, "image": self.images.alive}
        if self.outbox is not None:
            alive["outbox"] = self.outbox.alive
        ended = [name for name, lives in alive.items() if not lives]
        if ended:
            raise EdgeqcError(f"office: the {' and '.join(ended)} thread ended, see the log before this")
        if any(self._state_dir.glob(f"{tables.FILE_NAME}.damaged-*")):
            self.notices.raise_(Notice.ARCHIVE_DAMAGED, "The archive was damaged; a new one was begun")
        else:
            self.notices.clear(Notice.ARCHIVE_DAMAGED)
        if any(self._state_dir.glob(f"{audit.FILE_NAME}.damaged-*")):
            self.notices.raise_(Notice.AUDIT_DAMAGED, "The audit trail was not as it was written; a new one was begun")
        else:
            self.notices.clear(Notice.AUDIT_DAMAGED)
        self._watch(Notice.JOURNAL_LOST, self.tail.lost, "Journal records were damaged, or deleted before archiving")
        self._watch(Notice.OUTBOX_FULL, self.archive.tally.dropped, "The outbox is full: oldest messages go unsent")
        if self._is_due("certificates", _CERTIFICATES_S):
            if expires := expiring(self._settings, self._state_dir):
                self.notices.raise_(Notice.CERTIFICATE_EXPIRES, expires)
            else:
                self.notices.clear(Notice.CERTIFICATE_EXPIRES)
        if self.outbox is not None:
            self._watch(Notice.MESSAGE_REFUSED, self.outbox.refused, "The broker refuses messages of this node")

    def _watch(self, notice: Notice, count: int, text: str) -> None:
        """Raise while the count goes up, end when it has been still for _CALM_S."""
        before, since_s = self._seen.get(notice, (0, 0.0))
        now_s = time.monotonic()
        if count > before:
            self._seen[notice] = (count, now_s)
            self.notices.raise_(notice, text, value=float(count))
        elif self.notices.stands(notice) and now_s - since_s > _CALM_S:
            self.notices.clear(notice)

    def _on_commit(self, outcome: Outcome, tailed: list[Tailed]) -> None:
        """On the archive's thread."""
        self._figures.add(outcome.closed)
        for batch in tailed:
            before = self._archived.get(batch.folder)
            if before is None or before.segment != batch.cursor.segment:
                # A full disk: said again with the next segment.
                with contextlib.suppress(OSError):
                    mark_archived(batch.folder, batch.cursor)
                    self._archived[batch.folder] = batch.cursor
        if outcome.flooded:
            self.notices.raise_(Notice.ALARM_FLOOD, "More alarms come than a person can answer")
        elif outcome.flooded is not None:
            self.notices.clear(Notice.ALARM_FLOOD)
        if self.outbox is not None:
            if outcome.started:
                self.outbox.show(self._info(self.archive.view))
            if outcome.messages:
                self.outbox.wake()

    def _on_trouble(self, trouble: str | None) -> None:
        """On the archive's thread, at each attempt."""
        if trouble is None:
            self.notices.clear(Notice.ARCHIVE_STUCK)
            return
        self.images.free_space()
        self.notices.raise_(Notice.ARCHIVE_STUCK, f"The archive takes no records: {trouble[:100]}")

    def _on_refused(self, topic: str, reason: str) -> None:
        """On the outbox's thread. An event now and then for each topic, and none about a refused event."""
        now_s = time.monotonic()
        if topic == payloads.EVENT or now_s < self._refused.get(topic, 0.0):
            return
        self._refused[topic] = now_s + _CALM_S
        self.notices.event("message_refused", {"topic": topic, "reason": reason[:255]})

    def _answer(self, message: Message) -> None:
        if self.outbox is not None:
            self.outbox.reply(message)

    def _show_notice(self, state: AlertState) -> None:
        """Past the archive only where that takes nothing: what people said to an alarm it alone knows."""
        if self.outbox is not None and self.notices.stands(Notice.ARCHIVE_STUCK):
            self.outbox.show(self._alert(state.change.id, state))

    def _greet(self, view: ArchiveView | None) -> list[Message]:
        """On the outbox's thread: how things stand."""
        return [self._info(view), *self._alerts(view)]

    def _alerts(self, view: ArchiveView | None) -> list[Message]:
        """Every alert there is or was: what is over is emptied, in case the broker still holds it."""
        kept = {state.change.id: state for state in view.alerts()} if view is not None else {}
        states: dict[str, AlertState | None] = {**kept}
        for key, own in self.notices.states().items():
            answered = kept.get(key)  # the archive knows what people said to it, the notices what is so now
            if own is None:
                states[key] = answered
            elif answered is not None and answered.change.active is own.change.active:
                states[key] = replace(answered, change=own.change)
            else:
                states[key] = own
        return [self._alert(key, state) for key, state in states.items()]

    def _alert(self, key: str, state: AlertState | None) -> Message:
        stands = state is not None and not state.alarm.at_rest
        body = payloads.encode(payloads.alert(state, node=self._settings.node)) if state is not None and stands else b""
        return Message(topic=payloads.ALERT + key, payload=body)

    def _info(self, view: ArchiveView | None) -> Message:
        runs = {run.writer: run for run in view.runs()} if view is not None else {}
        recipes = view.recipes() if view is not None else []
        stations: list[Payload] = []
        for station in self._settings.stations:
            run = runs.get(f"station-{station.name}")
            stations.append(
                payloads.station_info(
                    station.name,
                    camera=", ".join(camera.name for camera in station.all_cameras),
                    backend=run.backend if run is not None else "",
                    run_id=run.run_id if run is not None else "",
                    recipes=[recipe for recipe in recipes if recipe.writer == f"station-{station.name}"],
                )
            )
        payload = payloads.info(
            stations,
            version=edgeqc.__version__,
            config_digest=digest(self._settings)[:16],
            node=self._settings.node,
            sequence=self._next("info"),
            wall_ns=time.time_ns(),
        )
        return Message(topic=payloads.INFO, payload=payloads.encode(payload))

    def _state(self, online: bool, reason: str) -> bytes:
        return payloads.encode(
            payloads.state(
                online=online,
                reason=reason,
                node=self._settings.node,
                sequence=self._next("state"),
                wall_ns=time.time_ns(),
            )
        )

    def _health_payload(self) -> Payload:
        disk = shutil.disk_usage(self._state_dir)
        return payloads.health(
            {**self._health(), **self._components()},
            latency_ms=self._figures.latency_ms(),
            deadline_missed_total=self._figures.missed,
            disk={
                "free_bytes": disk.free,
                "images_bytes": self.images.bytes,
                "retention_days": self._settings.archive.rows_days,
            },
            node=self._settings.node,
            sequence=self._next("health"),
            wall_ns=time.time_ns(),
        )

    def _components(self) -> dict[str, Any]:
        """The office's own."""
        tally, counts = self.archive.tally, self.images.counts
        stuck = self.notices.stands(Notice.ARCHIVE_STUCK)
        parts: dict[str, Any] = {
            "archive": {
                "ne107": Ne107.OUT_OF_SPECIFICATION if stuck else Ne107.NORMAL,
                "parts": self._figures.parts,
                "fail_safe": self._figures.fail_safe,
                "journal_lost": self.tail.lost,
            },
            "images": {
                "ne107": Ne107.NORMAL,
                "stored": counts.stored,
                "given_up": counts.given_up,
                "failed": counts.failed,
                "deleted": counts.deleted,
            },
        }
        if self.outbox is not None:
            parts["mqtt"] = {
                "ne107": Ne107.NORMAL if self.outbox.connected else Ne107.OUT_OF_SPECIFICATION,
                "connected": self.outbox.connected,
                "connections": self.outbox.connections,
                "queued": tally.rows,
                "spooled_bytes": tally.size,
                "published": self.outbox.published,
                "replayed": self.outbox.replayed,
                "dropped": tally.dropped,
                "dead_letters": tally.dead,
            }
        return parts

    def _next(self, topic: str) -> int:
        """Numbers a topic's messages from 1; topics are numbered on one thread each, bar `info` at a start."""
        self._sequences[topic] = self._sequences.get(topic, 0) + 1
        return self._sequences[topic]


def _boot_id() -> str:
    """New at each boot: monotonic times of different boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
