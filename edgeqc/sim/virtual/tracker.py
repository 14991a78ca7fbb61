"""The station's gate thread in virtual time, around the tracking that ships."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from edgeqc.core.axis import Axis
from edgeqc.core.conveyor import Conveyor
from edgeqc.core.stopping import StopReason, StopRule
from edgeqc.core.track import FAILURES, Gate, GateEvent, GateFact, GateLayout
from edgeqc.sim.virtual.plant import GATE_LENGTH, PULSES_PER_TAKT, TRAVEL_TAKTS, Plant

_CONFIRM = 200
"""Pulses behind the output, within which the confirmation must come."""
_POLLS_PER_TAKT = 8
_TOLD = TRAVEL_TAKTS * PULSES_PER_TAKT + GATE_LENGTH + _CONFIRM + PULSES_PER_TAKT // _POLLS_PER_TAKT
"""Pulses from where a part is when it is heard of to where the gate knows what has become of it. One poll more: of a line
that stops between two readings nobody knows how far it went on."""


class Tracker:
    """Follows parts to the gate, and opens it for those that did not pass."""

    def __init__(
        self, plant: Plant, *, stop: StopRule, link: Callable[[], int | None], beat: Callable[[], None]
    ) -> None:
        """`link` gives the connection to the PLC, None where there is none; `beat` says that the thread is alive."""
        self._plant, self._stop, self._link, self._beat = plant, stop, link, beat
        plant.oracle.gate.disturbed()
        takt_ns = plant.swarm.takt_ns
        self._by_encoder = plant.swarm.tracking == "encoder"
        unit = PULSES_PER_TAKT if self._by_encoder else takt_ns
        per_pulse = unit / PULSES_PER_TAKT
        gap_ns = takt_ns // 5
        gate = Gate(
            GateLayout(
                travel=int(TRAVEL_TAKTS * unit), length=int(GATE_LENGTH * per_pulse), confirm=int(_CONFIRM * per_pulse)
            )
        )
        axis = Axis(cycle=1 << 32, most_step=20 * PULSES_PER_TAKT) if self._by_encoder else Axis(most_gap_ns=gap_ns)
        self._conveyor = Conveyor(axis, gate, most_gap_ns=gap_ns)

    def part(self, sequence: int, part_id: str, came_ns: int | None) -> None:
        """A part was triggered then; None: nobody knows when."""
        self._plant.oracle.gate.on_its_way(sequence, self._plant.position() + _TOLD)
        self._tell(self._conveyor.part(sequence, part_id, came_ns, now_ns=self._plant.kernel.now_ns))

    def passed(self, sequence: int) -> None:
        """The PLC has acknowledged its PASS."""
        self._conveyor.passed(sequence)

    def run(self) -> Generator[Any, bool, None]:
        """Read the PLC's inputs, write the output, poll after poll."""
        conveyor, plc, kernel = self._conveyor, self._plant.plc, self._plant.kernel
        poll_ns = self._plant.swarm.takt_ns // _POLLS_PER_TAKT
        while True:
            yield kernel.now_ns + poll_ns
            self._beat()
            link = self._link()
            if link is None or plc.frozen or link != plc.life:
                conveyor.interrupted()
                self._plant.oracle.gate.disturbed()
                continue
            if self._by_encoder:
                events = conveyor.encoder(plc.encoder(), kernel.now_ns, confirmations=plc.confirmations)
            else:
                running = self._plant.running
                events = conveyor.clock(kernel.now_ns, running=running, confirmations=plc.confirmations)
            self._plant.oracle.gate.looked(self._plant.position())
            self._tell(events)
            plc.gate, plc.gate_ns = conveyor.output, kernel.now_ns

    def _tell(self, events: list[GateEvent]) -> None:
        oracle = self._plant.oracle.gate
        for event in events:
            oracle.told(event.fact, event.sequence, failure=event.fact in FAILURES)
            if event.fact in FAILURES:
                self._stop.ask(StopReason.GATE)
            elif event.fact is GateFact.EJECT:
                oracle.ejects(event.sequence)
