"""The station's threads in virtual time, around the core that ships. A process: when it is killed its memory is gone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

from edgeqc.core.account import TriggerAccount
from edgeqc.core.backoff import Backoff
from edgeqc.core.budget import Budget
from edgeqc.core.decide import overdue
from edgeqc.core.exposure import Claim, Exposures
from edgeqc.core.handshake import Form, Given, Handshake, Phase, Rules
from edgeqc.core.lane import Lane
from edgeqc.core.stopping import StopLimits, StopRule
from edgeqc.core.views import View
from edgeqc.records import (
    NS_PER_MS,
    NS_PER_S,
    RESULT_CODE,
    Cause,
    Delivery,
    FrameStatus,
    Ledger,
    PartRecord,
    PlcResult,
    Trigger,
    Verdict,
)
from edgeqc.sim.virtual.kernel import Fiber, Signal
from edgeqc.sim.virtual.lots import Lots
from edgeqc.sim.virtual.oracle import Piece, Shot
from edgeqc.sim.virtual.plant import (
    UNKNOWN_RECIPE,
    Plant,
    score_of,
)
from edgeqc.sim.virtual.plc import Reading
from edgeqc.sim.virtual.tracker import Tracker

Steps = Generator[Any, bool, Any]

THRESHOLD: Final = 0.5
NEVER_NS: Final = 1 << 62
DIGESTS: Final = (b"\1" * 32, b"\2" * 32)
"""Of the two recipes' models."""
_BACKOFF: Final = Backoff(first_s=0.1, most_s=1.0)
_WRITE_NS: Final = 50 * NS_PER_MS


@dataclass(slots=True, kw_only=True, eq=False)
class Part:
    """A part under way."""

    sequence: int
    part_id: str
    piece: Piece | None
    recipe: int
    trigger_ns: int
    deadline_ns: int
    fail_safe_at_ns: int
    opened_ns: int
    """When it got its number."""
    announced: bool = True
    views: list[View | None] = field(default_factory=list)
    settled: bool = False
    verdict: Verdict = Verdict.REJECT
    cause: Cause = Cause.NO_FRAME
    score: float = math.nan
    shots: list[Shot] = field(default_factory=list)
    """The frames that were taken for it."""
    excused: bool = False
    """A tag that the station requires was bad."""
    judged_by: set[int] = field(default_factory=set)


