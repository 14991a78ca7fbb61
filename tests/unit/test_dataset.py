"""Labelled pictures: four forms, groups that stay together, and every bad input told."""

import csv
import json
import struct
import zlib

import cv2
import numpy as np
import pytest

from edgeqc.errors import EdgeqcError
from edgeqc.train.dataset import Picture, Shape, read_dataset
from edgeqc.train.examine import examine, mask_of
from edgeqc.train.splits import divided, folds_of, with_split, write_split


def _image(seed=0, shape=(64, 80)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 220, (8, 10)).astype(np.uint8)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _put(path, image=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), _image(seed) if image is None else image)
    return path


def _index(folder, rows, columns=("path", "label", "mask", "group", "split")):
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return folder


def test_folders_are_classes_with_masks_beside_them(tmp_path):
    for seed, name in enumerate(("train/good/a.png", "train/OK/b.png", "test/Deep Scratch/c.png")):
        _put(tmp_path / name, seed=seed)
    _put(tmp_path / "ground_truth/Deep Scratch/c_mask.png")
    found = read_dataset(tmp_path)
    assert [(one.label, one.split) for one in found] == [("good", "train"), ("good", "train"), ("deep-scratch", "test")]
    assert found[2].mask == tmp_path / "ground_truth/Deep Scratch/c_mask.png"


def test_index_gives_masks_groups_and_splits(tmp_path):
    _index(tmp_path, [["a.png", "free", "", "7", "train"], ["b.png", "crack", "b_mask.png", "8", "test"]])
    good, bad = read_dataset(tmp_path)
    assert (good.label, good.group, good.split, good.is_marked) == ("good", "7", "train", True)
    assert (bad.label, bad.mask, bad.is_defect) == ("crack", tmp_path / "b_mask.png", True)


