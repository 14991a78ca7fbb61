"""Which faults happen when: drawn, for each component by itself."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeqc.sim.virtual.oracle import Oracle
    from edgeqc.sim.virtual.plant import Plant
    from edgeqc.sim.virtual.swarm import Swarm


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
        rate = self._rates.get(fault)
        if rate is None or self.random.random() >= rate * times or self._plant.quiet:
            return False
        self._oracle.fault(fault)
        return True
