"""What the good time teaches: scales, usual sizes, the monitor. Everything of a `DeviationModel` but the network. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.deviation import DeviationMeter, DeviationModel, Floats, MonitorModel, Scale, score_of

SETTLE_ROWS: Final = 30
"""After a start: smoothing and hidden state know nothing yet, so nothing is judged and nothing learned."""
SURPRISE_SMOOTHING: Final = 0.1
LEVEL_SMOOTHING: Final = 0.05
"""Per row of 1 s: 10 s for the forecast error, 20 s for the level. SKAB, facts of this project's own trials."""
MONITOR_SMOOTHING: Final = 0.1
MONITOR_VARIANCE: Final = 0.85
"""Share that the PCA's components explain, as in SKAB's T2+Q reference."""
_QUARTILES_PER_SD: Final = 1.349
"""Between the quartiles of a normal distribution, in standard deviations."""
_ROBUST_SHARE: Final = 0.3
"""The robust width is no less than this share of the standard deviation: a tag that mostly stands still."""
_STILL: Final = 1e-3
"""Added to every width: a tag that never moved, in its own unit."""


def robust_scale(rows: Floats) -> Scale:
    """Median and quartiles of (rows, tags)."""
    low, centre, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=0)
    return Scale(
        centre=centre, width=np.maximum((high - low) / _QUARTILES_PER_SD, _ROBUST_SHARE * rows.std(axis=0)) + _STILL
    )


def plain_scale(rows: Floats) -> Scale:
    """Mean and standard deviation of (rows, tags)."""
    return Scale(centre=rows.mean(axis=0), width=rows.std(axis=0) + _STILL)


def teach(
    rows: Floats, forecasts: NDArray[np.float32] | None, *, forecast_scale: Scale, whole: list[slice]
) -> DeviationModel:
    """Learn what is usual from the good time.

    Args:
        rows: (rows, tags), finite.
        forecasts: (rows, members, tags): of each row, made before it came, in widths of `forecast_scale`; NaN in the
            first row of each stretch. None: only the monitor is taught.
        forecast_scale: what the network reads.
        whole: the stretches of rows without a gap, in order.
    """
    blank = DeviationModel(
        forecast_scale=forecast_scale,
        level_scale=plain_scale(rows),
        level_usual=np.ones(rows.shape[1]),
        surprise_usual=1.0,
        distance_usual=1.0,
        offset_usual=1.0,
        score_usual=1.0,
        plain_usual=1.0,
        surprise_smoothing=SURPRISE_SMOOTHING,
        level_smoothing=LEVEL_SMOOTHING,
        monitor=_teach_monitor(rows, whole),
    )
    levels, distances, surprises = _walk(blank, rows, forecasts, whole)
    level_usual = np.maximum(np.quantile(np.abs(levels), 0.95, axis=0), 1e-6)
    offsets = np.sqrt(((levels / level_usual) ** 2).sum(axis=1))
    model = replace(blank, level_usual=level_usual, offset_usual=_usual(offsets), distance_usual=_usual(distances))
    offsets, odd = offsets / model.offset_usual, distances / model.distance_usual
    model = replace(model, plain_usual=_usual(_scores(odd, offsets)))
    if forecasts is None:
        return model
    model = replace(model, surprise_usual=_usual(surprises))
    odd = (odd + surprises / model.surprise_usual) / 2
    return replace(model, score_usual=_usual(_scores(odd, offsets)))


def _scores(odd: Floats, offsets: Floats) -> Floats:
    return np.array([score_of(float(one), float(other)) for one, other in zip(odd, offsets, strict=True)])


def _walk(
    model: DeviationModel, rows: Floats, forecasts: NDArray[np.float32] | None, whole: list[slice]
) -> tuple[Floats, Floats, Floats]:
    """Smoothed levels, distances and forecast errors of all rows that are settled."""
    levels, distances, surprises = [], [], []
    for stretch in whole:
        meter = DeviationMeter(model)
        for place in range(stretch.start, stretch.stop):
            known = None if forecasts is None or place == stretch.start else np.asarray(forecasts[place], np.float64)
            found = meter.measure(rows[place], known)
            if place - stretch.start >= SETTLE_ROWS:
                levels.append(found.level)
                distances.append(meter.distance)
                surprises.append(meter.surprise)
    return np.array(levels), np.array(distances), np.array(surprises)


def _teach_monitor(rows: Floats, whole: list[slice]) -> MonitorModel:
    scale = plain_scale(rows)
    scaled = scale.apply(rows)
    smooth = []
    for stretch in whole:
        last = scaled[stretch.start].copy()
        for place in range(stretch.start, stretch.stop):
            last += (scaled[place] - last) * MONITOR_SMOOTHING
            if place - stretch.start >= SETTLE_ROWS:
                smooth.append(last.copy())
    kept = np.array(smooth)
    _, sizes, axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
    shares = np.cumsum(sizes**2) / max(float((sizes**2).sum()), 1e-12)
    count = min(int(np.searchsorted(shares, MONITOR_VARIANCE)) + 1, len(sizes))
    axes = axes[:count]
    along = kept @ axes.T
    variances = np.maximum(along.var(axis=0), 1e-6)
    rest = kept - along @ axes
    return MonitorModel(
        scale=scale,
        axes=axes,
        variances=variances,
        t2_usual=_usual((along**2 / variances).sum(axis=1)),
        q_usual=_usual((rest**2).sum(axis=1)),
        smoothing=MONITOR_SMOOTHING,
    )


def _usual(values: Floats) -> float:
    return max(float(np.quantile(values, 0.99)), 1e-9)