def test_coco_boxes_and_polygons_become_masks(tmp_path):
    _put(tmp_path / "images/a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 5, "name": "Dent"}],
        "annotations": [
            {"image_id": 1, "category_id": 5, "bbox": [10, 20, 8, 4]},
            {"image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1], "segmentation": [[30, 30, 40, 30, 40, 40, 30, 40]]},
        ],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(document))
    bad, good = read_dataset(tmp_path)
    assert (bad.label, good.label, bad.split) == ("dent", "good", "train")
    mask = mask_of(bad, (64, 80)) > 0
    assert mask[20:24, 10:18].all()
    assert mask[30:41, 30:41].all()
    assert mask.sum() == 8 * 4 + 11 * 11


@pytest.mark.parametrize(
    ("change", "told"),
    [({"image_id": 9}, "image_id 9"), ({"category_id": 9}, "category_id 9"), ({"bbox": [1]}, "is no COCO file")],
)
def test_coco_that_points_nowhere_is_told(tmp_path, change, told):
    mark = {"image_id": 1, "category_id": 5, "bbox": [1, 1, 2, 2]} | change
    document = {"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 5, "name": "x"}], "annotations": [mark]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    with pytest.raises(EdgeqcError, match=told):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ([[1, 1, 9, 1, 9]], r"labels\.json: annotations\[0\]: a polygon of 5 numbers"),
        ([[1, 1, 9, 1, 9, 9], []], r"labels\.json: annotations\[0\]: a polygon of 0 numbers"),
        ([[1, 1, float("nan"), 1, 9, 9]], r"annotations\[0\]: a place that is no number"),
        ([[1, 1, float("inf"), 1, 9, 9]], r"annotations\[0\]: a place that is no number"),
    ],
)
def test_coco_polygon_that_cannot_be_drawn_is_told(tmp_path, segmentation, told):
    mark = {"image_id": 1, "category_id": 5, "segmentation": segmentation}
    document = {"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 5, "name": "x"}], "annotations": [mark]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    with pytest.raises(EdgeqcError, match=told):
        read_dataset(tmp_path)


def test_coco_box_that_is_no_place_is_told(tmp_path):
    mark = {"image_id": 1, "category_id": 5, "bbox": [1, float("nan"), 2, 2]}
    document = {"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 5, "name": "x"}], "annotations": [mark]}
    (tmp_path / "labels.json").write_text(json.dumps(document))
    with pytest.raises(EdgeqcError, match=r"annotations\[0\]"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("image", [{"id": 7}, {"id": 7, "file_name": None}, {"id": 7, "file_name": ""}])
def test_coco_image_without_a_file_is_told(tmp_path, image):
    (tmp_path / "labels.json").write_text(json.dumps({"images": [image], "categories": [], "annotations": []}))
    with pytest.raises(EdgeqcError, match=r"labels\.json: images\[0\]: id 7 has no file_name"):
        read_dataset(tmp_path)


_VOC = "<annotation><filename>a.png</filename>{}</annotation>"
_OBJECT = (
    "<object><name>pit</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>{}</xmax><ymax>24</ymax></bndbox></object>"
)


def test_voc_boxes_are_counted_from_one(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(_VOC.format(_OBJECT.format(18)))
    (tmp_path / "Annotations/b.xml").write_text(_VOC.format(""))
    bad, good = read_dataset(tmp_path)
    assert (bad.label, good.label, bad.path) == ("pit", "good", tmp_path / "JPEGImages/a.png")
    mask = mask_of(bad, (64, 80)) > 0
    assert mask[20:24, 10:18].all()
    assert mask.sum() == 32


def test_voc_box_that_is_no_place_is_told(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(_VOC.format(_OBJECT.format("nan")))
    with pytest.raises(EdgeqcError, match=r"a\.xml: a place that is no number"):
        read_dataset(tmp_path)


def test_voc_box_of_no_size_is_told(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(_VOC.format(_OBJECT.format(11)))
    with pytest.raises(EdgeqcError, match=r"a\.xml.*is empty"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        ([["a.png", "x"]], ("file", "kind"), "needs path and label"),
        ([["a.png", "good"], ["", "good"]], ("path", "label"), "index.csv:3"),
        ([], ("path", "label"), "no labelled pictures"),
    ],
)
def test_bad_index_is_told(tmp_path, rows, columns, told):
    with pytest.raises(EdgeqcError, match=told):
        read_dataset(_index(tmp_path, rows, columns))


def test_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(EdgeqcError, match="is no folder"):
        read_dataset(tmp_path / "nowhere")


def test_group_is_what_the_pattern_matches(tmp_path):
    for name in ("good/t12_1.png", "good/t12_2.png", "bad/t13_1.png"):
        _put(tmp_path / name)
    found = read_dataset(tmp_path, group_by=r"(t\d+)_")
    assert [one.group for one in found] == ["t13", "t12", "t12"]
    with pytest.raises(EdgeqcError, match="--group-by"):
        read_dataset(tmp_path, group_by="(")


def _findings(pictures):
    return {(one.path.name, one.what): one.left_out for one in examine(pictures).findings}


def _only(picture):
    found = examine([picture])
    assert len(found.findings) == 1, found.findings
    assert found.findings[0].left_out
    assert not found.pictures
    return found.findings[0].what


def _cmyk(path):
    """The header of a JPEG with four components, around what OpenCV wrote for one."""
    grey = cv2.imencode(".jpg", _image())[1].tobytes()
    at = grey.index(b"\xff\xc0")
    path.write_bytes(grey[: at + 9] + b"\x04" + grey[at + 10 :])


def test_unreadable_pictures_are_listed(tmp_path):
    empty, torn, there = tmp_path / "empty.png", tmp_path / "torn.png", _put(tmp_path / "a.png")
    empty.write_bytes(b"")
    torn.write_bytes(there.read_bytes()[:60])
    for path, told in ((empty, "empty"), (torn, "cannot be read"), (tmp_path / "gone.png", "cannot be opened")):
        assert told in _only(Picture(path=path, label="good"))


def test_pictures_no_line_camera_makes_are_listed(tmp_path):
    deep = _put(tmp_path / "deep.png", _image().astype(np.uint16) * 257)
    small = _put(tmp_path / "small.png", _image()[:20])
    flat = _put(tmp_path / "flat.png", np.full((64, 80), 9, np.uint8))
    for path, told in ((deep, "16 bits"), (small, "80x20 px, under 32"), (flat, "one level")):
        assert told in _only(Picture(path=path, label="good"))


def test_cmyk_is_listed(tmp_path):
    _cmyk(tmp_path / "print.jpg")
    what = _only(Picture(path=tmp_path / "print.jpg", label="good"))
    assert "CMYK" in what or "cannot be read" in what


def test_grey_and_colour_pictures_are_taken(tmp_path):
    grey = _put(tmp_path / "grey.png", _image(1))
    colour = _put(tmp_path / "colour.png", cv2.cvtColor(_image(2), cv2.COLOR_GRAY2BGR))
    found = examine([Picture(path=path, label="good") for path in (grey, colour)])
    assert not found.findings
    assert found.sizes == [(64, 80), (64, 80)]


def test_turned_picture_is_put_upright_and_noted(tmp_path):
    tiff = struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 0x112, 3, 1, 6) + b"\0\0\0\0"  # one entry: orientation 6
    jpeg = cv2.imencode(".jpg", _image())[1].tobytes()
    block = b"Exif\0\0" + tiff
    turned = tmp_path / "turned.jpg"
    turned.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:])
    found = examine([Picture(path=turned, label="good")])
    assert found.sizes == [(80, 64)]
    assert [one.left_out for one in found.findings] == [False]
    assert "EXIF" in found.findings[0].what


def test_mask_that_does_not_fit_is_listed(tmp_path):
    path = _put(tmp_path / "a.png")
    masks = {
        "small.png": (np.full((32, 40), 255, np.uint8), "40x32 px, the picture 80x64"),
        "blank.png": (np.zeros((64, 80), np.uint8), "is empty"),
    }
    for name, (mask, told) in masks.items():
        _put(tmp_path / name, mask)
        assert told in _only(Picture(path=path, label="crack", mask=tmp_path / name))
    assert "cannot be read" in _only(Picture(path=path, label="crack", mask=tmp_path / "gone.png"))


def test_box_outside_the_picture_is_listed(tmp_path):
    shape = Shape(label="dent", box=(200, 5, 10, 10))
    assert "outside" in _only(Picture(path=_put(tmp_path / "a.png"), label="dent", shapes=(shape,)))


def test_png_with_a_broken_check_sum_is_listed_or_read_whole(tmp_path):
    content = bytearray(_put(tmp_path / "a.png").read_bytes())
    at = content.index(b"IDAT") + 20
    content[at] ^= 0xFF
    assert zlib.crc32(bytes(content))
    (tmp_path / "b.png").write_bytes(bytes(content))
    found = examine([Picture(path=tmp_path / "b.png", label="good")])
    assert len(found.findings) + len(found.pictures) == 1


def test_same_picture_in_both_splits_is_left_out_of_training(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2), ("d.png", 3)):
        _put(tmp_path / name, seed=seed)
    rows = [["a.png", "good", "", "", "train"], ["b.png", "good", "", "", "test"]]
    rows += [["c.png", "good", "", "", "train"], ["d.png", "good", "", "", "test"]]
    found = examine(read_dataset(_index(tmp_path, rows)))
    assert [one.path.name for one in found.pictures] == ["b.png", "c.png", "d.png"]
    whats = [one.what for one in found.findings]
    assert any("is the same as" in what for what in whats)
    assert any("shares its group" in what for what in whats)


def test_by_picture_what_both_splits_show_is_told_and_stays(tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        _put(tmp_path / name, seed=seed)
    rows = [
        ["a.png", "good", "", "g", "train"],
        ["b.png", "good", "", "g", "test"],
        ["c.png", "good", "", "g", "train"],
    ]
    found = examine(read_dataset(_index(tmp_path, rows)), by_picture=True)
    assert len({one.group for one in found.pictures}) == 3
    assert [(one.path.name, one.left_out) for one in found.findings] == [("b.png", False)]


def test_nearly_the_same_pictures_share_a_group(tmp_path):
    for name, seed in (("a.png", 1), ("c.png", 2), ("d.png", 3)):
        _put(tmp_path / name, seed=seed)
    cv2.imwrite(str(tmp_path / "b.jpg"), _image(1), [cv2.IMWRITE_JPEG_QUALITY, 60])
    rows = [[name, "good", "", "", ""] for name in ("a.png", "b.jpg", "c.png", "d.png")]
    groups = {one.path.name: one.group for one in examine(read_dataset(_index(tmp_path, rows))).pictures}
    assert groups["a.png"] == groups["b.jpg"]
    assert len(set(groups.values())) == 3


def test_same_picture_with_two_labels_is_told(tmp_path):
    for name in ("a.png", "b.png"):
        _put(tmp_path / name)
    found = _findings([Picture(path=tmp_path / "a.png", label="good"), Picture(path=tmp_path / "b.png", label="crack")])
    assert any("labelled good" in what for _, what in found)


def _set(counts):
    return [
        Picture(path=f"{label}{index}", label=label, group=f"{label}{index // 3}")
        for label, count in counts.items()
        for index in range(count)
    ]


def test_no_group_is_in_two_folds_and_kinds_are_spread():
    pictures = _set({"good": 90, "crack": 18, "dent": 12})
    folds = folds_of(pictures, 3, seed=1)
    for label, least in (("good", 8), ("crack", 2), ("dent", 1)):
        groups = {one.group for one in pictures if one.label == label}
        for fold in range(3):
            assert sum(folds[group] == fold for group in groups) >= least
    assert folds == folds_of(pictures, 3, seed=1)


def test_quarter_is_the_test_where_nobody_split():
    found = with_split(_set({"good": 120, "crack": 24}), seed=1)
    tested = [one for one in found if one.split == "test"]
    assert 0.2 <= len(tested) / len(found) <= 0.3
    assert {one.label for one in tested} == {"good", "crack"}
    assert not {one.group for one in tested} & {one.group for one in found if one.split == "train"}


def test_half_a_split_is_refused(tmp_path):
    rows = [["a.png", "good", "", "", "train"], ["b.png", "good", "", "", ""]]
    with pytest.raises(EdgeqcError, match="name all or none"):
        with_split(read_dataset(_index(tmp_path, rows)), seed=1)


def test_a_split_of_another_name_is_neither_learned_from_nor_tested_on(tmp_path):
    rows = [[f"{split}.png", "good", "", "", split] for split in ("train", "test", "val", "monday")]
    learned, tested, aside = divided(with_split(read_dataset(_index(tmp_path, rows)), seed=1))
    assert [[one.split for one in some] for some in (learned, tested, aside)] == [
        ["train"],
        ["test"],
        ["val", "monday"],
    ]
    write_split(tmp_path / "split.csv", learned + tested)
    assert [one.split for one in read_dataset(tmp_path / "split.csv")] == ["train", "test"]
