"""The office process: journals in; archive, images and messages out."""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgeqc.cores import end_with_parent, pin_background
from edgeqc.errors import EdgeqcError
from edgeqc.loading import paths, restore
from edgeqc.logs import configure
from edgeqc.office.commands import CommandSocket
from edgeqc.office.desk import Desk
from edgeqc.office.health import components
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, State

TAIL_S: Final = 0.02
"""A verdict or an alarm waits this long at most before the office sees it."""
DRAIN_S: Final = 1.5
"""What is on its way when the office is told to stop gets this long."""


def main(argv: list[str]) -> int:
    """`edgeqc office --run-dir DIR`; started by the supervisor."""
    parser = argparse.ArgumentParser(prog="edgeqc office")
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir: Path = parser.parse_args(argv).run_dir
    end_with_parent()
    settings = restore((run_dir / "settings.json").read_bytes())
    log = configure(process="office")
    pin_background(settings)
    board = Board.attach(run_dir)
    row = board["office"]

    async def until_told() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        row.beat("main")
        row.state = State.READY
        log.info("office_started")
        await run_office(
            settings,
            state_dir=paths(settings)[0],
            run_dir=run_dir,
            beat=lambda: row.beat("main"),
            health=lambda: components(settings, board, run_dir),
            stop=stop,
        )
        log.info("office_stopped")

    try:
        asyncio.run(until_told())
    except EdgeqcError as exc:
        log.critical("office_failed", reason=str(exc))
        return 1
    return 0


async def run_office(
    settings: Settings,
    *,
    state_dir: Path,
    run_dir: Path,
    beat: Callable[[], None],
    health: Callable[[], dict[str, Any]],
    stop: asyncio.Event,
) -> None:
    """Run until `stop` is set, then bring on its way what there is.

    Args:
        settings: the whole configuration, secrets as references.
        state_dir: holds `journal/` and gets `archive.db` and `images/`.
        run_dir: holds the stations' frame slots, `slots-<station>`.
        beat: called at each turn of the loop.
        health: the other processes' components for the health message, by name.
        stop: set to end.

    Raises:
        EdgeqcError: a thread of the office ended; a restart of the process is what helps.
    """
    desk = Desk(settings, state_dir, run_dir, health)
    desk.start()
    console = CommandSocket(desk.commands, state_dir)
    try:
        await console.open()
        while not stop.is_set():
            beat()
            desk.turn()
            await asyncio.sleep(TAIL_S)
        until_s = time.monotonic() + DRAIN_S
        while time.monotonic() < until_s and (desk.turn() or not desk.idle):
            beat()
            await asyncio.sleep(TAIL_S)
    finally:
        await console.close()
        await asyncio.to_thread(desk.close)
