"""What is learned from: prepared images with masks, drawn or from an indexed folder, and how they are varied."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.inference.manifest import Normalise, Preprocessing
from edgeqc.inference.preprocess import Placement, Preprocess
from edgeqc.settings import RegionSettings
from edgeqc.sim.images import Labelled, load_grey, pad_onto
from edgeqc.sim.parts import Flaw, draw_set


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How frames become inputs: the same in training and on the line."""

    spec: Preprocessing
    input_shape: tuple[int, int]
    frame_shape: tuple[int, int]
    region: RegionSettings
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raw:
    """One labelled frame as the camera would give it."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    kind: int
    """Index into the task's classes; -1 = good."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One frame after preprocessing, before normalising."""

    levels: NDArray[np.uint8]
    """(h, w) of the input shape, grey levels."""
    mask: NDArray[np.uint8]
    """(h, w), 0..255: how much of the pixel is flawed."""
    mean: float
    """Of the region's grey levels; what Normalise.MEAN divides by."""
    area: tuple[slice, slice]
    """Where the region lies in `levels`."""
    kind: int


def drawn(task: Task, *, count: int, seed: int, defect_ratio: float, first: int = 0) -> Iterator[Raw]:
    """Parts drawn from a seed."""
    for part in draw_set(count, seed=seed, defect_ratio=defect_ratio, shape=task.frame_shape, first=first):
        yield Raw(pixels=part.image, mask=part.mask, kind=list(Flaw).index(part.flaw) if part.flaw else -1)


def indexed(task: Task, rows: list[Labelled]) -> Iterator[Raw]:
    """Pictures of an indexed folder, each laid on the sensor's frame."""
    for row in rows:
        pixels = pad_onto(load_grey(row.path), task.frame_shape)
        mask = pad_onto(load_grey(row.mask), task.frame_shape) if row.mask else np.zeros_like(pixels)
        mask = np.where(mask > 0, np.uint8(255), np.uint8(0))
        yield Raw(pixels=pixels, mask=mask, kind=task.classes.index(row.label) if row.is_defect else -1)


def drawn_samples(
    task: Task, *, count: int, seed: int, defect_ratio: float, workers: int, told: Callable[[int], None]
) -> list[Sample]:
    """Draw and prepare in `workers` processes; the same samples for any number of them."""
    chunk = 64
    starts = range(0, count, chunk)
    work = partial(_drawn_chunk, task, seed, defect_ratio)
    sizes = [min(chunk, count - start) for start in starts]
    samples: list[list[Sample]] = []
    context = multiprocessing.get_context("spawn")  # forking a process that has torch's threads may hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in pool.map(work, starts, sizes):
            samples.append(done)
            told(sum(map(len, samples)))
    return list(chain.from_iterable(samples))


def prepare(task: Task, frames: Iterator[Raw]) -> list[Sample]:
    """Run frames through the line's own preprocessing, short of its normalising. Frames without a part are left out."""
    plain = task.spec.model_copy(update={"normalise": Normalise.LINEAR, "gain": 1.0, "offset": 0.0})
    preprocess = Preprocess(plain, task.input_shape, task.frame_shape, task.region)
    target = np.zeros((1, 1, *task.input_shape), np.float32)
    samples = []
    for frame in frames:
        placement = preprocess.into(frame.pixels, target)
        if not placement.found:
            continue
        area = _area(placement)
        levels = target[0, 0].astype(np.uint8)
        mask = np.zeros(task.input_shape, np.uint8)
        if frame.kind >= 0:
            y, x = placement.y_px, placement.x_px
            region = frame.mask[y : y + placement.height_px, x : x + placement.width_px]
            mask[area] = cv2.resize(region, (placement.width, placement.height), interpolation=cv2.INTER_AREA)
        mean = max(1.0, float(levels[area].mean()))
        samples.append(Sample(levels=levels, mask=mask, mean=mean, area=area, kind=frame.kind))
    return samples


