"""The station's link to the PLC in virtual time, around the handshake that ships: one writer at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from edgeqc.core.backoff import Backoff
from edgeqc.core.handshake import Form, Handshake, Phase, Rules
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.sim.virtual.kernel import Signal, Steps
from edgeqc.sim.virtual.plant import Plant
from edgeqc.sim.virtual.plc import Reading

WRITE_NS: Final = 50 * NS_PER_MS
_BACKOFF: Final = Backoff(first_s=0.1, most_s=1.0)


class PlcKeeper:
    """Keeps the link, and the block that the PLC is shown."""

    def __init__(self, plant: Plant, draws: random.Random, *, due: Signal, at_first: Callable[[], None]) -> None:
        """No link yet. `due` wakes the guard, which writes what has changed; `at_first`: called with the first link."""
        swarm = plant.swarm
        self._plant, self._kernel, self._oracle = plant, plant.kernel, plant.oracle
        self._random, self._due, self._at_first = draws, due, at_first
        self.handshake = Handshake(
            Rules(form=swarm.form, hold_ns=swarm.takt_ns // 2 if swarm.form == "pulse" else None)
        )
        self.link: int | None = None
        self.opening: Reading | None = None
        """What stood in the trigger block when the link was opened."""
        self.changed = False
        """Has the block changed since it was written?"""
        self.locked = False
        """Is somebody writing?"""
        self.safe: set[int] = set()
        """Parts whose records are as safe as the settings ask for: known here, not asked of the core."""
        # A trigger is seen a poll and a way late at the most; a buffered result may wait for those before it.
        self._latest_ns = swarm.budget_ns - swarm.plc_write_ns + NS_PER_MS // 2
        if swarm.form is Form.BUFFERED:
            self._latest_ns = 1 << 62
        self._lost = Signal(plant.kernel)
        self._unlocked = Signal(plant.kernel)

    def run(self) -> Steps:
        """Connect, begin with what says nothing of a part, and again after each loss."""
        plc, failures, linked = self._plant.plc, 0, False
        while True:
            link = yield from plc.connect()
            if link is not None:
                while not (yield from self._lock(self._kernel.now_ns + NS_PER_S)):
                    pass
                if self.handshake.phase is not Phase.OFFLINE:
                    self.handshake.lost()  # it was a read that failed
                self.handshake.connected()
                self._oracle.write_begun(self.handshake.block, latest_ns=0, durable=True, fresh_link=True)
                good = yield from plc.write(link, self.handshake.block, self._kernel.now_ns + 10 * WRITE_NS)
                if good:
                    self.handshake.written(self._kernel.now_ns)
                    self.opening = yield from plc.read(link, self._kernel.now_ns + 10 * WRITE_NS)
                if not good or self.opening is None:
                    self.handshake.lost()
                    link = None
                self._unlock()
            if link is None:
                failures += 1
                yield self._kernel.now_ns + int(_BACKOFF.delay_s(failures, self._random.random()) * NS_PER_S)
                continue
            failures = 0
            self.link = link
            if not linked:
                linked = True
                self._at_first()
            self._lost.is_set = False
            while self.link is not None and not (yield (self._lost, self._kernel.now_ns + NS_PER_S)):
                pass
            self.link = None

    def hear(self, ack: int) -> None:
        """The PLC shows this acknowledgement."""
        if self.handshake.phase is Phase.OFFLINE or self.locked:
            return
        shown = self.handshake.block.sequence
        if self.handshake.ack(ack):
            if ack != shown:
                self._oracle.fail("I7 acknowledgement", f"of {ack}, and it released {shown}")
            self.change()

    def write(self, compose: Callable[[], bool], until_ns: int) -> Steps:
        """Write the block; True where it was acknowledged by then. `compose` changes it once the link is ours, or declines."""
        link = self.link
        if link is None or not (yield from self._lock(until_ns)):
            return False
        written = False
        if link == self.link and compose():
            block = self.handshake.block
            self._oracle.write_begun(block, latest_ns=self._latest_ns, durable=block.sequence in self.safe)
            written = yield from self._plant.plc.write(link, block, until_ns)
            if written:
                self.handshake.written(self._kernel.now_ns)
            else:
                self.handshake.lost()
                self.drop(link)
        self._unlock()
        return written

    def change(self) -> None:
        """The block says something else now: the guard writes it."""
        self.changed = True
        self._due.set()

    def drop(self, link: int) -> None:
        """This connection is of no use any more."""
        if self.link == link:
            self.link = None
            self._lost.set()

    def _lock(self, until_ns: int) -> Steps:
        while self.locked:
            if self._kernel.now_ns >= until_ns:
                return False
            yield (self._unlocked, until_ns)
        self.locked = True
        return True

    def _unlock(self) -> None:
        self.locked = False
        self._unlocked.set()
