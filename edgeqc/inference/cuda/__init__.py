"""The CUDA driver, as much of it as an engine needs: one port, NVIDIA's cuda-bindings or PyCUDA behind it."""

from __future__ import annotations

from edgeqc.errors import PackageError
from edgeqc.inference.cuda.port import Cuda

ADAPTERS = ("cuda-bindings", "pycuda")


def open_cuda(adapter: str = "cuda-bindings", *, device: int = 0) -> Cuda:
    """Retain the device's primary context and make it current on the calling thread.

    PackageError where the adapter is unknown or not installed, EngineLostError where there is no driver
    or no device, EngineError where it is not this one.
    """
    match adapter:  # each import loads a library that a box without a GPU does not have
        case "cuda-bindings":
            from edgeqc.inference.cuda.bindings import BindingsCuda  # noqa: PLC0415

            return BindingsCuda(device)
        case "pycuda":
            from edgeqc.inference.cuda.pycuda import PycudaCuda  # noqa: PLC0415

            return PycudaCuda(device)
        case _:
            raise PackageError(f"gpu.adapter: {adapter} is none of {', '.join(ADAPTERS)}")
