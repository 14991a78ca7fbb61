"""A yes or no that does not flutter. Pure."""

from __future__ import annotations


class Latch:
    """Follows a condition once it has held long enough, `on_ns` to become true and `off_ns` to become false.

    It starts undecided: the first decision is a change too, because whoever looks may still know an older one.
    """

    def __init__(self, *, on_ns: int, off_ns: int) -> None:
        self.active: bool | None = None
        """As last decided."""
        self._delays = {True: on_ns, False: off_ns}
        self._seen: bool | None = None
        self._since_ns = 0

    def update(self, condition: bool, now_ns: int) -> bool:
        """Look at the condition now; true when `active` should become `condition` (then call `settle`)."""
        if condition is not self._seen:
            self._seen, self._since_ns = condition, now_ns
        return condition is not self.active and now_ns - self._since_ns >= self._delays[condition]

    def settle(self) -> None:
        """What `update` asked for has been told: it is so."""
        self.active = self._seen
