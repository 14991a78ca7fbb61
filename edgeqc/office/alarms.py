"""Every alarm as it stands, kept in the archive: what processes tell of it and what people answer.

The last row of an alarm in `alerts` is its state; every change adds a row, so the table is its history too. Used by the
archive's thread only, inside its transactions.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from edgeqc.core.alarm import EVENT_OF, Alarm, AlarmEvent, AlarmState, IllegalMoveError, Verb
from edgeqc.office.alarmrows import enter, state_of
from edgeqc.office.payloads import AlertState
from edgeqc.records import NS_PER_S, AlertChange

CONFIRM_NS: Final = 30 * NS_PER_S
"""An alarm of a process that was restarted stands so long for the process to tell it again; then it is over."""
FLOOD_NS: Final = 600 * NS_PER_S
FLOOD_BEGINS: Final = 10
FLOOD_ENDS: Final = 5
"""More than so many alarms raised within FLOOD_NS are a flood, fewer than so many end it (ISA-18.2, EEMUA 191)."""
LONGEST_SHELF_NS: Final = 24 * 3600 * NS_PER_S
"""What is set aside for longer is not shelved but out of service."""
QUIET_PRIORITIES: Final = frozenset({"diagnostic", "low"})
"""In a flood these are kept in the archive and told when it is over."""
ALL: Final = "*"
"""As an id of a command: every alarm that the verb goes with."""
SUPERVISOR: Final = "supervisor"
OFFICE: Final = "office"
"""Two of the processes, as their alarms name them."""
_WORDS: Final = 200
"""Characters of a name or a reason that are kept."""
_MOST_HOURS: Final = 1_000_000
"""In nanoseconds that still fits the archive's 64 bits; what a verb takes is far less."""


