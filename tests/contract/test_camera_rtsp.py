"""A camera that streams: RTSP on loopback, taken by OpenCV's FFmpeg."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rtsp import RATE_HZ, RtspCamera

from edgeqc.cameras import open_camera
from edgeqc.cameras.keeper import CameraKeeper
from edgeqc.cameras.opencv import TIMEOUT_MS
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_S, Frame, FrameStatus
from edgeqc.settings import OpencvCameraSettings
from edgeqc.shm.slots import FrameSlots

HEIGHT, WIDTH, LEFT, RIGHT = 128, 160, 40, 90
COMES_S = 30.0
SLACK_S = 5.0
"""A starved box; the bound without it is the daemon's."""


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    made = np.full((HEIGHT, WIDTH), RIGHT, np.uint8)
    made[:, : WIDTH // 2] = LEFT
    return made


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[FrameSlots]:
    made = FrameSlots.create(tmp_path / "slots", per_bank=4, shape=(HEIGHT, WIDTH))
    yield made
    made.close()


def settings(camera: RtspCamera) -> OpencvCameraSettings:
    return OpencvCameraSettings(
        type="opencv", source=camera.url, height_px=HEIGHT, width_px=WIDTH, silence_ms=TIMEOUT_MS * 10
    )


def within(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * NS_PER_S)


def next_of(keeper: CameraKeeper) -> Frame:
    frame = keeper.next_frame(within(COMES_S))
    assert frame is not None, keeper.reason
    keeper.release(frame.slot)
    return frame


def test_pictures_come_as_they_were_sent_and_at_their_rate(slots: FrameSlots, picture: NDArray[np.uint8]) -> None:
    with RtspCamera(picture) as camera:
        keeper = CameraKeeper(settings(camera), slots, software_trigger=False)
        keeper.start()
        try:
            frame = next_of(keeper)
            began = time.monotonic()
            numbers = [next_of(keeper).frame_id for _ in range(10)]
            assert time.monotonic() - began > 8 / RATE_HZ, "what FFmpeg had looked at before is not handed out"
            assert numbers == list(range(2, 12))
            assert frame.status is FrameStatus.OK
            assert abs(float(frame.pixels[:, 10].mean()) - LEFT) < 2
            assert abs(float(frame.pixels[:, -10].mean()) - RIGHT) < 2
        finally:
            keeper.stop(COMES_S)


def test_a_camera_that_falls_silent_is_given_up_and_taken_again(slots: FrameSlots, picture: NDArray[np.uint8]) -> None:
    told: list[tuple[bool, str]] = []
    with RtspCamera(picture) as camera:
        keeper = CameraKeeper(
            settings(camera), slots, software_trigger=False, on_change=lambda up, reason: told.append((up, reason))
        )
        keeper.start()
        try:
            next_of(keeper)
            camera.silent.set()
            until = within(TIMEOUT_MS / 1000 + SLACK_S)
            while told[-1][0] and time.monotonic_ns() < until:
                if (frame := keeper.next_frame(within(0.1))) is not None:
                    keeper.release(frame.slot)
            assert told[-1] == (False, f"{camera.url}: no more frames: it hangs, or is gone")
            camera.silent.clear()
            next_of(keeper)
            assert told[-1] == (True, "")
        finally:
            keeper.stop(COMES_S)


def test_a_camera_that_starts_anew_is_taken_again(slots: FrameSlots, picture: NDArray[np.uint8]) -> None:
    with RtspCamera(picture) as camera:
        keeper = CameraKeeper(settings(camera), slots, software_trigger=False)
        keeper.start()
        try:
            next_of(keeper)
            camera.hang_up()
            until = within(COMES_S)
            while not keeper.reopened and time.monotonic_ns() < until:
                if (frame := keeper.next_frame(within(0.1))) is not None:
                    keeper.release(frame.slot)
            assert next_of(keeper).status is FrameStatus.OK
        finally:
            keeper.stop(COMES_S)


def test_a_camera_that_takes_connections_and_says_nothing_is_a_lost_peer(
    slots: FrameSlots, picture: NDArray[np.uint8]
) -> None:
    with RtspCamera(picture, mute=True) as camera:
        began = time.monotonic()
        with pytest.raises(PeerError, match="no stream: nobody answers"):
            open_camera(settings(camera), slots, 0, software_trigger=False)
        assert time.monotonic() - began < TIMEOUT_MS / 1000 + SLACK_S
