"""A defect map laid over its picture, for people: colour where the net saw something, boxes around what it calls a defect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

FAINT: Final = 0.08
"""Below this nothing is coloured: the picture itself must stay to be seen."""
_STRONG: Final = 0.55


def overlay(
    pixels: NDArray[np.uint8], heat: NDArray[np.float32], limit: float, truth: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """(h, w, 3) BGR: yellow to red by the map (h, w) in 0..1, a red box around each defect, a green line around truth."""
    colours = cv2.applyColorMap(np.round(np.clip(heat, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_HOT)
    share = np.where(heat >= FAINT, _STRONG * np.clip(heat / max(limit, FAINT), 0, 1), 0)[..., None]
    grey = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    mixed = np.asarray(np.round(grey * (1 - share) + colours * share), np.uint8)
    line = max(1, round(min(pixels.shape) / 200))
    if truth is not None and truth.any():
        outlines, _ = cv2.findContours((truth > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mixed, outlines, -1, (80, 200, 0), line)
    for piece in pieces(heat, limit):
        x, y, width, height = piece.box
        cv2.rectangle(mixed, (x - line, y - line), (x + width, y + height), (40, 40, 230), line)
    return mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One connected place over the limit."""

    box: tuple[int, int, int, int]
    """x, y, width, height in px."""
    area_px: int
    peak: float


def pieces(heat: NDArray[np.float32], limit: float) -> list[Piece]:
    """All places of a map (h, w) that are over the limit, the largest first."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((heat >= limit).astype(np.uint8))
    found = []
    for index in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[index])
        found.append(Piece(box=(x, y, width, height), area_px=area, peak=float(heat[labels == index].max())))
    return sorted(found, key=lambda piece: -piece.area_px)


def png(picture: NDArray[np.uint8], *, most_px: int = 0) -> bytes:
    """As a PNG file; with `most_px` the longer side is made no longer than that."""
    longest = max(picture.shape[:2])
    if most_px and longest > most_px:
        scale = most_px / longest
        picture = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".png", picture)
    if not done:
        raise ValueError("OpenCV cannot write PNG")
    return data.tobytes()
