"""Pictures through the line's own path: preprocessing, engine, map back in the picture's pixels, and what was missed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EdgeqcError
from edgeqc.inference.manifest import MAP, SCORE
from edgeqc.inference.preprocess import Placement, Preprocess
from edgeqc.ports import Engine
from edgeqc.sim.images import pad_onto
from edgeqc.train.dataset import Picture
from edgeqc.train.examine import load_picture, mask_of
from edgeqc.train.samples import Raw, Task

BINS: Final = 256
"""Of a map's values 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What the engine said of one picture, beside what is true."""

    picture: Picture
    score: float
    """1 where no part was found: the line rejects it."""
    engine_ns: int
    on: NDArray[np.int64]
    """(256,) how many pixels of defects have which map value."""
    off: NDArray[np.int64]
    """(256,) the same of all other pixels."""
    pieces: NDArray[np.int64]
    """(n, 256) the same of each connected defect; n = 0 where none is marked."""
    width_px: float
    """Of the widest marked defect: the largest circle that fits into its mark; 0 where none is marked."""

    @property
    def group(self) -> str:
        """The picture's; its path where it stands alone."""
        return self.picture.group or str(self.picture.path)

    @property
    def part(self) -> str:
        """The picture's."""
        return self.picture.part

    @property
    def is_defect(self) -> bool:
        """Is the part on the picture bad."""
        return self.picture.is_defect


class Scorer:
    """One engine with the preprocessing of one task. One thread."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine, self._task = engine, task
        self._preprocess = Preprocess(task.spec, task.input_shape, task.frame_shape, task.region)

    def __call__(
        self, pictures: Iterable[Picture], told: Callable[[int], None] = lambda _count: None
    ) -> Iterator[Scored]:
        """Score them one by one."""
        for count, picture in enumerate(pictures, 1):
            pixels = load(picture.path)
            score, cells, engine_ns = self.judge(pixels)
            mask = mask_of(picture, (pixels.shape[0], pixels.shape[1])) > 0
            levels = np.minimum(cells * BINS, BINS - 1).astype(np.int64)
            yield Scored(
                picture=picture,
                score=score,
                engine_ns=engine_ns,
                on=np.bincount(levels[mask], minlength=BINS),
                off=np.bincount(levels[~mask], minlength=BINS),
                pieces=_pieces(levels, mask),
                width_px=width_px(mask),
            )
            told(count)

    def judge(self, pixels: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32], int]:
        """Score, map (h, w) of the picture 0..1, and the engine's time in ns."""
        frame = pad_onto(pixels, self._task.frame_shape)
        slot = self._engine.acquire()
        try:
            placement = self._preprocess.into(frame, slot.input(self._task.spec.input))
            if not placement.found:
                return 1.0, np.zeros(pixels.shape, np.float32), 0
            began = time.perf_counter_ns()
            self._engine.submit(slot)
            self._engine.wait(slot, time.monotonic_ns() + _PATIENCE_NS)
            took = time.perf_counter_ns() - began
            score = float(np.asarray(slot.output(SCORE))[0])
            cells = np.array(slot.output(MAP), np.float32)[0, 0]
        finally:
            slot.release()
        return score, _unpadded(spread(cells, placement, self._task.input_shape), pixels.shape), took


def framed(task: Task, pictures: Iterable[Picture]) -> Iterator[Raw]:
    """Pictures and their masks, each laid on the camera's frame."""
    for picture in pictures:
        pixels = load(picture.path)
        mask = mask_of(picture, (pixels.shape[0], pixels.shape[1]))
        yield Raw(
            pixels=pad_onto(pixels, task.frame_shape),
            mask=pad_onto(mask, task.frame_shape),
            kind=_kind(task, picture),
            group=picture.group,
            masked=picture.is_marked,
        )


def load(path: Path) -> NDArray[np.uint8]:
    """A picture that was examined before. EdgeqcError where it has gone since."""
    pixels = load_picture(path)
    if pixels is None:
        raise EdgeqcError(f"{path}: cannot be read as a picture")
    return pixels


def spread(cells: NDArray[np.float32], placement: Placement, input_shape: tuple[int, int]) -> NDArray[np.float32]:
    """A map (rows, columns) of the engine's input, in the pixels of the whole frame; 0 outside the judged region."""
    frame = np.zeros(placement.frame_shape, np.float32)
    down, across = input_shape[0] / cells.shape[0], input_shape[1] / cells.shape[1]
    # The pixel (x, y) of the region lies at (left + x * width / width_px, ...) of the input: one affine map for all.
    scale_x = placement.width / placement.width_px / across
    scale_y = placement.height / placement.height_px / down
    matrix = np.array(
        [
            [scale_x, 0, placement.left / across + scale_x / 2 - 0.5],
            [0, scale_y, placement.top / down + scale_y / 2 - 0.5],
        ]
    )
    region = cv2.warpAffine(
        cells,
        matrix,
        (placement.width_px, placement.height_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    y, x = placement.y_px, placement.x_px
    frame[y : y + placement.height_px, x : x + placement.width_px] = np.clip(np.nan_to_num(region, nan=1.0), 0, 1)
    return frame


def width_px(mask: NDArray[np.bool_]) -> float:
    """Diameter of the largest circle that fits into a mask, (h, w); the picture's edge bounds it, too. 0 where it is empty."""
    if not mask.any():
        return 0.0
    inside = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return 2 * float(inside.max()) - 1  # a pixel's middle is half a pixel from its edge


def _kind(task: Task, picture: Picture) -> int:
    if not picture.is_defect:
        return -1
    return task.classes.index(picture.label) if picture.label in task.classes else 0


_PATIENCE_NS: Final = 30_000_000_000


def _unpadded(frame: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    top, left = (frame.shape[0] - shape[0]) // 2, (frame.shape[1] - shape[1]) // 2
    return frame[top : top + shape[0], left : left + shape[1]]


def _pieces(levels: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    if count == 1:
        return np.zeros((0, BINS), np.int64)
    joint = np.bincount((labels[mask] - 1) * BINS + levels[mask], minlength=(count - 1) * BINS)
    return np.asarray(joint.reshape(count - 1, BINS), np.int64)
