"""Reaching the camera, the PLC and the broker once, to see what they say."""

from __future__ import annotations

import asyncio
import hashlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgeqc import loading
from edgeqc.cameras import open_camera
from edgeqc.cli import broker
from edgeqc.cli.findings import Finding, State
from edgeqc.core.track import OFF
from edgeqc.errors import EdgeqcError, PeerError, PeerTimeoutError
from edgeqc.logs import configure
from edgeqc.plc import open_link, plc_door
from edgeqc.plc.gate import GateLink
from edgeqc.records import NS_PER_MS, NS_PER_S, FrameStatus, PlcResult
from edgeqc.settings import (
    CameraSettings,
    ModbusTagSource,
    NoPlcSettings,
    OpcuaEndpoint,
    OpcuaSecurity,
    OpcuaTagSource,
    Settings,
    StationSettings,
    TagSourceSettings,
    TriggerSource,
)
from edgeqc.shm.slots import FrameSlots

FIRST_FRAME_S: Final = 5.0
"""A free-running camera at 1 Hz with an exposure of some seconds still makes it."""
CERTIFICATE_S: Final = 5.0
PLC_CALL_NS: Final = 2 * NS_PER_S
PLC_COMES_NS: Final = 10 * NS_PER_S
"""Until a PLC that polls us has connected again and written the gate's inputs."""
TAGS: Final = 20
"""Of a source, that are read: the others are seldom of another kind, and a thousand take a server its time."""
_SERVERS: Final = frozenset({"modbus", "opcua"})
WRITES_S: Final = 5.0
"""Long enough to see the heartbeat move in the PLC's programming tool."""
READS: Final = 50
"""Requests for the latency figures: enough for a 95th percentile that means something, and over in a second."""


@dataclass(kw_only=True, eq=False)
class CameraReport:
    """What a camera said in one look."""

    station: str
    camera: str
    kind: str
    frames: int = 0
    status: dict[str, int] = field(default_factory=dict)
    size: str = ""
    first_id: int = 0
    last_id: int = 0
    interval_ms: dict[str, float] = field(default_factory=dict)
    """Frame to frame; with a software trigger: trigger to frame."""
    transfer_ms: dict[str, float] = field(default_factory=dict)
    grey: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    zero_copy: bool = False
    image: NDArray[np.uint8] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, without the image."""
        return {key: value for key, value in vars(self).items() if key != "image"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlcReport:
    """What a PLC said in one look."""

    station: str
    kind: str
    counter: int
    part_id: str
    read_ms: dict[str, float]
    write_ms: dict[str, float]
    gate: dict[str, int | bool]
    """Inputs of the gate that edgeqc opens; empty where it opens none."""


def look_at_camera(station: StationSettings, camera: CameraSettings, *, frames: int) -> CameraReport:
    """Open this camera of the station, take `frames` frames and close it. PeerError where it won't."""
    by_software = station.trigger.source is TriggerSource.PLC
    report = CameraReport(station=station.name, camera=camera.name, kind=camera.type)
    moments: list[float] = []
    transfers: list[float] = []
    with tempfile.TemporaryDirectory(prefix="edgeqc-", dir=_shared_memory()) as folder:
        slots = FrameSlots.create(
            Path(folder) / "frames", per_bank=camera.slots, shape=(camera.height_px, camera.width_px)
        )
        with closing(slots), closing(open_camera(camera, slots, 0, software_trigger=by_software)) as source:
            last_ns = 0
            for number in range(frames):
                asked_ns = time.monotonic_ns()
                if by_software:
                    source.trigger()
                frame = source.next_frame(asked_ns + int(FIRST_FRAME_S * NS_PER_S))
                if frame is None:
                    raise PeerError(station.name, _silent(station, camera, number))
                status = str(frame.status)
                report.status[status] = report.status.get(status, 0) + 1
                since_ns = asked_ns if by_software else last_ns
                if since_ns:
                    moments.append((frame.received_ns - since_ns) / NS_PER_MS)
                transfers.append(frame.transfer_ns / NS_PER_MS)
                last_ns = frame.received_ns
                report.first_id = report.first_id or frame.frame_id
                report.last_id = frame.frame_id
                if frame.status is FrameStatus.OK:
                    report.image = frame.pixels.copy()
                source.release(frame.slot)
                del frame  # its view would keep the mapping
                report.frames += 1
            report.counters = source.counters()
            report.zero_copy = source.zero_copy
    report.interval_ms, report.transfer_ms = figures(moments), figures(transfers)
    if report.image is not None:
        height, width = report.image.shape
        report.size = f"{width}x{height}"
        report.grey = {
            "mean": round(float(report.image.mean()), 1),
            "min": float(report.image.min()),
            "max": float(report.image.max()),
            "saturated_ratio": round(float((report.image == 255).mean()), 4),  # noqa: PLR2004 - white in Mono8
        }
    return report


