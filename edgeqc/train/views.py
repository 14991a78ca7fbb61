"""Samples varied as a line varies: light, pose, focus, noise, and defects pasted onto good parts. Seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.inference.manifest import Preprocessing
from edgeqc.train.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """How far views differ from their sample; pairs are (least, most), drawn evenly."""

    gamma: tuple[float, float] = (0.85, 1.2)
    gain: tuple[float, float] = (0.93, 1.07)
    scale: tuple[float, float] = (0.94, 1.06)
    slope: float = 0.08
    """Brightness from one edge to the other, +-."""
    pasted: float = 0.0
    """Share of good views that get another part's defect."""
    turns: bool = False
    """Quarter turns beside mirroring: for parts that lie anyhow."""


WIDE: Final = Variation(gamma=(0.75, 1.35), gain=(0.88, 1.12), scale=(0.85, 1.18), slope=0.12, pasted=0.3)
"""For a net that starts from general features and has few parts to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One crop of one sample."""

    image: NDArray[np.float32]
    """(h, w), as the engine's input holds it."""
    mask: NDArray[np.float32]
    """(h, w) in 0..1: how much of the pixel is flawed."""
    kind: int
    """Index into the task's classes; -1 = good, or good with a pasted defect."""
    groups: tuple[str, str]
    """Of the sample and, where a defect was pasted, of the part it is from: who may not learn from one may not from
    the view."""
    masked: bool


class Views:
    """Endless varied views. Deterministic for a seed. Kinds in equal shares, and groups of a kind, too."""

    def __init__(
        self,
        samples: list[Sample],
        spec: Preprocessing,
        *,
        crop: tuple[int, int],
        seed: int,
        variation: Variation | None = None,
    ) -> None:
        """`crop` (h, w) is cut out of each sample."""
        self.rng = np.random.default_rng(seed)
        self._spec, self._crop, self._vary = spec, crop, variation or Variation()
        kinds = sorted({sample.kind for sample in samples})
        self._goods = _by_group([sample for sample in samples if sample.kind < 0])
        self._flawed = [_by_group([s for s in samples if s.kind == kind]) for kind in kinds if kind >= 0]
        self._donors = [sample for sample in samples if sample.kind >= 0 and sample.masked and sample.mask.any()]

    def one(self, *, flawed: bool) -> View:
        """A view of a bad part, or of a good one."""
        rng = self.rng
        groups = self._goods
        if flawed and self._flawed:
            groups = self._flawed[int(rng.integers(len(self._flawed)))]
        group = groups[int(rng.integers(len(groups)))] if len(groups) > 1 else groups[0]
        sample = group[int(rng.integers(len(group)))]
        rows, columns = self._crop
        matrix = self._placed(sample)
        fill = round(sample.mean) if self._spec.fill == "mean" else self._spec.fill
        levels = cv2.warpAffine(sample.levels, matrix, (columns, rows), borderValue=(float(fill),))
        mask = np.asarray(cv2.warpAffine(sample.mask, matrix, (columns, rows)) / np.float32(255), np.float32)
        image = np.asarray(
            np.maximum(levels, np.float32(1)) / np.float32(sample.mean), np.float32
        )  # 0 to a power has no slope
        donor = ""
        if self._vary.pasted and not flawed and self._donors and rng.random() < self._vary.pasted:
            inside = cv2.warpAffine(_inside(sample), matrix, (columns, rows))
            donor = self._paste(image, mask, np.asarray(inside, np.uint8))
        image = self._lit(image)
        if self._vary.turns and rows == columns and rng.random() < _HALF:
            image, mask = np.ascontiguousarray(image.T), np.ascontiguousarray(mask.T)
        return View(
            image=np.asarray(image, np.float32),
            mask=np.asarray(mask, np.float32),
            kind=sample.kind,
            groups=(sample.group, donor or sample.group),
            masked=sample.masked,
        )

    def _lit(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        rng, vary = self.rng, self._vary
        rows, columns = self._crop
        image = image ** np.float32(rng.uniform(*vary.gamma)) * np.float32(rng.uniform(*vary.gain))
        across = np.linspace(-1, 1, columns, dtype=np.float32) * np.float32(rng.uniform(-vary.slope, vary.slope))
        down = np.linspace(-1, 1, rows, dtype=np.float32) * np.float32(rng.uniform(-vary.slope, vary.slope))
        image *= 1 + across[None] + down[:, None]
        if rng.random() < _BLURRED:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8)).astype(np.float32)
        image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, _NOISE))
        return image * np.float32(self._spec.gain) + np.float32(self._spec.offset)

    def _placed(self, sample: Sample) -> NDArray[np.float64]:
        """A mirrored, slightly shifted and scaled view; on the flaw more often than not where the crop is smaller."""
        rng = self.rng
        rows, columns = self._crop
        scale = rng.uniform(*self._vary.scale)
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

    def _paste(self, image: NDArray[np.float32], mask: NDArray[np.float32], inside: NDArray[np.uint8]) -> str:
        """Lay one defect of another part over the view, as a difference from its own surroundings; the part's group.

        "" where that defect is too large for the crop, or no place for it was found on the part.
        """
        rng = self.rng
        donor = self._donors[int(rng.integers(len(self._donors)))]
        patch = _patch(donor, rng)
        if patch is None:
            return ""
        difference, cover = patch
        height, width = cover.shape
        rows, columns = self._crop
        if height > _LARGEST * rows or width > _LARGEST * columns:
            return ""
        for _ in range(_TRIES):
            y, x = int(rng.integers(rows - height)), int(rng.integers(columns - width))
            place = (slice(y, y + height), slice(x, x + width))
            if inside[place].min() == 0:
                continue
            soft = cv2.GaussianBlur(cv2.dilate(cover, np.ones((3, 3), np.uint8)), (0, 0), 1.0)
            image[place] += soft * difference * np.float32(rng.uniform(0.6, 1.3))
            np.maximum(image[place], np.float32(0.004), out=image[place])
            np.maximum(mask[place], cover, out=mask[place])
            return donor.group
        return ""


