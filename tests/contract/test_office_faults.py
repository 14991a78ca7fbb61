"""The office against a disk that fills up and a SIGKILL in the middle of its work, in processes of its own."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest

from edgeqc.journal import JournalWriter
from edgeqc.office import tables
from edgeqc.records import Cause, Delivery, Ledger, PartRecord, Trigger, Verdict
from edgeqc.settings import JournalSettings

PATIENCE_S = 40.0

COMMON = """
import asyncio, json, math, sys, time
from pathlib import Path
import numpy as np
from edgeqc.journal import JournalWriter
from edgeqc.office.process import run_office
from edgeqc.records import Cause, Delivery, Ledger, PartRecord, Trigger, Verdict
from edgeqc.settings import JournalSettings, Settings
from edgeqc.shm.slots import FrameSlots

state = Path(sys.argv[1])
run_dir = Path(sys.argv[2])
settings = Settings.model_validate({
    "version": 1, "node": "n1",
    "archive": {"disk_free_mb": 0, "images_mb": int(sys.argv[3]) if len(sys.argv) > 3 else 512},
    "stations": [{"name": "top", "takt_ms": 100, "budget_ms": 60, "plc": {"type": "none"}, "recipe": {"engine": "e"},
                  "camera": {"type": "replay", "folder": "x", "width_px": 1280, "height_px": 1024}}]})

def part(sequence, slot=-1, lease=0):
    now = time.monotonic_ns()
    return PartRecord(
        station="top", trigger=Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=now, wall_ns=time.time_ns()),
        frame_id=1, verdict=Verdict.REJECT, cause=Cause.DEFECT, score=0.9, threshold=0.5, ledger=Ledger(trigger_ns=now),
        deadline_ns=now, recipe="r", model_digest=bytes(32), slot=slot, lease=lease)

def delivery(sequence):
    return Delivery(sequence=sequence, verdict=Verdict.REJECT, cause=Cause.DEFECT, delivered=True,
                    delivered_ns=time.monotonic_ns(), late=False, late_score=math.nan)
"""

FULL = """
import logging, os, shutil, sqlite3

def rows():
    try:
        with sqlite3.connect(state / "archive.db") as database:
            return database.execute("select count(*) from parts").fetchone()[0]
    except sqlite3.Error:
        return 0

async def wait(condition, timeout=30):
    end = time.monotonic() + timeout
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return bool(condition())

