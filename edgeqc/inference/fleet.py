"""Machines of one kind under one model's eye: a row of each in, how far each is from normal out.

The network steps for all of them at once (the batch axis); scales, smoothing and settling are each machine's own. What
is missing is not made up: a tag that is away for a moment is taken as forecast, one that stays away makes the machine
blind, a gap in the rows makes it begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.core.deviation import Deviation, DeviationMeter, Floats
from edgeqc.errors import EngineError
from edgeqc.inference.forecast import Forecaster
from edgeqc.inference.tagmanifest import HIDDEN
from edgeqc.inference.tagpackage import TagPackage

HOLD_ROWS: Final = 10
"""A tag that is missing for no more rows than this is taken as forecast (as last seen, without a network)."""
GAP_ROWS: Final = 60
"""Rows missing beyond this are a gap: what the hidden state remembers has nothing to do with now."""


class Sight(StrEnum):
    """What a row could be judged by."""

    MODEL = "model"
    """Forecast and level."""
    PLAIN = "plain"
    """Distance and level, without a forecast: there is no network, or it failed. T2 and Q beside it, as always."""
    SETTLING = "settling"
    """Too few rows since a start, a gap, or the machine's own start."""
    BLIND = "blind"
    """Tags are missing."""
    OFF = "off"
    """The machine is in a state that the model has not learned."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What one row of one machine says."""

    sight: Sight
    excess: float
    """1 is where alarm begins; NaN while settling, blind or off."""
    score: float
    """What is shown: the model's, the plain one, or the monitor's where that is what raises; NaN as `excess`."""
    limit: float
    """Of `score`, for alarm."""
    deviation: Deviation | None
    """None while blind or off."""
    row: Floats
    """(tags,) as judged: with what was filled in."""
    low: Floats | None
    """(tags,) what was expected of this row: 5 % and 95 %, in the tags' units; None without a forecast."""
    high: Floats | None
    by_monitor: bool = False
    """Is it T2 and Q that are furthest over?"""
    missing: tuple[int, ...] = ()
    """Tags that are away."""

    @property
    def is_judged(self) -> bool:
        """Was the row held against a limit?"""
        return self.sight in {Sight.MODEL, Sight.PLAIN}


