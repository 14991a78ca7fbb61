"""Parts, frames and triggers that do not add up: counted, told in the journal, and alarmed until they add up again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from edgeqc.core.exposure import Claim, Match
from edgeqc.journal.codec import Body
from edgeqc.records import AlertChange, Event, Ne107
from edgeqc.shm.board import Row
from edgeqc.station.part import Part

_WELL: Final = 50
"""Parts in a row that add up, after which the alert ends."""
_COUNTERS: Final = {Claim.DOUBLED: "doubled", Claim.STALE: "stale", Claim.PHANTOM: "phantom", Claim.SWAPPED: "swapped"}
_WORDS: Final = {
    Claim.DOUBLED: "the camera sent a frame twice",
    Claim.STALE: "a frame came too late for its part",
    Claim.PHANTOM: "the camera sent a frame that nobody asked for",
    Claim.SWAPPED: "the camera's counter and the clock give a frame to different parts",
}


class Accounting:
    """One station's. Any thread."""

    def __init__(self, station: str, *, row: Row, note: Callable[[Body], None]) -> None:
        """`note` journals an event or an alert."""
        self._station = station
        self._row = row
        self._note = note
        self._lock = threading.Lock()
        self._well = 0
        self._active = False

    def missed(self, count: int, text: str) -> None:
        """Parts went by unseen; each gets its own record beside this."""
        self._row.count("missed", count)
        self._tell("missed", text, count=count)

    def repeated(self, part: Part, *, doubled: bool) -> None:
        """A part has the id of one before it: of the last one (doubled), or of an earlier one (swapped)."""
        self._row.count("repeated_ids")
        kind = "doubled" if doubled else "swapped"
        self._tell(kind, "a part has the id of a part before it", part=part.sequence, part_id=part.trigger.part_id)

    def frame(self, match: Match, frame_id: int) -> None:
        """A frame that is nobody's."""
        if match.claim is Claim.OWN:
            return
        self._row.count(_COUNTERS[match.claim])
        self._tell(match.claim.value, _WORDS[match.claim], frame_id=frame_id, without=len(match.without))

    def well(self) -> None:
        """A part got its own frame."""
        with self._lock:
            self._well += 1
            ends = self._active and self._well >= _WELL
            self._active = self._active and not ends
        if ends:
            self._alert("")

    def _tell(self, kind: str, text: str, **facts: str | int) -> None:
        self._note(Event(name="part_accounting", facts={"kind": kind, **facts}))
        with self._lock:
            begins = not self._active
            self._active, self._well = True, 0
        if begins:
            self._alert(f"{kind}: {text}")

    def _alert(self, text: str) -> None:
        self._note(
            AlertChange(
                id=f"{self._station}.accounting",
                active=bool(text),
                priority="medium",
                ne107=Ne107.OUT_OF_SPECIFICATION if text else Ne107.NORMAL,
                text=f"parts, triggers and frames do not add up: {text}" if text else "",
                action="Look at what was missed or doubled: edgeqc journal (part_accounting); check sensor, trigger and camera"
                if text
                else "",
            )
        )
