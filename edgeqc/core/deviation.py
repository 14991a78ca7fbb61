"""How far a machine is from what it was taught is normal: one number per row of its tags, and which tags make it. Pure.

Two views are multiplied: how odd the row is (half by how badly it was forecast, half by how far it is from the centre)
and how far the smoothed tags are from their usual level. Either alone flutters more; their geometric mean was the best
of 45 scores tried on SKAB. 1 is what one row in a hundred of the good time reaches. Where there is no forecast the
distance alone is the oddness. T2 and Q stand beside it: they see tags that no longer go together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CLIP: Final = 20.0
"""Widths of normal: a sensor that jumps to its end must not drown the others for minutes."""
_NOTHING: Final = 1e-12
_LEAST: Final = 1e-3
"""Of a view, so that a perfectly still machine does not make a product of zero out of the other view."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scale:
    """What is usual for each tag."""

    centre: Floats
    """(tags,) in the tags' own units."""
    width: Floats
    """(tags,), over 0."""

    def apply(self, row: Floats) -> Floats:
        """Give the row in widths from the centre, clipped to CLIP."""
        # np.clip does the same in four times the time
        return np.minimum(np.maximum((row - self.centre) / self.width, -CLIP), CLIP)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MonitorModel:
    """A PCA of the smoothed tags of the good time: Hotelling's T2 inside it, Q (squared prediction error) beside it."""

    scale: Scale
    axes: Floats
    """(components, tags), orthonormal rows."""
    variances: Floats
    """(components,) of the good time along each axis."""
    t2_usual: float
    """99 % quantile of T2 in the good time; `q_usual` likewise."""
    q_usual: float
    smoothing: float
    """Share of a new row in the smoothed one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviationModel:
    """What the good time taught."""

    forecast_scale: Scale
    """Robust (median, quartiles): what the network reads and forecasts is in these widths."""
    level_scale: Scale
    """Mean and standard deviation."""
    level_usual: Floats
    """(tags,) 95 % quantile of the smoothed level of each tag."""
    surprise_usual: float
    """99 % quantile of the smoothed forecast error; the others likewise."""
    distance_usual: float
    """Of the smoothed distance from the centre."""
    offset_usual: float
    """Of the level's length."""
    score_usual: float
    """Of both views together, with forecasts; `plain_usual` without."""
    plain_usual: float
    surprise_smoothing: float
    level_smoothing: float
    monitor: MonitorModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deviation:
    """What one row says."""

    score: float
    """Over 0; 1 is unusual, NaN where no forecast was there to compare with."""
    plain: float
    """The same without a forecast."""
    monitor: float
    """By T2 and Q: the square root of the worse of the two in its usual size."""
    level: Floats
    """(tags,) smoothed distance from the usual level, in standard deviations, signed."""
    odd: Floats
    """(tags,) what each adds to how odd the row is; `offsets` to how far off the level is, `parts` to the monitor."""
    offsets: Floats
    parts: Floats

    @property
    def shares(self) -> Floats:
        """(tags,) of the score (the plain one where there is none); they add up to 1."""
        return (_shares(self.odd) + _shares(self.offsets)) / 2

    @property
    def monitor_shares(self) -> Floats:
        """(tags,) of the monitor; they add up to 1."""
        return _shares(self.parts)


