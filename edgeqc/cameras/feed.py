"""Frames that a thread of ours fetches into the slots: what OpenCV sources and recorded images have in common."""

from __future__ import annotations

import queue
import threading
import time
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_S, Frame, FrameStatus
from edgeqc.shm.slots import FrameSlots

FRAME_IDS: Final = 65_535
"""Counted like GigE Vision does: 1..65535, no 0."""
CLOSE_S: Final = 8.0
"""What edgeqc.ports.Camera.close promises; a source that hangs longer keeps its (daemon) thread."""


class Source(Protocol):
    """Where the pictures come from. Used by the feed's thread only."""

    live: bool
    """True: pictures come when they come, and are lost while no slot is free."""

    in_place: bool
    """True while whoever decodes the pictures wrote each straight into its slot."""

    def advance(self) -> None:
        """Wait for the next picture; the one before is forgotten. PeerError at the end or when it is lost."""

    def read(self, pixels: NDArray[np.uint8]) -> FrameStatus:
        """Write the picture of the last `advance` into `pixels`, in place. Waits for nobody."""

    def close(self) -> None:
        """Free the source."""


class Feed:
    """A camera (edgeqc.ports.Camera) made of a source, a thread and a bank of slots.

    Recorded pictures are fetched ahead and handed out at their time, so that decoding costs the line nothing.
    """

    def __init__(
        self,
        peer: str,
        source: Source,
        slots: FrameSlots,
        bank: int,
        *,
        rate_hz: float | None,
        software_trigger: bool,
    ) -> None:
        """Start fetching. `rate_hz` paces recorded pictures; None = as they come."""
        self.zero_copy = source.in_place
        self._peer, self._source, self._slots = peer, source, slots
        self._period_ns = round(NS_PER_S / rate_hz) if rate_hz else 0
        self._software_trigger = software_trigger
        self._due_ns = time.monotonic_ns()
        self._frame_id = 0
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[int, FrameStatus, int, int] | str] = queue.SimpleQueue()
        """Slot, status, number, and when a live picture came; 0 of a recorded one, which comes when it is due."""
        self._triggers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._out: set[int] = set()
        self._lost = ""
        """Why no more pictures come."""
        self._counted = {"frames": 0, "skipped": 0}
        self._stop = threading.Event()
        for slot in range(bank * slots.bank, (bank + 1) * slots.bank):
            self._free.put(slot)
        self._thread = threading.Thread(target=self._run, name=f"feed-{peer}", daemon=True)
        self._thread.start()

    def trigger(self) -> None:
        """Ask for one frame."""
        if not self._software_trigger:
            raise PeerError(self._peer, "was not opened for software triggers")
        if self._lost:
            raise PeerError(self._peer, self._lost)
        self._triggers.put(True)

    def next_frame(self, until_ns: int) -> Frame | None:
        """Wait for the next frame that is due or asked for."""
        if self._lost:
            raise PeerError(self._peer, self._lost)
        if self._software_trigger and not self._source.live:
            if not self._asked(until_ns):
                return None
        elif self._period_ns:
            if until_ns < self._due_ns:
                _sleep_until(until_ns)
                return None
            _sleep_until(self._due_ns)
        try:
            picture = self._ready.get(timeout=max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))
        except queue.Empty:
            if self._software_trigger and not self._source.live:
                self._triggers.put(True)  # it is still owed
            return None
        if isinstance(picture, str):
            self._lost = picture
            raise PeerError(self._peer, picture)
        slot, status, frame_id, came_ns = picture
        self.zero_copy = self._source.in_place
        received_ns = came_ns or time.monotonic_ns()
        self._due_ns = max(self._due_ns + self._period_ns, received_ns - self._period_ns)
        self._out.add(slot)
        return Frame(
            slot=slot,
            pixels=self._slots.pixels(slot),
            frame_id=frame_id,
            status=status,
            received_ns=received_ns,
            transfer_ns=0,
        )

    def release(self, slot: int) -> None:
        """Let the thread fill the slot again."""
        if slot in self._out:
            self._out.discard(slot)
            self._free.put(slot)

    def counters(self) -> dict[str, int]:
        """Frames fetched, and live ones skipped because no slot was free."""
        return dict(self._counted)

    def close(self) -> None:
        """Stop the thread; it frees the source."""
        self._stop.set()
        self._free.put(-1)
        self._thread.join(CLOSE_S)

    def _next_id(self) -> int:
        """The next picture's number. By the feed's thread."""
        self._frame_id = self._frame_id % FRAME_IDS + 1
        return self._frame_id

    def _asked(self, until_ns: int) -> bool:
        try:
            return self._triggers.get(timeout=max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))
        except queue.Empty:
            return False

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._source.live and (self._free.empty() or (self._software_trigger and self._triggers.empty())):
                    self._source.advance()
                    self._counted["skipped"] += 1
                    if not self._software_trigger:
                        self._next_id()  # a part was there: the gap in the numbers tells
                    continue
                slot = self._free.get()
                if slot < 0:
                    return
                if self._source.live and self._software_trigger:
                    self._triggers.get()
                self._source.advance()
                came_ns = time.monotonic_ns()
                if self._stop.is_set():
                    return  # it hung, and close has given up: the slot is another connection's by now
                status = self._source.read(self._slots.pixels(slot))
                self._counted["frames"] += 1
                self._ready.put((slot, status, self._next_id(), came_ns if self._source.live else 0))
        except PeerError as exc:
            self._ready.put(exc.reason)  # not the exception: its traceback holds views on the slots
        except Exception as exc:  # noqa: BLE001 - the thread's root: the line must hear of it
            self._ready.put(f"{type(exc).__name__}: {exc}")
        finally:
            self._source.close()


def _sleep_until(at_ns: int) -> None:
    left_ns = at_ns - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / NS_PER_S)  # a recording has its pace
