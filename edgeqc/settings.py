"""The configuration: its shape, its limits, and nothing else. Loaded once, handed down.

Every key carries its unit. A field's description is what `edgeqc config schema` shows in an editor.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$", description="lower-case letters, digits, - and _")]
Secret = Annotated[str, Field(description="`secret://name` (systemd credential, then /etc/edgeqc/secrets) or the text")]


class Model(BaseModel):
    """Unknown keys are errors; nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TriggerSource(StrEnum):
    """Who says that a part is there."""

    CAMERA = "camera"
    PLC = "plc"


class TriggerSettings(Model):
    """How a part announces itself."""

    source: TriggerSource = Field(
        TriggerSource.CAMERA,
        description="camera: the frame is the trigger (camera line or free run); plc: a tag counts parts and the daemon "
        "sends the camera's software trigger",
    )
    part_id: Literal["count", "plc"] = Field(
        "count", description="source camera: number the parts, or read the PLC's part id when the frame is in"
    )
    poll_ms: float = Field(2.0, ge=0.5, le=100, description="how often the PLC's trigger block is read")
    frame_timeout_ms: float = Field(
        100, gt=0, le=60_000, description="a trigger without a frame for this long: the camera counts as silent"
    )


class CameraBase(Model):
    """What every camera has."""

    name: Name = "cam"
    width_px: int = Field(ge=16, le=16_384)
    height_px: int = Field(ge=16, le=16_384)
    slots: int = Field(
        8, ge=4, le=64, description="frames held in memory per connection; two connections' worth is kept"
    )
    silence_ms: float | None = Field(
        None,
        gt=0,
        description="no frame for this long means the camera is lost; null: only triggered frames are missed",
    )


class GigeCameraSettings(CameraBase):
    """GigE Vision through Aravis."""

    type: Literal["gige"]
    address: str = Field(description="the camera's IP address; no broadcast is sent when it is an address")
    offset_x_px: int = Field(0, ge=0)
    offset_y_px: int = Field(0, ge=0)
    pixel_format: Literal["Mono8"] = "Mono8"
    exposure_us: float | None = Field(None, gt=0, le=10_000_000)
    gain_db: float | None = Field(None, ge=0, le=48)
    rate_hz: float | None = Field(None, gt=0, le=1000, description="free run only")
    trigger_line: str | None = Field(None, description="e.g. Line1: the camera's own input starts each frame")
    packet_bytes: int = Field(8000, ge=576, le=9000, description="GVSP packet size; at most the path's MTU minus 28")
    receive_buffer_bytes: int = Field(16 << 20, ge=1 << 20, le=256 << 20)
    frame_retention_ms: float = Field(20, gt=0, le=1000, description="how long an incomplete frame is waited for")
    packet_resend: Literal["auto", "never", "always"] = "auto"


class OpencvCameraSettings(CameraBase):
    """RTSP, V4L2 or a video file through OpenCV."""

    type: Literal["opencv"]
    source: str = Field(description="rtsp://..., /dev/video0 or a video file")
    exposure_us: float | None = Field(None, gt=0)
    rate_hz: float | None = Field(None, gt=0, le=1000, description="video files only: paces them")
    loop: bool = Field(False, description="video files only: start again at the end")


class ReplayCameraSettings(CameraBase):
    """A folder of images, in name order."""

    type: Literal["replay"]
    folder: Path
    rate_hz: float = Field(10, gt=0, le=1000)
    loop: bool = True


CameraSettings = Annotated[
    GigeCameraSettings | OpencvCameraSettings | ReplayCameraSettings, Field(discriminator="type")
]


class RegionMode(StrEnum):
    """Which part of the frame is judged."""

    FULL = "full"
    FIXED = "fixed"
    LOCATE = "locate"