class DeviationMeter:
    """Measures row after row. State is a few numbers per tag; O(tags x components) per row."""

    def __init__(self, model: DeviationModel) -> None:
        self._model = model
        self._one_scale = _alike(model.level_scale, model.monitor.scale)
        tags = len(model.level_usual)
        self._surprise = np.zeros(tags)
        self._distance = np.zeros(tags)
        self._level = np.zeros(tags)
        self._smooth = np.zeros(tags)
        self._rows = 0
        self._forecasts = 0

    @property
    def surprise(self) -> float:
        """The smoothed forecast error, over all tags."""
        return float(self._surprise.sum())

    @property
    def distance(self) -> float:
        """The smoothed distance from the centre, over all tags."""
        return float(self._distance.sum())

    def reset(self) -> None:
        """Forget what was: the next row is the first."""
        self._surprise[:] = self._distance[:] = self._level[:] = self._smooth[:] = 0
        self._rows = self._forecasts = 0

    def measure(self, row: Floats, forecasts: Floats | None) -> Deviation:
        """Give what the row says.

        Args:
            row: (tags,) finite, in the tags' units.
            forecasts: (members, tags) of this very row in widths of `forecast_scale`, made before it came; None where
                there are none: the score is NaN.
        """
        model = self._model
        level, scaled = model.level_scale.apply(row), model.forecast_scale.apply(row)
        self._level += (level - self._level) * (model.level_smoothing if self._rows else 1.0)
        self._distance += (np.abs(scaled) - self._distance) * (model.surprise_smoothing if self._rows else 1.0)
        monitor, parts = self._monitor(level if self._one_scale else model.monitor.scale.apply(row))
        self._rows += 1
        offsets = (self._level / model.level_usual) ** 2
        offset = math.sqrt(offsets.sum()) / model.offset_usual
        odd = self._distance / model.distance_usual
        plain = score_of(float(odd.sum()), offset) / model.plain_usual
        score = math.nan
        if forecasts is not None:
            missed = np.abs(scaled - forecasts).sum(axis=0) / len(forecasts)
            self._surprise += (missed - self._surprise) * (model.surprise_smoothing if self._forecasts else 1.0)
            self._forecasts += 1
            odd = (odd + self._surprise / model.surprise_usual) / 2
            score = score_of(float(odd.sum()), offset) / model.score_usual
        return Deviation(
            score=score,
            plain=plain,
            monitor=monitor,
            level=self._level.copy(),
            odd=odd,
            offsets=offsets,
            parts=parts,
        )

    def kept(self) -> dict[str, Any]:
        """What a restart must not forget; JSON."""
        return {
            "surprise": self._surprise.tolist(),
            "distance": self._distance.tolist(),
            "level": self._level.tolist(),
            "smooth": self._smooth.tolist(),
            "rows": self._rows,
            "forecasts": self._forecasts,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on where an earlier run ended. ValueError, KeyError or TypeError, and nothing changed, if it is damaged."""
        arrays = [np.array(kept[name], np.float64) for name in ("surprise", "distance", "level", "smooth")]
        rows, forecasts = int(kept["rows"]), int(kept["forecasts"])
        if any(array.shape != self._level.shape or not np.isfinite(array).all() for array in arrays):
            raise ValueError("the kept state is of another shape, or not finite")
        self._surprise, self._distance, self._level, self._smooth = arrays
        self._rows, self._forecasts = rows, forecasts

    def _monitor(self, scaled: Floats) -> tuple[float, Floats]:
        model = self._model.monitor
        self._smooth += (scaled - self._smooth) * (model.smoothing if self._rows else 1.0)
        t2, q, parts = monitor_parts(model, self._smooth)
        return math.sqrt(max(t2 / model.t2_usual, q / model.q_usual)), parts


def score_of(odd: float, offset: float) -> float:
    """Both views, each in its usual size, as one number."""
    return math.sqrt(max(odd, _LEAST) * max(offset, _LEAST))


def monitor_parts(model: MonitorModel, smooth: Floats) -> tuple[float, float, Floats]:
    """Give T2, Q, and what each tag adds to the worse of the two, for a smoothed, scaled row (tags,)."""
    along = model.axes @ smooth
    weighted = along / model.variances
    rest = smooth - along @ model.axes
    t2, q = float(along @ weighted), float(rest @ rest)
    if t2 / model.t2_usual > q / model.q_usual:
        return t2, q, np.abs(smooth * (weighted @ model.axes))
    return t2, q, rest**2


def _shares(parts: Floats) -> Floats:
    """Each part of their sum; equal ones where there is nothing to share."""
    total = float(parts.sum())
    return np.asarray(parts / total) if total > _NOTHING else np.full(len(parts), 1 / len(parts))


def _alike(one: Scale, other: Scale) -> bool:
    return np.array_equal(one.centre, other.centre) and np.array_equal(one.width, other.width)
