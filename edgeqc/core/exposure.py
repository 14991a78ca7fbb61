"""Which frame is whose part's: two witnesses, the camera's frame counter and the time the frame began, must agree.

"The latest frame" is never taken. A frame that nobody asked for, that came twice, that began before its trigger or
that the counter gives to another part is named for what it is and judged for no part.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from edgeqc.core.account import GVSP_CYCLE, Step, move

REMEMBERED: Final = 16
"""Exposures that are kept after their frame came: enough to name a frame that comes twice or late."""


_FOLLOW: Final = 16
"""Frames in which the usual way from trigger to frame is forgotten by two thirds."""


class Claim(StrEnum):
    """Whose a frame is."""

    OWN = "own"
    """It belongs to the part that `Match.sequence` names."""
    DOUBLED = "doubled"
    """Its part had its frame already."""
    STALE = "stale"
    """It was exposed for a part that has been given up, or too late after its trigger, or comes from before."""
    PHANTOM = "phantom"
    """Nobody asked for it."""
    SWAPPED = "swapped"
    """Counter and clock give it to different parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What is known of a frame, and of the parts that it leaves without one."""

    claim: Claim
    sequence: int = 0
    """The part's, with OWN."""
    without: tuple[int, ...] = ()
    """Parts, oldest first, that will have no frame any more."""


@dataclass(slots=True, kw_only=True)
class _Exposure:
    sequence: int
    at_ns: int
    until_ns: int
    ordinal: int
    open: bool = True
    """Its part still waits for its frame."""
    came: bool = False
    """Its frame was seen. One whose part has been given up may still be under way."""


class Exposures:
    """One camera's triggered exposures, oldest first, until their frames come."""

    def __init__(self, *, least_ns: int = 0, most_ns: int, slack_ns: int = 1_000_000, cycle: int = GVSP_CYCLE) -> None:
        """Nothing is exposed yet.

        Args:
            least_ns: from trigger to the frame's first packet at the least: the exposure time; what the camera is seen to
                take beyond it is followed slowly. 0: not known, the first frame tells.
            most_ns: a frame that is not there so long after its trigger never comes.
            slack_ns: by how much the time at which a frame began may be taken for too early.
            cycle: of the camera's frame counter.
        """
        self._least_ns = least_ns
        self._usual_ns = least_ns or None
        self._slack_ns = slack_ns
        self._most_ns = most_ns
        self._cycle = cycle
        self._exposures: deque[_Exposure] = deque(maxlen=REMEMBERED)
        self._ordinal = 0
        self._base: tuple[int, int] | None = None
        """(frame id, ordinal) of the last frame that both witnesses gave to the same part."""
        self._frame_id: int | None = None
        self._doubt_until_ns = 0

    @property
    def outstanding(self) -> int:
        """Parts whose frame is still to come."""
        return len([exposure for exposure in self._exposures if exposure.open])

    def ready(self, now_ns: int) -> bool:
        """May the camera be triggered for the next part?

        Not while a frame may still be under way that belongs to nobody any more; and while the camera's counter is not
        known, one part at a time: then the clock is the only witness, and it must not have a choice.
        """
        return now_ns >= self._doubt_until_ns and (self._base is not None or not self.outstanding)

    def exposed(self, sequence: int, at_ns: int, until_ns: int) -> None:
        """The camera was triggered for this part at `at_ns`; after `until_ns` the part is not before it any more.

        Parts come in order.
        """
        self._ordinal += 1
        self._exposures.append(_Exposure(sequence=sequence, at_ns=at_ns, until_ns=until_ns, ordinal=self._ordinal))

    def reopened(self) -> tuple[int, ...]:
        """A fresh connection: it counts from where it likes. Gives the parts that will have no frame."""
        without = self._give_up()
        self._exposures.clear()
        self._base = None
        self._frame_id = None
        self._doubt_until_ns = 0
        return without

    def overdue(self, now_ns: int) -> tuple[int, ...]:
        """Parts whose frame had its time; from then on nothing is trusted until all that was exposed has had its time."""
        for exposure in self._exposures:
            if now_ns - exposure.at_ns <= self._most_ns:
                break
            if exposure.open:
                return self._doubt()
        return ()

    def frame(self, frame_id: int, first_ns: int, now_ns: int) -> Match:
        """A frame whose first packet came at `first_ns`; `frame_id` by the camera's counter."""
        moved = move(self._frame_id, frame_id, cycle=self._cycle)
        if moved.step is Step.SAME:
            return Match(claim=Claim.DOUBLED)
        self._frame_id = frame_id
        if moved.step is Step.BACK:
            # Taken as it is from now on: a camera that counts anew must not be stale for ever.
            return Match(claim=Claim.STALE, without=self._doubt())
        if now_ns < self._doubt_until_ns:
            return Match(claim=Claim.STALE)
        surely, perhaps = self._by_clock(first_ns, 0), self._by_clock(first_ns, self._slack_ns)
        if perhaps is None or not perhaps.open:
            claim = Claim.PHANTOM if perhaps is None else Claim.DOUBLED
            return Match(claim=claim, without=self._doubt())
        owner = surely or perhaps
        if self._base is not None:
            ordinal = self._base[1] + (frame_id - self._base[0]) % self._cycle
            owner = surely if surely is not None and surely.ordinal == ordinal else perhaps
            if owner.ordinal != ordinal or not owner.open:
                return Match(claim=Claim.SWAPPED, without=self._doubt())
        return self._own(owner, frame_id, first_ns)

    def _own(self, owner: _Exposure, frame_id: int, first_ns: int) -> Match:
        without = tuple(one.sequence for one in self._exposures if one.open and one.ordinal < owner.ordinal)
        for one in self._exposures:
            if one.ordinal <= owner.ordinal:
                one.open = False
        owner.came = True
        self._base = frame_id, owner.ordinal
        took_ns = first_ns - owner.at_ns
        usual_ns = took_ns if self._usual_ns is None else self._usual_ns
        if first_ns - usual_ns > owner.until_ns:  # it began to be exposed when the part had moved on
            return Match(claim=Claim.STALE, without=(*without, owner.sequence))
        # Follows a shorter way at once, a longer one (another exposure time) slowly.
        self._usual_ns = min(took_ns, usual_ns + max(0, took_ns - usual_ns) // _FOLLOW)
        return Match(claim=Claim.OWN, sequence=owner.sequence, without=without)

    def _by_clock(self, first_ns: int, slack_ns: int) -> _Exposure | None:
        """The last exposure whose trigger can have made a frame that began then."""
        for exposure in reversed(self._exposures):
            if exposure.at_ns + self._least_ns - slack_ns <= first_ns:
                return exposure if first_ns - exposure.at_ns <= self._most_ns else None
        return None

    def _doubt(self) -> tuple[int, ...]:
        """Give up all parts that wait, and trust nothing until each frame that may be under way has had its time."""
        under_way = [exposure.at_ns for exposure in self._exposures if not exposure.came]
        if under_way:
            self._doubt_until_ns = under_way[-1] + self._most_ns
        self._base = None
        return self._give_up()

    def _give_up(self) -> tuple[int, ...]:
        without = tuple(exposure.sequence for exposure in self._exposures if exposure.open)
        for exposure in self._exposures:
            exposure.open = False
        return without