class RegionSettings(Model):
    """The region of interest: all, a fixed box, or the part found against its background."""

    mode: RegionMode = RegionMode.FULL
    x_px: int = Field(0, ge=0)
    y_px: int = Field(0, ge=0)
    width_px: int = Field(0, ge=0)
    height_px: int = Field(0, ge=0)
    background: Literal["dark", "bright"] = Field("dark", description="locate: what surrounds the part")
    contrast: int = Field(24, ge=1, le=254, description="locate: grey levels between background and part")
    margin_px: int = Field(0, ge=0, le=512)


class RecipeSettings(Model):
    """What is looked for on this product."""

    name: Name = "default"
    engine: Path = Field(description="folder of the model package, e.g. engines/demo-part/1")
    backend: Literal["onnxruntime"] = "onnxruntime"
    threads: int = Field(1, ge=1, le=64)
    threshold: float | None = Field(None, ge=0, le=1, description="null: the package's own calibration")
    region: RegionSettings = RegionSettings()
    keep_warm_ms: float = Field(
        50,
        ge=0,
        le=10_000,
        description="an idle engine runs a blank part this often, and once just before a part is due; 0 = never",
    )


class ModbusRegisters(Model):
    """Holding registers, counted from 0. README has the map of both blocks."""

    trigger: int = Field(0, ge=0, le=65_527, description="first register of the trigger block: counter, part id (8)")
    result: int = Field(100, ge=0, le=65_519, description="first register of the result block (16 registers)")


class ModbusPlcSettings(Model):
    """A PLC that answers Modbus TCP."""

    type: Literal["modbus"]
    host: str
    port: int = Field(502, ge=1, le=65_535)
    device_id: int = Field(1, ge=0, le=255)
    registers: ModbusRegisters = ModbusRegisters()


class OpcuaSecurity(StrEnum):
    """How the channel is protected."""

    NONE = "none"
    SIGN_ENCRYPT = "sign_encrypt"


class OpcuaEndpoint(Model):
    """Where an OPC UA server is and how to be let in."""

    url: str = Field(pattern=r"^opc\.tcp://.+")
    security: OpcuaSecurity = Field(OpcuaSecurity.SIGN_ENCRYPT, description="none is logged loudly at each start")
    server_certificate: Path | None = Field(None, description="the server's certificate (DER), pinned")
    certificate: Path | None = Field(None, description="our own certificate; made in the state directory if null")
    private_key: Path | None = None
    user: str | None = None
    password: Secret | None = None


class OpcuaNodes(Model):
    """NodeIds of the handshake, in any OPC UA text form."""

    trigger: str
    part_id: str
    result_sequence: str
    result_part_id: str
    result_pass: str
    result_fail: str
    result_code: str
    result_score: str
    busy: str
    ready: str
    fault: str
    heartbeat: str


class OpcuaPlcSettings(OpcuaEndpoint):
    """A PLC that answers OPC UA."""

    type: Literal["opcua"]
    nodes: OpcuaNodes


class NoPlcSettings(Model):
    """No PLC: verdicts go to the journal and MQTT only."""

    type: Literal["none"]


PlcSettings = Annotated[ModbusPlcSettings | OpcuaPlcSettings | NoPlcSettings, Field(discriminator="type")]


class ImageRules(Model):
    """Which parts' images the archive keeps."""

    rejects: bool = True
    every_nth_pass: int = Field(0, ge=0, description="0 = no image of a passed part")
    newest: int = Field(0, ge=0, description="keep this many newest images whatever their verdict; 0 = none")


