"""The simulated product: a turned steel flange on a dark belt, sound or with one flaw, drawn from a seed.

Everything is drawn here with numpy and OpenCV, so that images, masks and the models trained on them have one licence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import NormalDist
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

SENSOR_SHAPE: Final = (1024, 1280)
"""(height, width) of the simulated camera's frame, px."""


class Flaw(StrEnum):
    """What can be wrong with a drawn part."""

    SCRATCH = "scratch"
    DENT = "dent"
    STAIN = "stain"
    CHIP = "chip"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One drawn part."""

    image: NDArray[np.uint8]
    """(height, width) Mono8."""
    mask: NDArray[np.uint8]
    """(height, width), 255 on the flaw."""
    flaw: Flaw | None
    """None = a good part."""


def draw_set(
    count: int, *, seed: int, defect_ratio: float = 0.3, shape: tuple[int, int] = SENSOR_SHAPE, first: int = 0
) -> Iterator[Part]:
    """Draw parts `first` to `first + count`; part i of a seed is always the same, whatever was drawn before it."""
    for index in range(first, first + count):
        rng = np.random.default_rng((seed, index))
        flaw = list(Flaw)[int(rng.integers(len(Flaw)))] if rng.random() < defect_ratio else None
        yield draw_part(rng, shape, flaw)


def draw_part(rng: np.random.Generator, shape: tuple[int, int] = SENSOR_SHAPE, flaw: Flaw | None = None) -> Part:
    """Draw one part: pose, light, surface, focus and noise at random, and the flaw from obvious to subtle."""
    blank = _blank(round(_CANVAS * min(shape)))
    light = float(rng.uniform(0, math.tau))
    turn = float(rng.uniform(0, math.tau))
    surface = _machined(rng, blank, light - turn)
    cover, mask = blank.cover, np.zeros_like(blank.cover)
    match flaw:
        case Flaw.SCRATCH:
            mask = _scratch(rng, blank, surface)
        case Flaw.DENT:
            mask = _dent(rng, blank, surface, light - turn)
        case Flaw.STAIN:
            mask = _stain(rng, blank, surface)
        case Flaw.CHIP:
            cover, mask = _chip(rng, blank, surface)
        case None:
            pass
    pose = _pose(rng, shape, blank.size, turn)
    steel = _warp(cv2.convertScaleAbs(surface, alpha=_GREY), pose, shape)
    image = _photograph(rng, steel, _warp(cover, pose, shape), light)
    return Part(image=image, mask=_warp(mask, pose, shape) if flaw else np.zeros(shape, np.uint8), flaw=flaw)


# Sizes below are in radii of the part unless they say px.
_CANVAS: Final = 0.82  # side of the part's own canvas, of the frame's shorter side
_BORE: Final = 0.22
_HUB: Final = 0.42
_GROOVE: Final = 0.455
_CHAMFER: Final = 0.955
_BOLT_CIRCLE: Final = 0.70
_BOLTS: Final = 6
_BOLT: Final = 0.085
_LEVELS: Final = 2048  # steps of the radius table; it reaches to _REACH
_REACH: Final = 1.5
_TURNS: Final = 1024  # steps of the angle table
_GREY: Final = 255.0
_FIXED_POINT: Final = 4  # fraction bits of OpenCV's drawing coordinates
_ON: Final = 127  # a mask cell counts from here
_STROKE_STEPS: Final = 24
_ON_STEEL: Final = 0.8  # least share of a scratch that lies on steel
_BRIGHT_SCRATCHES: Final = 0.65  # share; the rest are dark
_RIM_CHIPS: Final = 0.7  # share; the rest are at a bolt hole
_DARK_FACETS: Final = 0.5  # share of broken faces that look away from the light
_HOLLOW_EDGE: Final = 0.25  # depth, of the deepest, from which a dent counts as such
_FILM_EDGE: Final = 0.4  # thickness from which a stain counts as such
_SHARP_PX: Final = 0.35  # less blur than this has no weight outside the middle pixel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Blank:
    """The part as designed, on a square canvas of its own."""

    size: int
    radius: float
    """px."""
    ring: NDArray[np.intp]
    """Radius of each pixel, in table steps."""
    angle: NDArray[np.intp]
    albedo: NDArray[np.float32]
    cover: NDArray[np.uint8]
    """255 where there is steel."""

    def point(self, radius: float, angle: float) -> tuple[float, float]:
        middle = (self.size - 1) / 2
        return middle + radius * self.radius * math.cos(angle), middle + radius * self.radius * math.sin(angle)


def _fixed(value: float) -> int:
    return round(value * (1 << _FIXED_POINT))


def _disc(image: NDArray[np.uint8], centre: tuple[float, float], radius: float, value: int, width: int = -1) -> None:
    at = (_fixed(centre[0]), _fixed(centre[1]))
    cv2.circle(image, at, _fixed(radius), (float(value),), width, cv2.LINE_AA, _FIXED_POINT)


@functools.lru_cache(maxsize=4)
def _blank(size: int) -> _Blank:
    radius = size * 0.48
    axis = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / radius
    x, y = np.meshgrid(axis, axis)
    distance, angle = cv2.cartToPolar(x, y)
    ring = np.minimum(distance * (_LEVELS / _REACH), _LEVELS - 1).astype(np.intp)
    turn = (angle * (_TURNS / math.tau)).astype(np.intp) % _TURNS

    steps = np.arange(_LEVELS, dtype=np.float32) * (_REACH / _LEVELS)
    edges = [0, _BORE, _BORE + 0.02, _HUB, _GROOVE, _CHAMFER, 1.0, _REACH]
    levels = [0.0, 0.80, 0.60, 0.30, 0.52, 0.74, 0.0]
    profile = np.select(
        [steps < edge for edge in edges[1:]], [np.float32(level) for level in levels], np.float32(0)
    ).astype(np.float32)
    albedo = cv2.GaussianBlur(profile[ring], (0, 0), max(0.6, radius / 500))
    cover = np.zeros((size, size), np.uint8)
    part = _Blank(size=size, radius=radius, ring=ring, angle=turn, albedo=albedo, cover=cover)

    middle = part.point(0, 0)
    _disc(cover, middle, radius, 255)
    _disc(cover, middle, radius * _BORE, 0)
    keyway = [part.point(radius, angle) for radius, angle in ((0.1, 0.7), (0.29, 0.2), (0.29, -0.2), (0.1, -0.7))]
    cv2.fillConvexPoly(
        cover, np.array([[_fixed(x), _fixed(y)] for x, y in keyway], np.int32), (0.0,), cv2.LINE_AA, _FIXED_POINT
    )
    rims = np.zeros_like(cover)
    for index in range(_BOLTS):
        at = part.point(_BOLT_CIRCLE, (index + 0.5) * math.tau / _BOLTS)
        _disc(rims, at, radius * (_BOLT + 0.018), 255)
        _disc(cover, at, radius * _BOLT, 0)
    _disc(cover, part.point(_BOLT_CIRCLE, math.tau / _BOLTS), radius * 0.03, 0)  # one dowel hole
    np.copyto(albedo, np.float32(0.76), where=rims > _ON)
    return part


@functools.lru_cache(maxsize=4)
def _grain(size: int) -> NDArray[np.float32]:
    """A tileable field of surface texture, mean 0 and deviation 1."""
    rng = np.random.default_rng(size)
    field = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 1.2)
    return field / np.float32(field.std())


@functools.lru_cache(maxsize=1)
def _bell() -> NDArray[np.float32]:
    """Random byte to a normal deviate: 256 quantiles cost a tenth of drawing the deviates themselves."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((level + 0.5) / 256) for level in range(256)], np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    raw = np.frombuffer(rng.bytes(shape[0] * shape[1]), np.uint8).reshape(shape)
    return cv2.LUT(raw, _bell() * np.float32(sigma)).astype(np.float32, copy=False)


