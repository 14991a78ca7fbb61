"""How a part announces itself, and the camera that sees it."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgeqc.settings.base import Model, Name


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
    repeated_ids: bool = Field(
        False,
        description="several parts in a row may have the same part id (a batch number); false: a part with the id of one "
        "before it is rejected as identity, because the PLC could take its result for the other's",
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
    um_per_px: float | None = Field(
        None, gt=0, le=1e6, description="a pixel's side on the part; null: areas of defects are told in pixels alone"
    )
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
    source: str = Field(
        min_length=1, description="rtsp://..., /dev/video0 or a video file; secret://name where it has a password in it"
    )
    exposure_us: float | None = Field(None, gt=0, le=10_000_000, description="/dev/video only")
    rate_hz: float | None = Field(None, gt=0, le=1000, description="video files only: paces them")
    loop: bool = Field(False, description="video files only: start again at the end")

    @property
    def streams(self) -> bool:
        """Does it come over a network, through buffers that nobody knows?"""
        return "://" in self.source

    @property
    def is_device(self) -> bool:
        """Is it a V4L2 device of this box?"""
        return self.source.startswith("/dev/")

    @property
    def shown(self) -> str:
        """The source as messages may show it: without user and password."""
        return re.sub(r"(?<=://)[^/\s]*@", "...@", self.source)


class ReplayCameraSettings(CameraBase):
    """A folder of images, in name order."""

    type: Literal["replay"]
    folder: Path
    rate_hz: float = Field(10, gt=0, le=1000)
    loop: bool = True


CameraSettings = Annotated[
    GigeCameraSettings | OpencvCameraSettings | ReplayCameraSettings, Field(discriminator="type")
]
