"""fp16 and int8 files say what they are, stay near the original, and keep its inputs and outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeqc
from edgeqc.errors import PackageError
from edgeqc.inference.onnxfile import survey
from edgeqc.inference.onnxruntime import OnnxRuntimeEngine
from edgeqc.inference.openvino import OpenVinoEngine
from edgeqc.inference.package import golden_difference, load_package
from edgeqc.inference.precision import to_fp16, to_int8, zero_points

DEMO = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1"


@pytest.fixture(scope="module")
def package():
    return load_package(DEMO)


@pytest.fixture(scope="module")
def quantised(package):
    return to_int8(package.model, [{"image": case} for case in package.golden["input.image"]])


@pytest.fixture(scope="module")
def half(package):
    return to_fp16(package.model)


def _kinds(model):
    return {initializer.data_type for initializer in onnx.load_from_string(model).graph.initializer}


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
def test_fp16_is_in_the_file_and_near_the_original(package, half, engine):
    assert TensorProto.FLOAT16 in _kinds(half)
    assert len(half) < 0.6 * len(package.model)
    opened = engine(half)
    assert opened.io == engine(package.model).io, "nothing around the engine changes"
    assert 0 < golden_difference(opened, package)[0] < 0.01
    opened.close()


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_is_near_the_original_and_small(package, quantised, engine, target):
    model = getattr(quantised, target)
    assert len(model) < 0.4 * len(package.model)
    opened = engine(model)
    assert {tensor.name for tensor in opened.io.outputs} == {"score", "map", "kind"}
    assert 0 < golden_difference(opened, package)[0] < 0.15
    opened.close()


def test_tensorrt_s_file_has_zero_points_of_0_only_and_no_quantised_bias(quantised):
    assert zero_points(quantised.tensorrt) == {0}
    graph = onnx.load_from_string(quantised.tensorrt).graph
    assert TensorProto.INT32 not in {initializer.data_type for initializer in graph.initializer}
    assert TensorProto.UINT8 not in {initializer.data_type for initializer in graph.initializer}


def test_cpu_s_file_uses_the_whole_range_of_uint8(quantised):
    assert max(zero_points(quantised.cpu)) > 0
    assert TensorProto.UINT8 in _kinds(quantised.cpu)


def test_both_int8_files_come_of_one_calibration(quantised):
    """The symmetric scale of an activation covers the asymmetric file's range of the same tensor."""
    scales = {}
    for name, model in (("cpu", quantised.cpu), ("tensorrt", quantised.tensorrt)):
        constants = {c.name: numpy_helper.to_array(c) for c in onnx.load_from_string(model).graph.initializer}
        scales[name] = constants["image_scale"], constants["image_zero_point"]
    scale, zero = (float(value) for value in scales["cpu"])
    least, largest = (0 - zero) * scale, (255 - zero) * scale
    assert float(scales["tensorrt"][0]) * 127 == pytest.approx(max(-least, largest), rel=0.02)
    assert quantised.images == 4


def test_files_may_be_in_a_package(half, quantised):
    for model in (half, quantised.cpu, quantised.tensorrt):
        assert survey(model).nodes > 0


def test_nothing_to_calibrate_on_is_said(package):
    with pytest.raises(PackageError, match="needs images to calibrate on"):
        to_int8(package.model, [])


@pytest.mark.parametrize(
    "convert", [to_fp16, lambda model: to_int8(model, [{"image": np.zeros((1, 1, 8, 8), np.float32)}])]
)
def test_damaged_model_is_a_package_error(convert):
    with pytest.raises(PackageError, match="cannot be"):
        convert(b"no model")


def test_inputs_of_another_shape_are_a_package_error(package):
    with pytest.raises(PackageError, match="cannot be quantised"):
        to_int8(package.model, [{"image": np.zeros((1, 1, 8, 8), np.float32)}])


def test_fp16_of_a_model_with_subgraphs_stays_in_order():
    def info(name, shape=(1, 4), kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    then = helper.make_graph([helper.make_node("Add", ["x", "x"], ["a"])], "then", [], [info("a")])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "else", [], [info("b")])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["go"], to=TensorProto.BOOL),
        helper.make_node("If", ["go"], ["y"], then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(onnx.load_from_string(to_fp16(model.SerializeToString())))
