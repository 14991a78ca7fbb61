"""A part in flight, from its trigger to its verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from edgeqc.core.views import View
from edgeqc.records import Cause, Defect, Ledger, PartRecord, SnapshotTag, Trigger, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What each part record says about how the part was judged."""

    name: str
    threshold: float
    model_digest: bytes
    known: bool = True
    """False: the PLC named a recipe that the station does not have; no part may be judged by it."""


UNKNOWN_RECIPE: Final = Recipe(name="", threshold=math.nan, model_digest=bytes(32), known=False)


@dataclass(slots=True, kw_only=True, eq=False)
class Part:
    """Filled in by the line thread; settled once, by the line or by the guard (see Outcome.settle)."""

    trigger: Trigger
    deadline_ns: int
    fail_safe_at_ns: int
    recipe: Recipe = UNKNOWN_RECIPE
    """Latched with the trigger: a changeover concerns the parts after it only."""
    announced: bool = True
    """False for a part that was missed: it is recorded, but its time to be told to the PLC is over."""
    frame_id: int = 0
    slot: int = -1
    frame_ns: int = 0
    transfer_ns: int = 0
    prepared_ns: int = 0
    scored_ns: int = 0
    score: float = math.nan
    defects: tuple[Defect, ...] = field(default=())
    process: tuple[SnapshotTag, ...] = ()
    """The machine at the exposure, as far as the station is to tell it."""
    views: list[View | None] = field(default_factory=list)
    """What each camera saw; the lane makes it as long as there are cameras."""
    settled: bool = False
    verdict: Verdict = Verdict.REJECT
    """As settled; what is announced may be worse."""
    cause: Cause = Cause.NO_FRAME
    record: PartRecord | None = None
    """Made when it was settled."""
    lent: bool = False
    """The slot is on loan to the archive: it comes back through Lender, not from the line."""

    @property
    def sequence(self) -> int:
        """The station's own number of the part."""
        return self.trigger.sequence

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
