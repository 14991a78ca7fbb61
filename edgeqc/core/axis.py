"""How far the conveyor has moved: by an encoder's pulses, or by the time for which it ran."""

from __future__ import annotations

from collections import deque
from typing import Final

_KEPT: Final = 256
"""Readings that are remembered: a trigger is placed between those around it, though it is heard of later."""


class Axis:
    """Positions by monotonic time, from readings in order. Pulses with an encoder, nanoseconds of running without."""

    def __init__(self, *, cycle: int = 0, most_step: int = 0, most_gap_ns: int = 0) -> None:
        """No reading yet.

        Args:
            cycle: of the encoder's counter; 0: there is no encoder, the axis is running time.
            most_step: a larger step of the encoder between two readings, either way, is no movement but a counter that
                was set anew; at most half the cycle. 0: half the cycle.
            most_gap_ns: with readings further apart the counter may have wrapped unseen, or the line have stopped and
                started; 0: never.
        """
        self._cycle = cycle
        self._most_step = most_step or cycle // 2
        self._most_gap_ns = most_gap_ns
        self._raw: int | None = None
        self._readings: deque[tuple[int, int]] = deque(maxlen=_KEPT)

    @property
    def position(self) -> int | None:
        """At the last reading; None while nothing is known."""
        return self._readings[-1][1] if self._readings else None

    def encoder(self, raw: int, at_ns: int) -> bool:
        """The encoder's counter at this time. False: the thread to earlier positions is lost, and they mean nothing now."""
        before, self._raw = self._raw, raw
        if before is None or not self._readings:
            self._readings.append((at_ns, 0))
            return True
        last_ns, position = self._readings[-1]
        half = self._cycle // 2
        step = (raw - before + half) % self._cycle - half
        if abs(step) > self._most_step or (self._most_gap_ns and at_ns - last_ns > self._most_gap_ns):
            self._readings.clear()
            # far enough on that no position from before can be mistaken for one from now
            self._readings.append((at_ns, position + self._cycle))
            return False
        self._readings.append((at_ns, position + step))
        return True

    def clock(self, *, running: bool, at_ns: int) -> bool:
        """The line ran, or stood still, since the last reading. False: as with `encoder`."""
        if not self._readings:
            self._readings.append((at_ns, 0))
            return True
        last_ns, position = self._readings[-1]
        if self._most_gap_ns and at_ns - last_ns > self._most_gap_ns:
            self._readings.clear()
            self._readings.append((at_ns, position + (at_ns - last_ns)))
            return False
        self._readings.append((at_ns, position + (at_ns - last_ns if running else 0)))
        return True

    def at(self, at_ns: int) -> int | None:
        """Where the conveyor was at this time; None outside of the readings that are remembered."""
        later: tuple[int, int] | None = None
        for earlier in reversed(self._readings):
            if earlier[0] <= at_ns:
                if later is None:
                    return earlier[1] if earlier[0] == at_ns else None
                return _between(earlier, later, at_ns)
            later = earlier
        return None


def _between(earlier: tuple[int, int], later: tuple[int, int], at_ns: int) -> int:
    span_ns = later[0] - earlier[0]
    return earlier[1] + (later[1] - earlier[1]) * (at_ns - earlier[0]) // max(1, span_ns)
