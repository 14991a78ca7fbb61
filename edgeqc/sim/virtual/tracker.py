"""The station's gate thread in virtual time, around the tracking that ships."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from edgeqc.core.axis import Axis
from edgeqc.core.stopping import StopReason, StopRule
from edgeqc.core.track import FAILURES, Gate, GateEvent, GateFact, GateLayout
from edgeqc.sim.virtual.plant import GATE_LENGTH, PULSES_PER_TAKT, TRAVEL_TAKTS, Plant

_CONFIRM = 200
"""Pulses behind the output, within which the confirmation must come."""


class Tracker:
    """Follows parts to the gate, and opens it for those that did not pass."""

    def __init__(
        self, plant: Plant, *, stop: StopRule, link: Callable[[], int | None], beat: Callable[[], None]
    ) -> None:
        """`link` gives the connection to the PLC, None where there is none; `beat` says that the thread is alive."""
        self._plant, self._stop, self._link, self._beat = plant, stop, link, beat
        takt_ns = plant.swarm.takt_ns
        self._by_encoder = plant.swarm.tracking == "encoder"
        unit = PULSES_PER_TAKT if self._by_encoder else takt_ns
        per_pulse = unit / PULSES_PER_TAKT
        self._gate = Gate(
            GateLayout(
                travel=int(TRAVEL_TAKTS * unit), length=int(GATE_LENGTH * per_pulse), confirm=int(_CONFIRM * per_pulse)
            )
        )
        self._axis = (
            Axis(cycle=1 << 32, most_step=20 * PULSES_PER_TAKT) if self._by_encoder else Axis(most_gap_ns=takt_ns // 5)
        )

    def part(self, sequence: int, part_id: str, came_ns: int | None) -> None:
        """A part was triggered then; None: nobody knows when."""
        position = None if came_ns is None else self._axis.at(came_ns)
        self._tell(self._gate.part(sequence, part_id, position))

    def passed(self, sequence: int) -> None:
        """The PLC has acknowledged its PASS."""
        self._gate.passed(sequence)

    def run(self) -> Generator[Any, bool, None]:
        """Read the PLC's inputs, write the output, poll after poll."""
        gate, plc, kernel = self._gate, self._plant.plc, self._plant.kernel
        poll_ns = self._plant.swarm.takt_ns // 8
        while True:
            yield kernel.now_ns + poll_ns
            self._beat()
            link = self._link()
            if link is None or plc.frozen or link != plc.life:
                gate.interrupted()
                continue
            if self._by_encoder:
                kept = self._axis.encoder(plc.encoder(), kernel.now_ns)
            else:
                kept = self._axis.clock(running=self._plant.running, at_ns=kernel.now_ns)
            if not kept:
                self._tell(gate.lost())
            self._tell(gate.confirmed(plc.confirmations))
            self._tell(gate.move(self._axis.position or 0))
            plc.gate, plc.gate_ns = gate.output, kernel.now_ns

    def _tell(self, events: list[GateEvent]) -> None:
        oracle = self._plant.oracle
        for event in events:
            oracle.told(event.fact, event.sequence, failure=event.fact in FAILURES)
            if event.fact in FAILURES:
                self._stop.ask(StopReason.GATE)
            elif event.fact is GateFact.EJECT and event.sequence in oracle.delivered_pass:
                oracle.fail("I6 gate", f"{event.sequence} passed, and the gate opened for it")
