"""The parts that are under way: the core's lane, safe to use from all of the station's threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from edgeqc.core.exposure import Claim, Exposures, Match
from edgeqc.core.lane import Lane
from edgeqc.core.views import Ruling, View
from edgeqc.records import Cause, Frame, Verdict
from edgeqc.station.part import Part


class UnderWay:
    """One station's lane behind a lock. Every call costs microseconds and waits for nobody else's I/O."""

    def __init__(self, cameras: Sequence[Exposures], *, expose_within_ns: int = 0, depth: int, views: int = 1) -> None:
        """Nothing is under way.

        Args:
            cameras: whose frames are matched to triggers; none where the frame itself is the trigger.
            expose_within_ns: a part whose trigger is older is not exposed any more.
            depth: parts that may be under way at once.
            views: frames that a part needs.
        """
        self._lane: Lane[Part] = Lane(cameras, expose_within_ns=expose_within_ns, depth=depth, views=views)
        self._reopened = [0] * len(cameras)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._lane)

    def admit(self, part: Part) -> None:
        """A part is under way that needs no exposure: its frame is there, or it was missed."""
        with self._lock:
            self._lane.admit(part)

    def open(self, part: Part, *, fresh: bool, known: bool, now_ns: int) -> Cause | None:
        """See Lane.open."""
        with self._lock:
            return self._lane.open(part, fresh=fresh, known=known, trigger_ns=part.trigger.at_ns, now_ns=now_ns)

    def expose(self, part: Part, camera: int, *, sent_ns: int) -> None:
        """See Lane.expose."""
        with self._lock:
            self._lane.expose(part, camera, sent_ns=sent_ns, trigger_ns=part.trigger.at_ns)

    def exposed(self, part: Part, now_ns: int) -> bool:
        """See Lane.exposed."""
        return self._lane.exposed(part.trigger.at_ns, now_ns)

    def match(self, camera: int, frame: Frame, now_ns: int) -> tuple[Match, Part | None, list[Part], Cause]:
        """Whose frame is it: the match, the part if it is still under way, the parts that stay without, and why."""
        with self._lock:
            first_ns = frame.received_ns - frame.transfer_ns
            match = self._lane.frame(camera, frame.frame_id, first_ns, now_ns)
            part = self._lane.part(match.sequence) if match.claim is Claim.OWN else None
            return match, part, *self._lane.without(match)

    def overdue(self, camera: int, now_ns: int) -> tuple[bool, list[Part]]:
        """Did a frame of this camera stay out for too long, and which unsettled parts will have none."""
        with self._lock:
            gone = self._lane.cameras[camera].overdue(now_ns)
            return bool(gone), self._lane.unsettled(gone)

    def follow(self, camera: int, reopened: int) -> list[Part]:
        """The camera has had so many connections after its first; the unsettled parts that will have no frame, once each.

        Whoever sees a fresh one first says so, before anything is exposed on it.
        """
        with self._lock:
            if reopened <= self._reopened[camera]:  # less: whoever asks looked before somebody else did
                return []
            self._reopened[camera] = reopened
            return self._lane.unsettled(self._lane.cameras[camera].reopened())

    def seen(self, part: Part, camera: int, view: View) -> bool:
        """See Lane.seen."""
        with self._lock:
            return self._lane.seen(part, camera, view)

    def ruling(self, part: Part, *, tags_good: bool, now_ns: int) -> Ruling:
        """The verdict by all of the part's views."""
        with self._lock:
            return self._lane.ruling(part, tags_good=tags_good, recipe_known=part.recipe.known, now_ns=now_ns)

    def unready(self, now_ns: int) -> int:
        """See Lane.unready."""
        with self._lock:
            return self._lane.unready(now_ns)

    def without_view(self, part: Part, cause: Cause, view: int) -> Ruling:
        """See Lane.without_view."""
        with self._lock:
            return self._lane.without_view(part, cause, view)

    def settle(self, part: Part) -> bool:
        """The part has a verdict now; False if it had one. One that nobody admitted is admitted by this."""
        with self._lock:
            if not part.settled and self._lane.part(part.sequence) is None:
                self._lane.admit(part)
            return self._lane.settle(part)

    @property
    def landable(self) -> bool:
        """Is there a part that is to be announced now?"""
        with self._lock:
            return self._lane.landable

    def land(self) -> Part | None:
        """The part that is to be announced now, if any."""
        with self._lock:
            return self._lane.land()

    def announce(
        self, part: Part, *, record_sequence: int, journaled: bool, plc_up: bool, now_ns: int
    ) -> tuple[Verdict, Cause, list[str]]:
        """See Lane.announce."""
        with self._lock:
            return self._lane.announce(
                part,
                part.verdict,
                part.cause,
                score=part.score,
                record_sequence=record_sequence,
                journaled=journaled,
                plc_up=plc_up,
                now_ns=now_ns,
            )
