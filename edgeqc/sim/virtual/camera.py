"""A camera in virtual time."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from edgeqc.records import NS_PER_MS, FrameStatus
from edgeqc.sim.virtual.kernel import Signal
from edgeqc.sim.virtual.lots import Lots
from edgeqc.sim.virtual.pieces import Shot

if TYPE_CHECKING:
    from edgeqc.sim.virtual.plant import Plant

_FRAME_NUMBERS = 65_535
"""1 to 65535 of a GigE Vision camera: said anew, so that the core's own number has a witness."""


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
        self.sure = True
        """Nothing has gone wrong since this connection was opened: each of its frames is its part's."""
        self._back_ns = 0

    def trigger(self, sequence: int) -> Generator[Any, bool, bool]:
        """Send the software trigger for this part; False where it cannot be sent."""
        kernel, swarm, lots = self.plant.kernel, self.plant.swarm, self.lots
        if lots.falls("camera_gone"):
            self.lost(lots.random.randint(1, 20) * swarm.takt_ns)
        if not self.up:
            return False
        slow_ns = lots.random.randint(1, 3) * swarm.takt_ns // 2 if lots.falls("camera_slow") else 0
        at_ns = kernel.now_ns + slow_ns
        late_ns = lots.random.randint(swarm.takt_ns // 4, 3 * swarm.takt_ns // 2) if lots.falls("exposure_late") else 0
        ignored, phantom = lots.falls("camera_ignores"), lots.falls("frame_phantom")
        if slow_ns or late_ns or ignored or phantom:
            self.sure = False
        if not ignored:
            # Later than the frame's time-out nothing comes: what the configuration says of the camera holds.
            latest_ns = kernel.now_ns + swarm.frame_timeout_ns - swarm.takt_ns // 5
            kernel.at(at_ns + late_ns + swarm.exposure_ns // 2, self._expose, self.life, sequence, latest_ns)
        if phantom:
            kernel.at(at_ns + lots.random.randint(1, swarm.takt_ns), self._expose, self.life, 0, 0)
        yield at_ns + NS_PER_MS // 4
        return True

    def reconnected(self) -> None:
        """A new connection by a new process: what was under way on the old one never arrives."""
        self.life += 1
        self.sure = True
        self.queue.clear()

    def lost(self, gone_ns: int) -> None:
        """The connection is gone; it is opened again later, and counts from 1."""
        self.up = False
        self.life += 1
        self.sure = True
        self.queue.clear()
        self._back_ns = self.plant.kernel.now_ns + gone_ns
        self.plant.kernel.at(self._back_ns, self._back)

    def _back(self) -> None:
        if not self.up and self.plant.kernel.now_ns >= self._back_ns:
            self.up = True
            self.frame_id = 0

    def _expose(self, life: int, sequence: int, latest_ns: int) -> None:
        if life != self.life:
            return
        kernel, swarm, lots = self.plant.kernel, self.plant.swarm, self.lots
        content = self.plant.under_camera(kernel.now_ns)
        if lots.falls("camera_counts_anew"):
            self.frame_id = lots.random.randrange(self.frame_id + 1)
            self.sure = False
        self.frame_id = self.frame_id % _FRAME_NUMBERS + 1
        first_ns = kernel.now_ns + (swarm.exposure_ns - swarm.exposure_ns // 2)
        if lots.falls("frame_lost"):
            self.sure = False
            return
        if sequence and lots.falls("frame_late"):
            self.sure = False
            late_ns = lots.random.randint(swarm.takt_ns // 10, swarm.frame_timeout_ns - swarm.takt_ns // 5)
            first_ns = max(first_ns, min(first_ns + late_ns, latest_ns))
        status = FrameStatus.INCOMPLETE if lots.falls("frame_truncated") else FrameStatus.OK
        received_ns = first_ns + swarm.transfer_ns
        shot = Shot(
            camera=self.index,
            frame_id=self.frame_id,
            content=content,
            status=status,
            exposed_ns=kernel.now_ns,
            first_ns=first_ns,
            received_ns=received_ns,
            sequence=sequence,
            life=life,
        )
        kernel.at(received_ns, self._deliver, shot)
        if lots.falls("frame_doubled"):
            self.sure = False
            kernel.at(received_ns + lots.random.randint(1, swarm.takt_ns), self._deliver, shot)

    def _deliver(self, shot: Shot) -> None:
        if shot.life == self.life and self.up:
            self.queue.append(shot)
            self.came.set()
