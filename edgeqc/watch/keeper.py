"""Looks after the tag sources: their rates, their state in the shared table, and the alarms when one is not as it should be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from edgeqc.errors import JournalError
from edgeqc.records import NS_PER_S, AlertChange, Quality
from edgeqc.settings import StateSource, TagSourceSettings
from edgeqc.shm.tagtable import TagTable
from edgeqc.watch.faults import STANDS_NS, Fault, faults_of, history_disk, overrun
from edgeqc.watch.intake import SourceIntake, TagIntake
from edgeqc.watch.latch import Latch

ON_DELAY_NS: Final = 2 * NS_PER_S
"""A switch that reboots its port, a server that restarts its session: back within this, nobody is called."""
OFF_DELAY_NS: Final = 3 * NS_PER_S
"""An alarm that would come again at once does not go in between."""
RATE_NS: Final = NS_PER_S
"""Over which updates per second are counted."""


class TagKeeper:
    """Follows the intake from the watch process's main loop."""

    def __init__(
        self,
        table: TagTable,
        sources: Sequence[TagSourceSettings],
        intake: TagIntake,
        journal: Callable[[AlertChange], object],
        *,
        now_ns: int,
    ) -> None:
        """Tell the states of `sources` in `table`; alarms go to `journal`."""
        self.history_trouble = ""
        """Why the tags are not recorded; empty: they are, or need not be."""
        self.history_lost = 0
        self._table = table
        self._intake = intake
        self._journal = journal
        self._counted = [0] * len(sources)
        self._counted_ns = now_ns
        self._rates = [0.0] * len(sources)
        self._latches: dict[tuple[str, str], Latch] = {}
        self._dropped = 0
        self._dropped_ns = 0
        self._journal_failed = False
        self._log = structlog.get_logger()
        for source in intake.sources:
            source.changed_ns = source.changed_ns or now_ns

    @property
    def updates(self) -> int:
        """Samples taken since the start."""
        return self._intake.updates

    @property
    def tags(self) -> int:
        """How many there are."""
        return len(self._intake.qualities)

    @property
    def bad(self) -> int:
        """How many tags are BAD now."""
        return int((self._intake.qualities == Quality.BAD).sum())

    def tick(self, now_ns: int) -> None:
        """Look after rates and alarms; several times a second."""
        elapsed_ns = now_ns - self._counted_ns
        counting = elapsed_ns >= RATE_NS
        for source in self._intake.sources:
            if counting:
                self._rates[source.index] = (source.updates - self._counted[source.index]) * NS_PER_S / elapsed_ns
                self._counted[source.index] = source.updates
            self._tell_state(source)
            if source.up and isinstance(source.settings, StateSource):
                self._intake.alive(source.settings.name, now_ns)
        if counting:
            self._counted_ns = now_ns
        wall_less_mono_ns = time.time_ns() - time.monotonic_ns()
        for source in self._intake.sources:
            for fault in faults_of(
                source, self._intake, self._table.names, now_ns=now_ns, wall_less_mono_ns=wall_less_mono_ns
            ):
                self._follow(source.settings.name, fault, now_ns)
        for name, fault in self._own(now_ns):
            self._follow(name, fault, now_ns)

    def _own(self, now_ns: int) -> Iterator[tuple[str, Fault]]:
        """What is wrong with this process itself."""
        if self._intake.dropped != self._dropped:
            self._dropped, self._dropped_ns = self._intake.dropped, now_ns
        yield "watch", overrun(self._dropped if self._dropped and now_ns - self._dropped_ns < STANDS_NS else 0)
        yield "history", history_disk(self.history_trouble, self.history_lost)

    def _tell_state(self, source: SourceIntake) -> None:
        self._table.write_source(
            source.index,
            up=source.up,
            changed_ns=source.changed_ns,
            updates_hz=self._rates[source.index],
            losses=source.losses,
            reason=source.reason,
        )

    def _follow(self, source: str, fault: Fault, now_ns: int) -> None:
        """Raise or clear the fault's alarm when its delay is over."""
        latch = self._latches.get((source, fault.kind))
        if latch is None:
            if not fault.active:
                return  # what an earlier run raised ended with it: the office sees to that
            latch = Latch(on_ns=0 if fault.at_once else ON_DELAY_NS, off_ns=OFF_DELAY_NS)
            latch.active = False
            self._latches[source, fault.kind] = latch
        if latch.update(fault.active, now_ns):
            self._alert(latch, fault.change(source))

    def _alert(self, latch: Latch, change: AlertChange) -> None:
        """Journal the change; a journal that cannot take it now is asked again at the next tick."""
        try:
            self._journal(change)
        except JournalError as exc:
            if not self._journal_failed:
                self._log.error("journal_failed", reason=str(exc))
            self._journal_failed = True
            return
        self._journal_failed = False
        self._log.warning("alert_raised" if change.active else "alert_cleared", id=change.id, text=change.text)
        latch.settle()
