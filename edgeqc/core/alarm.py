"""An alarm's states, as ISA-18.2 has them, and when it is raised and cleared. Pure.

An alarm has two halves. `Trip` looks at a number and says when something is wrong (delays, hysteresis, the peak and the
floor); whoever watches the machine owns it. `Alarm` is what people see and answer (unacknowledged, acknowledged,
shelved, ...); whoever talks to people owns it. Only raising and clearing pass between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from edgeqc.errors import EdgeqcError


class AlarmState(StrEnum):
    """What is shown of an alarm (ISA-18.2, figure of the alarm states)."""

    NORMAL = "normal"
    ACTIVE_UNACKED = "active_unacked"
    ACTIVE_ACKED = "active_acked"
    CLEARED_UNACKED = "cleared_unacked"
    SHELVED = "shelved"
    SUPPRESSED = "suppressed"
    OUT_OF_SERVICE = "out_of_service"


class AlarmEvent(StrEnum):
    """What can happen to an alarm."""

    RAISE = "raise"
    """The condition is there."""
    CLEAR = "clear"
    """The condition is over; a person must have seen it."""
    VANISH = "vanish"
    """The condition is over; nobody needs to have seen it."""
    ACK = "ack"
    SHELVE = "shelve"
    """A person sets it aside for a time."""
    UNSHELVE = "unshelve"
    """That person, or the time."""
    SUPPRESS = "suppress"
    """The machine's state makes it meaningless: stopped, changeover."""
    UNSUPPRESS = "unsuppress"
    REMOVE = "remove"
    """A person takes it out of service: its sensor is under repair."""
    RETURN = "return"


class Verb(StrEnum):
    """What a person may do to an alarm."""

    ACK = "ack"
    SHELVE = "shelve"
    UNSHELVE = "unshelve"
    REMOVE = "remove"
    """Take it out of service."""
    RETURN = "return"
    """Take it into service again."""


EVENT_OF: Final[dict[Verb, AlarmEvent]] = {
    Verb.ACK: AlarmEvent.ACK,
    Verb.SHELVE: AlarmEvent.SHELVE,
    Verb.UNSHELVE: AlarmEvent.UNSHELVE,
    Verb.REMOVE: AlarmEvent.REMOVE,
    Verb.RETURN: AlarmEvent.RETURN,
}


class IllegalMoveError(EdgeqcError):
    """This cannot happen to an alarm in this state."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Where an alarm stands: what the condition and people's answers made of it, and whether that is covered.

    Under a cover the condition is followed all the same, so that lifting the cover shows how things are.
    """

    below: AlarmState = AlarmState.NORMAL
    """normal, active_unacked, active_acked or cleared_unacked."""
    cover: AlarmState | None = None
    """shelved, suppressed, out_of_service; None: nothing hides it."""

    @property
    def state(self) -> AlarmState:
        """What is shown."""
        return self.below if self.cover is None else self.cover

    @property
    def active(self) -> bool:
        """Is the condition there, shown or not?"""
        return self.below in _ACTIVE

    @property
    def at_rest(self) -> bool:
        """Is there nothing to tell anyone?"""
        return self.state is AlarmState.NORMAL

    def after(self, event: AlarmEvent) -> Alarm:
        """Give what the event makes of it. IllegalMoveError, saying why, where it cannot happen."""
        if (self.cover, event) in COVERS:
            return replace(self, cover=COVERS[self.cover, event])
        if (self.below, event) in MOVES and (self.cover is None or event is not AlarmEvent.ACK):
            below = MOVES[self.below, event]
            if self.cover is not None and below is AlarmState.CLEARED_UNACKED:
                below = AlarmState.NORMAL  # nobody was shown it: nobody has to acknowledge it
            return replace(self, below=below)
        raise IllegalMoveError(f"{event.value} does not go with an alarm that is {self.state.value}")

    def allows(self, event: AlarmEvent) -> bool:
        """Can it happen now?"""
        try:
            self.after(event)
        except IllegalMoveError:
            return False
        return True


MOVES: Final[dict[tuple[AlarmState, AlarmEvent], AlarmState]] = {
    (AlarmState.NORMAL, AlarmEvent.RAISE): AlarmState.ACTIVE_UNACKED,
    (AlarmState.NORMAL, AlarmEvent.CLEAR): AlarmState.NORMAL,
    (AlarmState.NORMAL, AlarmEvent.VANISH): AlarmState.NORMAL,
    (AlarmState.ACTIVE_UNACKED, AlarmEvent.RAISE): AlarmState.ACTIVE_UNACKED,
    (AlarmState.ACTIVE_UNACKED, AlarmEvent.ACK): AlarmState.ACTIVE_ACKED,
    (AlarmState.ACTIVE_UNACKED, AlarmEvent.CLEAR): AlarmState.CLEARED_UNACKED,
    (AlarmState.ACTIVE_UNACKED, AlarmEvent.VANISH): AlarmState.NORMAL,
    (AlarmState.ACTIVE_ACKED, AlarmEvent.RAISE): AlarmState.ACTIVE_ACKED,
    (AlarmState.ACTIVE_ACKED, AlarmEvent.CLEAR): AlarmState.NORMAL,
    (AlarmState.ACTIVE_ACKED, AlarmEvent.VANISH): AlarmState.NORMAL,
    (AlarmState.CLEARED_UNACKED, AlarmEvent.RAISE): AlarmState.ACTIVE_UNACKED,
    (AlarmState.CLEARED_UNACKED, AlarmEvent.ACK): AlarmState.NORMAL,
    (AlarmState.CLEARED_UNACKED, AlarmEvent.CLEAR): AlarmState.CLEARED_UNACKED,
    (AlarmState.CLEARED_UNACKED, AlarmEvent.VANISH): AlarmState.NORMAL,
}
"""What the condition and the acknowledgement do. Told again, the condition changes nothing."""