async def main():
    found = {}
    journal = JournalWriter(state / "journal" / "station-top",
                            JournalSettings(segment_mb=1, budget_mb=8, ballast_mb=0))
    slots = FrameSlots.create(run_dir / "slots-top", per_bank=4, shape=(1024, 1280))
    stop = asyncio.Event()
    beats = []
    office = asyncio.create_task(run_office(settings, state_dir=state, run_dir=run_dir,
                                            beat=lambda: beats.append(time.monotonic()), health=dict, stop=stop))
    for n in range(1, 6):
        slots.pixels(n % 8)[:] = np.random.default_rng(n).integers(0, 256, (1024, 1280), np.uint8)
        journal.append(part(n, n % 8, slots.lend(n % 8)))
        journal.append(delivery(n))
    found["before"] = await wait(lambda: rows() == 5 and len(list(state.glob("images/*/*.png"))) == 5)
    for file in state.glob("images/*/*.png"):
        if not keep_images:
            file.unlink()
    if not keep_images:
        shutil.rmtree(state / "images")
    with open(state / "fill", "wb", buffering=0) as fill:
        try:
            while True:
                fill.write(bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                fill.write(bytes(512))
        except OSError:
            pass
    for n in range(6, 1006):
        journal.append(part(n))
        journal.append(delivery(n))
    if keep_images:
        found["went_on"] = await wait(lambda: rows() == 1005)
        found["images_left"] = len(list(state.glob("images/*/*.png")))
    else:
        await asyncio.sleep(4)  # several attempts of the archive on the full disk
        found["while_full"] = rows()
        (state / "fill").unlink()
        found["went_on"] = await wait(lambda: rows() == 1005)
    found["alive"] = not office.done()
    gaps = [b - a for a, b in zip(beats, beats[1:])]
    found["longest_gap_s"] = max(gaps)
    stop.set()
    await office
    journal.close()
    slots.close()
    print(json.dumps(found))

asyncio.run(main())
"""


def on_a_small_disk(tmp_path: Path, program: str, *, size_mb: int) -> dict:
    """Run the program with a tmpfs of this size as its state directory, in a mount namespace of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare to mount a small disk")
    state, run_dir = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    run_dir.mkdir()
    (tmp_path / "program.py").write_text(COMMON + program)
    script = f'mount -t tmpfs -o size={size_mb}m tmpfs "{state}" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, str(tmp_path / "program.py"), state, run_dir],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "mount" in done.stderr and "permission denied" in done.stderr.lower():
        pytest.skip("may not mount here")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    found["log"] = done.stdout + done.stderr
    return found


@pytest.mark.timeout(120)
def test_a_full_disk_stops_the_archive_and_loses_nothing(tmp_path):
    found = on_a_small_disk(tmp_path, "keep_images = False\n" + FULL, size_mb=24)
    assert found["before"]
    assert found["while_full"] < 1005
    assert found["went_on"]
    assert found["alive"]
    assert found["longest_gap_s"] < 10
    assert found["log"].count("archive_stuck") == 1
    assert found["log"].count("archive_recovered") == 1


@pytest.mark.timeout(120)
def test_a_full_disk_costs_images_before_it_costs_rows(tmp_path):
    found = on_a_small_disk(tmp_path, "keep_images = True\n" + FULL, size_mb=24)
    assert found["before"]
    assert found["went_on"]
    assert found["images_left"] < 5


@pytest.mark.timeout(120)
def test_an_archive_killed_in_the_middle_of_its_writing_has_every_part_once(tmp_path):
    program = COMMON + textwrap.dedent("""
        asyncio.run(run_office(settings, state_dir=state, run_dir=run_dir, beat=lambda: None, health=dict,
                               stop=asyncio.Event()))
    """)
    state = tmp_path / "state"
    journal = JournalWriter(state / "journal" / "station-top", JournalSettings())
    sequence = 0
    for round_ in range(6):
        process = subprocess.Popen([sys.executable, "-c", program, str(state), str(tmp_path)])
        try:
            until((state / tables.FILE_NAME).exists)
            end = time.monotonic() + 0.5 + round_ * 0.13
            while time.monotonic() < end:
                for _ in range(20):
                    sequence += 1
                    append(journal, sequence)
                time.sleep(0.005)  # the office reads while the line runs
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
    process = subprocess.Popen([sys.executable, "-c", program, str(state), str(tmp_path)])
    try:
        until(lambda: count(state) >= sequence)
    finally:
        process.kill()
        process.wait(10)
    journal.close()
    with closing(sqlite3.connect(state / tables.FILE_NAME)) as database:
        found = database.execute("SELECT sequence, delivered FROM parts ORDER BY id").fetchall()
    assert found == [(number, 1) for number in range(1, sequence + 1)]


@pytest.mark.timeout(120)
def test_the_office_stays_within_its_memory(tmp_path):
    program = COMMON + textwrap.dedent("""
        import psutil

        async def main():
            journal = JournalWriter(state / "journal" / "station-top", JournalSettings())
            slots = FrameSlots.create(run_dir / "slots-top", per_bank=8, shape=(1024, 1280))
            stop = asyncio.Event()
            office = asyncio.create_task(run_office(settings, state_dir=state, run_dir=run_dir, beat=lambda: None,
                                                    health=dict, stop=stop))
            for n in range(1, 301):
                slot = n % 16
                journal.append(part(n, slot, slots.lend(slot)))
                journal.append(delivery(n))
                await asyncio.sleep(0.02)
            shared = sum(m.rss for m in psutil.Process().memory_maps() if "slots-" in m.path or "journal" in m.path)
            peak = psutil.Process().memory_info().rss - shared
            stop.set()
            await office
            journal.close()
            slots.close()
            print(json.dumps({"rss_mb": peak / 2**20, "images": len(list(state.glob("images/*/*.png")))}))

        asyncio.run(main())
        """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rss_mb"] < 90
    assert found["images"] > 0


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "not within the time a loaded box needs"
        time.sleep(0.02)  # another process has to do it


def count(state: Path) -> int:
    try:
        with closing(sqlite3.connect(state / tables.FILE_NAME)) as database:
            return database.execute("SELECT count(*) FROM parts WHERE NOT open").fetchone()[0]
    except sqlite3.Error:
        return 0


def append(journal: JournalWriter, sequence: int) -> None:
    now_ns = time.monotonic_ns()
    journal.append(
        PartRecord(
            station="top",
            trigger=Trigger(sequence=sequence, part_id=f"P{sequence}", at_ns=now_ns, wall_ns=time.time_ns()),
            frame_id=1,
            verdict=Verdict.PASS,
            cause=Cause.OK,
            score=0.1,
            threshold=0.5,
            ledger=Ledger(trigger_ns=now_ns),
            deadline_ns=now_ns,
            recipe="r",
            model_digest=bytes(32),
        )
    )
    journal.append(
        Delivery(
            sequence=sequence,
            verdict=Verdict.PASS,
            cause=Cause.OK,
            delivered=True,
            delivered_ns=now_ns,
            late=False,
            late_score=float("nan"),
        )
    )
