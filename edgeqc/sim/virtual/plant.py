"""The plant in virtual time: parts on a conveyor, a PLC that counts and decides, cameras, an engine, a disk. All can break."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from edgeqc.core.account import GVSP_CYCLE
from edgeqc.core.handshake import Form
from edgeqc.core.track import GateOutput
from edgeqc.records import NS_PER_MS, NS_PER_S, FrameStatus, PlcResult, Verdict
from edgeqc.sim.virtual.kernel import Kernel, Signal
from edgeqc.sim.virtual.oracle import Oracle, Piece
from edgeqc.sim.virtual.swarm import TAIL, Swarm

DEFECTIVE = 0.25
BELT = -1
"""A frame that shows no part at all: the belt between two."""
PULSES_PER_TAKT = 1000
TRAVEL_TAKTS = 5
"""From the camera to the gate; the longest budget is four takts."""
GATE_LENGTH = 300
"""Pulses for which the gate is open for a part: less than the distance between two."""
UNKNOWN_RECIPE = 9


HUNG_NS = 10 * NS_PER_S
"""By then a station whose line thread hangs has been ended and started anew."""
GROUP_NS = 50 * NS_PER_MS
"""Records are synced in groups, so long after the first of them."""
RECOVERY_NS = 20 * NS_PER_S
"""A station that was killed again and again is started after 5 s, its link to the PLC comes back within a second more."""


class Lots:
    """One component's faults: another component's draws do not change them."""

    def __init__(self, swarm: Swarm, name: str, oracle: Oracle, plant: Plant) -> None:
        """Drawn from the seed and the component's name."""
        self.random = random.Random(f"{swarm.seed}:{name}")
        self._rates = swarm.rates
        self._oracle = oracle
        self._plant = plant

    def falls(self, fault: str, times: float = 1.0) -> bool:
        """Does this fault happen now? Never in the tail of the run."""
        rate = self._rates.get(fault, 0.0) * times
        if not rate or self.random.random() >= rate or self._plant.quiet:
            return False
        self._oracle.fault(fault)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A frame as the camera's library hands it out."""

    camera: int
    frame_id: int
    content: int
    """Number of the piece that it shows, BELT for none: what only the oracle may know."""
    status: FrameStatus
    first_ns: int
    received_ns: int