class Batches:
    """Endless varied batches, half of them with a flaw, kinds in equal shares. Deterministic for a seed."""

    def __init__(
        self, samples: list[Sample], spec: Preprocessing, *, size: int, crop: tuple[int, int], turns: bool, seed: int
    ) -> None:
        """`crop` (h, w) is cut out of each sample; `turns` allows quarter turns beside mirroring."""
        self._rng = np.random.default_rng(seed)
        self._spec, self._size, self._crop, self._turns = spec, size, crop, turns
        kinds = sorted({sample.kind for sample in samples})
        self._goods = [sample for sample in samples if sample.kind < 0]
        self._flawed = [[s for s in samples if s.kind == kind] for kind in kinds if kind >= 0]

    def next(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Images (n, 1, h, w), masks (n, 1, h, w) in 0..1, kinds (n,)."""
        drawn = [self._one(index % 2 == 0) for index in range(self._size)]
        images, masks, kinds = zip(*drawn, strict=True)
        return np.stack(images)[:, None], np.stack(masks)[:, None], np.array(kinds, np.int64)

    def _one(self, flawed: bool) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        rng = self._rng
        pool = self._flawed[int(rng.integers(len(self._flawed)))] if flawed else self._goods
        sample = pool[int(rng.integers(len(pool)))]
        rows, columns = self._crop
        matrix = self._view(sample)
        fill = round(sample.mean) if self._spec.fill == "mean" else self._spec.fill
        levels = cv2.warpAffine(sample.levels, matrix, (columns, rows), borderValue=(float(fill),))
        mask = cv2.warpAffine(sample.mask, matrix, (columns, rows)).astype(np.float32) / 255
        image = np.maximum(levels, np.float32(1)) / np.float32(sample.mean)  # 0 to a power has no slope
        image = image ** np.float32(rng.uniform(*_GAMMA)) * np.float32(rng.uniform(*_GAIN))
        across = np.linspace(-1, 1, columns, dtype=np.float32) * np.float32(rng.uniform(-_SLOPE, _SLOPE))
        down = np.linspace(-1, 1, rows, dtype=np.float32) * np.float32(rng.uniform(-_SLOPE, _SLOPE))
        image *= 1 + across[None] + down[:, None]
        if rng.random() < _BLURRED:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8)).astype(np.float32)
        image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, _NOISE))
        image = image * np.float32(self._spec.gain) + np.float32(self._spec.offset)
        if self._turns and rows == columns and rng.random() < _HALF:
            image, mask = np.ascontiguousarray(image.T), np.ascontiguousarray(mask.T)
        return np.asarray(image, np.float32), np.asarray(mask, np.float32), sample.kind

    def _view(self, sample: Sample) -> NDArray[np.float64]:
        """A mirrored, slightly shifted and scaled view; on the flaw more often than not where the crop is smaller."""
        rng = self._rng
        rows, columns = self._crop
        scale = rng.uniform(*_SCALE)
        down, right = sample.area
        y, x = (down.start + down.stop) / 2 + rng.uniform(-6, 6), (right.start + right.stop) / 2 + rng.uniform(-6, 6)
        height, width = sample.levels.shape
        if (rows, columns) != (height, width) and rng.random() < _ANYWHERE:
            y, x = rng.uniform(0, height), rng.uniform(0, width)  # the net must have seen what surrounds a region
        elif (rows, columns) != (height, width):
            y, x = rng.uniform(down.start, down.stop), rng.uniform(right.start, right.stop)
            bad_y, bad_x = np.nonzero(sample.mask > _MARKED)
            if len(bad_x) and rng.random() < _ON_FLAW:
                pick = int(rng.integers(len(bad_x)))
                y, x = bad_y[pick], bad_x[pick]
            # Good and bad alike from here on: were only flaws moved off the middle, edges would tell them apart.
            y = _within(y + rng.uniform(-0.4, 0.4) * rows, down, rows)
            x = _within(x + rng.uniform(-0.4, 0.4) * columns, right, columns)
        across = scale if rng.random() < _HALF else -scale
        along = scale if rng.random() < _HALF else -scale
        return np.array([[across, 0, columns / 2 - across * x], [0, along, rows / 2 - along * y]])


_GAMMA: Final = (0.85, 1.2)
_GAIN: Final = (0.93, 1.07)
_SLOPE: Final = 0.08
_BLURRED: Final = 0.25
_NOISE: Final = 0.04
_SCALE: Final = (0.94, 1.06)
_HALF: Final = 0.5
_ON_FLAW: Final = 0.85
_ANYWHERE: Final = 0.3  # share of crops that lie anywhere, padding included
_MARKED: Final = 90  # of 255: a mask pixel that a crop may be centred on


def _within(middle: float, side: slice, crop: int) -> float:
    """Move the middle of a crop so that it holds as much of the region as it can."""
    half = min(crop, side.stop - side.start) / 2
    return float(min(max(middle, side.start + half), side.stop - half))


def _area(placement: Placement) -> tuple[slice, slice]:
    return (
        slice(placement.top, placement.top + placement.height),
        slice(placement.left, placement.left + placement.width),
    )


def _drawn_chunk(task: Task, seed: int, defect_ratio: float, first: int, count: int) -> list[Sample]:
    return prepare(task, drawn(task, count=count, seed=seed, defect_ratio=defect_ratio, first=first))