def _smooth(rng: np.random.Generator, count: int, width: float) -> NDArray[np.float32]:
    """A closed line of `count` smooth random values, deviation 1."""
    row = rng.standard_normal((1, count), dtype=np.float32)
    line = cv2.GaussianBlur(np.hstack([row, row, row]), (0, 0), width)[0, count : 2 * count]
    return line / np.float32(max(float(line.std()), 1e-6))


def _machined(rng: np.random.Generator, blank: _Blank, light: float) -> NDArray[np.float32]:
    """The surface as lit, 0..1: concentric turning marks that flash in two opposite sectors."""
    marks = np.float32(rng.uniform(0.015, 0.035)) * _smooth(rng, _LEVELS, 1.5)
    marks += np.float32(rng.uniform(0.01, 0.025)) * _smooth(rng, _LEVELS, 12)
    turn = np.arange(_TURNS, dtype=np.float32) * np.float32(math.tau / _TURNS)
    sharp = rng.uniform(2, 6)
    flash = np.abs(np.cos(turn - np.float32(light))) ** np.float32(sharp)
    flash = 1 + np.float32(rng.uniform(0.10, 0.32)) * (flash - np.float32(0.4))
    flash += np.float32(0.012) * _smooth(rng, _TURNS, 3)
    surface = blank.albedo * (1 + marks)[blank.ring]
    surface *= flash.astype(np.float32)[blank.angle]
    texture = _grain(blank.size)
    shift = rng.integers(0, blank.size, 2)
    surface += np.float32(rng.uniform(0.006, 0.016)) * np.roll(texture, (int(shift[0]), int(shift[1])), (0, 1))
    return surface


