"""From a verdict to the PLC and the journal, in virtual time."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from edgeqc.core.handshake import Given
from edgeqc.core.lane import Lane
from edgeqc.core.stopping import StopRule
from edgeqc.records import NS_PER_MS, RESULT_CODE, Cause, Delivery, Ledger, PartRecord, PlcResult, Trigger, Verdict
from edgeqc.sim.virtual.kernel import Steps
from edgeqc.sim.virtual.part import Part
from edgeqc.sim.virtual.plant import Plant
from edgeqc.sim.virtual.plckeeper import PlcKeeper
from edgeqc.sim.virtual.tracker import Tracker

THRESHOLD: Final = 0.5
NEVER_NS: Final = 1 << 62
_DIGESTS: Final = (b"\1" * 32, b"\2" * 32)
"""Of the two recipes' models."""


class Outcome:
    """Settles parts, journals and announces them."""

    def __init__(
        self, plant: Plant, lane: Lane[Part], keeper: PlcKeeper, *, stop: StopRule, tracker: Tracker | None
    ) -> None:
        """No part is under way."""
        self._plant, self._kernel, self._oracle = plant, plant.kernel, plant.oracle
        self._lane, self._keeper, self._stop, self._tracker = lane, keeper, stop, tracker
        self.under_way: dict[int, Part] = {}
        """Parts that have a number and no announced verdict: known here, not asked of the core."""
        self.announcing = 0
        """Parts that have left the lane and are not counted as announced yet."""
        self.guard_waits_ns = NEVER_NS
        """Since when the guard waits for what is due."""
        self._unjournaled: deque[object] = deque()
        """Records that the disk did not take."""
        swarm = plant.swarm
        self._exposed_within_ns = swarm.poll_ns + swarm.expose_within_ns + swarm.exposure_ns + 2 * NS_PER_MS
        """After a part came, no frame of it is exposed later than this."""
        self._landing = False

    def settle(self, part: Part, verdict: Verdict, cause: Cause) -> Steps:
        """This part has its verdict, unless it has one: announce what may be announced, in the parts' order."""
        if not self._lane.settle(part):
            return
        self._oracle.verdict(
            part.sequence,
            due_ns=max(part.fail_safe_at_ns, part.opened_ns),
            waited_from_ns=self.guard_waits_ns,
            deadline_ns=part.deadline_ns,
        )
        part.verdict, part.cause = verdict, cause
        if self._landing:
            return  # whoever is at it takes this one too
        self._landing = True
        while (landed := self._lane.land()) is not None:
            yield from self._announce(landed)
        self._landing = False

    @property
    def journaled(self) -> bool:
        """Has the disk taken all records?"""
        return not self._unjournaled

    def journal_again(self) -> None:
        """Try the records that the disk did not take."""
        while self._unjournaled and self._plant.disk.append(self._unjournaled[0]) is not None:
            self._unjournaled.popleft()

    def _announce(self, part: Part) -> Steps:
        swarm, disk = self._plant.swarm, self._plant.disk
        self.announcing = 1
        number = self._append(self._record(part))
        safe = number is not None
        if number is not None and swarm.sync_each and part.verdict is Verdict.PASS:
            safe = yield from disk.sync(number, part.fail_safe_at_ns)
        verdict, cause, violated = self._lane.announce(
            part,
            part.verdict,
            part.cause,
            score=part.score,
            record_sequence=part.sequence if number is not None else 0,
            journaled=safe,
            plc_up=self._keeper.link is not None or not part.announced,
            now_ns=self._kernel.now_ns,
        )
        if violated:
            self._oracle.fail("production check", f"{violated} of {part.sequence}")
        if part.judged_by - {part.recipe}:
            self._oracle.fail("I15 model", f"{part.sequence} of recipe {part.recipe} judged by {part.judged_by}")
        if verdict is Verdict.PASS and part.excused:
            self._oracle.fail("I8 tags", f"{part.sequence} passed without its tags")
        if verdict is Verdict.PASS and self._keeper.link is None:
            self._oracle.fail("I1 unheard", f"{part.sequence} passed, and there is no link to tell it")
        self._oracle.settled(
            part.sequence, verdict, cause, shots=part.shots, score=part.score, within_ns=self._exposed_within_ns
        )
        del self.under_way[part.sequence]
        self.announcing = 0
        delivered = False
        if part.announced:
            delivered = yield from self._tell(part, verdict, cause, durable=safe)
        self._append(
            Delivery(
                sequence=part.sequence,
                verdict=verdict,
                cause=cause,
                delivered=delivered,
                delivered_ns=self._kernel.now_ns if delivered else 0,
                late=delivered and self._kernel.now_ns > part.deadline_ns,
                late_score=math.nan,
            )
        )
        if delivered and verdict is Verdict.PASS:
            self._oracle.delivered_pass.add(part.sequence)
            if self._tracker is not None:
                self._tracker.passed(part.sequence)
        self._stop.verdict(verdict, cause)
        self._oracle.blind(cause, asked=self._stop.reason)

    def _tell(self, part: Part, verdict: Verdict, cause: Cause, *, durable: bool) -> Steps:
        result = PlcResult(
            sequence=part.sequence,
            part_id=part.part_id,
            verdict=verdict,
            code=RESULT_CODE[cause],
            busy=False,
            ready=True,
            fault=False,
            score=part.score if math.isfinite(part.score) else 0.0,
        )
        given: list[Given] = []

        def compose() -> bool:
            if verdict is Verdict.PASS and self._kernel.now_ns >= part.fail_safe_at_ns:
                return False  # the link was busy for too long
            given.append(self._keeper.handshake.result(result))
            if durable:
                self._keeper.safe.add(part.sequence)
            return True

        until_ns = part.deadline_ns
        if verdict is Verdict.REJECT:
            until_ns = max(until_ns, self._kernel.now_ns + self._plant.swarm.plc_write_ns)
        written = yield from self._keeper.write(compose, until_ns)
        return written and bool(given) and given[-1] is Given.SHOWN

    def _append(self, record: object) -> int | None:
        """Number of the record; None where it waits, with all behind it, for a disk that takes it."""
        number = None if self._unjournaled else self._plant.disk.append(record)
        if number is None:
            self._unjournaled.append(record)
        return number

    def _record(self, part: Part) -> PartRecord:
        return PartRecord(
            station="top",
            trigger=Trigger(sequence=part.sequence, part_id=part.part_id, at_ns=part.trigger_ns, wall_ns=0),
            frame_id=0,
            verdict=part.verdict,
            cause=part.cause,
            score=part.score,
            threshold=THRESHOLD,
            ledger=Ledger(trigger_ns=part.trigger_ns, decided_ns=self._kernel.now_ns),
            deadline_ns=part.deadline_ns,
            recipe=str(part.recipe),
            model_digest=_DIGESTS[part.recipe] if part.recipe < len(_DIGESTS) else bytes(32),
        )
