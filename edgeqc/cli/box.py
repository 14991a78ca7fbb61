"""The box itself: libraries, buffers, rights, memory, disk and clock."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import importlib.metadata
import ipaddress
import os
import resource
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgeqc import rights
from edgeqc.cli.findings import Finding, State
from edgeqc.settings import GigeCameraSettings, Settings, StationSettings

LIBRARIES: Final = (
    "numpy", "opencv-python-headless", "onnxruntime", "asyncua", "pymodbus", "paho-mqtt", "pydantic", "cryptography",
)  # fmt: skip
PYTHON: Final = (3, 11)
MIB: Final = 1 << 20
UDP_HEADERS_BYTES: Final = 28
"""IPv4 (20) and UDP (8); GVSP packets travel in one datagram each."""
FSYNCS: Final = 20
SLOW_FSYNC_MS: Final = 50.0
"""The journal's default group time: a disk that is slower delays every group."""
_DEFAULT_RECEIVE_BYTES: Final = 16 * MIB
_PAGE: Final = 4096
_STA_UNSYNC: Final = 0x40  # linux/timex.h
_TIMEX_STATUS_BYTES: Final = 40  # offset of `status` in struct timex, 64-bit
_SIOCGIFADDR: Final = 0x8915  # linux/sockios.h


def gpu(settings: Settings, state_dir: Path) -> Iterator[Finding]:
    """TensorRT and its device, where a recipe runs on them."""
    from edgeqc.errors import EdgeqcError  # noqa: PLC0415 - as the next
    from edgeqc.inference.tensorrt.workshop import Workshop  # noqa: PLC0415 - for boxes with a GPU

    if all(recipe.backend != "tensorrt" for station in settings.stations for recipe in station.engines):
        return
    try:
        workshop = Workshop(state_dir, settings.gpu)
    except EdgeqcError as error:
        mend = "README.md, Engines on a GPU"
        yield Finding(name="gpu", state=State.FAIL, found=str(error), limit="TensorRT and a GPU", mend=mend)
        return
    device = workshop.device
    found = f"{device.name}, SM {device.sm}, driver {device.driver}, TensorRT {workshop.tensorrt}, {device.mode} memory"
    workshop.close()
    yield Finding(name="gpu", state=State.OK, found=found, limit="TensorRT and a GPU")


def software() -> Iterator[Finding]:
    """Python and the libraries."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    good = sys.version_info[:2] >= PYTHON
    yield Finding(
        name="python",
        state=State.OK if good else State.FAIL,
        found=version,
        limit="3.11 or later",
        mend="" if good else "apt-get install python3.11",
    )
    missing, found = [], []
    for library in LIBRARIES:
        try:
            found.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(library)
    yield Finding(
        name="libraries",
        state=State.FAIL if missing else State.OK,
        found=f"missing: {', '.join(missing)}" if missing else ", ".join(found),
        limit="all there",
        mend="pip install edgeqc" if missing else "",
    )


def aravis(settings: Settings | None) -> Finding:
    """The GigE Vision library."""
    from edgeqc.cameras.aravis import library_version  # noqa: PLC0415 - loads it

    version = library_version()
    needed = settings is None or bool(_gige(settings))
    state = State.OK if version or not needed else State.WARN if settings is None else State.FAIL
    return Finding(
        name="libaravis",
        state=state,
        found=version or "missing",
        limit="0.8, for GigE Vision cameras",
        mend="" if version else "apt-get install libaravis-0.8-0",
    )


def receive_buffer(settings: Settings | None) -> Finding:
    """May a socket have the receive buffer that a camera's burst needs?"""
    wanted = max((camera.receive_buffer_bytes for _, camera in _gige(settings)), default=_DEFAULT_RECEIVE_BYTES)
    needed = settings is None or bool(_gige(settings))
    try:
        allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    except OSError:  # some containers hide it; what the kernel grants is told by the socket all the same (doubled)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
            allowed = probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    good = allowed >= wanted or not needed
    frame = max((camera.width_px * camera.height_px for _, camera in _gige(settings)), default=0)
    return Finding(
        name="receive buffer",
        state=State.OK if good else State.FAIL if allowed < frame else State.WARN,  # under a frame no camera is opened
        found=f"net.core.rmem_max = {allowed}",
        limit=f"{wanted} or more (receive_buffer_bytes)",
        mend=""
        if good
        else f"sysctl -w net.core.rmem_max={wanted}; to keep it: systemd/99-edgeqc.conf in /etc/sysctl.d",
    )


