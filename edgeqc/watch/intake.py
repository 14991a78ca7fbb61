"""Where samples arrive: into the shared table at once, and in batches to whoever aligns, records and judges them.

Runs on the thread of the sources. What it hands over is bounded; when that is full the sources stop asking, and the
rest waits in the servers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import structlog

from edgeqc.core.align import Mark, Marks, Samples, Times
from edgeqc.core.peerclock import PeerClock
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_S, Quality, TagBatch, TagFault, TagRemark
from edgeqc.settings import DerivedTagSource, OpcuaTagSource, StateSource, TagSourceSettings
from edgeqc.shm.tagtable import TagTable
from edgeqc.watch.derived import Derived
from edgeqc.watch.newest import Flags, Newest, Taken

ROOM_SAMPLES: Final = 200_000
"""Handed over and not yet taken: 20 s of 1000 tags at 10 Hz, 6 MB. From here on the sources wait."""
MOST_SAMPLES: Final = 1_000_000
"""Beyond this the oldest go, and are counted: only sources that do not ask (none of ours) get here."""
OLD_NS: Final = 5 * NS_PER_S
"""A sample this much older than its message is a backlog, or stamped by a clock that is behind."""
AHEAD_NS: Final = NS_PER_S
"""A stamp this far in the future is wrong; the moment of arrival stands in for it."""
SKEW_WINDOW_NS: Final = 30 * NS_PER_S
"""Samples that are all at least OLD_NS old for this long are no backlog: their clock is behind the server's."""


@dataclass(slots=True, kw_only=True)
class SourceIntake:
    """What is known of one source."""

    index: int
    """In the configuration."""
    settings: TagSourceSettings
    places: range
    """Its tags' places in the table."""
    up: bool = False
    hung: bool = False
    reason: str = "not connected yet"
    changed_ns: int = 0
    """Monotonic time at which `up` last changed."""
    down_since_ns: int = 0
    gap_ns: int = 0
    """How long it was away last."""
    losses: int = 0
    updates: int = 0
    alive_ns: int = 0
    complete_to_ns: int = 0
    """Nothing older is still to come, as far as it tells."""
    clock: PeerClock = field(default_factory=PeerClock)
    jumped_ns: int = 0
    """Monotonic time of its clock's last jump."""
    lag_ns: int = 0
    """How old its newest sample was when it came, by its own clock."""
    behind_ns: int = 0
    """How far its stamps are behind the clock that it sends by; allowed for."""
    ahead: int = 0
    """Stamps from the future, replaced."""
    ahead_at_ns: int = 0
    backlog: bool = False
    """What it sends is old: it had been kept somewhere."""
    caught_up_ns: int = 0
    """When it last began to send what is of now again, and what does not change has not been read anew since; 0: not so."""
    gapped_ns: int = 0
    """When its tags were last said to be unknown because of that."""
    least_lag_ns: int = 0
    window_ns: int = 0
    remarks: dict[TagRemark, str] = field(default_factory=dict)
    remarked_ns: dict[TagRemark, int] = field(default_factory=dict)


