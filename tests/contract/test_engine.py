"""Every engine keeps the port's contract: the caller's buffers are the engine's, slots are lent once, faults are ours."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeqc
from edgeqc.errors import EngineError
from edgeqc.inference.manifest import Precision
from edgeqc.inference.onnxfile import OnnxFault, survey
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.openvino import OpenVinoEngine
from edgeqc.ports import EngineIo, TensorSpec

FAR_NS = 1 << 62
DEMO_MODEL = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1" / "model.onnx"


def _model(nodes, inputs, outputs, constants=()):
    def told(values):
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in values]

    graph = helper.make_graph(nodes, "graph", told(inputs), told(outputs), list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _double(kind=TensorProto.FLOAT, shape=(1, 1, 4, 6)):
    """y = x + x, and the mean of x beside it."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "one"], ["m"]),
    ]
    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    return _model(nodes, [("x", kind, shape)], [("y", kind, shape), ("m", kind, (1,))], [one]).SerializeToString()


def _long():
    """Seconds of matrix products: what a hung model looks like."""
    size = (256, 256)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", "x"], ["s_out"]),
            helper.make_node("Identity", ["go"], ["go_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, size),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_out", TensorProto.FLOAT, size),
        ],
    )
    # The number of turns is the input's own, so that the warm-up on zeros is short.
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, size)], [("y", TensorProto.FLOAT, size)]).SerializeToString()


@pytest.fixture(params=[OnnxRuntimeEngine, OpenVinoEngine])
def kind(request):
    return request.param


@pytest.fixture
def engine(kind):
    opened = kind(_double(), threads=1, slots=2)
    yield opened
    opened.close()


def _run(engine, slot):
    engine.submit(slot)
    engine.wait(slot, FAR_NS)


def test_io_is_the_model_s_own(engine):
    assert engine.io == EngineIo(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 1, 4, 6)),),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=(1, 1, 4, 6)),
            TensorSpec(name="m", dtype="float32", shape=(1,)),
        ),
    )


def test_backend_says_what_runs(engine):
    assert engine.backend.split()[0] == ("onnxruntime" if isinstance(engine, OnnxRuntimeEngine) else "openvino")
    assert engine.backend.endswith("1 thread")
    assert " CPU" in engine.backend


def test_views_share_memory_from_acquire_to_acquire(engine):
    slot = engine.acquire()
    x, y = slot.input("x"), slot.output("y")
    assert np.shares_memory(x, slot.input("x"))
    assert np.shares_memory(y, slot.output("y"))
    assert not np.shares_memory(x, y)
    x[:] = 3
    _run(engine, slot)
    assert (y == 6).all()  # the view taken before the run saw the run: nothing was copied out
    x[:] = 4
    _run(engine, slot)
    assert (y == 8).all()
    assert slot.output("m")[0] == 4
    slot.release()


def test_slots_do_not_share_memory(engine):
    one, two = engine.acquire(), engine.acquire()
    assert not np.shares_memory(one.input("x"), two.input("x"))
    one.input("x")[:], two.input("x")[:] = 1, 5
    _run(engine, two)
    _run(engine, one)
    assert (one.output("y") == 2).all()
    assert (two.output("y") == 10).all()
    one.release()
    two.release()


def test_engine_lends_no_more_than_it_has(engine):
    slots = [engine.acquire(), engine.acquire()]
    with pytest.raises(EngineError, match="all 2 slots are out"):
        engine.acquire()
    slots[0].release()
    again = engine.acquire()
    again.release()
    slots[1].release()


def test_release_twice_is_an_error(engine):
    slot = engine.acquire()
    slot.release()
    with pytest.raises(EngineError, match="released twice"):
        slot.release()


def test_released_slot_is_not_run(engine):
    slot = engine.acquire()
    slot.release()
    with pytest.raises(EngineError, match="was released"):
        engine.submit(slot)


def test_wait_without_submit_is_an_error(engine):
    slot = engine.acquire()
    with pytest.raises(EngineError, match="without submit"):
        engine.wait(slot, FAR_NS)
    _run(engine, slot)
    with pytest.raises(EngineError, match="without submit"):
        engine.wait(slot, FAR_NS)
    slot.release()


def test_submit_does_not_outlive_release(engine):
    slot = engine.acquire()
    engine.submit(slot)
    slot.release()
    again = next(s for s in (engine.acquire(), engine.acquire()) if s is slot)
    with pytest.raises(EngineError, match="without submit"):
        engine.wait(again, FAR_NS)


def test_slot_of_another_engine_is_refused(engine, kind):
    other = kind(_double())
    slot = other.acquire()
    with pytest.raises(EngineError, match="not of this engine"):
        engine.submit(slot)
    other.close()


def test_closed_engine_runs_nothing(engine):
    slot = engine.acquire()
    engine.close()
    with pytest.raises(EngineError):
        engine.submit(slot)
    with pytest.raises(EngineError):
        engine.acquire()


def test_unknown_names_are_told_with_the_known_ones(engine):
    slot = engine.acquire()
    with pytest.raises(EngineError, match=r"no input named y; there are \['x'\]"):
        slot.input("y")
    with pytest.raises(EngineError, match=r"no output named x; there are \['m', 'y'\]"):
        slot.output("x")
    slot.release()


def test_not_a_number_passes_through(engine):
    slot = engine.acquire()
    slot.input("x")[:] = np.nan
    _run(engine, slot)
    assert np.isnan(slot.output("m")[0])
    slot.release()


@pytest.mark.parametrize("model", [b"", b"\x00" * 64, b"not a model", _double()[:-40]])
def test_damaged_model_is_an_engine_error(model, kind):
    with pytest.raises(EngineError, match="cannot load the model"):
        kind(model)


