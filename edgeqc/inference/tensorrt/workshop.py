"""Builds a package's plan on this box: made, run, compared with the golden outputs, and only then put in place."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgeqc.errors import EngineError, EngineLostError, PackageError, PlanError
from edgeqc.inference.cuda import open_cuda
from edgeqc.inference.cuda.port import Device
from edgeqc.inference.package import Package, check_golden, check_io
from edgeqc.inference.tensorrt import vendor
from edgeqc.inference.tensorrt.build import BuildOptions, Progress, build_plan, shapes_of
from edgeqc.inference.tensorrt.engine import TensorRtEngine
from edgeqc.inference.tensorrt.plan import SCHEMA, Make, Plans, Sidecar, make_of
from edgeqc.settings import GpuSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one package."""

    path: Path
    state: str
    """`current`: nothing to do; `built`; `stale`: to be built, but only looked at."""
    why: str
    sidecar: Sidecar | None
    """Of the plan that is there now."""


class Workshop:
    """Everything that building on this box needs, opened once. One thread; close it."""

    def __init__(self, state_dir: Path, gpu: GpuSettings) -> None:
        """PackageError where TensorRT is missing, EngineLostError where there is no GPU."""
        self._gpu = gpu
        self._trt = vendor.load()
        self._cuda = open_cuda(gpu.adapter, device=gpu.device)
        self.device: Device = self._cuda.device
        self.tensorrt = str(self._trt.__version__)
        self.plans = Plans(state_dir)

    def look(self, package: Package) -> Outcome:
        """Whether the package (as it runs) has a plan that would be run."""
        path = self.plans.path(package)
        try:
            _, sidecar = self.plans.load(package, self._make(package))
        except PlanError as exc:
            return Outcome(path=path, state="stale", why=str(exc), sidecar=None)
        return Outcome(path=path, state="current", why="fits package, device, driver and TensorRT", sidecar=sidecar)

    def build(self, package: Package, *, progress: Progress | None = None) -> Outcome:
        """Build, check and store; what was there stays until the new one has passed.

        PackageError where the model cannot be built, does not run, or is further from the golden outputs than the
        package allows; the numbers are in the message.
        """
        options = BuildOptions(
            workspace_mb=self._gpu.workspace_mb, level=self._gpu.build_level, shapes=shapes_of(package.io)
        )
        began = time.monotonic()
        try:
            timings = self.plans.timings.read_bytes()
        except OSError:
            timings = b""
        self._cuda.attach()
        try:
            plan, timings = build_plan(self._trt, package.model, options, progress=progress, timings=timings)
        except PackageError as exc:
            raise PackageError(f"{package.model_file}: {exc}") from exc
        build_s = round(time.monotonic() - began, 3)
        difference = self._checked(package, plan)
        sidecar = Sidecar(
            schema=SCHEMA,
            package=package.name,
            make=self._make(package),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            plan_bytes=len(plan),
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            build_s=build_s,
            golden_difference=difference,
            workspace_mb=options.workspace_mb,
            level=options.level,
        )
        self.plans.store(package, plan, sidecar)
        self.plans.keep_timings(timings)
        why = f"{build_s:.1f} s, off the golden outputs by {difference:.3g}"
        return Outcome(path=self.plans.path(package), state="built", why=why, sidecar=sidecar)

    def close(self) -> None:
        """Let go of the device."""
        self._cuda.close()

    def _make(self, package: Package) -> Make:
        return make_of(package, tensorrt=self.tensorrt, device=self.device)

    def _checked(self, package: Package, plan: bytes) -> float:
        """Run the fresh plan as the daemon will."""
        cuda = open_cuda(self._gpu.adapter, device=self._gpu.device)
        try:
            engine = TensorRtEngine(plan, trt=self._trt, cuda=cuda, slots=1, graphs=self._gpu.graphs)
        except EngineLostError:
            raise
        except EngineError as exc:
            raise PackageError(f"{package.model_file}: was built but does not run: {exc}") from exc
        try:
            check_io(engine.io, package)
            return check_golden(engine, package)
        finally:
            engine.close()
