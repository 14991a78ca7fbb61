"""A part in flight, from its trigger to its verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from edgeqc.core.views import View
from edgeqc.records import Cause, Defect, Frame, Ledger, PartRecord, SnapshotTag, Trigger, Verdict, ViewRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What each part record says about how the part was judged."""

    name: str
    threshold: float
    model_digest: bytes
    hold: float | None = None
    """Where the band of parts for a person to look at begins; None: the recipe does not ask for it."""
    known: bool = True
    """False: the PLC named a recipe that the station does not have; no part may be judged by it."""
    views: tuple[Recipe, ...] = ()
    """What judges each camera's frames where a station has several; the recipe itself is then the first's."""

    def seen_by(self, camera: int) -> Recipe:
        """What judges this camera's frames."""
        return self.views[camera] if self.views else self


UNKNOWN_RECIPE: Final = Recipe(name="", threshold=math.nan, model_digest=bytes(32), known=False)


@dataclass(slots=True, kw_only=True, eq=False)
class Look:
    """What one camera saw of a part. Filled in by the line thread."""

    fail_safe_at_ns: int
    """The part's."""
    frame_id: int = 0
    slot: int = -1
    frame_ns: int = 0
    transfer_ns: int = 0
    prepared_ns: int = 0
    scored_ns: int = 0
    score: float = math.nan
    defects: tuple[Defect, ...] = field(default=())
    lent: bool = False
    """The slot is on loan to the archive: it comes back through Lender, not from the line."""

    def saw(self, frame: Frame) -> None:
        """This is its frame."""
        self.frame_id, self.slot = frame.frame_id, frame.slot
        self.transfer_ns, self.frame_ns = frame.transfer_ns, frame.received_ns


@dataclass(slots=True, kw_only=True, eq=False)
class Part(Look):
    """Settled once, by the line or by the guard (see Outcome.settle).

    What a station's only camera sees of a part is the part's own look. With several cameras each has one in `looks`,
    and the part takes over that which its verdict comes from.
    """

    trigger: Trigger
    deadline_ns: int
    recipe: Recipe = UNKNOWN_RECIPE
    """Latched with the trigger: a changeover concerns the parts after it only."""
    announced: bool = True
    """False for a part that was missed: it is recorded, but its time to be told to the PLC is over."""
    looks: tuple[Look, ...] = ()
    """One for each camera where the station has several."""
    process: tuple[SnapshotTag, ...] = ()
    """The machine at the exposure, as far as the station is to tell it."""
    views: list[View | None] = field(default_factory=list)
    """What each camera saw; the lane makes it as long as there are cameras."""
    settled: bool = False
    verdict: Verdict = Verdict.REJECT
    """As settled; what is announced may be worse."""
    cause: Cause = Cause.NO_FRAME
    view: int = 0
    """The camera that the verdict comes from; -1: none in particular."""
    record: PartRecord | None = None
    """Made when it was settled."""
    view_records: tuple[ViewRecord, ...] = ()
    """One for each camera where there are several; made with `record`."""

    @property
    def sequence(self) -> int:
        """The station's own number of the part."""
        return self.trigger.sequence

    def seen_by(self, camera: int) -> Look:
        """What this camera sees of it."""
        return self.looks[camera] if self.looks else self

    @property
    def lacking(self) -> tuple[Cause, int]:
        """Why there is no verdict yet, and the camera that it waits for."""
        if not self.looks:
            return (Cause.LATE if self.frame_ns else Cause.NO_FRAME), 0
        gone = next((index for index, look in enumerate(self.looks) if not look.frame_ns), -1)
        if gone >= 0:
            return Cause.NO_FRAME, gone
        return Cause.LATE, next((index for index, view in enumerate(self.views) if view is None), 0)

    def take_over(self, look: Look) -> None:
        """Let this be what the part's record tells. Images are the views' own."""
        self.frame_id, self.frame_ns, self.transfer_ns = look.frame_id, look.frame_ns, look.transfer_ns
        self.prepared_ns, self.scored_ns = look.prepared_ns, look.scored_ns
        self.score, self.defects = look.score, look.defects

    def ledger(self, *, decided_ns: int) -> Ledger:
        """The time ledger up to the decision."""
        return Ledger(
            trigger_ns=self.trigger.at_ns,
            frame_ns=self.frame_ns,
            transfer_ns=self.transfer_ns,
            prepared_ns=self.prepared_ns,
            scored_ns=self.scored_ns,
            decided_ns=decided_ns,
        )
