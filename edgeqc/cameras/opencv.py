"""RTSP, V4L2 and video files through OpenCV. Grey is written once, straight into the slot."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.cameras.feed import Feed
from edgeqc.errors import PeerError
from edgeqc.records import FrameStatus
from edgeqc.settings import OpencvCameraSettings
from edgeqc.shm.slots import FrameSlots

TIMEOUT_MS: Final = 3000
"""An RTSP server that says nothing for this long is lost."""
WAITS_S: Final = 0.005
"""A picture that takes longer to come than this was waited for; one that does not had been waiting for us."""
_WAITED_FOR: Final = 3
"""So many in a row: a busy box takes that long over one that was there now and then."""
V4L2_MANUAL_EXPOSURE: Final = 1
"""V4L2_EXPOSURE_MANUAL."""
V4L2_EXPOSURE_US: Final = 100
"""V4L2_CID_EXPOSURE_ABSOLUTE counts in 100 us."""
VIDEO_MAJOR: Final = 81
"""Of the character devices of video4linux (devices.txt of the kernel)."""
_VIDIOC_QUERYCAP: Final = 0x80685600  # linux/videodev2.h, with struct v4l2_capability:
_CAPABILITY_BYTES: Final = 104
_DEVICE_CAPS_AT: Final = 88
_VIDEO_CAPTURE: Final = 1

# OpenCV and FFmpeg write lines of their own at each try, twice a second while a camera is away; ours say it once
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read once, when FFmpeg is first used


def open_opencv(settings: OpencvCameraSettings, slots: FrameSlots, bank: int, *, software_trigger: bool) -> Feed:
    """Open the source; PeerError where OpenCV cannot."""
    source = _Capture(settings)
    rate_hz = None if source.live or software_trigger else settings.rate_hz or source.rate_hz
    return Feed(settings.name, source, slots, bank, rate_hz=rate_hz, software_trigger=software_trigger)


class _Capture:
    def __init__(self, settings: OpencvCameraSettings) -> None:
        self._settings, self._peer = settings, settings.name
        self.live = settings.streams or settings.is_device
        self.in_place = True
        self._colour: Any = None
        self._capture = self._opened()
        self.rate_hz = self._capture.get(cv2.CAP_PROP_FPS) or None

    def advance(self) -> None:
        if self._grabbed():
            return
        if self.live or not self._settings.loop:
            raise self._lost("no more frames: it hangs, or is gone" if self.live else "no more frames")
        self._capture.release()
        self._capture = self._opened()
        if not self._grabbed():
            raise self._lost("no frame")

    def read(self, pixels: NDArray[np.uint8]) -> FrameStatus:
        good, image = self._capture.retrieve(self._colour)
        if not good:
            return FrameStatus.UNREADABLE
        self._colour = image  # the next frame is decoded into the same memory
        if image.shape[:2] != pixels.shape:
            return FrameStatus.WRONG_SIZE
        if image.ndim == pixels.ndim:
            np.copyto(pixels, image, casting="unsafe")  # a grey source, decoded by its driver
            self.in_place = False
            return FrameStatus.OK
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY, pixels)
        if np.asarray(grey).ctypes.data != pixels.ctypes.data:
            self.in_place = False
            return FrameStatus.UNREADABLE
        return FrameStatus.OK

    def close(self) -> None:
        self._capture.release()

    def _grabbed(self) -> bool:
        try:
            return self._capture.grab()
        except cv2.error as exc:
            raise self._lost(str(exc)) from exc

    def _lost(self, reason: str) -> PeerError:
        return PeerError(self._peer, f"{self._settings.shown}: {reason}")

    def _opened(self) -> cv2.VideoCapture:
        settings, source = self._settings, self._settings.source
        if fault := "" if settings.streams else unusable(settings):
            raise self._lost(fault)
        if settings.is_device:
            capture = cv2.VideoCapture(source, cv2.CAP_V4L2)
        elif settings.streams:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
            capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        else:
            capture = cv2.VideoCapture(source)
        fault = self._configured(capture)
        if fault:
            capture.release()
            raise self._lost(fault)
        if settings.streams:
            _catch_up(capture)
        return capture

    def _configured(self, capture: cv2.VideoCapture) -> str:
        """Set the device up; what it does not do."""
        settings = self._settings
        if settings.streams:
            return "" if capture.isOpened() else "no stream: nobody answers, or user, password or path are wrong"
        if not settings.is_device:
            return "" if capture.isOpened() else "holds no video that OpenCV can read"
        if not capture.isOpened():
            return _unopened(settings.source)
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width_px)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height_px)
        width, height = (int(capture.get(size)) for size in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if (width, height) != (settings.width_px, settings.height_px):
            return f"gives {width}x{height}, not {settings.width_px}x{settings.height_px} (width_px, height_px)"
        if settings.exposure_us is not None and not (
            capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, V4L2_MANUAL_EXPOSURE)
            and capture.set(cv2.CAP_PROP_EXPOSURE, settings.exposure_us / V4L2_EXPOSURE_US)
        ):
            return f"does not take exposure_us: {settings.exposure_us:g}; leave it out, or see v4l2-ctl --list-ctrls"
        return ""


def unusable(settings: OpencvCameraSettings) -> str:
    """Why a device or file cannot be a camera, and what to do, as the system says without waiting; empty: it may be one."""
    source = settings.source
    try:
        status = Path(source).stat()
    except OSError as exc:
        return f"{exc.strerror}: v4l2-ctl --list-devices shows the cameras" if settings.is_device else str(exc.strerror)
    if not settings.is_device:
        return "" if stat.S_ISREG(status.st_mode) else "is no file"
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != VIDEO_MAJOR:
        return "is no video device: v4l2-ctl --list-devices shows the cameras"
    if not os.access(source, os.R_OK | os.W_OK):
        return "no permission: usermod -aG video USER, or in the unit SupplementaryGroups=video and DeviceAllow="
    return ""


def _unopened(device: str) -> str:
    """Why OpenCV did not open a video device: what the driver says of it."""
    capability = bytearray(_CAPABILITY_BYTES)
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _VIDIOC_QUERYCAP, capability)
        finally:
            os.close(descriptor)
    except OSError as exc:
        return f"{exc.strerror}: v4l2-ctl --list-devices shows the cameras"
    (what,) = struct.unpack_from("I", capability, _DEVICE_CAPS_AT)
    if not what & _VIDEO_CAPTURE:
        return "gives no pictures, a camera may have several devices: v4l2-ctl --list-devices shows them"
    return f"another program has it, or it does not stream: fuser -v {device}"


def _catch_up(capture: cv2.VideoCapture) -> None:
    """Drop what came while FFmpeg looked at the stream, a second of it: those parts have gone by."""
    until_s = time.monotonic() + TIMEOUT_MS / 1000
    waited = 0
    while waited < _WAITED_FOR and (asked_s := time.monotonic()) < until_s and capture.grab():
        waited = waited + 1 if time.monotonic() - asked_s > WAITS_S else 0
