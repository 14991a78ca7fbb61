"""Why a net scores a picture as it does, offline: what happens to the score when a place is covered.

Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901): needs no gradients, so it explains the very file that runs, int8 and
plans for a GPU alike. One run of the engine for each place.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeqc.train.scoring import Scorer


def occlusion(
    scorer: Scorer, pixels: NDArray[np.uint8], *, window_px: int, told: Callable[[int], None] = lambda _count: None
) -> NDArray[np.float32]:
    """(h, w): how far the score's logit falls where a window is replaced by what surrounds it; 0 and more.

    The window moves by half its side. `told` counts windows; `places` says how many there are.
    """
    height, width = pixels.shape
    whole = _logit(scorer.judge(pixels)[0])
    fall = np.zeros(pixels.shape, np.float32)
    times = np.zeros(pixels.shape, np.float32)
    smooth = cv2.medianBlur(cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA), 5)
    around = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
    for count, (y, x) in enumerate(_corners(pixels.shape, window_px), 1):
        place = (slice(y, y + window_px), slice(x, x + window_px))
        covered = pixels.copy()
        covered[place] = np.median(around[_wider(place, window_px)])
        fall[place] += np.float32(whole - _logit(scorer.judge(covered)[0]))
        times[place] += 1
        told(count)
    return np.maximum(fall / np.maximum(times, 1), 0)


def places(shape: tuple[int, ...], window_px: int) -> int:
    """How many windows a picture has."""
    return len(_corners(shape, window_px))


def _corners(shape: tuple[int, ...], window_px: int) -> list[tuple[int, int]]:
    step = max(1, window_px // 2)
    return [(y, x) for y in range(0, shape[0], step) for x in range(0, shape[1], step)]


def _wider(place: tuple[slice, slice], by: int) -> tuple[slice, slice]:
    rows, columns = place
    return slice(max(0, rows.start - by), rows.stop + by), slice(max(0, columns.start - by), columns.stop + by)


def _logit(score: float) -> float:
    clipped = min(max(score, 1e-6), 1 - 1e-6)
    return float(np.log(clipped / (1 - clipped)))
