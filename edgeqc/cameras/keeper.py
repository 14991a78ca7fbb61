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

    `next_frame`, `release` and `lost` belong to the line thread, `trigger` to whoever sees the triggers. Connections are opened and closed by
    threads of the keeper's own, each in the bank of slots that the one before it did not use: a bank is used again
    once its connection is closed, the line has released all its slots and no lease on them stands. `starved` asks whoever
    lent them to take them back: an image may be lost, the camera not.
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
        self._current: Camera | None = None
        self._bank = 1
        self._opened_ns = 0
        self._last_frame_ns = 0
        self._held: set[int] = set()
        self._connections: list[Camera] = []
        """The current one and those being closed."""
        self._past: dict[str, int] = {}
        self._zero_copy = True
        """Of the connections that are closed; as _past."""
        self._told: bool | None = None
        """What on_change was told last."""
        self._starving_ns = 0
        """Since when no bank is free; 0: one is."""
        self._delivered = False
        """Has the current connection brought a frame."""
        self._trusted = True
        """Had the one before; if not, a new connection is no news until it does."""
        self._usable = threading.Event()
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._retired: queue.SimpleQueue[tuple[int, Camera]] = queue.SimpleQueue()
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
            return self._zero_copy and all(camera.zero_copy for camera in self._connections)

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
            camera = self._current
            if camera is None:
                left_s = (until_ns - time.monotonic_ns()) / NS_PER_S
                if left_s <= 0 or not self._usable.wait(left_s):
                    return None
                continue
            silent_ns = self._last_frame_ns + self._silence_ns
            try:
                frame = camera.next_frame(min(until_ns, silent_ns) if self._silence_ns else until_ns)
            except PeerError as exc:
                self.lost(exc.reason)
                continue
            if frame is not None:
                self._last_frame_ns = frame.received_ns
                if not self._delivered:
                    self._delivered = True
                    self._tell(up=True, reason="")
                with self._lock:
                    self._held.add(frame.slot)
                return frame
            now_ns = time.monotonic_ns()
            if self._silence_ns and now_ns >= silent_ns:
                self.lost(f"no frame for {self._silence_ns / NS_PER_MS:g} ms")
            if now_ns >= until_ns:
                return None

    def trigger(self) -> None:
        """Send the software trigger. Bounded to 100 ms. PeerError where there is no camera; it is then reopened."""
        camera = self._current
        if camera is None:
            raise PeerError(self._settings.name, self.reason)
        try:
            camera.trigger()
        except PeerError as exc:
            self.lost(exc.reason)
            raise

    def release(self, slot: int) -> None:
        """Hand a slot back: to the connection that owns its bank, or just noted where that one is gone."""
        with self._lock:
            self._held.discard(slot)
            camera = self._current if slot // self._slots.bank == self._bank else None
        if camera is not None:
            camera.release(slot)

    def lost(self, reason: str) -> None:
        """Give the connection up (the line's own silence rule calls this): another one is opened at once."""
        with self._lock:
            camera, self._current = self._current, None
            if camera is None:
                return
            self._usable.clear()
            self.reason = reason
            self._trusted, self._delivered = self._delivered, False
            self._retired.put((self._bank, camera))
        self._wanted.set()
        self._tell(up=False, reason=reason)

    def counters(self) -> dict[str, int]:
        """What the library counted over all connections."""
        with self._lock:
            total = dict(self._past)
            for camera in self._connections:
                _add(total, camera.counters())
        return total

    def stop(self, timeout_s: float) -> None:
        """Close everything, after the line thread has ended; gives up waiting after `timeout_s`. Never raises."""
        until_ns = time.monotonic_ns() + int(timeout_s * NS_PER_S)
        self._stopping.set()
        with self._lock:
            camera, self._current = self._current, None
            if camera is not None:
                self._retired.put((self._bank, camera))
        self._usable.clear()
        self.reason = "stopped"
        self._wanted.set()
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))
        for thread in tuple(self._closers.values()):  # the keeper's thread has started the last of them
            thread.join(max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))

    def _run(self) -> None:
        delay_s = 0.0
        while True:
            if not self._wanted.wait(_TURN_S):
                self.turned_ns = time.monotonic_ns()
                continue
            if self._close_retired() and time.monotonic_ns() - self._opened_ns > NS_PER_S:
                delay_s = 0.0  # that connection lived: the first try comes at once
            if self._stopping.is_set():
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
        with self._lock:
            self._connections.append(camera)
            if self._stopping.is_set():
                self._retired.put((bank, camera))
                return
            self.reopened += int(self._opened_ns > 0)
            self._opened_ns = self._last_frame_ns = time.monotonic_ns()
            self._bank, self._current, self.reason = bank, camera, ""
            self._wanted.clear()
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
            closer = self._closers.get(bank)
            if closer is not None and closer.is_alive():
                continue
            slots = range(bank * self._slots.bank, (bank + 1) * self._slots.bank)
            with self._lock:
                held = not self._held.isdisjoint(slots)
            if not held and all(self._slots.returned(slot) for slot in slots):
                return bank
        return None

    def _close_retired(self) -> bool:
        """Start closing what was given up; was there anything."""
        some = False
        while not self._retired.empty():
            bank, camera = self._retired.get()
            closer = threading.Thread(target=self._close, args=(camera,), name="camera-closer", daemon=True)
            self._closers[bank] = closer
            closer.start()
            some = True
        return some

    def _close(self, camera: Camera) -> None:
        camera.close()
        with self._lock:
            self._connections.remove(camera)
            self._zero_copy = self._zero_copy and camera.zero_copy
            _add(self._past, camera.counters())


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
