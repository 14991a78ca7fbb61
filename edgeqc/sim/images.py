"""Labelled images from a folder, as parts before the simulated camera."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EdgeqcError

GOOD_LABELS: Final = frozenset({"free", "good", "ok"})


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
