"""What the PLC is shown, when, and for how long: the handshake with the PLC as a table. No clock, no I/O, no thread.

The same over Modbus and OPC UA, and the same in the simulation of the line. Three forms:

- `pulse`: a result stays for its hold time, or until the next part's trigger or result. Nobody acknowledges.
- `ack`: a result stays until the PLC acknowledges it. One that comes meanwhile takes its place, and OVERRUN goes on.
- `buffered`: results wait in order, `depth` of them; each acknowledgement brings the next. One that finds no room is
  not shown at all, and OVERRUN goes on.

The PLC acknowledges by writing the *sequence number* of the result that it has taken. Only the number of the result
that is shown releases it, so an acknowledgement that was missed, doubled, or comes late can never release another: there
is no edge to lose and no pointer to fall behind (the off-by-one fault of handshakes that acknowledge by an edge).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgeqc.records import PlcResult


class Form(StrEnum):
    """How results are handed over."""

    PULSE = "pulse"
    ACK = "ack"
    BUFFERED = "buffered"


class Phase(StrEnum):
    """What is in the result block."""

    OFFLINE = "offline"
    """There is no link, and so nobody is shown anything."""
    CLEAR = "clear"
    """No result: PASS, REJECT and RESULT_VALID are off."""
    OFFERED = "offered"
    """A result; the PLC has not confirmed the write yet."""
    VALID = "valid"
    """A result, and the PLC has it."""


class Event(StrEnum):
    """What can happen."""

    CONNECTED = "connected"
    LOST = "lost"
    WRITTEN = "written"
    """The PLC confirmed a write of the block."""
    TRIGGER = "trigger"
    """A part is there, and no other is under way."""
    TRIGGER_MORE = "trigger_more"
    """A part is there while others are under way."""
    RESULT = "result"
    RESULT_FULL = "result_full"
    """A result, and as many as there is room for are shown or waiting."""
    ACK = "ack"
    """The PLC has taken the result that is shown, and none waits."""
    ACK_NEXT = "ack_next"
    """The same, and another waits."""
    EXPIRED = "expired"
    """The hold time of the result that is shown is over, and none waits."""
    EXPIRED_NEXT = "expired_next"
    """The same, and another waits."""


class Act(StrEnum):
    """What a move does beside changing the phase."""

    NOTHING = "nothing"
    SHOW = "show"
    """Put the result into the block."""
    OVERRUN = "overrun"
    """Put it there in place of one that nobody acknowledged: say so."""
    QUEUE = "queue"
    """Keep the result until its turn comes."""
    DROP = "drop"
    """The result is not shown at all: say so."""
    NEXT = "next"
    """Put the oldest that waits into the block."""
    HIDE = "hide"
    """Take the result out of the block."""
    FORGET = "forget"
    """Take it out, and give up those that wait: their parts are long past the gate when the link is back."""


Table = dict[tuple[Phase, Event], tuple[Phase, Act]]

_ALWAYS: Final[Table] = {
    (Phase.OFFLINE, Event.CONNECTED): (Phase.CLEAR, Act.HIDE),
    (Phase.OFFLINE, Event.LOST): (Phase.OFFLINE, Act.NOTHING),
    (Phase.OFFLINE, Event.TRIGGER): (Phase.OFFLINE, Act.NOTHING),
    (Phase.OFFLINE, Event.TRIGGER_MORE): (Phase.OFFLINE, Act.NOTHING),
    (Phase.OFFLINE, Event.RESULT): (Phase.OFFLINE, Act.DROP),
    (Phase.CLEAR, Event.LOST): (Phase.OFFLINE, Act.FORGET),
    (Phase.CLEAR, Event.WRITTEN): (Phase.CLEAR, Act.NOTHING),
    (Phase.CLEAR, Event.TRIGGER): (Phase.CLEAR, Act.NOTHING),
    (Phase.CLEAR, Event.TRIGGER_MORE): (Phase.CLEAR, Act.NOTHING),
    (Phase.CLEAR, Event.RESULT): (Phase.OFFERED, Act.SHOW),
    (Phase.OFFERED, Event.LOST): (Phase.OFFLINE, Act.FORGET),
    (Phase.OFFERED, Event.WRITTEN): (Phase.VALID, Act.NOTHING),
    (Phase.OFFERED, Event.TRIGGER): (Phase.OFFERED, Act.NOTHING),
    (Phase.OFFERED, Event.TRIGGER_MORE): (Phase.OFFERED, Act.NOTHING),
    (Phase.VALID, Event.LOST): (Phase.OFFLINE, Act.FORGET),
    (Phase.VALID, Event.WRITTEN): (Phase.VALID, Act.NOTHING),
    (Phase.VALID, Event.TRIGGER): (Phase.VALID, Act.NOTHING),
    (Phase.VALID, Event.TRIGGER_MORE): (Phase.VALID, Act.NOTHING),
    (Phase.VALID, Event.EXPIRED): (Phase.CLEAR, Act.HIDE),
}
TABLE: Final[dict[Form, Table]] = {
    Form.PULSE: _ALWAYS
    | {
        # with parts in a pipeline the result stays for its time: it is not the next part's trigger that ends it
        (Phase.VALID, Event.TRIGGER): (Phase.CLEAR, Act.HIDE),
        (Phase.OFFERED, Event.RESULT): (Phase.OFFERED, Act.SHOW),
        (Phase.VALID, Event.RESULT): (Phase.OFFERED, Act.SHOW),
    },
    Form.ACK: _ALWAYS
    | {
        (Phase.OFFERED, Event.RESULT): (Phase.OFFERED, Act.OVERRUN),
        (Phase.VALID, Event.RESULT): (Phase.OFFERED, Act.OVERRUN),
        (Phase.VALID, Event.ACK): (Phase.CLEAR, Act.HIDE),
    },
    Form.BUFFERED: _ALWAYS
    | {
        (Phase.OFFERED, Event.RESULT): (Phase.OFFERED, Act.QUEUE),
        (Phase.OFFERED, Event.RESULT_FULL): (Phase.OFFERED, Act.DROP),
        (Phase.VALID, Event.RESULT): (Phase.VALID, Act.QUEUE),
        (Phase.VALID, Event.RESULT_FULL): (Phase.VALID, Act.DROP),
        (Phase.VALID, Event.ACK): (Phase.CLEAR, Act.HIDE),
        (Phase.VALID, Event.ACK_NEXT): (Phase.OFFERED, Act.NEXT),
        (Phase.VALID, Event.EXPIRED_NEXT): (Phase.OFFERED, Act.NEXT),
    },
}
"""(phase, event) > (phase, act), for each form. What is not in it cannot happen: `Handshake` raises IllegalMoveError."""

SEQUENCE_MASK: Final = 0x7FFF_FFFF
"""Acknowledgements are compared in 31 bits: what an Int32 node keeps of a sequence number."""
DEPTH: Final = 8
"""Results that a smart camera's buffer holds (Cognex In-Sight 8, Keyence IV 10)."""


