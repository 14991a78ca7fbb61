"""When the next part is due, as far as the last ones tell: what idle work fits before it."""

from __future__ import annotations

from typing import Final

_REMEMBERED: Final = 8
"""Intervals that count: long enough to see the jitter, short enough to follow a changed speed within a second or two."""


class Cadence:
    """The line's rhythm: the shortest of the last few intervals is what is relied on."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._last_ns = 0
        self._intervals_ns: list[int] = []

    def part(self, at_ns: int) -> None:
        """A part came."""
        if self._last_ns:
            self._intervals_ns.append(at_ns - self._last_ns)
            del self._intervals_ns[:-_REMEMBERED]
        self._last_ns = at_ns

    def leaves_room(self, now_ns: int, work_ns: int) -> bool:
        """Can `work_ns` of idle work be done now and end before the next part is due?

        True when the line stands still (three intervals without a part): then there is no rhythm to disturb.
        """
        if not self._intervals_ns:
            return True
        shortest = min(self._intervals_ns)
        since = now_ns - self._last_ns
        return since + work_ns < shortest or since > 3 * max(self._intervals_ns)

    def due_ns(self) -> int:
        """When the next part is due at the earliest, 0 where nothing is known."""
        return self._last_ns + min(self._intervals_ns) if self._intervals_ns else 0