def look_at_plc(station: StationSettings, *, state_dir: Path, write: bool) -> PlcReport:
    """Read the trigger block `READS` times; with `write`, write "no result" with a moving heartbeat for `WRITES_S`. PeerError."""
    if isinstance(station.plc, NoPlcSettings):
        raise PeerError(station.name, "has no PLC (plc: {type: none})")
    spent: list[float] = []
    written: list[float] = []
    with closing(open_link(station.plc, peer=station.name, state_dir=state_dir)) as link:
        trigger = link.read_trigger(time.monotonic_ns() + PLC_CALL_NS)  # the first one warms the connection up
        for _ in range(READS):
            asked_ns = time.monotonic_ns()
            trigger = link.read_trigger(asked_ns + PLC_CALL_NS)
            spent.append((trigger.read_ns - asked_ns) / NS_PER_MS)
        if write:
            nothing = PlcResult(
                sequence=0, part_id="", verdict=None, code=0, busy=False, ready=False, fault=False, score=math.nan
            )
            until_ns = time.monotonic_ns() + int(WRITES_S * NS_PER_S)
            while (asked_ns := time.monotonic_ns()) < until_ns:
                link.write_result(nothing, asked_ns + PLC_CALL_NS)
                written.append((time.monotonic_ns() - asked_ns) / NS_PER_MS)
                time.sleep(station.heartbeat_ms / 1000)  # as often as the daemon writes while no part is there
    gate = {} if station.tracked_gate is None else look_at_gate(station, state_dir=state_dir, write=write)
    return PlcReport(
        station=station.name,
        kind=station.plc.type,
        counter=trigger.counter,
        part_id=trigger.part_id,
        read_ms=figures(spent),
        write_ms=figures(written),
        gate=gate,
    )


def look_at_gate(station: StationSettings, *, state_dir: Path, write: bool) -> dict[str, int | bool]:
    """Read the inputs of the gate that edgeqc opens, once; with `write`, write its output: EJECT off. PeerError."""
    door = plc_door(station.plc, peer=f"gate {station.name}", state_dir=state_dir, gate=station.tracked_gate)
    with closing(door), closing(_gate_link(door.open_gate, time.monotonic_ns() + PLC_COMES_NS)) as link:
        inputs = link.read(time.monotonic_ns() + PLC_CALL_NS)
        if write:
            link.write(OFF, 0, time.monotonic_ns() + PLC_CALL_NS)
    return {name: getattr(inputs, name) for name in ("encoder", "confirmations", "running", "looked")}


def _gate_link(open_gate: Callable[[], GateLink], until_ns: int) -> GateLink:
    """Try again where only the inputs are missing: a PLC that comes to us needs a moment for them."""
    while True:
        try:
            return open_gate()
        except PeerTimeoutError:
            if time.monotonic_ns() > until_ns:
                raise


def certificate_of(peer: object, name: str) -> tuple[bytes, str] | None:
    """What an OPC UA server shows: (certificate, SHA-256 as people compare it); None where none is asked for."""
    if not isinstance(peer, OpcuaEndpoint) or peer.security is OpcuaSecurity.NONE:
        return None
    from edgeqc.plc.opcua_session import server_certificate  # noqa: PLC0415 - asyncua takes 0.4 s to import

    shown = asyncio.run(server_certificate(peer, peer=name, timeout_s=CERTIFICATE_S))
    digits = hashlib.sha256(shown).hexdigest().upper()
    return shown, ":".join(digits[start : start + 2] for start in range(0, len(digits), 2))


def reach(settings: Settings) -> list[Finding]:
    """Every camera, PLC, source of tags and the broker, each tried once; nothing is raised for a peer that is not there.

    The secrets are still references here: one that lacks is its own peer's finding.
    """
    configure(process="edgeqc")  # what the links log goes to stderr: stdout is for the findings
    found: list[Finding] = []
    for index, station in enumerate(settings.stations):
        found += [camera_finding(settings, index, number) for number in range(len(station.all_cameras))]
        found.append(plc_finding(settings, index))
    found.append(broker_finding(settings))
    found += [source_finding(settings, index) for index, source in enumerate(settings.tags) if source.type in _SERVERS]
    return found


def place_of(settings: Settings, index: int, part: Literal["cameras", "plc"]) -> tuple[str | int, ...]:
    """Where a station's cameras or its PLC stand in the configuration."""
    alone = part == "cameras" and settings.stations[index].camera is not None
    return ("stations", index, "camera" if alone else part)


def camera_finding(settings: Settings, index: int, number: int) -> Finding:
    """Does this camera of this station send frames?"""
    station = settings.stations[index]
    camera = station.all_cameras[number]
    name = f"camera {station.name}"
    mend = f"edgeqc test camera FILE --station {station.name}"
    if len(station.all_cameras) > 1:
        name, mend = f"{name}/{camera.name}", f"{mend} --camera {camera.name}"
    try:
        camera = (
            loading.resolved(settings, within=place_of(settings, index, "cameras")).stations[index].all_cameras[number]
        )
        report = look_at_camera(station, camera, frames=1 if station.trigger.source is TriggerSource.CAMERA else 3)
    except EdgeqcError as error:
        return Finding(name=name, state=State.FAIL, found=str(error), limit="a frame", mend=mend)
    if report.image is None:
        return Finding(
            name=name, state=State.WARN, found=f"frames, none good: {', '.join(report.status)}", limit="ok", mend=mend
        )
    return Finding(name=name, state=State.OK, found=f"{report.kind}, {report.size}, frame {report.last_id}")


