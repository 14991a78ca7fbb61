"""The rule for a line stop, as several threads use it: whoever announces verdicts, and the gate."""

from __future__ import annotations

import threading

from edgeqc.core.stopping import StopLimits, StopReason, StopRule
from edgeqc.records import Cause, Verdict


class LineStop(StopRule):
    """One call at a time: what the gate asks for must not vanish in a request that ends at that moment."""

    def __init__(self, limits: StopLimits) -> None:
        """As `StopRule`."""
        super().__init__(limits)
        self._lock = threading.RLock()

    def verdict(self, verdict: Verdict, cause: Cause, *, late: bool = False) -> bool:
        """As `StopRule.verdict`."""
        with self._lock:
            return super().verdict(verdict, cause, late=late)

    def ask(self, reason: StopReason) -> bool:
        """As `StopRule.ask`."""
        with self._lock:
            return super().ask(reason)

    def reset(self) -> None:
        """As `StopRule.reset`."""
        with self._lock:
            super().reset()
