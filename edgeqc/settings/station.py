"""Cameras, engines, one PLC link, and what does not go together among them."""

from __future__ import annotations

from pydantic import Field

from edgeqc.core.exposure import REMEMBERED
from edgeqc.core.handshake import Form
from edgeqc.settings.base import Model, Name
from edgeqc.settings.camera import (
    CameraSettings,
    GigeCameraSettings,
    OpencvCameraSettings,
    TriggerSettings,
    TriggerSource,
)
from edgeqc.settings.gate import DelayGate, EncoderGate, GateSettings, PartIdGate
from edgeqc.settings.plc import ModbusPlcSettings, ModbusServerPlcSettings, NoPlcSettings, OpcuaPlcSettings, PlcSettings
from edgeqc.settings.recipe import ChangeoverSettings, RecipeSettings, RegionMode, RegionSettings


class ImageRules(Model):
    """Which parts' images the archive keeps."""

    rejects: bool = True
    every_nth_pass: int = Field(0, ge=0, description="0 = no image of a passed part")
    newest: int = Field(
        0, ge=0, description="keep the images of this many newest parts whatever their verdict; 0 = none"
    )


class StopSettings(Model):
    """When the PLC is asked to stop the line: bit STOP of the result block, and an alert."""

    fail_safe_in_a_row: int = Field(
        3, ge=0, le=1000, description="late or fail-safe verdicts in a row; judged parts in a row end it; 0 = never"
    )
    reject_ratio: float | None = Field(
        None, gt=0, lt=1, description="more of the last reject_parts judged parts were rejected; null = never"
    )
    reject_parts: int = Field(50, ge=5, le=10_000)