class Station:
    """One life of the station process."""

    def __init__(self, plant: Plant, *, first_sequence: int) -> None:
        """Start all threads. `first_sequence`: the journal knows where the last life ended."""
        swarm, kernel = plant.swarm, plant.kernel
        self.plant, self.kernel, self.oracle = plant, kernel, plant.oracle
        self.lots = Lots(swarm, f"station{first_sequence}", plant.oracle, plant)
        self.beats: dict[str, int] = {}
        self.started_ns = kernel.now_ns
        self.dead = False
        self.budget = Budget(budget_ns=swarm.budget_ns, plc_write_ns=swarm.plc_write_ns, seen_late_ns=swarm.poll_ns)
        self.lane: Lane[Part] = Lane(
            [
                Exposures(least_ns=swarm.exposure_ns, most_ns=swarm.frame_timeout_ns, slack_ns=NS_PER_MS // 2)
                for _ in range(swarm.cameras)
            ],
            expose_within_ns=swarm.expose_within_ns,
            depth=swarm.depth,
        )
        self._fresh_ns = 2 * swarm.poll_ns + 2 * NS_PER_MS
        self.account = TriggerAccount(fresh_ns=self._fresh_ns)
        self.handshake = Handshake(
            Rules(form=swarm.form, hold_ns=swarm.takt_ns // 2 if swarm.form == "pulse" else None)
        )
        self.stop = StopRule(StopLimits())
        self.tracker = (
            Tracker(plant, stop=self.stop, link=lambda: self.link, beat=lambda: self._beat("gate"))
            if swarm.tracking != "part_id"
            else None
        )
        self.sequence = first_sequence - 1
        self.link: int | None = None
        self._opening: Reading | None = None
        """What stood in the trigger block when the link was opened."""
        plant.restarted_at = self.sequence
        for camera in plant.cameras:
            camera.reconnected()
        self.camera_lives = [camera.life for camera in plant.cameras]
        self.unjournaled: deque[object] = deque()
        self._link_lost = Signal(kernel)
        self._frames = [camera.came for camera in plant.cameras]
        self._due = Signal(kernel)
        self._came = Signal(kernel)
        self._unlocked = Signal(kernel)
        self._shots: deque[Shot] = deque()
        self._locked = False
        self._landing = False
        self.announcing = 0
        """Parts that have left the lane and are not counted as announced yet."""
        self._changed = False
        self._guard_waits_ns = NEVER_NS
        """Since when the guard waits for what is due."""
        self._open: dict[int, Part] = {}
        """Parts that have a number and no announced verdict: known here, not asked of the core."""
        self._safe: set[int] = set()
        """Parts whose records are as safe as the settings ask for: known here, not asked of the core."""
        # A trigger is seen a poll and a way late at the most; a buffered result may wait for those before it.
        self._latest_ns = swarm.budget_ns - swarm.plc_write_ns + NS_PER_MS // 2
        if swarm.form is Form.BUFFERED:
            self._latest_ns = 1 << 62
        self._exposed_ns = swarm.poll_ns + swarm.expose_within_ns + swarm.exposure_ns + 2 * NS_PER_MS
        """After a part came, no frame of it is exposed later than this."""
        self._fibers: list[Fiber] = []
        for name, steps in (
            ("keeper", self._keep_link()),
            ("line", self._line()),
            ("guard", self._guard()),
            ("triggers", self._triggers()),
            *((f"camera{index}", self._frames_of(index)) for index in range(swarm.cameras)),
            *((("gate", self.tracker.run()),) if self.tracker is not None else ()),
        ):
            self._fibers.append(kernel.spawn(name, steps))

    def kill(self) -> None:
        """All threads end where they are; what was not in the journal is gone."""
        self.dead = True
        for fiber in self._fibers:
            self.kernel.kill(fiber)
        for camera in self.plant.cameras:
            camera.slots_out = 0
        self.oracle.begin_anew()
        self.oracle.lost_in_crash += len(self.lane) + self.announcing
        if self.tracker is not None:
            self.oracle.gate_left()

    def _beat(self, thread: str) -> None:
        self.beats[thread] = self.kernel.now_ns

    @property
    def ready(self) -> bool:
        """Does the PLC see READY?"""
        up = self.link is not None and all(camera.up for camera in self.plant.cameras)
        return not self.dead and up and self.beats.get("line", 0) > self.kernel.now_ns - NS_PER_S

    # --- threads ------------------------------------------------------------------------------------------------

    def _keep_link(self) -> Steps:
        plc, failures, linked = self.plant.plc, 0, False
        while True:
            link = yield from plc.connect()
            if link is not None:
                while not (yield from self._lock(self.kernel.now_ns + NS_PER_S)):
                    pass
                if self.handshake.phase is not Phase.OFFLINE:
                    self.handshake.lost()  # it was a read that failed
                self.handshake.connected()
                self.oracle.write_begun(self.handshake.block, latest_ns=0, durable=True, fresh_link=True)
                good = yield from plc.write(link, self.handshake.block, self.kernel.now_ns + 10 * _WRITE_NS)
                if good:
                    self.handshake.written(self.kernel.now_ns)
                    self._opening = yield from plc.read(link, self.kernel.now_ns + 10 * _WRITE_NS)
                if not good or self._opening is None:
                    self.handshake.lost()
                    link = None
                self._unlock()
            if link is None:
                failures += 1
                yield self.kernel.now_ns + int(_BACKOFF.delay_s(failures, self.lots.random.random()) * NS_PER_S)
                continue
            failures = 0
            self.link = link
            if not linked:
                linked = True
                # From now on the PLC may count on each of its parts having a number.
                self.oracle.accounted(self.started_ns, plc.counter, self.sequence, restarts=plc.restarts)
            self._link_lost.is_set = False
            while self.link is not None and not (yield (self._link_lost, self.kernel.now_ns + NS_PER_S)):
                pass
            self.link = None

    def _triggers(self) -> Steps:
        """Polls; polls that would read the same again are left out, but for the last before something changes."""
        swarm, plc, heard_ns = self.plant.swarm, self.plant.plc, 0
        while True:
            self._beat("triggers")
            link = self.link
            if link is None:
                yield self.kernel.now_ns + 20 * NS_PER_MS
                continue
            opening, self._opening = self._opening, None
            reading = opening
            if reading is None:
                reading = yield from plc.read(link, self.kernel.now_ns + 6 * _WRITE_NS)
            if reading is None:
                self._drop(link)
                continue
            self._hear(reading.ack)
            yield from self._read(reading)
            if reading.at_ns >= heard_ns:  # it was not overtaken
                heard_ns = reading.at_ns
                self.oracle.accounted(self.started_ns, reading.counter, self.sequence, restarts=reading.restarts)
            if self.lots.falls("triggers_stuck", 0.1):
                yield self.kernel.now_ns + self.lots.random.randint(1, 4) * swarm.takt_ns
            if opening is not None:
                continue  # it is old: look at once what has changed since
            waits_ns = self.kernel.now_ns
            yield (plc.changed, waits_ns + NS_PER_S)
            if (
                self.kernel.now_ns > waits_ns and self.link is not None and self._opening is None
            ):  # it polled, and read the same
                self.account.reading(reading.counter, reading.part_id, self.kernel.now_ns)
            yield self.kernel.now_ns + swarm.poll_ns

    def _hear(self, ack: int) -> None:
        if self.handshake.phase is Phase.OFFLINE or self._locked:
            return
        shown = self.handshake.block.sequence
        if self.handshake.ack(ack):
            if ack != shown:
                self.oracle.fail("I7 acknowledgement", f"of {ack}, and it released {shown}")
            self._change()

    def _read(self, reading: Reading) -> Steps:
        now_ns, read_ns = self.kernel.now_ns, reading.at_ns
        arrival = self.account.reading(reading.counter, reading.part_id, read_ns)
        for _ in range(arrival.missed):
            missed = self._numbered(now_ns, "", 0, None)
            missed.announced = False
            self.lane.open(missed, fresh=False, trigger_ns=now_ns, now_ns=now_ns)
            if self.tracker is not None:
                self.tracker.part(missed.sequence, missed.part_id, None)
            yield from self._settle(missed, *overdue(frame_came=False))
        if not arrival.part:
            return
        # The budget covers one poll; where the last one was longer ago, the part may have come so much earlier.
        came_ns = read_ns - max(0, arrival.waited_ns - self.plant.swarm.poll_ns) if arrival.fresh else read_ns
        part = self._numbered(came_ns, reading.part_id, reading.recipe, reading.piece)
        known = not (arrival.doubled or arrival.swapped)
        cause = self.lane.open(part, fresh=arrival.fresh, known=known, trigger_ns=came_ns, now_ns=now_ns)
        if cause is None and part.piece is not None:
            self.oracle.aged(part.piece, came_ns, poll_ns=self.plant.swarm.poll_ns, fresh_ns=self._fresh_ns)
        if self.tracker is not None:
            self.tracker.part(part.sequence, part.part_id, came_ns if arrival.fresh else None)
        self.handshake.trigger(part.sequence, reading.part_id, reading.counter)
        self._change()
        if cause is None:
            cause = yield from self._expose(part)
        if cause is not None:
            yield from self._settle(part, Verdict.REJECT, cause)

    def _expose(self, part: Part) -> Steps:
        for index, camera in enumerate(self.plant.cameras):
            sent_ns = self.kernel.now_ns
            if self.camera_lives[index] != camera.life:
                camera.sure = False  # the connection is new, and the line has not heard of it: the frame is nobody's
            if not (yield from camera.trigger(part.sequence)):
                return Cause.NO_FRAME
            in_time = self.lane.exposed(
                part, index, sent_ns=sent_ns, trigger_ns=part.trigger_ns, now_ns=self.kernel.now_ns
            )
            if not in_time:
                camera.sure = False  # the frame that comes is nobody's
                return Cause.NO_FRAME
        return None

    def _frames_of(self, index: int) -> Steps:
        camera = self.plant.cameras[index]
        while True:
            yield (camera.came, self.kernel.now_ns + 20 * self.plant.swarm.takt_ns)
            while camera.queue:
                self._shots.append(camera.queue.pop(0))
                self._came.set()

    def _line(self) -> Steps:
        swarm = self.plant.swarm
        tick_ns = max(20 * NS_PER_MS, swarm.takt_ns // 2)
        while True:
            self._beat("line")
            if not self._shots:
                yield (self._came, self.kernel.now_ns + tick_ns)
            yield from self._check_cameras()
            if self._shots:
                yield from self._take(self._shots.popleft())
            if self.lots.falls("line_stuck", 0.5):
                yield self.kernel.now_ns + self.lots.random.randint(1, 8) * swarm.takt_ns

    def _check_cameras(self) -> Steps:
        for index, camera in enumerate(self.plant.cameras):
            if self.camera_lives[index] != camera.life:
                self.camera_lives[index] = camera.life
                self.oracle.reopened(index)
                for part in self.lane.unsettled(self.lane.cameras[index].reopened()):
                    yield from self._give_up(part, Cause.NO_FRAME, index)
            gone = self.lane.cameras[index].overdue(self.kernel.now_ns)
            camera.sure = camera.sure and not gone
            for part in self.lane.unsettled(gone):
                yield from self._give_up(part, Cause.NO_FRAME, index)

    def _take(self, shot: Shot) -> Steps:
        if shot.received_ns < self.started_ns:
            return
        camera = self.plant.cameras[shot.camera]
        match = self.lane.frame(shot.camera, shot.frame_id, shot.first_ns, self.kernel.now_ns)
        if shot.life != camera.life:
            camera.sure = False  # a frame of the connection before counts by another counter
        sure = camera.sure and camera.life == self.camera_lives[shot.camera]
        self.oracle.claimed(shot, match, sure=sure)
        parts, cause = self.lane.without(match)
        for without in parts:
            yield from self._give_up(without, cause, shot.camera)
        waiting = [one for one in match.without if one in self._open and not self._open[one].settled]
        if waiting:
            self.oracle.fail("I7 given up", f"{waiting} will have no frame of {shot.camera}, and still wait for it")
        part = self.lane.part(match.sequence) if match.claim is Claim.OWN else None
        if part is None:
            return
        self.plant.cameras[shot.camera].slots_out += 1
        score, works = math.nan, True
        if shot.status is FrameStatus.OK and part.recipe != UNKNOWN_RECIPE:
            yield from self._run_engine()
            score, works = score_of(self.plant.engine, self.oracle.pieces.get(shot.content))
            part.judged_by.add(part.recipe)
        part.shots.append(shot)
        view = View(
            name=str(shot.camera),
            sequence=match.sequence,
            frame=shot.status,
            score=score,
            threshold=THRESHOLD,
            engine_ok=works,
            frame_id=shot.frame_id,
        )
        if self.lane.seen(part, shot.camera, view):
            tags_good = not self.lots.falls("tags_bad")
            ruling = self.lane.ruling(
                part,
                tags_good=tags_good,
                recipe_known=part.recipe != UNKNOWN_RECIPE,
                now_ns=self.kernel.now_ns,
            )
            if not part.settled:
                part.score = score
                part.excused = not tags_good
            yield from self._settle(part, ruling.verdict, ruling.cause)
        self.plant.cameras[shot.camera].slots_out -= 1

    def _run_engine(self) -> Steps:
        swarm, lots = self.plant.swarm, self.plant.engine
        takes_ns = swarm.engine_ns
        if lots.falls("engine_slow"):
            takes_ns *= lots.random.randint(2, 12)
        if lots.falls("engine_hung"):
            takes_ns = 600 * NS_PER_S
        yield self.kernel.now_ns + takes_ns

    def _guard(self) -> Steps:
        swarm = self.plant.swarm
        look_ns = max(2 * NS_PER_MS, min(100 * NS_PER_MS, (swarm.budget_ns - swarm.plc_write_ns) // 3))
        beat_ns = max(200 * NS_PER_MS, swarm.takt_ns // 4)
        next_beat_ns = 0
        while True:
            now_ns = self.kernel.now_ns
            self._beat("guard")
            # Looks that would see the same again are left out.
            looks_ns = now_ns + (look_ns if self.unjournaled else beat_ns)
            wake_ns = min(looks_ns, self.lane.due_ns() or looks_ns, self.handshake.due_ns or looks_ns)
            self._guard_waits_ns = now_ns
            yield (self._due, wake_ns if wake_ns > now_ns else now_ns + NS_PER_MS)
            looked_ns = self.kernel.now_ns
            for part in self.lane.overdue(looked_ns):
                missing = next((index for index, view in enumerate(part.views) if view is None), 0)
                yield from self._give_up(part, Cause.NO_FRAME, missing)
                self._guard_waits_ns = NEVER_NS  # it may have had to wait for the link
            self._guard_waits_ns = NEVER_NS
            for part in self._open.values():
                if not part.settled and part.fail_safe_at_ns <= looked_ns:
                    self.oracle.fail("I2 fail-safe", f"{part.sequence} is overdue, and has no verdict")
            if self.handshake.phase is not Phase.OFFLINE and self.link is not None:
                if not self._locked and self.handshake.expire(self.kernel.now_ns):
                    self._changed = True
                stuck = self.kernel.now_ns - self.beats.get("line", self.started_ns) > NS_PER_S + 4 * swarm.takt_ns
                if (self._changed or self.kernel.now_ns >= next_beat_ns) and not stuck:
                    self._changed = False
                    next_beat_ns = self.kernel.now_ns + beat_ns
                    self.handshake.health(ready=all(camera.up for camera in self.plant.cameras), fault=False)
                    yield from self._write(lambda: True, self.kernel.now_ns + _WRITE_NS)
            if self.lots.falls("guard_stuck", 0.02):
                yield self.kernel.now_ns + self.lots.random.randint(1, 4) * swarm.takt_ns
            while self.unjournaled and self.plant.disk.append(self.unjournaled[0]) is not None:
                self.unjournaled.popleft()

    # --- settling -----------------------------------------------------------------------------------------------

    def _numbered(self, at_ns: int, part_id: str, recipe: int, piece: Piece | None) -> Part:
        self.sequence += 1
        self.plant.board = self.sequence
        part = Part(
            sequence=self.sequence,
            part_id=part_id or str(self.sequence),
            piece=piece,
            recipe=recipe,
            trigger_ns=at_ns,
            deadline_ns=self.budget.deadline_ns(at_ns),
            fail_safe_at_ns=self.budget.fail_safe_at_ns(at_ns),
            opened_ns=self.kernel.now_ns,
        )
        self._open[part.sequence] = part
        self.oracle.opened(part.sequence, piece, counted=self.plant.plc.counted)
        return part

    def _give_up(self, part: Part, cause: Cause, view: int) -> Steps:
        ruling = self.lane.without_view(part, cause, view)
        yield from self._settle(part, ruling.verdict, ruling.cause)

    def _settle(self, part: Part, verdict: Verdict, cause: Cause) -> Steps:
        if not self.lane.settle(part):
            return
        self.oracle.verdict(
            part.sequence,
            due_ns=max(part.fail_safe_at_ns, part.opened_ns),
            waited_from_ns=self._guard_waits_ns,
            deadline_ns=part.deadline_ns,
        )
        part.verdict, part.cause = verdict, cause
        if self._landing:
            return  # whoever is at it takes this one too
        self._landing = True
        while (landed := self.lane.land()) is not None:
            yield from self._announce(landed)
        self._landing = False

    def _announce(self, part: Part) -> Steps:
        swarm, disk = self.plant.swarm, self.plant.disk
        self.announcing = 1
        number = self._append(self._record(part))
        safe = number is not None
        if number is not None and swarm.sync_each and part.verdict is Verdict.PASS:
            safe = yield from disk.sync(number, part.fail_safe_at_ns)
        verdict, cause, violated = self.lane.announce(
            part,
            part.verdict,
            part.cause,
            score=part.score,
            record_sequence=part.sequence if number is not None else 0,
            journaled=safe,
            plc_up=self.link is not None or not part.announced,
            now_ns=self.kernel.now_ns,
        )
        if violated:
            self.oracle.fail("production check", f"{violated} of {part.sequence}")
        if part.judged_by - {part.recipe}:
            self.oracle.fail("I15 model", f"{part.sequence} of recipe {part.recipe} judged by {part.judged_by}")
        if verdict is Verdict.PASS and part.excused:
            self.oracle.fail("I8 tags", f"{part.sequence} passed without its tags")
        if verdict is Verdict.PASS and self.link is None:
            self.oracle.fail("I1 unheard", f"{part.sequence} passed, and there is no link to tell it")
        self.oracle.settled(
            part.sequence, verdict, cause, shots=part.shots, score=part.score, within_ns=self._exposed_ns
        )
        del self._open[part.sequence]
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
                delivered_ns=self.kernel.now_ns if delivered else 0,
                late=delivered and self.kernel.now_ns > part.deadline_ns,
                late_score=math.nan,
            )
        )
        if delivered and verdict is Verdict.PASS:
            self.oracle.delivered_pass.add(part.sequence)
            if self.tracker is not None:
                self.tracker.passed(part.sequence)
        self.stop.verdict(verdict, cause)
        self.oracle.blind(cause, asked=self.stop.reason)

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
            if verdict is Verdict.PASS and self.kernel.now_ns >= part.fail_safe_at_ns:
                return False  # the link was busy for too long
            given.append(self.handshake.result(result))
            if durable:
                self._safe.add(part.sequence)
            return True

        until_ns = part.deadline_ns
        if verdict is Verdict.REJECT:
            until_ns = max(until_ns, self.kernel.now_ns + self.plant.swarm.plc_write_ns)
        written = yield from self._write(compose, until_ns)
        return written and bool(given) and given[-1] is Given.SHOWN

    def _append(self, record: object) -> int | None:
        number = None if self.unjournaled else self.plant.disk.append(record)
        if number is None:
            self.unjournaled.append(record)
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
            ledger=Ledger(trigger_ns=part.trigger_ns, decided_ns=self.kernel.now_ns),
            deadline_ns=part.deadline_ns,
            recipe=str(part.recipe),
            model_digest=DIGESTS[part.recipe] if part.recipe < len(DIGESTS) else bytes(32),
        )

    # --- the link -----------------------------------------------------------------------------------------------

    def _lock(self, until_ns: int) -> Steps:
        while self._locked:
            if self.kernel.now_ns >= until_ns:
                return False
            yield (self._unlocked, until_ns)
        self._locked = True
        return True

    def _unlock(self) -> None:
        self._locked = False
        self._unlocked.set()

    def _write(self, compose: Callable[[], bool], until_ns: int) -> Steps:
        link = self.link
        if link is None or not (yield from self._lock(until_ns)):
            return False
        written = False
        if link == self.link and compose():
            block = self.handshake.block
            self.oracle.write_begun(block, latest_ns=self._latest_ns, durable=block.sequence in self._safe)
            written = yield from self.plant.plc.write(link, block, until_ns)
            if written:
                self.handshake.written(self.kernel.now_ns)
            else:
                self.handshake.lost()
                self._drop(link)
        self._unlock()
        return written

    def _change(self) -> None:
        """The block says something else now: the guard writes it."""
        self._changed = True
        self._due.set()

    def _drop(self, link: int) -> None:
        if self.link == link:
            self.link = None
            self._link_lost.set()
