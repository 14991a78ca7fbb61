"""One port, three cameras: GigE Vision over real packets, a folder of images, a video file."""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from edgeqc.cameras import open_camera
from edgeqc.cameras.aravis import aravis_available, library_version
from edgeqc.cameras.feed import Feed
from edgeqc.cameras.keeper import STARVED_NS, CameraKeeper
from edgeqc.cameras.opencv import VIDEO_MAJOR
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.ports import Camera
from edgeqc.records import NS_PER_MS, NS_PER_S, Frame, FrameStatus
from edgeqc.settings import CameraSettings, GigeCameraSettings, OpencvCameraSettings, ReplayCameraSettings
from edgeqc.shm.slots import FrameSlots
from edgeqc.sim.camera import SimCamera
from edgeqc.sim.stage import CameraFault, Stage
from edgeqc.station.lender import Lender
from edgeqc.station.viewpoints import Viewpoint, Viewpoints

HEIGHT, WIDTH, PARTS, PER_BANK = 120, 160, 5, 6
SLACK_S = 2.0
"""Two noisy cores: a bound is kept if it is kept within this."""


@pytest.fixture(autouse=True)
def _closers_end():
    """Closing a connection to a dead camera takes Aravis 5 s; then nothing of it may be left."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 10
    while extra := set(threading.enumerate()) - before:
        assert time.monotonic() < until, f"threads left: {extra}"
        time.sleep(0.02)  # polled


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[FrameSlots]:
    made = FrameSlots.create(tmp_path / "slots", per_bank=PER_BANK, shape=(HEIGHT, WIDTH))
    yield made
    made.close()


@pytest.fixture(scope="session")
def parts() -> np.ndarray:
    """Each part is grey with a level of its own and noise, so that it is told from the others and from stale pixels."""
    noise = np.random.default_rng(1).integers(0, 20, (PARTS, HEIGHT, WIDTH), np.uint8)
    return noise + (np.arange(PARTS, dtype=np.uint8) * 40 + 10)[:, None, None]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage.create(tmp_path / "stage")
    made.advance = True
    yield made
    made.close()


@pytest.fixture
def sim(tmp_path: Path, parts: np.ndarray, stage: Stage) -> Iterator[SimCamera]:
    if not aravis_available():
        if os.environ.get("EDGEQC_REQUIRE_PEERS") == "1":
            pytest.fail("libaravis is missing: apt-get install libaravis-0.8-0")
        pytest.skip("libaravis is missing: apt-get install libaravis-0.8-0")
    np.save(tmp_path / "parts.npy", parts)
    with SimCamera(tmp_path / "parts.npy", stage.path, first_frame_id=65_530) as camera:
        yield camera


@pytest.fixture
def folder(tmp_path: Path, parts: np.ndarray) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for index, part in enumerate(np.roll(parts, -1, axis=0)):  # the simulated camera shows part 1 first, too
        cv2.imwrite(str(images / f"{index:03d}.png"), part)
    return images


@pytest.fixture
def video(tmp_path: Path, parts: np.ndarray) -> Path:
    path = tmp_path / "parts.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 50, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for part in np.roll(parts, -1, axis=0):
        writer.write(cv2.cvtColor(part, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def gige(sim: SimCamera, **more) -> GigeCameraSettings:
    given = {"width_px": WIDTH, "height_px": HEIGHT, "rate_hz": 50, "packet_bytes": 1400} | more
    return GigeCameraSettings(type="gige", address=sim.address, **given)


def replay(folder: Path, **more) -> ReplayCameraSettings:
    given = {"width_px": WIDTH, "height_px": HEIGHT, "rate_hz": 50} | more
    return ReplayCameraSettings(type="replay", folder=folder, **given)


def film(video: Path, **more) -> OpencvCameraSettings:
    given = {"width_px": WIDTH, "height_px": HEIGHT, "loop": True} | more
    return OpencvCameraSettings(type="opencv", source=str(video), **given)


@pytest.fixture(params=["gige", "replay", "opencv"])
def settings(request: pytest.FixtureRequest) -> CameraSettings:
    match request.param:
        case "gige":
            return gige(request.getfixturevalue("sim"))
        case "replay":
            return replay(request.getfixturevalue("folder"))
        case _:
            return film(request.getfixturevalue("video"))


Opener = Callable[..., Camera]


@pytest.fixture
def opened(slots: FrameSlots) -> Iterator[Opener]:
    cameras: list[Camera] = []

    def opener(settings: CameraSettings, bank: int = 0, *, software_trigger: bool = False) -> Camera:
        cameras.append(open_camera(settings, slots, bank, software_trigger=software_trigger))
        return cameras[-1]

    yield opener
    for camera in cameras:
        camera.close()


def within(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * NS_PER_S)


def next_of(camera: Camera | CameraKeeper, seconds: float = 5) -> Frame:
    frame = camera.next_frame(within(seconds))
    assert frame is not None, f"no frame within {seconds} s"
    return frame


def first_ok(camera: Camera | CameraKeeper, seconds: float = 10) -> Frame:
    until = within(seconds)
    while frame := camera.next_frame(until):
        if frame.status is FrameStatus.OK:
            return frame
        camera.release(frame.slot)
    pytest.fail(f"no good frame within {seconds} s")


# every camera


def test_frames_come_in_order_into_our_own_memory(settings, opened, slots, parts):
    camera = opened(settings, bank=1)
    last = 0
    for index in range(1, 13):
        frame = next_of(camera)
        assert frame.status is FrameStatus.OK
        assert slots.bank <= frame.slot < 2 * slots.bank
        assert frame.pixels is slots.pixels(frame.slot)
        assert frame.pixels.ctypes.data == slots.address(frame.slot)
        assert np.array_equal(frame.pixels, parts[index % PARTS])
        assert not last or (frame.frame_id - last) % 65_535 == 1
        assert 1 <= frame.frame_id <= 65_535
        assert 0 <= frame.transfer_ns <= frame.received_ns <= time.monotonic_ns()
        last = frame.frame_id
        camera.release(frame.slot)
    assert camera.zero_copy is (settings.type != "replay")


def test_software_trigger_gives_exactly_one_frame(settings, opened):
    camera = opened(settings, software_trigger=True)
    assert camera.next_frame(within(0.1)) is None
    for _ in range(5):
        camera.trigger()
        frame = next_of(camera)
        assert frame.status is FrameStatus.OK
        camera.release(frame.slot)
        assert camera.next_frame(within(0.05)) is None


def test_a_free_running_camera_takes_no_trigger(settings, opened):
    with pytest.raises(PeerError, match="not opened for software triggers"):
        opened(settings).trigger()


def test_next_frame_ends_at_its_bound(settings, opened):
    camera = opened(settings, software_trigger=True)
    for seconds in (-1.0, 0.0, 0.2):
        began = time.monotonic()
        assert camera.next_frame(within(seconds)) is None
        assert time.monotonic() - began < max(0.0, seconds) + SLACK_S


def test_a_held_slot_is_never_written_and_frames_resume_on_release(settings, opened, slots):
    camera = opened(settings)
    held = [next_of(camera) for _ in range(PER_BANK)]
    assert len({frame.slot for frame in held}) == PER_BANK
    copies = [frame.pixels.copy() for frame in held]
    assert camera.next_frame(within(0.2)) is None
    assert all(np.array_equal(frame.pixels, copy) for frame, copy in zip(held, copies, strict=True))
    for frame in held:
        camera.release(frame.slot)
    camera.release(next_of(camera).slot)


def test_releasing_twice_or_after_close_does_nothing(settings, opened):
    camera = opened(settings)
    slot = next_of(camera).slot
    camera.release(slot)
    camera.release(slot)
    kept = next_of(camera).slot
    camera.close()
    camera.release(kept)
    camera.close()
    assert isinstance(camera.counters(), dict)


def test_opening_and_closing_again_and_again_leaks_nothing(settings, slots):
    process = psutil.Process()

    def once(bank: int) -> None:
        camera = open_camera(settings, slots, bank, software_trigger=False)
        kept = next_of(camera)
        camera.release(next_of(camera).slot)
        assert kept.status is FrameStatus.OK
        camera.close()  # one slot is never given back

    for index in range(8):  # libraries settle: thread pools, GenICam caches, malloc arenas
        once(index % 2)
    gc.collect()
    files, memory = process.num_fds(), process.memory_info().rss
    for index in range(40):
        once(index % 2)
    gc.collect()
    assert process.num_fds() <= files
    assert process.memory_info().rss - memory < 8 << 20


def test_what_is_not_there_is_a_peer_error(slots, tmp_path):
    missing = [replay(tmp_path / "none"), replay(tmp_path), film(tmp_path / "none.avi")]
    for settings in missing:
        with pytest.raises(PeerError):
            open_camera(settings, slots, 0, software_trigger=False)


def test_a_source_that_opencv_cannot_use_is_told_at_once_with_the_reason_and_what_to_do(slots, tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe")
    assert os.major(Path("/dev/null").stat().st_rdev) != VIDEO_MAJOR
    (tmp_path / "text.avi").write_text("no film")
    reasons = {
        "/dev/video99": "No such file or directory: v4l2-ctl --list-devices",
        "/dev/null": "is no video device: v4l2-ctl --list-devices",
        str(tmp_path / "pipe"): "is no file",  # opened, it would wait for a writer for ever
        str(tmp_path): "is no file",
        str(tmp_path / "text.avi"): "holds no video",
        "rtsp://anna:secret@127.0.0.1:1/x": "no stream: nobody answers",
    }
    for source, reason in reasons.items():
        with pytest.raises(PeerError, match=reason) as caught:
            open_camera(film(source), slots, 0, software_trigger=False)
        assert "secret" not in str(caught.value)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), "a camera that is tried again and again would fill the log"


class Sleeper:
    """A source that hangs until it is woken, and then has a picture."""

    live = True
    in_place = True

    def __init__(self) -> None:
        self.asleep, self.wake, self.written = threading.Event(), threading.Event(), False

    def advance(self) -> None:
        self.asleep.set()
        self.wake.wait()

    def read(self, pixels: np.ndarray) -> FrameStatus:
        pixels[:] = 1
        self.written = True
        return FrameStatus.OK

    def close(self) -> None:
        pass


def test_a_source_that_wakes_after_it_was_given_up_does_not_write_into_the_slot_of_another(slots, monkeypatch):
    monkeypatch.setattr("edgeqc.cameras.feed.CLOSE_S", 0.05)
    source = Sleeper()
    camera = Feed("cam", source, slots, 0, rate_hz=None, software_trigger=False)
    assert source.asleep.wait(5)
    camera.close()
    source.wake.set()
    until = time.monotonic() + 5
    while any(thread.name == "feed-cam" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)  # polled
    assert not source.written
    assert not slots.pixels(0).any()


class Live:
    """A source whose pictures come when the test says, wanted or not."""

    live = in_place = True

    def __init__(self) -> None:
        self.come: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.advanced = threading.Semaphore(0)

    def advance(self) -> None:
        if self.come.get() < 0:
            raise PeerError("cam", "ended")
        self.advanced.release()

    def read(self, pixels: np.ndarray) -> FrameStatus:
        return FrameStatus.OK

    def close(self) -> None:
        pass


def test_live_pictures_that_waited_say_since_when_and_those_that_were_skipped_leave_a_gap(slots):
    source = Live()
    camera = Feed("cam", source, slots, 0, rate_hz=None, software_trigger=False)
    try:
        began_ns = time.monotonic_ns()
        for _ in range(PER_BANK + 2):  # two more than there are slots
            source.come.put(1)
            assert source.advanced.acquire(timeout=5)
        came_ns = time.monotonic_ns()
        time.sleep(0.05)  # so late they are fetched
        frames = [next_of(camera) for _ in range(PER_BANK)]
        assert [frame.frame_id for frame in frames] == list(range(1, PER_BANK + 1))
        assert all(began_ns <= frame.received_ns <= came_ns for frame in frames)
        for frame in frames:
            camera.release(frame.slot)
        source.come.put(1)  # it may find the slots still taken
        source.come.put(1)
        after = next_of(camera)
        assert after.frame_id in {PER_BANK + 3, PER_BANK + 4}
        assert after.received_ns > came_ns
    finally:
        source.come.put(-1)
        camera.close()


# recorded images


def test_an_unreadable_image_is_flagged_and_the_next_one_comes(folder, opened):
    (folder / "001.png").write_bytes(b"not an image")
    (folder / "002.png").write_bytes((folder / "003.png").read_bytes()[:2000])
    (folder / "notes.txt").write_text("no image at all")
    camera = opened(replay(folder, loop=False))
    seen = [next_of(camera).status for _ in range(PARTS)]
    assert seen == [FrameStatus.OK, FrameStatus.UNREADABLE, FrameStatus.UNREADABLE, FrameStatus.OK, FrameStatus.OK]


def test_an_image_of_another_size_is_flagged(folder, opened, slots):
    cv2.imwrite(str(folder / "000.png"), np.zeros((HEIGHT + 1, WIDTH), np.uint8))
    camera = opened(replay(folder))
    assert [next_of(camera).status for _ in range(2)] == [FrameStatus.WRONG_SIZE, FrameStatus.OK]


def test_a_film_of_another_size_is_flagged(video, tmp_path):
    small = FrameSlots.create(tmp_path / "small", per_bank=4, shape=(HEIGHT // 2, WIDTH))
    camera = open_camera(film(video), small, 0, software_trigger=False)
    try:
        assert next_of(camera).status is FrameStatus.WRONG_SIZE
    finally:
        camera.close()
        small.close()


@pytest.mark.parametrize("kind", ["replay", "opencv"])
def test_the_end_of_a_recording_is_a_lost_camera(kind, folder, video, opened):
    camera = opened(replay(folder, loop=False) if kind == "replay" else film(video, loop=False))
    for _ in range(PARTS):
        camera.release(next_of(camera).slot)
    for _ in range(2):
        with pytest.raises(PeerError):
            camera.next_frame(within(5))


def test_recorded_images_keep_their_rate(folder, opened):
    camera = opened(replay(folder, rate_hz=20))
    began = time.monotonic()
    for _ in range(11):
        camera.release(next_of(camera).slot)
    assert 0.45 < time.monotonic() - began < 0.5 + SLACK_S


# GigE Vision on the wire


def test_the_library_tells_its_version(sim):
    assert str(library_version()).startswith("0.8.")


def test_a_frame_with_missing_packets_is_never_ok(sim, stage, opened, capfd):
    camera = opened(gige(sim))
    stage.break_camera(CameraFault.SHORT, 1)
    settled = stage.exposures + 1
    bad = 0
    while stage.exposures < settled + 20:
        frame = next_of(camera)
        camera.release(frame.slot)
        if stage.exposures > settled + 5:  # frames taken before the fault have all been read by now
            assert frame.status is FrameStatus.INCOMPLETE
            bad += 1
    assert bad >= 5
    stage.break_camera(CameraFault.NONE)
    camera.release(first_ok(camera).slot)
    assert capfd.readouterr().err == "", "the library must not complain about how it is asked"


def test_a_triggered_frame_with_missing_packets_is_told_without_waiting_for_the_next_one(sim, stage, opened):
    camera = opened(gige(sim, frame_retention_ms=20), software_trigger=True)
    stage.break_camera(CameraFault.SHORT, 2)
    camera.trigger()
    frame = next_of(camera, 1)
    assert frame.status is FrameStatus.INCOMPLETE


@pytest.mark.parametrize("resend", ["never", "auto"])
def test_a_frame_without_its_first_packet_is_the_next_one_and_incomplete(sim, stage, opened, resend):
    """That packet has its number: Aravis leaves there what the buffer's last frame had."""
    camera = opened(gige(sim, rate_hz=25, packet_resend=resend, frame_retention_ms=20))
    for _ in range(2 * PER_BANK):  # each buffer has had a frame
        last = next_of(camera)
        camera.release(last.slot)
    stage.break_camera(CameraFault.LEADERLESS, 2)
    seen = []
    while len(seen) < PER_BANK + 4:
        frame = next_of(camera)
        seen.append((frame.frame_id - last.frame_id, frame.status))
        assert 0 <= frame.transfer_ns < NS_PER_S
        last = frame
        camera.release(frame.slot)
    assert {step for step, _ in seen} == {1}
    assert [status for _, status in seen].count(FrameStatus.INCOMPLETE) == 2
    assert {status for _, status in seen} == {FrameStatus.OK, FrameStatus.INCOMPLETE}