def test_open_shape_is_an_engine_error(kind):
    with pytest.raises(EngineError, match=r"x: shape .* is not fixed"):
        kind(_double(shape=(1, 1, "h", 6)))


def test_unknown_operator_is_an_engine_error(kind):
    node = helper.make_node("Trapdoor", ["x"], ["y"], domain="evil")
    model = _model([node], [("x", TensorProto.FLOAT, (1,))], [("y", TensorProto.FLOAT, (1,))])
    model.opset_import.append(helper.make_opsetid("evil", 1))
    with pytest.raises(EngineError, match="cannot load the model"):
        kind(model.SerializeToString())


def test_other_type_shows_in_io(kind):
    engine = kind(_double(TensorProto.DOUBLE))
    assert engine.io.inputs[0].dtype == "float64"
    engine.close()


def test_weights_in_another_file_are_refused_by_package_and_runtime(tmp_path, monkeypatch, kind):
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    model = _model([node], [("x", TensorProto.FLOAT, (4,))], [("y", TensorProto.FLOAT, (4,))], [weights])
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    content = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(OnnxFault, match="keeps data in other files"):
        survey(content)
    monkeypatch.chdir(tmp_path)  # where the runtime would find the file if it looked
    with pytest.raises(EngineError, match="cannot load the model"):
        kind(content)


def test_hung_model_can_be_cancelled_from_another_thread_and_used_again():
    engine = OnnxRuntimeEngine(_long(), slots=1)
    slot = engine.acquire()
    slot.input("x")[:] = 1e6  # turns: an hour
    engine.submit(slot)
    stop = threading.Event()

    def cancel():
        while not stop.wait(0.05):  # again and again: a cancel before the run began is not kept
            engine.cancel(slot)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    started = time.monotonic()
    try:
        with pytest.raises(EngineError, match="terminate"):
            engine.wait(slot, FAR_NS)
    finally:
        stop.set()
        canceller.join()
    assert time.monotonic() - started < 30
    slot.input("x")[:] = 1
    _run(engine, slot)
    assert (slot.output("y") == 256).all()
    engine.close()


def test_cancel_of_an_idle_slot_changes_nothing():
    engine = OnnxRuntimeEngine(_double())
    slot = engine.acquire()
    engine.cancel(slot)
    slot.input("x")[:] = 1
    _run(engine, slot)
    assert (slot.output("y") == 2).all()
    slot.release()


def test_runtime_sends_no_telemetry_and_keeps_no_identity(tmp_path, kind):
    (tmp_path / "m.onnx").write_bytes(_double())
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        f"from {kind.__module__} import {kind.__name__} as Engine\n"
        "engine = Engine(Path('m.onnx').read_bytes())\n"
        "opened = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 2 and "
        "os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "sys.exit(any('onnxruntime.db' in name or 'socket' in name for name in opened))\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    # Nothing of our own environment: the library also keeps silent where it takes the machine for a CI worker.
    environment = {"HOME": str(home), "PYTHONPATH": str(Path(edgeqc.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert list(home.rglob("*")) == []


def test_runtime_is_loaded_only_when_an_engine_is_made():
    code = "import sys, edgeqc.inference.choice; sys.exit('onnxruntime' in sys.modules or 'openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_work_is_done_on_the_caller_s_thread(kind):
    """So the line thread's core and real-time priority are the engine's, and nothing else of the process runs it."""
    code = (
        "import sys, time\n"
        f"from {kind.__module__} import {kind.__name__} as Engine\n"
        "from pathlib import Path\n"
        f"engine = Engine(Path({str(DEMO_MODEL)!r}).read_bytes(), slots=1)\n"
        "slot = engine.acquire()\n"
        "own, all_ = time.thread_time(), time.process_time()\n"
        "for _ in range(20):\n"
        "    engine.submit(slot)\n"
        "    engine.wait(slot, 1 << 62)\n"
        "own, all_ = time.thread_time() - own, time.process_time() - all_\n"
        "sys.exit(f'{own:.3f} s of {all_:.3f} s' if own < 0.95 * all_ else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_engine_leaves_the_caller_on_its_core(kind):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        opened = kind(_double(), slots=1)
        slot = opened.acquire()
        _run(opened, slot)
        assert os.sched_getaffinity(0) == {max(before)}
        opened.close()
    finally:
        os.sched_setaffinity(0, before)


def test_missing_openvino_says_how_to_have_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an import finds where it is not installed
    with pytest.raises(EngineError, match=r"pip install 'edgeqc\[openvino\]'"):
        OpenVinoEngine(_double())


def test_bf16_is_said_or_refused():
    """Where the processor has it, the numbers are those of bf16 and the name says so; elsewhere nothing runs."""
    model = _half_bit()
    with_bf16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text() or "amx_bf16" in Path("/proc/cpuinfo").read_text()
    if not with_bf16:
        with pytest.raises(EngineError, match="has no bf16"):
            OpenVinoEngine(model, precision=Precision.BF16)
        return
    results = {}
    for precision in (Precision.FP32, Precision.BF16):
        opened = OpenVinoEngine(model, precision=precision, slots=1)
        assert f"CPU {precision}," in opened.backend
        slot = opened.acquire()
        slot.input("x")[:] = 1
        _run(opened, slot)
        results[precision] = float(slot.output("y").max())
        opened.close()
    assert results[Precision.FP32] == pytest.approx(64 * (1 + 2**-10))
    assert results[Precision.BF16] == pytest.approx(64)  # 1 + 2**-10 is 1 in bf16


def _half_bit():
    """A matrix product whose weights need more bits than bf16 has."""
    weights = numpy_helper.from_array(np.full((64, 64), 1 + 2**-10, np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shape = (64, 64)
    model = _model([node], [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], [weights])
    return model.SerializeToString()