class StationSettings(Model):
    """One camera, one engine, one PLC link: what judges a part."""

    name: Name
    takt_ms: float = Field(gt=0, le=3_600_000, description="planned time per part")
    budget_ms: float = Field(gt=1, le=3_600_000, description="trigger to reject output")
    plc_write_ms: float = Field(
        10, gt=0.1, le=10_000, description="kept back from the budget so that the fail-safe verdict is out in time"
    )
    result_hold_ms: float | None = Field(
        None, gt=0, description="PASS and REJECT go off after this; null: half the takt, 200 ms at most"
    )
    heartbeat_ms: float = Field(200, ge=20, le=10_000)
    trigger: TriggerSettings = TriggerSettings()
    camera: CameraSettings
    recipe: RecipeSettings
    plc: PlcSettings
    images: ImageRules = ImageRules()
    required_tags: list[str] = Field(
        default_factory=list, description="a part is rejected as bad_tag if one is not Good"
    )
    cpu: int | None = Field(None, ge=0, description="core for the line thread; null: the last one the box has")
    priority: int = Field(
        20, ge=0, le=90, description="SCHED_FIFO priority of the line thread where allowed; 0 = never"
    )

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        faults: list[str] = []
        if self.plc_write_ms >= self.budget_ms:
            faults.append(f"plc_write_ms: {self.plc_write_ms:g} is not under {self.budget_ms:g} (budget_ms)")
        if self.trigger.source is TriggerSource.PLC and isinstance(self.plc, NoPlcSettings):
            faults.append("trigger.source: plc needs a plc other than type: none")
        takt = f"(takt {self.takt_ms:g} ms)"
        exposure_us = getattr(self.camera, "exposure_us", None)
        if exposure_us is not None and exposure_us > self.takt_ms * 1000:
            faults.append(f"camera.exposure_us: {exposure_us:g} is over {self.takt_ms * 1000:g} {takt}")
        rate_hz = getattr(self.camera, "rate_hz", None)
        if rate_hz is not None and isinstance(self.camera, GigeCameraSettings) and rate_hz * self.takt_ms > 1000 * 1.2:
            faults.append(f"camera.rate_hz: {rate_hz:g} is over {1000 / self.takt_ms:g} {takt}")
        region, camera = self.recipe.region, self.camera
        right, bottom = region.x_px + region.width_px, region.y_px + region.height_px
        if region.mode is RegionMode.FIXED and not (region.width_px and region.height_px):
            faults.append("recipe.region: width_px and height_px must be over 0 with mode: fixed")
        elif region.mode is RegionMode.FIXED and (right > camera.width_px or bottom > camera.height_px):
            faults.append(
                f"recipe.region: box ends at {right}x{bottom}, "
                f"outside camera.width_px x height_px ({camera.width_px}x{camera.height_px})"
            )
        return faults


class JournalSync(StrEnum):
    """When a record is safe from a power cut."""

    GROUP = "group"
    EACH = "each"


class JournalSettings(Model):
    """The append-only file that every verdict goes through."""

    sync: JournalSync = Field(JournalSync.GROUP, description="each: a PASS waits for the disk; group: the disk follows")
    group_ms: float = Field(50, ge=1, le=10_000)
    segment_mb: int = Field(4, ge=1, le=256)
    budget_mb: int = Field(256, ge=8, le=65_536, description="per process; oldest archived segments go first")
    ballast_mb: int = Field(16, ge=0, le=1024, description="freed when the disk is full, so that the line goes on")


class ArchiveSettings(Model):
    """What is kept on this box."""

    images_mb: int = Field(512, ge=1, le=1 << 22, description="oldest images go first")
    rows_days: int = Field(90, ge=1, le=3650)
    disk_free_mb: int = Field(256, ge=0, description="below this, images are deleted until it is met")


class TlsSettings(Model):
    """TLS towards the broker."""

    ca: Path | None = Field(None, description="null: the system's")
    certificate: Path | None = None
    private_key: Path | None = None


class MqttSettings(Model):
    """The plant's broker (MQTT 5)."""

    enabled: bool = True
    host: str
    port: int = Field(1883, ge=1, le=65_535)
    prefix: str = Field(
        "edgeqc/{node}", pattern=r"^[^+#\s]+$", description="topics begin with this; {node} is replaced"
    )
    client_id: str | None = None
    user: str | None = None
    password: Secret | None = None
    tls: TlsSettings | None = None
    keepalive_s: int = Field(5, ge=1, le=3600)
    outbox_mb: int = Field(64, ge=1, le=65_536, description="undelivered messages on disk; oldest go first when full")
    session_expiry_s: int = Field(3600, ge=0)
    live_expiry_s: int = Field(60, ge=1, description="message expiry of live topics; replayed ones have none")
    health_s: float = Field(10, ge=0.2, le=3600)


