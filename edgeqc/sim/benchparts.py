"""Single measurements of scripts/bench, each in a process of its own: `python -m edgeqc.sim.benchparts engine FILE`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from pymodbus.client import AsyncModbusTcpClient

from edgeqc.cameras import open_camera
from edgeqc.cores import pin, real_time
from edgeqc.inference.judge import map_shape
from edgeqc.journal import JournalWriter
from edgeqc.records import NS_PER_S, Cause, Ledger, PartRecord, Trigger, Verdict
from edgeqc.settings import (
    GigeCameraSettings,
    JournalSettings,
    RecipeSettings,
    RegionMode,
    RegionSettings,
    ReplayCameraSettings,
)
from edgeqc.shm.slots import FrameSlots
from edgeqc.station.inspection import Inspection
from edgeqc.station.part import Part

ENGINE = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
ENGINE_RUNS = 500
PLAIN_PARTS = 300
APPENDS = 2000
APPEND_PERIOD_S = 0.004
PRIORITY = 20
"""As StationSettings.priority."""


def main() -> int:
    """Print p50, p99 and max of one measurement as JSON."""
    what, *arguments = sys.argv[1:]
    match what:
        case "engine":
            values = engine(Path(arguments[0]))
        case "journal":
            values = journal(Path(arguments[0]))
        case _:
            address, port, height, width, rate_hz = arguments
            values = asyncio.run(plain_loop(address, int(port), (int(height), int(width)), float(rate_hz)))
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


async def plain_loop(address: str, port: int, shape: tuple[int, int], rate_hz: float) -> list[float]:
    """Milliseconds of overhead of what one would write first: camera thread, engine, asyncio, pymodbus; nothing else.

    It journals nothing, accounts for nothing, and has no deadline, but has the core and the priority that a station has.
    Overhead is from the frame in hand to the PLC's acknowledgement, less the engine.
    """
    cores = set(range(os.cpu_count() or 1))
    pin(cores)  # who started this keeps off the station's core, and so would this
    cores = os.sched_getaffinity(0)
    real_time(PRIORITY)
    slots = FrameSlots.create(Path(tempfile.mkdtemp()) / "slots", per_bank=8, shape=shape)
    settings = GigeCameraSettings(
        type="gige", address=address, height_px=shape[0], width_px=shape[1], rate_hz=rate_hz, packet_bytes=8000
    )
    session = onnxruntime.InferenceSession(
        (ENGINE / "model.onnx").read_bytes(), _one_thread(), providers=["CPUExecutionProvider"]
    )
    client = AsyncModbusTcpClient("127.0.0.1", port=port)
    await client.connect()
    camera = await asyncio.to_thread(open_camera, settings, slots, 0, software_trigger=False)
    loop = asyncio.get_running_loop()
    scored: asyncio.Queue[tuple[int, int, float]] = asyncio.Queue()

    def judge() -> None:
        pin({max(cores)})
        for _ in range(PLAIN_PARTS):
            frame = camera.next_frame(time.monotonic_ns() + NS_PER_S)
            if frame is None:
                continue
            small = cv2.resize(frame.pixels, (256, 256), interpolation=cv2.INTER_LINEAR).astype(np.float32)
            started_ns = time.monotonic_ns()
            score = float(session.run(["score"], {"image": (small / small.mean() - 1)[None, None]})[0][0])
            spent_ns = time.monotonic_ns() - started_ns
            camera.release(frame.slot)
            loop.call_soon_threadsafe(scored.put_nowait, (frame.received_ns, spent_ns, score))
        loop.call_soon_threadsafe(scored.put_nowait, (0, 0, 0.0))

    took: list[float] = []
    thread = threading.Thread(target=judge)
    thread.start()
    while (result := await scored.get())[0]:
        received_ns, spent_ns, score = result
        await client.write_registers(100, [int(score * 10_000)] * 16)
        took.append((time.monotonic_ns() - received_ns - spent_ns) / 1e6)
    thread.join()
    client.close()
    await asyncio.to_thread(camera.close)
    return took


def _one_thread() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


if __name__ == "__main__":
    raise SystemExit(main())
