"""Labelled pictures of a folder: one folder per class, an index.csv, COCO or Pascal VOC. Nothing is opened here.

- `index.csv` (or any .csv given itself): path, label; at will mask, group, split and whatever else. Paths are relative.
- COCO: a .json with images, annotations and categories. Pictures without annotations are good.
- Pascal VOC: `Annotations/*.xml` and `JPEGImages/`. Pictures without objects are good.
- Folders: `good/` (or free, ok) and one per kind of defect; at will below `train/` and `test/`; masks in
  `ground_truth/<kind>/` or `masks/<kind>/` under the picture's name, with or without `_mask`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from edgeqc.errors import EdgeqcError

GOOD_LABELS: Final = frozenset({"free", "good", "ok", "normal"})
GOOD: Final = "good"
"""What every one of them is called from here on."""
TRAIN: Final = "train"
"""The split that nets learn from."""
TEST: Final = "test"
"""The split whose figures a training ends with."""
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One marked defect: a box (x, y, width, height) or polygons, in pixels of the picture."""

    label: str
    box: tuple[float, float, float, float] | None = None
    polygons: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One labelled picture."""

    path: Path
    label: str
    """`good`, or the kind of defect; of several kinds the one with most shapes."""
    mask: Path | None = None
    shapes: tuple[Shape, ...] = ()
    group: str = ""
    """Pictures of one part, tray or day share it and are never split; "" = stands alone."""
    split: str = ""
    """train, test or, where nobody said, nothing."""
    part: str = ""
    """Pictures (views, exposures) of one and the same part share it; "" = not known."""

    @property
    def is_defect(self) -> bool:
        """Is the part on this picture bad."""
        return self.label != GOOD

    @property
    def is_marked(self) -> bool:
        """Is it known where the defect is (or that there is none)."""
        return not self.is_defect or self.mask is not None or bool(self.shapes)


def read_dataset(source: Path, *, group_by: str | None = None) -> list[Picture]:
    """All pictures that a folder, or an index in it, tells of.

    `group_by` is a regular expression on the file's path; what its first bracket matches is the group. EdgeqcError says
    which row, file or key is at fault.
    """
    pictures = list(_reader(source))
    if not pictures:
        raise EdgeqcError(f"{source}: holds no labelled pictures; see `edgeqc train vision --help` for the forms")
    if group_by is not None:
        pictures = [replace(picture, group=_matched(group_by, picture.path)) for picture in pictures]
    return [replace(picture, group=picture.group or str(picture.path)) for picture in pictures]


def classes_of(pictures: list[Picture]) -> tuple[str, ...]:
    """The kinds of defect, in the order of the alphabet, as a manifest may say them."""
    return tuple(sorted({picture.label for picture in pictures if picture.is_defect}))


def _reader(source: Path) -> Iterator[Picture]:
    if source.is_file() and source.suffix == ".csv":
        return _csv(source)
    if source.is_file() and source.suffix == ".json":
        return _coco(source)
    if not source.is_dir():
        raise EdgeqcError(f"{source}: is no folder, .csv or .json")
    if (source / "index.csv").exists():
        return _csv(source / "index.csv")
    if any((source / "Annotations").glob("*.xml")):
        return _voc(source)
    coco = [file for file in sorted([*source.glob("*.json"), *source.glob("annotations/*.json")]) if _is_coco(file)]
    if coco:
        return (picture for file in coco for picture in _coco(file))
    return _folders(source)


def _label(text: str) -> str:
    """As the manifest's classes are written: small letters, digits, dot, dash, underline."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.strip().lower()).strip("-._") or "defect"
    return GOOD if plain in GOOD_LABELS else plain[:63]


def _matched(pattern: str, path: Path) -> str:
    try:
        found = re.search(pattern, str(path))
    except re.error as exc:
        raise EdgeqcError(f"--group-by {pattern}: {exc}") from exc
    if found is None:
        return ""
    return found[1] if found.groups() else found[0]


def _csv(index: Path) -> Iterator[Picture]:
    folder = index.parent
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise EdgeqcError(f"{index}: {exc}") from exc
    if rows and not {"path", "label"} <= rows[0].keys():
        raise EdgeqcError(f"{index}: has the columns {', '.join(rows[0])}; needs path and label")
    for line, row in enumerate(rows, 2):
        if not row["path"] or not row["label"]:
            raise EdgeqcError(f"{index}:{line}: path or label is empty")
        yield Picture(
            path=folder / row["path"],
            label=_label(row["label"]),
            mask=folder / row["mask"] if row.get("mask") else None,
            group=row.get("group") or "",
            split=row.get("split") or "",
            part=row.get("part") or "",
        )


def _is_coco(file: Path) -> bool:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys()