def _place(rng: np.random.Generator, blank: _Blank, low: float, high: float) -> tuple[float, float]:
    """A point on steel, px, at least its own surroundings away from the holes."""
    while True:
        x, y = blank.point(math.sqrt(rng.uniform(low * low, high * high)), rng.uniform(0, math.tau))
        reach = max(2, round(blank.radius * 0.035))
        if blank.cover[round(y) - reach : round(y) + reach + 1, round(x) - reach : round(x) + reach + 1].min() > _ON:
            return x, y


def _window(blank: _Blank, x: float, y: float, reach: float) -> tuple[slice, slice]:
    """The square of `reach` px around a point, cut at the canvas."""
    return (
        slice(max(0, int(y - reach)), min(blank.size, int(y + reach) + 1)),
        slice(max(0, int(x - reach)), min(blank.size, int(x + reach) + 1)),
    )


def _on_steel(mask: cv2.typing.MatLike, blank: _Blank) -> NDArray[np.uint8]:
    return np.asarray(cv2.min(mask, blank.cover), np.uint8)


def _stroke(rng: np.random.Generator, blank: _Blank) -> list[tuple[float, float]]:
    """A bent line, px, that lies on steel for most of its length: off it there would be nothing to see."""
    while True:
        points = [_place(rng, blank, 0.28, 0.92)]
        heading, bend = rng.uniform(0, math.tau), rng.uniform(-0.05, 0.05)
        step = blank.radius * rng.uniform(0.18, 0.75) / _STROKE_STEPS
        for _ in range(_STROKE_STEPS):
            x, y = points[-1]
            points.append((x + math.cos(heading) * step, y + math.sin(heading) * step))
            heading += bend + rng.normal(0, 0.03)
        inside = [
            blank.cover[round(y), round(x)] > _ON for x, y in points if max(x, y) < blank.size - 1 and min(x, y) > 0
        ]
        if sum(inside) >= _ON_STEEL * len(points):
            return points


