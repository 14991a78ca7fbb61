"""Watches the PLC's trigger block in a thread of its own, and exposes each part at once.

No trigger is missed because the line is busy or stuck, and no part waits for the one before it to be judged.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from edgeqc.core.account import Arrival, TriggerAccount
from edgeqc.core.decide import overdue
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_MS, Cause, Event, PlcTrigger, Verdict
from edgeqc.shm.board import Row
from edgeqc.station.accounting import Accounting
from edgeqc.station.gate import GateWatch
from edgeqc.station.intake import Intake
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Part
from edgeqc.station.plckeeper import PlcKeeper
from edgeqc.station.tagwatch import TagWatch
from edgeqc.station.viewpoints import Viewpoints

_READ_NS: Final = 300 * NS_PER_MS
"""For one read of the trigger block: a PLC that takes longer is as good as gone."""
_DOWN_S: Final = 0.02
"""Between looks at a link that is down."""
_FRESH_POLLS: Final = 4
_FRESH_LEAST_NS: Final = 20 * NS_PER_MS
"""A trigger is fresh while the block was read within so many polls, or this time: a busy box polls late now and then.
How late it may be counts against the part's budget in any case."""


def fresh_ns(poll_ns: int) -> int:
    """With readings further apart than this a part is not exposed any more."""
    return max(_FRESH_POLLS * poll_ns, _FRESH_LEAST_NS)


def relayed_ns(poll_ns: int) -> int:
    """For a request of others between two polls: with it and the next poll a trigger is still fresh."""
    return fresh_ns(poll_ns) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a trigger sets in motion."""

    plc: PlcKeeper
    cameras: Viewpoints
    intake: Intake
    outcome: Outcome
    accounting: Accounting
    tags: TagWatch
    row: Row
    gate: GateWatch | None = None


class TriggerWatch:
    """Polls, counts, opens parts and has them exposed."""

    def __init__(self, watched: Watched, *, poll_ns: int, repeated_ids: bool) -> None:
        """`poll_ns`: from one read to the next; `repeated_ids`: several parts may have the same id."""
        self._watched = watched
        self._poll_ns = poll_ns
        self._repeated_ids = repeated_ids
        self._account = TriggerAccount(fresh_ns=fresh_ns(poll_ns))
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="triggers", daemon=True)

    def start(self) -> None:
        """Begin to watch. What is in the block now is taken for old."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(timeout=1)

    def _run(self) -> None:
        next_ns = time.monotonic_ns()
        while not self._stopping:
            self._watched.row.beat("triggers")
            try:
                self._look()
            except PeerError:
                time.sleep(_DOWN_S)
            next_ns = max(next_ns + self._poll_ns, time.monotonic_ns())
            time.sleep(max(0, next_ns - time.monotonic_ns()) / 1e9)

    def _look(self) -> None:
        watched = self._watched
        reading = watched.plc.opening() or watched.plc.read_trigger(time.monotonic_ns() + _READ_NS)
        watched.intake.announce(reading.recipe)
        arrival = self._account.reading(reading.counter, reading.part_id, reading.read_ns, exact=reading.exact)
        if arrival.restarted:
            watched.outcome.note(Event(name="plc_counter_restarted", facts={"counter": reading.counter}))
        if arrival.missed:
            watched.accounting.missed(arrival.missed, "the PLC's counter went on by more than one")
            for _ in range(arrival.missed):
                part = watched.intake.missed(reading.read_ns, reading.recipe)
                if watched.gate is not None:
                    watched.gate.part(part, placed=False)
                watched.outcome.settle(part, *overdue(frame_came=False))
        if arrival.part:
            self._arrived(arrival, reading)

    def _arrived(self, arrival: Arrival, reading: PlcTrigger) -> None:
        watched = self._watched
        # The budget covers one poll; where the last was longer ago, the part may have come so much earlier.
        late_ns = max(0, arrival.waited_ns - self._poll_ns) if arrival.fresh else 0
        part = watched.intake.open(reading.read_ns - late_ns, reading.part_id, reading.recipe)
        if watched.gate is not None:
            watched.gate.part(part, placed=arrival.fresh)
        repeated = arrival.doubled or arrival.swapped
        if repeated and not self._repeated_ids:
            watched.accounting.repeated(part, doubled=arrival.doubled)
        for index, camera in enumerate(watched.cameras):  # the line may not have seen a fresh connection yet
            for owed in watched.outcome.under_way.follow(index, camera.keeper.reopened):
                watched.outcome.give_up(owed, Cause.NO_FRAME, index)
        now_ns = time.monotonic_ns()
        known = self._repeated_ids or not repeated
        cause = watched.outcome.under_way.open(part, fresh=arrival.fresh, known=known, now_ns=now_ns)
        gone = -1
        if cause is None:
            gone = self._expose(part)
            cause = Cause.NO_FRAME if gone >= 0 else None
        elif cause is Cause.NO_FRAME:
            down = watched.cameras.down
            gone = down if down >= 0 else watched.outcome.under_way.unready(now_ns)
        if cause is None:
            self._show_busy(part)
        else:
            watched.outcome.settle(part, Verdict.REJECT, cause, gone)

    def _expose(self, part: Part) -> int:
        """Trigger each camera; gives the one of which no frame of this part is to be expected, by its index, -1: none.

        Where one is away the others are not exposed: they could not make the part pass.
        """
        watched, under_way = self._watched, self._watched.outcome.under_way
        if (gone := watched.cameras.down) >= 0:
            return gone
        first_ns = time.monotonic_ns()
        for index, camera in enumerate(watched.cameras):
            under_way.expose(part, index, sent_ns=time.monotonic_ns())
            try:
                camera.keeper.trigger()
            except PeerError:
                return index
            if not under_way.exposed(part, time.monotonic_ns()):
                return index
        part.process = watched.tags.snapshot(first_ns)  # while the cameras expose
        return -1

    def _show_busy(self, part: Part) -> None:
        """BUSY on while the camera exposes; PASS and REJECT off where the last part's result could be taken for this one's."""
        plc, trigger = self._watched.plc, part.trigger
        if not plc.up:
            return
        try:
            plc.show_busy(trigger.sequence, trigger.part_id, part.fail_safe_at_ns, unless=lambda: part.settled)
        except PeerError:
            self._watched.row.count("plc_errors")