_NEEDS_REASON: Final = frozenset({Verb.SHELVE, Verb.REMOVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmCommand:
    """A person's answer to an alarm."""

    verb: Verb
    id: str
    """Of the alarm, or ALL."""
    by: str
    """Who; the way it came in vouches for it as far as that way can."""
    why: str = ""
    for_ns: int = 0
    """Shelve: for how long."""
    via: str = ""
    """How it came in: mqtt, or the command line."""


def parse_command(verb: str, fields: object, *, via: str) -> AlarmCommand:
    """Read a command as it comes over MQTT or the box's own socket.

    `fields` is the decoded JSON: `user`, and in `args` (or beside it) `id`, `note`, and for shelve `hours`.
    RefusedCommandError, which says what is wrong with it.
    """
    if verb not in list(Verb):
        raise RefusedCommandError(f"verb: {verb[:40]} is none of {', '.join(Verb)}")
    if not isinstance(fields, dict):
        raise RefusedCommandError('a JSON object is needed: {"user": "...", "args": {"id": "...", "note": "..."}}')
    inner = fields.get("args")
    args = {**fields, **inner} if isinstance(inner, dict) else fields
    texts = {"id": args.get("id"), "user": args.get("user"), "note": args.get("note", "")}
    for name, text in texts.items():
        if not isinstance(text, str) or (name != "note" and not text.strip()):
            raise RefusedCommandError(f"{name}: is missing, or not a text")
        if not _is_unicode(text):
            raise RefusedCommandError(f"{name}: half a character, which no table and no message can hold")
    hours = args.get("hours", 0)
    if isinstance(hours, bool) or not isinstance(hours, int | float):
        raise RefusedCommandError("hours: is not a number")
    if not -_MOST_HOURS <= hours <= _MOST_HOURS:  # NaN is neither; math.isfinite raises for an int of 309 digits
        raise RefusedCommandError(f"hours: is not from {-_MOST_HOURS} to {_MOST_HOURS}")
    return AlarmCommand(
        verb=Verb(verb),
        id=str(texts["id"]),
        by=str(texts["user"]),
        why=str(texts["note"]),
        for_ns=round(hours * 3600 * NS_PER_S),
        via=via,
    )


def _is_unicode(text: str) -> bool:
    """JSON can name half of a surrogate pair, which is no character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class RefusedCommandError(ValueError):
    """The command is not carried out; the text says why, for whoever gave it."""


class AlarmBook:
    """All alarms. In memory as in the table: after a transaction was rolled back another one is made."""

    def __init__(self, database: sqlite3.Connection, *, flooded: bool = False) -> None:
        """`flooded`: does a flood stand, by what was last told? The table does not say."""
        self._database = database
        self.flooded = flooded
        rows = self._database.execute(
            "SELECT * FROM alerts WHERE id IN (SELECT max(id) FROM alerts GROUP BY alert_id) ORDER BY id"
        ).fetchall()
        self._states = {row["alert_id"]: state_of(row) for row in rows}
        self._unconfirmed: dict[str, int] = {
            key: state.confirm_ns for key, state in self._states.items() if state.confirm_ns
        }
        raised = self._database.execute(
            "SELECT wall_ns FROM (SELECT wall_ns FROM alerts WHERE event='raise' ORDER BY id DESC LIMIT ?) ORDER BY wall_ns",
            (FLOOD_BEGINS + 1,),
        ).fetchall()
        self._raised = deque(row["wall_ns"] for row in raised)

    def states(self) -> list[AlertState]:
        """Every alarm there ever was."""
        return list(self._states.values())

    def take(self, change: AlertChange, *, source: str, sequence: int, wall_ns: int, teller: str = "") -> AlertState:
        """Enter what a process tells: the alarm's condition. `teller`: who says it in its stead."""
        before = self._states.get(change.id)
        alarm = before.alarm if before is not None else Alarm()
        event = AlarmEvent.RAISE if change.active else AlarmEvent.CLEAR if change.latched else AlarmEvent.VANISH
        began = change.active and not alarm.active
        alarm = alarm.after(event)
        if change.suppressed and alarm.allows(AlarmEvent.SUPPRESS):
            alarm = alarm.after(AlarmEvent.SUPPRESS)
        elif not change.suppressed and alarm.cover is AlarmState.SUPPRESSED:
            alarm = alarm.after(AlarmEvent.UNSUPPRESS)
        if before is None:
            before = AlertState(
                source=source,
                sequence=sequence,
                wall_ns=wall_ns,
                change=change,
                since_ns=wall_ns,
                count=0,
                alarm=alarm,
            )
        state = replace(
            before,
            source=source,
            teller=teller,
            sequence=sequence,
            wall_ns=wall_ns,
            change=change,
            alarm=alarm,
            event=event.value if began or not change.active else "update",
            confirm_ns=0,
            since_ns=wall_ns if began else before.since_ns,
            count=before.count + began,
        )
        if began:
            state = replace(state, acked_by="", acked_ns=0, note="", first_up=self._is_first(change.id))
            if alarm.cover is None:
                self._raised.append(wall_ns)
        self._unconfirmed.pop(change.id, None)
        return self._enter(state)

    def started(self, writer: str, wall_ns: int, *, read_wall_ns: int) -> None:
        """A process began: what stood of it stands until it is told again, or CONFIRM_NS are over.

        With the supervisor all began, and what is not in the configuration any more did not. `read_wall_ns`: when this
        is read, at which some of what came after it may be known.
        """
        everything = writer == SUPERVISOR
        self._doubt(
            lambda state: state.source == writer or (everything and _is_before(state, wall_ns, read_wall_ns)), wall_ns
        )

    def office_ended(self, wall_ns: int, *, read_wall_ns: int) -> None:
        """What it raised itself up to then the next office tells again, or not. It writes no journal to say that it began."""
        self._doubt(lambda state: state.source == OFFICE and _is_before(state, wall_ns, read_wall_ns), wall_ns)

    def _doubt(self, doubtful: Callable[[AlertState], bool], wall_ns: int) -> None:
        for key, state in self._states.items():
            if state.alarm.active and doubtful(state):
                self._unconfirmed[key] = wall_ns + CONFIRM_NS
                self._states[key] = replace(state, confirm_ns=wall_ns + CONFIRM_NS)
                self._database.execute(
                    "UPDATE alerts SET confirm_ns=? WHERE id=(SELECT max(id) FROM alerts WHERE alert_id=?)",
                    (wall_ns + CONFIRM_NS, key),
                )

    def due(self, wall_ns: int) -> bool:
        """Is there anything for `expire` to do?"""
        return (
            any(_is_over(until_ns, wall_ns) for until_ns in self._unconfirmed.values())
            or any(_leaves_shelf(state, wall_ns) for state in self._states.values())
            or self._flood_at(wall_ns) is not self.flooded
        )

    def expire(self, *, sequence: int, wall_ns: int) -> list[AlertState]:
        """End what nobody told again, take from the shelf what has been there for its time; give what changed."""
        changed: list[AlertState] = []
        for key in [key for key, until_ns in self._unconfirmed.items() if _is_over(until_ns, wall_ns)]:
            state = self._states[key]
            over = replace(state.change, active=False)
            number = sequence + len(changed)
            changed.append(self.take(over, source=state.source, sequence=number, wall_ns=wall_ns, teller="office"))
        for state in [state for state in self._states.values() if _leaves_shelf(state, wall_ns)]:
            alarm = state.alarm.after(AlarmEvent.UNSHELVE)
            changed.append(
                self._enter(
                    replace(
                        state,
                        teller="office",
                        sequence=sequence + len(changed),
                        wall_ns=wall_ns,
                        alarm=alarm,
                        event=AlarmEvent.UNSHELVE.value,
                        until_ns=0,
                        cover_by="",
                        note="the time on the shelf is over",
                    )
                )
            )
        if (flooded := self._flood_at(wall_ns)) is not self.flooded:
            self.flooded = flooded
            if not flooded:  # what has come to rest was told so at once
                changed += [
                    state
                    for state in self._states.values()
                    if state.change.priority in QUIET_PRIORITIES and not state.alarm.at_rest
                ]
        return changed

    def obey(self, command: AlarmCommand, *, sequence: int, wall_ns: int) -> list[AlertState]:
        """Do what a person asks; give what changed.

        RefusedCommandError where it is not complete, names no alarm, or does not go with the alarm's state.
        """
        if not command.by.strip():
            raise RefusedCommandError("user: say who you are")
        if command.verb in _NEEDS_REASON and not command.why.strip():
            raise RefusedCommandError(f"note: {command.verb.value} needs a reason")
        if command.verb is Verb.SHELVE and not 0 < command.for_ns <= LONGEST_SHELF_NS:
            raise RefusedCommandError(
                f"hours: {command.for_ns / 3600 / NS_PER_S:g} is not over 0 and up to {LONGEST_SHELF_NS // 3600 // NS_PER_S}; "
                "what is away for longer is taken out of service with `remove`"
            )
        event = EVENT_OF[command.verb]
        if command.id == ALL:
            named = [state for state in self._states.values() if state.alarm.allows(event) and not state.alarm.at_rest]
            if not named:
                raise RefusedCommandError(f"id: there is no alarm that {command.verb.value} goes with")
        else:
            found = self._states.get(command.id)
            if found is None:
                raise RefusedCommandError(f"id: no alarm {command.id[:_WORDS]}; `edgeqc alarm list --all` shows them")
            named = [found]
        return [self._answer(state, command, event, sequence + place, wall_ns) for place, state in enumerate(named)]

    def _answer(
        self, state: AlertState, command: AlarmCommand, event: AlarmEvent, sequence: int, wall_ns: int
    ) -> AlertState:
        try:
            alarm = state.alarm.after(event)
        except IllegalMoveError as exc:
            raise RefusedCommandError(f"{state.change.id}: {exc}") from exc
        by, why = command.by.strip()[:_WORDS], command.why.strip()[:_WORDS]
        answered = replace(
            state,
            teller="office",
            sequence=sequence,
            wall_ns=wall_ns,
            alarm=alarm,
            event=event.value,
            note=why,
            until_ns=wall_ns + command.for_ns if command.verb is Verb.SHELVE else 0,
            cover_by=by if alarm.cover is not None else "",
        )
        if command.verb is Verb.ACK:
            answered = replace(answered, acked_by=by, acked_ns=wall_ns)
        return self._enter(answered)

    def _is_first(self, key: str) -> bool:
        """Did nothing else wait for an answer when it came?"""
        return not any(
            state.alarm.state is AlarmState.ACTIVE_UNACKED for other, state in self._states.items() if other != key
        )

    def _flood_at(self, wall_ns: int) -> bool:
        # What was raised in the future was raised before the clock was set back.
        while self._raised and not 0 <= wall_ns - self._raised[0] <= FLOOD_NS:
            self._raised.popleft()
        count = len(self._raised)
        return count > FLOOD_BEGINS or (self.flooded and count >= FLOOD_ENDS)

    def _enter(self, state: AlertState) -> AlertState:
        enter(self._database, state)
        self._states.pop(state.change.id, None)  # the newest stands last, as in the table
        self._states[state.change.id] = state
        return state


def _is_before(state: AlertState, wall_ns: int, read_wall_ns: int) -> bool:
    """Was it told before that time? What is of the future was told before the clock was set back."""
    return not wall_ns <= state.wall_ns <= read_wall_ns


def _leaves_shelf(state: AlertState, wall_ns: int) -> bool:
    """Nothing is set aside for longer than LONGEST_SHELF_NS: what would be was shelved before the clock was set back."""
    return state.until_ns > 0 and not wall_ns < state.until_ns <= wall_ns + LONGEST_SHELF_NS


def _is_over(confirm_ns: int, wall_ns: int) -> bool:
    """A time further away than CONFIRM_NS is one from before the clock was set back."""
    return not wall_ns < confirm_ns <= wall_ns + CONFIRM_NS


def told(state: AlertState) -> dict[str, Any]:
    """What a command's answer says of an alarm."""
    return {"id": state.change.id, "state": state.alarm.state.value, "text": state.change.text}
