"""`scripts/bench engines`: what the slot API costs over the bare call of each CPU backend, a GRU's step, and bf16.

Each measurement is a process of its own, pinned and with the priority that the line thread has. Both sides of a
comparison take turns, call by call, in one process, so that whatever else the box does falls on both.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeqc.cli.console import talk
from edgeqc.cores import pin, real_time
from edgeqc.errors import EngineError
from edgeqc.inference.manifest import Precision
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.openvino import OpenVinoEngine
from edgeqc.ports import Engine, EngineSlot
from edgeqc.sim.gate import Benched, Gate

DEMO: Final = Path(__file__).parents[2] / "engines" / "demo-part" / "1" / "model.onnx"
RUNS: Final = 300
SHORT_RUNS: Final = 5000
GRU_INPUT, GRU_HIDDEN = 16, 64
IMAGE_PX: Final = 224
_PRIORITY: Final = 20
"""As StationSettings.priority."""
_FAR_NS: Final = 1 << 62
_PARTS: Final = ("overhead onnxruntime", "overhead openvino", "gru", "resnet18")


def engines(_folder: Path, *, rounds: int) -> Benched:
    """Measure in rounds; the table has the median of each figure over them."""
    found: list[dict[str, float]] = []
    for number in range(1, rounds + 1):
        one: dict[str, float] = {}
        for part in _PARTS:
            talk(f"round {number} of {rounds}: {part}")
            one |= _child(part)
        found.append(one)
    middle = {name: float(statistics.median(one[name] for one in found)) for name in found[0]}
    gates: list[Gate] = []
    for backend in ("onnxruntime", "openvino"):
        gates += [
            Gate(name=f"{backend}: slots / bare call, demo part p50", measured=middle[f"{backend}_ratio"], limit=1.03),
            Gate(
                name=f"{backend}: slots over bare call p50, a net of one addition",
                measured=middle[f"{backend}_over_us"],
                limit=50,
                unit="us",
            ),
        ]
    gates.append(
        Gate(
            name=f"GRU step {GRU_INPUT} > {GRU_HIDDEN} through the slots p50, onnxruntime",
            measured=middle["gru_us"],
            limit=15,
            unit="us",
        )
    )
    ratio = middle["resnet18_ratio"]
    if ratio and has_amx():
        gates.append(Gate(name="ResNet18 224 px: openvino bf16 / onnxruntime fp32 p50", measured=ratio, limit=1 / 3))
    elif ratio:
        talk(
            f"ResNet18 224 px: openvino bf16 takes {ratio:.2f} of onnxruntime fp32's time ({1 / ratio:.1f} times as fast); "
            f"not judged: this processor has no AMX"
        )
    else:
        talk("ResNet18 224 px: not measured: this processor has no bf16")
    title = f"{rounds} rounds, 1 thread, onnxruntime {middle['onnxruntime_ms']:.2f} ms and openvino {middle['openvino_ms']:.2f} ms for the demo part"
    return Benched(title=title, gates=gates, figures={"rounds": found, "amx": has_amx()})


def has_amx() -> bool:
    """Does this processor multiply bf16 matrices in tiles?"""
    return "amx_bf16" in Path("/proc/cpuinfo").read_text()


def overhead(backend: str) -> dict[str, float]:
    """The slot API beside the bare call, on the demo part's net and on one that does next to nothing."""
    found: dict[str, float] = {}
    for name, model, runs in (("demo", DEMO.read_bytes(), RUNS), ("small", _addition(), SHORT_RUNS)):
        engine: Engine = OnnxRuntimeEngine(model) if backend == "onnxruntime" else OpenVinoEngine(model)
        bare = _bare_onnxruntime(model) if backend == "onnxruntime" else _bare_openvino(model)
        slot = engine.acquire()
        slots, plain = in_turn([_step(engine, slot), bare], runs)
        if name == "demo":
            found |= {f"{backend}_ratio": slots / plain, f"{backend}_ms": slots / 1000}
        else:
            found[f"{backend}_over_us"] = slots - plain
        engine.close()
    return found


def gru() -> dict[str, float]:
    """One step of a GRU with its state in the slot."""
    engine = OnnxRuntimeEngine(_gru_step(), carry={"h": "h_next"}, slots=1)
    slot = engine.acquire()
    slot.input("x")[:] = 0.5
    (step,) = in_turn([_step(engine, slot)], SHORT_RUNS)
    moved = slot.state()["h"]
    if not np.isfinite(moved).all() or not moved.any():
        raise EngineError("the GRU's state did not move")
    return {"gru_us": step}


def resnet18() -> dict[str, float]:
    """OpenVINO in bf16 beside ONNX Runtime in fp32 on a dense net: random weights, ResNet-18's shape."""
    model = _resnet18()
    try:
        fast: Engine = OpenVinoEngine(model, precision=Precision.BF16, slots=1)
    except EngineError:
        return {"resnet18_ratio": 0.0}
    plain = OnnxRuntimeEngine(model, slots=1)
    steps = [_step(engine, engine.acquire()) for engine in (fast, plain)]
    bf16, fp32 = in_turn(steps, 40)
    return {"resnet18_ratio": bf16 / fp32, "resnet18_bf16_ms": bf16 / 1000, "resnet18_fp32_ms": fp32 / 1000}