class Batches:
    """Endless batches of images, half of them with a flaw. Deterministic for a seed."""

    def __init__(self, views: Views, *, size: int) -> None:
        self._views, self._size = views, size
        self.rng = views.rng

    def next(self) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """[images (n, 1, h, w)], masks (n, 1, h, w) in 0..1, kinds (n,), masked (n,)."""
        drawn = [self._views.one(flawed=index % 2 == 0) for index in range(self._size)]
        return (
            [np.stack([view.image for view in drawn])[:, None]],
            np.stack([view.mask for view in drawn])[:, None],
            np.array([view.kind for view in drawn], np.int64),
            np.array([view.masked for view in drawn], np.bool_),
        )


_BLURRED: Final = 0.25
_NOISE: Final = 0.04
_HALF: Final = 0.5
_ON_FLAW: Final = 0.85
_ANYWHERE: Final = 0.3  # share of crops that lie anywhere, padding included
_MARKED: Final = 90  # of 255: a mask pixel that a crop may be centred on
_LARGEST: Final = 0.6  # of the crop: a larger defect would be the picture
_TRIES: Final = 8
_MARGIN: Final = 5  # pixels around a defect that say what its surroundings are
_CLEAN: Final = 26  # of 255: a pixel of the surroundings
_FEW: Final = 10


def _by_group(samples: list[Sample]) -> list[list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return list(groups.values())


def _inside(sample: Sample) -> NDArray[np.uint8]:
    field = np.zeros(sample.levels.shape, np.uint8)
    field[sample.area] = 1
    return field


def _patch(donor: Sample, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """One defect of the donor: its difference from the surroundings' median, in means of the part, and its mask."""
    count, _, stats, _ = cv2.connectedComponentsWithStats((donor.mask > _MARKED).astype(np.uint8))
    if count == 1:
        return None
    x, y, width, height = (int(value) for value in stats[int(rng.integers(1, count)), :4])
    cut = (
        slice(max(0, y - _MARGIN), y + height + _MARGIN),
        slice(max(0, x - _MARGIN), x + width + _MARGIN),
    )
    levels, mask = donor.levels[cut], donor.mask[cut]
    around = levels[mask < _CLEAN]
    if around.size < _FEW:
        return None
    difference = (levels.astype(np.float32) - np.float32(np.median(around))) / np.float32(donor.mean)
    cover = mask.astype(np.float32) / 255
    for axis in (0, 1):
        if rng.random() < _HALF:
            difference, cover = np.flip(difference, axis), np.flip(cover, axis)
    return np.ascontiguousarray(difference), np.ascontiguousarray(cover)


def _within(middle: float, side: slice, crop: int) -> float:
    """Move the middle of a crop so that it holds as much of the region as it can."""
    half = min(crop, side.stop - side.start) / 2
    return float(min(max(middle, side.start + half), side.stop - half))
