"""`backend: auto`: every backend and precision that may run a package is tried on this box, and the fastest is taken.

Each trial is a process of its own: it loads, checks the golden vectors, and measures. A library that is missing, too
slow, wrong or that crashes costs a line in the log, not the line's start, and leaves nothing in the station's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import numpy as np

from edgeqc.errors import EdgeqcError, PackageError
from edgeqc.inference.engine import open_engine
from edgeqc.inference.manifest import Backend, Precision
from edgeqc.inference.package import Package, check_golden, load_package
from edgeqc.ports import Engine
from edgeqc.settings import GpuSettings, RecipeSettings

AUTO: Final = "auto"
TRIAL_S: Final = 30.0
"""For one trial: loading takes 1 to 2 s here; a box where it takes longer than this cannot start a line in time."""
_RUN_S: Final = 0.5
_RUNS_LEAST, _RUNS_MOST = 10, 200
_BETTER_BY: Final = 0.9
"""Another than the first candidate is taken only where it needs less than this share of its time: on a busy box two
runs of the same differ by that much, and what judges parts should not change from start to start for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One way to run a package, as it did on this box."""

    backend: Backend
    precision: Precision
    p50_us: float = 0.0
    """Submit to result; 0 where it did not run."""
    p99_us: float = 0.0
    golden_difference: float = 0.0
    refused: str = ""
    """Why it may not run; empty where it may."""

    @property
    def name(self) -> str:
        """`openvino bf16`."""
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What runs, and why."""

    backend: Backend
    precision: Precision
    why: str
    trials: tuple[Trial, ...] = ()


def candidates(package: Package, *, backend: str, precision: str) -> list[tuple[Backend, Precision]]:
    """All ways that configuration and package allow, the portable reference first. PackageError where there is none."""
    backends = list(Backend) if backend == AUTO else [Backend(backend)]
    precisions = list(Precision) if precision == AUTO else [Precision(precision)]
    found: list[tuple[Backend, Precision]] = []
    why = ""
    for each in backends:
        for number in precisions:
            try:
                package.as_run(each, number)
            except PackageError as exc:
                why = why or str(exc)
            else:
                found.append((each, number))
    if not found:
        raise PackageError(why)
    return found


def judging(package: Package, recipe: RecipeSettings) -> list[tuple[Backend, Precision]]:
    """All ways in which the package may judge by this recipe: those whose limits were found on their own scores.

    PackageError where there is none.
    """
    ways = candidates(package, backend=recipe.backend, precision=recipe.precision)
    own = [way for way in ways if package.as_run(*way).calibrated]
    if not own and recipe.threshold is None:
        backend, precision = ways[0]
        raise PackageError(
            f"{package.folder}: {precision} has no calibration of its own, and its scores are not those of another: "
            f"edgeqc calibrate --engine {package.folder} --backend {backend} --precision {precision} (or recipe.threshold)"
        )
    if recipe.hold:
        own = [way for way in own if package.as_run(*way).calibration.hold_threshold is not None]
        if not own:
            raise PackageError(f"recipe {recipe.name}: hold: {package.name} has no hold band; edgeqc calibrate sets it")
    return own or ways


def choose(
    package: Package,
    *,
    backend: str,
    precision: str,
    ways: Sequence[tuple[Backend, Precision]] | None = None,
    threads: int = 1,
    core: int | None = None,
    state_dir: Path | None = None,
    gpu: GpuSettings | None = None,
    alive: Callable[[], None] | None = None,
) -> Choice:
    """What is to run: what the configuration names, or the fastest of what it leaves open (`ways`; None: all there are).

    `core`: where the line thread will run, and so the trials. `alive` is called before each trial, which takes up to
    TRIAL_S. PackageError where nothing may run.
    """
    if ways is None:
        ways = candidates(package, backend=backend, precision=precision)
    if AUTO not in (backend, precision):
        return Choice(backend=ways[0][0], precision=ways[0][1], why="the configuration names it")
    trials = []
    for way in ways:
        if alive is not None:
            alive()
        trials.append(try_out(package, way, threads=threads, core=core, state_dir=state_dir, gpu=gpu))
    return fastest(trials)


