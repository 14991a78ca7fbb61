"""From a package to an engine that runs it."""

from __future__ import annotations

from edgeqc.errors import EngineError, PackageError
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import Package, check_io
from edgeqc.ports import Engine

BACKENDS = ("onnxruntime",)


def open_engine(package: Package, *, backend: str = "onnxruntime", threads: int = 1, slots: int = 2) -> Engine:
    """Load the package's model and warm it up; what runs is in `.backend`, and nothing else runs in its stead.

    PackageError where the backend is unknown, cannot load the model, or finds other inputs and outputs than the
    manifest says. Golden vectors are checked by `check_golden`.
    """
    if backend not in BACKENDS:
        raise PackageError(f"backend: {backend} is none of {', '.join(BACKENDS)}")
    try:
        engine = OnnxRuntimeEngine(package.model, threads=threads, slots=slots)
    except EngineError as exc:
        raise PackageError(f"{package.folder / 'model.onnx'}: {exc}") from exc
    try:
        check_io(engine.io, package)
    except PackageError:
        engine.close()
        raise
    return engine
