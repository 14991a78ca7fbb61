"""From a frame to a judgement: preprocessing straight into the engine's memory, the engine, what its outputs say."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError
from edgeqc.inference.engine import open_engine
from edgeqc.inference.judge import Judge
from edgeqc.inference.package import Package, check_golden, load_package
from edgeqc.inference.preprocess import Preprocess
from edgeqc.records import NS_PER_S
from edgeqc.settings import CameraBase, RecipeSettings
from edgeqc.station.part import Part


class Inspection:
    """One recipe's engine with its pre- and post-processing. Line thread only."""

    def __init__(self, recipe: RecipeSettings, camera: CameraBase) -> None:
        """Load, warm up and check against the golden outputs: seconds. PackageError where it may not judge parts."""
        self.package: Package = load_package(recipe.engine)
        self.engine = open_engine(self.package, backend=recipe.backend, threads=recipe.threads)
        self.golden_difference = check_golden(self.engine, self.package)
        self.threshold = self.package.threshold if recipe.threshold is None else recipe.threshold
        shape = (camera.height_px, camera.width_px)
        self._preprocess = Preprocess(self.package.manifest.preprocess, self.package.input_shape, shape, recipe.region)
        self._judge = Judge(self.package)
        self._input = self.engine.io.inputs[0].name
        self._blank = np.zeros(shape, np.uint8)
        self.run_ns = 0
        """Length of the last run of the engine."""

    def inspect(self, part: Part, pixels: NDArray[np.uint8], map_out: NDArray[np.uint8]) -> bool:
        """Judge a (height, width) Mono8 frame: fills in the part's score, defects and times, and the map.

        False where no part is in the frame. EngineError where the engine failed.
        """
        slot = self.engine.acquire()
        try:
            placement = self._preprocess.into(pixels, slot.input(self._input))
            part.prepared_ns = time.monotonic_ns()
            if not placement.found:
                return False
            self.engine.submit(slot)
            self.engine.wait(slot, part.fail_safe_at_ns)
            part.scored_ns = time.monotonic_ns()
            self.run_ns = part.scored_ns - part.prepared_ns
            judgement = self._judge.judgement(slot, placement, map_out)
            part.score, part.defects = judgement.score, judgement.defects
            if not math.isfinite(judgement.score):
                raise EngineError(f"score is {judgement.score}")
            return True
        finally:
            slot.release()

    def keep_warm(self) -> None:
        """Run the engine on a blank part, so that caches and clocks are as they are under load."""
        slot = self.engine.acquire()
        try:
            self._preprocess.into(self._blank, slot.input(self._input))
            started_ns = time.monotonic_ns()
            self.engine.submit(slot)
            self.engine.wait(slot, started_ns + NS_PER_S)
            self.run_ns = time.monotonic_ns() - started_ns
        finally:
            slot.release()

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()
