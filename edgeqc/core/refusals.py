"""Which refusals are told: who scans a port or guesses a password must fill neither log nor journal. Pure."""

from __future__ import annotations

from typing import Final

from edgeqc.records import NS_PER_S

AGAIN_NS: Final = 60 * NS_PER_S
"""The same refusal is told again after this long."""
KINDS: Final = 10
"""So many different ones are told within AGAIN_NS: names and addresses may be new ones each time. 14,400 a day at most."""


class Refusals:
    """Of one kind of event. Remembers KINDS of them and no more."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], int] = {}
        self._untold = 0

    def take(self, what: tuple[str, ...], now_ns: int) -> int | None:
        """None: keep it back. Else tell it, and that so many were kept back since the last one that was told."""
        self._told = {each: at_ns for each, at_ns in self._told.items() if now_ns - at_ns < AGAIN_NS}
        if what in self._told or len(self._told) >= KINDS:
            self._untold += 1
            return None
        self._told[what] = now_ns
        untold, self._untold = self._untold, 0
        return untold