class StationSettings(Model):
    """One camera or several that look at each part, their engines, one PLC link: what judges a part."""

    name: Name
    takt_ms: float = Field(gt=0, le=3_600_000, description="planned time per part")
    budget_ms: float = Field(gt=1, le=3_600_000, description="trigger to reject output")
    plc_write_ms: float = Field(
        10, gt=0.1, le=10_000, description="kept back from the budget so that the fail-safe verdict is out in time"
    )
    result_hold_ms: float | None = Field(
        None,
        gt=0,
        description="PASS and REJECT go off after this; null: half the takt, 200 ms at most, and where the PLC "
        "acknowledges results, when it has done so",
    )
    heartbeat_ms: float = Field(200, ge=20, le=10_000)
    trigger: TriggerSettings = TriggerSettings()
    camera: CameraSettings | None = Field(None, description="that looks at each part; several: `cameras` instead")
    cameras: list[CameraSettings] = Field(
        default_factory=list,
        max_length=8,
        description="several cameras that look at each part: it passes if all of them say so in time",
    )
    recipe: RecipeSettings
    changeover: ChangeoverSettings | None = None
    plc: PlcSettings
    gate: GateSettings | None = Field(None, description="null: the PLC tracks its parts by part id and sequence")
    images: ImageRules = ImageRules()
    stop: StopSettings = StopSettings()
    required_tags: list[str] = Field(
        default_factory=list, description="a part is rejected as bad_tag if one is not Good"
    )
    snapshot_tags: list[str] | None = Field(
        None,
        max_length=64,
        description="what each verdict tells of the machine at its exposure; null: required_tags",
    )
    cpu: int | None = Field(None, ge=0, description="core for the line thread; null: the last one the box has")
    priority: int = Field(
        20, ge=0, le=90, description="SCHED_FIFO priority of the line thread where allowed; 0 = never"
    )

    @property
    def all_cameras(self) -> tuple[CameraSettings, ...]:
        """Every camera that looks at each part, in the order of the configuration."""
        return (self.camera,) if self.camera is not None else tuple(self.cameras)

    @property
    def tracked_gate(self) -> DelayGate | EncoderGate | None:
        """The gate that edgeqc opens."""
        return None if isinstance(self.gate, PartIdGate) else self.gate

    @property
    def polls_plc(self) -> bool:
        """Does it read the PLC's trigger block each `trigger.poll_ms`?"""
        hears = not isinstance(self.plc, NoPlcSettings) and (
            self.plc.handshake.hears_plc or self.changeover is not None
        )
        return self.trigger.source is TriggerSource.PLC or hears

    @property
    def engines(self) -> tuple[RecipeSettings, ...]:
        """What is to be loaded: each recipe as each camera's frames are judged by it."""
        return tuple(recipe.seen_by(camera.name) for recipe in self.recipes for camera in self.all_cameras)

    @property
    def recipes(self) -> tuple[RecipeSettings, ...]:
        """All that may judge a part; the first is the one that runs where the PLC has no say."""
        return (self.recipe, *(self.changeover.recipes if self.changeover is not None else ()))

    def misfits(self) -> list[str]:
        """What does not go together, each as `sub-path: what, limit`."""
        faults: list[str] = []
        if self.plc_write_ms >= self.budget_ms:
            faults.append(f"plc_write_ms: {self.plc_write_ms:g} is not under {self.budget_ms:g} (budget_ms)")
        elif self.trigger.source is TriggerSource.PLC and self.plc_write_ms + self.trigger.poll_ms >= self.budget_ms:
            faults.append(
                f"trigger.poll_ms: {self.trigger.poll_ms:g} with plc_write_ms ({self.plc_write_ms:g}) is not under "
                f"{self.budget_ms:g} (budget_ms): a trigger is seen so late, and no time is left to judge"
            )
        if isinstance(self.plc, NoPlcSettings):
            faults += [
                f"trigger.{key}: plc needs a plc other than type: none"
                for key in ("source", "part_id")
                if getattr(self.trigger, key) == "plc"
            ]
        takts = REMEMBERED - 1
        known_ms = takts * self.takt_ms
        if self.trigger.source is TriggerSource.PLC and self.trigger.frame_timeout_ms >= known_ms:
            faults.append(
                f"trigger.frame_timeout_ms: {self.trigger.frame_timeout_ms:g} is not under {known_ms:g} "
                f"({takts} takts): a camera that sends nothing would not be noticed"
            )
        faults += self._plc_misfits()
        faults += self._gate_misfits()
        faults += self._cameras_misfits()
        for place, camera in self._camera_paths().items():
            faults += [f"{place}.{fault}" for fault in self._camera_misfits(camera)]
        for path, recipe in zip(self._recipe_paths(), self.recipes, strict=True):
            faults += [f"{path}.{fault}" for fault in self._misfits_of(recipe)]
        return faults + self._changeover_misfits()

    def _camera_misfits(self, camera: CameraSettings) -> list[str]:
        faults = []
        if self.trigger.source is TriggerSource.PLC and isinstance(camera, OpencvCameraSettings) and camera.streams:
            faults.append(
                "source: nobody knows how old a stream's pictures are, so none can be a trigger's; "
                "use trigger.source: camera, or a camera of type: gige"
            )
        exposure_us = getattr(camera, "exposure_us", None)
        if exposure_us is not None:
            faults += [f"exposure_us: {exposure_us:g} {fault}" for fault in self._too_long(exposure_us)]
        if isinstance(camera, GigeCameraSettings):
            faults += self._gige_misfits(camera)
        if isinstance(camera, OpencvCameraSettings):
            faults += _opencv_misfits(camera)
        return faults

    def _too_long(self, exposure_us: float) -> list[str]:
        """Why so long an exposure leaves no time for the next one, or where it begins with the trigger to judge its part."""
        if exposure_us > self.takt_ms * 1000:
            return [f"is over {self.takt_ms * 1000:g} (takt {self.takt_ms:g} ms)"]
        if self.trigger.source is not TriggerSource.PLC:
            return []
        limits = (
            (self.trigger.frame_timeout_ms, "trigger.frame_timeout_ms: the camera would count as silent"),
            (self.budget_ms - self.plc_write_ms, "budget_ms less plc_write_ms: no part could be judged"),
        )
        return [
            f"is not under {most_ms * 1000:g}, {why}" for most_ms, why in limits if 0 < most_ms * 1000 <= exposure_us
        ]

    def _gige_misfits(self, camera: GigeCameraSettings) -> list[str]:
        faults = []
        if camera.rate_hz is not None and camera.rate_hz * self.takt_ms > 1000 * 1.2:
            faults.append(f"rate_hz: {camera.rate_hz:g} is over {1000 / self.takt_ms:g} (takt {self.takt_ms:g} ms)")
        if self.trigger.source is TriggerSource.PLC and camera.trigger_line is not None:
            faults.append(
                f"trigger_line: {camera.trigger_line} goes with trigger.source: camera; with plc the daemon itself "
                "sends the trigger: leave it out"
            )
        if camera.rate_hz is not None and (camera.trigger_line or self.trigger.source is TriggerSource.PLC):
            why = "trigger_line" if camera.trigger_line else "trigger.source: plc"
            faults.append(
                f"rate_hz: {camera.rate_hz:g} is for free run, {why} says when a frame is taken: leave it out"
            )
        frame_bytes = camera.width_px * camera.height_px
        if camera.receive_buffer_bytes < frame_bytes:
            faults.append(
                f"receive_buffer_bytes: {camera.receive_buffer_bytes} is under {frame_bytes}, a frame of "
                f"{camera.width_px}x{camera.height_px}"
            )
        return faults

    def _recipe_paths(self) -> list[str]:
        return ["recipe", *(f"changeover.recipes[{index}]" for index in range(len(self.recipes) - 1))]

    def _camera_paths(self) -> dict[str, CameraSettings]:
        if self.camera is not None:
            return {"camera": self.camera}
        return {f"cameras[{index}]": camera for index, camera in enumerate(self.cameras)}

    def _cameras_misfits(self) -> list[str]:
        if self.camera is not None:
            return ["cameras: stands beside camera; name all cameras here, or the one there"] if self.cameras else []
        if not self.cameras:
            return ["camera: is missing"]
        faults = []
        if len(self.cameras) > 1 and self.trigger.source is not TriggerSource.PLC:
            faults.append(
                f"trigger.source: {self.trigger.source} goes with one camera, cameras has {len(self.cameras)}: "
                "only with source: plc is it known which frames are of the same part"
            )
        first: dict[str, str] = {}
        for path, camera in self._camera_paths().items():
            if first.setdefault(camera.name, path) != path:
                faults.append(f"{path}.name: {camera.name} is the name of {first[camera.name]} already")
        return faults

    def _misfits_of(self, recipe: RecipeSettings) -> list[str]:
        names = {camera.name for camera in self.all_cameras}
        faults = [f"views.{name}: is no camera of this station" for name in recipe.views if name not in names]
        told: set[str] = set()
        for place, camera in self._camera_paths().items():
            own = recipe.views.get(camera.name)
            path = f"views.{camera.name}.region" if own is not None and own.region is not None else "region"
            found = _region_misfits(recipe.seen_by(camera.name).region, camera, f"{path}: ", place)
            faults += [fault for fault in found if fault not in told]
            told.update(found)
        return faults

    def _changeover_misfits(self) -> list[str]:
        if self.changeover is None:
            return []
        faults = ["changeover: needs a plc other than type: none"] if isinstance(self.plc, NoPlcSettings) else []
        first: dict[str | int, str] = {}
        for path, recipe in zip(self._recipe_paths(), self.recipes, strict=True):
            if not recipe.number:
                faults.append(f"{path}.number: must be over 0 with changeover: the PLC names recipes by it")
            for key, value in (("number", recipe.number), ("name", recipe.name)):
                if value and first.setdefault(value, path) != path:
                    faults.append(f"{path}.{key}: {value} is the {key} of {first[value]} already")
        return faults

    def _gate_misfits(self) -> list[str]:
        gate = self.tracked_gate
        if gate is None:
            return []
        faults = []
        if isinstance(self.plc, NoPlcSettings) or self.trigger.source is not TriggerSource.PLC:
            faults.append(f"gate.tracking: {gate.tracking} needs a plc, and trigger.source: plc")
        if isinstance(self.plc, OpcuaPlcSettings):
            faults += _gate_node_misfits(gate)
        if isinstance(self.plc, ModbusPlcSettings | ModbusServerPlcSettings) and (
            shared := _gate_overlap(gate, self.plc)
        ):
            faults.append(f"gate.registers.{shared} overlaps another block: all four are at one server")
        if isinstance(gate, DelayGate):
            if gate.travel_ms <= self.budget_ms:
                faults.append(f"gate.travel_ms: {gate.travel_ms:g} is not over {self.budget_ms:g} (budget_ms)")
            # The trigger is seen up to a poll late and the output comes up to a poll late; the part is in the middle of it.
            least = 2 * (self.trigger.poll_ms + gate.poll_ms)
            if gate.length_ms < least:
                faults.append(
                    f"gate.length_ms: {gate.length_ms:g} is under {least:g} (2 x (trigger.poll_ms + gate.poll_ms))"
                )
        return faults

    def _plc_misfits(self) -> list[str]:
        faults: list[str] = []
        match self.plc:
            case ModbusPlcSettings() as plc:
                if self.changeover is not None and not plc.registers.recipe:
                    faults.append("plc.registers.recipe: must be true, changeover needs the recipe's number")
            case OpcuaPlcSettings() as plc:
                faults += [f"plc.{fault}" for fault in plc.half_identity()]
                form = plc.handshake.form
                for name, why in (
                    ("result_ack", f"form {form} needs it" if form is not Form.PULSE else ""),
                    ("plc_heartbeat", "plc_heartbeat_ms needs it" if plc.handshake.plc_heartbeat_ms else ""),
                    ("recipe", "changeover needs it" if self.changeover is not None else ""),
                ):
                    if why and getattr(plc.nodes, name) is None:
                        faults.append(f"plc.nodes.{name}: is missing, {why}")
            case ModbusServerPlcSettings() as plc:
                if plc.registers.overlap:
                    faults.append("plc.registers: trigger (13 registers) and result (16) overlap")
            case NoPlcSettings():
                pass
        return faults


