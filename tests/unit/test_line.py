"""The line thread with a camera that is its own trigger: each frame is a part, whatever its counter does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
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
from edgeqc.station.guard import Guard
from edgeqc.station.intake import Intake
from edgeqc.station.line import Line, Peers
from edgeqc.station.part import UNKNOWN_RECIPE, Recipe
from edgeqc.station.tagwatch import TagWatch


@dataclass
class Keeper:
    """How often the connection is a fresh one."""

    reopened: int = 0


@dataclass
class Cameras:
    """One camera whose frames are all broken: what is judged of them is not the matter here."""

    frames: deque[int] = field(default_factory=deque)
    reopens_before: set[int] = field(default_factory=set)
    """These frames are the first of a fresh connection, which is opened while the line waits for a frame."""
    released: list[int] = field(default_factory=list)
    keeper: Keeper = field(default_factory=Keeper)
    name: str = "cam"

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Cameras]:
        yield self

    def __getitem__(self, _index: int) -> Cameras:
        return self

    def next_frame(self, _until_ns: int) -> tuple[int, Frame] | None:
        frame_id = self.frames.popleft()
        if frame_id in self.reopens_before:
            self.keeper.reopened += 1
        now_ns = time.monotonic_ns()
        return 0, Frame(
            slot=1,
            pixels=np.zeros((16, 16), np.uint8),
            frame_id=frame_id,
            status=FrameStatus.INCOMPLETE,
            received_ns=now_ns,
            transfer_ns=1,
        )

    def release(self, _camera: int, slot: int) -> None:
        self.released.append(slot)

    def collect(self) -> None:
        """Nothing is on loan."""


class Recipes:
    """None is loaded."""

    coming = UNKNOWN_RECIPE

    def __getitem__(self, _recipe: Recipe) -> tuple[()]:
        return ()

    def of(self, _number: int) -> Recipe:
        return UNKNOWN_RECIPE

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
    cameras = Cameras(frames=deque(frame_ids), reopens_before=reopens_before)
    recipes: Any = Recipes()
    settings = StationSettings.model_validate(
        {
            "name": "top",
            "takt_ms": 100,
            "budget_ms": 50,
            "plc": {"type": "none"},
            "camera": {"type": "replay", "folder": str(tmp_path), "width_px": 16, "height_px": 16},
            "trigger": trigger,
            "recipe": {"engine": str(tmp_path)},
        }
    )
    guard = Guard(
        outcome=bench.outcome,
        plc=None,
        row=bench.row,
        fail_safe_ns=10**9,
        heartbeat_ns=10**9,
        healthy=lambda: True,
        priority=0,
    )
    intake = Intake(
        Budget.of_ms(budget_ms=10_000, plc_write_ms=5), guard=guard, row=bench.row, recipes=recipes, first_sequence=1
    )
    line = Line(
        settings,
        Peers(
            cameras=cameras,  # type: ignore[arg-type]
            recipes=recipes,
            outcome=bench.outcome,
            intake=intake,
            accounting=Accounting("top", row=bench.row, note=bench.outcome.note),
            plc=bench.keeper,
            row=bench.row,
            tags=TagWatch(tmp_path, settings),
        ),
    )
    for _ in frame_ids:
        line._cycle()
        line._follow_cameras()
    assert len(cameras.released) == len(frame_ids)


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
