"""The office's own alerts: what it needs a person for. The archive tells them, as it tells all others, when it can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgeqc.core.alarm import Alarm, AlarmEvent, AlarmState
from edgeqc.office.books import Noted
from edgeqc.office.payloads import AlertState
from edgeqc.records import AlertChange, Event, Ne107


class Notice(StrEnum):
    """Everything the office may raise; all of them are told to the broker at each connect, raised or not."""

    ARCHIVE_STUCK = "office.archive.stuck"
    ARCHIVE_DAMAGED = "office.archive.damaged"
    AUDIT_DAMAGED = "office.audit.damaged"
    JOURNAL_LOST = "office.journal.lost"
    OUTBOX_FULL = "office.outbox.full"
    MESSAGE_REFUSED = "office.message.refused"
    ALARM_FLOOD = "office.alarm.flood"
    CERTIFICATE_EXPIRES = "office.certificate.expires"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advice:
    priority: str
    ne107: Ne107
    action: str


_ADVICE: Final[dict[Notice, _Advice]] = {
    Notice.ARCHIVE_STUCK: _Advice(
        priority="high",
        ne107=Ne107.OUT_OF_SPECIFICATION,
        action="Free disk space under state_dir (edgeqc doctor shows it); nothing is lost while the journal has room",
    ),
    Notice.ARCHIVE_DAMAGED: _Advice(
        priority="medium",
        ne107=Ne107.MAINTENANCE_REQUIRED,
        action="Check the disk, save or delete the archive.db.damaged-* files in state_dir",
    ),
    Notice.AUDIT_DAMAGED: _Advice(
        priority="high",
        ne107=Ne107.MAINTENANCE_REQUIRED,
        action="Save the audit.log.damaged-* files in state_dir, find out who or what changed them, and move them away",
    ),
    Notice.JOURNAL_LOST: _Advice(
        priority="high",
        ne107=Ne107.OUT_OF_SPECIFICATION,
        action="Check the disk; raise journal.budget_mb if the archive was away for long",
    ),
    Notice.OUTBOX_FULL: _Advice(
        priority="medium",
        ne107=Ne107.OUT_OF_SPECIFICATION,
        action="Check the broker and the network; raise mqtt.outbox_mb for longer outages",
    ),
    Notice.MESSAGE_REFUSED: _Advice(
        priority="medium",
        ne107=Ne107.MAINTENANCE_REQUIRED,
        action="Let this node write below mqtt.prefix in the broker's access list",
    ),
    Notice.ALARM_FLOOD: _Advice(
        priority="high",
        ne107=Ne107.OUT_OF_SPECIFICATION,
        action="Look at the alarm marked first_up; low and diagnostic ones are kept back until this is over",
    ),
    Notice.CERTIFICATE_EXPIRES: _Advice(
        priority="medium",
        ne107=Ne107.MAINTENANCE_REQUIRED,
        action="Renew it, and trust the new one on the other side, too: an expired one ends the OPC UA connection",
    ),
}


class Notices:
    """Which of them stand. Thread-safe."""

    def __init__(self, show: Callable[[AlertState], None], note: Callable[[Noted], None]) -> None:
        """Tell changes to `note` (the archive, when it can) and then to `show`, which may have to do without the archive."""
        self._show = show
        self._note = note
        self._lock = threading.Lock()
        self._sequence = 0
        self._states: dict[Notice, AlertState] = {}

    def raise_(self, notice: Notice, text: str, *, value: float | None = None, unit: str = "") -> None:
        """Begin it; again with the same text is nothing."""
        before = self._states.get(notice)
        if before is not None and before.change.active and before.change.text == text:
            return
        self._change(notice, active=True, text=text, value=value, unit=unit)

    def clear(self, notice: Notice) -> None:
        """End it, if it stands."""
        before = self._states.get(notice)
        if before is not None and before.change.active:
            self._change(notice, active=False, text=before.change.text)

    def event(self, name: str, facts: dict[str, str | int | float | bool]) -> None:
        """Something worth keeping happened in the office."""
        self._note(Noted(body=Event(name=name, facts=facts), wall_ns=time.time_ns(), mono_ns=time.monotonic_ns()))

    def stands(self, notice: Notice) -> bool:
        """Is it raised?"""
        state = self._states.get(notice)
        return state is not None and state.change.active

    def states(self) -> dict[str, AlertState | None]:
        """By alert id; None for what was never raised since the office started."""
        return {notice.value: self._states.get(notice) for notice in Notice}

    def _change(self, notice: Notice, *, active: bool, text: str, value: float | None = None, unit: str = "") -> None:
        advice = _ADVICE[notice]
        now_ns = time.time_ns()
        with self._lock:
            before = self._states.get(notice)
            began = active and (before is None or not before.change.active)
            self._sequence = max(self._sequence + 1, now_ns // 1000)  # unique over restarts, exact in a double
            state = AlertState(
                source="office",
                sequence=self._sequence,
                wall_ns=now_ns,
                change=AlertChange(
                    id=notice.value,
                    active=active,
                    priority=advice.priority,
                    ne107=advice.ne107,
                    text=text,
                    action=advice.action,
                    value=value,
                    unit=unit,
                ),
                since_ns=now_ns if began or before is None else before.since_ns,
                count=(before.count if before is not None else 0) + began,
                alarm=Alarm(AlarmState.ACTIVE_UNACKED if active else AlarmState.NORMAL),
                event=(AlarmEvent.RAISE if active else AlarmEvent.VANISH).value,
            )
            self._states[notice] = state
        self._note(Noted(body=state.change, wall_ns=now_ns, mono_ns=time.monotonic_ns()))
        self._show(state)