def _scratch(rng: np.random.Generator, blank: _Blank, surface: NDArray[np.float32]) -> NDArray[np.uint8]:
    points = _stroke(rng, blank)
    width = blank.radius * rng.uniform(0.007, 0.018)
    core, burr = np.zeros_like(blank.cover), np.zeros_like(blank.cover)
    for index, ends in enumerate(pairwise(points), 1):
        taper = math.sin(math.pi * index / (len(points) + 1)) ** 0.6
        thick = max(1, round(width * taper * rng.uniform(0.8, 1.1)))
        for image, aside, wide in ((core, 0.0, thick), (burr, thick * 0.8, max(1, thick // 2))):
            start, end = ((_fixed(x + aside), _fixed(y + aside)) for x, y in ends)
            cv2.line(image, start, end, (255.0,), wide, cv2.LINE_AA, _FIXED_POINT)
    depth = np.float32(rng.uniform(0.18, 0.42) * (1 if rng.random() < _BRIGHT_SCRATCHES else -1))
    surface += core * (depth / np.float32(_GREY))
    surface -= burr * (depth * np.float32(0.5 / _GREY))
    return _on_steel(cv2.dilate(core, np.ones((3, 3), np.uint8)), blank)


def _dent(rng: np.random.Generator, blank: _Blank, surface: NDArray[np.float32], light: float) -> NDArray[np.uint8]:
    x, y = _place(rng, blank, 0.30, 0.90)
    wide = blank.radius * rng.uniform(0.035, 0.085)
    rows, columns = _window(blank, x, y, 3 * wide)
    down, right = np.mgrid[rows, columns].astype(np.float32)
    tilt, oval = rng.uniform(0, math.tau), rng.uniform(1.0, 1.6)
    along = ((right - x) * math.cos(tilt) + (down - y) * math.sin(tilt)) / (wide * oval)
    across = ((down - y) * math.cos(tilt) - (right - x) * math.sin(tilt)) / wide
    hollow = np.exp(-(along**2 + across**2) * 1.3)
    slope = ((right - x) * math.cos(light) + (down - y) * math.sin(light)) / wide
    depth = rng.uniform(0.28, 0.65)
    surface[rows, columns] += (depth * hollow * (1.6 * slope - 0.1)).astype(np.float32)
    mask = np.zeros_like(blank.cover)
    mask[rows, columns] = np.where(hollow > _HOLLOW_EDGE, 255, 0)
    return _on_steel(mask, blank)


def _stain(rng: np.random.Generator, blank: _Blank, surface: NDArray[np.float32]) -> NDArray[np.uint8]:
    x, y = _place(rng, blank, 0.30, 0.88)
    wide = blank.radius * rng.uniform(0.07, 0.18)
    rows, columns = _window(blank, x, y, 1.6 * wide)
    down, right = np.mgrid[rows, columns].astype(np.float32)
    lumps = cv2.resize(rng.standard_normal((6, 6), dtype=np.float32), down.shape[::-1], interpolation=cv2.INTER_CUBIC)
    fall = 1.0 - np.hypot(right - x, down - y) / wide
    film = np.clip((fall + 0.28 * lumps) * 5 + 0.5, 0, 1).astype(np.float32)
    film[np.hypot(right - x, down - y) > 1.5 * wide] = 0
    film = cv2.GaussianBlur(film, (0, 0), max(0.8, wide * rng.uniform(0.03, 0.10)))
    surface[rows, columns] *= 1 - np.float32(rng.uniform(0.20, 0.50)) * film
    mask = np.zeros_like(blank.cover)
    mask[rows, columns] = np.where(film > _FILM_EDGE, 255, 0)
    return _on_steel(mask, blank)


def _chip(
    rng: np.random.Generator, blank: _Blank, surface: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Break a piece off the outer edge or off a bolt hole; returns the steel that is left and the bite."""
    if rng.random() < _RIM_CHIPS:
        centre, size = blank.point(1.0, rng.uniform(0, math.tau)), rng.uniform(0.05, 0.12)
    else:
        hole = (int(rng.integers(_BOLTS)) + 0.5) * math.tau / _BOLTS
        x, y = blank.point(_BOLT_CIRCLE, hole)
        side = rng.uniform(0, math.tau)
        reach = _BOLT * blank.radius
        centre, size = (x + reach * math.cos(side), y + reach * math.sin(side)), rng.uniform(0.045, 0.08)
    corners = int(rng.integers(7, 12))
    spokes = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (math.tau / corners)
    lengths = size * blank.radius * rng.uniform(0.65, 1.15, corners)
    outline = np.array(
        [
            (_fixed(centre[0] + length * math.cos(spoke)), _fixed(centre[1] + length * math.sin(spoke)))
            for spoke, length in zip(spokes, lengths, strict=True)
        ],
        np.int32,
    )
    bite = np.zeros_like(blank.cover)
    cv2.fillPoly(bite, [outline], (255.0,), cv2.LINE_AA, _FIXED_POINT)
    lip = max(3, round(blank.radius * 0.02)) | 1
    broken = cv2.dilate(bite, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * lip + 1, 2 * lip + 1)))
    facet = np.float32(rng.uniform(0.28, 0.42) if rng.random() < _DARK_FACETS else rng.uniform(0.8, 0.95))
    np.copyto(surface, facet, where=broken > _ON)
    surface += np.where(broken > _ON, np.float32(0.05), np.float32(0)) * _grain(blank.size)
    return np.asarray(cv2.subtract(blank.cover, bite), np.uint8), _on_steel(broken, blank)


def _pose(rng: np.random.Generator, shape: tuple[int, int], size: int, turn: float) -> NDArray[np.float64]:
    scale = rng.uniform(0.95, 1.05)
    shift = 0.05 * min(shape)
    middle = (size - 1) / 2
    pose = cv2.getRotationMatrix2D((middle, middle), -math.degrees(turn), scale)
    pose[0, 2] += (shape[1] - 1) / 2 - middle + rng.uniform(-shift, shift)
    pose[1, 2] += (shape[0] - 1) / 2 - middle + rng.uniform(-shift, shift)
    return np.asarray(pose, np.float64)


def _warp(canvas: cv2.typing.MatLike, pose: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.warpAffine(canvas, pose, (shape[1], shape[0])), np.uint8)


def _photograph(
    rng: np.random.Generator, steel: NDArray[np.uint8], alpha: NDArray[np.uint8], light: float
) -> NDArray[np.uint8]:
    """Put the part on the belt, light it unevenly, and take the picture through lens and sensor."""
    shape = steel.shape
    height, width = shape
    scale = min(shape) / 1024
    side = _grain(round(256 * scale) + 1)
    rows, columns = -(-height // side.shape[0]), -(-width // side.shape[1])
    belt = np.tile(side * np.float32(rng.uniform(1.0, 2.5)), (rows, columns))[:height, :width]
    belt += np.float32(rng.uniform(20, 34))
    small = cv2.resize(alpha, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    offset = 2.2 * scale
    shadow = cv2.warpAffine(
        cv2.GaussianBlur(small, (0, 0), 2.5 * scale),
        np.array([[1, 0, -offset * math.cos(light)], [0, 1, -offset * math.sin(light)]]),
        (width // 8, height // 8),
    )
    belt *= 1 - cv2.resize(shadow, (width, height)).astype(np.float32) * np.float32(0.55 / _GREY)
    picture = steel.astype(np.float32)
    picture -= belt
    picture *= alpha * np.float32(1 / _GREY)
    picture += belt
    tilt, slope = rng.uniform(0, math.tau), rng.uniform(0, 0.16)
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(slope * math.cos(tilt))
    down = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(slope * math.sin(tilt))
    picture *= np.float32(rng.uniform(0.78, 1.15)) * (1 + across[None, :] + down[:, None])
    blur = rng.uniform(0.2, 1.3) * scale
    if blur > _SHARP_PX:
        cv2.GaussianBlur(picture, (0, 0), blur, dst=picture)
    picture += _noise(rng, shape, rng.uniform(1.2, 3.2))
    return np.clip(picture, 0, _GREY).astype(np.uint8)
