import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeqc.office.books import ImagesGone, ImageStored
from edgeqc.office.images import ImageStore, path_of
from edgeqc.office.png import encode_png
from edgeqc.records import Cause, Defect, Ledger, PartRecord, Trigger, Verdict
from edgeqc.settings import ArchiveSettings, ImageRules
from edgeqc.shm.slots import FrameSlots

SHAPE = (480, 640)
PATIENCE_S = 20.0
WALL_NS = 1_795_335_330_123_456_789


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "not within the time a loaded box needs"
        time.sleep(0.005)  # the store's thread has to do it


class Station:
    """Lends slots as a station does."""

    def __init__(self, run_dir: Path, *, map_shape=(1, 1)) -> None:
        self.slots = FrameSlots.create(run_dir / "slots-top", per_bank=4, shape=SHAPE, map_shape=map_shape)
        self.sequence = 0

    def part(self, verdict: Verdict = Verdict.REJECT, *, seed: int | None = None) -> PartRecord:
        """A part whose picture (noise: PNG cannot make it small) is in a slot, lent."""
        self.sequence += 1
        slot = self.sequence % self.slots.count
        rng = np.random.default_rng(self.sequence if seed is None else seed)
        self.slots.pixels(slot)[:] = rng.integers(0, 256, SHAPE, np.uint8)
        self.slots.map(slot)[:] = self.sequence % 256
        return PartRecord(
            station="top",
            trigger=Trigger(sequence=self.sequence, part_id="P", at_ns=1, wall_ns=WALL_NS),
            frame_id=1,
            verdict=verdict,
            cause=Cause.OK if verdict is Verdict.PASS else Cause.DEFECT,
            score=math.nan,
            threshold=0.5,
            ledger=Ledger(trigger_ns=1),
            deadline_ns=2,
            recipe="r",
            model_digest=bytes(32),
            slot=slot,
            lease=self.slots.lend(slot),
        )


@pytest.fixture
def station(tmp_path) -> Iterator[Station]:
    made = Station(tmp_path)
    yield made
    made.slots.close()


@contextmanager
def store(folder: Path, *, start: bool = True, rules: ImageRules | None = None, **settings_):
    told: list = []
    made = ImageStore(
        folder, folder, ArchiveSettings(disk_free_mb=0, **settings_), {"top": rules or ImageRules()}, told.append
    )
    if start:
        made.start()
    try:
        yield made, told
    finally:
        if not made.alive:
            made.start()
        made.stop(PATIENCE_S)


def stored(folder: Path) -> list[str]:
    return sorted((file.name for file in folder.glob("images/*/*.png")), key=lambda name: (len(name), name))


def test_an_image_is_stored_losslessly_and_its_slot_given_back(tmp_path, station):
    record = station.part()
    before = station.slots.pixels(record.slot).copy()
    with store(tmp_path) as (images, told):
        path = images.take(record)
        assert station.slots.returned(record.slot)
        station.slots.pixels(record.slot)[:] = 0
        until(lambda: images.counts.stored == 1)
    assert path == path_of(record) == "images/2026-11-22/top-1.png"
    assert np.array_equal(cv2.imread(str(tmp_path / path), cv2.IMREAD_UNCHANGED), before)
    (news,) = told
    assert news == ImageStored(path=path, station="top", sequence=1, size=(tmp_path / path).stat().st_size, ring=False)
    assert not list(tmp_path.glob("images/*/.*"))


def test_a_defect_map_is_stored_beside_its_image(tmp_path):
    station = Station(tmp_path, map_shape=(24, 32))
    record = station.part()
    with store(tmp_path) as (images, _):
        path = images.take(record)
        until(lambda: images.counts.stored == 1)
    station.slots.close()
    found = cv2.imread(str(tmp_path / path).replace(".png", ".map.png"), cv2.IMREAD_UNCHANGED)
    assert found.shape == (24, 32)
    assert (found == 1).all()


def test_a_part_that_was_judged_bad_is_stored_with_map_and_defects_drawn_in(tmp_path):
    station = Station(tmp_path, map_shape=(24, 32))
    defect = Defect(name="scratch", score=0.9, x_px=200, y_px=100, width_px=40, height_px=60)
    bad = replace(station.part(), defects=(defect,))
    station.slots.pixels(bad.slot)[:] = 120
    station.slots.map(bad.slot)[:] = 0
    station.slots.map(bad.slot)[5:8, 10:12] = 255  # cells of 20 px: x 200..240, y 100..160
    late = replace(station.part(), cause=Cause.LATE)
    with store(tmp_path) as (images, _):
        path = tmp_path / images.take(bad)
        other = tmp_path / images.take(late)
        until(lambda: images.counts.stored == 2)
        assert images.bytes == sum(file.stat().st_size for file in tmp_path.glob("images/*/*.png"))
    found = cv2.imread(str(path.with_suffix(".overlay.png")))
    assert found.shape == (*SHAPE, 3)
    assert abs(int(found[20, 20].max()) - 120) <= 3  # far away the picture is as it was
    assert found[20, 20].min() == found[20, 20].max()
    blue, _, red = (int(value) for value in found[130, 220])
    assert red > blue + 60
    assert tuple(found[99, 220]) == (0, 0, 255)
    assert not other.with_suffix(".overlay.png").exists()
    station.slots.close()


