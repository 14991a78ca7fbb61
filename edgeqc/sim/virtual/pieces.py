"""Parts and frames as they really are: what only the oracle may know."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeqc.records import FrameStatus, Verdict


@dataclass(slots=True, kw_only=True)
class Piece:
    """A part as it really is, and what became of it."""

    number: int
    part_id: str
    at_ns: int
    defective: bool
    recipe: int
    quiet: bool
    """Nothing breaks any more since long before it came."""
    shown_id: str = ""
    """The id that the PLC showed with its trigger."""
    counted: bool = True
    """Did the PLC raise a trigger for it?"""
    decision: Verdict | None = None
    """Of the PLC's program."""
    counts: int = 0
    """How often the PLC counted it."""
    sequences: list[int] = field(default_factory=list)
    """Station numbers that it was given."""
    gate_position: int = 0
    stuck: bool = False
    """The ejector was told to, and did not move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A frame as the camera's library hands it out."""

    camera: int
    frame_id: int
    content: int
    """Number of the piece that it shows, BELT for none: what only the oracle may know."""
    status: FrameStatus
    exposed_ns: int
    first_ns: int
    received_ns: int
    sequence: int
    """Of the part for which it was exposed; 0 for none. Only the oracle may know."""
    life: int