class IllegalMoveError(RuntimeError):
    """The table has no such move: whoever caused the event is wrong."""


class Given(StrEnum):
    """What became of a result."""

    SHOWN = "shown"
    """It is in the block, to be written now."""
    WAITS = "waits"
    """Others are before it."""
    DROPPED = "dropped"
    """It will not be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the configuration says of the handshake."""

    form: Form = Form.PULSE
    depth: int = DEPTH
    """Results that are shown or wait at a time; `buffered` only."""
    hold_ns: int | None = None
    """How long a result stays after the PLC confirmed it; None: until it is acknowledged or replaced."""


class Handshake:
    """One station's handshake. Not thread-safe: whoever holds the link's write lock uses it.

    After each call write `block`, where the call says so; then call `written` when the PLC confirmed it, `lost` when it
    did not: whether a write that failed was executed is not known, so the next link begins with a clear block.
    """

    def __init__(self, rules: Rules) -> None:
        """Begin offline."""
        self.phase = Phase.OFFLINE
        self.asks_stop = False
        """The STOP bit: goes out with whatever is written next."""
        self.overruns = 0
        """Results that were replaced unacknowledged, or never shown for want of room."""
        self._rules = rules
        self._table = TABLE[rules.form]
        self._shown: PlcResult | None = None
        self._waiting: deque[PlcResult] = deque()
        self._under_way: set[int] = set()
        self._part = (0, "")
        """Sequence and id that the block names while it has no result: the newest part's."""
        self._trigger_ack = 0
        self._ack = 0
        self._stale_ack = False
        """The PLC's register had the shown result's number before that result came: no acknowledgement of it."""
        self._until_ns: int | None = None
        self._overrun = False
        self._ready = False
        self._fault = False

    @property
    def block(self) -> PlcResult:
        """What the PLC is to be shown now."""
        shown = self._shown
        sequence, part_id = self._part
        return PlcResult(
            sequence=sequence if shown is None else shown.sequence,
            part_id=part_id if shown is None else shown.part_id,
            verdict=None if shown is None else shown.verdict,
            code=0 if shown is None else shown.code,
            score=0.0 if shown is None else shown.score,
            busy=bool(self._under_way),
            ready=self._ready and self._has_room,
            fault=self._fault,
            overrun=self._overrun,
            stop=self.asks_stop,
            trigger_ack=self._trigger_ack,
            waiting=self._held,
        )

    @property
    def waiting(self) -> int:
        """Results that wait behind the one that is shown."""
        return len(self._waiting)

    @property
    def due_ns(self) -> int | None:
        """When `expire` has something to do."""
        return self._until_ns

    def connected(self) -> None:
        """Begin on a fresh link, whose registers may be of another life. READY is off until it is said anew. Write `block`."""
        self._ready = False
        self._move(Event.CONNECTED)

    def lost(self) -> tuple[int, ...]:
        """A write failed, or the link is gone. Gives the sequences of the results that nobody confirmed: they are given up.

        These are the results that waited, and before them the one that was shown, if its write was not confirmed.
        """
        offered = [self._shown] if self.phase is Phase.OFFERED and self._shown is not None else []
        given_up = tuple([result.sequence for result in [*offered, *self._waiting]])
        self._move(Event.LOST)
        return given_up

    def written(self, now_ns: int) -> int | None:
        """Hear that the PLC confirmed `block`. Gives the sequence of the result that it knows since then, if any."""
        new = self.phase is Phase.OFFERED
        self._move(Event.WRITTEN)
        if not new or self._shown is None:
            return None
        if self._rules.hold_ns is not None:
            self._until_ns = now_ns + self._rules.hold_ns
        return self._shown.sequence

    def trigger(self, sequence: int, part_id: str, counter: int) -> None:
        """A part is there. Write `block`.

        `counter`: the PLC's own count of its triggers, which it gets back as TRIGGER_ACK.
        """
        self._move(Event.TRIGGER_MORE if self._under_way else Event.TRIGGER)
        self._under_way.add(sequence)
        self._part = (sequence, part_id)
        self._trigger_ack = counter

    def result(self, result: PlcResult) -> Given:
        """Take a part's verdict: `sequence`, `part_id`, `verdict`, `code` and `score` count, the rest is our own.

        Write `block` whatever became of the result, unless the phase is OFFLINE.
        """
        self._under_way.discard(result.sequence)
        full = self._rules.form is Form.BUFFERED and self._held >= self._rules.depth
        match self._move(Event.RESULT_FULL if full else Event.RESULT, result):
            case Act.SHOW | Act.OVERRUN:
                return Given.SHOWN
            case Act.QUEUE:
                return Given.WAITS
            case _:
                return Given.DROPPED

    def withdraw(self, sequence: int) -> None:
        """Hear that the part has its verdict, but nobody will be shown it."""
        self._under_way.discard(sequence)

    def ack(self, sequence: int) -> bool:
        """Hear what is in the PLC's acknowledgement register. True: write `block`."""
        self._ack = sequence
        if self._rules.form is Form.PULSE or self.phase is not Phase.VALID or self._shown is None:
            return False
        if not _same(sequence, self._shown.sequence):
            self._stale_ack = False
            return False
        if self._stale_ack:
            return False
        self._overrun = self._overrun and bool(self._waiting)
        self._move(Event.ACK_NEXT if self._waiting else Event.ACK)
        return True

    def expire(self, now_ns: int) -> bool:
        """End the hold of the result that is shown, if its time is over. True: write `block`."""
        if self._until_ns is None or now_ns < self._until_ns or self.phase is not Phase.VALID:
            return False
        self._move(Event.EXPIRED_NEXT if self._waiting else Event.EXPIRED)
        return True

    def health(self, *, ready: bool, fault: bool) -> None:
        """What READY and FAULT say from now on. READY also needs room for one more result."""
        self._ready, self._fault = ready, fault

    @property
    def _held(self) -> int:
        return (self._shown is not None) + len(self._waiting)

    @property
    def _has_room(self) -> bool:
        return self._rules.form is not Form.BUFFERED or self._held + len(self._under_way) < self._rules.depth

    def _move(self, event: Event, result: PlcResult | None = None) -> Act:
        try:
            self.phase, act = self._table[self.phase, event]
        except KeyError:
            raise IllegalMoveError(f"{self._rules.form}: {event} while {self.phase}") from None
        match act:
            case Act.SHOW | Act.OVERRUN:
                self._put(result)
                if act is Act.OVERRUN:
                    self._lose()
            case Act.QUEUE if result is not None:
                self._waiting.append(result)
            case Act.DROP if self.phase is not Phase.OFFLINE:
                self._lose()
            case Act.NEXT:
                self._put(self._waiting.popleft())
            case Act.HIDE:
                self._put(None)
            case Act.FORGET:
                self._put(None)
                self._overrun = self._overrun or bool(self._waiting)
                self._waiting.clear()
            case _:
                pass
        return act

    def _put(self, result: PlcResult | None) -> None:
        if result is not None:
            self._stale_ack = _same(self._ack, result.sequence)
        elif self._shown is not None and not self._under_way:
            self._part = (self._shown.sequence, self._shown.part_id)
        self._shown = result
        self._until_ns = None

    def _lose(self) -> None:
        self.overruns += 1
        self._overrun = True


def _same(one: int, other: int) -> bool:
    return not (one ^ other) & SEQUENCE_MASK
