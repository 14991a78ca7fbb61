"""A network that tells each machine's next row: one step at a time, its hidden state carried in the engine's slot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError, PackageError
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.tagmanifest import FORECAST, HIDDEN, HIDDEN_NEXT, MACHINES, QUANTILE, TAGS
from edgeqc.inference.tagpackage import TagPackage
from edgeqc.ports import Engine

STEP_NS: Final = 100_000_000
"""A step takes 20 us; one that is not back by then is a fault of the engine."""


class Forecaster:
    """Steps one package's network for its machines (the batch axis). One thread."""

    def __init__(self, package: TagPackage, machines: int = 1) -> None:
        """Open the engine and check it on the package's golden rows. PackageError where it is off, or cannot be loaded."""
        if package.model is None:
            raise PackageError(f"{package.folder}: has no network")
        try:
            self._engine: Engine = OnnxRuntimeEngine(
                package.model, slots=1, carry={HIDDEN: HIDDEN_NEXT}, sizes={MACHINES: machines}
            )
        except EngineError as exc:
            raise PackageError(f"{package.folder / 'model.onnx'}: {exc}") from exc
        self.backend = self._engine.backend
        manifest = package.manifest
        shapes = {tensor.name: tensor.shape for tensor in self._engine.io.inputs + self._engine.io.outputs}
        said = {
            TAGS: (machines, len(manifest.tags)),
            FORECAST: (manifest.members, machines, len(manifest.tags)),
            QUANTILE: (machines, 3 * len(manifest.tags)),
        }
        if shapes != said:
            self._engine.close()
            raise PackageError(f"{package.folder / 'model.onnx'}: has {shapes}, the manifest says {said}")
        self._slot = self._engine.acquire()
        self._tags = self._slot.input(TAGS)
        self._forecast = self._slot.output(FORECAST)
        self._quantile = self._slot.output(QUANTILE)
        self.error = self._check(package)
        """Largest difference from the golden forecasts."""
        self.reset()

    def step(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take the newest row of each machine and tell the next.

        Args:
            rows: (machines, tags) scaled, finite: one NaN would stay in the hidden state for ever.

        Returns:
            (members, machines, tags) forecasts and (machines, 3, tags) quantiles 5 %, 50 %, 95 % in rising order.

        Raises:
            EngineError: the runtime failed, or gave what is no number. The hidden state is zero again after it.
        """
        self._tags[:] = rows
        self._engine.submit(self._slot)
        self._engine.wait(self._slot, time.monotonic_ns() + STEP_NS)
        forecast = np.array(self._forecast, np.float64)
        machines, wide = self._quantile.shape
        quantile = np.sort(np.array(self._quantile, np.float64).reshape(machines, 3, wide // 3), axis=1)
        if not (np.isfinite(forecast).all() and np.isfinite(quantile).all()):
            self.reset()
            raise EngineError(f"{self.backend}: the forecast is not a number")
        return forecast, quantile

    def reset(self, machine: int | None = None) -> None:
        """Forget what was: hidden state zero, of one machine or of all."""
        if machine is None or self._tags.shape[0] == 1:
            self._slot.restore(None)
            return
        state = self._slot.state()
        state[HIDDEN][:, machine, :] = 0  # type: ignore[call-overload, unused-ignore]
        self._slot.restore(state)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of the hidden state."""
        return self._slot.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from such a copy. EngineError where it does not fit."""
        if not all(np.isfinite(np.asarray(array, np.float64)).all() for array in state.values()):
            raise EngineError("the kept hidden state is not finite")
        self._slot.restore(state)

    def close(self) -> None:
        """Free the engine."""
        self._slot.release()
        self._engine.close()

    def _check(self, package: TagPackage) -> float:
        worst = 0.0
        machines = self._tags.shape[0]
        for row, expected in zip(package.golden["tags"], package.golden["forecast"], strict=True):
            forecast, _ = self.step(np.tile(np.asarray(row, np.float64), (machines, 1)))
            worst = max(worst, float(np.abs(forecast - expected[:, None, :]).max()))
        limit = package.manifest.golden_tolerance
        if worst > limit:
            self.close()
            raise PackageError(
                f"{package.folder}: {self.backend} is off the golden forecasts by {worst:.3g}, limit {limit:g}"
            )
        return worst
