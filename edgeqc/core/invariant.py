"""What must hold whatever breaks: the same predicates count and fail safe in production, and judge the simulated line.

Each gives the names of what is violated, empty where all is well. The numbers are those of the project's list (I1 ..
I17); what needs the ground truth or a view from outside is checked by the simulation only.
"""

from __future__ import annotations

import math

from edgeqc.records import Cause, Verdict


def announcement(
    *,
    sequence: int,
    verdict: Verdict,
    cause: Cause,
    score: float,
    record_sequence: int,
    frame_sequences: tuple[int, ...],
    passing: int,
    views: int,
    journaled: bool,
    last_sequence: int,
    now_ns: int,
    fail_safe_at_ns: int,
) -> list[str]:
    """Looked at just before a verdict's write is begun. Whatever it names: the part is rejected, and the fact told.

    Args:
        sequence: of the part that is announced.
        verdict: that is about to go out.
        cause: of it.
        score: that it rests on.
        record_sequence: of the part in the journal's record, 0 where there is none.
        frame_sequences: the parts that the judged frames were matched to.
        passing: how many of these frames would pass the part by themselves.
        views: how many frames a PASS needs.
        journaled: is the record as safe as the settings ask for?
        last_sequence: of the last part that was announced.
        now_ns: monotonic.
        fail_safe_at_ns: no PASS is begun from then on.
    """
    found = []
    if sequence <= last_sequence:
        found.append("I5 order")
    if (verdict is Verdict.PASS) != (cause is Cause.OK):
        found.append("I3 verdict and cause")
    if any(frame != sequence for frame in frame_sequences) or record_sequence not in {0, sequence}:
        found.append("I7 identity")
    if verdict is Verdict.PASS:
        if not len(frame_sequences) == passing == views or not views:
            found.append("I7 views")
        if not (math.isfinite(score) and 0 <= score <= 1):
            found.append("I12 score")
        if not journaled or not record_sequence:
            found.append("I4 journal")
        if now_ns >= fail_safe_at_ns:
            found.append("I2 deadline")
    return found


def balance(*, triggers: int, passed: int, rejected: int, under_way: int) -> list[str]:
    """I1: every trigger has one verdict, or is still under way."""
    return [] if triggers == passed + rejected + under_way else ["I1 balance"]


def signals(*, passing: bool, rejecting: bool, valid: bool, fault: bool, code: int, ok_code: int) -> list[str]:
    """I3, I11: what the PLC sees at any moment."""
    found = []
    if passing and rejecting:
        found.append("I3 both")
    if valid != (passing or rejecting):
        found.append("I3 valid")
    if passing != (code == ok_code) or (code and not valid):
        found.append("I3 code")
    if passing and fault:
        found.append("I11 pass while fault")
    return found