def in_turn(calls: Sequence[Callable[[], None]], runs: int) -> list[float]:
    """Median microseconds of each call; they take turns, and who begins changes."""
    took: list[list[int]] = [[] for _ in calls]
    order = list(range(len(calls)))
    for run in range(runs + runs // 10):
        order.append(order.pop(0))
        for which in order:
            began_ns = time.perf_counter_ns()
            calls[which]()
            spent_ns = time.perf_counter_ns() - began_ns
            if run >= runs // 10:  # what came before was warm-up
                took[which].append(spent_ns)
    return [statistics.median(each) / 1000 for each in took]


def main() -> int:
    """One measurement, as JSON."""
    pin({max(os.sched_getaffinity(0))})
    real_time(_PRIORITY)
    match sys.argv[1].split():
        case ["overhead", backend]:
            found = overhead(backend)
        case ["gru"]:
            found = gru()
        case _:
            found = resnet18()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _child(part: str) -> dict[str, float]:
    done = subprocess.run(  # noqa: S603 - this very module
        [sys.executable, "-m", "edgeqc.sim.benchengines", part], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _step(engine: Engine, slot: EngineSlot) -> Callable[[], None]:
    def step() -> None:
        engine.submit(slot)
        engine.wait(slot, _FAR_NS)

    return step


def _bare_onnxruntime(model: bytes) -> Callable[[], None]:
    """The library's own fastest call: everything bound, one thread, no spinning."""
    import onnxruntime as ort  # noqa: PLC0415 - the engine sets its environment first

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    arrays: list[NDArray[Any]] = []
    for tensors, bind in (
        (session.get_inputs(), binding.bind_ortvalue_input),
        (session.get_outputs(), binding.bind_ortvalue_output),
    ):
        for tensor in tensors:
            arrays.append(np.zeros(tensor.shape, np.float32))
            bind(tensor.name, ort.OrtValue.ortvalue_from_numpy(arrays[-1]))

    def call() -> None:
        session.run_with_iobinding(binding)

    call.__dict__["arrays"] = arrays  # the binding only points at them
    return call


def _bare_openvino(model: bytes) -> Callable[[], None]:
    import openvino as ov  # noqa: PLC0415 - loaded by the engine, without its telemetry

    core = ov.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", options).create_infer_request()

    def call() -> None:
        request.infer(share_outputs=True, decode_strings=False)

    return call


def _model(
    nodes: list[Any], inputs: dict[str, Sequence[int]], outputs: dict[str, Sequence[int]], weights: list[Any]
) -> bytes:
    def told(values: dict[str, Sequence[int]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]

    graph = helper.make_graph(nodes, "bench", told(inputs), told(outputs), weights)
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def _addition() -> bytes:
    return _model([helper.make_node("Add", ["x", "x"], ["y"])], {"x": (1, 16)}, {"y": (1, 16)}, [])


def _gru_step() -> bytes:
    """A GRU's step with its state outside, linear_before_reset as torch exports it."""
    draw = np.random.default_rng(1)
    shapes = {"W": (1, 3 * GRU_HIDDEN, GRU_INPUT), "R": (1, 3 * GRU_HIDDEN, GRU_HIDDEN), "B": (1, 6 * GRU_HIDDEN)}
    weights = [numpy_helper.from_array((draw.normal(size=s) / 8).astype(np.float32), n) for n, s in shapes.items()]
    node = helper.make_node(
        "GRU", ["x", "W", "R", "B", "", "h"], ["", "h_next"], hidden_size=GRU_HIDDEN, linear_before_reset=1
    )
    state = (1, 1, GRU_HIDDEN)
    project = helper.make_node("ReduceMean", ["h_next"], ["y"], keepdims=0)
    return _model([node, project], {"x": (1, 1, GRU_INPUT), "h": state}, {"y": (), "h_next": state}, weights)


def _resnet18() -> bytes:
    """ResNet-18 (He et al. 2015, table 1) with its normalisation folded in: 1.8 GMAC at 224 px; random weights."""
    draw = np.random.default_rng(2)
    nodes: list[Any] = []
    weights: list[Any] = []

    def conv(source: str, target: str, channels: tuple[int, int], size: int, stride: int) -> str:
        scale = float(np.sqrt(2 / (channels[0] * size * size)))
        shape = (channels[1], channels[0], size, size)
        weights.append(numpy_helper.from_array(draw.normal(0, scale, shape).astype(np.float32), f"{target}_w"))
        pads = [size // 2] * 4
        node = helper.make_node("Conv", [source, f"{target}_w"], [target], strides=[stride, stride], pads=pads)
        nodes.append(node)
        return target

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}_relu"]))
        return f"{source}_relu"

    at = relu(conv("x", "stem", (3, 64), 7, 2))
    nodes.append(helper.make_node("MaxPool", [at], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    at, width = "pool", 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            inner = relu(conv(at, f"{name}a", (width, channels), 3, stride))
            out = conv(inner, f"{name}b", (channels, channels), 3, 1)
            if width != channels:
                at = conv(at, f"{name}skip", (width, channels), 1, stride)
            nodes.append(helper.make_node("Add", [out, at], [f"{name}sum"]))
            at, width = relu(f"{name}sum"), channels
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    weights.append(numpy_helper.from_array(draw.normal(0, 0.05, (512, 1000)).astype(np.float32), "head"))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"]))
    return _model(nodes, {"x": (1, 3, IMAGE_PX, IMAGE_PX)}, {"y": (1, 1000)}, weights)


if __name__ == "__main__":
    sys.exit(main())
