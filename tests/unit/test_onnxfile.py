"""The walk through an ONNX file agrees with the onnx package, and refuses what no package may have."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import edgeqc
from edgeqc.inference import onnxfile
from edgeqc.inference.onnxfile import OnnxFault, survey

DEMO = Path(edgeqc.__file__).parents[1] / "engines" / "demo-part" / "1" / "model.onnx"
DEMO_BYTES = DEMO.read_bytes()


def _model(nodes, initializers=(), **more):
    def info(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,))

    graph = helper.make_graph(nodes, "graph", [info("x")], [info("y")], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, **more)


def _nested(depth):
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
        body = helper.make_graph([node], "outer", [], [])
    return _model([helper.make_node("If", ["c"], ["y"], then_branch=body)])


def test_it_finds_what_the_onnx_package_finds():
    graph = onnx.load_from_string(DEMO_BYTES).graph
    found = survey(DEMO_BYTES)
    assert found.nodes == len(graph.node)
    assert found.operators == {node.op_type for node in graph.node}
    assert found.initializers == len(graph.initializer)
    assert found.tensors == {value.name for value in [*graph.input, *graph.output]}
    assert found.opset == 17


def test_operator_of_another_domain_is_refused_by_name():
    node = helper.make_node("Trapdoor", ["x"], ["y"], domain="evil.example")
    with pytest.raises(OnnxFault, match=r"the operator Trapdoor of evil\.example: only ONNX' own"):
        survey(_model([node]).SerializeToString())


def test_operator_of_another_domain_is_found_in_a_subgraph():
    inner = helper.make_graph([helper.make_node("Trapdoor", [], ["y"], domain="com.microsoft")], "inner", [], [])
    with pytest.raises(OnnxFault, match=r"Trapdoor of com\.microsoft"):
        survey(_model([helper.make_node("If", ["x"], ["y"], then_branch=inner)]).SerializeToString())


def test_functions_of_its_own_are_refused():
    node = helper.make_node("Twice", ["x"], ["y"], domain="own")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    with pytest.raises(OnnxFault, match=r"functions of its own|Twice of own"):
        survey(_model([node], functions=[function]).SerializeToString())


@pytest.mark.parametrize("where", ["initializer", "attribute", "location only"])
def test_data_in_other_files_is_refused_wherever_it_is(where):
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.data_location = TensorProto.EXTERNAL
    if where != "location only":
        tensor.external_data.add(key="location", value="../../etc/passwd")
    if where == "attribute":
        model = _model([helper.make_node("Constant", [], ["y"], value=tensor)])
    else:
        model = _model([helper.make_node("Identity", ["x"], ["y"])], [tensor])
    with pytest.raises(OnnxFault, match="keeps data in other files"):
        survey(model.SerializeToString())


def test_constant_that_unfolds_to_more_than_a_box_has_is_refused():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20])
    with pytest.raises(OnnxFault, match="has a constant of"):
        survey(_model([helper.make_node("Identity", ["x"], ["y"])], [tensor]).SerializeToString())


def test_too_many_nodes_are_refused(monkeypatch):
    monkeypatch.setattr(onnxfile, "NODES_MOST", 10)
    nodes = [helper.make_node("Identity", ["x"], [f"y{number}"]) for number in range(11)]
    with pytest.raises(OnnxFault, match="has over 10 nodes"):
        survey(_model(nodes).SerializeToString())


def test_subgraphs_without_end_are_refused():
    assert survey(_nested(3).SerializeToString()).nodes
    with pytest.raises(OnnxFault, match="subgraphs more than 8 deep"):
        survey(_nested(10).SerializeToString())


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"no model at all", b"\x3a\x00", DEMO_BYTES[:-1000], b"\xff" * 32]
)
def test_file_that_is_no_model_is_refused(content):
    with pytest.raises(OnnxFault):
        survey(content)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_survey_or_a_fault(content):
    with suppress(OnnxFault):
        survey(content)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_a_damaged_head_ends_in_a_survey_or_a_fault(at, value):
    content = bytearray(DEMO_BYTES)
    content[at] = value
    with suppress(OnnxFault):
        survey(bytes(content))
