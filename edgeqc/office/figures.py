"""Figures of the last parts: what `health` says of the line."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from edgeqc.office.payloads import Payload
from edgeqc.office.transaction import Closed
from edgeqc.records import JUDGED, NS_PER_S

_WINDOW: Final = 1000
"""Parts that the quantiles speak of."""
_NEWS_NS: Final = 5 * NS_PER_S


class Figures:
    """Fed by the archive's thread, read by the office's loop."""

    def __init__(self) -> None:
        self.parts = 0
        self.fail_safe = 0
        self.missed = 0
        """Verdicts that reached the PLC after their deadline or not at all."""
        self._lock = threading.Lock()
        self._totals_ms: deque[float] = deque(maxlen=_WINDOW)
        self._last: Payload | None = None

    def add(self, closed: list[Closed]) -> None:
        """Count parts whose story is complete."""
        news_ns = time.monotonic_ns() - _NEWS_NS
        with self._lock:
            for part in closed:
                self.parts += 1
                cause = part.delivery.cause if part.delivery is not None else part.record.cause
                self.fail_safe += cause not in JUDGED
                self.missed += part.payload["deadline_met"] is False
                total_ms = part.payload["latency_ms"]["total"]
                if total_ms is not None:
                    self._totals_ms.append(total_ms)
                if part.record.ledger.trigger_ns > news_ns:
                    self._last = part.payload

    def latency_ms(self) -> dict[str, float | None]:
        """Trigger to PLC acknowledgement: median, 99 % and 99.9 %; None before the first part."""
        with self._lock:
            totals = sorted(self._totals_ms)
        return {
            name: totals[min(len(totals) - 1, int(len(totals) * share))] if totals else None
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
        }

    def take_last(self) -> Payload | None:
        """The newest verdict that was news when it was archived, once."""
        with self._lock:
            last, self._last = self._last, None
        return last
