"""Seeds, run one after the other: each a line of its own, until a violation or the end."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgeqc.core.restart import RestartBudget, hung
from edgeqc.records import NS_PER_MS, NS_PER_S, PartRecord, Verdict
from edgeqc.sim.virtual.kernel import Kernel, Stalled
from edgeqc.sim.virtual.lots import Lots
from edgeqc.sim.virtual.oracle import Oracle, Violation
from edgeqc.sim.virtual.plant import Plant
from edgeqc.sim.virtual.station import Station
from edgeqc.sim.virtual.swarm import Swarm, draw

PER_SEED = 500
"""Parts of one seed."""
LEAST = 60
"""Parts that a line needs to show anything: the last ones are without faults."""
CRASHES = 5
"""Of a station that ends as soon as it starts: more than are free in ten seconds."""
SKIPPED_NUMBERS = 1024
"""After a power cut: more numbers than are given while one group of records waits for its sync."""


@dataclass(slots=True, kw_only=True)
class Report:
    """One seed's run."""

    swarm: Swarm
    trace: str = ""
    """Hash of everything that happened: the same for the same seed, always."""
    line_trace: str = ""
    """The same of the line alone, without what the office tells to the outside."""
    triggers: int = 0
    passed: int = 0
    rejected: int = 0
    defective: int = 0
    """Pieces that really are."""
    lost_in_crash: int = 0
    events: int = 0
    virtual_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    violation: Violation | None = None


class _Supervisor:
    """Starts the station, and again when it hangs, is killed, or loses the power: by the rules that ship."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.station: Station | None = None
        self.lots = Lots(plant.swarm, "supervisor", plant.oracle, plant)
        self.restarts = RestartBudget()
        self.crashes = 0
        """So many more times the station ends as soon as it starts."""

    def run(self) -> Iterator[Any]:
        kernel, swarm = self.plant.kernel, self.plant.swarm
        limits_ns = dict.fromkeys(("line", "guard", "triggers"), 2 * NS_PER_S + swarm.budget_ns)
        look_ns = max(50 * NS_PER_MS, swarm.takt_ns)
        while True:
            self.station = Station(self.plant, first_sequence=self._last_sequence() + 1)
            started_ns = kernel.now_ns
            if self.crashes:
                self.crashes -= 1
                self.station.kill()
            while not self.station.dead:
                yield kernel.now_ns + look_ns
                stuck = hung(self.station.beats, limits_ns, started_ns=started_ns, now_ns=kernel.now_ns)
                if stuck or self.lots.falls("killed"):
                    self.station.kill()
                elif self.lots.falls("crash_loop"):
                    self.station.kill()
                    self.crashes = CRASHES
                elif self.lots.falls("power_cut"):
                    self.station.kill()
                    self.plant.disk.power_cut()
                    self.plant.board = None
            delay_s = self.restarts.ended(kernel.now_ns, self.lots.random.random())
            yield kernel.now_ns + int(delay_s * NS_PER_S) + 500 * NS_PER_MS

    def _last_sequence(self) -> int:
        """The last number that may have been used: journal and board know it, or what was lost with the power is skipped."""
        first = self.plant.swarm.first_sequence - 1
        numbers = (one.trigger.sequence if isinstance(one, PartRecord) else one for one in self.plant.disk.records)
        journaled = max((number for number in numbers if isinstance(number, int)), default=first)
        if self.plant.board is not None:
            return max(journaled, self.plant.board)
        self.plant.board = journaled + SKIPPED_NUMBERS
        self.plant.disk.mark(self.plant.board)  # a second power cut must not give the same numbers again
        return self.plant.board


def run_seed(seed: int, triggers: int) -> Report:
    """One line from its first part to its last, judged after every event."""
    swarm = draw(seed, triggers)
    kernel = Kernel()
    oracle = Oracle(kernel)
    plant = Plant(swarm, kernel, oracle)
    supervisor = _Supervisor(plant)
    plant.station_ready = lambda: supervisor.station is not None and supervisor.station.ready
    report = Report(swarm=swarm)
    try:
        kernel.spawn("supervisor", supervisor.run())  # type: ignore[arg-type]
        kernel.spawn("arrivals", plant.arrivals())
        kernel.spawn("office", plant.office.run())
        end_ns = kernel.now_ns + (20 * triggers + 1000) * swarm.takt_ns + 600 * NS_PER_S

        def check() -> None:
            station = supervisor.station
            under_way = 0 if station is None or station.dead else len(station.lane) + station.outcome.announcing
            if oracle.triggers != oracle.passed + oracle.rejected + under_way + oracle.lost_in_crash:
                oracle.counts(under_way)

        kernel.run(check, end_ns=end_ns)
        _at_the_end(plant, supervisor)
    except Violation as violation:
        report.violation = violation
    except Stalled as stalled:
        report.violation = Violation("I13 liveness", kernel.now_ns, str(stalled))
    report.trace, report.line_trace = oracle.trace, oracle.line_trace
    report.triggers = oracle.triggers
    report.passed, report.rejected = oracle.passed, oracle.rejected
    report.defective = sum(piece.defective for piece in oracle.pieces.values())
    report.lost_in_crash = oracle.lost_in_crash
    report.events = kernel.events
    report.virtual_s = kernel.now_ns / NS_PER_S
    report.faults = dict(oracle.faults)
    return report


def _at_the_end(plant: Plant, supervisor: _Supervisor) -> None:
    """The last parts came without a fault: the line must have recovered, and owe nobody anything."""
    oracle, station = plant.oracle, supervisor.station
    plant.office.drain()
    if station is None or station.dead or station.keeper.link is None:
        oracle.fail("I13 recovery", "the station is not running, or has no link to the PLC")
        return
    if len(station.lane) or any(camera.slots_out for camera in plant.cameras):
        oracle.fail("I17 resources", f"{len(station.lane)} parts and some slots are still out")
    oracle.gate.at_the_end()
    for piece in oracle.pieces.values():
        if piece.counted and piece.decision is None and piece.number < plant.swarm.triggers:
            oracle.fail("I1 decision", f"the PLC never decided on piece {piece.number}")
        if piece.quiet and not piece.defective and piece.decision is not Verdict.PASS:
            oracle.fail("I13 recovery", f"piece {piece.number} is good, all is well, and it did not pass: {piece}")


def runs(first_seed: int, triggers: int, *, per_seed: int = PER_SEED, jobs: int = 1) -> Iterator[Report]:
    """Seed after seed, from the first, until so many parts are through: short runs of many seeds find more.

    `jobs`: seeds run at a time, in a process each; their reports come in order all the same.
    """
    lines = [
        (first_seed + place, min(per_seed, max(triggers - place * per_seed, LEAST)))
        for place in range(-(-triggers // per_seed))
    ]
    if jobs == 1:
        yield from map(_run, lines)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_run, lines)


def _run(line: tuple[int, int]) -> Report:
    return run_seed(*line)