def plc_finding(settings: Settings, index: int) -> Finding:
    """Does this station's PLC answer?"""
    station = settings.stations[index]
    name = f"plc {station.name}"
    if isinstance(station.plc, NoPlcSettings):
        return Finding(name=name, state=State.OK, found="none configured")
    try:
        known = loading.resolved(settings, within=place_of(settings, index, "plc"))
        report = look_at_plc(known.stations[index], state_dir=loading.paths(known)[0], write=False)
    except EdgeqcError as error:
        mend = f"edgeqc test plc FILE --station {station.name}"
        return Finding(name=name, state=State.FAIL, found=str(error), limit="an answer", mend=mend)
    slow = report.read_ms["p95"] > station.plc_write_ms
    return Finding(
        name=name,
        state=State.WARN if slow else State.OK,
        found=f"{report.kind}, counter {report.counter}, request p95 {report.read_ms['p95']:.2f} ms"
        + ("" if not report.gate else f", gate's encoder {report.gate['encoder']}"),
        limit=f"under {station.plc_write_ms:g} ms (plc_write_ms)",
        mend="give plc_write_ms what the PLC needs, or look at the network between" if slow else "",
    )


def broker_finding(settings: Settings) -> Finding:
    """Does the broker take us in?"""
    if settings.mqtt is None or not settings.mqtt.enabled:
        return Finding(name="broker", state=State.OK, found="none configured")
    try:
        known = loading.resolved(settings, within=("mqtt",)).mqtt
        assert known is not None  # noqa: S101 - as above
        report = broker.look_at_broker(known, node=settings.node, publish=False)
    except EdgeqcError as error:
        return Finding(
            name="broker", state=State.FAIL, found=str(error), limit="a session", mend="edgeqc test mqtt FILE"
        )
    return Finding(name="broker", state=State.OK, found=f"{settings.mqtt.host}, session in {report.connect_ms:.1f} ms")


def source_finding(settings: Settings, index: int) -> Finding:
    """Does this server of tags answer, and has it the tags? Up to `TAGS` of them are read once."""
    source = settings.tags[index]
    name, mend = f"tags {source.name}", f"edgeqc plc probe FILE --source {source.name}"
    if isinstance(source, ModbusTagSource) and source.through is not None:
        return Finding(name=name, state=State.OK, found=f"read through station {source.through}: not tried by itself")
    try:
        known = loading.resolved(settings, within=("tags", index)).tags[index]
        asked, refused = _tags_of(known, loading.paths(settings)[0])
    except EdgeqcError as error:
        return Finding(name=name, state=State.FAIL, found=str(error), limit="an answer", mend=mend)
    told = f"{asked - len(refused)} of {asked} tags looked at are there"
    if not refused:
        return Finding(name=name, state=State.OK, found=told)
    found = f"{told}; not {', '.join(refused[:3])}"
    return Finding(name=name, state=State.WARN, found=found, limit="all there", mend=mend)


def _tags_of(source: TagSourceSettings, state_dir: Path) -> tuple[int, list[str]]:
    """How many tags were looked at, and which of them the server does not have. PeerError, for a register too."""
    if isinstance(source, ModbusTagSource):
        from edgeqc.cli.probe_modbus import Kind, ModbusProbe  # noqa: PLC0415 - one of the two is enough

        registers = [tag.register_address for tag in source.tags[:TAGS] if tag.register_address is not None]
        with ModbusProbe(source.host or "", source.port, source.device_id) as modbus:
            for register in registers:
                modbus.look(Kind.HOLDING, register, 1)
        return len(registers), []
    if isinstance(source, OpcuaTagSource):
        from edgeqc.cli.probe_opcua import OpcuaProbe  # noqa: PLC0415 - asyncua takes 0.4 s to import

        nodes = [tag.node for tag in source.tags[:TAGS] if tag.node is not None]
        with OpcuaProbe(source, state_dir) as opcua:
            reports = opcua.look(nodes, browse=False)
        return len(nodes), [f"{report.node} ({report.fault})" for report in reports if report.fault]
    return 0, []


def figures(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and largest of some milliseconds; empty where there are none."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 3),
        "max": round(ordered[-1], 3),
    }


def _silent(station: StationSettings, camera: CameraSettings, number: int) -> str:
    if station.trigger.source is TriggerSource.PLC:
        return f"no frame within {FIRST_FRAME_S:g} s of the software trigger, {number} came before"
    if getattr(camera, "trigger_line", None):
        return f"no frame within {FIRST_FRAME_S:g} s, {number} came before; it waits for its trigger_line: move a part"
    return f"no frame within {FIRST_FRAME_S:g} s, {number} came before"


def _shared_memory() -> str | None:
    folder = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return str(folder) if folder.is_dir() else None
