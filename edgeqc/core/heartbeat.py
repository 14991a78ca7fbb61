"""Is the other side's program alive? A communication processor goes on answering when the program has stopped."""

from __future__ import annotations


class Heartbeat:
    """Judges a value that the other side must change at least every `limit_ns`."""

    def __init__(self, limit_ns: int) -> None:
        """Alive until it was first heard of for `limit_ns` without a change."""
        self._limit_ns = limit_ns
        self._value: int | None = None
        self._changed_ns = 0

    def heard(self, value: int, now_ns: int) -> None:
        """Take the value as it was read now."""
        if value != self._value:
            self._value, self._changed_ns = value, now_ns

    def alive(self, now_ns: int) -> bool:
        """Did it change within the limit?"""
        return self._value is None or now_ns - self._changed_ns <= self._limit_ns

    def forget(self) -> None:
        """Begin anew: the other side was not heard for another reason."""
        self._value = None
