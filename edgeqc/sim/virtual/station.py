"""The station's threads in virtual time, around the core that ships. A process: when it is killed its memory is gone."""

from __future__ import annotations

import math
from collections import deque

from edgeqc.core.account import TriggerAccount
from edgeqc.core.budget import Budget
from edgeqc.core.decide import overdue
from edgeqc.core.exposure import Claim, Exposures
from edgeqc.core.handshake import Phase
from edgeqc.core.lane import Lane
from edgeqc.core.stopping import StopLimits, StopRule
from edgeqc.core.views import View
from edgeqc.records import NS_PER_MS, NS_PER_S, Cause, FrameStatus, Verdict
from edgeqc.sim.virtual.kernel import Fiber, Signal, Steps
from edgeqc.sim.virtual.lots import Lots
from edgeqc.sim.virtual.outcome import NEVER_NS, THRESHOLD, Outcome
from edgeqc.sim.virtual.part import Part
from edgeqc.sim.virtual.pieces import Piece, Shot
from edgeqc.sim.virtual.plant import UNKNOWN_RECIPE, Plant, score_of
from edgeqc.sim.virtual.plc import Reading
from edgeqc.sim.virtual.plckeeper import WRITE_NS, PlcKeeper
from edgeqc.sim.virtual.tracker import Tracker


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
        self._due = Signal(kernel)
        self._came = Signal(kernel)
        self._shots: deque[Shot] = deque()
        self.sequence = first_sequence - 1
        plant.restarted_at = self.sequence
        for camera in plant.cameras:
            camera.reconnected()
        self.camera_lives = [camera.life for camera in plant.cameras]
        self.keeper = PlcKeeper(plant, self.lots.random, due=self._due, at_first=self._count_from_here)
        stop = StopRule(StopLimits())
        self.tracker = (
            Tracker(plant, stop=stop, link=lambda: self.keeper.link, beat=lambda: self._beat("gate"))
            if swarm.tracking != "part_id"
            else None
        )
        self.outcome = Outcome(plant, self.lane, self.keeper, stop=stop, tracker=self.tracker)
        self._fibers: list[Fiber] = []
        for name, steps in (
            ("keeper", self.keeper.run()),
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
        self.oracle.lost_in_crash += len(self.lane) + self.outcome.announcing
        if self.tracker is not None:
            self.oracle.gate.left()

    def _beat(self, thread: str) -> None:
        self.beats[thread] = self.kernel.now_ns

    @property
    def ready(self) -> bool:
        """Does the PLC see READY?"""
        up = self.keeper.link is not None and all(camera.up for camera in self.plant.cameras)
        return not self.dead and up and self.beats.get("line", 0) > self.kernel.now_ns - NS_PER_S

    def _count_from_here(self) -> None:
        """From now on the PLC may count on each of its parts having a number."""
        plc = self.plant.plc
        self.oracle.accounted(self.started_ns, plc.counter, self.sequence, restarts=plc.restarts)

    def _triggers(self) -> Steps:
        """Polls; polls that would read the same again are left out, but for the last before something changes."""
        swarm, plc, heard_ns = self.plant.swarm, self.plant.plc, 0
        while True:
            self._beat("triggers")
            link = self.keeper.link
            if link is None:
                yield self.kernel.now_ns + 20 * NS_PER_MS
                continue
            opening, self.keeper.opening = self.keeper.opening, None
            reading = opening
            if reading is None:
                reading = yield from plc.read(link, self.kernel.now_ns + 6 * WRITE_NS)
            if reading is None:
                self.keeper.drop(link)
                continue
            self.keeper.hear(reading.ack)
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
                self.kernel.now_ns > waits_ns and self.keeper.link is not None and self.keeper.opening is None
            ):  # it polled, and read the same
                self.account.reading(reading.counter, reading.part_id, self.kernel.now_ns)
            yield self.kernel.now_ns + swarm.poll_ns

    def _read(self, reading: Reading) -> Steps:
        now_ns, read_ns = self.kernel.now_ns, reading.at_ns
        arrival = self.account.reading(reading.counter, reading.part_id, read_ns)
        for _ in range(arrival.missed):
            missed = self._numbered(now_ns, "", 0, None)
            missed.announced = False
            self.lane.open(missed, fresh=False, trigger_ns=now_ns, now_ns=now_ns)
            if self.tracker is not None:
                self.tracker.part(missed.sequence, missed.part_id, None)
            yield from self.outcome.settle(missed, *overdue(frame_came=False))
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
        self.keeper.handshake.trigger(part.sequence, reading.part_id, reading.counter)
        self.keeper.change()
        if cause is None:
            cause = yield from self._expose(part)
        if cause is not None:
            yield from self.outcome.settle(part, Verdict.REJECT, cause)

    def _expose(self, part: Part) -> Steps:
        for index, camera in enumerate(self.plant.cameras):
            self.lane.expose(part, index, sent_ns=self.kernel.now_ns, trigger_ns=part.trigger_ns)
            if self.camera_lives[index] != camera.life:
                camera.sure = False  # the connection is new, and the line has not heard of it: the frame is nobody's
            if not (yield from camera.trigger(part.sequence)):
                return Cause.NO_FRAME
            if not self.lane.exposed(part.trigger_ns, self.kernel.now_ns):
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
        waiting = [
            one for one in match.without if one in self.outcome.under_way and not self.outcome.under_way[one].settled
        ]
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
            yield from self.outcome.settle(part, ruling.verdict, ruling.cause)
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
            looks_ns = now_ns + (look_ns if not self.outcome.journaled else beat_ns)
            wake_ns = min(looks_ns, self.lane.due_ns() or looks_ns, self.keeper.handshake.due_ns or looks_ns)
            self.outcome.guard_waits_ns = now_ns
            yield (self._due, wake_ns if wake_ns > now_ns else now_ns + NS_PER_MS)
            looked_ns = self.kernel.now_ns
            for part in self.lane.overdue(looked_ns):
                missing = next((index for index, view in enumerate(part.views) if view is None), 0)
                yield from self._give_up(part, Cause.NO_FRAME, missing)
                self.outcome.guard_waits_ns = NEVER_NS  # it may have had to wait for the link
            self.outcome.guard_waits_ns = NEVER_NS
            for part in self.outcome.under_way.values():
                if not part.settled and part.fail_safe_at_ns <= looked_ns:
                    self.oracle.fail("I2 fail-safe", f"{part.sequence} is overdue, and has no verdict")
            if self.keeper.handshake.phase is not Phase.OFFLINE and self.keeper.link is not None:
                if not self.keeper.locked and self.keeper.handshake.expire(self.kernel.now_ns):
                    self.keeper.changed = True
                stuck = self.kernel.now_ns - self.beats.get("line", self.started_ns) > NS_PER_S + 4 * swarm.takt_ns
                if (self.keeper.changed or self.kernel.now_ns >= next_beat_ns) and not stuck:
                    self.keeper.changed = False
                    next_beat_ns = self.kernel.now_ns + beat_ns
                    self.keeper.handshake.health(ready=all(camera.up for camera in self.plant.cameras), fault=False)
                    yield from self.keeper.write(lambda: True, self.kernel.now_ns + WRITE_NS)
            if self.lots.falls("guard_stuck", 0.02):
                yield self.kernel.now_ns + self.lots.random.randint(1, 4) * swarm.takt_ns
            self.outcome.journal_again()

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
        self.outcome.under_way[part.sequence] = part
        self.oracle.opened(part.sequence, piece, counted=self.plant.plc.counted)
        return part

    def _give_up(self, part: Part, cause: Cause, view: int) -> Steps:
        ruling = self.lane.without_view(part, cause, view)
        yield from self.outcome.settle(part, ruling.verdict, ruling.cause)
