"""A peer's clock against ours: what its stamps mean here, and whether it is wrong or was set. Pure."""

from __future__ import annotations

from typing import Final

from edgeqc.records import NS_PER_S

JUMP_NS: Final = NS_PER_S
"""A step of the peer's clock by more than this is a jump; less is the network's delay or drift."""
CONFIRM_READINGS: Final = 5
CONFIRM_NS: Final = 3 * NS_PER_S
"""A step back looks like one slow message at first: so many readings over so long must agree."""
_DRIFT_PPM: Final = 200
"""Quartz is good for 100 ppm; the best delay seen is forgotten at this pace so that drift can be followed."""


class PeerClock:
    """Follows the offset of a peer's UTC to our monotonic clock by the messages that came with the least delay."""

    def __init__(self) -> None:
        """Nothing is known before the first reading."""
        self.offset_ns: int | None = None
        """Peer's time less ours."""
        self.jumps = 0
        self.last_jump_ns = 0
        """By how much it jumped last; negative: back."""
        self._read_ns = 0
        self._began_ns = 0
        self._behind_since_ns = 0
        self._behind: list[int] = []

    def read(self, peer_ns: int, now_ns: int) -> bool:
        """The peer's clock showed `peer_ns` when it sent what arrived at `now_ns`. True where it has jumped."""
        seen_ns = peer_ns - now_ns
        if self.offset_ns is None:
            self.offset_ns, self._read_ns, self._began_ns = seen_ns, now_ns, now_ns
            return False
        # whole microseconds, so that no reading is lost to rounding
        faded_ns = self.offset_ns - (now_ns - self._read_ns) * _DRIFT_PPM // 1_000_000
        if seen_ns - self.offset_ns > JUMP_NS and now_ns - self._began_ns > CONFIRM_NS:  # else: the first came late
            return self._jump(seen_ns, now_ns)
        if faded_ns - seen_ns > JUMP_NS:
            if not self._behind:
                self._behind_since_ns = now_ns
            self._behind.append(seen_ns)
            # a backlog catches up: its readings come nearer. A clock that was set back stays where it is.
            steady = max(self._behind) - min(self._behind) < JUMP_NS
            if not steady:
                self._behind, self._behind_since_ns = [seen_ns], now_ns
            if len(self._behind) >= CONFIRM_READINGS and now_ns - self._behind_since_ns >= CONFIRM_NS:
                return self._jump(max(self._behind), now_ns)
            del self._behind[:-_REMEMBERED]
            return False
        self._behind.clear()
        self.offset_ns, self._read_ns = max(faded_ns, seen_ns), now_ns
        return False

    def ours_ns(self, peer_ns: int) -> int:
        """Give the moment of a stamp in our monotonic time; ValueError before the first reading."""
        if self.offset_ns is None:
            raise ValueError("no reading of the peer's clock yet")
        return peer_ns - self.offset_ns

    def wrong_by_ns(self, wall_less_mono_ns: int) -> int:
        """How far the peer's clock is ahead of ours; `wall_less_mono_ns` is our own UTC less our monotonic time."""
        return 0 if self.offset_ns is None else self.offset_ns - wall_less_mono_ns

    def _jump(self, seen_ns: int, now_ns: int) -> bool:
        self.last_jump_ns = seen_ns - (self.offset_ns or 0)
        self.jumps += 1
        self.offset_ns, self._read_ns = seen_ns, now_ns
        self._behind.clear()
        return True


_REMEMBERED: Final = 64
