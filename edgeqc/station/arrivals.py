"""Where the frame is the trigger: each is a part from the moment it is there, whatever the line thread is stuck in."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from edgeqc.core.account import GVSP_CYCLE, MODBUS_CYCLE, MOST_MISSED, PartIds, Step, move
from edgeqc.core.decide import overdue
from edgeqc.core.exposure import Claim, Match
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_MS, NS_PER_S, Cause, Event, Frame, Verdict
from edgeqc.settings import StationSettings
from edgeqc.shm.board import Row
from edgeqc.station.accounting import Accounting
from edgeqc.station.intake import Intake
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Part
from edgeqc.station.plckeeper import PlcKeeper
from edgeqc.station.recipes import Recipes
from edgeqc.station.rules import expose_within_ns
from edgeqc.station.tagwatch import TagWatch
from edgeqc.station.viewpoints import Viewpoint

_TICK_NS: Final = 20 * NS_PER_MS
_TRANSFER_SLACK: Final = 1.25
"""A frame that took this many times the usual transfer had been waiting for us."""
_LATE_ANSWERS: Final = 3
"""Of the PLC, in a row; then it is told, once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arriving:
    """What a frame sets in motion."""

    camera: Viewpoint
    plc: PlcKeeper | None
    intake: Intake
    outcome: Outcome
    accounting: Accounting
    recipes: Recipes
    tags: TagWatch
    row: Row


