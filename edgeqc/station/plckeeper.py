"""The station's PLC connection: kept open by a thread of its own, used by line, guard and whoever polls the PLC."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from edgeqc.core.backoff import Backoff
from edgeqc.core.handshake import Given, Handshake, Phase, Rules
from edgeqc.core.heartbeat import Heartbeat
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.ports import PlcLink
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, PlcTrigger

_BACKOFF: Final = Backoff(first_s=0.1, most_s=1.0)
"""A PLC that is back must see a verdict within 2 s."""
_LIVED_NS: Final = NS_PER_S
"""A link that was lost sooner than this is not opened again at once: a PLC may take each connection and drop it."""
_TURN_S: Final = 1.0
"""How often the keeper's thread shows that it lives while the link does."""
_JOIN_S: Final = 1.5
"""At the end, for a connection that is being opened: parts under way still have their records to come."""
WRITE_NS: Final = 50 * NS_PER_MS
"""For a write that carries no new verdict of a part under way, at the least."""
_SAFE_WRITE_NS: Final = 500 * NS_PER_MS
"""For the first write on a new connection, which puts the outputs into their safe state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcEvents:
    """Whom the keeper tells what happened: called from any of the station's threads, some of which hold the link."""

    link: Callable[[bool, str], None]
    """It came up (True), or was lost and why."""
    program: Callable[[bool], None]
    """The PLC's own heartbeat stands still (False), or moves again."""
    turn: Callable[[int, int, str], None]
    """The result with this sequence, which waited, was confirmed at this monotonic time; 0: never will be, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How this station and its PLC deal with each other."""

    rules: Rules = field(default_factory=Rules)
    plc_heartbeat_ns: int | None = None
    """The PLC changes its heartbeat at least so often; None: not watched."""
    triggers: bool = False
    """The PLC's triggers are the parts. A link is up once its trigger block was read: what is raised from then on is a
    part, though nobody looked between."""
    write_ns: int = WRITE_NS
    """For a write that carries no new verdict of a part under way: the turn of one that waited, the end of a hold."""


class LinkBusyError(PeerTimeoutError):
    """Somebody else held the link for all of the time: nothing was written."""