def _opencv_misfits(camera: OpencvCameraSettings) -> list[str]:
    """Keys that this kind of source does not go by."""
    faults = []
    if camera.exposure_us is not None and not camera.is_device:
        faults.append(
            f"exposure_us: {camera.exposure_us:g} is for /dev/video alone: leave it out, set it in the camera"
        )
    if camera.streams or camera.is_device:
        faults += [
            f"{name}: is for video files alone: leave it out" for name in ("rate_hz", "loop") if getattr(camera, name)
        ]
    return faults


def _gate_node_misfits(gate: DelayGate | EncoderGate) -> list[str]:
    if gate.nodes is None:
        return ["gate.nodes: is missing, plc.type: opcua needs it"]
    needed = {
        "encoder": "tracking: encoder needs it" if isinstance(gate, EncoderGate) else "",
        "running": "tracking: delay needs it" if isinstance(gate, DelayGate) else "",
        "confirmations": "confirmed: true needs it" if gate.confirmed else "",
    }
    return [
        f"gate.nodes.{name}: is missing, {why}"
        for name, why in needed.items()
        if why and getattr(gate.nodes, name) is None
    ]


def _gate_overlap(gate: DelayGate | EncoderGate, plc: ModbusPlcSettings | ModbusServerPlcSettings) -> str:
    """Which of the gate's blocks shares registers with another block; empty: neither."""
    trigger_registers = 13
    if isinstance(plc, ModbusPlcSettings) and not plc.registers.recipe:  # what is not used is not read there
        trigger_registers = 12 if plc.handshake.hears_plc else 9
    taken = [
        range(plc.registers.trigger, plc.registers.trigger + trigger_registers),
        range(plc.registers.result, plc.registers.result + 16),
    ]
    for name, at, count in (("inputs", gate.registers.inputs, 4), ("output", gate.registers.output, 8)):
        if any(at < other.stop and other.start < at + count for other in taken):
            return f"{name}: {at}"
        taken.append(range(at, at + count))
    return ""


def _region_misfits(region: RegionSettings, camera: CameraSettings, path: str, place: str) -> list[str]:
    if region.mode is not RegionMode.FIXED:
        return []
    if not (region.width_px and region.height_px):
        return [f"{path}width_px and height_px must be over 0 with mode: fixed"]
    right, bottom = region.x_px + region.width_px, region.y_px + region.height_px
    if right > camera.width_px or bottom > camera.height_px:
        sensor = f"({camera.width_px}x{camera.height_px})"
        return [f"{path}box ends at {right}x{bottom}, outside {place}.width_px x height_px {sensor}"]
    return []
