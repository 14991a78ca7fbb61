"""The PLC in virtual time: registers, program, and the network to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeqc.core.account import MODBUS_CYCLE, MOST_MISSED
from edgeqc.core.handshake import Form
from edgeqc.core.track import OFF
from edgeqc.records import NS_PER_MS, PlcResult, Verdict
from edgeqc.sim.virtual.kernel import Signal
from edgeqc.sim.virtual.lots import Lots
from edgeqc.sim.virtual.pieces import Piece

if TYPE_CHECKING:
    from edgeqc.sim.virtual.plant import Plant


class Reading(NamedTuple):
    """What one read of the trigger block gave."""

    counter: int
    part_id: str
    recipe: int
    ack: int
    at_ns: int
    piece: Piece | None
    """Whose the counter is: what only the oracle may know."""
    restarts: int
    """Of the PLC so far; the same."""


class Plc:
    """Registers and program of the PLC, and the network to it."""

    def __init__(self, plant: Plant) -> None:
        """Counts from where the seed says."""
        self.plant = plant
        self.lots = Lots(plant.swarm, "plc", plant.oracle, plant)
        self.counter = plant.swarm.counter
        self.part_id = ""
        self.recipe = 0
        self.current: Piece | None = None
        """Whose number the counter shows."""
        self.ack = 0
        self.counted = 0
        """Triggers raised, whatever the counter says; and those that a restart looks like."""
        self.changed = Signal(plant.kernel)
        """Something that the box reads is other than before."""
        self.block: PlcResult | None = None
        self.gate = OFF
        self.gate_ns = 0
        """When the box wrote it last."""
        self._unseen: PlcResult | None = None
        """A result that is in the registers and that the program has not looked at yet."""
        self._unseen_late = False
        """Was it written late?"""
        self.confirmations = 65_530
        self.encoder_offset = plant.swarm.encoder
        self._scan_ns = min(plant.swarm.takt_ns // 20, 10 * NS_PER_MS)
        self.restarts = 0
        self.life = 0
        """Counts the connections' end: a restart ends them all."""
        self._frozen_until_ns = 0
        self._refuses_until_ns = 0
        self._awaited: OrderedDict[str, Piece] = OrderedDict()

    @property
    def frozen(self) -> bool:
        """Does it hang just now?"""
        return self.plant.kernel.now_ns < self._frozen_until_ns

    def part(self, piece: Piece) -> None:
        """A part is at the sensor: the program's scan."""
        lots, plant = self.lots, self.plant
        self._break()
        self._expire()
        if not piece.counted:
            return
        shown = self._id_of(piece)
        self._awaited[piece.part_id] = piece
        self.recipe = piece.recipe
        self._count(piece, shown)
        for _ in range(lots.random.randint(1, 3) if lots.falls("trigger_burst") else 0):
            self._count(piece, shown)
        if lots.falls("trigger_doubled"):
            plant.kernel.at(plant.kernel.now_ns + plant.swarm.takt_ns // 3, self._count, piece, shown)

    def _break(self) -> None:
        lots, plant = self.lots, self.plant
        # Restarted at the counter's last value it looks like one that counted its next part: nothing tells the two apart.
        if self.counter != MODBUS_CYCLE - 1 and lots.falls("plc_restarted"):
            wrap = -self.counter % MODBUS_CYCLE
            if wrap <= MOST_MISSED:
                self.counted += (
                    wrap  # by its counter it looks like one that counted on over the wrap: parts that were missed
                )
            self.counter = 0
            self.part_id = ""
            self.current = None
            plant.oracle.ids_forgotten()
            self.changed.set()
            self.block = self._unseen = None
            self.ack = 0
            self.life += 1
            self.restarts += 1
            if -self.confirmations % MODBUS_CYCLE < MODBUS_CYCLE // 2:
                plant.oracle.gate.miscounted()  # by its counter it looks like one that counted on over the wrap
            self.confirmations = 0
            for awaited in self._awaited.values():
                plant.oracle.decided(awaited, Verdict.REJECT)  # a program that begins anew lets nothing through
            self._awaited.clear()
            self.gate = OFF
        if lots.falls("plc_frozen"):
            self._frozen_until_ns = plant.kernel.now_ns + lots.random.randint(1, 20) * plant.swarm.takt_ns
        if lots.falls("plc_refuses"):
            self._refuses_until_ns = plant.kernel.now_ns + lots.random.randint(1, 5) * plant.swarm.takt_ns
        if lots.falls("encoder_set"):
            self.encoder_offset = lots.random.randrange(1 << 32)

    def _id_of(self, piece: Piece) -> str:
        """The id that the program shows: of an earlier part only where the box has seen that one, and so can know."""
        before, restarted_at = self.current, self.plant.restarted_at
        seen = [one.shown_id for one in self._awaited.values() if one.sequences and one.sequences[0] > restarted_at]
        if self.lots.falls("id_swapped") and seen:
            return seen[0]
        known = before is not None and before.sequences and before.sequences[0] > restarted_at
        if before is not None and known and self.lots.falls("id_doubled"):
            return before.shown_id  # it forgot to write the new one
        return piece.part_id

    def _count(self, piece: Piece, shown: str) -> None:
        self.current = piece
        piece.counts += 1
        self.counted += 1
        self.part_id = piece.shown_id = shown
        self.counter = (self.counter + 1) % 65_536
        self.changed.set()

    def encoder(self) -> int:
        """The encoder's counter."""
        return (self.plant.position() + self.encoder_offset) % (1 << 32)

    def connect(self) -> Generator[Any, bool, int | None]:
        """A connection: its number, None where nobody answers."""
        yield self.plant.kernel.now_ns + 2 * NS_PER_MS
        return None if self.frozen else self.life

    def read(self, life: int, until_ns: int) -> Generator[Any, bool, Reading | None]:
        """The trigger block; None where no answer comes."""
        kernel = self.plant.kernel
        if self.frozen or self.lots.falls("read_lost", 0.1):
            yield until_ns
            return None
        slow_ns = self.lots.random.randint(0, self.plant.swarm.poll_ns) if self.lots.falls("read_slow") else 0
        yield kernel.now_ns + NS_PER_MS // 4 + slow_ns
        if life != self.life:
            return None
        return Reading(self.counter, self.part_id, self.recipe, self.ack, kernel.now_ns, self.current, self.restarts)

    def write(self, life: int, block: PlcResult, until_ns: int) -> Generator[Any, bool, bool]:
        """Write the block; True where it was acknowledged in time. What was not may be executed all the same, later."""
        kernel, lots = self.plant.kernel, self.lots
        if life != self.life or kernel.now_ns < self._refuses_until_ns:
            yield kernel.now_ns + NS_PER_MS // 4
            return False
        if lots.falls("write_lost"):
            yield until_ns
            return False
        executed_ns = max(kernel.now_ns + NS_PER_MS // 4, self._frozen_until_ns)
        if lots.falls("write_late"):
            executed_ns = until_ns + lots.random.randint(0, 3) * self.plant.swarm.takt_ns
        acknowledged = not lots.falls("write_unacknowledged")
        done = Signal(kernel)
        late = executed_ns > kernel.now_ns + NS_PER_MS // 4
        kernel.at(executed_ns, self._execute, life, block, done, late)
        if executed_ns >= until_ns or not acknowledged:
            yield until_ns
            return False
        return bool((yield (done, until_ns)))

    def _execute(self, life: int, block: PlcResult, done: Signal, late: bool) -> None:
        if life != self.life:
            return
        unseen = self._unseen
        if unseen is not None and (block.verdict is None or block.sequence != unseen.sequence):
            if late or self._unseen_late:
                self.plant.oracle.hidden(unseen.sequence)  # the part is rejected, which is safe
            self._unseen = None
        if block.verdict is not None:
            self._unseen, self._unseen_late = block, late
        self.block = block
        self.plant.oracle.visible(block)
        kernel = self.plant.kernel
        kernel.at(kernel.now_ns + self._scan_ns, self._scan)
        done.set()

    def _scan(self) -> None:
        """The program: PASS counts for this very part within its window, everything else rejects it."""
        self._expire()
        self._unseen = None
        block = self.block
        if block is None or block.verdict is None:
            return
        piece = self._awaited.get(block.part_id)
        if piece is not None:
            del self._awaited[block.part_id]
            self.plant.oracle.decided(piece, block.verdict)
        form, kernel, takt_ns = self.plant.swarm.form, self.plant.kernel, self.plant.swarm.takt_ns
        if form is Form.PULSE or self.lots.falls("ack_missed"):
            return
        late_ns = takt_ns * self.lots.random.randint(1, 3) if self.lots.falls("ack_late") else takt_ns // 10
        kernel.at(kernel.now_ns + late_ns, self._acknowledge, block.sequence)
        if self.lots.falls("ack_doubled"):
            kernel.at(kernel.now_ns + late_ns + 2 * takt_ns, self._acknowledge, block.sequence)

    def _acknowledge(self, sequence: int) -> None:
        self.ack = sequence
        self.changed.set()

    def _expire(self) -> None:
        """A part whose window is over is rejected."""
        window_ns = self.plant.swarm.budget_ns + self.plant.swarm.poll_ns + self._scan_ns + 5 * NS_PER_MS
        for part_id, piece in list(self._awaited.items()):
            if self.plant.kernel.now_ns - piece.at_ns <= window_ns:
                break
            del self._awaited[part_id]
            self.plant.oracle.decided(piece, Verdict.REJECT, told=self.plant.swarm.form is not Form.BUFFERED)