class TagSettings(Model):
    """One value of the machine."""

    name: Name
    node: str | None = Field(None, description="OPC UA NodeId")
    register_address: int | None = Field(None, ge=0, le=65_535, alias="register", description="Modbus holding register")
    type: Literal["uint16", "int16", "uint32", "int32", "float32", "float64", "bool"] = "float64"
    word_order: Literal["ABCD", "CDAB", "BADC", "DCBA"] = "ABCD"
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    min: float | None = None
    max: float | None = None


class TagSourceBase(Model):
    """A server of tag values."""

    name: Name
    stale_ms: float = Field(2000, ge=50, description="no sign of life for this long: the source is stale, tags BAD")
    tags: list[TagSettings] = Field(min_length=1)

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        key = {"opcua": "node", "modbus": "register_address"}.get(getattr(self, "type", ""))
        return [
            f"tags[{place}].{key.removesuffix('_address')}: is missing, {tag.name} is nowhere without it"
            for place, tag in enumerate(self.tags)
            if key and getattr(tag, key) is None
        ]


class OpcuaTagSource(TagSourceBase, OpcuaEndpoint):
    """Tags by OPC UA subscription."""

    type: Literal["opcua"]
    publishing_ms: float = Field(100, ge=10, le=60_000)
    sampling_ms: float = Field(50, ge=0, le=60_000)


class ModbusTagSource(TagSourceBase):
    """Tags by polling Modbus holding registers."""

    type: Literal["modbus"]
    host: str
    port: int = Field(502, ge=1, le=65_535)
    device_id: int = Field(1, ge=0, le=255)
    poll_ms: float = Field(100, ge=10, le=60_000)


class ReplayTagSource(TagSourceBase):
    """Tags from a CSV file: first column seconds, then one column per tag name."""

    type: Literal["replay"]
    file: Path
    speed: float = Field(1.0, gt=0, le=1000)


TagSourceSettings = Annotated[OpcuaTagSource | ModbusTagSource | ReplayTagSource, Field(discriminator="type")]


class Settings(Model):
    """One box beside one line."""

    version: Literal[1]
    node: Name = Field(description="this box's name in topics and records")
    state_dir: Path | None = Field(None, description="null: $STATE_DIRECTORY, else ./state")
    run_dir: Path | None = Field(
        None, description="shared memory; null: $RUNTIME_DIRECTORY, else /dev/shm/edgeqc-<uid>-..."
    )
    stations: list[StationSettings] = Field(min_length=1, max_length=16)
    journal: JournalSettings = JournalSettings()
    archive: ArchiveSettings = ArchiveSettings()
    mqtt: MqttSettings | None = None
    tags: list[TagSourceSettings] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults = [
            f"stations[{index}].{fault}" for index, station in enumerate(self.stations) for fault in station.misfits()
        ]
        faults += [f"tags[{index}].{fault}" for index, source in enumerate(self.tags) for fault in source.misfits()]
        names = {
            f"tags[{index}].tags[{place}].name": tag.name
            for index, source in enumerate(self.tags)
            for place, tag in enumerate(source.tags)
        }
        faults += _twice({f"stations[{index}].name": station.name for index, station in enumerate(self.stations)})
        faults += _twice({f"tags[{index}].name": source.name for index, source in enumerate(self.tags)})
        faults += _twice(names)
        known = set(names.values())
        faults += [
            f"stations[{index}].required_tags[{place}]: {name} is no tag of any source"
            for index, station in enumerate(self.stations)
            for place, name in enumerate(station.required_tags)
            if name not in known
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _twice(names: dict[str, str]) -> list[str]:
    """Each path whose name an earlier one has."""
    first: dict[str, str] = {}
    return [
        f"{path}: {name} is the name of {first[name]} already"
        for path, name in names.items()
        if first.setdefault(name, path) != path
    ]
