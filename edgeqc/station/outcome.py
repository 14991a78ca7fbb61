"""Settling a part: journal first, then the PLC, then how that went. Once per part, whoever comes first."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from edgeqc.core.keeping import KeepRule
from edgeqc.core.lane import DEPTH
from edgeqc.core.stopping import StopLimits, StopRule
from edgeqc.core.views import rule
from edgeqc.errors import JournalError, PeerError
from edgeqc.journal import JournalWriter
from edgeqc.journal.codec import Body, encode, split_snapshot
from edgeqc.records import JUDGED, RESULT_CODE, Cause, Delivery, Event, PartRecord, PlcResult, Verdict, ViewRecord
from edgeqc.settings import JournalSync
from edgeqc.shm.board import Row
from edgeqc.station.lender import Lender
from edgeqc.station.part import Part
from edgeqc.station.plckeeper import LinkBusyError, PlcKeeper
from edgeqc.station.underway import UnderWay

_UNJOURNALED_MOST: Final = 4096
"""Records kept in memory while the disk is full: minutes of a fast line; beyond, the oldest are lost, counted, and told."""


class Outcome:
    """Makes verdicts final. `settle` may be called by line and guard at once: the first one counts."""

    def __init__(
        self,
        *,
        station: str,
        journal: JournalWriter,
        sync: JournalSync,
        plc: PlcKeeper | None,
        lenders: Mapping[str, Lender],
        keep: KeepRule,
        row: Row,
        under_way: UnderWay | None = None,
        stop: StopRule | None = None,
        on_pass: Callable[[int], None] = lambda _sequence: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Everything a verdict touches. `lenders`: of each camera's slots, by its name, in order. `under_way`: None for a station whose frames are its triggers.

        `on_pass` is told a part's sequence when the PLC has acknowledged its PASS. `on_stop`: called when what `stop` asks for has changed; by whichever thread announces.
        """
        self.under_way = UnderWay((), depth=DEPTH) if under_way is None else under_way
        self._station = station
        self._journal = journal
        self._sync = sync
        self._plc = plc
        self._lenders = dict(lenders)
        (self._lender, *_) = self._lenders.values()
        self._keep = keep
        self._row = row
        self._stop = stop or StopRule(StopLimits(fail_safe_in_a_row=0))
        self._on_stop = on_stop
        self._on_pass = on_pass
        self._landing = threading.Lock()
        """Held by whoever announces: one part at a time, in the order in which they came."""
        self._lock = threading.Lock()
        self._unjournaled: deque[Body] = deque()
        self._unjournaled_lost = 0
        self._bringing = threading.Lock()
        """Held to change the two: what is brought into the journal just now is not what is lost."""
        self._waiting: dict[int, tuple[Part, Verdict, Cause]] = {}
        """Announced, but behind results that the PLC has not acknowledged yet: `turn` says how that ended."""

    def settle(self, part: Part, verdict: Verdict, cause: Cause, view: int = -1) -> bool:
        """Make this the part's verdict; False if it has one already (then nothing changes). `view`: see Part.view.

        The PLC hears of parts in the order in which they came: a verdict that is made before that of an earlier part
        waits for it, and whoever makes that one announces both. Otherwise this returns when the PLC has acknowledged
        it, or cannot: at the part's deadline at the latest, but for a write that was begun in time.
        """
        with self._lock:
            if not self.under_way.settle(part):
                return False
            if verdict is Verdict.PASS and part.announced and self._plc is not None and not self._plc.up:
                verdict, cause = Verdict.REJECT, Cause.PLC
            part.verdict, part.cause, part.view = verdict, cause, view
            if part.looks:
                if view >= 0:
                    part.take_over(part.looks[view])
                part.view_records = self._view_records(part)
            # Under the lock: who comes second must see whether the slot is lent before giving it back to the camera.
            part.record = self._record(part, verdict, cause, keep=True)
        self._land()
        return True

    def give_up(self, part: Part, cause: Cause, view: int) -> bool:
        """Settle a part that will not have this view in time; by a defect, if another one has shown it one."""
        ruling = self.under_way.without_view(part, cause, view)
        return self.settle(part, ruling.verdict, ruling.cause, ruling.view)

    def _land(self) -> None:
        """Announce what is to be announced now; where another thread is at it, that one takes ours too."""
        while self._landing.acquire(blocking=False):
            try:
                # Looked at with the lock below: a part settled in between is either seen here or by its own thread.
                while (part := self._next_landed()) is not None:
                    self._finish(part)
            finally:
                self._landing.release()
            if not self.under_way.landable:
                return

    def _next_landed(self) -> Part | None:
        with self._lock:  # a part is settled and has its record in one step
            return self.under_way.land()

    def _finish(self, part: Part) -> None:
        if part.record is None:
            raise RuntimeError("a part landed that was never settled")
        journaled = self._append(part.record)
        safe = self._safe(journaled, part) if part.verdict is Verdict.PASS else journaled is not None
        verdict, cause, violated = self.under_way.announce(
            part,
            record_sequence=0 if journaled is None else part.record.trigger.sequence,
            journaled=safe,
            plc_up=self._plc is None or self._plc.up or not part.announced,
            now_ns=time.monotonic_ns(),
        )
        if violated:
            self._row.count("violations")
            self._append(Event(name="invariant_violated", facts={"part": part.sequence, "what": ", ".join(violated)}))
        delivery, waits = self._announce(part, verdict, cause)
        for view in part.view_records:  # the PLC has its answer: no hurry now
            self._append(view)
        for snapshot in split_snapshot(part.trigger.sequence, part.process):
            self._append(snapshot)
        if not waits:
            self._append(delivery)
        with self._lock:
            self._count(part, delivery)
        if delivery.delivered and delivery.verdict is Verdict.PASS:
            self._on_pass(part.sequence)
        if self._stop.verdict(delivery.verdict, delivery.cause, late=delivery.late):
            self._on_stop()

    @property
    def keeps_next_pass(self) -> bool:
        """Would the image of the next part be kept if it passes?"""
        return self._keep.keeps(Verdict.PASS, self._row.get("passed") + 1)

    def rehearse(self, part: Part, verdict: Verdict, cause: Cause) -> None:
        """Do what settling does up to the point where it would be seen: for warm caches just before a part."""
        encode(self._record(part, verdict, cause, keep=False), sequence=0, wall_ns=0, mono_ns=0)

    def turn(self, sequence: int, at_ns: int, reason: str) -> None:
        """The PLC confirmed a result that had waited, at this monotonic time; 0: it never will, and why."""
        if (waited := self._waiting.pop(sequence, None)) is None:
            return
        part, verdict, cause = waited
        delivery = _delivery(part, verdict, cause, delivered_ns=at_ns, reason=reason)
        self._append(delivery)
        if delivery.delivered and delivery.verdict is Verdict.PASS:
            self._on_pass(sequence)
        if delivery.late:
            self._row.count("late")

    def late_score(self, part: Part, verdict: Verdict, cause: Cause, *, score: float) -> None:
        """A score came after the verdict: recorded beside it, changes nothing."""
        if math.isfinite(score):
            self._append(
                Delivery(
                    sequence=part.trigger.sequence,
                    verdict=verdict,
                    cause=cause,
                    delivered=False,
                    delivered_ns=0,
                    late=True,
                    late_score=score,
                    reason="score came late",
                )
            )

    def retry_journal(self, until_ns: int) -> bool:
        """Bring what the full disk refused into the journal, in order, as far as it goes by then; is some left that may go?"""
        while self._unjournaled:
            with self._bringing:
                try:
                    self._journal.append(self._unjournaled[0])
                except JournalError:
                    return False
                self._unjournaled.popleft()
            if time.monotonic_ns() >= until_ns:
                return bool(self._unjournaled)
        if self._unjournaled_lost:
            lost, self._unjournaled_lost = self._unjournaled_lost, 0
            self._append(Event(name="journal_records_lost", facts={"count": lost}))
        return False

    @property
    def unjournaled(self) -> int:
        """Records that the journal has not taken yet, those that were given up included."""
        return len(self._unjournaled) + self._unjournaled_lost

    def note(self, body: Body) -> None:
        """Journal something that is no part: an event, an alert."""
        self._append(body)

    def _view_records(self, part: Part) -> tuple[ViewRecord, ...]:
        """What each camera showed, as known now, with the images that are to be kept."""
        keep = self._keep.keeps(part.verdict, self._row.get("passed") + 1)
        records = []
        for place, ((camera, lender), look) in enumerate(zip(self._lenders.items(), part.looks, strict=True)):
            view, judge = part.views[place], part.recipe.seen_by(place)
            verdict, cause = Verdict.REJECT, Cause.LATE if look.frame_ns else Cause.NO_FRAME
            if view is not None:
                alone = rule(
                    [view], sequence=part.sequence, recipe_known=part.recipe.known, now_ns=0, fail_safe_at_ns=1
                )
                verdict, cause = alone.verdict, alone.cause
            elif place == part.view:
                cause = part.cause
            slot, lease = -1, 0
            if keep and look.slot >= 0:
                look.lent = True
                slot, lease = look.slot, lender.lend(look.slot)
            records.append(
                ViewRecord(
                    sequence=part.sequence,
                    wall_ns=part.trigger.wall_ns,
                    place=place,
                    camera=camera,
                    verdict=verdict,
                    cause=cause,
                    frame_id=look.frame_id,
                    score=look.score,
                    threshold=judge.threshold,
                    model_digest=judge.model_digest,
                    frame_ns=look.frame_ns,
                    transfer_ns=look.transfer_ns,
                    prepared_ns=look.prepared_ns,
                    scored_ns=look.scored_ns,
                    defects=look.defects,
                    slot=slot,
                    lease=lease,
                    part_passed=part.verdict is Verdict.PASS,
                )
            )
        return tuple(records)

    def _record(self, part: Part, verdict: Verdict, cause: Cause, *, keep: bool) -> PartRecord:
        judge = part.recipe.seen_by(max(0, part.view))
        slot, lease = -1, 0
        if keep and part.slot >= 0 and self._keep.keeps(verdict, self._row.get("passed") + 1):
            part.lent = True
            slot, lease = part.slot, self._lender.lend(part.slot)
        return PartRecord(
            station=self._station,
            trigger=part.trigger,
            frame_id=part.frame_id,
            verdict=verdict,
            cause=cause,
            score=part.score,
            threshold=judge.threshold,
            ledger=part.ledger(decided_ns=time.monotonic_ns()),
            deadline_ns=part.deadline_ns,
            recipe=part.recipe.name,
            model_digest=judge.model_digest,
            defects=part.defects,
            slot=slot,
            lease=lease,
            view=part.view,
        )

    def _append(self, body: Body) -> int | None:
        """Journal sequence, or None: kept in memory until the disk has room."""
        if not self._unjournaled:
            try:
                return self._journal.append(body)
            except JournalError:
                pass
        self._row.count("journal_errors")
        with self._bringing:
            self._unjournaled.append(body)
            if len(self._unjournaled) > _UNJOURNALED_MOST:
                self._unjournaled.popleft()
                self._unjournaled_lost += 1
        return None

    def _safe(self, journaled: int | None, part: Part) -> bool:
        """May this PASS be announced? Its record is in the journal, and on the disk where the rule says so."""
        if journaled is None:
            return False
        return self._sync is JournalSync.GROUP or self._journal.wait_synced(journaled, part.fail_safe_at_ns)

    def _announce(self, part: Part, verdict: Verdict, cause: Cause) -> tuple[Delivery, bool]:
        """How the PLC was told; True where it is not told yet, because it has not taken the results before."""
        delivered_ns, reason, waits = 0, "", False
        if not part.announced:
            reason = "missed: no longer announced"
        elif self._plc is None:
            delivered_ns = time.monotonic_ns()  # no PLC: the verdict is out when it is in the journal
        else:
            result = PlcResult(
                sequence=part.trigger.sequence,
                part_id=part.trigger.part_id,
                verdict=verdict,
                code=RESULT_CODE[cause],
                busy=False,
                ready=False,
                fault=False,
                score=part.score if math.isfinite(part.score) else 0.0,
            )
            started_ns = time.monotonic_ns()
            until_ns, begin_ns = part.deadline_ns, part.fail_safe_at_ns
            if verdict is Verdict.REJECT:
                # one that is overdue still goes out: the PLC's own window has its own say
                until_ns = begin_ns = max(until_ns, started_ns + part.deadline_ns - part.fail_safe_at_ns)
            too_late = False
            # before it is shown: its turn may come, on another thread, before we are back
            self._waiting[result.sequence] = (part, verdict, cause)
            try:
                delivered_ns = self._plc.show(result, until_ns, begin_ns=begin_ns)
                waits = not delivered_ns
                self._row.put("last_plc_ns", time.monotonic_ns() - started_ns)
            except PeerError as exc:
                reason = exc.reason
                self._row.count("plc_errors")
                too_late = verdict is Verdict.PASS and isinstance(exc, LinkBusyError)
            finally:
                if not waits:
                    self._waiting.pop(result.sequence, None)  # the guard may have told its end: the link was lost
            if too_late:  # somebody else's write took so long that no PASS may be begun any more
                return self._announce(part, Verdict.REJECT, Cause.LATE)
        return _delivery(part, verdict, cause, delivered_ns=delivered_ns, reason=reason), waits

    def _count(self, part: Part, delivery: Delivery) -> None:
        row = self._row
        row.count("verdicts")
        row.count("passed" if delivery.verdict is Verdict.PASS else "rejected")
        if delivery.cause not in JUDGED:
            row.count("fail_safe")
        if delivery.late:
            row.count("late")
        row.put("last_sequence", part.trigger.sequence)
        row.put("last_passed", delivery.verdict is Verdict.PASS)
        row.put("last_code", RESULT_CODE[delivery.cause])
        if delivery.delivered_ns:
            row.put("last_latency_ns", delivery.delivered_ns - part.trigger.at_ns)
            row.put("last_transfer_ns", part.transfer_ns)
            row.put("last_engine_ns", max(0, part.scored_ns - part.prepared_ns))
            if not row.get("first_verdict_ns"):
                row.put("first_verdict_ns", delivery.delivered_ns)
        row.put("images_given_up", sum(lender.given_up for lender in self._lenders.values()))


def _delivery(part: Part, verdict: Verdict, cause: Cause, *, delivered_ns: int, reason: str) -> Delivery:
    return Delivery(
        sequence=part.trigger.sequence,
        verdict=verdict,
        cause=cause,
        delivered=delivered_ns > 0,
        delivered_ns=delivered_ns,
        late=delivered_ns > part.deadline_ns,
        late_score=math.nan,
        reason=reason,
    )
