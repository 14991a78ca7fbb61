"""The watch process itself: one loop, a task per tag source, a tick."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

import edgeqc
from edgeqc import loading, logs
from edgeqc.cores import end_with_parent
from edgeqc.journal import JournalWriter
from edgeqc.records import AlertChange, Started
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, Row, State
from edgeqc.shm.tagtable import FILE_NAME, TagTable
from edgeqc.tags import open_source
from edgeqc.watch.keeper import TagKeeper

PROCESS: Final = "watch"
TICK_S: Final = 0.25
"""Heartbeat, alerts and rates: a quarter of the shortest delay they have."""


def main(argv: list[str]) -> int:
    """`edgeqc watch --run-dir DIR`: run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="edgeqc watch")
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir: Path = parser.parse_args(argv).run_dir
    end_with_parent()
    settings = loading.restore((run_dir / "settings.json").read_bytes())
    log = logs.configure(process=PROCESS)
    structlog.contextvars.bind_contextvars(process=PROCESS)  # for the sources' own loggers
    state_dir, _ = loading.paths(settings)
    row = Board.attach(run_dir)[PROCESS]
    journal = JournalWriter(
        state_dir / "journal" / PROCESS,
        settings.journal,
        on_trouble=lambda name, facts: log.warning(name, **facts),
    )
    started = Started(
        process=PROCESS,
        run_id=secrets.token_hex(8),
        version=edgeqc.__version__,
        config_digest=loading.digest(settings)[:16],
    )
    try:
        journal.append(started)
        asyncio.run(_until_told(settings, state_dir=state_dir, run_dir=run_dir, journal=journal, row=row))
    finally:
        journal.close()
    return 0


async def run_watch(
    settings: Settings,
    *,
    state_dir: Path,
    run_dir: Path,
    journal: Callable[[AlertChange], object],
    beat: Callable[[TagKeeper], None],
    stop: asyncio.Event,
) -> None:
    """Serve all tag sources into `run_dir`/tags until `stop`; alerts go to `journal`, `beat` is called each tick."""
    table = TagTable.create(run_dir / FILE_NAME, settings.tags)
    keeper = TagKeeper(table, settings.tags, journal, now_ns=time.monotonic_ns())
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    open_source(source, first_index=table.ranges[index].start, sink=keeper, state_dir=state_dir).run(),
                    name=f"tags {source.name}",
                )
                for index, source in enumerate(settings.tags)
            ]
            while not stop.is_set():
                keeper.tick(time.monotonic_ns())
                beat(keeper)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await stop.wait()
            for task in tasks:
                task.cancel()
    finally:
        table.close()


async def _until_told(settings: Settings, *, state_dir: Path, run_dir: Path, journal: JournalWriter, row: Row) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # what was made so far lives as long as the process: the collector need not look at it again
    gc.freeze()

    def beat(keeper: TagKeeper) -> None:
        row.beat("main")
        row.put("tag_updates", keeper.updates)
        row.put("tags_bad", keeper.bad)
        row.put("tags_good", keeper.tags - keeper.bad)

    row.state = State.READY  # it serves; which sources do is told by the table
    structlog.get_logger().info("watch_started", sources=len(settings.tags))
    await run_watch(settings, state_dir=state_dir, run_dir=run_dir, journal=journal.append, beat=beat, stop=stop)
    row.state = State.STOPPING
    structlog.get_logger().info("watch_stopped")
