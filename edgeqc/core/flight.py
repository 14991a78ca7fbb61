"""The parts of one lane that are under way: each is settled once, and they are told to the PLC in the order they came."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Flying(Protocol):
    """What a part must have to fly."""

    fail_safe_at_ns: int
    """If it is not settled by then, its fail-safe verdict is due."""
    settled: bool
    """Has it a verdict?"""


PartT = TypeVar("PartT", bound=Flying)


class Flight(Generic[PartT]):
    """Not thread-safe: the owner's lock is held around each call."""

    def __init__(self, *, depth: int) -> None:
        """`depth`: so many parts may be under way at once."""
        self.parts: deque[PartT] = deque()
        """Oldest first; for looking only."""
        self._depth = depth

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def full(self) -> bool:
        """Are as many parts under way as may be? One more is settled at once, and judged no more."""
        return len(self.parts) >= self._depth

    def open(self, part: PartT) -> None:
        """A part is under way; parts come in order."""
        self.parts.append(part)

    def settle(self, part: PartT) -> bool:
        """This part has a verdict now; False if it has one already: the first one counts."""
        if part.settled:
            return False
        part.settled = True
        return True

    def due_ns(self) -> int | None:
        """When the next fail-safe verdict is due; None while none is."""
        return min((part.fail_safe_at_ns for part in self.parts if not part.settled), default=None)

    def overdue(self, now_ns: int) -> list[PartT]:
        """Parts, oldest first, whose fail-safe verdict is due."""
        return [part for part in self.parts if not part.settled and part.fail_safe_at_ns <= now_ns]

    @property
    def landable(self) -> bool:
        """Is there a part that is to be announced now?"""
        return bool(self.parts) and self.parts[0].settled

    def land(self) -> PartT | None:
        """The oldest part, if it is settled: it is announced now and is under way no more.

        A verdict that was made early waits for those of the parts before it. Their deadlines are earlier, so the wait
        is never too long, and the PLC never hears of parts out of order.
        """
        if self.parts and self.parts[0].settled:
            return self.parts.popleft()
        return None
