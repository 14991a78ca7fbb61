"""From a package to a running TensorRT engine: the plan that was built for it on this box, or a refusal."""

from __future__ import annotations

from pathlib import Path

from edgeqc.errors import EngineError, EngineLostError, PackageError
from edgeqc.inference.cuda import open_cuda
from edgeqc.inference.package import Package
from edgeqc.inference.tensorrt import vendor
from edgeqc.inference.tensorrt.engine import TensorRtEngine
from edgeqc.inference.tensorrt.plan import Plans, make_of
from edgeqc.settings import GpuSettings


def open_tensorrt(package: Package, *, state_dir: Path | None, gpu: GpuSettings, slots: int) -> TensorRtEngine:
    """Load the plan of the package (as it runs: with its precision) from `state_dir` and warm it up.

    PlanError where it is missing or of another make, PackageError where the library is missing, EngineError where the
    device has no room, EngineLostError where there is no device.
    """
    if state_dir is None:
        raise PackageError(f"{package.folder}: tensorrt runs plans from a state directory, and none was named")
    trt = vendor.load()
    cuda = open_cuda(gpu.adapter, device=gpu.device)
    plans = Plans(state_dir)
    try:
        plan, _ = plans.load(package, make_of(package, tensorrt=trt.__version__, device=cuda.device))
    except PackageError:
        cuda.close()
        raise
    try:
        return TensorRtEngine(plan, trt=trt, cuda=cuda, slots=slots, graphs=gpu.graphs)
    except EngineLostError:
        raise
    except EngineError as exc:
        raise plans.refused(package, f"does not run here ({exc})") from exc
