"""A folder of images as a camera: in name order, at a rate or one per software trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.cameras.feed import Feed
from edgeqc.errors import PeerError
from edgeqc.records import FrameStatus
from edgeqc.settings import ReplayCameraSettings
from edgeqc.shm.slots import FrameSlots

SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp"})


def open_replay(settings: ReplayCameraSettings, slots: FrameSlots, bank: int, *, software_trigger: bool) -> Feed:
    """Open the folder; PeerError where it holds no image."""
    source = _Folder(settings)
    rate_hz = None if software_trigger else settings.rate_hz
    return Feed(settings.name, source, slots, bank, rate_hz=rate_hz, software_trigger=software_trigger)


class _Folder:
    live = False
    in_place = False

    def __init__(self, settings: ReplayCameraSettings) -> None:
        self._peer, self._folder, self._loop = settings.name, settings.folder, settings.loop
        try:
            self._files = sorted(file for file in self._folder.iterdir() if file.suffix.lower() in SUFFIXES)
        except OSError as exc:
            raise PeerError(self._peer, f"{self._folder}: {exc.strerror}") from exc
        if not self._files:
            raise PeerError(self._peer, f"{self._folder}: no image ({', '.join(sorted(SUFFIXES))})")
        self._next = 0
        self._image: NDArray[np.uint8] | None = None

    def advance(self) -> None:
        if self._next == len(self._files):
            if not self._loop:
                raise PeerError(self._peer, f"{self._folder}: all {len(self._files)} images shown")
            self._next = 0
        self._image = _decode(self._files[self._next])
        self._next += 1

    def read(self, pixels: NDArray[np.uint8]) -> FrameStatus:
        if self._image is None:
            return FrameStatus.UNREADABLE
        if self._image.shape != pixels.shape:
            return FrameStatus.WRONG_SIZE
        np.copyto(pixels, self._image)
        return FrameStatus.OK

    def close(self) -> None:
        pass


def _decode(file: Path) -> NDArray[np.uint8] | None:
    """None where it cannot be read. Decoded apart: those of OpenCV that write in place do not tell whether they failed."""
    try:
        image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error):
        return None
    return None if image is None else image.astype(np.uint8, copy=False)
