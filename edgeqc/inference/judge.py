"""What the engine's outputs say about the part: score, defects in frame pixels, and a map for people to look at."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from edgeqc.inference.manifest import KIND, MAP, SCORE
from edgeqc.inference.package import Package
from edgeqc.inference.preprocess import Placement
from edgeqc.ports import EngineSlot
from edgeqc.records import Defect, Judgement

MOST_DEFECTS: Final = 4
"""As many as a journal record holds."""
MAP_STEP_PX: Final = 8
"""Frame pixels per cell of the map that is kept with the image."""


def map_shape(frame_shape: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the kept map for frames of that (height, width)."""
    return max(1, frame_shape[0] // MAP_STEP_PX), max(1, frame_shape[1] // MAP_STEP_PX)


class Judge:
    """Reads the outputs of one package's engine. One thread."""

    def __init__(self, package: Package) -> None:
        self._classes = package.manifest.classes
        self._kinds = any(tensor.name == KIND for tensor in package.manifest.outputs)
        self._limit = package.calibration.map_threshold
        rows, columns = package.map_shape
        self._down, self._across = package.input_shape[0] / rows, package.input_shape[1] / columns
        self._grey = np.zeros((rows, columns), np.uint8)
        self._binary = np.zeros((rows, columns), np.uint8)

    def score(self, slot: EngineSlot) -> float:
        """The part's score, after `wait`; passed on as it is, NaN included."""
        return float(slot.output(SCORE)[0])

    def judgement(self, slot: EngineSlot, placement: Placement) -> Judgement:
        """Score and defects, after `wait`."""
        cells = np.asarray(slot.output(MAP), np.float32)[0, 0]
        return Judgement(score=self.score(slot), defects=self._defects(slot, cells, placement))

    def _defects(self, slot: EngineSlot, cells: NDArray[np.float32], placement: Placement) -> tuple[Defect, ...]:
        # A part that is rejected must point at a place, even where no cell reaches the limit that outlines defects.
        # OpenCV's calls, not numpy's: behind the engine one of them costs 10 us, and this is before the verdict is out.
        peak = cv2.minMaxLoc(cells)[1]
        limit = peak * _PEAK_SHARE if _NOTHING <= peak < self._limit else self._limit
        cv2.inRange(cells, limit, math.inf, dst=self._binary)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(self._binary, connectivity=8)
        boxes: list[list[int]] = stats.tolist()
        largest = sorted(range(1, count), key=lambda index: -boxes[index][cv2.CC_STAT_AREA])[:MOST_DEFECTS]
        return tuple(
            self._defect(slot, cells, placement, cv2.inRange(labels, index, index), boxes[index]) for index in largest
        )

    def _defect(
        self,
        slot: EngineSlot,
        cells: NDArray[np.float32],
        placement: Placement,
        inside: MatLike,
        box: list[int],
    ) -> Defect:
        name = self._classes[0]
        if self._kinds:
            votes = [cv2.mean(plane, inside)[0] for plane in np.asarray(slot.output(KIND), np.float32)[0]]
            name = self._classes[votes.index(max(votes))]
        left, top, wide, high, _ = box
        right, bottom = left + wide, top + high
        x, y, width, height = placement.to_frame(
            left * self._across, top * self._down, right * self._across, bottom * self._down
        )
        cell_px = (
            self._across * placement.width_px / placement.width * self._down * placement.height_px / placement.height
        )
        return Defect(
            name=name,
            score=cv2.minMaxLoc(cells, inside)[1],
            x_px=x,
            y_px=y,
            width_px=width,
            height_px=height,
            area_px=max(1, min(width * height, round(box[cv2.CC_STAT_AREA] * cell_px))),
        )

    def draw(self, slot: EngineSlot, placement: Placement, map_out: NDArray[np.uint8]) -> None:
        """Draw the defect map, after `wait`, for people to look at: not needed for the verdict.

        `map_out` is an (any, any) buffer that stands for the whole frame: 0 outside the region, 255 = surely bad. It is
        right to within one cell.
        """
        cells = np.asarray(slot.output(MAP), np.float32)[0, 0]
        cv2.convertScaleAbs(cells, dst=self._grey, alpha=255)  # saturates, and takes NaN without a warning
        map_out.fill(0)
        rows = _span(placement.top, placement.height, self._down, cells.shape[0])
        columns = _span(placement.left, placement.width, self._across, cells.shape[1])
        down, across = (out / frame for out, frame in zip(map_out.shape, placement.frame_shape, strict=True))
        place = map_out[
            _span(placement.y_px, placement.height_px, 1 / down, map_out.shape[0]),
            _span(placement.x_px, placement.width_px, 1 / across, map_out.shape[1]),
        ]
        cv2.resize(self._grey[rows, columns], place.shape[::-1], dst=place, interpolation=cv2.INTER_LINEAR)


_PEAK_SHARE: Final = 0.7
_NOTHING: Final = 0.1
"""A map whose peak is below this shows no place at all."""


def _span(start: int, length: int, step: float, end: int) -> slice:
    """The cells of size `step` that cover a stretch: at least one, at most `end`."""
    first = min(int(start / step), end - 1)
    return slice(first, max(first + 1, min(end, round((start + length) / step))))
