"""How long a part's verdict may take, and what of it is kept back for the fail-safe one."""

from __future__ import annotations

from dataclasses import dataclass

from edgeqc.records import NS_PER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Trigger to reject output, in nanoseconds."""

    budget_ns: int
    plc_write_ns: int
    """Kept back: the fail-safe verdict must still reach the PLC by the deadline."""
    seen_late_ns: int = 0
    """The trigger may have risen this long before it was seen (one poll of the PLC)."""

    @classmethod
    def of_ms(cls, *, budget_ms: float, plc_write_ms: float, seen_late_ms: float = 0) -> Budget:
        """From the configuration's milliseconds."""
        return cls(
            budget_ns=int(budget_ms * NS_PER_MS),
            plc_write_ns=int(plc_write_ms * NS_PER_MS),
            seen_late_ns=int(seen_late_ms * NS_PER_MS),
        )

    def deadline_ns(self, trigger_ns: int) -> int:
        """The verdict must be acknowledged by the PLC at this moment."""
        return trigger_ns - self.seen_late_ns + self.budget_ns

    def fail_safe_at_ns(self, trigger_ns: int) -> int:
        """If nothing has come by this moment, the fail-safe verdict goes out. No PASS is started after it."""
        return self.deadline_ns(trigger_ns) - self.plc_write_ns
