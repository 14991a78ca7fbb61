"""A part under way, as the station in virtual time knows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgeqc.core.views import View
from edgeqc.records import Cause, Verdict
from edgeqc.sim.virtual.pieces import Piece, Shot


@dataclass(slots=True, kw_only=True, eq=False)
class Part:
    """A part under way."""

    sequence: int
    part_id: str
    piece: Piece | None
    recipe: int
    trigger_ns: int
    deadline_ns: int
    fail_safe_at_ns: int
    opened_ns: int
    """When it got its number."""
    announced: bool = True
    views: list[View | None] = field(default_factory=list)
    settled: bool = False
    verdict: Verdict = Verdict.REJECT
    cause: Cause = Cause.NO_FRAME
    score: float = math.nan
    shots: list[Shot] = field(default_factory=list)
    """The frames that were taken for it."""
    excused: bool = False
    """A tag that the station requires was bad."""
    judged_by: set[int] = field(default_factory=set)
