"""The line thread with a camera that is its own trigger: each frame is a part, whatever its counter does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stationbench import Line as Bench

from edgeqc.core.budget import Budget
from edgeqc.errors import PeerTimeoutError
from edgeqc.records import Event, Frame, FrameStatus, PartRecord, PlcTrigger, Verdict
from edgeqc.settings import StationSettings
from edgeqc.station.accounting import Accounting
from edgeqc.station.arrivals import Arrivals, Arriving
from edgeqc.station.guard import Guard
from edgeqc.station.intake import Intake
from edgeqc.station.line import Line, Peers
from edgeqc.station.part import UNKNOWN_RECIPE, Recipe
from edgeqc.station.tagwatch import TagWatch


@dataclass
class Camera:
    """A viewpoint and its keeper. All frames are broken: what is judged of them is not the matter here."""

    frames: deque[int] = field(default_factory=deque)
    reopens_before: set[int] = field(default_factory=set)
    """These frames are the first of a fresh connection, which is opened while the line waits for a frame."""
    released: list[int] = field(default_factory=list)
    name: str = "cam"
    reopened: int = 0

    @property
    def keeper(self) -> Camera:
        return self

    @property
    def lender(self) -> Camera:
        return self

    def collect(self) -> None:
        """Nothing is on loan."""

    def next_frame(self, _until_ns: int) -> Frame | None:
        frame_id = self.frames.popleft()
        if frame_id in self.reopens_before:
            self.reopened += 1
        return Frame(
            slot=frame_id % 8,
            pixels=np.zeros((16, 16), np.uint8),
            frame_id=frame_id,
            status=FrameStatus.INCOMPLETE,
            received_ns=time.monotonic_ns(),
            transfer_ns=1,
        )

    def release(self, slot: int) -> None:
        self.released.append(slot)


class Cameras(list[Camera]):
    """As many as there are."""

    def release(self, camera: int, slot: int) -> None:
        self[camera].release(slot)

    def collect(self) -> None:
        """Nothing is on loan."""


class Recipes:
    """None is loaded."""

    coming = UNKNOWN_RECIPE

    def __getitem__(self, _recipe: Recipe) -> tuple[()]:
        return ()

    def of(self, _number: int | None) -> Recipe:
        return UNKNOWN_RECIPE

    def announce(self, _number: int) -> None:
        """None is warmed."""

    def changeover(self, *_: Any) -> list[Any]:
        return []


def frames(
    tmp_path: Path, frame_ids: list[int], *, reopens_before: set[int] = frozenset()
) -> tuple[list[int], list[str]]:  # type: ignore[assignment]
    """What was recorded: frame ids of the parts (0: missed), and what did not add up."""
    bench = Bench(tmp_path)
    cycle(bench, tmp_path, frame_ids, reopens_before=set(reopens_before), trigger={"source": "camera"})
    found = bench.journaled()
    bench.close()
    parts = [body.frame_id for body in found if isinstance(body, PartRecord)]
    return parts, [str(body.facts["kind"]) for body in found if isinstance(body, Event)]


def cycle(
    bench: Bench, tmp_path: Path, frame_ids: list[int], *, reopens_before: set[int], trigger: dict[str, str]
) -> None:
    """Let the line take these frames, one after the other."""
    camera = Camera(frames=deque(frame_ids), reopens_before=reopens_before)
    arrivals, line = station(bench, tmp_path, camera, trigger=trigger)
    for _ in frame_ids:
        arrivals.look()
        if arrivals._waiting:
            line._cycle()
        line._let_go()
    assert len(camera.released) == len(frame_ids)


def station(
    bench: Bench,
    tmp_path: Path,
    camera: Camera,
    *,
    trigger: dict[str, Any],
    takt_ms: float = 100,
    budget_ms: float = 10_000,
) -> tuple[Arrivals, Line]:
    """What fetches the camera's frames, and the line behind it; neither runs by itself."""
    recipes: Any = Recipes()
    settings = StationSettings.model_validate(
        {
            "name": "top",
            "takt_ms": takt_ms,
            "budget_ms": budget_ms,
            "plc": {"type": "none"},
            "camera": {"type": "replay", "folder": str(tmp_path), "width_px": 16, "height_px": 16},
            "trigger": trigger,
            "recipe": {"engine": str(tmp_path)},
        }
    )
    bench.guard = Guard(
        outcome=bench.outcome,
        plc=None,
        row=bench.row,
        fail_safe_ns=10**6,
        heartbeat_ns=10**9,
        healthy=lambda: True,
        priority=0,
    )
    accounting = Accounting("top", row=bench.row, note=bench.outcome.note)
    tags = TagWatch(tmp_path, settings)
    intake = Intake(
        Budget.of_ms(budget_ms=budget_ms, plc_write_ms=5),
        guard=bench.guard,
        row=bench.row,
        recipes=recipes,
        first_sequence=1,
    )
    arrivals = Arrivals(
        settings,
        Arriving(
            camera=camera,  # type: ignore[arg-type]
            plc=bench.keeper,
            intake=intake,
            outcome=bench.outcome,
            accounting=accounting,
            recipes=recipes,
            tags=tags,
            row=bench.row,
        ),
    )
    line = Line(
        settings,
        Peers(
            cameras=Cameras([camera]),  # type: ignore[arg-type]
            recipes=recipes,
            outcome=bench.outcome,
            accounting=accounting,
            plc=bench.keeper,
            row=bench.row,
            tags=tags,
            arrivals=arrivals,
        ),
    )
    return arrivals, line


