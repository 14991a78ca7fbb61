"""Single measurements of scripts/bench, each in a process of its own: `python -m edgeqc.sim.benchparts engine FILE`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from edgeqc.cores import pin, real_time
from edgeqc.inference.judge import map_shape
from edgeqc.journal import JournalWriter
from edgeqc.records import Cause, Ledger, PartRecord, Trigger, Verdict
from edgeqc.settings import JournalSettings, RecipeSettings, RegionMode, RegionSettings, ReplayCameraSettings
from edgeqc.station.inspection import Inspection
from edgeqc.station.part import Part

ENGINE = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
ENGINE_RUNS = 500
APPENDS = 2000
APPEND_PERIOD_S = 0.004
PRIORITY = 20
"""As StationSettings.priority."""


def main() -> int:
    """Print p50, p99 and max of one measurement as JSON."""
    what, argument = sys.argv[1], Path(sys.argv[2])
    values = {"engine": engine, "journal": journal}[what](argument)
    found = {name: float(np.percentile(values, share)) for name, share in (("p50", 50), ("p99", 99), ("max", 100))}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def engine(images: Path) -> list[float]:
    """Milliseconds of each engine run, back to back, as the line thread would run it."""
    pin({max(os.sched_getaffinity(0))})
    real_time(PRIORITY)
    frames = np.load(images, mmap_mode="r")
    _, height, width = frames.shape
    recipe = RecipeSettings(engine=ENGINE, region=RegionSettings(mode=RegionMode.LOCATE))
    camera = ReplayCameraSettings(type="replay", folder=Path(), width_px=width, height_px=height)
    inspection = Inspection(recipe, camera)
    picture = np.zeros(map_shape((height, width)), np.uint8)
    took: list[float] = []
    for index in range(ENGINE_RUNS):
        now_ns = time.monotonic_ns()
        part = Part(
            trigger=Trigger(sequence=index, part_id="", at_ns=now_ns, wall_ns=0),
            deadline_ns=now_ns + 10**9,
            fail_safe_at_ns=now_ns + 10**9,
        )
        inspection.inspect(part, np.array(frames[index % len(frames)]), picture)
        took.append((part.scored_ns - part.prepared_ns) / 1e6)
    return took


def journal(folder: Path) -> list[float]:
    """Microseconds of each append, paced, while the journal's own thread syncs."""
    pin({max(os.sched_getaffinity(0))})
    real_time(PRIORITY)
    writer = JournalWriter(folder / "journal" / "station-bench", JournalSettings())
    record = PartRecord(
        station="bench",
        trigger=Trigger(sequence=1, part_id="P000001", at_ns=1, wall_ns=1),
        frame_id=1,
        verdict=Verdict.PASS,
        cause=Cause.OK,
        score=0.1,
        threshold=0.5,
        ledger=Ledger(trigger_ns=1),
        deadline_ns=1,
        recipe="default",
        model_digest=bytes(32),
    )
    took: list[float] = []
    for _ in range(APPENDS):
        time.sleep(APPEND_PERIOD_S)
        started_ns = time.perf_counter_ns()
        writer.append(record)
        took.append((time.perf_counter_ns() - started_ns) / 1e3)
    writer.close()
    return took


if __name__ == "__main__":
    raise SystemExit(main())