def packets(settings: Settings | None) -> Iterator[Finding]:
    """Does each camera's packet size fit the path to it?"""
    for station, camera in _gige(settings):
        name = f"packet size {station.name}"
        try:
            ipaddress.ip_address(camera.address)
        except ValueError:
            yield Finding(name=name, state=State.OK, found=f"{camera.address} is no IP address: its way is not known")
            continue
        try:
            interface, mtu = _route(camera.address)
        except OSError as error:
            yield Finding(
                name=name,
                state=State.FAIL,
                found=f"no route to {camera.address}: {error.strerror or error}",
                limit="a route",
                mend="ip address add OWN-ADDRESS/24 dev INTERFACE",
            )
            continue
        largest = mtu - UDP_HEADERS_BYTES
        good = camera.packet_bytes <= largest
        needed = camera.packet_bytes + UDP_HEADERS_BYTES
        yield Finding(
            name=name,
            state=State.OK if good else State.FAIL,
            found=f"MTU {mtu} on {interface}",
            limit=f"{needed} or more (packet_bytes {camera.packet_bytes})",
            mend="" if good else f"ip link set dev {interface} mtu 9000, or packet_bytes: {largest}",
        )


def real_time(settings: Settings | None) -> Finding:
    """May the line thread run at a fixed priority?"""
    priority = max((station.priority for station in settings.stations), default=0) if settings else 20
    if not priority:
        return Finding(name="real time", state=State.OK, found="not asked for (priority: 0)")
    try:
        rights.real_time(priority)
    except OSError as error:
        limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
        return Finding(
            name="real time",
            state=State.WARN,
            found=f"SCHED_FIFO {priority}: {error.strerror}, RLIMIT_RTPRIO {limit}",
            limit=f"SCHED_FIFO {priority} allowed",
            mend=f"run it by systemd/edgeqc.service (LimitRTPRIO), or: prlimit --pid $$ --rtprio={priority}",
        )
    return Finding(name="real time", state=State.OK, found=f"SCHED_FIFO {priority} allowed", limit="allowed")


def locked_memory(settings: Settings | None) -> Finding:
    """May the frames be kept from being paged out?"""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    wanted = frame_bytes(settings)
    good = limit == resource.RLIM_INFINITY or limit >= wanted
    return Finding(
        name="locked memory",
        state=State.OK if good else State.WARN,
        found="unlimited" if limit == resource.RLIM_INFINITY else f"{limit / MIB:.0f} MiB",
        limit=f"{wanted / MIB:.0f} MiB (frame slots)",
        mend="" if good else f"LimitMEMLOCK in the unit, or: prlimit --pid $$ --memlock={wanted}",
    )


def cores(settings: Settings | None) -> Finding:
    """Has every line thread a core, at a steady clock?"""
    usable = sorted(os.sched_getaffinity(0))
    isolated = _read(Path("/sys/devices/system/cpu/isolated"))
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    found = f"{len(usable)} usable, isolated: {isolated or 'none'}, governor: {governor or 'none'}"
    asked = [station.cpu for station in settings.stations if station.cpu is not None] if settings else []
    lines = len(settings.stations) if settings else 1
    missing = [core for core in asked if core not in usable]
    if missing:
        return Finding(
            name="cores",
            state=State.FAIL,
            found=found,
            limit=f"core {missing[0]} (stations[].cpu)",
            mend=f"cpu: one of {usable[0]}..{usable[-1]}",
        )
    if len(usable) < lines + 1:
        return Finding(
            name="cores",
            state=State.WARN,
            found=found,
            limit=f"{lines + 1}: one per station and one for the rest",
            mend="a box with more cores, or fewer stations",
        )
    steady = governor in ("", "performance")
    return Finding(
        name="cores",
        state=State.OK if steady else State.WARN,
        found=found,
        limit="governor performance",
        mend="" if steady else "cpupower frequency-set -g performance (package linux-cpupower)",
    )


def shared_memory(settings: Settings | None, run_dir: Path) -> Finding:
    """Do the frame slots fit where they live?"""
    where = _nearest(run_dir)
    status = os.statvfs(where)
    free, wanted = status.f_bavail * status.f_frsize, frame_bytes(settings)
    good = free >= wanted
    return Finding(
        name="shared memory",
        state=State.OK if good else State.FAIL,
        found=f"{free / MIB:.0f} MiB free in {where}",
        limit=f"{wanted / MIB:.0f} MiB (frame slots)",
        mend="" if good else f"mount -o remount,size={2 * wanted // MIB}M {_mount(where)}, or fewer camera.slots",
    )


