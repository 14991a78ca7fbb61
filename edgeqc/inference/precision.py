"""Rewriting an ONNX file into another precision: fp16, and int8 with Q/DQ nodes for the CPU and for TensorRT.

Done where models are made, or on a desk: it needs the `onnx` package (extra `train`), which the daemon does not load.
Inputs and outputs stay float32, so that nothing around the engine changes. TensorRT builds networks strongly typed: what
precision is, stands in the file.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import PackageError

QUANTISED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
"""Operators that int8 pays for; what is around them (heads, resizes, activations) stays in fp32."""
CALIBRATION_MOST: Final = 512
"""Images: ranges of activations do not move any more (ONNX Runtime and TensorRT's guides take 100 to 500)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """Two files from one calibration."""

    cpu: bytes
    """Activations uint8 with a zero-point, weights int8 per channel: what ONNX Runtime and OpenVINO compute with VNNI."""
    tensorrt: bytes
    """Activations and weights int8, every zero-point 0, biases in fp32: all that TensorRT's parser takes."""
    images: int
    """How many the ranges were taken from."""


def to_fp16(model: bytes) -> bytes:
    """The same net with weights and arithmetic in fp16; casts at inputs and outputs. PackageError where it cannot be."""
    onnx = _onnx()
    from onnxruntime.transformers.float16 import (  # noqa: PLC0415 - needs onnx
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights cut to fp16's range: the golden check judges what comes of it
        try:
            loaded = onnx.load_from_string(model)
            half = convert_float_to_float16(loaded, keep_io_types=True, op_block_list=list(DEFAULT_OP_BLOCK_LIST))
            _sort(half.graph)
            onnx.checker.check_model(half)
        except Exception as exc:  # whatever onnx finds odd
            raise PackageError(f"the model cannot be put into fp16: {_first_line(exc)}") from exc
    return bytes(half.SerializeToString())


def to_int8(
    model: bytes, inputs: Sequence[Mapping[str, NDArray[np.generic]]], *, told: Any = lambda _count: None
) -> Quantised:
    """Calibrate on these inputs (prepared as the engine gets them), and write both Q/DQ files.

    `told(count)` hears of progress. PackageError where the model cannot be quantised, or there is nothing to calibrate on.
    """
    if not inputs:
        raise PackageError("int8 needs images to calibrate on; a hundred good and bad parts are enough")
    onnx = _onnx()
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="edgeqc-int8-") as folder:
            prepared = _prepared(onnx, model, Path(folder))
            ranges = _ranges(prepared, inputs[:CALIBRATION_MOST], Path(folder), told)
            files = {symmetric: _with_qdq(onnx, prepared, ranges, symmetric=symmetric) for symmetric in (False, True)}
    except PackageError:
        raise
    except Exception as exc:  # whatever onnx and the quantiser find odd
        raise PackageError(f"the model cannot be quantised: {_first_line(exc)}") from exc
    return Quantised(cpu=files[False], tensorrt=files[True], images=min(len(inputs), CALIBRATION_MOST))


def zero_points(model: bytes) -> set[int]:
    """All zero-points in a Q/DQ file; {0} is what TensorRT takes."""
    onnx = _onnx()
    graph = onnx.load_from_string(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: set[int] = set()
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            if len(node.input) < _WITH_ZERO_POINT:
                found.add(0)
            else:
                found.update(int(value) for value in onnx.numpy_helper.to_array(constants[node.input[2]]).flat)
    return found


_WITH_ZERO_POINT: Final = 3


def _sort(graph: Any) -> None:
    """Put producers before consumers: the converter appends its casts at the end, which ONNX does not allow."""
    made = {name for node in graph.node for name in node.output}
    waiting, sorted_ = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if made.isdisjoint(_reads(node))]
        if not ready:
            raise PackageError("the model's graph has a circle")
        sorted_ += ready
        for node in ready:
            made.difference_update(node.output)
        waiting = [node for node in waiting if not any(node is other for other in ready)]
    del graph.node[:]
    graph.node.extend(sorted_)


def _reads(node: Any) -> set[str]:
    """Names that a node needs, those that its subgraphs take from around them included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            own = {name for inner in graph.node for name in inner.output} | {value.name for value in graph.input}
            names.update(name for inner in graph.node for name in _reads(inner) if name not in own)
    return names


def _prepared(onnx: Any, model: bytes, folder: Path) -> Path:
    """Shapes inferred and constants folded, as the quantiser wants it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415 - needs onnx

    path, out = folder / "model.onnx", folder / "prepared.onnx"
    path.write_bytes(model)
    quant_pre_process(str(path), str(out), skip_symbolic_shape=True)
    del onnx
    return out


def _ranges(prepared: Path, inputs: Sequence[Mapping[str, NDArray[np.generic]]], folder: Path, told: Any) -> Any:
    """Least and largest value of every tensor that is to be quantised: one calibration for both files."""
    from onnxruntime.quantization.calibrate import (  # noqa: PLC0415 - needs onnx
        CalibrationDataReader,
        CalibrationMethod,
        create_calibrator,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives the calibrator one input after the other."""

        def __init__(self) -> None:
            self._count = 0

        def get_next(self) -> dict[str, NDArray[np.generic]] | None:
            if self._count == len(inputs):
                return None
            self._count += 1
            told(self._count)
            return dict(inputs[self._count - 1])

    calibrator = create_calibrator(
        str(prepared),
        list(QUANTISED),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        providers=["CPUExecutionProvider"],
    )
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def _with_qdq(onnx: Any, prepared: Path, ranges: Any, *, symmetric: bool) -> bytes:
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer  # noqa: PLC0415 - needs onnx
    from onnxruntime.quantization.quant_utils import QuantType, load_model_with_shape_infer  # noqa: PLC0415

    quantiser = QDQQuantizer(
        load_model_with_shape_infer(prepared),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTISED),
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": not symmetric},
    )
    quantiser.quantize_model()
    written = quantiser.model.model
    del written.metadata_props[:]
    _sort(written.graph)
    onnx.checker.check_model(written)
    return bytes(written.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx  # noqa: PLC0415 - an extra
        import onnx.numpy_helper  # noqa: PLC0415
    except ImportError as exc:
        raise PackageError("this needs the onnx package: pip install 'edgeqc[train]'") from exc
    return onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser talks to the root logger, of what it was told to do."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:255]
