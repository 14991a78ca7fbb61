"""Where the sources' values arrive: into the shared table, and into alerts when they stop being good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from edgeqc.errors import JournalError
from edgeqc.records import NS_PER_S, AlertChange, Ne107, Quality, TagValue
from edgeqc.settings import TagSourceSettings
from edgeqc.shm.tagtable import TagTable
from edgeqc.watch.latch import Latch

ON_DELAY_NS: Final = 2 * NS_PER_S
"""A switch that reboots its port, a server that restarts its session: back within this, nobody is called."""
OFF_DELAY_NS: Final = 3 * NS_PER_S
"""An alert that would come again at once does not go in between."""
RATE_NS: Final = NS_PER_S
"""Over which updates per second are counted."""
_REASON_CHARACTERS: Final = 100
"""Of what the peer said, so that text and action fit into a journal record."""
_NAMED_TAGS: Final = 4
"""Bad tags that an alert names; the rest is a number."""


class TagKeeper:
    """The `TagSink` of all sources. On the watch process's loop only."""

    def __init__(
        self,
        table: TagTable,
        sources: Sequence[TagSourceSettings],
        journal: Callable[[AlertChange], object],
        *,
        now_ns: int,
    ) -> None:
        """Keep values in `table`, which was created for these `sources`; alerts go to `journal`."""
        self.updates = 0
        """Values taken since the start."""
        self._table = table
        self._journal = journal
        self._sources = [
            _Source(index=index, settings=source, changed_ns=now_ns, counted_ns=now_ns)
            for index, source in enumerate(sources)
        ]
        self._by_name = {source.settings.name: source for source in self._sources}
        self._of_tag = [self._sources[table.source_of(index)] for index in range(len(table.names))]
        for index, source in enumerate(self._of_tag):
            source.bad.add(index)
        self._journal_failed = False
        self._log = structlog.get_logger()

    @property
    def tags(self) -> int:
        """How many there are."""
        return len(self._of_tag)

    @property
    def bad(self) -> int:
        """How many tags are BAD now."""
        return sum(len(source.bad) for source in self._sources)

    def put(self, index: int, value: TagValue) -> None:
        """Keep the tag's newest value."""
        self._table.write(index, value.value, value.quality, value.source_ts, value.received_ns)
        source = self._of_tag[index]
        source.updates += 1
        self.updates += 1
        if value.quality is Quality.BAD:
            source.bad.add(index)
        else:
            source.bad.discard(index)

    def alive(self, source: str, at_ns: int) -> None:
        """Keep the source's sign of life."""
        self._table.write_alive(self._by_name[source].index, at_ns)

    def lost(self, source: str, reason: str) -> None:
        """Turn the source's tags BAD, values and times kept."""
        state = self._by_name[source]
        if state.up or reason != state.reason:
            self._log.warning("tag_source_lost", source=source, reason=reason)
        if state.up:
            state.losses += 1
            state.changed_ns = 0  # the next tick dates it
        state.up, state.reason = False, reason
        for index in self._table.ranges[state.index]:
            if index not in state.bad:
                last = self._table.read(index, 0)
                self._table.write(index, last.value, Quality.BAD, last.source_ts, last.received_ns)
                state.bad.add(index)
        self._tell_state(state)

    def back(self, source: str) -> None:
        """Know that the source answers again; its tags are good when their values come."""
        state = self._by_name[source]
        state.up, state.reason, state.changed_ns = True, "", 0
        self._tell_state(state)

    def tick(self, now_ns: int) -> None:
        """Look after rates and alerts; several times a second."""
        for source in self._sources:
            source.changed_ns = source.changed_ns or now_ns
            elapsed_ns = now_ns - source.counted_ns
            if elapsed_ns >= RATE_NS:
                source.updates_hz = (source.updates - source.counted) * NS_PER_S / elapsed_ns
                source.counted, source.counted_ns = source.updates, now_ns
                self._tell_state(source)
            if source.lost.update(not source.up, now_ns):
                self._alert(source.lost, _lost_alert(source, now_ns))
            if source.stale.update(source.up and bool(source.bad), now_ns):
                self._alert(source.stale, _stale_alert(source, [self._table.names[index] for index in source.bad]))

    def _tell_state(self, source: _Source) -> None:
        self._table.write_source(
            source.index,
            up=source.up,
            changed_ns=source.changed_ns,
            updates_hz=source.updates_hz,
            losses=source.losses,
            reason=source.reason,
        )

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
        if change.active or latch.active:  # not: it was never raised by this process
            self._log.warning("alert_raised" if change.active else "alert_cleared", id=change.id, text=change.text)
        latch.settle()


@dataclass(slots=True, kw_only=True)
class _Source:
    index: int
    settings: TagSourceSettings
    changed_ns: int
    counted_ns: int
    up: bool = False
    reason: str = "not connected yet"
    losses: int = 0
    updates: int = 0
    counted: int = 0
    updates_hz: float = 0.0
    bad: set[int] = field(default_factory=set)
    lost: Latch = field(default_factory=lambda: Latch(on_ns=ON_DELAY_NS, off_ns=OFF_DELAY_NS))
    stale: Latch = field(default_factory=lambda: Latch(on_ns=ON_DELAY_NS, off_ns=OFF_DELAY_NS))


def _lost_alert(source: _Source, now_ns: int) -> AlertChange:
    name, lost = source.settings.name, not source.up
    return AlertChange(
        id=f"tags.{name}.lost",
        active=lost,
        priority="high",
        ne107=Ne107.FAILURE if lost else Ne107.NORMAL,
        text=f"No tag values from {name}: {source.reason[:_REASON_CHARACTERS]}" if lost else f"{name} gives tag values",
        action=f"Check that {_where(source.settings)} is there and its network is up; values come back by themselves"
        if lost
        else "",
        value=round((now_ns - source.changed_ns) / NS_PER_S, 1) if lost else None,
        limit=source.settings.stale_ms / 1000 if lost else None,
        unit="s" if lost else "",
    )


def _stale_alert(source: _Source, bad: list[str]) -> AlertChange:
    name, active = source.settings.name, source.up and bool(bad)
    named = ", ".join(sorted(bad)[:_NAMED_TAGS]) + (" ..." if len(bad) > _NAMED_TAGS else "")
    return AlertChange(
        id=f"tags.{name}.stale",
        active=active,
        priority="medium",
        ne107=Ne107.FAILURE if active else Ne107.NORMAL,
        text=f"{len(bad)} of {len(source.settings.tags)} tags of {name} are bad: {named}"
        if active
        else f"No tag of {name} is bad while its server is there",
        action="Check these tags' addresses in the configuration and their sensors" if active else "",
        value=float(len(bad)) if active else None,
        limit=0.0 if active else None,
        unit="tags" if active else "",
    )


def _where(settings: TagSourceSettings) -> str:
    match settings.type:
        case "opcua":
            return settings.url
        case "modbus":
            return f"{settings.host}:{settings.port}"
        case "replay":
            return str(settings.file)