def test_lost_packets_are_resent(sim, stage, opened):
    camera = opened(gige(sim, rate_hz=20, frame_retention_ms=45))
    stage.break_camera(CameraFault.LOSSY, 20)
    good = 0
    for _ in range(40):
        frame = next_of(camera)
        good += frame.status is FrameStatus.OK
        camera.release(frame.slot)
    assert camera.counters()["n_resent_packets"] > 0
    assert good > 30


@pytest.mark.parametrize("rows", [HEIGHT // 2, HEIGHT - 1, HEIGHT + 1, 2 * HEIGHT])
def test_a_frame_of_another_size_is_flagged(sim, stage, opened, slots, rows):
    camera = opened(gige(sim), software_trigger=True)
    beyond = slots.pixels(PER_BANK)  # what lies behind this bank
    beyond[:] = 77
    stage.break_camera(CameraFault.WRONG_SIZE, rows)
    for _ in range(PER_BANK + 1):
        camera.trigger()
        frame = next_of(camera)
        assert frame.status in (FrameStatus.WRONG_SIZE, FrameStatus.INCOMPLETE)
        camera.release(frame.slot)
    assert (beyond == 77).all()
    stage.break_camera(CameraFault.NONE)
    camera.trigger()
    assert next_of(camera).status is FrameStatus.OK


def test_a_frame_counter_that_jumps_back_is_stale(sim, stage, opened):
    camera = opened(gige(sim))
    camera.release(first_ok(camera).slot)
    stage.break_camera(CameraFault.BACKWARD, 300)
    seen = []
    for _ in range(20):
        frame = next_of(camera)
        seen.append(frame.status)
        camera.release(frame.slot)
    assert seen.count(FrameStatus.STALE) == 1
    assert seen[-1] is FrameStatus.OK


def test_the_input_line_triggers_a_frame(sim, stage, opened, parts):
    camera = opened(gige(sim, trigger_line="Line0", rate_hz=None))
    assert camera.next_frame(within(0.1)) is None
    stage.part = 3
    stage.pulse()
    frame = next_of(camera)
    assert np.array_equal(frame.pixels, parts[3])
    assert camera.next_frame(within(0.1)) is None


def test_region_exposure_and_gain_are_set(sim, stage, parts, tmp_path):
    cut = FrameSlots.create(tmp_path / "cut", per_bank=4, shape=(40, 64))
    settings = gige(sim, width_px=64, height_px=40, offset_x_px=16, offset_y_px=8, exposure_us=500, gain_db=3)
    camera = open_camera(settings, cut, 0, software_trigger=True)
    try:
        stage.part = 2
        camera.trigger()
        assert np.array_equal(next_of(camera).pixels, parts[2][8:48, 16:80])
    finally:
        camera.close()
        cut.close()


def test_a_region_beyond_the_sensor_is_refused(sim, tmp_path):
    large = FrameSlots.create(tmp_path / "large", per_bank=4, shape=(HEIGHT, 2 * WIDTH))
    with pytest.raises(PeerError):
        open_camera(gige(sim, width_px=2 * WIDTH), large, 0, software_trigger=False)
    large.close()


def test_too_small_a_receive_buffer_is_refused_with_the_command_that_mends_it(stage, tmp_path, sim):
    sim.stop()
    np.save(tmp_path / "large.npy", np.zeros((1, 1100, 1000), np.uint8))
    slots = FrameSlots.create(tmp_path / "large", per_bank=4, shape=(1100, 1000))
    with SimCamera(tmp_path / "large.npy", stage.path) as large:
        settings = gige(large, width_px=1000, height_px=1100, receive_buffer_bytes=1 << 20)
        with pytest.raises(PeerError, match=r"sysctl -w net\.core\.rmem_max=1048576"):
            open_camera(settings, slots, 0, software_trigger=False)
    slots.close()


def test_a_camera_that_another_client_controls_is_refused_and_free_again_after_it(sim, slots, opened):
    first = opened(gige(sim))
    with pytest.raises(PeerError):
        open_camera(gige(sim), slots, 1, software_trigger=False)
    first.release(next_of(first).slot)
    first.close()
    assert next_of(opened(gige(sim), bank=1)).status is FrameStatus.OK


def test_a_trigger_to_a_dead_camera_is_bounded(sim, opened):
    camera = opened(gige(sim), software_trigger=True)
    sim.freeze()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(PeerTimeoutError):
            camera.trigger()
        assert time.monotonic() - began < 0.1 + SLACK_S
    sim.thaw()


def test_an_address_without_a_camera_is_told_quickly(sim, slots):
    sim.stop()
    began = time.monotonic()
    with pytest.raises(PeerTimeoutError, match="no GigE Vision camera answers"):
        open_camera(gige(sim), slots, 0, software_trigger=False)
    assert time.monotonic() - began < SLACK_S


def test_next_frame_says_that_control_is_lost(sim, opened):
    camera = opened(gige(sim), software_trigger=True)
    sim.kill()
    with pytest.raises(PeerError, match="control lost"):
        camera.next_frame(within(15))  # Aravis's heartbeat: 1 s period, 5 s of retries


def test_two_simulated_cameras_run_side_by_side(sim, stage, tmp_path, opened, slots):
    with SimCamera(tmp_path / "parts.npy", stage.path) as other:
        assert other.address != sim.address
        first, second = opened(gige(sim)), opened(gige(other), bank=1)
        for camera in (first, second):
            assert next_of(camera).status is FrameStatus.OK
            camera.close()  # before its peer ends


# the keeper


class Kept:
    """A keeper and what it said."""

    def __init__(self, settings: CameraSettings, slots: FrameSlots, *, software_trigger: bool = False) -> None:
        self.changes: list[tuple[bool, str]] = []
        self.keeper = CameraKeeper(
            settings,
            slots,
            software_trigger=software_trigger,
            on_change=lambda up, reason: self.changes.append((up, reason)),
        )
        self.keeper.start()


@pytest.fixture
def kept(slots: FrameSlots) -> Iterator[Callable[..., Kept]]:
    made: list[Kept] = []

    def keep(settings: CameraSettings, *, software_trigger: bool = False) -> Kept:
        made.append(Kept(settings, slots, software_trigger=software_trigger))
        return made[-1]

    yield keep
    for one in made:
        one.keeper.stop(10)


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)  # polled


def test_the_keeper_delivers_what_the_camera_delivers(settings, kept, parts):
    one = kept(settings)
    for index in range(1, 6):
        frame = next_of(one.keeper)
        assert np.array_equal(frame.pixels, parts[index % PARTS])
        one.keeper.release(frame.slot)
    assert one.changes == [(True, "")]
    assert one.keeper.up
    assert one.keeper.reason == ""
    assert one.keeper.reopened == 0
    assert one.keeper.zero_copy is (settings.type != "replay")


def test_a_silent_camera_is_reopened_in_the_other_bank(sim, stage, kept):
    one = kept(gige(sim, silence_ms=200))
    first = next_of(one.keeper)
    one.keeper.release(first.slot)
    stage.break_camera(CameraFault.SILENT)
    wait_for(lambda: one.keeper.next_frame(within(0.02)) is None and len(one.changes) > 1)
    assert one.changes[1] == (False, "no frame for 200 ms")
    stage.break_camera(CameraFault.NONE)
    frame = first_ok(one.keeper)
    assert one.keeper.reopened > 0
    assert one.changes[-1] == (True, "")
    assert len(one.changes) <= 5, "a camera that connects and never delivers is not news each time"
    assert (frame.slot // PER_BANK + one.keeper.reopened) % 2 == first.slot // PER_BANK


def test_a_killed_camera_is_used_again_when_it_is_back(sim, kept, stage):
    one = kept(gige(sim, silence_ms=200))
    one.keeper.release(first_ok(one.keeper).slot)
    sim.kill()
    worst = 0.0
    until = time.monotonic() + 2
    while time.monotonic() < until:
        began = time.monotonic()
        if frame := one.keeper.next_frame(within(0.02)):
            one.keeper.release(frame.slot)
        worst = max(worst, time.monotonic() - began)
    assert worst < 0.02 + SLACK_S
    assert not one.keeper.up
    assert "no GigE Vision camera answers" in one.keeper.reason
    sim.start()
    began = time.monotonic()
    one.keeper.release(first_ok(one.keeper).slot)
    assert time.monotonic() - began < 2 + SLACK_S
    assert [up for up, _ in one.changes] == [True, False, True]


def test_a_frozen_camera_is_used_again_when_it_goes_on(sim, kept):
    one = kept(gige(sim, silence_ms=200))
    one.keeper.release(first_ok(one.keeper).slot)
    sim.freeze()
    wait_for(lambda: one.keeper.next_frame(within(0.02)) is None and not one.keeper.up)
    sim.thaw()
    one.keeper.release(first_ok(one.keeper, 15).slot)
    assert one.keeper.reopened >= 1


def test_a_triggered_camera_that_dies_is_reopened(sim, kept):
    one = kept(gige(sim), software_trigger=True)
    wait_for(lambda: one.keeper.up)
    one.keeper.trigger()
    one.keeper.release(next_of(one.keeper).slot)
    sim.kill()
    with pytest.raises(PeerError):
        one.keeper.trigger()
    with pytest.raises(PeerError):  # there is none now
        one.keeper.trigger()
    sim.start()
    wait_for(lambda: one.keeper.up)
    one.keeper.trigger()
    assert next_of(one.keeper).status is FrameStatus.OK


def test_a_controlled_camera_is_tried_until_it_is_free(sim, opened, kept):
    first = opened(gige(sim))
    one = kept(gige(sim), software_trigger=False)
    wait_for(lambda: bool(one.changes))
    assert one.changes[0][0] is False
    first.close()
    assert first_ok(one.keeper, 15).status is FrameStatus.OK


def test_a_bank_is_not_used_again_while_the_line_holds_one_of_its_slots(settings, kept):
    one = kept(settings)
    held = next_of(one.keeper)
    copy = held.pixels.copy()
    one.keeper.lost("the test says so")
    second = first_ok(one.keeper)
    assert second.slot // PER_BANK != held.slot // PER_BANK
    one.keeper.release(second.slot)
    one.keeper.lost("again")
    third = first_ok(one.keeper)
    assert third.slot // PER_BANK == second.slot // PER_BANK, "the held bank is not free, the other one is"
    one.keeper.lost("and again, with both banks held")
    assert one.keeper.next_frame(within(0.3)) is None
    assert np.array_equal(held.pixels, copy)
    one.keeper.release(held.slot)
    assert first_ok(one.keeper).slot // PER_BANK == held.slot // PER_BANK


def test_a_bank_is_not_used_again_while_a_lease_on_it_stands(folder, kept, slots):
    one = kept(replay(folder))
    frame = next_of(one.keeper)
    slots.lend(frame.slot)
    one.keeper.release(frame.slot)
    one.keeper.lost("first")
    other = first_ok(one.keeper)
    slots.lend(other.slot)
    one.keeper.release(other.slot)
    one.keeper.lost("second")
    assert one.keeper.next_frame(within(0.3)) is None
    slots.revoke(frame.slot)
    assert first_ok(one.keeper).slot // PER_BANK == frame.slot // PER_BANK


def test_what_the_office_does_not_return_is_taken_back_when_the_camera_waits_for_it(folder, kept, slots):
    one = kept(replay(folder))
    lender = Lender(slots, most=4, take_back=one.keeper.release)
    point = Viewpoint(name="cam", keeper=one.keeper, slots=slots, lender=lender)
    for reason in ("first", "second"):
        lender.lend(first_ok(one.keeper).slot)
        one.keeper.lost(reason)
    began = time.monotonic()
    cameras = Viewpoints([point])
    wait_for(lambda: cameras.collect() or one.keeper.up)
    assert time.monotonic() - began > STARVED_NS / 1e9, "the office had its time"
    assert lender.given_up == 2
    assert first_ok(one.keeper).status is FrameStatus.OK


def test_the_keeper_waits_for_a_camera_that_is_not_there_yet(tmp_path, parts, kept):
    one = kept(replay(tmp_path / "later"))
    assert one.keeper.next_frame(within(0.3)) is None
    assert [up for up, _ in one.changes] == [False]
    (tmp_path / "later").mkdir()
    cv2.imwrite(str(tmp_path / "later" / "a.png"), parts[0])
    assert first_ok(one.keeper).status is FrameStatus.OK
    assert [up for up, _ in one.changes] == [False, True]


def test_counters_go_on_over_a_reopening(sim, kept):
    one = kept(gige(sim))
    for _ in range(5):
        one.keeper.release(next_of(one.keeper).slot)
    before = one.keeper.counters()["n_completed_buffers"]
    one.keeper.lost("the test says so")
    one.keeper.release(first_ok(one.keeper).slot)
    assert one.keeper.counters()["n_completed_buffers"] > before >= 5


def test_stop_is_bounded_with_a_dead_camera(sim, kept):
    one = kept(gige(sim, silence_ms=200))
    one.keeper.release(first_ok(one.keeper).slot)
    sim.freeze()
    one.keeper.lost("the test says so")
    began = time.monotonic()
    one.keeper.stop(1)
    assert time.monotonic() - began < 1 + SLACK_S
    assert one.keeper.next_frame(time.monotonic_ns() + 10 * NS_PER_MS) is None
    sim.thaw()
