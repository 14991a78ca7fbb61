"""How a process that ended is started again: at once at first, then slower, never given up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeqc.core.backoff import Backoff
from edgeqc.records import NS_PER_S


@dataclass(slots=True, kw_only=True)
class RestartBudget:
    """Three restarts in ten seconds are free (Erlang/OTP's supervisors end at one in five); then they slow down."""

    free: int = 3
    window_ns: int = 10 * NS_PER_S
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.5, most_s=5.0))
    _ends_ns: list[int] = field(default_factory=list)
    _over: int = 0

    def ended(self, now_ns: int, lot: float) -> float:
        """The process ended: seconds to wait before it is started again."""
        self._ends_ns = [at for at in self._ends_ns if now_ns - at < self.window_ns] + [now_ns]
        if len(self._ends_ns) <= self.free:
            self._over = 0
            return 0.0
        self._over += 1
        return self.backoff.delay_s(self._over, lot)

    @property
    def degraded(self) -> bool:
        """Has it ended more often than is free?"""
        return self._over > 0


def hung(beats: Mapping[str, int], limits_ns: Mapping[str, int], *, started_ns: int, now_ns: int) -> str:
    """The first of a process's loops that has not beaten for longer than it may; empty where all have.

    A loop that has not beaten yet has the process's start for its last beat.
    """
    return next((loop for loop, most_ns in limits_ns.items() if now_ns - beats.get(loop, started_ns) > most_ns), "")
