"""The guard: a thread that sleeps until something is due, and then does it whatever the line thread is stuck in.

It owes every part its fail-safe verdict, the PLC its heartbeat, and PASS and REJECT their end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from edgeqc.cores import real_time
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.shm.board import Row
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Part
from edgeqc.station.plckeeper import PlcKeeper

_LOOK_MOST_NS: Final = 100 * NS_PER_MS
_LOOK_LEAST_NS: Final = 2 * NS_PER_MS
"""It looks up at least twice within the shortest time in which a part can fall due, and so need not be woken for each
part: waking it would take the interpreter from the line thread just when that has a frame to judge."""
_LINE_STUCK_NS: Final = 200 * NS_PER_MS
"""The line thread comes up for air every 20 ms, and after 100 ms from a camera that does not answer."""
_WRITE_NS: Final = 50 * NS_PER_MS
"""For a heartbeat."""
_RETRY_JOURNAL_NS: Final = NS_PER_S


class Guard:
    """Stands by for one station."""

    def __init__(
        self,
        *,
        outcome: Outcome,
        plc: PlcKeeper | None,
        row: Row,
        fail_safe_ns: int,
        heartbeat_ns: int,
        healthy: Callable[[], bool],
        ready: Callable[[], bool] = lambda: True,
        on_look: Callable[[], None] = lambda: None,
        priority: int,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            outcome: settles what is overdue.
            plc: shows heartbeats; None for a station without a PLC.
            row: of the status board.
            fail_safe_ns: from a part's trigger to its fail-safe verdict, at the least.
            heartbeat_ns: from one heartbeat to the next while no part is under way.
            healthy: can the station judge? FAULT says that it cannot.
            ready: may parts come, where it can?
            on_look: called each time it looks up: each 100 ms at the least.
            priority: SCHED_FIFO's, 0 = ordinary.
        """
        self._outcome = outcome
        self._plc = plc
        self._row = row
        self._look_ns = max(_LOOK_LEAST_NS, min(_LOOK_MOST_NS, fail_safe_ns // 3))
        self._heartbeat_ns = heartbeat_ns
        self._healthy, self._ready, self._on_look = healthy, ready, on_look
        self._priority = priority
        self._parts: deque[Part] = deque()
        """Unsettled parts, oldest first; all have the same budget, so their times come in this order too."""
        self._stopping = False
        self._woken = threading.Event()
        self._next_beat_ns = 0
        self._next_retry_ns = 0
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)

    def start(self) -> None:
        """Begin to stand by."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; parts that are still under way get their fail-safe verdict now, so that each has its record.

        After the line has ended, and whoever else opens parts.
        """
        self._stopping = True
        self._woken.set()
        self._thread.join(timeout=2)
        while self._parts and not self._thread.is_alive():
            part = self._parts.popleft()
            self._outcome.give_up(part, *part.lacking)

    def watch(self, part: Part) -> None:
        """From now on this part has its fail-safe verdict coming. Any thread; costs microseconds."""
        self._parts.append(part)
        if (
            part.fail_safe_at_ns - time.monotonic_ns() < self._look_ns
        ):  # it was seen late: the next look may be too late
            self._woken.set()

    def _run(self) -> None:
        real_time(self._priority)
        while not self._stopping:
            self._woken.wait(max(0, self._due_ns() - time.monotonic_ns()) / 1e9)
            self._woken.clear()
            self._row.beat("guard")
            self._fail_safe()
            self._on_look()
            self._tell_plc()
            self._keep_journal()

    def _due_ns(self) -> int:
        due_ns = time.monotonic_ns() + self._look_ns
        if self._parts:
            return min(due_ns, self._parts[0].fail_safe_at_ns)
        if self._plc is not None and self._plc.up:
            due_ns = min(due_ns, self._next_beat_ns)
            if (hold_ns := self._plc.due_ns) is not None:
                due_ns = min(due_ns, hold_ns)
        return due_ns

    def _fail_safe(self) -> None:
        while self._parts:
            part = self._parts[0]
            if not part.settled:
                if time.monotonic_ns() < part.fail_safe_at_ns:
                    return
                self._outcome.give_up(part, *part.lacking)
            self._parts.popleft()

    def _tell_plc(self) -> None:
        """Heartbeat, and the end of the hold time; neither while a verdict may be about to go out on the same link."""
        now_ns = time.monotonic_ns()
        if self._plc is None or not self._plc.up:
            return
        verdict_comes = bool(self._parts) and now_ns - self._parts[0].trigger.at_ns < self._heartbeat_ns
        if verdict_comes and now_ns < self._next_beat_ns + self._heartbeat_ns:
            return  # it moves the heartbeat; what it does not tell is how the station is: where parts never end, a beat does
        try:
            if (hold_ns := self._plc.due_ns) is not None and now_ns >= hold_ns:
                self._plc.expire(now_ns)
            if now_ns >= self._next_beat_ns:
                self._next_beat_ns = now_ns + self._heartbeat_ns
                if now_ns - self._row.beats().get("line", 0) > _LINE_STUCK_NS + 2 * self._heartbeat_ns:
                    return  # the heartbeat speaks for the line thread, too: it stands still with it
                healthy = self._healthy()
                ready = healthy and self._ready()
                self._plc.beat(ready=ready, fault=not healthy, until_ns=now_ns + _WRITE_NS)
        except PeerError:
            self._row.count("plc_errors")  # the keeper says who and why, and reconnects

    def _keep_journal(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_retry_ns and not self._outcome.retry_journal(self._due_ns()):
            self._next_retry_ns = now_ns + _RETRY_JOURNAL_NS