class PlcKeeper:
    """Keeps one link open; after any failure it is dropped and a fresh one opened.

    What the PLC sees is always composed by the handshake, under the link's lock, so that a heartbeat can never bring an
    older result back.
    """

    def __init__(
        self, open_link: Callable[[], PlcLink], *, peer: str, events: PlcEvents, manners: Manners | None = None
    ) -> None:
        """Nothing is connected before `start`."""
        self.reconnected = 0
        self.turned_ns = 0
        """When the keeper's thread last came round (monotonic): an opening that hangs stops it."""
        self._open_link = open_link
        self._peer = peer
        self._events = events
        manners = manners or Manners()
        self._link: PlcLink | None = None
        self._lock = threading.Lock()
        """Held by whoever uses the handshake and writes what comes of it."""
        self._handshake = Handshake(manners.rules)
        self._hold = _Held(self._lock, self._handshake)
        self._withdrawn: deque[int] = deque()
        """Parts that got their verdict while somebody else held the link for too long."""
        self._ack = 0
        self._counter = 0
        self._triggers = manners.triggers
        self._opening: PlcTrigger | None = None
        self._write_ns = manners.write_ns
        self._heartbeat = None if manners.plc_heartbeat_ns is None else Heartbeat(manners.plc_heartbeat_ns)
        self._program_alive = True
        self._lost = threading.Event()
        self._reason = "not connected yet"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="plc-keeper", daemon=True)

    @property
    def up(self) -> bool:
        """Is there a link that last answered?"""
        return self._link is not None

    @property
    def shown(self) -> PlcResult:
        """What the PLC is to be shown."""
        return self._handshake.block

    @property
    def due_ns(self) -> int | None:
        """When `expire` has something to do."""
        return self._handshake.due_ns

    @property
    def overruns(self) -> int:
        """Results that the PLC lost because it did not acknowledge those before them."""
        return self._handshake.overruns

    def start(self) -> None:
        """Begin to connect."""
        self.turned_ns = time.monotonic_ns()
        self._thread.start()

    def stop(self) -> None:
        """Outputs safe, then close: bounded to about 2 s."""
        until_ns = time.monotonic_ns() + _SAFE_WRITE_NS
        link = self._link
        if link is not None:
            try:
                with self._held(until_ns) as handshake:
                    handshake.health(ready=False, fault=False)
                    safe = replace(handshake.block, verdict=None, code=0, score=0.0, busy=False, waiting=0)
                    # nobody writes behind it: whoever waits for the lock finds no link
                    self._link, self._reason = None, "the station has stopped"
                    link.write_result(safe, until_ns)
            except PeerError as exc:
                self._reason = exc.reason  # it is gone: its own watchdog sees the heartbeat stop
        self._stopping.set()
        self._lost.set()
        self._thread.join(timeout=_JOIN_S)

    def opening(self) -> PlcTrigger | None:
        """What stood in the trigger block when the link was opened; once for each link. With `Manners.triggers` only."""
        seen, self._opening = self._opening, None
        return seen

    def read_trigger(self, until_ns: int, *, patient: bool = False) -> PlcTrigger:
        """Read the trigger block, and do what the PLC's acknowledgement in it asks for.

        PeerError at once while there is no link. `patient`: an answer that is not there by `until_ns` is no reason to give
        the link up, on which a verdict is due.
        """
        link = self._link
        if link is None:
            raise PeerError(self._peer, self._reason)
        try:
            seen = link.read_trigger(until_ns)
        except PeerError as exc:
            if not (patient and isinstance(exc, PeerTimeoutError)):
                self._drop(link, exc.reason)
            raise
        self._counter = seen.counter
        if self._heartbeat is not None:
            self._heartbeat.heard(seen.heartbeat, seen.read_ns)
            self._tell_program(self._heartbeat.alive(seen.read_ns))
        if seen.ack != self._ack:
            with contextlib.suppress(PeerError), self._held(seen.read_ns + self._write_ns) as handshake:
                self._ack = seen.ack
                if handshake.ack(seen.ack):
                    self._write(seen.read_ns + self._write_ns)
        return seen

    def show(self, result: PlcResult, until_ns: int, *, begin_ns: int | None = None) -> int:
        """Give the PLC this result: when it confirmed the write (monotonic ns), 0 where it has not taken those before.

        `PlcEvents.turn` tells how the waiting ended. LinkBusyError where the write could not be begun by `begin_ns` (`until_ns`);
        PeerError where the PLC does not confirm, at once without a link, and where its buffer is full.
        """
        try:
            with self._held(until_ns if begin_ns is None else begin_ns) as handshake:
                given = handshake.result(result)
                confirmed_ns = self._write(until_ns, own=result.sequence)
        except LinkBusyError:
            self._withdrawn.append(result.sequence)
            raise
        if given is Given.DROPPED:
            raise PeerError(self._peer, "does not acknowledge results: its buffer is full, this one is not shown")
        return 0 if given is Given.WAITS else confirmed_ns

    def show_busy(self, sequence: int, part_id: str, until_ns: int, *, unless: Callable[[], bool]) -> None:
        """A part is under way: BUSY, and TRIGGER_ACK.

        `unless` is asked while no other write can come between: a fail-safe verdict that is out must stay.
        """
        with self._held(until_ns) as handshake:
            if not unless():
                handshake.expire(time.monotonic_ns())  # the guard leaves the link alone while parts are under way
                handshake.trigger(sequence, part_id, self._counter)
                self._write(until_ns)

    def expire(self, now_ns: int) -> None:
        """PASS and REJECT off where their hold time is over."""
        with self._held(now_ns + self._write_ns) as handshake:
            if handshake.expire(now_ns):
                self._write(now_ns + self._write_ns)

    def ask_stop(self, on: bool) -> None:
        """The STOP bit: goes out with the next write, a heartbeat at the latest."""
        self._handshake.asks_stop = on

    def touch(self, until_ns: int) -> None:
        """Write what is shown once more."""
        with self._held(until_ns):
            self._write(until_ns)

    def beat(self, *, ready: bool, fault: bool, until_ns: int) -> None:
        """Say how the station is; the heartbeat moves with it as with every write."""
        with self._held(until_ns) as handshake:
            handshake.health(ready=ready and self._program_alive, fault=fault)
            self._write(until_ns)

    def _held(self, until_ns: int) -> _Held:
        """Have handshake and link to oneself, for the length of a `with`."""
        if not self._lock.acquire(timeout=max(0.0, (until_ns - time.monotonic_ns()) / 1e9)):
            raise LinkBusyError(self._peer, "the link is busy with another write")
        try:
            while self._withdrawn:
                self._handshake.withdraw(self._withdrawn.popleft())
            if self._link is None and self._handshake.phase is not Phase.OFFLINE:
                self._offline()
        except BaseException:
            self._lock.release()
            raise
        return self._hold

    def _write(self, until_ns: int, *, own: int = 0) -> int:
        """Write the block; when the PLC confirmed it. Hold the lock. `own`: the caller's result, which nobody else is told."""
        link = self._link
        if link is None:  # it was lost since the lock was taken
            if self._handshake.phase is not Phase.OFFLINE:
                self._offline(own)
            raise PeerError(self._peer, self._reason)
        try:
            link.write_result(self._handshake.block, until_ns)
        except PeerError as exc:
            self._drop(link, exc.reason)
            self._offline(own)
            raise
        now_ns = time.monotonic_ns()
        sequence = self._handshake.written(now_ns)
        if sequence is not None and sequence != own:
            self._events.turn(sequence, now_ns, "")
        return now_ns

    def _offline(self, own: int = 0) -> None:
        for sequence in self._handshake.lost():
            if sequence != own:
                self._events.turn(sequence, 0, f"not acknowledged in time: the link was lost: {self._reason}")

    def _tell_program(self, alive: bool) -> None:
        if alive != self._program_alive:
            self._program_alive = alive
            self._events.program(alive)

    def _drop(self, link: PlcLink, reason: str) -> None:
        if self._link is link:
            self._link = None
            self._reason = reason
            self._lost.set()

    def _keep(self) -> None:
        failures, told = 0, False
        while not self._stopping.is_set():
            self.turned_ns = time.monotonic_ns()
            try:
                link = self._open_safe()
            except Exception as exc:  # noqa: BLE001 - the thread's root: a PLC that confuses us is tried again
                self._reason = exc.reason if isinstance(exc, PeerError) else f"{type(exc).__name__}: {exc}"
                failures += 1
            else:
                opened_ns = time.monotonic_ns()
                self._events.link(True, "")
                if not self._stopping.is_set():  # `stop` may have come while the link was being opened
                    while not self._lost.wait(_TURN_S):
                        self.turned_ns = time.monotonic_ns()
                self._link = None
                link.close()
                if self._stopping.is_set():
                    return
                self.reconnected += 1
                told = False
                failures = 0 if time.monotonic_ns() - opened_ns > _LIVED_NS else failures + 1
            if not told:
                told = True
                self._events.link(False, self._reason)
            if failures:
                self._stopping.wait(_BACKOFF.delay_s(failures, random.random()))  # noqa: S311 - jitter, not a secret

    def _open_safe(self) -> PlcLink:
        """A link whose PLC has acknowledged the safe state: what its registers hold may be of another life."""
        link = self._open_link()
        until_ns = time.monotonic_ns() + _SAFE_WRITE_NS
        try:
            with self._held(until_ns) as handshake:
                handshake.connected()
                try:
                    link.write_result(handshake.block, until_ns)
                    if self._triggers:
                        self._opening = self._read_opening(link, until_ns)
                except Exception:
                    handshake.lost()
                    raise
                handshake.written(time.monotonic_ns())
                if self._heartbeat is not None:
                    self._heartbeat.forget()
                self._lost.clear()
                self._link = link
        except Exception:
            link.close()
            raise
        return link

    def _read_opening(self, link: PlcLink, until_ns: int) -> PlcTrigger:
        seen = link.read_trigger(until_ns)
        if not seen.written:
            raise PeerError(self._peer, "has not written its trigger block yet: it must do so when it connects")
        self._counter = seen.counter
        return seen


class _Held:
    """What `with` needs of a lock that is held already; a generator would cost 20 us more behind the engine."""

    def __init__(self, lock: threading.Lock, handshake: Handshake) -> None:
        self._lock = lock
        self._handshake = handshake

    def __enter__(self) -> Handshake:
        return self._handshake

    def __exit__(self, *_raised: object) -> None:
        self._lock.release()
