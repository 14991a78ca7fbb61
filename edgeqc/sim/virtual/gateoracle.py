"""The judge of the gate: what went into the bin, what went by, and what the gate told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgeqc.sim.virtual.oracle import Oracle
    from edgeqc.sim.virtual.pieces import Piece

_FAULTS: Final = frozenset(
    {
        "read_lost",
        "triggers_stuck",
        "camera_slow",
        "disk_slow",
        "write_lost",
        "write_late",
        "write_unacknowledged",
        "plc_refuses",
        "plc_frozen",
        "plc_restarted",
        "encoder_set",
    }
)
"""For which a part is heard of too late to be placed, or lost on its way. That the gate could not look it says itself."""


class GateOracle:
    """What the oracle knows of the gate. It judges with the oracle's pieces, its faults and its trace."""

    def __init__(self, oracle: Oracle) -> None:
        """Nothing is on its way."""
        self._oracle = oracle
        self._told: set[int] = set()
        """Sequences that the gate told of, and that therefore are no silent escapes."""
        self._went_by: list[Piece] = []
        """Pieces that had to be ejected and were not."""
        self._disturbed_ns = -(1 << 62)
        """When something last kept the gate from following parts."""
        self._ends: dict[int, int] = {}
        """Of each sequence the conveyor's position from which on a look at the gate tells what has become of it."""
        self._looked = 0
        """The conveyor's position at the gate's last look."""

    def fault(self, name: str) -> None:
        """A fault was injected, somewhere on the line."""
        if name in _FAULTS:
            self.disturbed()

    def disturbed(self) -> None:
        """The gate cannot look, just now, or just begins to."""
        self._disturbed_ns = self._oracle.now_ns

    def on_its_way(self, sequence: int, ends: int) -> None:
        """The gate follows this part from now on: see `_ends`."""
        self._ends[sequence] = ends

    def looked(self, position: int) -> None:
        """The gate read its inputs with the conveyor here."""
        self._looked = position

    def left(self) -> None:
        """The station died. The PLC sees its heartbeat stand still: what the gate had ahead of it is the PLC's own affair."""
        self._told.update(sequence for sequence, ends in self._ends.items() if ends > self._looked)
        self._ends.clear()

    def told(self, event: str, sequence: int, *, failure: bool) -> None:
        """The gate told something."""
        oracle = self._oracle
        oracle.note("gate", event, sequence)
        if not failure:
            return
        self._told.add(sequence)
        piece = oracle.owner.get(sequence)
        tracked = piece is not None and piece.counts == 1 and not piece.stuck and not self._disturbed(piece.at_ns)
        if tracked or not oracle.faults:
            oracle.fail("I13 gate", f"{event} of {sequence}, and nothing is broken")

    def ejects(self, sequence: int) -> None:
        """The gate opened for this part."""
        if sequence in self._oracle.delivered_pass:
            self._oracle.fail("I6 gate", f"{sequence} passed, and the gate opened for it")

    def miscounted(self) -> None:
        """Ejections were counted that were none: one that failed just now looks like one that did not."""
        self._went_by = [piece for piece in self._went_by if not (piece.stuck and self._ahead(piece))]

    def binned(self, piece: Piece, ejected: bool, *, stuck: bool) -> None:
        """The piece went through the gate, or into the bin. `stuck`: the ejector did not do what it was told."""
        piece.stuck = stuck
        self._oracle.note("gate", piece.number, ejected)
        passed = any(sequence in self._oracle.delivered_pass for sequence in piece.sequences)
        if ejected and passed:
            self._oracle.fail("I6 gate", f"piece {piece.number} passed and was ejected")
        if ejected or passed or not piece.sequences:
            return
        self._went_by.append(piece)  # told of by the end: without a link to the PLC the gate sees it later

    def at_the_end(self) -> None:
        """All parts are through: what went by without a pass was told of."""
        for piece in self._went_by:
            if not all(sequence in self._told for sequence in piece.sequences):
                self._oracle.fail(
                    "I6 gate", f"piece {piece.number} ({piece.sequences}) went by without a pass, and nobody told"
                )

    def _disturbed(self, came_ns: int) -> bool:
        """Was anything wrong, since shortly before this part came, that the gate has to be told of?"""
        return self._disturbed_ns >= came_ns - self._oracle.calm_ns

    def _ahead(self, piece: Piece) -> bool:
        return any(self._ends.get(sequence, 0) > self._looked for sequence in piece.sequences)