def test_a_plc_that_says_the_part_id_too_late_is_told_the_verdict_all_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def slow(_until_ns: int) -> PlcTrigger:
        raise PeerTimeoutError("plc", "no answer in time")

    bench.plc.read_trigger = slow  # type: ignore[method-assign]
    cycle(bench, tmp_path, [1, 2], reopens_before=set(), trigger={"source": "camera", "part_id": "plc"})
    told, errors = [(one.sequence, one.verdict) for one in bench.plc.told], bench.row.get("plc_errors")
    bench.close()
    assert told == [(1, Verdict.REJECT), (2, Verdict.REJECT)]
    assert errors == 2


def test_each_frame_is_a_part_and_each_that_was_missed(tmp_path: Path) -> None:
    assert frames(tmp_path, [1, 2, 5]) == ([1, 2, 0, 0, 5], ["missed"])


@pytest.mark.parametrize("before", [300, 40_000])
def test_the_first_frame_of_a_fresh_connection_is_a_part_wherever_its_camera_counts_from(
    tmp_path: Path, before: int
) -> None:
    """The connection is opened while the line waits; a counter far on would be thousands of missed parts."""
    assert frames(tmp_path, [before, 1, 2], reopens_before={1}) == ([before, 1, 2], [])


@pytest.mark.parametrize("before", [20_000, 40_000])
def test_a_camera_that_counts_anew_costs_one_part_and_not_all_until_it_has_caught_up(
    tmp_path: Path, before: int
) -> None:
    assert frames(tmp_path, [before, 1, 2, 3]) == ([before, 2, 3], ["stale"])


BY_PLC: dict[str, Any] = {"source": "camera", "part_id": "plc"}


def answers(bench: Bench, *part_ids: str, after_s: float = 0.0, counters: Sequence[int] = ()) -> None:
    """What the PLC shows at each question."""
    shown = iter(zip(counters or [0] * len(part_ids), part_ids, strict=True))

    def read(_until_ns: int) -> PlcTrigger:
        time.sleep(after_s)
        counter, part_id = next(shown)
        return PlcTrigger(counter=counter, part_id=part_id, read_ns=time.monotonic_ns())

    bench.plc.read_trigger = read  # type: ignore[method-assign]


