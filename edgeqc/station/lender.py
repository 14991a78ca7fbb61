"""Lends frame slots to the archive and takes them back in time: the line never waits for the office."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from edgeqc.shm.slots import FrameSlots


class Lender:
    """Slots on loan, oldest first. Any thread.

    At most `most` slots are out at a time, so that the camera never runs out of memory to write to.
    """

    def __init__(self, slots: FrameSlots, *, most: int, take_back: Callable[[int], None]) -> None:
        """`take_back(slot)` hands a slot that has come home to the camera."""
        self.given_up = 0
        """Images the office was too slow for."""
        self._slots = slots
        self._most = most
        self._take_back = take_back
        self._out: deque[int] = deque()
        self._collecting = threading.Lock()

    def lend(self, slot: int) -> int:
        """Lend the slot's image; returns the lease number for the journal."""
        lease = self._slots.lend(slot)
        self._out.append(slot)
        return lease

    def collect(self, *, most: int | None = None) -> None:
        """Take back what the office has returned, and what is over `most` whether returned or not; None: as at the start."""
        most = self._most if most is None else most
        with self._collecting:
            for _ in range(len(self._out)):
                slot = self._out[0]
                if not self._slots.returned(slot):
                    if len(self._out) <= most:
                        return
                    self._slots.revoke(slot)
                    self.given_up += 1
                self._out.popleft()
                self._take_back(slot)
