"""Which parts' images are worth keeping."""

from __future__ import annotations

from dataclasses import dataclass

from edgeqc.records import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRule:
    """All rejects, every n-th pass, or everything (the archive then keeps the newest N)."""

    rejects: bool
    every_nth_pass: int
    newest: int

    def keeps(self, verdict: Verdict, passed_so_far: int) -> bool:
        """Is this part's image lent to the archive? `passed_so_far` counts this one."""
        if self.newest > 0:
            return True
        if verdict is Verdict.REJECT:
            return self.rejects
        return self.every_nth_pass > 0 and passed_so_far % self.every_nth_pass == 0
