"""From a package to an engine that runs it: on the backend named, in the precision named, or not at all."""

from __future__ import annotations

from pathlib import Path

from edgeqc.errors import EngineError, EngineLostError, PackageError
from edgeqc.inference.manifest import Backend
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.openvino import OpenVinoEngine
from edgeqc.inference.package import Package, check_io
from edgeqc.ports import Engine
from edgeqc.settings import GpuSettings


def open_engine(
    package: Package,
    *,
    backend: str = Backend.ONNXRUNTIME,
    threads: int = 1,
    slots: int = 2,
    state_dir: Path | None = None,
    gpu: GpuSettings | None = None,
) -> Engine:
    """Load the package's model and warm it up; what runs is in `.backend`, and nothing else runs in its stead.

    `package`: as `Package.as_run` gives it for another precision than fp32. `state_dir`: where a backend finds what was
    built for it on this box. `gpu`: the box's, None for the first one as it comes.

    EngineLostError where the device is not there now. PackageError where the backend is unknown, cannot load the model, or finds other inputs and outputs than the
    manifest says. Golden vectors are checked by `check_golden`.
    """
    if backend not in set(Backend):
        raise PackageError(f"backend: {backend} is none of {', '.join(Backend)}")
    try:
        engine = _opened(package, Backend(backend), threads=threads, slots=slots, state_dir=state_dir, gpu=gpu)
    except EngineLostError:
        raise
    except EngineError as exc:
        raise PackageError(f"{package.model_file}: {exc}") from exc
    try:
        check_io(engine.io, package)
    except PackageError:
        engine.close()
        raise
    return engine


def _opened(
    package: Package, backend: Backend, *, threads: int, slots: int, state_dir: Path | None, gpu: GpuSettings | None
) -> Engine:
    match backend:
        case Backend.ONNXRUNTIME:
            return OnnxRuntimeEngine(package.model, threads=threads, slots=slots, precision=package.precision)
        case Backend.OPENVINO:
            return OpenVinoEngine(package.model, threads=threads, slots=slots, precision=package.precision)
        case Backend.TENSORRT:
            from edgeqc.inference.tensorrt.opening import open_tensorrt  # noqa: PLC0415 - for boxes with a GPU

            return open_tensorrt(package, state_dir=state_dir, gpu=gpu or GpuSettings(), slots=slots)
