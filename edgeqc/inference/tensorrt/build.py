"""From an ONNX file to a plan. Seconds to minutes on the device itself: never while a line runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgeqc.errors import PackageError
from edgeqc.inference.tensorrt.vendor import log_of, take_faults
from edgeqc.ports import EngineIo

Progress = Callable[[str, int, int], bool]
"""Told (phase, step, steps) as the builder goes; False ends the build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What can be asked of the builder; the precision is in the ONNX file."""

    workspace_mb: int = 512
    """Scratch memory of the device that a kernel may use."""
    level: int = 3
    """How long it searches for fast kernels: 0 to 5, TensorRT's own default is 3."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Fixed shape of each input that the model leaves open."""


def build_plan(
    trt: Any,
    onnx: bytes,
    options: BuildOptions,
    *,
    progress: Progress | None = None,
    timings: bytes = b"",
) -> tuple[bytes, bytes]:
    """The serialised plan, and the timing cache to begin the next build with (empty where there is none).

    PackageError with what the library says where the model is damaged, has an operator that it cannot run, mixes types,
    or needs a shape; and where `progress` ended it.
    """
    # Every object here needs the ones before it alive, and the bindings do not see to that: a parser whose network is
    # gone is a crash (seen with tensorrt_rtx 1.7).
    log = log_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    _parse(parser, network, log, onnx)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.builder_optimization_level = options.level
    profile = _profile(builder, network, config, options.shapes, log)
    cache = _timings(config, timings)
    monitor = None if progress is None else _monitor(trt, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.stopped:
        raise PackageError("the build was stopped")
    if plan is None:
        raise PackageError(f"cannot be built: {take_faults(log) or 'TensorRT does not say why'}")
    serialised = cache.serialize() if cache is not None else None
    del profile
    return bytes(plan), bytes(serialised) if serialised is not None else b""


def shapes_of(io: EngineIo) -> dict[str, tuple[int, ...]]:
    """What a package's manifest says of its inputs, as `BuildOptions.shapes`."""
    return {tensor.name: tensor.shape for tensor in io.inputs}


_ERRORS_MOST: Final = 3


def _timings(config: Any, kept: bytes) -> Any:
    """The last build's timings, or none where they are damaged or of another TensorRT or device: they only save time."""
    for content in dict.fromkeys((kept, b"")):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _parse(parser: Any, network: Any, log: Any, onnx: bytes) -> None:
    if not onnx:
        raise PackageError("the ONNX file is empty")  # the parser takes it for a model without nodes
    if not parser.parse(onnx):
        told = [_tell(parser.get_error(index)) for index in range(min(parser.num_errors, _ERRORS_MOST))]
        raise PackageError(f"TensorRT cannot read the model: {'; '.join(told) or take_faults(log)}")
    if not network.num_outputs:
        raise PackageError("the ONNX file has no output: it is cut off or empty")
    take_faults(log)


def _tell(error: Any) -> str:
    node = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
    code = str(error.code()).rpartition(".")[2]
    return f"{node + ': ' if node else ''}{code}: {' '.join(error.desc().split())[:300]}"


def _profile(builder: Any, network: Any, config: Any, shapes: Mapping[str, tuple[int, ...]], log: Any) -> Any:
    """Fix every input that the model leaves open. The profile must live until the build ends."""
    inputs = {tensor.name: tensor for tensor in (network.get_input(index) for index in range(network.num_inputs))}
    unknown = sorted(shapes.keys() - inputs.keys())
    if unknown:
        raise PackageError(f"a shape is given for {', '.join(unknown)}; the model reads {', '.join(sorted(inputs))}")
    profile = builder.create_optimization_profile()
    is_open = False
    for name, tensor in inputs.items():
        has = tuple(tensor.shape)
        shape = shapes.get(name, has)
        fits = len(shape) == len(has) and all(side in {-1, want} for side, want in zip(has, shape, strict=True))
        if -1 in shape:
            raise PackageError(f"input {name}: shape {list(has)} is not fixed and no shape is given for it")
        if not fits or min(shape, default=1) < 1:
            raise PackageError(f"input {name}: shape {list(shape)} does not fit the model's {list(has)}")
        is_open |= -1 in has
        profile.set_shape(name, shape, shape, shape)
    if is_open and config.add_optimization_profile(profile) < 0:
        raise PackageError(f"the shapes {dict(shapes)} are refused: {take_faults(log)}")
    return profile


def _monitor(trt: Any, progress: Progress) -> Any:
    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the base comes with the module
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.pop(phase_name, 0))

        def _tell(self, phase: str, step: int) -> bool:
            if not self.stopped:
                self.stopped = not progress(phase, step, self._steps.get(phase, step))
            return not self.stopped

    return _Monitor()
