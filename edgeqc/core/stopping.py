"""When the line should stop: verdicts that say nothing of the parts, or too many rejects."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from edgeqc.records import JUDGED, Cause, Verdict


class StopReason(StrEnum):
    """Why the PLC is asked to stop the line."""

    FAIL_SAFE = "fail_safe"
    """So many late or fail-safe verdicts in a row: nothing is inspected any more."""
    REJECTS = "rejects"
    """More of the last parts were rejected than is likely: the process, the camera or the light has changed."""
    GATE = "gate"
    """A part that had to be ejected went through, or may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLimits:
    """0 switches a rule off."""

    fail_safe_in_a_row: int = 3
    reject_ratio: float = 0.0
    """Rejected of the last `reject_parts` parts, fail-safe verdicts left out."""
    reject_parts: int = 50


class StopRule:
    """Watches one lane's verdicts in order.

    A request ends by itself when as many parts in a row were judged again, or the rejects are under their bound: the PLC
    latches it, and who starts the line again has looked. One of the gate's stands until `reset`.
    """

    def __init__(self, limits: StopLimits) -> None:
        """Nothing is asked for."""
        self.reason: StopReason | None = None
        self.in_a_row = 0
        self._judged_in_a_row = 0
        self._limits = limits
        self._judged: deque[bool] = deque(maxlen=max(1, limits.reject_parts))

    @property
    def ratio(self) -> float:
        """Rejected of the last parts that were judged."""
        return sum(self._judged) / len(self._judged) if self._judged else 0.0

    def verdict(self, verdict: Verdict, cause: Cause, *, late: bool = False) -> bool:
        """A part's verdict as it was announced; True where it makes the request, or ends it."""
        blind = late or cause not in JUDGED
        self.in_a_row = self.in_a_row + 1 if blind else 0
        self._judged_in_a_row = 0 if blind else self._judged_in_a_row + 1
        if not blind:
            self._judged.append(verdict is Verdict.REJECT)
        limits = self._limits
        if self._over():
            self.reset()
            return True
        if 0 < limits.fail_safe_in_a_row <= self.in_a_row:
            return self.ask(StopReason.FAIL_SAFE)
        full = len(self._judged) == self._judged.maxlen
        if limits.reject_ratio > 0 and full and self.ratio > limits.reject_ratio:
            return self.ask(StopReason.REJECTS)
        return False

    def _over(self) -> bool:
        """Is what was asked for not to be asked for any more?"""
        if self.reason is StopReason.FAIL_SAFE:
            return self._judged_in_a_row >= self._limits.fail_safe_in_a_row
        return self.reason is StopReason.REJECTS and self.ratio <= self._limits.reject_ratio

    def ask(self, reason: StopReason) -> bool:
        """Ask for the stop; False where it is asked for already. The gate's reason takes the place of one that ends by itself."""
        if self.reason is not None and (self.reason is StopReason.GATE or reason is not StopReason.GATE):
            return False
        self.reason = reason
        return True

    def reset(self) -> None:
        """Somebody has looked: begin anew."""
        self.reason = None
        self.in_a_row = 0
        self._judged.clear()
