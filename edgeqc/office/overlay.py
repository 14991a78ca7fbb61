"""What the engine objected to, drawn into the part's picture: stored with rejects, for whoever must judge the judgement.

One byte a pixel, with a palette of 64 grey levels times 4 of warmth, so that it takes no more memory or disk than the
picture itself: the office has little of both. numpy alone; OpenCV would be 20 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.records import Defect

BESIDE: Final = (".map.png", ".overlay.png")
"""What may lie beside a picture, under its name."""


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.uint8], defects: Sequence[Defect]) -> NDArray[np.uint8]:
    """(h, w) indices into `palette()`: the picture, warmer where `heat` (any, any) is higher, a frame around each defect."""
    height, width = pixels.shape
    drawn = np.asarray(pixels >> 2, np.uint8)
    left, right, share = _between(width, heat.shape[1])
    above, below, weight = _between(height, heat.shape[0])
    levels = heat.astype(np.float32)
    for top in range(0, height, _BAND):
        rows = slice(top, min(height, top + _BAND))
        down = weight[rows, None]
        band = levels[above[rows]] * (1 - down) + levels[below[rows]] * down
        band = band[:, left] * (1 - share) + band[:, right] * share
        for limit in _WARMTH:
            drawn[rows] += np.where(band >= limit, np.uint8(_GREYS), np.uint8(0))
    np.minimum(drawn, _FRAME - 1, out=drawn)
    for defect in defects:
        _frame(drawn, defect)
    return drawn


def palette() -> NDArray[np.uint8]:
    """(256, 3) RGB."""
    grey = np.linspace(0, 255, _GREYS)[None, :, None]
    colours = np.array(_COLOURS, np.float64)[:, None, :]
    share = np.array(_SHARES)[:, None, None]
    table = np.asarray(np.round(grey * (1 - share) + colours * share), np.uint8).reshape(256, 3)
    table[_FRAME] = (255, 0, 0)
    return table


_BAND: Final = 64  # rows at a time: 1280 columns of float32 are 0.3 MB
_GREYS: Final = 64
_FRAME: Final = 255
_WARMTH: Final = (38, 102, 166)  # of 255: from 0.15, 0.4 and 0.65 on
_COLOURS: Final = ((0, 0, 0), (255, 220, 60), (255, 140, 20), (230, 40, 20))
_SHARES: Final = (0.0, 0.3, 0.42, 0.55)


def _between(pixels: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each pixel the two cells whose middles it lies between, and how near it is to the second."""
    at = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    first = np.floor(at).astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), (at - first).astype(np.float32)


def _frame(drawn: NDArray[np.uint8], defect: Defect) -> None:
    height, width = drawn.shape
    line = max(1, min(height, width) // 300)
    x0, y0 = max(0, defect.x_px - line), max(0, defect.y_px - line)
    x1, y1 = min(width, defect.x_px + defect.width_px + line), min(height, defect.y_px + defect.height_px + line)
    drawn[y0 : y0 + line, x0:x1] = _FRAME
    drawn[max(y0, y1 - line) : y1, x0:x1] = _FRAME
    drawn[y0:y1, x0 : x0 + line] = _FRAME
    drawn[y0:y1, max(x0, x1 - line) : x1] = _FRAME
