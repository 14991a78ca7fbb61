"""Who runs on which core: each station's line thread has one for itself where the box has enough of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import Final

from edgeqc.settings import Settings

_PR_SET_PDEATHSIG: Final = 1


def station_cores(settings: Settings, available: set[int]) -> dict[str, int]:
    """Core of each station's line thread: as configured, else the last ones; none on a box with a single core."""
    free = sorted(available - {station.cpu for station in settings.stations if station.cpu is not None})
    cores: dict[str, int] = {}
    for station in settings.stations:
        if station.cpu is not None and station.cpu in available:
            cores[station.name] = station.cpu
        elif len(free) > 1:
            cores[station.name] = free.pop()
    return cores


def shared_cores(settings: Settings, available: set[int]) -> set[int]:
    """Cores for everything but line threads."""
    return available - set(station_cores(settings, available).values()) or available


def pin_background(settings: Settings) -> None:
    """Keep this thread, and all it starts, off the stations' cores. Where that isn't allowed, nothing changes."""
    pin(shared_cores(settings, os.sched_getaffinity(0)))


def pin(cores: set[int]) -> bool:
    """Bind the calling thread; False where that isn't allowed."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return True


def real_time(priority: int) -> bool:
    """SCHED_FIFO for the calling thread and the threads that it starts later; False where that isn't allowed.

    All Python threads of a station have it: one that held the interpreter lock while an ordinary process had its core
    would stall the line thread.
    """
    if priority <= 0:
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    return True


def real_time_throughout(priority: int) -> None:
    """The same for all threads of this process that have it already, at another priority."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if os.sched_getscheduler(int(task.name)) == os.SCHED_FIFO:
                os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(priority))


def end_with_parent() -> None:
    """SIGTERM for this process when the supervisor dies, and none when the terminal sends SIGINT to all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
