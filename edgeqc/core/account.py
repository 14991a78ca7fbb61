"""Counting parts by their counters: what was missed, doubled or stale is known, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

GVSP_CYCLE: Final = 65_535
"""GigE Vision's 16-bit block id skips 0: 65535 is followed by 1."""
MODBUS_CYCLE: Final = 65_536
"""A PLC counter in one register."""


class Step(StrEnum):
    """How a counter moved."""

    FIRST = "first"
    SAME = "same"
    NEXT = "next"
    MISSED = "missed"
    BACK = "back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From one reading of a counter to the next."""

    step: Step
    missed: int = 0
    """How many counts were never seen; only with MISSED."""


def move(before: int | None, after: int, *, cycle: int) -> Move:
    """How the counter moved from `before` (None: never seen) to `after`, modulo `cycle`.

    Half a cycle or more forward is a step back: a restarted peer, or an old frame.
    """
    if before is None:
        return Move(step=Step.FIRST)
    distance = (after - before) % cycle
    if distance == 0:
        return Move(step=Step.SAME)
    if distance == 1:
        return Move(step=Step.NEXT)
    if distance < cycle // 2:
        return Move(step=Step.MISSED, missed=distance - 1)
    return Move(step=Step.BACK)
