"""The opencv camera on a V4L2 device: OpenCV's own V4L2 code over a driver that a preloaded library pretends."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeqc.cameras.opencv import VIDEO_MAJOR

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a device file")
LOOK = """
import json, sys, time
from pathlib import Path
from edgeqc.cameras import open_camera
from edgeqc.errors import PeerError
from edgeqc.records import NS_PER_S
from edgeqc.settings import OpencvCameraSettings
from edgeqc.shm.slots import FrameSlots

settings = OpencvCameraSettings.model_validate_json(sys.argv[1])
slots = FrameSlots.create(Path(sys.argv[2]), per_bank=4, shape=(settings.height_px, settings.width_px))
seen = {"status": [], "grey": [], "zero_copy": None, "error": ""}
try:
    for _ in range(2):  # what one connection leaves behind, the next one meets
        camera = open_camera(settings, slots, 0, software_trigger=False)
        try:
            for _ in range(4):
                frame = camera.next_frame(time.monotonic_ns() + 20 * NS_PER_S)
                seen["status"].append(str(frame.status))
                seen["grey"].append([int(frame.pixels.min()), int(frame.pixels.max())])
                camera.release(frame.slot)
                del frame
            seen["zero_copy"] = camera.zero_copy
        finally:
            camera.close()
except PeerError as error:
    seen["error"] = error.reason
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the V4L2 driver that is pretended")
    library = tmp_path_factory.mktemp("driver") / "v4l2.so"
    source = Path(__file__).with_name("v4l2.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def device() -> Iterator[Path]:
    """A device file of a camera; what opens it without the library finds no driver."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        os.mknod(folder / "video0", stat.S_IFCHR | 0o660, os.makedev(VIDEO_MAJOR, 255))
        yield folder / "video0"
    finally:
        shutil.rmtree(folder)


def look(driver: Path | None, device: Path, tmp_path: Path, fault: str = "", **changes: Any) -> dict[str, Any]:
    settings = {"type": "opencv", "source": str(device), "width_px": 640, "height_px": 480, **changes}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(settings), str(tmp_path / "slots")],
        env={
            **os.environ,
            **({"LD_PRELOAD": str(driver)} if driver else {}),
            "V4L2_DEVICE": str(device),
            "V4L2_FAULT": fault,
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize(("width_px", "height_px"), [(640, 480), (320, 240)])
def test_frames_come_in_the_size_and_with_the_exposure_asked_for(driver, device, tmp_path, width_px, height_px):
    seen = look(driver, device, tmp_path, width_px=width_px, height_px=height_px, exposure_us=5000)
    assert seen["error"] == ""
    assert seen["status"] == ["ok"] * 8
    darkest, brightest = zip(*seen["grey"], strict=True)
    assert darkest == brightest, "one picture in each frame"
    assert sorted(set(darkest[:4])) == list(darkest[:4]), "each newer than the one before"
    assert seen["zero_copy"]


@pytest.mark.parametrize(
    ("fault", "changes", "reason"),
    [
        ("busy", {}, "another program has it, or it does not stream: fuser -v"),
        ("metadata", {}, "gives no pictures, a camera may have several devices: v4l2-ctl --list-devices"),
        ("fixed", {}, "gives 320x240, not 640x480 (width_px, height_px)"),
        ("automatic", {"exposure_us": 5000}, "does not take exposure_us: 5000; leave it out"),
        ("gone", {}, "no more frames: it hangs, or is gone"),
    ],
)
def test_what_a_device_cannot_do_is_told(driver, device, tmp_path, fault, changes, reason):
    seen = look(driver, device, tmp_path, fault, **changes)
    assert seen["error"].startswith(f"{device}: {reason}")


def test_device_without_exposure_control_is_used_where_none_is_asked_for(driver, device, tmp_path):
    assert look(driver, device, tmp_path, "automatic")["status"] == ["ok"] * 8


def test_device_file_without_a_driver_is_told(device, tmp_path):
    seen = look(None, device, tmp_path)
    reasons = ("No such device or address", "Permission denied")  # the latter where /dev/shm is mounted nodev
    assert seen["error"] in {f"{device}: {reason}: v4l2-ctl --list-devices shows the cameras" for reason in reasons}
