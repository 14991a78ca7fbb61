"""What the box must allow the daemon, tried rather than read: a seccomp filter or a container says no without a trace."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from edgeqc.cores import station_cores
from edgeqc.settings import GigeCameraSettings, Settings

UNIT_HINT: Final = "systemd/edgeqc.service has it; by hand:"


def missing_rights(settings: Settings, state_dir: Path, run_dir: Path) -> list[str]:
    """Everything the daemon needs at its start and does not get, each as `what: why: how to mend it`; [] = all there."""
    missing = [
        _told("writing the state directory", partial(_write, state_dir), partial(mend_of_writing, folder=state_dir)),
        _told("writing the run directory", partial(_write, run_dir), partial(mend_of_writing, folder=run_dir)),
        *(
            _told(f"{name} sockets", partial(_open_socket, family, kind), f"RestrictAddressFamilies={family.name}")
            for name, family, kind in _sockets(settings)
        ),
    ]
    cores = station_cores(settings, os.sched_getaffinity(0))
    for station in settings.stations:
        at = f"station {station.name}"
        core = cores.get(station.name) if station.cpu is None else station.cpu
        if core is not None:
            mend = "name a core of this box, or widen AllowedCPUs="
            missing.append(_told(f"{at}: core {core}", partial(pinned, core), mend))
        if station.priority:
            mend = f"{UNIT_HINT} LimitRTPRIO={station.priority} and no SystemCallFilter=~@resources, or priority: 0"
            missing.append(_told(f"{at}: SCHED_FIFO {station.priority}", partial(real_time, station.priority), mend))
    return [fault for fault in missing if fault]


def mend_of_writing(error: OSError, folder: Path) -> str:
    """What to do where a file in that folder of ours could not be written, whether it is there yet or not."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"make room: df -h {folder}"
        case errno.EROFS:
            return f"a place that may be written: ReadWritePaths={folder} in the unit, or mount it so"
        case _:
            return f"mkdir -p {folder} && chown -R edgeqc {folder} (or whom the daemon runs as)"


def real_time(priority: int) -> None:
    """Try SCHED_FIFO in a thread that ends at once. OSError where it is refused."""
    _in_thread(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority)))


def pinned(core: int) -> None:
    """Try to pin a thread that ends at once to a core. OSError where it is refused."""
    _in_thread(lambda: os.sched_setaffinity(0, {core}))


def _in_thread(attempt: Callable[[], None]) -> None:
    refused: list[OSError] = []

    def body() -> None:
        try:
            attempt()
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=body, name="rights")
    thread.start()
    thread.join()
    if refused:
        raise refused[0]


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"edgeqc")


def _sockets(settings: Settings) -> Iterator[tuple[str, socket.AddressFamily, socket.SocketKind]]:
    yield "UDP", socket.AF_INET, socket.SOCK_DGRAM
    yield "TCP", socket.AF_INET, socket.SOCK_STREAM
    yield "UNIX", socket.AF_UNIX, socket.SOCK_DGRAM
    if any(isinstance(camera, GigeCameraSettings) for station in settings.stations for camera in station.all_cameras):
        yield "netlink", socket.AF_NETLINK, socket.SOCK_RAW  # libaravis looks through the interfaces by it


def _open_socket(family: int, kind: int) -> None:
    socket.socket(family, kind).close()


def _told(what: str, attempt: Callable[[], None], mend: str | Callable[[OSError], str]) -> str:
    try:
        attempt()
    except OSError as error:
        return f"{what}: {error.strerror or error}: {mend if isinstance(mend, str) else mend(error)}"
    return ""
