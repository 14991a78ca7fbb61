"""What is learned from: prepared images with masks, drawn or of pictures."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.inference.manifest import Normalise, Preprocessing
from edgeqc.inference.preprocess import Placement, Preprocess
from edgeqc.settings import RegionSettings
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
    group: str = ""
    """Pictures of one part, tray or shift share it."""
    masked: bool = True
    """False: bad somewhere, but nobody marked where."""


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
    group: str = ""
    masked: bool = True


def drawn(task: Task, *, count: int, seed: int, defect_ratio: float, first: int = 0) -> Iterator[Raw]:
    """Parts drawn from a seed."""
    for part in draw_set(count, seed=seed, defect_ratio=defect_ratio, shape=task.frame_shape, first=first):
        yield Raw(pixels=part.image, mask=part.mask, kind=list(Flaw).index(part.flaw) if part.flaw else -1)


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


def prepare(task: Task, frames: Iterator[Raw], told: Callable[[int], None] = lambda _count: None) -> list[Sample]:
    """Run frames through the line's own preprocessing, short of its normalising. Frames without a part are left out."""
    plain = task.spec.model_copy(update={"normalise": Normalise.LINEAR, "gain": 1.0, "offset": 0.0})
    preprocess = Preprocess(plain, task.input_shape, task.frame_shape, task.region)
    target = np.zeros((1, 1, *task.input_shape), np.float32)
    samples = []
    for count, frame in enumerate(frames, 1):
        told(count)
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
        samples.append(
            Sample(
                levels=levels,
                mask=mask,
                mean=mean,
                area=area,
                kind=frame.kind,
                group=frame.group,
                masked=frame.masked,
            )
        )
    return samples


def _area(placement: Placement) -> tuple[slice, slice]:
    return (
        slice(placement.top, placement.top + placement.height),
        slice(placement.left, placement.left + placement.width),
    )


def _drawn_chunk(task: Task, seed: int, defect_ratio: float, first: int, count: int) -> list[Sample]:
    return prepare(task, drawn(task, count=count, seed=seed, defect_ratio=defect_ratio, first=first))
