"""From a frame to the engine's input: region, resize, grey levels to numbers; one write into the engine's memory.

Buffers are made at the start. Large regions are halved first (2x2 mean, 0.03 ms for 1280x1024) because a single
linear resize to a quarter skips three of four pixels, and with them thin scratches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError
from edgeqc.inference.manifest import Fit, Normalise, Preprocessing
from edgeqc.settings import RegionMode, RegionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the judged region lies in the frame, and where it went in the engine's input."""

    found: bool
    """False: no part in the frame, and the engine's input was not written."""
    frame_shape: tuple[int, int]
    """(height, width)."""
    x_px: int = 0
    y_px: int = 0
    width_px: int = 0
    height_px: int = 0
    left: int = 0
    """Columns of the engine's input before the region; the next three likewise."""
    top: int = 0
    width: int = 0
    height: int = 0

    def to_frame(self, left: float, top: float, right: float, bottom: float) -> tuple[int, int, int, int]:
        """A box of the engine's input as (x, y, width, height) in frame pixels, cut at the region; never empty."""
        across, down = self.width_px / self.width, self.height_px / self.height
        x0 = self.x_px + min(max(int((left - self.left) * across), 0), self.width_px - 1)
        y0 = self.y_px + min(max(int((top - self.top) * down), 0), self.height_px - 1)
        x1 = self.x_px + min(max(round((right - self.left) * across), 0), self.width_px)
        y1 = self.y_px + min(max(round((bottom - self.top) * down), 0), self.height_px)
        return x0, y0, max(1, x1 - x0), max(1, y1 - y0)


