"""What passes before the simulated camera: parts drawn here, or labelled images from a folder."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EdgeqcError
from edgeqc.sim.parts import draw_set

SENSOR: Final = (1024, 1280)
"""(height, width) of the simulated camera with drawn parts."""
DISTINCT: Final = 48
"""Drawn parts; the line shows them again and again."""
DRAWN_CONTRAST: Final = 24
PADDED_CONTRAST: Final = 10
"""Pictures are padded with black, and have dark corners themselves: at 24 up to 31 px of a magnetic tile were cut off."""
SEED: Final = 20_261_122
"""Of the parts on the line: another one than training drew from."""
GOOD_LABELS: Final = frozenset({"free", "good", "ok"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartImages:
    """What passes before the camera."""

    file: Path
    """.npy, (n, height, width) uint8."""
    truth: Path
    """.npy, (n,) bool: is it defective."""
    shape: tuple[int, int]
    contrast: int | None
    """Grey levels between the part and the dark frame around it, for the recipe to find it; None: judge all of it."""


def drawn_parts(
    folder: Path, *, count: int = DISTINCT, shape: tuple[int, int] = SENSOR, seed: int = SEED
) -> PartImages:
    """Draw parts into `folder` (again only where they are not there yet)."""
    name = f"parts-{seed}-{count}-{shape[1]}x{shape[0]}"
    found = PartImages(
        file=folder / f"{name}.npy", truth=folder / f"{name}-truth.npy", shape=shape, contrast=DRAWN_CONTRAST
    )
    if not found.truth.exists():
        images = np.lib.format.open_memmap(found.file, mode="w+", dtype=np.uint8, shape=(count, *shape))
        truth = np.zeros(count, bool)
        for index, part in enumerate(draw_set(count, seed=seed, defect_ratio=0.25, shape=shape)):
            images[index], truth[index] = part.image, part.flaw is not None
        images.flush()
        np.save(found.truth, truth)
    return found


def indexed_parts(folder: Path, source: Path, *, split: str) -> PartImages:
    """Lay the images of `source`'s index.csv, in a shuffled but fixed order, onto a frame that holds the largest."""
    rows = load_indexed(source, split)
    pictures = [load_grey(path) for path, _ in rows]
    height = -(-max(picture.shape[0] for picture in pictures) // 64) * 64 + 64
    width = -(-max(picture.shape[1] for picture in pictures) // 64) * 64 + 64
    order = np.random.default_rng(SEED).permutation(len(rows))
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(rows), height, width)
    )
    for at, index in enumerate(order):
        images[at] = pad_onto(pictures[index], (height, width))
    images.flush()
    np.save(folder / "truth.npy", np.array([rows[index][1] for index in order], bool))
    return PartImages(
        file=folder / "images.npy", truth=folder / "truth.npy", shape=(height, width), contrast=PADDED_CONTRAST
    )


def load_indexed(folder: Path, split: str) -> list[tuple[Path, bool]]:
    """(path, is a defect) of each image with this split, in the order of `index.csv` (path, label, split).

    EdgeqcError where there are none.
    """
    index = folder / "index.csv"
    try:
        with index.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
    except (OSError, KeyError) as exc:
        raise EdgeqcError(f"{index}: {exc}") from exc
    if not rows:
        raise EdgeqcError(f"{index}: no row has split {split}")
    return [(folder / row["path"], row["label"] not in GOOD_LABELS) for row in rows]


def load_grey(path: Path) -> NDArray[np.uint8]:
    """A picture file as (height, width) Mono8. EdgeqcError where it cannot be read."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise EdgeqcError(f"{path}: cannot be read as an image")
    return np.asarray(image, np.uint8)


def pad_onto(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Lay a picture on the middle of a black frame of `shape` (height, width). EdgeqcError where it does not fit."""
    height, width = image.shape
    if height > shape[0] or width > shape[1]:
        raise EdgeqcError(f"an image of {width}x{height} does not fit on a frame of {shape[1]}x{shape[0]}")
    frame = np.zeros(shape, np.uint8)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    frame[top : top + height, left : left + width] = image
    return frame
