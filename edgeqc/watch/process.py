"""The watch process itself: a thread for the tag sources, a loop that aligns, judges and looks after the rest."""

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
from edgeqc.errors import EdgeqcError, JournalError
from edgeqc.history import FOLDER
from edgeqc.journal import JournalWriter
from edgeqc.records import NS_PER_MS, NS_PER_S, AlertChange, Event, Started
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, Row, State
from edgeqc.watch.flow import TagFlow
from edgeqc.watch.grid import Moment
from edgeqc.watch.keeper import TagKeeper
from edgeqc.watch.machines import Machines

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
    journal = JournalWriter(state_dir / "journal" / PROCESS, settings.journal)
    journal.listen(lambda name, facts: log.warning(name, **facts))
    started = Started(
        process=PROCESS,
        run_id=secrets.token_hex(8),
        version=edgeqc.__version__,
        config_digest=loading.digest(settings)[:16],
    )
    try:
        journal.append(started)
        known = loading.resolved(settings, within=("tags",))
        asyncio.run(_until_told(known, state_dir=state_dir, run_dir=run_dir, journal=journal, row=row))
    except EdgeqcError as exc:
        log.critical("watch_failed", reason=str(exc))
        return 1
    finally:
        journal.close()
    return 0


async def run_watch(
    settings: Settings,
    *,
    state_dir: Path,
    run_dir: Path,
    journal: Callable[[AlertChange | Event], object],
    beat: Callable[[TagKeeper], None],
    stop: asyncio.Event,
    judge: Callable[[Moment], None] = lambda _moment: None,
    watched: Callable[[Machines], None] = lambda _machines: None,
) -> None:
    """Serve all tag sources into `run_dir`/tags until `stop`.

    Alarms and changes of state go to `journal`, each row of the grid to `judge`; `beat` is called each tick. Raises
    EdgeqcError where the sources' thread ended.
    """
    loop, fresh = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the sources did
            loop.call_soon_threadsafe(fresh.set)

    flow = TagFlow(
        settings,
        table_dir=run_dir,
        state_dir=state_dir,
        history_dir=state_dir / FOLDER,
        history=settings.history,
        wake=wake,
    )
    keeper = TagKeeper(flow.table, settings.tags, flow.intake, journal, now_ns=time.monotonic_ns())
    machines = Machines(
        settings.machines,
        {name: place for place, name in enumerate(flow.table.names)},
        journal,
        period_ns=round(settings.grid.period_ms * NS_PER_MS),
        state_dir=state_dir,
    )
    tick_s = min(TICK_S, settings.grid.period_ms / 1000)
    flow.open()

    def look_after() -> None:
        if flow.history is not None:
            keeper.history_trouble, keeper.history_lost = flow.history.trouble, flow.history.lost
        keeper.tick(time.monotonic_ns())
        beat(keeper)
        watched(machines)
        if not flow.sources.alive:
            raise EdgeqcError(f"the thread of the tag sources ended: {flow.sources.failed!r}")

    pulse = _Pulse(look_after)
    try:
        while not stop.is_set():
            fresh.clear()
            for moment in flow.moments(time.monotonic_ns()):
                for event in moment.changed:
                    _tell(journal, event)
                machines.judge(moment)
                judge(moment)
                await pulse.beat()  # rows that have piled up take seconds: nobody must think that it hangs
                if stop.is_set():
                    break
            await pulse.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick_s):
                    await fresh.wait()
    finally:
        machines.close()
        await asyncio.to_thread(flow.close)


class _Pulse:
    """Does what is due each TICK_S, whatever else goes on, and lets the loop have its turn then."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._worked_ns = 0

    async def beat(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._worked_ns >= TICK_S * NS_PER_S:
            self._worked_ns = now_ns
            self._work()
            await asyncio.sleep(0)


def _tell(journal: Callable[[AlertChange | Event], object], event: Event) -> None:
    try:
        journal(event)
    except JournalError as exc:
        structlog.get_logger().error("journal_failed", reason=str(exc), event_lost=event.name)


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

    def watched(machines: Machines) -> None:
        row.put("machines", machines.count)
        row.put("machine_alarms", machines.alarms)
        row.put("machine_rows", machines.steps)

    row.beat("main")  # before READY: where starting took long, the start is no longer the last sign of life
    row.state = State.READY  # it serves; which sources do is told by the table
    structlog.get_logger().info("watch_started", sources=len(settings.tags))
    await run_watch(
        settings,
        state_dir=state_dir,
        run_dir=run_dir,
        journal=journal.append,
        beat=beat,
        stop=stop,
        watched=watched,
    )
    row.state = State.STOPPING
    structlog.get_logger().info("watch_stopped")