class Preprocess:
    """Prepares frames of one camera for one package. One thread; holds no frame."""

    def __init__(
        self, spec: Preprocessing, input_shape: tuple[int, int], frame_shape: tuple[int, int], region: RegionSettings
    ) -> None:
        """Make all buffers. Shapes are (height, width)."""
        cv2.setNumThreads(1)
        self._spec = spec
        self._frame_shape = frame_shape
        self._input_shape = input_shape
        self._canvas = np.zeros(input_shape, np.uint8)
        self._filled: tuple[tuple[slice, slice], int] | None = None
        height, width = frame_shape
        self._halves: list[NDArray[np.uint8]] = []
        while min(height, width) > 1:  # a third of the frame in all
            height, width = height // 2, width // 2
            self._halves.append(np.zeros((height, width), np.uint8))
        self._locator = Locator(frame_shape, region) if region.mode is RegionMode.LOCATE else None
        self._fixed = (
            (region.x_px, region.y_px, region.width_px, region.height_px)
            if region.mode is RegionMode.FIXED
            else (0, 0, frame_shape[1], frame_shape[0])
        )

    def into(self, pixels: NDArray[np.uint8], target: NDArray[np.generic]) -> Placement:
        """Write the region of a (height, width) Mono8 frame into `target`: (1, 1, h, w) float32, (1, h, w, 1) uint8.

        Returns where it went; where no part is found, `target` is left as it was. EngineError on a wrong shape.
        """
        if pixels.shape != self._frame_shape:
            raise EngineError(f"frame of {pixels.shape} where {self._frame_shape} was said")
        levels = self._levels_of(target)
        box = self._fixed if self._locator is None else self._locator.find(pixels)
        if box is None:
            return Placement(found=False, frame_shape=self._frame_shape)
        placement = self._place(*box)
        area = (
            slice(placement.top, placement.top + placement.height),
            slice(placement.left, placement.left + placement.width),
        )
        x, y, width, height = box
        canvas = self._canvas if levels is None else levels
        inside = canvas[area]
        self._shrink(pixels[y : y + height, x : x + width], inside)
        mean = max(1.0, cv2.mean(inside)[0])
        fill = round(mean) if self._spec.fill == "mean" else self._spec.fill
        if levels is not None:
            _surround(canvas, area, fill)
            return placement
        if (area, fill) != self._filled:
            _surround(canvas, area, fill)
            self._filled = (area, fill)
        gain = self._spec.gain / mean if self._spec.normalise is Normalise.MEAN else self._spec.gain
        # gain * grey + offset as float32, in one pass: half the time of a lookup table, and no table to make
        cv2.addWeighted(canvas, gain, canvas, 0, self._spec.offset, dst=target[0, 0], dtype=cv2.CV_32F)
        return placement

    def in_place(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement] | None:
        """The frame's own memory as a (1, h, w, 1) input, where the region is just that; else None.

        That is: a fixed or whole region of the input's size, over the whole width of the frame, so that its rows follow
        one another, and in frames as they were said.
        """
        if self._locator is not None or pixels.shape != self._frame_shape or not pixels.flags.c_contiguous:
            return None
        x, y, width, height = self._fixed
        placement = self._place(*self._fixed)
        if x or width != self._frame_shape[1] or (placement.height, placement.width) != (height, width):
            return None
        if (height, width) != self._input_shape:
            return None
        return pixels[y : y + height].reshape(1, height, width, 1), placement

    def _levels_of(self, target: NDArray[np.generic]) -> NDArray[np.uint8] | None:
        """The plane of a target that takes grey levels; None for one that takes numbers."""
        if target.dtype == np.uint8 and target.shape == (1, *self._input_shape, 1):
            return np.asarray(target[0, :, :, 0], np.uint8)
        if target.dtype != np.float32 or target.shape != (1, 1, *self._input_shape):
            raise EngineError(f"engine input is {target.dtype}{target.shape}, not float32{(1, 1, *self._input_shape)}")
        return None

    def _place(self, x: int, y: int, width: int, height: int) -> Placement:
        rows, columns = self._input_shape
        if self._spec.fit is Fit.LETTERBOX:
            scale = min(columns / width, rows / height, self._spec.max_scale)
            wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        else:
            wide, high = columns, rows
        return Placement(
            found=True,
            frame_shape=self._frame_shape,
            x_px=x,
            y_px=y,
            width_px=width,
            height_px=height,
            left=(columns - wide) // 2,
            top=(rows - high) // 2,
            width=wide,
            height=high,
        )

    def _shrink(self, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        for half in self._halves:
            height, width = source.shape[0] // 2, source.shape[1] // 2
            if height < target.shape[0] or width < target.shape[1]:
                break
            smaller = half[:height, :width]
            cv2.resize(source[: 2 * height, : 2 * width], (width, height), dst=smaller, interpolation=cv2.INTER_LINEAR)
            source = smaller
        cv2.resize(source, target.shape[::-1], dst=target, interpolation=cv2.INTER_LINEAR)


def _surround(canvas: NDArray[np.uint8], area: tuple[slice, slice], level: int) -> None:
    """Fill what is around the area."""
    rows, columns = area
    canvas[: rows.start] = level
    canvas[rows.stop :] = level
    canvas[rows, : columns.start] = level
    canvas[rows, columns.stop :] = level


class Locator:
    """Finds the part against its background on a decimated view of the frame."""

    def __init__(self, frame_shape: tuple[int, int], region: RegionSettings) -> None:
        self._region = region
        self._frame_shape = frame_shape
        self._step = max(1, min(frame_shape) // _VIEW_PX)
        shape = (max(1, frame_shape[0] // self._step), max(1, frame_shape[1] // self._step))
        self._view = np.zeros(shape, np.uint8)
        self._binary = np.zeros(shape, np.uint8)

    def find(self, pixels: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
        """(x, y, width, height) of the part with its margin, frame px, to within one step of the view; or None."""
        view = self._view
        rows, columns = view.shape
        cv2.resize(pixels, (columns, rows), dst=view, interpolation=cv2.INTER_NEAREST)
        # plain bytes and numbers from here on: for so few of them numpy's calls cost more than all of the search
        cells = view.tobytes()
        rim = sorted(cells[:columns] + cells[-columns:] + cells[::columns] + cells[columns - 1 :: columns])
        background = rim[len(rim) // 2]
        if self._region.background == "dark":
            cv2.threshold(view, background + self._region.contrast, 255, cv2.THRESH_BINARY, dst=self._binary)
        else:
            limit = background - self._region.contrast
            cv2.threshold(view, limit, 255, cv2.THRESH_BINARY_INV, dst=self._binary)
        count, _, stats, _ = cv2.connectedComponentsWithStats(self._binary, ltype=cv2.CV_16U)
        if count == 1:
            return None
        pieces: list[list[int]] = stats.tolist()[1:]
        largest = max([area for *_, area in pieces])
        if largest < _LEAST_RATIO * view.size:
            return None
        left, top, right, bottom = columns, rows, 0, 0
        for x, y, width, height, area in pieces:
            if area >= _PIECE_RATIO * largest:
                left, top, right, bottom = min(left, x), min(top, y), max(right, x + width), max(bottom, y + height)
        return self._box(left, top, right, bottom)

    def _box(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """From cells of the view to frame pixels."""
        height, width = self._frame_shape
        down, across = height / self._view.shape[0], width / self._view.shape[1]
        spare = self._step + self._region.margin_px  # up to one step of the part was between two samples
        x0 = max(0, int(left * across) - spare)
        y0 = max(0, int(top * down) - spare)
        x1 = min(width, int(right * across) + spare)
        y1 = min(height, int(bottom * down) + spare)
        return x0, y0, x1 - x0, y1 - y0


_VIEW_PX: Final = 64
"""Shorter side of the decimated view: for 1280x1024 that is 16 px of precision, and half the time of 128 (0.12 ms)."""
_LEAST_RATIO: Final = 0.005
"""Of the view: less is dust on the belt."""
_PIECE_RATIO: Final = 0.1
"""Of the largest piece: a part that a crack or a shadow cuts in two is still one part."""
