"""One station's parts from trigger to announcement: whose frame, which verdict, in which order. No clock, no I/O.

The daemon's station and the simulated line drive the same lane: the caller brings triggers, frames, scores and the
time, and does what the lane says. Not thread-safe: the caller's lock is held around each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, Protocol, TypeVar

from edgeqc.core.decide import last_word
from edgeqc.core.exposure import Claim, Exposures, Match
from edgeqc.core.flight import Flight, Flying
from edgeqc.core.invariant import announcement
from edgeqc.core.views import Ruling, View, rule, without
from edgeqc.records import Cause, Verdict

DEPTH: Final = 8
"""Parts under way at once: as many results as a PLC's buffer holds. More are rejected unjudged."""


class Passing(Flying, Protocol):
    """What a part must have to go through a lane."""

    @property
    def sequence(self) -> int:
        """The station's own number of the part."""

    views: list[View | None]
    """One for each camera, None until it came."""


PartT = TypeVar("PartT", bound=Passing)


class Lane(Generic[PartT]):
    """Holds the parts under way and what is known of them."""

    def __init__(
        self, cameras: Sequence[Exposures], *, expose_within_ns: int, depth: int = DEPTH, views: int | None = None
    ) -> None:
        """Nothing is under way.

        Args:
            cameras: that look at each part.
            expose_within_ns: a part whose trigger is older has moved on, and a picture of it would show something else.
            depth: parts that may be under way at once.
            views: frames that a part needs; None: one of each camera.
        """
        self.cameras: Final = tuple(cameras)
        self.last_sequence = 0
        """Of the part that was announced last."""
        self._expose_within_ns = expose_within_ns
        self._views = len(self.cameras) if views is None else views
        self._flight: Flight[PartT] = Flight(depth=depth)
        self._parts: dict[int, PartT] = {}

    def __len__(self) -> int:
        """Parts under way."""
        return len(self._flight.parts)

    def open(
        self, part: PartT, *, fresh: bool = True, known: bool = True, trigger_ns: int, now_ns: int
    ) -> Cause | None:
        """A part is under way from now on. None: expose it on every camera; else settle it, for this cause, unseen.

        Args:
            part: with a number above all before it.
            fresh: is it known when it was triggered?
            known: is it known which part it is? (`Arrival.doubled` and `.swapped` say that it is not.)
            trigger_ns: monotonic.
            now_ns: monotonic.
        """
        full = self._flight.full
        self.admit(part)
        if full or part.settled:
            return Cause.LATE
        if not known:
            return Cause.IDENTITY
        if not fresh or now_ns - trigger_ns > self._expose_within_ns:
            return Cause.NO_FRAME
        if self.unready(now_ns) >= 0:
            return Cause.NO_FRAME
        return None

    def admit(self, part: PartT) -> None:
        """A part is under way that nobody exposes: its frame is there already, or it was missed.

        One that is settled has been under way, and is told once.
        """
        if part.settled:
            return
        self._flight.open(part)
        self._parts[part.sequence] = part
        part.views = part.views or [None] * self._views

    def expose(self, part: PartT, camera: int, *, sent_ns: int, trigger_ns: int) -> None:
        """The camera's trigger is sent now, at `sent_ns`. Before it is: the frame may be here before the camera's answer."""
        self.cameras[camera].exposed(part.sequence, sent_ns, trigger_ns + self._expose_within_ns)

    def exposed(self, trigger_ns: int, now_ns: int) -> bool:
        """The trigger was sent and answered. False: that took so long that the part had moved on.

        Its frame will come all the same, and must find its owner.
        """
        return now_ns - trigger_ns <= self._expose_within_ns

    def frame(self, camera: int, frame_id: int, first_ns: int, now_ns: int) -> Match:
        """Whose frame is it? The parts that it leaves without one are to be settled: see `without`."""
        return self.cameras[camera].frame(frame_id, first_ns, now_ns)

    def without(self, match: Match) -> tuple[list[PartT], Cause]:
        """The unsettled parts that a frame left without one, and the cause to settle them for."""
        parts = self.unsettled(match.without)
        return parts, Cause.IDENTITY if match.claim is Claim.SWAPPED else Cause.NO_FRAME

    def unsettled(self, sequences: Sequence[int]) -> list[PartT]:
        """Those of these parts that are under way and have no verdict."""
        found = (self._parts.get(sequence) for sequence in sequences)
        return [part for part in found if part is not None and not part.settled]

    def part(self, sequence: int) -> PartT | None:
        """The part of that number, if it is still under way."""
        return self._parts.get(sequence)

    def seen(self, part: PartT, camera: int, view: View) -> bool:
        """One camera's view of the part is judged. True when it was the last one that was missing."""
        part.views[camera] = view
        return all(one is not None for one in part.views)

    def ruling(self, part: PartT, *, tags_good: bool = True, recipe_known: bool = True, now_ns: int) -> Ruling:
        """The verdict by all of the part's views."""
        return rule(
            part.views,
            sequence=part.sequence,
            tags_good=tags_good,
            recipe_known=recipe_known,
            now_ns=now_ns,
            fail_safe_at_ns=part.fail_safe_at_ns,
        )

    def unready(self, now_ns: int) -> int:
        """The first camera that may not be triggered now, by its index; -1: all may."""
        return next((index for index, camera in enumerate(self.cameras) if not camera.ready(now_ns)), -1)

    def without_view(self, part: PartT, cause: Cause, view: int) -> Ruling:
        """The verdict on a part that will not have this view in time, by those that it has."""
        return without(part.views, sequence=part.sequence, cause=cause, view=view)

    def settle(self, part: PartT) -> bool:
        """The part has a verdict now; False if it has one already: the first one counts."""
        return self._flight.settle(part)

    def due_ns(self) -> int | None:
        """When the next fail-safe verdict is due."""
        return self._flight.due_ns()

    def overdue(self, now_ns: int) -> list[PartT]:
        """Parts, oldest first, whose fail-safe verdict is due."""
        return self._flight.overdue(now_ns)

    @property
    def landable(self) -> bool:
        """Is there a part that is to be announced now?"""
        return self._flight.landable

    def land(self) -> PartT | None:
        """The part that is to be announced now: the oldest, once it is settled."""
        part = self._flight.land()
        if part is not None:
            self._parts.pop(part.sequence, None)
        return part

    def announce(
        self,
        part: PartT,
        verdict: Verdict,
        cause: Cause,
        *,
        score: float,
        record_sequence: int,
        journaled: bool,
        plc_up: bool = True,
        now_ns: int,
    ) -> tuple[Verdict, Cause, list[str]]:
        """The verdict as it goes out, just before its write is begun, and what would have been violated (see invariant).

        Args:
            part: that has landed.
            verdict: as settled.
            cause: as settled.
            score: that it rests on, NaN for none.
            record_sequence: of the part in the journal's record; 0: there is none.
            journaled: is that record as safe as the settings ask for?
            plc_up: is there a link?
            now_ns: monotonic.
        """
        verdict, cause = last_word(
            verdict, cause, journaled=journaled, plc_up=plc_up, now_ns=now_ns, fail_safe_at_ns=part.fail_safe_at_ns
        )
        # by lists: from a generator each call leaves another tuple in the interpreter's free list, up to 2000
        views = [view for view in part.views if view is not None]
        violated = announcement(
            sequence=part.sequence,
            verdict=verdict,
            cause=cause,
            score=score,
            record_sequence=record_sequence,
            frame_sequences=tuple([view.sequence for view in views]),
            passing=len([view for view in views if view.passing]),
            views=self._views,
            journaled=journaled,
            last_sequence=self.last_sequence,
            now_ns=now_ns,
            fail_safe_at_ns=part.fail_safe_at_ns,
        )
        self.last_sequence = max(self.last_sequence, part.sequence)
        if violated and verdict is Verdict.PASS:
            verdict, cause = Verdict.REJECT, Cause.IDENTITY
        return verdict, cause, violated
