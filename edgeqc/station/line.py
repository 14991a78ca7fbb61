"""The line thread: sees triggers, takes frames, has them inspected and settled. Waits for camera and PLC, nothing else."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgeqc.core.cadence import Cadence
from edgeqc.core.decide import decide, overdue
from edgeqc.core.exposure import Claim
from edgeqc.core.views import View
from edgeqc.errors import EngineError, EngineLostError, PeerError
from edgeqc.records import NS_PER_MS, NS_PER_S, Cause, Event, Frame, FrameStatus, Trigger, Verdict
from edgeqc.settings import StationSettings
from edgeqc.shm.board import Row
from edgeqc.station.accounting import Accounting
from edgeqc.station.arrivals import Arrivals
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Look, Part
from edgeqc.station.plckeeper import PlcKeeper
from edgeqc.station.recipes import Recipes
from edgeqc.station.tagwatch import TagWatch
from edgeqc.station.viewpoints import Viewpoints

_TICK_NS: Final = 20 * NS_PER_MS
"""The line thread comes up for air this often while no part is there."""
_ENGINE_FAILURES_MOST: Final = 3
"""In a row; then the process ends and the supervisor starts a fresh one."""
_BEAT_NS: Final = 50 * NS_PER_MS
"""For a heartbeat: a PLC that takes longer is as good as gone."""
_COLLECT_NS: Final = 10 * NS_PER_S
"""Cyclic garbage is looked for in idle time only, this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Everything the line thread talks to."""

    cameras: Viewpoints
    recipes: Recipes
    outcome: Outcome
    accounting: Accounting
    plc: PlcKeeper | None
    row: Row
    tags: TagWatch
    arrivals: Arrivals | None
    """Where the frame is the trigger."""
    on_engine_failure: Callable[[str], None] = lambda _reason: None
    """Told why the engine gave a part no score, when that part has its verdict."""


class Line:
    """One station's flow of parts."""

    def __init__(self, settings: StationSettings, peers: Peers) -> None:
        """Nothing happens before `run`."""
        self.stopping = False
        self._settings = settings
        self._peers = peers
        self._cycle = (
            self._plc_cycle if peers.arrivals is None else functools.partial(self._camera_cycle, peers.arrivals)
        )
        self._cadence = Cadence()
        self._held: list[tuple[Part, int, int]] = []
        """Part, camera and slot of frames that are judged, but whose images may still be kept: other views are to come."""
        self._engine_failures = 0
        self._engine_error: EngineError | None = None
        self._untold = ""
        """Why the engine failed, if nobody has been told yet."""
        self._ran_ns = 0
        self._collected_ns = 0

    def run(self) -> None:
        """Judge parts until `stopping`. EngineError after three engine failures in a row, or a lost device at once."""
        while not self.stopping:
            # who opens the parts is as much needed as who judges them: the heartbeat and the process hang on both
            arrivals, now_ns = self._peers.arrivals, time.monotonic_ns()
            self._peers.row.beat("line", now_ns if arrivals is None else min(now_ns, arrivals.turned_ns))
            self._cycle()
            if self._untold:
                self._untold, reason = "", self._untold
                self._peers.on_engine_failure(reason)
            if self._engine_failures >= _ENGINE_FAILURES_MOST:
                if isinstance(self._engine_error, EngineLostError):
                    raise self._engine_error
                raise EngineError(f"the engine failed {self._engine_failures} times in a row")
            self._peers.cameras.collect()
            if self._held:
                self._let_go()

    # --- the frame is the trigger -------------------------------------------------------------------------------

    def _camera_cycle(self, arrivals: Arrivals) -> None:
        """Take the next part; the arrivals' thread has opened it."""
        came = arrivals.next(self._idle_until_ns(time.monotonic_ns()))
        if came is None:
            self._idle()
            return
        part, frame = came
        self._cadence.part(part.trigger.at_ns)
        if part.settled:  # an engine's run would only make the parts behind it late, too
            self._held.append((part, 0, frame.slot))
            self._tell_changeover(part)
        else:
            self._take(part, 0, frame)

    # --- the PLC says when --------------------------------------------------------------------------------------

    def _plc_cycle(self) -> None:
        """Take the next frame, if it is somebody's; the triggers thread has had it exposed."""
        under_way, cameras = self._peers.outcome.under_way, self._peers.cameras
        came = cameras.next_frame(self._idle_until_ns(time.monotonic_ns()))
        self._follow_cameras()  # before anything of an old connection is held against the new one
        now_ns = time.monotonic_ns()
        # one of several cameras may be silent while the others send
        late = self._overdue(now_ns) if came is None or len(cameras) > 1 else False
        if came is None:
            if not late and not len(under_way):
                self._idle()
            return
        camera, frame = came
        match, part, without, cause = under_way.match(camera, frame, now_ns)
        self._leave(without, cause, camera)
        if match.claim is not Claim.OWN:
            self._peers.accounting.frame(match, frame.frame_id)
        if part is None:  # nobody's, or its part has its verdict already
            cameras.release(camera, frame.slot)
            return
        self._peers.accounting.well()
        if camera == 0:
            self._cadence.part(part.trigger.at_ns)
        self._take(part, camera, frame)

    def _overdue(self, now_ns: int) -> bool:
        """Give up cameras whose frame had its time; was there one?"""
        late = False
        for index, camera in enumerate(self._peers.cameras):
            gone, without = self._peers.outcome.under_way.overdue(index, now_ns)
            self._leave(without, Cause.NO_FRAME, index)
            if gone:
                late = True
                camera.keeper.lost(f"no frame within {self._settings.trigger.frame_timeout_ms:g} ms of a trigger")
        return late

    def _leave(self, without: list[Part], cause: Cause, camera: int) -> None:
        """These parts will have no frame of this camera."""
        for part in without:
            self._peers.outcome.give_up(part, cause, camera)
            self._tell_changeover(part)

    def _follow_cameras(self) -> None:
        """A fresh connection counts from where it likes, and what the old one owed never comes."""
        for index, camera in enumerate(self._peers.cameras):
            without = self._peers.outcome.under_way.follow(index, camera.keeper.reopened)
            self._leave(without, Cause.NO_FRAME, index)

    def _let_go(self) -> None:
        """Hand back the slots of parts that are settled by now, but for those on loan."""
        held, self._held = self._held, []
        for part, camera, slot in held:
            if part.record is None:
                self._held.append((part, camera, slot))
            elif not part.seen_by(camera).lent:
                self._peers.cameras.release(camera, slot)

    # --- either way ---------------------------------------------------------------------------------------------

    def _take(self, part: Part, camera: int, frame: Frame) -> None:
        """Judge a part by this camera's frame, settle it when it was the last that was missing, and see to the slot."""
        look = part.seen_by(camera)
        look.saw(frame)
        self._peers.row.put("frame_at_ns", frame.received_ns)
        if not part.process:  # its frame was here before whoever had it exposed came to that
            part.process = self._peers.tags.snapshot(frame.received_ns - frame.transfer_ns)
        status, engine_ok = frame.status, True
        if status is FrameStatus.OK and part.recipe.known:
            status, engine_ok = self._inspect(part, look, camera, frame)
        if status is not FrameStatus.OK:
            self._peers.row.count("bad_frames")
        view = View(
            name=self._peers.cameras[camera].name,
            sequence=part.sequence,
            frame=status,
            score=look.score,
            threshold=part.recipe.seen_by(camera).threshold,
            hold=part.recipe.seen_by(camera).hold,
            engine_ok=engine_ok,
            frame_id=frame.frame_id,
        )
        if self._peers.outcome.under_way.seen(part, camera, view) or part.settled:
            ruling = self._peers.outcome.under_way.ruling(
                part, tags_good=self._peers.tags.good(), now_ns=time.monotonic_ns()
            )
            if not self._peers.outcome.settle(part, ruling.verdict, ruling.cause, ruling.view):
                self._peers.outcome.late_score(part, *overdue(frame_came=True), score=look.score)
            self._tell_changeover(part)
        if status is FrameStatus.OK and part.recipe.known:
            self._peers.recipes[part.recipe][camera].take_sample(frame.pixels)
        if part.record is None:
            self._held.append((part, camera, frame.slot))
        elif not look.lent:
            self._peers.cameras.release(camera, frame.slot)

    def _verdict(self, part: Part, status: FrameStatus, *, engine_ok: bool) -> tuple[Verdict, Cause]:
        return decide(
            frame=status,
            score=part.score,
            threshold=part.recipe.threshold,
            hold=part.recipe.hold,
            engine_ok=engine_ok,
            recipe_known=part.recipe.known,
            tags_good=self._peers.tags.good(),
            now_ns=time.monotonic_ns(),
            fail_safe_at_ns=part.fail_safe_at_ns,
        )

    def _inspect(self, part: Part, look: Look, camera: int, frame: Frame) -> tuple[FrameStatus, bool]:
        try:
            found = self._peers.recipes[part.recipe][camera].inspect(
                look,
                frame.pixels,
                self._peers.cameras[camera].slots.map(frame.slot),
                keep_pass=self._peers.outcome.keeps_next_pass,
            )
        except EngineError as exc:
            self._engine_failed(exc)
            self._peers.outcome.note(Event(name="engine_failed", facts={"reason": str(exc)}))
            return frame.status, False
        self._engine_failures = 0
        self._ran_ns = time.monotonic_ns()
        return (frame.status if found else FrameStatus.UNREADABLE), True

    def _engine_failed(self, error: EngineError) -> None:
        """The part has its fail-safe verdict; a device that is lost has no second try in this process."""
        lost = isinstance(error, EngineLostError)
        self._engine_failures = _ENGINE_FAILURES_MOST if lost else self._engine_failures + 1
        self._engine_error = error
        self._untold = str(error)

    def _tell_changeover(self, part: Part) -> None:
        for told in self._peers.recipes.changeover(part.recipe, part.trigger.sequence):
            self._peers.outcome.note(told)

    # --- nothing to do ------------------------------------------------------------------------------------------

    def _idle_until_ns(self, now_ns: int) -> int:
        """How long to wait for a frame: a tick, or until it is time to rehearse."""
        warm_ns = self._cadence.due_ns() - self._rehearsal_lead_ns()
        return warm_ns if now_ns < warm_ns < now_ns + _TICK_NS else now_ns + _TICK_NS

    def _rehearsal_lead_ns(self) -> int:
        """A rehearsal begins so long before a part is due: the engine's run, half as much again, and a wake-up."""
        return self._coming_run_ns() * 3 // 2 + 2 * NS_PER_MS

    def _coming_run_ns(self) -> int:
        recipes = self._peers.recipes
        return sum(inspection.run_ns for inspection in recipes[recipes.coming])

    def _idle(self) -> None:
        """Housekeeping that ends before the next part is due."""
        now_ns = time.monotonic_ns()
        if not self._cadence.leaves_room(now_ns, self._coming_run_ns() * 5 // 4 + NS_PER_MS):
            return
        if self._wants_rehearsal(now_ns):
            self._rehearse(now_ns)
        elif now_ns - self._collected_ns > _COLLECT_NS and self._cadence.leaves_room(now_ns, 10 * NS_PER_MS):
            self._collected_ns = now_ns
            gc.collect(1)

    def _wants_rehearsal(self, now_ns: int) -> bool:
        """Now and then while the line stands, and once just before each part that is due."""
        idle_ns = self._peers.recipes.keep_warm_ms() * NS_PER_MS
        due_ns, lead_ns = self._cadence.due_ns(), self._rehearsal_lead_ns()
        just_before = due_ns - lead_ns <= now_ns < due_ns and self._ran_ns < due_ns - 2 * lead_ns
        return idle_ns > 0 and (just_before or now_ns - self._ran_ns > idle_ns)

    def _rehearse(self, now_ns: int) -> None:
        """Take a part that is not there from frame to verdict, short of telling anyone.

        An engine that idled for 30 ms is up to half as slow again, and so is the code around it (onnxruntime #13366).
        """
        recipe = self._peers.recipes.to_warm(idle=self._cadence.due_ns() < now_ns)
        trigger = Trigger(sequence=0, part_id="", at_ns=now_ns, wall_ns=0)
        part = Part(trigger=trigger, deadline_ns=now_ns + NS_PER_S, fail_safe_at_ns=now_ns + NS_PER_S, recipe=recipe)
        try:
            for inspection in self._peers.recipes[recipe]:
                inspection.rehearse(part)
        except EngineError as exc:
            self._engine_failed(exc)
            self._peers.outcome.note(Event(name="engine_failed", facts={"reason": str(exc), "idle": True}))
        self._peers.outcome.rehearse(part, *self._verdict(part, FrameStatus.OK, engine_ok=True))
        self._ran_ns = time.monotonic_ns()
        self._rehearse_plc()

    def _rehearse_plc(self) -> None:
        """A heartbeat, so that the way to the PLC is warm too; only where it is sure to be back before the part."""
        plc, row = self._peers.plc, self._peers.row
        if plc is None or not plc.up or not self._cadence.leaves_room(time.monotonic_ns(), 3 * row.get("last_plc_ns")):
            return
        try:
            plc.touch(time.monotonic_ns() + _BEAT_NS)
        except PeerError:
            row.count("plc_errors")
