"""Virtual time and the threads that live in it: generators that say what they wait for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any, Final

Steps = Generator[Any, Any, Any]
"""Yields a virtual time to sleep until, or (signal, time): gets True where the signal came first."""

GONE: Final = -1
"""A thread that has ended waits for nothing."""


class Stalled(RuntimeError):  # noqa: N818 - a state of the line
    """Nothing is left to happen: everything waits for something else."""


class Fiber:
    """One running generator."""

    __slots__ = ("name", "steps", "token")

    def __init__(self, name: str, steps: Steps) -> None:
        """Not yet begun."""
        self.name = name
        self.steps = steps
        self.token = 0
        """Which of its waits it is in: a wake-up for another one comes too late. GONE where it has ended."""


class Signal:
    """Wakes whoever waits for it; stays set for the next one to come where nobody does."""

    __slots__ = ("_kernel", "_waiting", "is_set")

    def __init__(self, kernel: Kernel) -> None:
        """Not set."""
        self.is_set = False
        self._kernel = kernel
        self._waiting: list[tuple[Fiber, int]] = []

    def set(self) -> None:
        """Wake."""
        if not self._waiting:
            self.is_set = True
            return
        waiting = [(fiber, token) for fiber, token in self._waiting if fiber.token == token]
        self._waiting.clear()
        self.is_set = not waiting
        for fiber, token in waiting:
            self._kernel.resume(fiber, token, True)

    def wait(self, fiber: Fiber) -> None:
        """Remember who is to be woken."""
        self._waiting.append((fiber, fiber.token))


class Kernel:
    """Runs what is due, in order of time and then of arrival."""

    def __init__(self) -> None:
        """Time begins at one second, so that 0 can mean never."""
        self.now_ns = 1_000_000_000
        self.events = 0
        self.running = True
        self._heap: list[tuple[int, int, Fiber | None, Any, Any]] = []
        """(when, count, fiber, its token, what it gets), or (when, count, None, act, with what)."""
        self._count = 0

    def at(self, when_ns: int, act: Callable[..., None], *what: Any) -> None:
        """Do this then."""
        self._count += 1
        now_ns = self.now_ns
        heappush(self._heap, (max(now_ns, when_ns), self._count, None, act, what))

    def spawn(self, name: str, steps: Steps) -> Fiber:
        """Begin a thread, now."""
        fiber = Fiber(name, steps)
        self.resume(fiber, 0, None)
        return fiber

    def kill(self, fiber: Fiber) -> None:
        """End a thread wherever it is; it does not get to clean up."""
        fiber.token = GONE

    def resume(self, fiber: Fiber, token: int, value: bool | None) -> None:
        """Let the thread go on, as soon as what is under way is done. None begins it."""
        self._count += 1
        heappush(self._heap, (self.now_ns, self._count, fiber, token, value))

    def stop(self) -> None:
        """The line is at its end."""
        self.running = False

    def run(self, after_each: Callable[[], None], *, end_ns: int) -> None:
        """Until `stop`; Stalled where there is nothing left to do, or the time is up, before that."""
        heap = self._heap
        while self.running:
            if not heap or self.now_ns > end_ns:
                raise Stalled(f"nothing ends this line at {self.now_ns} ns")
            self.now_ns, _, fiber, act, what = heappop(heap)
            if fiber is None:
                act(*what)
            elif fiber.token != act:
                continue  # it was woken before: nothing happens
            else:
                fiber.token = act + 1
                try:
                    self._wait(fiber, fiber.steps.send(what))
                except StopIteration:
                    fiber.token = GONE
            self.events += 1
            after_each()

    def _wait(self, fiber: Fiber, wait: int | tuple[Signal, int]) -> None:
        if isinstance(wait, tuple):
            signal, until_ns = wait
            if signal.is_set:
                signal.is_set = False
                self.resume(fiber, fiber.token, True)
                return
            signal.wait(fiber)
        else:
            until_ns = wait
        self._count += 1
        now_ns = self.now_ns
        heappush(self._heap, (max(now_ns, until_ns), self._count, fiber, fiber.token, False))