class TagIntake:
    """The `TagSink` of all sources. `drain`, `sources` and the arrays may be read by another thread."""

    def __init__(
        self, table: TagTable, sources: Sequence[TagSourceSettings], *, wake: Callable[[], None] = lambda: None
    ) -> None:
        """Keep values in `table`, which was made for these `sources`; `wake` is called when there is something to drain."""
        self.updates = 0
        """Samples taken since the start."""
        self.dropped = 0
        """Samples that nobody took in time."""
        self.sources = [
            SourceIntake(index=index, settings=source, places=table.ranges[index])
            for index, source in enumerate(sources)
        ]
        self._table = table
        self._wake = wake
        self._by_name = {source.settings.name: source for source in self.sources}
        self._newest = Newest(table, sources)
        self.qualities = self._newest.qualities
        """Of each tag now: `Quality`."""
        self.faults = self._newest.faults
        """Of each tag now: `TagFault`."""
        self._seen = np.zeros(len(table.names), np.bool_)
        """Tags that gave a sample on this connection."""
        self._derived = Derived(table, sources)
        self._queue: deque[Taken] = deque()
        self._queued = 0
        self._lock = threading.Lock()
        self._log = structlog.get_logger()

    # --- the port ------------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until what was handed over has been taken, mostly."""
        while self._queued > ROOM_SAMPLES:  # noqa: ASYNC110 - seldom, and who drains is another thread
            await asyncio.sleep(_ROOM_POLL_S)

    def take(self, batch: TagBatch) -> None:
        """Put samples on our time, into the table, and hand them over.

        PeerError where an OPC UA server must be connected to anew: what it sent was too old to say anything of now, that is
        over, and a subscription does not tell again what does not change.
        """
        source = self._by_name[batch.source]
        self._take(source, batch)
        caught_up = source.caught_up_ns and batch.received_ns - source.caught_up_ns >= _REREAD_NS
        if caught_up and batch.complete_to_ns and isinstance(source.settings, OpcuaTagSource):
            source.caught_up_ns = 0
            of_it = slice(source.places.start, source.places.stop)
            if ((self.qualities[of_it] == Quality.BAD) & (self.faults[of_it] == TagFault.NONE)).any():
                raise PeerError(batch.source, "what it sends is of now again: what does not change is read anew")

    def _take(self, source: SourceIntake, batch: TagBatch) -> None:
        first = source.places.start
        source.complete_to_ns = max(source.complete_to_ns, batch.complete_to_ns)
        at_ns, old = self._moments(source, batch)
        count = len(batch.places)
        if not count:
            self._wake()
            return
        source.updates += count
        self.updates += count
        taken = Taken(Samples(batch.places + np.int32(first), at_ns, batch.values, batch.qualities), batch.source_ns)
        faults, moved = batch.faults, self._newest.moved(taken.samples, batch.received_ns)
        if self._newest.has_dead_bands:
            outside = self._newest.outside_dead_band(taken.samples)
            self._newest.keep_fresh(taken.picked(~outside & ~old), batch.received_ns)
            if not outside.any():
                self._wake()
                return
            taken, faults, moved, old = taken.picked(outside), faults[outside], moved[outside], old[outside]
        self._enter(taken, faults, moved, old, batch.received_ns)

    def alive(self, source: str, at_ns: int) -> None:
        """Keep the source's sign of life."""
        state = self._by_name[source]
        state.alive_ns = at_ns
        self._table.write_alive(state.index, at_ns)

    def lost(self, source: str, reason: str, *, hung: bool) -> None:
        """Turn the source's tags BAD, values and times kept."""
        state = self._by_name[source]
        now_ns = time.monotonic_ns()
        if state.up or reason != state.reason:
            self._log.warning("tag_source_lost", source=source, reason=reason, hung=hung)
        if state.up:
            state.losses += 1
            state.changed_ns = state.down_since_ns = now_ns
            self._gap(state.places, now_ns)
        state.up, state.hung, state.reason, state.backlog = False, hung, reason, False
        state.caught_up_ns = 0

    def back(self, source: str) -> None:
        """Know that the source answers again; its tags are good when their values come."""
        state = self._by_name[source]
        now_ns = time.monotonic_ns()
        state.gap_ns = now_ns - state.down_since_ns if state.down_since_ns else 0
        state.up, state.hung, state.reason, state.changed_ns = True, False, "", now_ns
        state.window_ns = 0
        self._seen[state.places.start : state.places.stop] = False

    def remark(self, source: str, remark: TagRemark, text: str) -> None:
        """Keep it for the alarms; a new one is logged."""
        state = self._by_name[source]
        if text and text != state.remarks.get(remark):
            self._log.warning(f"tags_{remark.value}", source=source, told=text[:255])
        state.remarks[remark] = text
        state.remarked_ns[remark] = time.monotonic_ns()

    # --- for whoever watches -------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Samples handed over and not yet taken."""
        return self._queued

    def drain(self) -> list[Taken]:
        """Take what was handed over, in order. Any one thread."""
        with self._lock:
            taken = list(self._queue)
            self._queue.clear()
            self._queued = 0
        return taken

    def complete_to_ns(self) -> int:
        """Up to when (monotonic) all sources that are up have told everything."""
        told = [
            source.complete_to_ns
            for source in self.sources
            if source.up and not isinstance(source.settings, DerivedTagSource | StateSource)
        ]
        return min(told, default=0)

    def look(self, now_ns: int) -> None:
        """Find tags that are stuck, let rates move on, give what is made of tags its sign of life. On the sources' loop."""
        for name in self._derived.sources:
            if self._by_name[name].up:
                self.alive(name, now_ns)
        aged = self._derived.age(now_ns)
        if aged is not None:
            self._write_made(aged, now_ns)
        places = self._newest.stuck(now_ns)
        if not len(places):
            return
        faults = np.full(len(places), TagFault.STUCK, np.uint8)
        samples = Samples(
            places,
            np.full(len(places), now_ns, np.int64),
            self._newest.values[places],
            np.full(len(places), Quality.UNCERTAIN, np.uint8),
        )
        self._newest.show(samples, np.zeros(len(places), np.int64), faults, now_ns)
        self._hand_over(Taken(samples, np.zeros(len(places), np.int64)))
        made = self._derived.feed(samples)
        if made is not None:
            self._write_made(made, now_ns)

    def tell_state(self, place: int, value: float, quality: Quality, now_ns: int) -> None:
        """Show a state's tag, which whoever aligns makes out of what came from here. Their thread."""
        source = self.sources[self._table.source_of(place)]
        source.up, source.reason = True, ""
        self.alive(source.settings.name, now_ns)
        self.qualities[place] = quality
        self._table.write(place, value, quality, 0.0, now_ns)

    # --- inside --------------------------------------------------------------------------------------------------

    def _moments(self, source: SourceIntake, batch: TagBatch) -> tuple[Times, Flags]:
        """When, on our monotonic clock, each sample was, and which are too old to say anything of now."""
        now_ns, count = batch.received_ns, len(batch.places)
        stamped = batch.source_ns > 0
        peer_ns = batch.sent_ns or (int(batch.source_ns.max()) if stamped.any() else 0)
        if not peer_ns:
            return np.full(count, now_ns, np.int64), np.zeros(count, np.bool_)
        if source.clock.read(peer_ns, now_ns):
            source.jumped_ns = now_ns
            source.window_ns = 0
            self._log.warning(
                "peer_clock_jumped", source=source.settings.name, by_s=round(source.clock.last_jump_ns / NS_PER_S, 1)
            )
        at_ns = np.where(stamped, batch.source_ns - (source.clock.offset_ns or 0), now_ns)
        if not count:
            return at_ns, np.zeros(count, np.bool_)
        places = batch.places + source.places.start
        old = at_ns < now_ns - OLD_NS
        first = ~self._seen[places]
        self._seen[places] = True
        later = stamped & ~first
        if later.any():
            self._watch_lag(source, now_ns, now_ns - int(at_ns[later].max()))
        # what a server tells first is what it holds now, however long it has held it
        at_ns[first & old] = now_ns
        # and before it was back nothing was known: an earlier stamp would leave it so
        at_ns[first] = np.maximum(at_ns[first], source.changed_ns)
        if source.behind_ns:
            at_ns[~first] += source.behind_ns
        ahead = at_ns > now_ns + AHEAD_NS
        if ahead.any():
            source.ahead += int(ahead.sum())
            source.ahead_at_ns = now_ns
        return np.minimum(at_ns, now_ns), at_ns < now_ns - OLD_NS

    def _watch_lag(self, source: SourceIntake, now_ns: int, lag_ns: int) -> None:
        """Tell a backlog, which catches up, from stamps by another clock, which stay behind."""
        source.lag_ns = lag_ns - source.behind_ns
        if not source.window_ns:
            source.window_ns, source.least_lag_ns = now_ns, lag_ns
        source.least_lag_ns = min(source.least_lag_ns, lag_ns)
        if lag_ns < OLD_NS:
            source.behind_ns = 0
        if now_ns - source.window_ns >= SKEW_WINDOW_NS:
            source.behind_ns = source.least_lag_ns if source.least_lag_ns > OLD_NS else 0
            source.window_ns = 0
        was_behind, source.backlog = source.backlog, source.lag_ns > OLD_NS
        if was_behind != source.backlog:
            source.caught_up_ns = 0 if source.backlog else now_ns
        if source.backlog and now_ns - source.gapped_ns >= NS_PER_S:
            # what is known of now? nothing: the old values that come in belong to the past
            source.gapped_ns = now_ns
            self._gap(source.places, now_ns - OLD_NS)

    def _enter(
        self,
        taken: Taken,
        faults: Marks,
        moved: Flags,
        old: Flags,
        received_ns: int,
    ) -> None:
        samples = taken.samples
        stuck = ~moved & (self.faults[samples.places] == TagFault.STUCK) & (samples.marks == Quality.GOOD)
        if stuck.any():
            samples.marks[stuck] = Quality.UNCERTAIN
            faults[stuck] = TagFault.STUCK
        shown = samples
        if old.any():
            shown = samples._replace(marks=np.where(old, np.uint8(Quality.BAD), samples.marks))
        made = self._derived.feed(shown)
        self._newest.show(shown, taken.source_ns, faults, received_ns)
        self._hand_over(taken)
        if made is not None:
            self._write_made(made, received_ns)

    def _write_made(self, made: Samples, received_ns: int) -> None:
        """Derived tags: BAD where an input is away, too."""
        for name in self._derived.sources:
            state = self._by_name[name]
            state.up, state.reason = True, ""
            self.alive(name, received_ns)
        self._hand_over(Taken(made, np.zeros(len(made.places), np.int64)))
        seen = Samples(
            made.places,
            made.at_ns,
            made.values,
            np.where(made.marks == Mark.GAP, Mark.BAD, made.marks).astype(np.uint8),
        )
        faults = np.where(seen.marks == Mark.BAD, TagFault.STATUS, TagFault.NONE).astype(np.uint8)
        self._newest.show(seen, np.zeros(len(made.places), np.int64), faults, received_ns)

    def _gap(self, places: range, now_ns: int) -> None:
        """Nothing is known of these tags any more."""
        self._newest.forget(places)
        count = len(places)
        lost = Samples(
            np.arange(places.start, places.stop, dtype=np.int32),
            np.full(count, now_ns, np.int64),
            np.full(count, np.nan),
            np.full(count, Mark.GAP, np.uint8),
        )
        self._hand_over(Taken(lost, np.zeros(count, np.int64)))
        made = self._derived.feed(lost)
        if made is not None:
            self._write_made(made, now_ns)

    def _hand_over(self, taken: Taken) -> None:
        with self._lock:
            self._queue.append(taken)
            self._queued += len(taken.samples.places)
            while self._queued > MOST_SAMPLES and len(self._queue) > 1:
                oldest = len(self._queue.popleft().samples.places)
                self._queued -= oldest
                self.dropped += oldest
        self._wake()


_ROOM_POLL_S: Final = 0.01
_REREAD_NS: Final = 2 * NS_PER_S
"""After a backlog: what changes has told its value by then."""
