"""RTSP, V4L2 and video files through OpenCV. Grey is written once, straight into the slot."""

from __future__ import annotations

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


def open_opencv(settings: OpencvCameraSettings, slots: FrameSlots, bank: int, *, software_trigger: bool) -> Feed:
    """Open the source; PeerError where OpenCV cannot."""
    source = _Capture(settings)
    rate_hz = None if source.live or software_trigger else settings.rate_hz or source.rate_hz
    return Feed(settings.name, source, slots, bank, rate_hz=rate_hz, software_trigger=software_trigger)


class _Capture:
    def __init__(self, settings: OpencvCameraSettings) -> None:
        self._settings, self._peer = settings, settings.name
        self.live = not Path(settings.source).is_file()
        self.in_place = True
        self._colour: Any = None
        self._capture = self._opened()
        self.rate_hz = self._capture.get(cv2.CAP_PROP_FPS) or None

    def read(self, pixels: NDArray[np.uint8]) -> FrameStatus:
        if not self._grabbed():
            if self.live or not self._settings.loop:
                raise PeerError(self._peer, f"{self._settings.source}: no more frames")
            self._capture.release()
            self._capture = self._opened()
            if not self._grabbed():
                raise PeerError(self._peer, f"{self._settings.source}: no frame")
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

    def skip(self) -> None:
        if not self._grabbed():
            raise PeerError(self._peer, f"{self._settings.source}: no more frames")

    def close(self) -> None:
        self._capture.release()

    def _grabbed(self) -> bool:
        try:
            return self._capture.grab()
        except cv2.error as exc:
            raise PeerError(self._peer, f"{self._settings.source}: {exc}") from exc

    def _opened(self) -> cv2.VideoCapture:
        settings, source = self._settings, self._settings.source
        if source.startswith("/dev/"):
            capture = cv2.VideoCapture(source, cv2.CAP_V4L2)
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width_px)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height_px)
            if settings.exposure_us is not None:
                capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, V4L2_MANUAL_EXPOSURE)
                capture.set(cv2.CAP_PROP_EXPOSURE, settings.exposure_us / V4L2_EXPOSURE_US)
        elif self.live:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
            capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        else:
            capture = cv2.VideoCapture(source)
        if not capture.isOpened():
            capture.release()
            raise PeerError(self._peer, f"{source}: OpenCV cannot open it")
        if settings.streams:
            _catch_up(capture)
        return capture


def _catch_up(capture: cv2.VideoCapture) -> None:
    """Drop what came while FFmpeg looked at the stream, a second of it: those parts have gone by."""
    until_s = time.monotonic() + TIMEOUT_MS / 1000
    waited = 0
    while waited < _WAITED_FOR and (asked_s := time.monotonic()) < until_s and capture.grab():
        waited = waited + 1 if time.monotonic() - asked_s > WAITS_S else 0
