"""Keeps a camera connected: owns the connection, notices that it is lost, opens the next one behind the line's back."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from edgeqc.cameras import open_camera
from edgeqc.errors import EdgeqcError, PeerError
from edgeqc.ports import Camera
from edgeqc.records import NS_PER_MS, NS_PER_S, Frame
from edgeqc.settings import CameraSettings
from edgeqc.shm.slots import FrameSlots

FIRST_DELAY_S: Final = 0.1
LAST_DELAY_S: Final = 0.5
"""Caps the back-off: with an open that fails in 0.1 s a camera that is back is used within a second."""
STARVED_NS: Final = NS_PER_S // 2
"""So long the office may take to return a slot while the camera waits for one."""
BANK_POLL_S: Final = 0.02
"""How often it is looked whether the other bank's slots are back."""
_TURN_S: Final = 1.0
"""How often the keeper's thread shows that it lives while there is nothing to do."""


def _ignored(up: bool, reason: str) -> None:
    """Nobody listens."""


class CameraKeeper:
    """The line thread's camera: the same calls as edgeqc.ports.Camera, over as many connections as it takes.

    `next_frame` belongs to whoever fetches this camera's frames, `trigger` to whoever sees the triggers, `release` and
    `lost` to any. Connections are opened and closed by threads of the keeper's own, each in the bank of slots that the one
    before it did not use: a bank is used again once its connection is closed, the line has released all its slots and no
    lease on them stands. `starved` asks whoever lent them to take them back: an image may be lost, the camera not. A
    connection is closed when the calls on it have ended: one that is inside a library is not freed under it, and one that
    never ends costs its bank, as one that never closes does.
    """

    def __init__(
        self,
        settings: CameraSettings,
        slots: FrameSlots,
        *,
        software_trigger: bool,
        on_change: Callable[[bool, str], None] = _ignored,
    ) -> None:
        """Connect nothing yet.

        `on_change(up, reason)` is told once per change, by the line thread or the keeper's; it must not block. A camera
        that connects again and again and never delivers stays down for it.
        """
        self._settings, self._slots, self._software_trigger = settings, slots, software_trigger
        self._on_change = on_change
        self._silence_ns = 0 if software_trigger else int((settings.silence_ms or 0) * NS_PER_MS)
        self.reason = "not started"
        """Why there is no connection; empty while there is one."""
        self.reopened = 0
        """Connections opened after the first."""
        self.turned_ns = 0
        """When the keeper's thread last came round (monotonic): a library that hangs in opening, or in closing both banks, stops it."""
        self._lock = threading.Lock()
        self._current: _Connection | None = None
        self._bank = 1
        """Of the connection that was opened last."""
        self._opened_ns = 0
        self._held: set[int] = set()
        self._connections: list[_Connection] = []
        """The current one and those that are not closed yet."""
        self._past: dict[str, int] = {}
        self._zero_copy = True
        """Of the connections that are closed; as _past."""
        self._told: bool | None = None
        """What on_change was told last."""
        self._starving_ns = 0
        """Since when no bank is free; 0: one is."""
        self._trusted = True
        """Had the connection before brought a frame; if not, a new one is no news until it does."""
        self._given_up = False
        """Was the connection lost since the keeper's thread last looked."""
        self._usable = threading.Event()
        self._wanted = threading.Event()
        """There may be a connection to open or to close; cleared by the keeper's thread alone."""
        self._stopping = threading.Event()
        self._retired: queue.SimpleQueue[_Connection] = queue.SimpleQueue()
        """Given up, with no call on them any more: to be closed."""
        self._closers: dict[int, threading.Thread] = {}
        self._thread = threading.Thread(target=self._run, name=f"keeper-{settings.name}", daemon=True)

    @property
    def up(self) -> bool:
        """Is there a connection; whether it delivers is another matter."""
        return self._current is not None

    @property
    def zero_copy(self) -> bool:
        """True while every frame of every connection was in the slot that the camera's library wrote."""
        with self._lock:
            return self._zero_copy and all(one.camera.zero_copy for one in self._connections)

    @property
    def starved(self) -> bool:
        """Is there no connection because slots are out on loan?"""
        return self._starving_ns > 0 and time.monotonic_ns() - self._starving_ns > STARVED_NS

    def start(self) -> None:
        """Begin to connect. Call it before the line thread turns real-time: threads inherit that."""
        self.reason = "connecting"
        self.turned_ns = time.monotonic_ns()
        self._wanted.set()
        self._thread.start()

    def next_frame(self, until_ns: int) -> Frame | None:
        """Wait for the next frame, whichever connection it comes by; None at `until_ns`. Never raises PeerError."""
        while True:
            with self._lock:
                if (connection := self._current) is not None:
                    connection.users += 1
            if connection is None:
                left_s = (until_ns - time.monotonic_ns()) / NS_PER_S
                if left_s <= 0 or not self._usable.wait(left_s):
                    return None
                continue
            silent_ns = connection.last_frame_ns + self._silence_ns
            frame = None
            try:
                frame = connection.camera.next_frame(min(until_ns, silent_ns) if self._silence_ns else until_ns)
            except PeerError as exc:
                self._give_up(connection, exc.reason)
                continue
            finally:
                self._leave(connection, frame)
            if frame is not None:
                connection.last_frame_ns = frame.received_ns
                if not connection.delivered:
                    self._tell_delivery(connection)
                return frame
            now_ns = time.monotonic_ns()
            if self._silence_ns and now_ns >= silent_ns:
                self._give_up(connection, f"no frame for {self._silence_ns / NS_PER_MS:g} ms")
            if now_ns >= until_ns:
                return None

    def trigger(self) -> None:
        """Send the software trigger. Bounded to 100 ms. PeerError where there is no camera; it is then reopened."""
        with self._lock:
            if (connection := self._current) is not None:
                connection.users += 1
        if connection is None:
            raise PeerError(self._settings.name, self.reason)
        try:
            connection.camera.trigger()
        except PeerError as exc:
            self._give_up(connection, exc.reason)
            raise
        finally:
            self._leave(connection)

    def release(self, slot: int) -> None:
        """Hand a slot back: to the connection that owns its bank, or just noted where that one is gone."""
        with self._lock:
            self._held.discard(slot)
            connection = self._current
            if connection is None or slot // self._slots.bank != connection.bank:
                return
            connection.users += 1
        try:
            connection.camera.release(slot)
        finally:
            self._leave(connection)

    def lost(self, reason: str) -> None:
        """Give the connection up (the line's own silence rule calls this): another one is opened at once."""
        connection = self._current
        if connection is not None:
            self._give_up(connection, reason)

    def counters(self) -> dict[str, int]:
        """What the library counted over all connections."""
        with self._lock:
            total, connections = dict(self._past), tuple(self._connections)
        for one in connections:  # not under the lock: the line thread takes it for each frame
            _add(total, one.camera.counters())
        return total

    def stop(self, timeout_s: float) -> None:
        """Close everything, after the line thread has ended; gives up waiting after `timeout_s`. Never raises."""
        until_ns = time.monotonic_ns() + int(timeout_s * NS_PER_S)
        self._stopping.set()
        with self._lock:
            connection, self._current = self._current, None
            if connection is not None:
                self._retire(connection)
        self._usable.clear()
        self.reason = "stopped"
        self._wanted.set()
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))
        for thread in tuple(self._closers.values()):  # the keeper's thread has started the last of them
            thread.join(max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))

    def _leave(self, connection: _Connection, frame: Frame | None = None) -> None:
        """End a call on it; the last one on a connection that was given up hands it to whoever closes it."""
        with self._lock:
            if frame is not None:
                self._held.add(frame.slot)
            connection.users -= 1
            if connection.retired and not connection.users:
                self._retired.put(connection)
                self._wanted.set()

    def _tell_delivery(self, connection: _Connection) -> None:
        connection.delivered = True
        if connection is self._current:
            self._tell(up=True, reason="")

    def _give_up(self, connection: _Connection, reason: str) -> None:
        """Have the next one opened, if it is still this one that is used."""
        with self._lock:
            if connection is not self._current:
                return
            self._current = None
            self._usable.clear()
            self.reason = reason
            self._trusted = connection.delivered
            self._given_up = True
            self._retire(connection)
        self._wanted.set()
        self._tell(up=False, reason=reason)

    def _retire(self, connection: _Connection) -> None:
        """Have it closed, at once or by the last call on it. Under the lock, once."""
        connection.retired = True
        if not connection.users:
            self._retired.put(connection)
            self._wanted.set()

    def _run(self) -> None:
        delay_s = 0.0
        while True:
            if not self._wanted.wait(_TURN_S):
                self.turned_ns = time.monotonic_ns()
                continue
            self._close_retired()
            with self._lock:
                given_up, self._given_up = self._given_up, False
                stopping, used = self._stopping.is_set(), any(one.users for one in self._connections)
                if self._current is not None or (stopping and used):
                    if self._retired.empty():
                        self._wanted.clear()  # whoever gives a connection up, or is the last to leave one, sets it
                    continue
            if given_up and time.monotonic_ns() - self._opened_ns > NS_PER_S:
                delay_s = 0.0  # that connection lived: the first try comes at once
            if stopping:
                self._close_retired()  # the last one left meanwhile
                return
            bank = self._free_bank()
            self._starving_ns = 0 if bank is not None else self._starving_ns or time.monotonic_ns()
            if bank is None:
                self._stopping.wait(BANK_POLL_S)
                continue  # no turn: who closes a connection for ever holds its bank, and only a fresh process has others
            self._stopping.wait(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay_s = min(max(2 * delay_s, FIRST_DELAY_S), LAST_DELAY_S)
            self._open(bank)
            self.turned_ns = time.monotonic_ns()

    def _open(self, bank: int) -> None:
        try:
            camera = open_camera(self._settings, self._slots, bank, software_trigger=self._software_trigger)
        except EdgeqcError as exc:
            self._not_opened(exc.reason if isinstance(exc, PeerError) else str(exc))
            return
        except Exception as exc:  # noqa: BLE001 - the thread's root: a camera that confuses us is tried again
            self._not_opened(f"{type(exc).__name__}: {exc}")
            return
        now_ns = time.monotonic_ns()
        connection = _Connection(camera, bank, now_ns)
        with self._lock:
            self._connections.append(connection)
            if self._stopping.is_set():
                self._retire(connection)
                return
            self.reopened += int(self._opened_ns > 0)
            self._opened_ns = now_ns
            self._bank, self._current, self.reason = bank, connection, ""
            self._usable.set()
        if self._trusted:
            self._tell(up=True, reason="")

    def _not_opened(self, reason: str) -> None:
        if self._stopping.is_set():
            return
        self.reason = reason
        self._tell(up=False, reason=reason)

    def _tell(self, *, up: bool, reason: str) -> None:
        with self._lock:
            known, self._told = self._told, up
        if up != known:
            self._on_change(up, reason)

    def _free_bank(self) -> int | None:
        for bank in (1 - self._bank, self._bank):
            slots = range(bank * self._slots.bank, (bank + 1) * self._slots.bank)
            with self._lock:
                taken = any(one.bank == bank for one in self._connections) or not self._held.isdisjoint(slots)
            if not taken and all(self._slots.returned(slot) for slot in slots):
                return bank
        return None

    def _close_retired(self) -> None:
        """Start closing what was given up and is not used any more."""
        while not self._retired.empty():
            connection = self._retired.get()
            closer = threading.Thread(target=self._close, args=(connection,), name="camera-closer", daemon=True)
            self._closers[connection.bank] = closer
            closer.start()

    def _close(self, connection: _Connection) -> None:
        camera = connection.camera
        try:
            camera.close()
        finally:
            with self._lock:
                self._connections.remove(connection)
                self._zero_copy = self._zero_copy and camera.zero_copy
                _add(self._past, camera.counters())


class _Connection:
    """One camera, from its opening to its closing."""

    __slots__ = ("bank", "camera", "delivered", "last_frame_ns", "retired", "users")

    def __init__(self, camera: Camera, bank: int, opened_ns: int) -> None:
        self.camera, self.bank = camera, bank
        self.users = 0
        """Calls on it that are under way. Under the keeper's lock, as `retired`."""
        self.retired = False
        """No new calls; closed when `users` is 0."""
        self.last_frame_ns = opened_ns
        self.delivered = False
        """Has it brought a frame."""


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