class Fleet:
    """All machines that share a package. One thread."""

    def __init__(self, package: TagPackage, machines: int = 1) -> None:
        """Open the network, where the package has one. PackageError."""
        self.package = package
        self.forecaster = Forecaster(package, machines) if package.model is not None else None
        self.failures = 0
        """How often the engine failed; each time the monitor took over and the network began anew."""
        self.last_failure = ""
        self._model = package.calibration.model()
        self._period_ns = round(package.manifest.grid_ms * 1e6)
        self._machines = [_Machine(DeviationMeter(self._model), len(package.tags)) for _ in range(machines)]

    @property
    def backend(self) -> str:
        """What runs, loudly."""
        return self.forecaster.backend if self.forecaster is not None else "distance, T2 and Q; no network"

    def step(self, rows: Floats, at_ns: int, judged: NDArray[np.bool_] | None = None) -> list[Seen]:
        """Take the row of each machine at one moment.

        Args:
            rows: (machines, tags) in the tags' units; NaN where a tag is missing.
            at_ns: the rows' moment; steps are `grid_ms` apart, more is a gap.
            judged: (machines,) False where the machine is in a state that the model does not know.
        """
        seen: list[Seen | None] = [None] * len(self._machines)
        filled = np.zeros(rows.shape)
        for place, machine in enumerate(self._machines):
            if machine.last_ns is not None and at_ns - machine.last_ns > GAP_ROWS * self._period_ns:
                self._begin_anew(place)
            if judged is not None and not judged[place]:
                self._begin_anew(place)
                seen[place] = self._nothing(Sight.OFF, rows[place])
                continue
            machine.last_ns = at_ns
            row, missing = self._fill(machine, rows[place])
            if row is None:
                self._begin_anew(place)
                seen[place] = self._nothing(Sight.BLIND, rows[place], missing)
                continue
            seen[place] = self._judge(machine, row, missing)
            filled[place] = self._model.forecast_scale.apply(row)
        self._look_ahead(filled, [found is not None and found.deviation is not None for found in seen])
        return [found for found in seen if found is not None]

    def kept(self) -> dict[str, Any]:
        """What a restart must not forget; JSON."""
        hidden = self.forecaster.state()[HIDDEN].tolist() if self.forecaster is not None else None
        return {"hidden": hidden, "machines": [machine.kept() for machine in self._machines]}

    def restore(self, kept: dict[str, Any], at_ns: int) -> None:
        """Go on where an earlier run ended, its last row being of `at_ns`. ValueError where it does not fit: begin anew."""
        try:
            if len(kept["machines"]) != len(self._machines) or (kept["hidden"] is None) != (self.forecaster is None):
                raise ValueError("of another number of machines, or another kind of model")  # noqa: TRY301
            if self.forecaster is not None:
                self.forecaster.restore({HIDDEN: np.array(kept["hidden"], np.float32)})
            for machine, memory in zip(self._machines, kept["machines"], strict=True):
                machine.restore(memory, at_ns)
        except (KeyError, TypeError, ValueError, EngineError) as exc:
            for place in range(len(self._machines)):
                self._begin_anew(place)
            raise ValueError(f"the kept state of {self.package.name} is not usable: {exc}") from exc

    def close(self) -> None:
        """Free the network."""
        if self.forecaster is not None:
            self.forecaster.close()

    def _fill(self, machine: _Machine, values: Floats) -> tuple[Floats | None, tuple[int, ...]]:
        """Give the row without holes, or None where it is too full of them; and which tags are missing."""
        away = ~np.isfinite(values)
        if not away.any():
            machine.away[:] = 0
            machine.last = values.copy()
            return values, ()
        machine.away = np.where(away, machine.away + 1, 0)
        missing = tuple(int(tag) for tag in np.flatnonzero(away))
        if machine.last is None or machine.away.max() > HOLD_ROWS or 2 * len(missing) > len(values):
            return None, missing
        guess = machine.last if machine.forecast is None else self._unscaled(machine.forecast.mean(axis=0))
        machine.last = np.where(away, guess, values)
        return machine.last.copy(), missing

    def _judge(self, machine: _Machine, row: Floats, missing: tuple[int, ...]) -> Seen:
        calibration = self.package.calibration
        deviation = machine.meter.measure(row, machine.forecast)
        machine.rows += 1
        low = high = None
        if machine.quantile is not None:
            low, high = self._unscaled(machine.quantile[0]), self._unscaled(machine.quantile[2])
        if self.forecaster is not None and machine.forecast_rows >= calibration.settle_rows:
            sight, score, limit = Sight.MODEL, deviation.score, calibration.alarm.limit
        elif machine.rows > calibration.settle_rows:
            sight, score, limit = Sight.PLAIN, deviation.plain, calibration.plain_limit
        else:
            sight, score, limit = Sight.SETTLING, np.nan, calibration.alarm.limit
        by_monitor = deviation.monitor / calibration.monitor_limit > score / limit  # never while it is NaN
        if by_monitor:
            score, limit = deviation.monitor, calibration.monitor_limit
        return Seen(
            sight=sight,
            excess=score / limit,
            score=score,
            limit=limit,
            deviation=deviation,
            by_monitor=by_monitor,
            row=row,
            low=low,
            high=high,
            missing=missing,
        )

    def _look_ahead(self, filled: Floats, known: list[bool]) -> None:
        """Forecast the next row of each machine that gave one."""
        if self.forecaster is None or not any(known):
            return
        try:
            forecasts, quantiles = self.forecaster.step(filled)
        except EngineError as exc:
            self.failures += 1
            self.last_failure = str(exc)
            self.forecaster.reset()
            for machine in self._machines:
                machine.unforecast()
            return
        for place, machine in enumerate(self._machines):
            if known[place]:
                machine.forecast, machine.quantile = forecasts[:, place, :], quantiles[place]
                machine.forecast_rows += 1
            elif len(self._machines) > 1:
                self.forecaster.reset(place)

    def _begin_anew(self, place: int) -> None:
        machine = self._machines[place]
        if machine.rows or machine.forecast is not None:
            machine.begin_anew()
            if self.forecaster is not None:
                self.forecaster.reset(place)

    def _nothing(self, sight: Sight, row: Floats, missing: tuple[int, ...] = ()) -> Seen:
        return Seen(
            sight=sight,
            excess=np.nan,
            score=np.nan,
            limit=self.package.calibration.alarm.limit,
            deviation=None,
            row=row,
            low=None,
            high=None,
            missing=missing,
        )

    def _unscaled(self, scaled: Floats) -> Floats:
        scale = self._model.forecast_scale
        return np.asarray(scaled * scale.width + scale.centre)


class _Machine:
    """What is remembered of one machine between rows."""

    def __init__(self, meter: DeviationMeter, tags: int) -> None:
        self.meter = meter
        self.last: Floats | None = None
        self.last_ns: int | None = None
        self.away = np.zeros(tags, np.int64)
        self.forecast: Floats | None = None
        self.quantile: Floats | None = None
        self.rows = 0
        self.forecast_rows = 0

    def begin_anew(self) -> None:
        self.meter.reset()
        self.last = None
        self.rows = 0
        self.unforecast()

    def unforecast(self) -> None:
        self.forecast = self.quantile = None
        self.forecast_rows = 0

    def kept(self) -> dict[str, Any]:
        return {
            "meter": self.meter.kept(),
            "rows": self.rows,
            "forecast_rows": self.forecast_rows,
            "last": None if self.last is None else self.last.tolist(),
            "forecast": None if self.forecast is None else self.forecast.tolist(),
        }

    def restore(self, kept: dict[str, Any], at_ns: int) -> None:
        self.meter.restore(kept["meter"])
        self.rows, self.forecast_rows = int(kept["rows"]), int(kept["forecast_rows"])
        self.last = None if kept["last"] is None else np.array(kept["last"], np.float64)
        self.forecast = None if kept["forecast"] is None else np.array(kept["forecast"], np.float64)
        for array in (self.last, self.forecast):
            if array is not None and (array.shape[-1] != len(self.away) or not np.isfinite(array).all()):
                raise ValueError("a row of another shape, or not finite")
        if self.forecast is None and self.forecast_rows:
            raise ValueError("rows were forecast, but the forecast is missing")
        self.last_ns = at_ns
