from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeqc import loading
from edgeqc.errors import EdgeqcError
from edgeqc.journal import JournalReader
from edgeqc.records import AlertChange, Quality, Started
from edgeqc.settings import GridSettings, Settings
from edgeqc.shm.board import Board, State
from edgeqc.shm.tagtable import FILE_NAME, TagTable, summarise
from edgeqc.sim.tags import SimTags, tag_settings
from edgeqc.train.tags.course import learn
from edgeqc.train.tags.package import Wishes
from edgeqc.train.tags.recording import Recording
from edgeqc.watch.process import TICK_S, run_watch

PATIENCE_S = 30.0


def settings(tmp_path: Path, *sources: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {
            "version": 1,
            "node": "box",
            "state_dir": tmp_path / "state",
            "run_dir": tmp_path,
            "stations": [
                {
                    "name": "top",
                    "takt_ms": 100,
                    "budget_ms": 50,
                    "camera": {"type": "replay", "folder": "x", "width_px": 64, "height_px": 64},
                    "recipe": {"engine": "x"},
                    "plc": {"type": "none"},
                }
            ],
            "tags": list(sources),
        }
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.02)  # polls the condition


async def attached(tmp_path: Path) -> TagTable:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return TagTable.attach(tmp_path / FILE_NAME)
        except (FileNotFoundError, EdgeqcError):
            assert time.monotonic() < end, "no table"
            await asyncio.sleep(0.02)  # the watch process is about to make it


def quality(table: TagTable, name: str) -> Quality:
    return table.read(table.index(name), time.monotonic_ns()).quality


async def test_a_dead_server_turns_its_tags_bad_raises_one_alert_and_clears_it(tmp_path: Path):
    with SimTags("modbus", tags=10) as press, SimTags("modbus", tags=10) as oven:
        configured = settings(
            tmp_path, tag_settings(10, press.url, name="press"), tag_settings(10, oven.url, name="oven")
        )
        stop, told, beats = asyncio.Event(), list[AlertChange](), [0]

        def beat(_: object) -> None:
            beats[0] += 1

        watch = asyncio.create_task(
            run_watch(
                configured, state_dir=tmp_path / "state", run_dir=tmp_path, journal=told.append, beat=beat, stop=stop
            )
        )
        table = await attached(tmp_path)
        await until(lambda: quality(table, "press-0009") is quality(table, "oven-0009") is Quality.GOOD, "values")
        await until(lambda: table.source(0).updates_hz > 0, "the rate")
        assert summarise(table, time.monotonic_ns())["tags.press"]["ne107"] == "normal"

        await asyncio.to_thread(press.kill)
        await until(lambda: quality(table, "press-0009") is Quality.BAD, "bad quality")
        assert quality(table, "oven-0009") is Quality.GOOD
        await until(lambda: any(change.active for change in told), "the alert")
        health = summarise(table, time.monotonic_ns())
        assert (health["tags.press"]["connected"], health["tags.oven"]["connected"]) == (False, True)
        assert "refused" in health["tags.press"]["reason"]

        await asyncio.to_thread(press.start)
        await until(lambda: quality(table, "press-0009") is Quality.GOOD, "values after the restart")
        raised = [change.id for change in told if change.active]
        assert raised == ["tags.press.lost"]
        await until(lambda: told[-1].id == "tags.press.lost" and not told[-1].active, "the clearing")

        assert beats[0] > 10
        stop.set()
        await asyncio.wait_for(watch, 10)
        table.close()


def test_the_process_serves_beats_journals_and_ends_on_sigterm(tmp_path: Path):
    recording = tmp_path / "recording.csv"
    recording.write_text("t,heat\n0,20\n0.1,21\n0.2,22\n")
    configured = settings(
        tmp_path,
        {"name": "file", "type": "replay", "file": recording, "tags": [{"name": "heat"}, {"name": "missing"}]},
    )
    board = Board.create(tmp_path, ["watch"])
    (tmp_path / "settings.json").write_bytes(loading.dump(configured))
    with subprocess.Popen(
        [sys.executable, "-m", "edgeqc", "watch", "--run-dir", str(tmp_path)], stderr=subprocess.PIPE
    ) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            row = board["watch"]
            while not (row.state is State.READY and row.get("tags_good") == 1 and row.get("tag_updates") > 50):
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                assert time.monotonic() < end
                time.sleep(0.05)  # polls the board
            beat_ns = row.beats()["main"]
            assert time.monotonic_ns() - beat_ns < 5e9
            assert row.get("tags_bad") == 1
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=10)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0
    assert b"watch_stopped" in said
    assert row.state is State.STOPPING
    reader = JournalReader(tmp_path / "state" / "journal" / "watch")
    bodies = [entry.body for entry in reader.read()]
    reader.close()
    assert isinstance(bodies[0], Started)
    assert bodies[0].process == "watch"
    stale = [body for body in bodies if isinstance(body, AlertChange) and body.active]
    assert [change.id for change in stale] in ([], ["tags.file.refused"])  # told after 2 s


