"""Putting preprocessing into the model: a package whose input is the frame's own grey levels, uint8 [1, height, width, 1].

Such a model's input can be the camera's frame slot itself, and a GPU gets a quarter of the bytes. On ONNX Runtime it is
slower than preprocessing on the CPU; OpenVINO and TensorRT fuse it. Done at a desk: it needs the `onnx` package.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import PackageError
from edgeqc.inference.manifest import Fit, Normalise, Preprocessing
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.package import Package
from edgeqc.inference.writing import Contents
from edgeqc.ports import Engine

INPUT: Final = "pixels"
"""Name of the new model's input."""


def with_pixels(package: Package) -> Contents:
    """The same net behind its own preprocessing; its golden outputs are those of the net that it was.

    Variants in other precisions are left out: convert the new package. PackageError where the preprocessing needs what
    the model does not see, or the model cannot be rewritten.
    """
    spec = package.manifest.preprocess
    if package.manifest.takes_pixels:
        raise PackageError(f"{package.folder}: takes pixels already")
    if spec.normalise is Normalise.MEAN and spec.fit is Fit.LETTERBOX and spec.fill != "mean":
        raise PackageError(
            f"{package.folder}: divides by the region's mean, which is not known behind a letterbox filled with "
            f"{spec.fill}; make it with preprocess.fill: mean, or fit: stretch"
        )
    height, width = package.input_shape
    levels = _levels(spec, package.golden[f"input.{spec.input}"])
    manifest = package.manifest.model_dump(mode="json", exclude={"files", "variants"})
    manifest["inputs"] = [{"name": INPUT, "dtype": "uint8", "shape": [1, height, width, 1]}]
    manifest["preprocess"] |= {"input": INPUT, "normalise": "linear", "gain": 1.0, "offset": 0.0}
    return Contents(
        manifest=manifest,
        model=_rewritten(package.model, spec, (height, width)),
        calibration=package.calibration.model_dump(mode="json"),
        golden={f"input.{INPUT}": levels.reshape(len(levels), 1, height, width, 1), **_outputs(package, levels)},
    )


def prepared(spec: Preprocessing, levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What `Preprocess` makes of grey levels that fill the whole input."""
    values = levels.astype(np.float32) * np.float32(spec.gain)
    if spec.normalise is Normalise.MEAN:
        values *= np.float32(1 / max(1.0, float(levels.mean())))
    return np.asarray(values + np.float32(spec.offset), np.float32)


def _levels(spec: Preprocessing, golden: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey levels (cases, 1, 1, height, width) that look like the golden inputs; a mean's scale is lost and free."""
    values = (np.asarray(golden, np.float64) - spec.offset) / spec.gain
    if spec.normalise is Normalise.MEAN:
        values *= _BRIGHTEST / np.maximum(values.max(axis=(1, 2, 3, 4), keepdims=True), 1e-9)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_BRIGHTEST: Final = 250.0
"""Grey level of the brightest pixel of a golden input."""


def _outputs(package: Package, levels: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
    """What the net that was makes of them."""
    spec = package.manifest.preprocess
    engine: Engine = OnnxRuntimeEngine(package.model, slots=1)
    slot = engine.acquire()
    found: dict[str, list[NDArray[np.generic]]] = {}
    for case in levels:
        np.copyto(slot.input(spec.input), prepared(spec, case))
        engine.submit(slot)
        engine.wait(slot, 1 << 62)
        for tensor in package.io.outputs:
            found.setdefault(f"output.{tensor.name}", []).append(slot.output(tensor.name).copy())
    slot.release()
    engine.close()
    return {name: np.stack(cases) for name, cases in found.items()}


def _rewritten(model: bytes, spec: Preprocessing, shape: tuple[int, int]) -> bytes:
    try:
        import onnx  # noqa: PLC0415 - an extra
        from onnx import helper, numpy_helper  # noqa: PLC0415
    except ImportError as exc:
        raise PackageError("this needs the onnx package: pip install 'edgeqc[train]'") from exc
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    constants: dict[str, NDArray[Any]] = {
        "gain": np.array(spec.gain, np.float32),
        "offset": np.array(spec.offset, np.float32),
        "least": np.array(1, np.float32),
        "planes": np.array([1, 1, *shape], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT], ["pixels_levels"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels_levels", "pixels_gain"], ["pixels_scaled"]),
    ]
    at = "pixels_scaled"
    if spec.normalise is Normalise.MEAN:
        nodes += [
            helper.make_node("ReduceMean", ["pixels_levels"], ["pixels_mean"], keepdims=1),
            helper.make_node("Max", ["pixels_mean", "pixels_least"], ["pixels_divisor"]),
            helper.make_node("Div", [at, "pixels_divisor"], ["pixels_even"]),
        ]
        at = "pixels_even"
    nodes += [
        helper.make_node("Add", [at, "pixels_offset"], ["pixels_ready"]),
        # one channel: its place among the sizes is all that changes
        helper.make_node("Reshape", ["pixels_ready", "pixels_planes"], [spec.input]),
    ]
    _put_before(graph, nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(value, f"pixels_{name}")
        for name, value in constants.items()
        if f"pixels_{name}" in used
    )
    kept = [value for value in graph.input if value.name != spec.input]
    del graph.input[:]
    graph.input.extend([helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, (1, *shape, 1)), *kept])
    try:
        onnx.checker.check_model(loaded)
    except onnx.checker.ValidationError as exc:
        raise PackageError(f"the model cannot be given its preprocessing: {str(exc).splitlines()[0][:255]}") from exc
    return bytes(loaded.SerializeToString())


def _put_before(graph: Any, nodes: list[Any]) -> None:
    whole = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(whole)
