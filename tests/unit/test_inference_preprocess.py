"""Preprocessing: equal to a plain float computation, one write into the engine's memory, nothing else touched."""

import tracemalloc

import cv2
import numpy as np
import pytest

from edgeqc.errors import EngineError
from edgeqc.inference.manifest import Fit, Normalise, Preprocessing
from edgeqc.inference.preprocess import Locator, Placement, Preprocess
from edgeqc.settings import RegionMode, RegionSettings
from edgeqc.sim.parts import draw_set

FRAME = (240, 320)
INPUT = (64, 96)


def _noise(shape, seed=0):
    return cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), (0, 0), 3)


def _into(pixels, spec, region=None, input_shape=INPUT):
    target = np.full((1, 1, *input_shape), np.nan, np.float32)
    preprocess = Preprocess(spec, input_shape, pixels.shape, region or RegionSettings())
    return preprocess.into(pixels, target), target[0, 0]


def _box(x, y, width, height):
    return RegionSettings(mode=RegionMode.FIXED, x_px=x, y_px=y, width_px=width, height_px=height)


def _naive(region, spec, size):
    """As one would write it: halve while twice too large, resize, scale, all in float."""
    values = region.astype(np.float64)
    while values.shape[0] // 2 >= size[0] and values.shape[1] // 2 >= size[1]:
        rows, columns = values.shape[0] // 2 * 2, values.shape[1] // 2 * 2
        values = values[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3))
    values = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    gain = spec.gain / values.mean() if spec.normalise is Normalise.MEAN else spec.gain
    return values * gain + spec.offset


@pytest.mark.parametrize("normalise", Normalise)
@pytest.mark.parametrize("region", [RegionSettings(), _box(17, 33, 201, 155), _box(3, 5, 40, 30)])
def test_stretched_region_equals_a_plain_float_computation(normalise, region):
    spec = Preprocessing(fit=Fit.STRETCH, normalise=normalise, gain=0.5, offset=-0.25)
    pixels = _noise(FRAME)
    placement, found = _into(pixels, spec, region)
    y, x = placement.y_px, placement.x_px
    box = pixels[y : y + placement.height_px, x : x + placement.width_px]
    level = spec.gain / (box.mean() if normalise is Normalise.MEAN else 1)
    assert np.abs(found - _naive(box, spec, INPUT)).max() < 2.6 * level  # grey levels are rounded once per resize


def test_letterbox_keeps_the_aspect_and_fills_the_rest():
    spec = Preprocessing(fill=40, gain=1.0, offset=0.0)
    pixels = _noise(FRAME)
    placement, found = _into(pixels, spec, _box(10, 20, 200, 200))
    assert (placement.width, placement.height) == (64, 64)
    assert (placement.left, placement.top) == (16, 0)
    assert (found[:, :16] == 40).all()
    assert (found[:, 80:] == 40).all()
    assert np.abs(found[:, 16:80] - _naive(pixels[20:220, 10:210], spec, (64, 64))).max() < 2.6


def test_small_region_is_enlarged_no_further_than_max_scale():
    placement, _ = _into(_noise(FRAME), Preprocessing(max_scale=0.5), _box(0, 0, 60, 40))
    assert (placement.width, placement.height) == (30, 20)


def test_fill_is_restored_when_the_region_shrinks():
    spec = Preprocessing(fill=7, gain=1.0, offset=0.0, max_scale=1.0)
    region = RegionSettings(mode=RegionMode.LOCATE)
    target = np.zeros((1, 1, *INPUT), np.float32)
    preprocess = Preprocess(spec, INPUT, FRAME, region)
    for size in (60, 30):
        pixels = np.zeros(FRAME, np.uint8)
        pixels[100 : 100 + size, 100 : 100 + size] = 200
        placement = preprocess.into(pixels, target)
    inside = np.zeros(INPUT, bool)
    inside[placement.top : placement.top + placement.height, placement.left : placement.left + placement.width] = True
    assert (target[0, 0][~inside] == 7).all()
    assert inside.sum() < 40 * 40


def test_fill_with_the_mean_makes_no_edge():
    spec = Preprocessing(fill="mean", normalise=Normalise.MEAN, gain=1.0, offset=-1.0)
    placement, found = _into(_noise(FRAME), spec, _box(10, 20, 200, 200))
    assert placement.left == 16
    assert np.abs(found[:, :16]).max() < 0.01
    assert np.abs(found[:, 80:]).max() < 0.01
    assert np.abs(found[:, 16:80]).max() > 0.1


