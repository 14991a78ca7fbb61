"""The cameras that look at a station's parts, as one: frames of all of them in the order in which they came."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edgeqc.cameras.keeper import CameraKeeper
from edgeqc.records import NS_PER_MS, NS_PER_S, Frame
from edgeqc.shm.slots import FrameSlots
from edgeqc.station.lender import Lender

_TICK_NS: Final = 20 * NS_PER_MS
_JOIN_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewpoint:
    """One camera, and the memory that its frames are in."""

    name: str
    keeper: CameraKeeper
    slots: FrameSlots
    lender: Lender


class Viewpoints:
    """In the order of the configuration. A single camera is asked directly; several have a thread each that fetches.

    `next_frame` and `collect` are the line thread's; the rest may be called by any.
    """

    def __init__(self, points: Sequence[Viewpoint]) -> None:
        """Nothing is connected before `start`."""
        self._points = tuple(points)
        self._only = self._points[0].keeper if len(self._points) == 1 else None
        self._came: queue.SimpleQueue[tuple[int, Frame]] = queue.SimpleQueue()
        """As many as there are slots at most: each holds its own until it is released."""
        self._stopping = threading.Event()
        self._fetched_ns = [0] * len(self._points)
        """When each thread last came round."""
        self._threads = [
            threading.Thread(target=self._fetch, args=(index,), name=f"fetch-{point.name}", daemon=True)
            for index, point in enumerate(self._points)
            if self._only is None
        ]

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Viewpoint:
        return self._points[index]

    def __iter__(self) -> Iterator[Viewpoint]:
        return iter(self._points)

    @property
    def down(self) -> int:
        """The first camera without a connection, by its index; -1: all have one."""
        return next((index for index, point in enumerate(self._points) if not point.keeper.up), -1)

    @property
    def zero_copy(self) -> bool:
        """True while no camera's frames were copied by us."""
        return all(point.keeper.zero_copy for point in self._points)

    @property
    def reopened(self) -> int:
        """Connections opened after each camera's first, of all cameras together."""
        return sum(point.keeper.reopened for point in self._points)

    @property
    def turned_ns(self) -> int:
        """When the last of all threads that see to the cameras came round (monotonic)."""
        fetched_ns = self._fetched_ns if self._threads else []
        return min([*(point.keeper.turned_ns for point in self._points), *fetched_ns])

    def start(self) -> None:
        """Begin to connect. Call it before the line thread is pinned to its core: threads inherit that."""
        self._fetched_ns = [time.monotonic_ns()] * len(self._points)
        for point in self._points:
            point.keeper.start()
        for thread in self._threads:
            thread.start()

    def next_frame(self, until_ns: int) -> tuple[int, Frame] | None:
        """Wait for the next frame of any camera: the camera's index and the frame; None at `until_ns`."""
        if self._only is not None:
            frame = self._only.next_frame(until_ns)
            return None if frame is None else (0, frame)
        try:
            return self._came.get(timeout=max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S))
        except queue.Empty:
            return None

    def release(self, camera: int, slot: int) -> None:
        """Hand a frame's slot back."""
        self._points[camera].keeper.release(slot)

    def collect(self) -> None:
        """Take back what the office has returned of each camera's slots, and all where the camera cannot be opened for want of some."""
        for point in self._points:
            point.lender.collect(most=0 if point.keeper.starved else None)

    def stop(self, timeout_s: float) -> None:
        """Close everything, after the line thread has ended; gives up waiting after `timeout_s` a camera."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_JOIN_S)
        for point in self._points:
            point.keeper.stop(timeout_s=timeout_s)

    def _fetch(self, index: int) -> None:
        keeper = self._points[index].keeper
        while not self._stopping.is_set():
            self._fetched_ns[index] = time.monotonic_ns()
            frame = keeper.next_frame(time.monotonic_ns() + _TICK_NS)
            if frame is not None:
                self._came.put((index, frame))
