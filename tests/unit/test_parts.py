"""Simulated parts: same seed, same part; a flaw is where the mask says; good parts have none."""

import cv2
import numpy as np
import pytest

from edgeqc.errors import EdgeqcError
from edgeqc.sim.images import load_grey, load_indexed, pad_onto
from edgeqc.sim.parts import Flaw, draw_part, draw_set

SMALL = (256, 320)


def test_same_seed_draws_the_same_parts():
    first, again = (list(draw_set(6, seed=11, defect_ratio=0.5, shape=SMALL)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.mask, two.mask)
        assert one.flaw == two.flaw


def test_part_does_not_depend_on_what_was_drawn_before():
    *_, last = draw_set(4, seed=7, defect_ratio=1.0, shape=SMALL)
    (alone,) = draw_set(1, seed=7, defect_ratio=1.0, shape=SMALL, first=3)
    assert np.array_equal(last.image, alone.image)


def test_other_seed_draws_other_parts():
    (one,), (two,) = (list(draw_set(1, seed=seed, shape=SMALL)) for seed in (1, 2))
    assert not np.array_equal(one.image, two.image)


@pytest.mark.parametrize("flaw", Flaw)
@pytest.mark.parametrize("shape", [SMALL, (1024, 1280), (448, 640)])
def test_flaw_changes_the_image_where_the_mask_says(flaw, shape):
    part = draw_part(np.random.default_rng(5), shape, flaw)
    marked = part.mask > 127
    assert part.image.shape == part.mask.shape == shape
    assert part.flaw is flaw
    assert 20 * (shape[0] / 1024) ** 2 < marked.sum() < 0.05 * marked.size
    around = (cv2.dilate(part.mask, np.ones((15, 15), np.uint8)) > 127) & ~marked
    inside, outside = part.image[marked].astype(float), part.image[around].astype(float)
    assert abs(inside.mean() - outside.mean()) > 1 or inside.std() > outside.std()


def test_good_part_has_an_empty_mask():
    part = draw_part(np.random.default_rng(5), SMALL)
    assert part.flaw is None
    assert not part.mask.any()


def test_defect_ratio_is_kept():
    flawed = sum(part.flaw is not None for part in draw_set(200, seed=3, defect_ratio=0.25, shape=(64, 80)))
    assert 30 <= flawed <= 70


def test_part_stands_out_from_the_belt():
    for part in draw_set(8, seed=9, shape=SMALL):
        assert np.median(part.image[:, :10]) < 60
        assert np.percentile(part.image, 80) > np.median(part.image[:, :10]) + 40


def test_index_gives_paths_and_truth_of_the_split(tmp_path):
    rows = ["path,label,mask,split,group", "a.png,free,,train,1", "b.png,crack,b_mask.png,test,2", "c.png,free,,test,3"]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    assert load_indexed(tmp_path, "test") == [(tmp_path / "b.png", True), (tmp_path / "c.png", False)]


@pytest.mark.parametrize("text", ["path,label,mask,split,group\na.png,free,,train,1\n", "path,label\na.png,free\n"])
def test_index_without_rows_of_the_split_is_refused(tmp_path, text):
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(EdgeqcError, match=r"index\.csv"):
        load_indexed(tmp_path, "test")


def test_missing_index_and_unreadable_image_are_refused(tmp_path):
    with pytest.raises(EdgeqcError, match=r"index\.csv"):
        load_indexed(tmp_path, "test")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(EdgeqcError, match=r"a\.png"):
        load_grey(tmp_path / "a.png")


def test_padding_keeps_the_image_and_surrounds_it_with_black():
    image = np.random.default_rng(0).integers(1, 256, (30, 41), dtype=np.uint8)
    frame = pad_onto(image, (48, 64))
    assert np.array_equal(frame[9:39, 11:52], image)
    assert int(frame.astype(int).sum()) == int(image.astype(int).sum())


def test_image_larger_than_the_frame_is_refused():
    with pytest.raises(EdgeqcError, match="41x30 does not fit on a frame of 40x48"):
        pad_onto(np.zeros((30, 41), np.uint8), (48, 40))
