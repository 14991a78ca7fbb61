"""The decision path allocates nothing of a frame's size, and copies no frame, once it is warm."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgeqc.core.decide import decide
from edgeqc.core.keeping import KeepRule
from edgeqc.core.views import View
from edgeqc.inference.judge import map_shape
from edgeqc.journal import JournalWriter
from edgeqc.records import FrameStatus, Trigger
from edgeqc.settings import (
    JournalSettings,
    JournalSync,
    RecipeSettings,
    RegionMode,
    RegionSettings,
    ReplayCameraSettings,
)
from edgeqc.shm.board import Board
from edgeqc.shm.slots import FrameSlots
from edgeqc.sim.images import drawn_parts
from edgeqc.station.inspection import Inspection
from edgeqc.station.lender import Lender
from edgeqc.station.outcome import Outcome
from edgeqc.station.part import Part

ENGINE = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
SHAPE = (480, 640)
JOURNAL_SEGMENTS = 3 << 22  # bytes: the written one, the next and the ballast's room, 4 MB each
LONG = pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("parts", [300, LONG])
def test_no_allocation_of_frame_size_after_warm_up(tmp_path: Path, parts: int) -> None:
    images = np.load(drawn_parts(tmp_path, count=4, shape=SHAPE).file)
    camera = ReplayCameraSettings(type="replay", folder=tmp_path, height_px=SHAPE[0], width_px=SHAPE[1])
    recipe = RecipeSettings(engine=ENGINE, region=RegionSettings(mode=RegionMode.LOCATE))
    inspection = Inspection(recipe, camera)
    slots = FrameSlots.create(tmp_path / "slots", per_bank=8, shape=SHAPE, map_shape=map_shape(SHAPE))
    row = Board.create(tmp_path, ["station-top"])["station-top"]
    home: deque[int] = deque(maxlen=1)
    lender = Lender(slots, most=4, take_back=home.append)
    journal = JournalWriter(tmp_path / "journal" / "station-top", JournalSettings(ballast_mb=0))
    outcome = Outcome(
        station="top",
        journal=journal,
        sync=JournalSync.GROUP,
        plc=None,
        lenders={"cam": lender},
        keep=KeepRule(rejects=True, every_nth_pass=3, newest=0),
        row=row,
    )

    def judge(number: int) -> None:
        slot = number % slots.bank
        now_ns = time.monotonic_ns()
        part = Part(
            trigger=Trigger(sequence=number, part_id=f"P{number}", at_ns=now_ns, wall_ns=0),
            deadline_ns=now_ns + 10**9,
            fail_safe_at_ns=now_ns + 10**9,
            slot=slot,
            views=[View(name="cam", sequence=number, frame=FrameStatus.OK, score=0.0, threshold=1.0)],
        )
        inspection.inspect(part, slots.pixels(slot), slots.map(slot), keep_pass=outcome.keeps_next_pass)
        verdict = decide(
            frame=FrameStatus.OK,
            score=part.score,
            threshold=inspection.threshold,
            now_ns=time.monotonic_ns(),
            fail_safe_at_ns=part.fail_safe_at_ns,
        )
        assert outcome.settle(part, *verdict)
        lender.collect()

    for slot in range(slots.bank):
        slots.pixels(slot)[:] = images[slot % len(images)]
    for number in range(1, 30):
        judge(number)
    process = psutil.Process()
    tracemalloc.start()
    try:
        judge(30)
        resident = process.memory_info().rss
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for number in range(31, parts):
            judge(number)
        _, peak = tracemalloc.get_traced_memory()
        gc.collect()  # empties the interpreter's free lists, too: 96 kB of one-element tuples alone
        after, _ = tracemalloc.get_traced_memory()
        grown = process.memory_info().rss - resident
    finally:
        tracemalloc.stop()
        journal.close()
        inspection.close()
    frame = SHAPE[0] * SHAPE[1]
    # a reject's labels and outlines and the interpreter's free lists are 120 kB
    assert peak - before < frame // 2, f"{peak - before} bytes at the peak, a frame has {frame}"
    assert after - before < 16_384
    # what the journal's segments take is the page cache's: mapped, shared, and given back
    assert grown < JOURNAL_SEGMENTS + 4 * frame, f"{grown} bytes resident more after {parts} parts"
    assert row.get("verdicts") == parts - 1
    assert home, "slots were lent and came home"
