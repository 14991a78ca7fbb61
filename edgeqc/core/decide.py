"""The verdict on one part. The only place where PASS is made."""

from __future__ import annotations

import math

from edgeqc.records import Cause, FrameStatus, Verdict


def decide(
    *,
    frame: FrameStatus | None,
    score: float,
    threshold: float,
    hold: float | None = None,
    engine_ok: bool = True,
    tags_good: bool = True,
    recipe_known: bool = True,
    now_ns: int,
    fail_safe_at_ns: int,
) -> tuple[Verdict, Cause]:
    """Verdict and cause; whatever is missing, late or not a number is a reject that says so.

    Args:
        frame: the frame's status, None where no frame came.
        score: 0..1, higher is worse; NaN where there is none.
        threshold: a part scoring at or over it is rejected.
        hold: a part scoring at or over it, and under the threshold, is rejected, too, but for a person to look at; None:
            there is no such band.
        engine_ok: False where the engine raised.
        tags_good: False where a required tag is stale or not Good.
        recipe_known: False where the PLC asked for a recipe that the station does not have.
        now_ns: monotonic, now.
        fail_safe_at_ns: from this moment on it is too late for a PASS.
    """
    cause = _objection(frame=frame, score=score, engine_ok=engine_ok, tags_good=tags_good, recipe_known=recipe_known)
    if cause is None and now_ns >= fail_safe_at_ns:
        cause = Cause.LATE
    if cause is None:
        # Written so that only a comparison that holds can pass: NaN compares false with everything.
        if score < (threshold if hold is None else min(hold, threshold)):
            return Verdict.PASS, Cause.OK
        return Verdict.REJECT, Cause.HOLD if score < threshold else Cause.DEFECT
    return Verdict.REJECT, cause


def overdue(*, frame_came: bool) -> tuple[Verdict, Cause]:
    """The verdict when the time is up and there is no score yet."""
    return Verdict.REJECT, Cause.LATE if frame_came else Cause.NO_FRAME


def last_word(
    verdict: Verdict, cause: Cause, *, journaled: bool, plc_up: bool = True, now_ns: int, fail_safe_at_ns: int
) -> tuple[Verdict, Cause]:
    """The verdict as it may be announced: looked at once more just before its write is begun.

    Args:
        verdict: as decided.
        cause: as decided.
        journaled: is the part's record as safe as the settings ask for?
        plc_up: is there a link? A PASS that cannot be told now is none: the part will have moved on.
        now_ns: monotonic, now.
        fail_safe_at_ns: no PASS is begun from this moment on, because it might arrive late.
    """
    if verdict is not Verdict.PASS:
        return verdict, cause
    if not journaled:
        return Verdict.REJECT, Cause.JOURNAL
    if not plc_up:
        return Verdict.REJECT, Cause.PLC
    if now_ns >= fail_safe_at_ns:
        return Verdict.REJECT, Cause.LATE
    return verdict, cause


def _objection(
    *, frame: FrameStatus | None, score: float, engine_ok: bool, tags_good: bool, recipe_known: bool
) -> Cause | None:
    if frame is None:
        return Cause.NO_FRAME
    if frame is not FrameStatus.OK:
        return Cause.BAD_FRAME
    if not recipe_known:
        return Cause.RECIPE
    if not engine_ok or not math.isfinite(score) or not 0 <= score <= 1:
        return Cause.ENGINE
    if not tags_good:
        return Cause.BAD_TAG
    return None
