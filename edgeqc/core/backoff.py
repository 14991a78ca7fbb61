"""How long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Doubling from `first_s` to `most_s`, spread by jitter so that peers do not come back in step."""

    first_s: float
    most_s: float
    jitter_ratio: float = 0.2

    def delay_s(self, failures: int, lot: float) -> float:
        """Seconds to wait after so many failures in a row (from 1); `lot` is drawn by the caller from 0..1."""
        plain = min(self.most_s, self.first_s * 2.0 ** min(max(failures - 1, 0), 30))
        return plain * (1 + self.jitter_ratio * (2 * lot - 1))