def test_overlay_goes_with_its_image(tmp_path):
    station = Station(tmp_path, map_shape=(24, 32))
    with store(tmp_path, images_mb=1) as (images, _):
        for _ in range(6):
            images.take(station.part())
        until(lambda: images.counts.deleted >= 4)
        until(lambda: images.idle)
    names = stored(tmp_path)
    plain = [name for name in names if name.count(".") == 1]
    assert len(names) == 3 * len(plain)
    station.slots.close()


def test_a_lapsed_lease_is_given_up_and_counted(tmp_path, station):
    record = station.part()
    station.slots.revoke(record.slot)
    with store(tmp_path) as (images, told):
        assert images.take(record) is None
        assert images.counts.given_up == 1
    assert told == []


def test_an_image_read_a_second_time_is_found_again(tmp_path, station):
    record = station.part()
    with store(tmp_path) as (images, _):
        path = images.take(record)
        until(lambda: images.counts.stored == 1)
        assert images.take(record) == path
        assert images.counts.given_up == 0


def test_a_slow_disk_costs_images_and_never_a_slot(tmp_path, station):
    with store(tmp_path, start=False) as (images, _):
        records = []
        for _ in range(60):
            record = station.part(seed=1)
            images.take(record)
            records.append(record)
            assert station.slots.returned(record.slot)
        kept = (12 << 20) // (SHAPE[0] * SHAPE[1])
        assert images.counts.given_up == 60 - kept
    assert images.counts.stored == kept


def test_slots_of_a_station_that_came_back_with_other_frames_are_found(tmp_path, station):
    with store(tmp_path) as (images, _):
        assert images.take(station.part()) is not None
        again = FrameSlots.create(tmp_path / "slots-top", per_bank=4, shape=(64, 64))
        again.pixels(0)[:] = 7
        record = station.part()
        record = PartRecord(
            **{name: getattr(record, name) for name in record.__slots__ if name not in {"slot", "lease"}},
            slot=0,
            lease=again.lend(0),
        )
        path = images.take(record)
        until(lambda: images.counts.stored == 2)
        again.close()
    assert cv2.imread(str(tmp_path / path), cv2.IMREAD_UNCHANGED).shape == (64, 64)


def test_without_slots_the_image_is_given_up(tmp_path, station):
    record = station.part()
    (tmp_path / "slots-top").unlink()
    with store(tmp_path) as (images, _):
        assert images.take(record) is None


def test_the_oldest_images_go_when_the_budget_is_used_up(tmp_path, station):
    with store(tmp_path, images_mb=1) as (images, told):
        for count in range(1, 11):
            images.take(station.part())
            until(lambda count=count: images.counts.stored == count)
        until(lambda: images.idle and images.bytes <= 1 << 20)
    assert stored(tmp_path) == ["top-8.png", "top-9.png", "top-10.png"]
    gone = [path for news in told if isinstance(news, ImagesGone) for path in news.paths]
    assert gone == [f"images/2026-11-22/top-{number}.png" for number in range(1, 8)]
    assert sum(file.stat().st_size for file in tmp_path.glob("images/*/*")) == images.bytes


def test_the_budget_holds_over_a_restart(tmp_path, station):
    with store(tmp_path) as (images, _):
        for _ in range(8):
            images.take(station.part())
        until(lambda: images.counts.stored == 8)
        before = images.bytes
    (tmp_path / "images" / "2026-11-22" / ".top-99.png.part").write_bytes(b"half")
    with store(tmp_path, images_mb=1) as (images, _):
        until(lambda: 0 < images.bytes <= 1 << 20)
    assert before > 1 << 20
    assert stored(tmp_path)[-1] == "top-8.png"
    assert not list(tmp_path.glob("images/*/.*"))


def test_only_the_newest_stay_of_those_kept_for_being_new(tmp_path, station):
    rules = ImageRules(rejects=True, every_nth_pass=4, newest=3)
    with store(tmp_path, rules=rules) as (images, _):
        images.take(station.part(Verdict.REJECT))
        for count in range(2, 12):
            images.take(station.part(Verdict.PASS))
            until(lambda count=count: images.counts.stored == count)
    # 1 is a reject; passes 2, 6 and 10 are every fourth; of the others the three newest stay.
    assert stored(tmp_path) == [
        "top-1.png",
        "top-2.png",
        "top-6.png",
        "top-8.png",
        "top-9.png",
        "top-10.png",
        "top-11.png",
    ]


def test_a_new_archive_learns_what_is_there_and_forgets_what_is_not(tmp_path, station):
    with store(tmp_path) as (images, _):
        images.take(station.part())
        until(lambda: images.counts.stored == 1)
    with store(tmp_path) as (images, told):
        images.reconcile({"images/2026-11-21/top-9.png": False})
        until(lambda: len(told) == 2)
    assert ImagesGone(paths=["images/2026-11-21/top-9.png"]) in told
    assert [news.sequence for news in told if isinstance(news, ImageStored)] == [1]


def test_a_disk_that_does_not_take_an_image_costs_that_image(tmp_path, station):
    (tmp_path / "images").write_text("no folder")
    with store(tmp_path) as (images, told):
        images.take(station.part())
        until(lambda: images.counts.failed == 1)
        (tmp_path / "images").unlink()
        images.take(station.part())
        until(lambda: images.counts.stored == 1)
    assert [news.sequence for news in told] == [2]


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_png_is_what_it_was_made_of(pixels):
    found = cv2.imdecode(np.frombuffer(encode_png(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(found, pixels)