def test_a_killed_watch_process_leaves_no_good_tag_behind(tmp_path: Path):
    recording = tmp_path / "recording.csv"
    recording.write_text("t,heat\n0,20\n0.1,21\n")
    source = {"name": "file", "type": "replay", "file": recording, "stale_ms": 500, "tags": [{"name": "heat"}]}
    Board.create(tmp_path, ["watch"])
    (tmp_path / "settings.json").write_bytes(loading.dump(settings(tmp_path, source)))
    with subprocess.Popen(
        [sys.executable, "-m", "edgeqc", "watch", "--run-dir", str(tmp_path)], stderr=subprocess.DEVNULL
    ) as process:
        try:
            table = asyncio.run(attached(tmp_path))
            asyncio.run(until(lambda: quality(table, "heat") is Quality.GOOD, "a value"))
        finally:
            process.kill()
    asyncio.run(until(lambda: quality(table, "heat") is Quality.BAD, "staleness"))
    table.close()


async def test_rows_that_pile_up_do_not_stop_its_sign_of_life(tmp_path: Path):
    recording = tmp_path / "recording.csv"
    recording.write_text("t,heat\n0,20\n0.1,21\n")
    configured = settings(
        tmp_path, {"name": "file", "type": "replay", "file": recording, "tags": [{"name": "heat"}]}
    ).model_copy(update={"grid": GridSettings(period_ms=10)})
    stop, rows = asyncio.Event(), [0]
    between: list[int] = []

    def judge(_: object) -> None:
        rows[0] += 1
        time.sleep(0.03)  # three rows come while one is judged

    def beat(_: object) -> None:
        between.append(rows[0])
        rows[0] = 0

    watch = asyncio.create_task(
        run_watch(
            configured,
            state_dir=tmp_path / "state",
            run_dir=tmp_path,
            journal=lambda _: None,
            beat=beat,
            stop=stop,
            judge=judge,
        )
    )
    await until(lambda: sum(between) > 60, "rows")
    stop.set()
    await asyncio.wait_for(watch, PATIENCE_S)
    assert max(between) <= TICK_S / 0.03 + 1


async def test_a_machine_whose_tags_go_wrong_is_an_alarm_that_names_them(tmp_path: Path):
    lots = np.random.default_rng(1)
    rows = lots.normal(0, 1, (900, 2)) * [0.3, 0.02] + [30, 2]
    learn(
        Recording(source="drawn", tags=("flow", "pressure"), seconds=np.arange(900.0) / 20, values=rows),
        [slice(0, 900)],
        Wishes(name="pump", network=False, per_day=None, grid_ms=50),
        tmp_path / "pump",
    )
    rows[100:] += [-4, 0]
    file = tmp_path / "rows.csv"
    file.write_text(
        "t,flow,pressure\n" + "".join(f"{at / 20},{flow},{pressure}\n" for at, (flow, pressure) in enumerate(rows))
    )
    source = {"name": "rig", "type": "replay", "file": file, "tags": [{"name": "flow"}, {"name": "pressure"}]}
    configured = Settings.model_validate(
        {
            **settings(tmp_path, source).model_dump(by_alias=True),
            "grid": {"period_ms": 50},
            "machines": [{"name": "pump", "model": tmp_path / "pump"}],
        }
    )
    stop, told = asyncio.Event(), list[Any]()
    watch = asyncio.create_task(
        run_watch(
            configured,
            state_dir=tmp_path,
            run_dir=tmp_path,
            journal=told.append,
            beat=lambda _keeper: None,
            stop=stop,
        )
    )

    def raised() -> list[AlertChange]:
        return [
            one for one in told if isinstance(one, AlertChange) and one.id == "machine.pump.deviation" and one.active
        ]

    try:
        await until(lambda: bool(raised()), "the alarm")
    finally:
        stop.set()
        await watch
    assert raised()[0].contribution[0][0] == "flow"
    assert (tmp_path / "machines" / "pump.json").exists()