def _coco(file: Path) -> Iterator[Picture]:
    try:
        document = json.loads(file.read_text())
        names = {category["id"]: _label(category["name"]) for category in document["categories"]}
        shapes: dict[Any, list[Shape]] = {image["id"]: [] for image in document["images"]}
        for number, mark in enumerate(document["annotations"]):
            if mark["image_id"] not in shapes:
                raise EdgeqcError(f"{file}: annotations[{number}]: image_id {mark['image_id']} is not in images")
            if mark["category_id"] not in names:
                raise EdgeqcError(f"{file}: annotations[{number}]: category_id {mark['category_id']} is unknown")
            shape = _coco_shape(names[mark["category_id"]], mark)
            if fault := _shape_fault(shape):
                raise EdgeqcError(f"{file}: annotations[{number}]: {fault}")
            shapes[mark["image_id"]].append(shape)
        images = document["images"]
        for number, image in enumerate(images):
            if not isinstance(image.get("file_name"), str) or not image["file_name"]:
                raise EdgeqcError(f"{file}: images[{number}]: id {image['id']} has no file_name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise EdgeqcError(f"{file}: is no COCO file: {type(exc).__name__} {exc}") from exc
    split = next((word for word in ("train", "test") if word in file.stem), "")
    for image in images:
        name = Path(image["file_name"])
        places = [folder / name for folder in (file.parent, file.parent / "images", file.parent.parent / "images")]
        path = next((place for place in places if place.exists()), places[0])
        yield _of_shapes(path, shapes[image["id"]], split)


def _coco_shape(label: str, mark: dict[str, Any]) -> Shape:
    segments = mark.get("segmentation")
    if isinstance(segments, list) and segments:
        return Shape(label=label, polygons=tuple(tuple(float(value) for value in polygon) for polygon in segments))
    x, y, width, height = (float(value) for value in mark["bbox"])
    return Shape(label=label, box=(x, y, width, height))


def _shape_fault(shape: Shape) -> str:
    for polygon in shape.polygons:
        if not polygon or len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers; each of its points is an x and a y"
    numbers = [value for polygon in shape.polygons for value in polygon] + list(shape.box or ())
    if not all(abs(value) < _FAR_PX for value in numbers):  # NaN is not, either
        return "a place that is no number of pixels"
    return ""


_FAR_PX: Final = 1 << 30  # what is drawn is counted in 32 bits


def _voc(folder: Path) -> Iterator[Picture]:
    splits: dict[str, str] = {}
    for word in ("train", "test"):
        names = folder / "ImageSets" / "Main" / f"{word}.txt"
        if names.exists():
            splits |= {line.split()[0]: word for line in names.read_text().splitlines() if line.strip()}
    for file in sorted((folder / "Annotations").glob("*.xml")):
        try:
            root = ET.parse(file).getroot()  # noqa: S314 - the user's own labels; expat bounds entities
            shapes = [_voc_shape(item) for item in root.iter("object")]
        except (OSError, ET.ParseError, ValueError, TypeError) as exc:
            raise EdgeqcError(f"{file}: is no Pascal VOC file: {exc}") from exc
        if fault := next(filter(None, map(_shape_fault, shapes)), ""):
            raise EdgeqcError(f"{file}: {fault}")
        name = root.findtext("filename") or f"{file.stem}.jpg"
        yield _of_shapes(folder / "JPEGImages" / name, shapes, splits.get(file.stem, ""))


def _voc_shape(item: Any) -> Shape:
    left, top, right, bottom = (float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if right <= left or bottom <= top:
        raise ValueError(f"bndbox {left:g},{top:g} to {right:g},{bottom:g} is empty")
    return Shape(label=_label(item.findtext("name") or ""), box=(left - 1, top - 1, right - left + 1, bottom - top + 1))


def _of_shapes(path: Path, shapes: list[Shape], split: str) -> Picture:
    bad = [shape for shape in shapes if shape.label != GOOD]
    labels = [shape.label for shape in bad]
    label = max(sorted(set(labels)), key=labels.count) if labels else GOOD
    return Picture(path=path, label=label, shapes=tuple(bad), split=split)


def _folders(source: Path) -> Iterator[Picture]:
    splits = [word for word in ("train", "test") if (source / word).is_dir()]
    for split, root in [(word, source / word) for word in splits] or [("", source)]:
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in _MASKS):
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    mask = _mask_of(source, path.relative_to(root))
                    yield Picture(path=path, label=_label(folder.name), mask=mask, split=split)


_MASKS: Final = ("ground_truth", "masks")


def _mask_of(source: Path, below: Path) -> Path | None:
    for name in _MASKS:
        for stem in (below.stem, f"{below.stem}_mask"):
            place = source / name / below.parent / f"{stem}.png"
            if place.exists():
                return place
    return None
