"""The thread of the tag sources: a loop of its own, so that a publish response of 1000 values holds up nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from edgeqc.settings import DerivedTagSource, ModbusTagSource, StateSource, TagSourceSettings
from edgeqc.tags import open_source
from edgeqc.tags.pace import paces
from edgeqc.watch.intake import TagIntake

LOOK_S: Final = 0.5
"""How often tags are looked over for being stuck."""


class SourceThread:
    """Runs all sources into one intake until stopped."""

    def __init__(self, sources: Sequence[TagSourceSettings], intake: TagIntake, *, state_dir: Path) -> None:
        """Nothing runs before `start`."""
        self.failed: BaseException | None = None
        """What ended the thread, if it was not `stop`."""
        self._sources = [source for source in sources if not isinstance(source, DerivedTagSource | StateSource)]
        self._intake = intake
        self._state_dir = state_dir
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="tags", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()
        self._ready.wait(_START_S)

    def stop(self) -> None:
        """End all connections; blocks until they are closed, a second or so."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_S)

    @property
    def alive(self) -> bool:
        """Does it run?"""
        return self._thread.is_alive()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as exc:  # root of the thread: whoever started it is told
            self.failed = exc
            structlog.get_logger().critical("tag_sources_failed", reason=f"{type(exc).__name__}: {exc}")
            raise
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        pace = paces(source for source in self._sources if isinstance(source, ModbusTagSource))
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    open_source(source, sink=self._intake, state_dir=self._state_dir, pace=pace.get(source.name)).run(),
                    name=f"tags {source.name}",
                )
                for source in self._sources
            ]
            tasks.append(group.create_task(self._look(), name="tags look"))
            await self._stop.wait()
            for task in tasks:
                task.cancel()

    async def _look(self) -> None:
        while True:
            self._intake.look(time.monotonic_ns())
            await asyncio.sleep(LOOK_S)


_START_S: Final = 5.0
_STOP_S: Final = 2.0