def test_a_line_that_hangs_costs_no_part_its_verdict_and_the_camera_no_slot(tmp_path: Path) -> None:
    """The engine may hang: whoever fetches the frames goes on, and the guard has each part."""
    bench = Bench(tmp_path)
    camera = Camera(frames=deque(range(1, 21)))
    arrivals, line = station(bench, tmp_path, camera, trigger={"source": "camera"}, budget_ms=30)
    bench.guard.start()
    for _ in range(20):
        arrivals.look()
    until = time.monotonic() + 20
    while len(bench.plc.told) < 20:
        assert time.monotonic() < until
        time.sleep(0.005)
    bench.guard.stop()
    told = [(one.sequence, one.verdict, one.code) for one in bench.plc.told]
    assert told == [(number, Verdict.REJECT, 100) for number in range(1, 21)]
    if arrivals._waiting:  # the line goes on: nothing of it is judged any more
        line._cycle()
        line._let_go()
    arrivals._drop_settled()
    assert sorted(camera.released) == sorted(number % 8 for number in range(1, 21))
    assert len(bench.plc.told) == 20
    parts = [body for body in bench.journaled() if isinstance(body, PartRecord)]
    bench.close()
    assert [(part.trigger.sequence, part.frame_id) for part in parts] == [(number, number) for number in range(1, 21)]


def test_a_part_id_that_is_read_when_the_part_has_moved_on_is_nobodys(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    answers(bench, "P2", after_s=0.03)
    arrivals, line = station(bench, tmp_path, Camera(frames=deque([1])), trigger=BY_PLC, takt_ms=100)
    arrivals.look()
    (one,) = bench.plc.told
    line._cycle()
    bench.close()
    assert (one.part_id, one.verdict, one.code) == ("1", Verdict.REJECT, 109)


@pytest.mark.parametrize(
    ("trigger", "codes"), [(BY_PLC, [102, 109, 102, 109]), ({**BY_PLC, "repeated_ids": True}, [102, 102, 102, 102])]
)
def test_a_part_with_the_id_of_one_before_it_is_not_passed(
    tmp_path: Path, trigger: dict[str, Any], codes: list[int]
) -> None:
    bench = Bench(tmp_path)
    answers(bench, "A", "A", "B", "A")
    arrivals, line = station(bench, tmp_path, Camera(frames=deque([1, 2, 3, 4])), trigger=trigger, takt_ms=60_000)
    for _ in codes:
        arrivals.look()
        line._cycle()
    told = [(one.part_id, one.code) for one in bench.plc.told]
    bench.close()
    assert told == list(zip("AABA", codes, strict=True))


def test_a_plc_that_answers_late_again_and_again_is_told_of_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def slow(_until_ns: int) -> PlcTrigger:
        raise PeerTimeoutError("plc", "no answer in time")

    bench.plc.read_trigger = slow  # type: ignore[method-assign]
    cycle(bench, tmp_path, [1, 2, 3, 4, 5], reopens_before=set(), trigger=BY_PLC)
    events = [body.name for body in bench.journaled() if isinstance(body, Event)]
    bench.close()
    assert events == ["plc_answers_late"]


def test_a_plc_that_was_restarted_may_number_its_parts_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    answers(bench, "P1", "P2", "P1", counters=[41, 42, 1])
    arrivals, line = station(bench, tmp_path, Camera(frames=deque([1, 2, 3])), trigger=BY_PLC, takt_ms=60_000)
    for _ in range(3):
        arrivals.look()
        line._cycle()
    told = [one.code for one in bench.plc.told]
    bench.close()
    assert told == [102, 102, 102]


def test_where_nobody_opens_parts_the_line_gives_no_sign_of_life(tmp_path: Path) -> None:
    """READY would stand, and the heartbeat go on, while parts pass that get no verdict."""
    bench = Bench(tmp_path)
    arrivals, line = station(bench, tmp_path, Camera(), trigger={"source": "camera"})
    arrivals.turned_ns = 5

    def last() -> None:
        line.stopping = True

    line._cycle = last  # type: ignore[method-assign, assignment]
    line.run()
    beat_ns = bench.row.beats()["line"]
    bench.close()
    assert beat_ns == 5