def test_writes_only_inside_the_engine_input():
    whole = np.full((3, 1, 1, *INPUT), -5, np.float32)
    preprocess = Preprocess(Preprocessing(), INPUT, FRAME, RegionSettings())
    pixels = _noise(FRAME)
    before = pixels.copy()
    preprocess.into(pixels, whole[1])
    assert (whole[[0, 2]] == -5).all()
    assert (whole[1] >= 0).all()
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(
    "target",
    [
        np.zeros((1, 1, 64, 64), np.float32),
        np.zeros((1, 1, *INPUT), np.float64),
        np.zeros((1, 1, *INPUT), np.uint8),
        np.zeros(INPUT, np.float32),
    ],
)
def test_engine_input_of_other_shape_or_type_is_refused(target):
    with pytest.raises(EngineError, match="engine input"):
        Preprocess(Preprocessing(), INPUT, FRAME, RegionSettings()).into(_noise(FRAME), target)


def test_frame_of_another_shape_is_refused():
    preprocess = Preprocess(Preprocessing(), INPUT, FRAME, RegionSettings())
    with pytest.raises(EngineError, match="frame of"):
        preprocess.into(_noise((120, 320)), np.zeros((1, 1, *INPUT), np.float32))


@pytest.mark.parametrize("mode", [RegionMode.FULL, RegionMode.LOCATE])
def test_nothing_of_frame_size_is_allocated(mode):
    (part,) = draw_set(1, seed=4, shape=(1024, 1280))
    spec = Preprocessing(normalise=Normalise.MEAN)
    preprocess = Preprocess(spec, (256, 256), part.image.shape, RegionSettings(mode=mode))
    target = np.zeros((1, 1, 256, 256), np.float32)
    preprocess.into(part.image, target)
    tracemalloc.start()  # numpy and OpenCV's arrays are both traced
    try:
        for _ in range(5):
            preprocess.into(part.image, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < part.image.size / 8


def test_tracemalloc_sees_what_opencv_allocates():
    pixels = _noise(FRAME)
    tracemalloc.start()
    try:
        kept = cv2.resize(pixels, FRAME[::-1])
        assert tracemalloc.get_traced_memory()[1] >= kept.nbytes
    finally:
        tracemalloc.stop()


def _truth(part):
    """Where the part is, from the median of its belt."""
    rows, columns = np.nonzero(cv2.medianBlur(part.image, 5) > 70)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("shape", [(1024, 1280), (512, 640), (448, 640)])
def test_locate_finds_drawn_parts(shape):
    locator = Locator(shape, RegionSettings(mode=RegionMode.LOCATE))
    for part in draw_set(12, seed=21, defect_ratio=0.5, shape=shape):
        x, y, width, height = locator.find(part.image)
        left, top, right, bottom = _truth(part)
        slack = 0.035 * min(shape)  # two steps of the view and the soft edge
        assert left - slack <= x <= left + 2
        assert top - slack <= y <= top + 2
        assert right - 2 <= x + width <= right + slack
        assert bottom - 2 <= y + height <= bottom + slack


def test_locate_finds_a_dark_part_on_a_bright_ground():
    pixels = np.full(FRAME, 220, np.uint8)
    pixels[50:150, 60:200] = 40
    x, y, width, height = Locator(FRAME, RegionSettings(mode=RegionMode.LOCATE, background="bright")).find(pixels)
    assert abs(x - 60) <= 6 and abs(y - 50) <= 6 and abs(x + width - 200) <= 6 and abs(y + height - 150) <= 6  # noqa: PT018 - one fact


def test_locate_adds_the_margin_and_stays_in_the_frame():
    pixels = np.zeros(FRAME, np.uint8)
    pixels[0:100, 60:200] = 200
    region = RegionSettings(mode=RegionMode.LOCATE, margin_px=20)
    x, y, width, height = Locator(FRAME, region).find(pixels)
    assert y == 0
    assert 34 <= x <= 40
    assert 220 <= x + width <= 228
    assert 120 <= height <= 128


def test_part_in_two_pieces_is_one_part():
    pixels = np.zeros(FRAME, np.uint8)
    pixels[50:100, 50:150] = 200
    pixels[110:160, 50:150] = 200
    _, y, _, height = Locator(FRAME, RegionSettings(mode=RegionMode.LOCATE)).find(pixels)
    assert abs(y - 50) <= 6
    assert abs(y + height - 160) <= 6


@pytest.mark.parametrize("seed", range(3))
def test_empty_belt_gives_no_placement_and_leaves_the_input_alone(seed):
    pixels = np.clip(np.random.default_rng(seed).normal(28, 4, FRAME), 0, 255).astype(np.uint8)
    pixels[20:26, 30:36] = 250  # dust
    placement, target = _into(pixels, Preprocessing(), RegionSettings(mode=RegionMode.LOCATE))
    assert not placement.found
    assert np.isnan(target).all()


def test_box_of_the_input_comes_back_as_frame_pixels():
    placement = Placement(
        found=True,
        frame_shape=FRAME,
        x_px=100,
        y_px=40,
        width_px=160,
        height_px=80,
        left=8,
        top=16,
        width=80,
        height=40,
    )
    assert placement.to_frame(8, 16, 88, 56) == (100, 40, 160, 80)
    assert placement.to_frame(18, 26, 28, 36) == (120, 60, 20, 20)
    assert placement.to_frame(0, 0, 96, 64) == (100, 40, 160, 80)
    assert placement.to_frame(0, 0, 4, 4) == (100, 40, 1, 1)


PIXELS = Preprocessing(gain=1.0, offset=0.0)


@pytest.mark.parametrize("region", [RegionSettings(), _box(17, 33, 201, 155), _box(3, 5, 40, 30)])
@pytest.mark.parametrize("fill", [0, 40, "mean"])
def test_grey_levels_are_written_as_they_are_and_the_surround_each_time(region, fill):
    spec = Preprocessing(gain=1.0, offset=0.0, fill=fill)
    placement, numbers = _into(_noise(FRAME), spec, region)
    preprocess = Preprocess(spec, INPUT, FRAME, region)
    for _slot in range(2):  # each slot's memory has another past
        target = np.random.default_rng(_slot).integers(0, 256, (1, *INPUT, 1), dtype=np.uint8)
        assert preprocess.into(_noise(FRAME), target) == placement
        np.testing.assert_array_equal(target[0, :, :, 0], numbers)


@pytest.mark.parametrize("shape", [(1, 1, *INPUT), (1, *INPUT), (1, *INPUT[::-1], 1)])
def test_target_of_pixels_in_another_shape_is_refused(shape):
    with pytest.raises(EngineError, match="engine input is uint8"):
        Preprocess(PIXELS, INPUT, FRAME, RegionSettings()).into(_noise(FRAME), np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("region", "input_shape"),
    [(RegionSettings(), FRAME), (_box(0, 0, 320, 240), FRAME), (_box(0, 40, 320, 64), (64, 320))],
)
def test_region_that_is_the_input_is_found_in_place(region, input_shape):
    pixels = _noise(FRAME)
    preprocess = Preprocess(PIXELS, input_shape, FRAME, region)
    view, placement = preprocess.in_place(pixels)
    assert np.shares_memory(view, pixels)
    assert (view.shape, view.flags.c_contiguous) == ((1, *input_shape, 1), True)
    target = np.zeros(view.shape, np.uint8)
    assert preprocess.into(pixels, target) == placement
    np.testing.assert_array_equal(view, target)


@pytest.mark.parametrize(
    ("region", "input_shape", "spec"),
    [
        (RegionSettings(), INPUT, PIXELS),
        (RegionSettings(mode=RegionMode.LOCATE), FRAME, PIXELS),
        (_box(0, 0, 300, 240), (240, 300), PIXELS),
        (_box(20, 0, 300, 240), (240, 300), PIXELS),
        (RegionSettings(), FRAME, Preprocessing(gain=1.0, offset=0.0, max_scale=0.5)),
        (_box(0, 0, 320, 120), FRAME, PIXELS),
        (_box(0, 0, 320, 120), FRAME, Preprocessing(gain=1.0, offset=0.0, fit=Fit.STRETCH)),
    ],
)
def test_region_that_has_to_be_resized_moved_or_found_is_not_in_place(region, input_shape, spec):
    assert Preprocess(spec, input_shape, FRAME, region).in_place(_noise(FRAME)) is None


def test_frame_with_gaps_or_of_another_size_is_not_in_place():
    preprocess = Preprocess(PIXELS, FRAME, FRAME, RegionSettings())
    assert preprocess.in_place(_noise((FRAME[0], 2 * FRAME[1]))[:, ::2]) is None
    assert preprocess.in_place(_noise((FRAME[0] - 1, FRAME[1]))) is None
