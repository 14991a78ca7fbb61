"""A slot carries a recurrent model's state: the same numbers as carrying it by hand, nothing shared between slots."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeqc.errors import EngineError
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.openvino import OpenVinoEngine

FAR_NS = 1 << 62
WIDTH, HIDDEN = 3, 5
CARRY = {"h": "h_next"}


def _cell():
    """h' = tanh(x W + h R); y = h' V: the shape of a recurrent step, small enough to follow by hand."""
    draw = np.random.default_rng(7)
    weights = {
        name: draw.standard_normal(shape).astype(np.float32)
        for name, shape in {"W": (WIDTH, HIDDEN), "R": (HIDDEN, HIDDEN), "V": (HIDDEN, 2)}.items()
    }
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xw"]),
        helper.make_node("MatMul", ["h", "R"], ["hr"]),
        helper.make_node("Add", ["xw", "hr"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["h_next"]),
        helper.make_node("MatMul", ["h_next", "V"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cell",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, WIDTH)),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, (1, HIDDEN)),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2)),
            helper.make_tensor_value_info("h_next", TensorProto.FLOAT, (1, HIDDEN)),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString(), weights


@pytest.fixture(params=[OnnxRuntimeEngine, OpenVinoEngine])
def cell(request):
    model, weights = _cell()
    engine = request.param(model, carry=CARRY)
    yield engine, weights
    engine.close()


def _step(engine, slot, x):
    slot.input("x")[:] = x
    engine.submit(slot)
    engine.wait(slot, FAR_NS)
    return slot.output("y").copy()


def _by_hand(weights, xs, h=None):
    h = np.zeros((1, HIDDEN), np.float32) if h is None else h
    for x in xs:
        h = np.tanh(x @ weights["W"] + h @ weights["R"])
    return h @ weights["V"], h


def test_state_is_not_among_inputs_and_outputs(cell):
    engine, _ = cell
    assert [tensor.name for tensor in engine.io.inputs] == ["x"]
    assert [tensor.name for tensor in engine.io.outputs] == ["y"]
    assert [(tensor.name, tensor.shape) for tensor in engine.io.state] == [("h", (1, HIDDEN))]
    slot = engine.acquire()
    for name in ("h", "h_next"):
        with pytest.raises(EngineError):
            slot.input(name)
        with pytest.raises(EngineError):
            slot.output(name)
    slot.release()


def test_steps_equal_the_recurrence(cell):
    engine, weights = cell
    xs = np.random.default_rng(1).standard_normal((9, 1, WIDTH)).astype(np.float32)
    slot = engine.acquire()
    for count, x in enumerate(xs, start=1):
        y = _step(engine, slot, x)
        expected, hidden = _by_hand(weights, xs[:count])
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(slot.state()["h"], hidden, atol=1e-5)
    slot.release()


def test_each_slot_has_its_own_state(cell):
    engine, _ = cell
    one, two = engine.acquire(), engine.acquire()
    x = np.ones((1, WIDTH), np.float32)
    first = _step(engine, one, x)
    _step(engine, one, x)
    np.testing.assert_array_equal(_step(engine, two, x), first)
    one.release()
    two.release()


def test_acquired_slot_starts_from_zero(cell):
    engine, _ = cell
    x = np.ones((1, WIDTH), np.float32)
    slot = engine.acquire()
    first = _step(engine, slot, x)
    assert not np.allclose(_step(engine, slot, x), first)
    slot.release()
    again = [engine.acquire(), engine.acquire()]
    assert slot in again
    for lent in again:
        np.testing.assert_array_equal(_step(engine, lent, x), first)
        lent.release()


def test_restored_state_goes_on_where_it_was(cell):
    engine, _ = cell
    x = np.ones((1, WIDTH), np.float32)
    slot = engine.acquire()
    _step(engine, slot, x)
    kept = slot.state()
    expected = _step(engine, slot, x)
    assert not np.array_equal(slot.state()["h"], kept["h"])  # the copy did not move with it
    slot.restore(kept)
    np.testing.assert_array_equal(_step(engine, slot, x), expected)
    slot.restore(None)
    assert not slot.state()["h"].any()
    slot.release()


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({}, r"state has \[\], must have \['h'\]"),
        ({"h": np.zeros((1, HIDDEN), np.float32), "g": np.zeros(1)}, r"must have \['h'\]"),
        ({"h": np.zeros((1, HIDDEN), np.float64)}, "float64"),
        ({"h": np.zeros((HIDDEN,), np.float32)}, rf"float32\[{HIDDEN}\] is not float32\[1, {HIDDEN}\]"),
    ],
)
def test_foreign_state_is_refused(cell, state, told):
    engine, _ = cell
    slot = engine.acquire()
    with pytest.raises(EngineError, match=told):
        slot.restore(state)
    slot.release()


@pytest.mark.parametrize(
    ("carry", "told"),
    [
        ({"g": "h_next"}, "no input named g"),
        ({"h": "g"}, "no output named g"),
        ({"h": "y"}, "is not"),
        ({"h": "h_next", "x": "h_next"}, "is not"),
    ],
)
def test_state_that_does_not_fit_the_model_is_refused(carry, told):
    with pytest.raises(EngineError, match=told):
        OnnxRuntimeEngine(_cell()[0], carry=carry)


def test_engine_without_state_has_none():
    engine = OnnxRuntimeEngine(_cell()[0])
    slot = engine.acquire()
    assert slot.state() == {}
    slot.restore(None)
    slot.release()
    engine.close()