def fastest(trials: Sequence[Trial]) -> Choice:
    """The fastest, but the first unless another is clearly faster. PackageError where none may run."""
    ran = [trial for trial in trials if not trial.refused]
    if not ran:
        raise PackageError("no backend may run the package: " + "; ".join(f"{t.name}: {t.refused}" for t in trials))
    best = min(ran, key=lambda trial: trial.p50_us)
    if best.p50_us >= _BETTER_BY * ran[0].p50_us:
        best = ran[0]
    told = ", ".join(
        f"{trial.name} {trial.p50_us / 1000:.2f} ms" if not trial.refused else f"{trial.name} refused"
        for trial in trials
    )
    return Choice(backend=best.backend, precision=best.precision, why=f"fastest here: {told}", trials=tuple(trials))


def try_out(
    package: Package,
    way: tuple[Backend, Precision],
    *,
    threads: int = 1,
    core: int | None = None,
    state_dir: Path | None = None,
    gpu: GpuSettings | None = None,
) -> Trial:
    """Load, check and measure in a process of its own; up to TRIAL_S."""
    backend, precision = way
    digest = package.as_run(backend, precision).digest.hex()
    command = [sys.executable, "-m", "edgeqc.inference.choice", str(package.folder), backend, precision, digest]
    command += ["--threads", str(threads)]
    command += [] if core is None else ["--core", str(core)]
    command += [] if state_dir is None else ["--state-dir", str(state_dir)]
    command += [] if gpu is None else ["--gpu", gpu.model_dump_json()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=False)  # noqa: S603 - ours
    except subprocess.TimeoutExpired:
        return Trial(backend=backend, precision=precision, refused=f"not ready within {TRIAL_S:g} s")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Trial(backend=backend, precision=precision, refused=f"ended with {done.returncode}: {why[:200]}")
    return Trial(**{**json.loads(lines[-1]), "backend": backend, "precision": precision})


def measure(engine: Engine, package: Package) -> tuple[float, float]:
    """(p50, p99) in microseconds from submit to result, on the first golden input, for about half a second."""
    slot = engine.acquire()
    for tensor in package.io.inputs:
        np.copyto(slot.input(tensor.name), package.golden[f"input.{tensor.name}"][0])
    took: list[float] = []
    began = time.monotonic()
    while len(took) < _RUNS_LEAST or (len(took) < _RUNS_MOST and time.monotonic() - began < _RUN_S):
        start_ns = time.perf_counter_ns()
        engine.submit(slot)
        engine.wait(slot, time.monotonic_ns() + int(TRIAL_S * 1e9))
        took.append((time.perf_counter_ns() - start_ns) / 1000)
    slot.release()
    return median(took), quantiles(took, n=100)[-1]


def main() -> int:
    """One trial, told as JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m edgeqc.inference.choice")
    parser.add_argument("folder", type=Path)
    parser.add_argument("backend", type=Backend)
    parser.add_argument("precision", type=Precision)
    parser.add_argument("digest")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int)
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--gpu", type=GpuSettings.model_validate_json)
    asked = parser.parse_args()
    if asked.core is not None:
        os.sched_setaffinity(0, {asked.core})
    refused, p50_us, p99_us, difference = "", 0.0, 0.0, 0.0
    try:
        package = load_package(asked.folder).as_run(asked.backend, asked.precision)
        if package.digest.hex() != asked.digest:
            raise PackageError(f"{asked.folder}: was changed meanwhile")
        engine = open_engine(
            package, backend=asked.backend, threads=asked.threads, state_dir=asked.state_dir, gpu=asked.gpu
        )
        difference = check_golden(engine, package)
        p50_us, p99_us = measure(engine, package)
        engine.close()
    except EdgeqcError as exc:
        refused = str(exc)
    trial = Trial(
        backend=asked.backend,
        precision=asked.precision,
        p50_us=p50_us,
        p99_us=p99_us,
        golden_difference=difference,
        refused=refused,
    )
    sys.stdout.write(json.dumps(asdict(trial)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