class Arrivals:
    """Fetches the camera's frames in a thread of its own, and opens a part for each; the line thread takes them from here."""

    def __init__(self, settings: StationSettings, arriving: Arriving) -> None:
        """Nothing is fetched before `start`."""
        self.turned_ns = 0
        """When the thread last came round (monotonic)."""
        self._arriving = arriving
        self._names_parts = settings.trigger.part_id == "plc"
        self._asks = arriving.plc is not None and (self._names_parts or settings.changeover is not None)
        self._answer_within_ns = expose_within_ns(settings)
        self._ids = None if settings.trigger.repeated_ids or not self._names_parts else PartIds()
        self._late_answers = 0
        self._counter: int | None = None
        """The PLC's, as it was read last."""
        self._frame_id: int | None = None
        self._reopened = 0
        self._usual_transfer_ns = 0
        self._waiting: deque[tuple[Part, Frame]] = deque()
        """For the line thread, oldest first; as many as there are slots at most."""
        self._came = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)

    def start(self) -> None:
        """Begin to fetch."""
        self.turned_ns = time.monotonic_ns()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; no further part is opened."""
        self._stopping = True
        self._thread.join(timeout=1)

    def next(self, until_ns: int) -> tuple[Part, Frame] | None:
        """Wait for the next part and its frame, whose slot is the caller's from now on; None at `until_ns`."""
        with self._came:
            while not self._waiting:
                left_s = (until_ns - time.monotonic_ns()) / NS_PER_S
                if left_s <= 0:
                    return None
                self._came.wait(left_s)
            return self._waiting.popleft()

    def _run(self) -> None:
        while not self._stopping:
            self.turned_ns = time.monotonic_ns()
            self.look()

    def look(self) -> None:
        """Wait a tick for the next frame, and make a part of it."""
        self._drop_settled()  # before the wait: no part is on its way
        asked_ns = time.monotonic_ns()
        keeper = self._arriving.camera.keeper
        frame = keeper.next_frame(asked_ns + _TICK_NS)
        if frame is None:
            return
        if keeper.reopened != self._reopened:  # a fresh connection counts from where it likes
            self._reopened, self._frame_id = keeper.reopened, None
        if self._in_order(frame):
            waited = frame.received_ns - asked_ns > NS_PER_MS // 5
            self._arrived(frame, self._arrived_ns(frame, waited=waited))

    def _arrived(self, frame: Frame, at_ns: int) -> None:
        part_id, recipe, in_time = self._asked(at_ns)
        doubled, swapped = self._ids.repeats(part_id) if self._ids is not None else (False, False)
        part = self._arriving.intake.open(at_ns, part_id, recipe)
        part.saw(frame)
        self._arriving.row.put("frame_at_ns", frame.received_ns)
        # without a trigger of ours the exposure ended just before the first packet
        part.process = self._arriving.tags.snapshot(frame.received_ns - frame.transfer_ns)
        self._arriving.outcome.under_way.admit(part)
        if doubled or swapped:
            self._arriving.accounting.repeated(part, doubled=doubled)
        else:
            self._arriving.accounting.well()
        if doubled or swapped or not in_time:
            self._arriving.outcome.settle(part, Verdict.REJECT, Cause.IDENTITY)
        with self._came:
            self._waiting.append((part, frame))
            self._came.notify()

    def _asked(self, at_ns: int) -> tuple[str, int | None, bool]:
        """Part id and recipe's number, where the PLC is to say them, and whether it said them of this part.

        An answer that comes when the part has moved on may be of the next one. Without any the part goes by its own number,
        and by no recipe where the PLC names it.
        """
        plc, intake = self._arriving.plc, self._arriving.intake
        if plc is None or not self._asks:
            return "", None, True
        try:
            reading = plc.read_trigger(time.monotonic_ns() + intake.budget.budget_ns // 4, patient=True)
        except PeerError as exc:
            self._arriving.row.count("plc_errors")
            self._late_answers += 1
            if self._late_answers == _LATE_ANSWERS:
                self._arriving.outcome.note(Event(name="plc_answers_late", facts={"reason": exc.reason[:200]}))
            return "", None, True
        self._late_answers = 0
        if self._ids is not None and move(self._counter, reading.counter, cycle=MODBUS_CYCLE).step is Step.BACK:
            self._ids.clear()  # a PLC that was restarted numbers its parts anew
        self._counter = reading.counter
        self._arriving.recipes.announce(reading.recipe)
        if reading.read_ns - at_ns > self._answer_within_ns:
            return "", None, False
        return reading.part_id if self._names_parts else "", reading.recipe, True

    def _arrived_ns(self, frame: Frame, *, waited: bool) -> int:
        """When the whole frame was there. Where we came late to fetch it, the wait counts against our budget."""
        if waited or not self._usual_transfer_ns:
            usual = self._usual_transfer_ns or frame.transfer_ns
            self._usual_transfer_ns = (7 * usual + frame.transfer_ns) // 8
            return frame.received_ns
        return frame.received_ns - max(0, frame.transfer_ns - int(_TRANSFER_SLACK * self._usual_transfer_ns))

    def _in_order(self, frame: Frame) -> bool:
        """Account for the camera's frame counter; False for a frame that must not be judged (it is released)."""
        moved = move(self._frame_id, frame.frame_id, cycle=GVSP_CYCLE)
        # taken as it is from now on: a camera that counts anew must not be stale for ever
        self._frame_id = frame.frame_id
        anew = moved.missed > MOST_MISSED
        if moved.step in {Step.SAME, Step.BACK} or anew:
            claim = Claim.DOUBLED if moved.step is Step.SAME else Claim.STALE
            self._arriving.accounting.frame(Match(claim=claim), frame.frame_id)
            self._arriving.camera.keeper.release(frame.slot)
            return False
        if moved.missed:
            self._arriving.accounting.missed(moved.missed, "the camera's frame counter went on by more than one")
            for _ in range(moved.missed):
                missed = self._arriving.intake.missed(frame.received_ns, None)
                self._arriving.outcome.settle(missed, *overdue(frame_came=False))
        return True

    def _drop_settled(self) -> None:
        """Give back the slots of parts that got their verdict while they waited: a line that hangs must not keep them."""
        with self._came:
            over = [each for each in self._waiting if each[0].record is not None]
            for each in over:
                self._waiting.remove(each)
        for part, frame in over:
            if not part.lent:
                self._arriving.camera.keeper.release(frame.slot)
        self._arriving.camera.lender.collect()
