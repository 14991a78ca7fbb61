"""Cameras behind one port: GigE Vision, whatever OpenCV reads, and recorded images."""

from __future__ import annotations

from edgeqc.ports import Camera
from edgeqc.settings import CameraSettings
from edgeqc.shm.slots import FrameSlots


def open_camera(settings: CameraSettings, slots: FrameSlots, bank: int, *, software_trigger: bool) -> Camera:
    """Connect and start streaming into the slots of `bank`. Blocks up to 10 s; PeerError where the camera won't.

    With `software_trigger` a frame comes for each `trigger()` and none without.
    """
    match settings.type:  # each import loads a library that the other cameras can do without
        case "gige":
            from edgeqc.cameras.gige import GigeCamera  # noqa: PLC0415

            return GigeCamera(settings, slots, bank, software_trigger=software_trigger)
        case "opencv":
            from edgeqc.cameras.opencv import open_opencv  # noqa: PLC0415

            return open_opencv(settings, slots, bank, software_trigger=software_trigger)
        case "replay":
            from edgeqc.cameras.replay import open_replay  # noqa: PLC0415

            return open_replay(settings, slots, bank, software_trigger=software_trigger)