COVERS: Final[dict[tuple[AlarmState | None, AlarmEvent], AlarmState | None]] = {
    (None, AlarmEvent.SHELVE): AlarmState.SHELVED,
    (None, AlarmEvent.SUPPRESS): AlarmState.SUPPRESSED,
    (None, AlarmEvent.REMOVE): AlarmState.OUT_OF_SERVICE,
    (AlarmState.SHELVED, AlarmEvent.SHELVE): AlarmState.SHELVED,
    (AlarmState.SHELVED, AlarmEvent.UNSHELVE): None,
    (AlarmState.SHELVED, AlarmEvent.REMOVE): AlarmState.OUT_OF_SERVICE,
    (AlarmState.SUPPRESSED, AlarmEvent.UNSUPPRESS): None,
    (AlarmState.SUPPRESSED, AlarmEvent.SHELVE): AlarmState.SHELVED,
    (AlarmState.SUPPRESSED, AlarmEvent.REMOVE): AlarmState.OUT_OF_SERVICE,
    (AlarmState.OUT_OF_SERVICE, AlarmEvent.RETURN): None,
}
"""What hides an alarm and what shows it again. A person's cover outlasts the machine's; who suppresses asks again."""

_ACTIVE: Final = frozenset({AlarmState.ACTIVE_UNACKED, AlarmState.ACTIVE_ACKED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TripRule:
    """When a number is too high. In the number's own unit.

    The peak and the floor are what made a detector of machine faults usable: with a plain limit it flutters through a
    fault that swings and stays on through the machine's recovery. On SKAB (21 files, facts of this project's own trials,
    reproduced by `edgeqc eval tags --protocol skab`) they take F1 from .83 at 29 % false alarms to .87 at 12 %.
    """

    limit: float
    """Raised above this."""
    hysteresis: float = 0.0
    """Cleared only below `limit - hysteresis`."""
    peak_ratio: float = 0.0
    """Cleared, too, below this share of the highest value since it was raised; 0 = off. A fault of 50 times the limit is
    over when it has fallen to 20, although the machine needs another ten minutes to come to rest."""
    floor_ratio: float = 0.0
    """Raised again only above this times the lowest value since it cleared; 0 = off. The same ten minutes raise nothing."""
    floor_ns: int = 0
    """The floor is forgotten this long after clearing; 0 = when the value falls below the limit's reach by itself."""
    on_delay_ns: int = 0
    off_delay_ns: int = 0


class Trip:
    """Follows one number by one rule. O(1) per value."""

    def __init__(self, rule: TripRule) -> None:
        self.rule = rule
        self.on = False
        self.peak = 0.0
        """Highest value since it was raised; 0 while it is not."""
        self.floor = 0.0
        """Lowest value since it cleared; 0 = no alarm is remembered."""
        self._since_ns: int | None = None
        self._cleared_ns = 0

    @property
    def limit(self) -> float:
        """What the value is held against now: the one that raises, or the one that clears."""
        rule = self.rule
        if self.on:
            return max(rule.limit - rule.hysteresis, rule.peak_ratio * self.peak)
        return max(rule.limit, rule.floor_ratio * self.floor)

    def update(self, value: float, now_ns: int) -> bool:
        """Look at the next value; true when `on` changed. NaN says nothing and changes nothing but the delay's start."""
        if math.isnan(value):
            self._since_ns = None
            return False
        if self.on:
            self.peak = max(self.peak, value)
            crossed, delay_ns = value < self.limit, self.rule.off_delay_ns
        else:
            if self.floor and self.rule.floor_ns and now_ns - self._cleared_ns >= self.rule.floor_ns:
                self.floor = 0.0
            if self.floor:
                self.floor = min(self.floor, value)
            crossed, delay_ns = value > self.limit, self.rule.on_delay_ns
        if not crossed:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = now_ns
        if now_ns - self._since_ns < delay_ns:
            return False
        self._since_ns = None
        self.on = not self.on
        if self.on:
            self.peak, self.floor = value, 0.0
        else:
            self.peak, self.floor, self._cleared_ns = 0.0, max(value, 0.0), now_ns
        return True

    def kept(self) -> dict[str, Any]:
        """What a restart must not forget; JSON. Times are not among it: the clocks of two runs do not compare."""
        return {"on": self.on, "peak": self.peak, "floor": self.floor}

    def restore(self, kept: dict[str, Any], now_ns: int) -> None:
        """Go on where an earlier run ended; the floor's time begins anew. ValueError, KeyError or TypeError if damaged."""
        on, peak, floor = bool(kept["on"]), float(kept["peak"]), float(kept["floor"])
        if not (math.isfinite(peak) and math.isfinite(floor)):
            raise ValueError(f"peak {peak}, floor {floor}")
        self.on, self.peak, self.floor = on, peak, floor
        self._since_ns, self._cleared_ns = None, now_ns


class DeadBand:
    """Says when a number has moved enough to be told again."""

    def __init__(self, *, share: float, at_least: float = 0.0) -> None:
        """`share` of the last told value, but no less than `at_least`."""
        self._share, self._at_least = share, at_least
        self._told = math.nan

    def moved(self, value: float) -> bool:
        """True, and remembered, where the value left the band around the last told one; the first always has."""
        if not math.isnan(self._told) and abs(value - self._told) <= max(self._share * abs(self._told), self._at_least):
            return False
        self._told = value
        return True

    def forget(self) -> None:
        """The next value is told whatever it is."""
        self._told = math.nan
