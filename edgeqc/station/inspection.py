"""From a frame to a judgement: preprocessing straight into the engine's memory, the engine, what its outputs say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError
from edgeqc.inference.choice import choose, judging
from edgeqc.inference.engine import open_engine
from edgeqc.inference.judge import Judge, map_shape
from edgeqc.inference.package import Package, check_golden, load_package
from edgeqc.inference.preprocess import Placement, Preprocess
from edgeqc.inference.trust import Trust
from edgeqc.ports import EngineSlot
from edgeqc.settings import CameraBase, GpuSettings, RecipeSettings
from edgeqc.station.part import Look


class Inspection:
    """One recipe's engine for one camera, with its pre- and post-processing. Line thread only."""

    def __init__(
        self,
        recipe: RecipeSettings,
        camera: CameraBase,
        *,
        trust: Trust | None = None,
        core: int | None = None,
        state_dir: Path | None = None,
        gpu: GpuSettings | None = None,
        alive: Callable[[], None] | None = None,
    ) -> None:
        """Load, warm up and check against the golden outputs: seconds. PackageError where it may not judge parts.

        `alive` is called now and then while it loads, at least every TRIAL_S (`edgeqc.inference.choice`).
        """
        whole = load_package(recipe.engine, trust=trust)
        self.choice = choose(
            whole,
            backend=recipe.backend,
            precision=recipe.precision,
            ways=judging(whole, recipe),
            threads=recipe.threads,
            core=core,
            state_dir=state_dir,
            gpu=gpu,
            alive=alive,
        )
        if alive is not None:
            alive()
        self.package: Package = whole.as_run(self.choice.backend, self.choice.precision)
        self.engine = open_engine(
            self.package, backend=self.choice.backend, threads=recipe.threads, state_dir=state_dir, gpu=gpu
        )
        self.golden_difference = check_golden(self.engine, self.package)
        self.threshold = self.package.threshold if recipe.threshold is None else recipe.threshold
        self.hold = self.package.calibration.hold_threshold if recipe.hold else None
        self._passing = self.threshold if self.hold is None else min(self.hold, self.threshold)
        shape = (camera.height_px, camera.width_px)
        self._preprocess = Preprocess(self.package.manifest.preprocess, self.package.input_shape, shape, recipe.region)
        self._judge = Judge(self.package)
        self._input = self.engine.io.inputs[0].name
        self._frames: NDArray[np.uint8] | None = None
        """The memory of all frames, where the engine may read them in it."""
        self._sample = np.zeros(shape, np.uint8)
        """A real frame, copied once, for rehearsals."""
        self._has_sample = False
        self._scratch_map = np.zeros(map_shape(shape), np.uint8)
        self.run_ns = 0
        """Length of the last run of the engine."""

    def inspect(
        self, part: Look, pixels: NDArray[np.uint8], map_out: NDArray[np.uint8], *, keep_pass: bool = False
    ) -> bool:
        """Judge a (height, width) Mono8 frame: fills in the part's score, defects and times.

        The map is drawn for parts that may be rejected, and with `keep_pass` for all, because the image will be kept.

        False where no part is in the frame. EngineError where the engine failed.
        """
        slot = self.engine.acquire()
        try:
            placement = self._prepare(slot, pixels)
            part.prepared_ns = time.monotonic_ns()
            if not placement.found:
                return False
            self.engine.submit(slot)
            self.engine.wait(slot, part.fail_safe_at_ns)
            part.scored_ns = time.monotonic_ns()
            self.run_ns = part.scored_ns - part.prepared_ns
            part.score = self._judge.score(slot)
            if keep_pass or not part.score < self._passing:
                # A part that passes has no defects to tell of; the line must not wait for what nobody looks at.
                part.defects = self._judge.judgement(slot, placement).defects
                self._judge.draw(slot, placement, map_out)
            if not math.isfinite(part.score):
                raise EngineError(f"score is {part.score}")
            return True
        finally:
            slot.release()

    def adopt(self, memory: NDArray[np.uint8]) -> bool:
        """Show the engine the memory that frames will lie in; False where it cannot read them in place."""
        adopted = self.engine.adopt(memory)
        if adopted and self.package.manifest.takes_pixels:
            self._frames = memory
        return adopted

    def take_sample(self, pixels: NDArray[np.uint8]) -> None:
        """Keep a copy of the first frame that it is given, for rehearsals."""
        if not self._has_sample:
            self._has_sample = True
            np.copyto(self._sample, pixels)

    def rehearse(self, part: Look) -> None:
        """Do all of `inspect` on the sample, so that caches and clocks are as they are under load."""
        self.inspect(part, self._sample, self._scratch_map)

    def _prepare(self, slot: EngineSlot, pixels: NDArray[np.uint8]) -> Placement:
        """Give the engine the frame: where it is, if its model takes it as it is, else by one write."""
        if self._frames is not None and np.may_share_memory(self._frames, pixels):
            found = self._preprocess.in_place(pixels)
            if found is not None:
                slot.point(self._input, found[0])
                return found[1]
        return self._preprocess.into(pixels, slot.input(self._input))

    def close(self) -> None:
        """Free the engine."""
        self._frames = None
        self.engine.close()
