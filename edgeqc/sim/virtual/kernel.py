"""Virtual time and the threads that live in it: generators that say what they wait for."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from typing import Any

Wait = "int | tuple[Signal, int]"
Steps = Generator[Any, bool, Any]
"""Yields a virtual time to sleep until, or (signal, time): gets True where the signal came first."""


class Stalled(RuntimeError):  # noqa: N818 - a state of the line
    """Nothing is left to happen: everything waits for something else."""


class Fiber:
    """One running generator."""

    __slots__ = ("alive", "name", "steps", "token")

    def __init__(self, name: str, steps: Steps) -> None:
        """Not yet begun."""
        self.name = name
        self.steps = steps
        self.token = 0
        self.alive = True


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
        waiting = [(fiber, token) for fiber, token in self._waiting if fiber.alive and fiber.token == token]
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
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when_ns: int, act: Callable[..., None], *what: Any) -> None:
        """Do this then."""
        self._count = count = self._count + 1
        heapq.heappush(self._heap, (max(self.now_ns, when_ns), count, act, what))

    def spawn(self, name: str, steps: Steps) -> Fiber:
        """Begin a thread, now."""
        fiber = Fiber(name, steps)
        self.resume(fiber, 0, False)
        return fiber

    def kill(self, fiber: Fiber) -> None:
        """End a thread wherever it is; it does not get to clean up."""
        fiber.alive = False

    def resume(self, fiber: Fiber, token: int, value: bool) -> None:
        """Let the thread go on, as soon as what is under way is done."""
        self.at(self.now_ns, self._step, fiber, token, value)

    def run(self, until: Callable[[], bool], after_each: Callable[[], None], *, end_ns: int) -> None:
        """Until the condition holds; Stalled where there is nothing left to do, or the time is up, before that."""
        heap, pop = self._heap, heapq.heappop
        while not until():
            if not heap or self.now_ns > end_ns:
                raise Stalled(f"nothing ends this line at {self.now_ns} ns")
            self.now_ns, _, act, what = pop(heap)
            self.events += 1
            act(*what)
            after_each()

    def _step(self, fiber: Fiber, token: int, value: bool) -> None:
        if not fiber.alive or fiber.token != token:
            return
        fiber.token += 1
        try:
            wait = next(fiber.steps) if fiber.token == 1 else fiber.steps.send(value)
        except StopIteration:
            fiber.alive = False
            return
        token = fiber.token
        if isinstance(wait, int):
            self.at(wait, self._step, fiber, token, False)
            return
        signal, until_ns = wait
        if signal.is_set:
            signal.is_set = False
            self.resume(fiber, token, True)
            return
        signal.wait(fiber)
        self.at(until_ns, self._step, fiber, token, False)