def disk_space(settings: Settings | None, state_dir: Path) -> Finding:
    """Is there room for all that the configuration may keep?"""
    where = _nearest(state_dir)
    status = os.statvfs(where)
    free = status.f_bavail * status.f_frsize // MIB
    wanted = 512
    if settings is not None:
        journal = settings.journal
        wanted = (len(settings.stations) + 1) * (journal.budget_mb + journal.ballast_mb) + settings.archive.images_mb
        wanted += settings.archive.disk_free_mb + (settings.mqtt.outbox_mb if settings.mqtt else 0)
    used = _used(state_dir) // MIB if settings else 0
    good = free + used >= wanted
    return Finding(
        name="disk space",
        state=State.OK if good else State.WARN,
        found=f"{free} MiB free in {where}, {used} MiB used by edgeqc",
        limit=f"{wanted} MiB (journal, archive, outbox)",
        mend="" if good else "lower journal.budget_mb, archive.images_mb or mqtt.outbox_mb, or give it a larger disk",
    )


def disk_speed(state_dir: Path) -> Finding:
    """How long a record takes to be safe from a power cut."""
    where = _nearest(state_dir)
    spent: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            for _ in range(FSYNCS):
                began = time.perf_counter()
                file.write(bytes(_PAGE))
                file.flush()
                os.fdatasync(file.fileno())
                spent.append((time.perf_counter() - began) * 1000)
    except OSError as error:
        return Finding(
            name="disk speed",
            state=State.FAIL,
            found=f"{where}: {error.strerror}",
            limit="writable",
            mend=rights.mend_of_writing(error, state_dir),
        )
    spent.sort()
    median = spent[len(spent) // 2]
    good = median <= SLOW_FSYNC_MS
    return Finding(
        name="disk speed",
        state=State.OK if good else State.WARN,
        found=f"fdatasync p50 {median:.2f} ms, max {spent[-1]:.2f} ms in {where}",
        limit=f"p50 {SLOW_FSYNC_MS:g} ms",
        mend="" if good else "an SSD; with journal.sync: each a PASS waits for it",
    )


def clock() -> Finding:
    """Is the wall clock kept by something? Verdicts do not need it, records and certificates do."""
    buffer = ctypes.create_string_buffer(256)
    result = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if result < 0:
        return Finding(
            name="clock",
            state=State.WARN,
            found=f"adjtimex: {os.strerror(ctypes.get_errno())}",
            limit="synchronised",
            mend="run doctor outside the unit's sandbox",
        )
    (status,) = struct.unpack_from("i", buffer, _TIMEX_STATUS_BYTES)
    good = not status & _STA_UNSYNC
    return Finding(
        name="clock",
        state=State.OK if good else State.WARN,
        found="synchronised" if good else "not synchronised",
        limit="synchronised",
        mend="" if good else "apt-get install chrony, with the plant's time server in /etc/chrony/chrony.conf",
    )


def frame_bytes(settings: Settings | None) -> int:
    """Shared memory that the frame slots of all stations take; a 1280x1024 camera where nothing is configured."""
    if settings is None:
        return 16 * 1280 * 1024
    return sum(
        2 * camera.slots * (camera.width_px * camera.height_px + 2 * _PAGE)
        for station in settings.stations
        for camera in station.all_cameras
    )


def _gige(settings: Settings | None) -> list[tuple[StationSettings, GigeCameraSettings]]:
    stations = settings.stations if settings else []
    return [
        (station, camera)
        for station in stations
        for camera in station.all_cameras
        if isinstance(camera, GigeCameraSettings)
    ]


def _route(address: str) -> tuple[str, int]:
    """(interface, MTU) on the way to a camera. OSError where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 3956))  # GVCP's port; nothing is sent
        own = probe.getsockname()[0]
        for _, interface in socket.if_nameindex():
            request = array.array("B", interface.encode().ljust(40, b"\0"))
            try:
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request, True)
            except OSError:
                continue  # an interface without an IPv4 address
            network = socket.inet_ntoa(bytes(request[20:24]))
            if network == own or (network == "127.0.0.1" and own.startswith("127.")):
                return interface, int(_read(Path("/sys/class/net") / interface / "mtu") or 1500)
    raise OSError(f"no interface has {own}")


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there, and that we may see."""
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))  # noqa: PTH112 - Path.is_dir raises


def _used(folder: Path) -> int:
    """Bytes of the files in it; a running daemon makes and removes some meanwhile."""
    used = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            used += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return used


def _mount(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_mount())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
