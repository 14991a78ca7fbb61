"""The plant in virtual time: parts on a conveyor, a PLC that counts and decides, cameras, an engine, a disk. All can break."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.sim.virtual.camera import Camera
from edgeqc.sim.virtual.kernel import Kernel
from edgeqc.sim.virtual.lots import Lots
from edgeqc.sim.virtual.office import Office
from edgeqc.sim.virtual.oracle import Oracle
from edgeqc.sim.virtual.pieces import Piece
from edgeqc.sim.virtual.plc import Plc
from edgeqc.sim.virtual.swarm import TAIL, Swarm

DEFECTIVE = 0.25
BELT = -1
"""A frame that shows no part at all: the belt between two."""
PULSES_PER_TAKT = 1000
TRAVEL_TAKTS = 5
"""From the camera to the gate; the longest budget is four takts."""
GATE_LENGTH = 400
"""Pulses for which the gate is open for a part: less than the distance between two, and half of it more than the box's
poll of the triggers (62) and of the gate (125) can make it late."""
UNKNOWN_RECIPE = 9


HUNG_NS = 10 * NS_PER_S
"""By then a station whose line thread hangs has been ended and started anew."""
GROUP_NS = 50 * NS_PER_MS
"""Records are synced in groups, so long after the first of them."""
CALM_TAKTS = 5
CALM_NS = NS_PER_S
"""After a fault of the link, a disk or a thread that stood still for four takts at the most, parts are seen in time again."""
RECOVERY_TAKTS = 60
"""After any fault: the longest takes 20 takts, frames that stay out 12, and a counter is trusted again some parts later."""
RELINK_NS = 5 * NS_PER_S
"""More than the link takes to come back, tried anew each second at the least."""
RESTARTS_NS = 60 * NS_PER_S
"""More than a station takes that hangs for 10 s and then ends five times as soon as it starts, 5 s apart at the most."""
RECOVERY_NS = 20 * NS_PER_S
"""A station that was killed again and again is started after 5 s, its link to the PLC comes back within a second more."""


class Plant:
    """Conveyor and pieces."""

    def __init__(self, swarm: Swarm, kernel: Kernel, oracle: Oracle) -> None:
        """Everything stands still until `arrivals` runs."""
        self.swarm = swarm
        self.kernel = kernel
        self.oracle = oracle
        self.quiet = False
        self.arrived = 0
        self.board: int | None = 0
        """The last number given, in shared memory: it survives the station, but not the power."""
        self.restarted_at = 0
        """The last number of the station's life before this one."""
        self.station_ready: Callable[[], bool] = lambda: False
        self.plc = Plc(self)
        self.disk = Disk(self)
        self.office = Office(self)
        self.cameras = [Camera(self, index) for index in range(swarm.cameras)]
        self.engine = Lots(swarm, "engine", oracle, self)
        self.lots = Lots(swarm, "plant", oracle, self)
        self.running = True
        oracle.recovery_ns = RECOVERY_TAKTS * swarm.takt_ns + RELINK_NS
        oracle.restart_ns = RECOVERY_TAKTS * swarm.takt_ns + RESTARTS_NS
        oracle.calm_ns = CALM_TAKTS * swarm.takt_ns + CALM_NS
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
        self.kernel.stop()

    def _at_gate(self, piece: Piece) -> None:
        """The piece is at the gate's middle, or will be."""
        left = piece.gate_position - self.position()
        if left > 0:
            after_ns = max(left * self.swarm.takt_ns // PULSES_PER_TAKT, self.swarm.takt_ns // 50)
            self.kernel.at(self.kernel.now_ns + after_ns, self._at_gate, piece)
            return
        # The PLC's own watchdog: without news from the box the output goes off.
        told = self.plc.gate.eject and self.kernel.now_ns - self.plc.gate_ns < self.swarm.takt_ns // 4
        stuck = told and self.lots.falls("ejector_stuck", 10)
        if told and not stuck:
            self.plc.confirmations += 1
        unasked = self.lots.falls("ejection_unasked")
        self.oracle.gate.binned(piece, told and not stuck, stuck=stuck)
        if unasked:
            self.plc.confirmations += 1
            self.oracle.gate.miscounted()


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
        kernel.at(done_ns, self._synced, number)
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