class Plant:
    """Conveyor and pieces."""

    def __init__(self, swarm: Swarm, kernel: Kernel, oracle: Oracle) -> None:
        """Everything stands still until `arrivals` runs."""
        self.swarm = swarm
        self.kernel = kernel
        self.oracle = oracle
        self.quiet = False
        self.arrived = 0
        self.done = False
        self.board: int | None = 0
        """The last number given, in shared memory: it survives the station, but not the power."""
        self.restarted_at = 0
        """The last number of the station's life before this one."""
        self.station_ready: Callable[[], bool] = lambda: False
        self.plc = Plc(self)
        self.disk = Disk(self)
        self.cameras = [Camera(self, index) for index in range(swarm.cameras)]
        self.engine = Lots(swarm, "engine", oracle, self)
        self.lots = Lots(swarm, "plant", oracle, self)
        self.running = True
        self._now: Piece | None = None
        self._moved_ns = 0
        self._since_ns = kernel.now_ns
        self._on_belt: list[Piece] = []

    def position(self) -> int:
        """Pulses that the conveyor has moved."""
        return (self._moved_ns + self._ran_ns()) * PULSES_PER_TAKT // self.swarm.takt_ns

    def _ran_ns(self) -> int:
        return self.kernel.now_ns - self._since_ns if self.running else 0

    def under_camera(self, at_ns: int) -> int:
        """Which piece a frame exposed at this time shows."""
        piece = self._now
        if piece is None or at_ns < piece.at_ns or at_ns - piece.at_ns > self.swarm.takt_ns // 2:
            return BELT
        return piece.number

    def arrivals(self) -> Generator[Any, bool, None]:
        """Bring all parts, one per takt."""
        swarm, lots, kernel = self.swarm, self.lots, self.kernel
        yield kernel.now_ns + 50 * swarm.takt_ns // 10
        recipe = 0
        for number in range(1, swarm.triggers + 1):
            if number == swarm.triggers - TAIL + 1:
                self.quiet = True  # from here on nothing breaks, and the line must come back by itself
                until_ns = kernel.now_ns + RECOVERY_NS + 4 * swarm.frame_timeout_ns
                while not self.station_ready() and kernel.now_ns < until_ns:
                    yield kernel.now_ns + 10 * swarm.takt_ns
                hung_ns = HUNG_NS if self.oracle.faults.get("engine_hung") else 0  # seen only then
                yield kernel.now_ns + max(4 * swarm.frame_timeout_ns, hung_ns)
            if lots.falls("recipe_changed"):
                recipe = 1 - min(recipe, 1)
            if self.quiet and recipe == UNKNOWN_RECIPE:
                recipe = 0
            asked = UNKNOWN_RECIPE if lots.falls("recipe_unknown") else recipe
            piece = Piece(
                number=number,
                part_id=f"P{number:06d}",
                at_ns=kernel.now_ns,
                defective=lots.random.random() < DEFECTIVE,
                recipe=asked,
                quiet=number > swarm.triggers - TAIL // 3,
                counted=not lots.falls("trigger_lost"),
            )
            self._now = piece
            self.arrived = number
            self.oracle.pieces[number] = piece
            piece.gate_position = self.position() + TRAVEL_TAKTS * PULSES_PER_TAKT + GATE_LENGTH // 2
            self.plc.part(piece)
            if swarm.tracking != "part_id":
                kernel.at(kernel.now_ns + TRAVEL_TAKTS * swarm.takt_ns, self._at_gate, piece)
            yield kernel.now_ns + swarm.takt_ns
            if lots.falls("line_stopped"):
                self._moved_ns += self._ran_ns()
                self.running = False
                yield kernel.now_ns + lots.random.randint(1, 10) * swarm.takt_ns
                self._since_ns = kernel.now_ns
                self.running = True
        yield kernel.now_ns + (TRAVEL_TAKTS + 6) * swarm.takt_ns
        self.done = True

    def _at_gate(self, piece: Piece) -> None:
        """The piece is at the gate's middle, or will be."""
        left = piece.gate_position - self.position()
        if left > 0:
            after_ns = max(left * self.swarm.takt_ns // PULSES_PER_TAKT, self.swarm.takt_ns // 50)
            self.kernel.at(self.kernel.now_ns + after_ns, lambda: self._at_gate(piece))
            return
        # The PLC's own watchdog: without news from the box the output goes off.
        told = self.plc.gate.eject and self.kernel.now_ns - self.plc.gate_ns < self.swarm.takt_ns // 4
        stuck = told and self.lots.falls("ejector_stuck", 10)
        if told and not stuck:
            self.plc.confirmations += 1
        if self.lots.falls("ejection_unasked"):
            self.plc.confirmations += 1
        self.oracle.binned(piece, told and not stuck, working=not stuck)


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
        self.changed = Signal(plant.kernel)
        """Something that the box reads is other than before."""
        self.block: PlcResult | None = None
        self.gate = GateOutput(eject=False, sequence=0, part_id="", position=0, ejections=0)
        self.gate_ns = 0
        """When the box wrote it last."""
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
        if lots.falls("plc_restarted"):
            self.counter = 0
            self.changed.set()
            self.block = None
            self.ack = 0
            self.life += 1
            self.restarts += 1
            self.confirmations = 0
            for awaited in self._awaited.values():
                plant.oracle.decided(awaited, Verdict.REJECT)  # a program that begins anew lets nothing through
            self._awaited.clear()
            self.gate = GateOutput(eject=False, sequence=0, part_id="", position=0, ejections=0)
        if lots.falls("plc_frozen"):
            self._frozen_until_ns = plant.kernel.now_ns + lots.random.randint(1, 20) * plant.swarm.takt_ns
        if lots.falls("plc_refuses"):
            self._refuses_until_ns = plant.kernel.now_ns + lots.random.randint(1, 5) * plant.swarm.takt_ns
        if lots.falls("encoder_set"):
            self.encoder_offset = lots.random.randrange(1 << 32)
        self._expire()
        if not piece.counted:
            return
        shown = piece.part_id
        seen = [
            awaited.shown_id
            for awaited in self._awaited.values()
            if awaited.sequences and awaited.sequences[0] > plant.restarted_at
        ]
        if lots.falls("id_swapped") and seen:
            shown = seen[
                0
            ]  # the program shows an earlier part's id once more; one that the box never saw it can't know
        self._awaited[piece.part_id] = piece
        self.recipe = piece.recipe
        self._count(piece, shown)
        for _ in range(lots.random.randint(1, 3) if lots.falls("trigger_burst") else 0):
            self._count(piece, shown)
        if lots.falls("trigger_doubled"):
            plant.kernel.at(plant.kernel.now_ns + plant.swarm.takt_ns // 3, lambda: self._count(piece, shown))

    def _count(self, piece: Piece, shown: str) -> None:
        self.current = piece
        piece.counts += 1
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

    def read(self, life: int, until_ns: int) -> Generator[Any, bool, tuple[int, str, int, int] | None]:
        """Counter, part id, recipe and acknowledgement; None where no answer comes."""
        kernel = self.plant.kernel
        if self.frozen or self.lots.falls("read_lost", 0.1):
            yield until_ns
            return None
        yield kernel.now_ns + NS_PER_MS // 4
        return (self.counter, self.part_id, self.recipe, self.ack) if life == self.life else None

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
        kernel.at(executed_ns, lambda: self._execute(life, block, done))
        if executed_ns >= until_ns or not acknowledged:
            yield until_ns
            return False
        return bool((yield (done, until_ns)))

    def _execute(self, life: int, block: PlcResult, done: Signal) -> None:
        if life != self.life:
            return
        self.block = block
        self.plant.oracle.visible(block)
        kernel = self.plant.kernel
        kernel.at(kernel.now_ns + self._scan_ns, self._scan)
        done.set()

    def _scan(self) -> None:
        """The program: PASS counts for this very part within its window, everything else rejects it."""
        self._expire()
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
        kernel.at(kernel.now_ns + late_ns, lambda: self._acknowledge(block.sequence))
        if self.lots.falls("ack_doubled"):
            kernel.at(kernel.now_ns + late_ns + 2 * takt_ns, lambda: self._acknowledge(block.sequence))

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


class Camera:
    """One camera: exposes when triggered, and sends frames that may come late, twice, broken or never."""

    def __init__(self, plant: Plant, index: int) -> None:
        """Connected, counting from where the seed says."""
        self.plant = plant
        self.index = index
        self.lots = Lots(plant.swarm, f"camera{index}", plant.oracle, plant)
        self.frame_id = plant.swarm.frame_id
        self.life = 0
        self.came = Signal(plant.kernel)
        self.queue: list[Shot] = []
        self.slots_out = 0
        self.up = True
        self._back_ns = 0

    def trigger(self) -> Generator[Any, bool, bool]:
        """Send the software trigger; False where it cannot be sent."""
        kernel, swarm, lots = self.plant.kernel, self.plant.swarm, self.lots
        if lots.falls("camera_gone"):
            self.lost(lots.random.randint(1, 20) * swarm.takt_ns)
        if not self.up:
            return False
        slow_ns = lots.random.randint(1, 3) * swarm.takt_ns // 2 if lots.falls("camera_slow") else 0
        at_ns = kernel.now_ns + slow_ns
        if not lots.falls("camera_ignores"):
            kernel.at(at_ns + swarm.exposure_ns // 2, self._expose, self.life)
        if lots.falls("frame_phantom"):
            stray_ns = at_ns + lots.random.randint(1, swarm.takt_ns)
            kernel.at(stray_ns, lambda life=self.life: self._expose(life, stray=True))
        yield at_ns + NS_PER_MS // 4
        return True

    def reconnected(self) -> None:
        """A new connection by a new process: what was under way on the old one never arrives."""
        self.life += 1
        self.queue.clear()

    def lost(self, gone_ns: int) -> None:
        """The connection is gone; it is opened again later, and counts from 1."""
        self.up = False
        self.life += 1
        self.queue.clear()
        self._back_ns = self.plant.kernel.now_ns + gone_ns
        self.plant.kernel.at(self._back_ns, self._back)

    def _back(self) -> None:
        if not self.up and self.plant.kernel.now_ns >= self._back_ns:
            self.up = True
            self.frame_id = 0

    def _expose(self, life: int, *, stray: bool = False) -> None:
        if life != self.life:
            return
        kernel, swarm, lots = self.plant.kernel, self.plant.swarm, self.lots
        content = self.plant.under_camera(kernel.now_ns)
        self.frame_id = self.frame_id % GVSP_CYCLE + 1
        first_ns = kernel.now_ns + (swarm.exposure_ns - swarm.exposure_ns // 2)
        if lots.falls("frame_lost"):
            return
        if not stray and lots.falls("frame_late"):
            first_ns += lots.random.randint(swarm.takt_ns // 10, swarm.frame_timeout_ns - 2 * swarm.takt_ns // 10)
        status = FrameStatus.INCOMPLETE if lots.falls("frame_truncated") else FrameStatus.OK
        received_ns = first_ns + swarm.transfer_ns
        shot = Shot(
            camera=self.index,
            frame_id=self.frame_id,
            content=content,
            status=status,
            first_ns=first_ns,
            received_ns=received_ns,
        )
        kernel.at(received_ns, lambda: self._deliver(life, shot))
        if lots.falls("frame_doubled"):
            kernel.at(received_ns + lots.random.randint(1, swarm.takt_ns), lambda: self._deliver(life, shot))

    def _deliver(self, life: int, shot: Shot) -> None:
        if life == self.life and self.up:
            self.queue.append(shot)
            self.came.set()


class Disk:
    """The journal's disk: what is written survives the process, what is synced survives the power."""

    def __init__(self, plant: Plant) -> None:
        """Empty."""
        self.plant = plant
        self.lots = Lots(plant.swarm, "disk", plant.oracle, plant)
        self.records: list[object] = []
        self.synced = 0
        self._full_until_ns = 0
        self._group_waits = False

    def append(self, record: object) -> int | None:
        """Number of the record, from 1; None where the disk is full."""
        kernel = self.plant.kernel
        if self.lots.falls("disk_full"):
            self._full_until_ns = kernel.now_ns + self.lots.random.randint(1, 10) * self.plant.swarm.takt_ns
        if kernel.now_ns < self._full_until_ns:
            return None
        self.records.append(record)
        number = len(self.records)
        if not self._group_waits:
            self._group_waits = True
            kernel.at(kernel.now_ns + GROUP_NS, self._group)
        return number

    def sync(self, number: int, until_ns: int) -> Generator[Any, bool, bool]:
        """Wait until this record is safe from a power cut; False where it is not in time."""
        kernel = self.plant.kernel
        takes_ns = 2 * NS_PER_MS
        if self.lots.falls("disk_slow"):
            takes_ns = self.lots.random.randint(1, 3) * self.plant.swarm.takt_ns
        done_ns = kernel.now_ns + takes_ns
        kernel.at(done_ns, lambda: self._synced(number))
        yield min(done_ns, until_ns)
        return self.synced >= number

    def mark(self, number: int) -> None:
        """Put a number on the disk and wait for it: at a start, when nobody else waits."""
        self.records.append(number)
        self.synced = len(self.records)

    def power_cut(self) -> None:
        """What was not synced is gone."""
        del self.records[self.synced :]
        self.synced = len(self.records)

    def _group(self) -> None:
        self._group_waits = False
        self.synced = len(self.records)

    def _synced(self, number: int) -> None:
        self.synced = max(self.synced, min(number, len(self.records)))


def score_of(lots: Lots, piece: Piece | None) -> tuple[float, bool]:
    """What the engine says of a frame that shows this piece, and whether it worked."""
    if lots.falls("engine_error"):
        return math.nan, False
    if lots.falls("engine_nan"):
        return lots.random.choice((math.nan, math.inf, -math.inf)), True
    if lots.falls("engine_range"):
        return lots.random.choice((-0.5, 1.5, 1e9)), True
    return (0.9 if piece is not None and piece.defective else 0.1), True
