"""Several cameras, one part: the verdict is the worst of what they saw, and what is missing counts as worst but one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeqc.core.decide import decide
from edgeqc.records import Cause, FrameStatus, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one camera and its engine said of a part."""

    name: str
    """The camera's."""
    sequence: int
    """Of the part that the frame was matched to."""
    frame: FrameStatus
    score: float
    """0..1, higher is worse; NaN where there is none."""
    threshold: float
    hold: float | None = None
    """Where the band of parts for a person to look at begins, below the threshold; None: there is none."""
    engine_ok: bool = True
    frame_id: int = 0

    @property
    def passing(self) -> bool:
        """Would it pass the part by itself? Said anew, so that the rule below has a witness (see invariant)."""
        limit = self.threshold if self.hold is None else min(self.hold, self.threshold)
        return self.frame is FrameStatus.OK and self.engine_ok and 0 <= self.score < limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """The verdict on a part, and the view that it comes from."""

    verdict: Verdict
    cause: Cause
    view: int = -1
    """Index of the view that it comes from, which may be one that did not come; -1: of none in particular."""
    margin: float = -math.inf
    """By how much that view's score is over its threshold; below 0 it is under it."""


_BADNESS: Final = {Cause.OK: 0, Cause.HOLD: 2, Cause.ANOMALY: 3, Cause.DEFECT: 4}
"""What is known of the part outweighs what is not known of it; every other cause counts 1."""


def rule(
    views: Sequence[View | None],
    *,
    sequence: int,
    tags_good: bool = True,
    recipe_known: bool = True,
    now_ns: int,
    fail_safe_at_ns: int,
) -> Ruling:
    """The verdict on the part `sequence` from all of its views, None for each that did not come.

    A view that belongs to another part makes it a reject that says so (cause identity). No views at all is no pass. Of
    views that are equally bad the one decides that is furthest over its threshold, else the first.
    """
    worst: Ruling | None = None
    for index, view in enumerate(views):
        ruling = Ruling(verdict=Verdict.REJECT, cause=Cause.NO_FRAME, view=index)
        if view is not None and view.sequence != sequence:
            ruling = Ruling(verdict=Verdict.REJECT, cause=Cause.IDENTITY, view=index)
        elif view is not None:
            verdict, cause = decide(
                frame=view.frame,
                score=view.score,
                threshold=view.threshold,
                hold=view.hold,
                engine_ok=view.engine_ok,
                tags_good=tags_good,
                recipe_known=recipe_known,
                now_ns=now_ns,
                fail_safe_at_ns=fail_safe_at_ns,
            )
            ruling = Ruling(verdict=verdict, cause=cause, view=index, margin=_margin(view))
        if worst is None or _badness(ruling) > _badness(worst):
            worst = ruling
    return worst or Ruling(verdict=Verdict.REJECT, cause=Cause.NO_FRAME)


def without(views: Sequence[View | None], *, sequence: int, cause: Cause, view: int) -> Ruling:
    """The verdict on a part that will not have all of its views in time: reject, whatever the others say.

    Where one of them has shown a defect, or is held, that is the cause; otherwise it is `cause`, and `view` is what is missing.
    """
    known = rule([one for one in views if one is not None], sequence=sequence, now_ns=0, fail_safe_at_ns=1)
    if known.cause in {Cause.DEFECT, Cause.ANOMALY, Cause.HOLD}:
        came = [index for index, one in enumerate(views) if one is not None]
        return Ruling(verdict=Verdict.REJECT, cause=known.cause, view=came[known.view], margin=known.margin)
    return Ruling(verdict=Verdict.REJECT, cause=cause, view=view)


def _badness(ruling: Ruling) -> tuple[int, float]:
    return _BADNESS.get(ruling.cause, 1), ruling.margin


def _margin(view: View) -> float:
    """-inf where the view has no score: it says nothing of how bad the part is."""
    margin = view.score - view.threshold
    return margin if math.isfinite(margin) else -math.inf
