"""Small models with the shapes of the real ones."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

KINDS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}
CARRY = {"h": "h_next"}
WIDTH, HIDDEN = 6, 8


def _saved(nodes, inputs, outputs, weights):
    def told(values):
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in values]

    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", told(inputs), told(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def cnn(dtype=np.float32, *, uint8=False, quantised=False, batch=1):
    """Two convolutions, a map of cells and a score: from one grey image of 32 x 32."""
    draw = np.random.default_rng(3)
    kind = KINDS[dtype]
    nodes, weights, source = [], {}, "image"
    if uint8:  # pixels as the camera has them: the model does the rest
        weights["full"] = np.array(255, dtype)
        nodes += [
            helper.make_node("Cast", ["image"], ["levels"], to=kind),
            helper.make_node("Div", ["levels", "full"], ["unit"]),
            helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        ]
        source = "planes"
    for index, (fan_in, fan_out) in enumerate([(1, 8), (8, 16)]):
        weights[f"w{index}"] = (draw.standard_normal((fan_out, fan_in, 3, 3)) * 0.2).astype(dtype)
        weights[f"b{index}"] = np.zeros(fan_out, dtype)
        kernel = f"w{index}"
        if quantised:  # symmetric, as TensorRT wants it: every zero point is 0
            weights |= {
                f"as{index}": np.array(0.02, np.float32),
                f"az{index}": np.array(0, np.int8),
                f"ws{index}": np.full(fan_out, 0.005, np.float32),
                f"wz{index}": np.zeros(fan_out, np.int8),
            }
            for what, tensor, axis in (("a", source, None), ("w", kernel, 0)):
                named = {} if axis is None else {"axis": axis}
                scale, zero = f"{what}s{index}", f"{what}z{index}"
                nodes += [
                    helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{what}q{index}"], **named),
                    helper.make_node(
                        "DequantizeLinear", [f"{what}q{index}", scale, zero], [f"{what}d{index}"], **named
                    ),
                ]
            source, kernel = f"ad{index}", f"wd{index}"
        nodes += [
            helper.make_node("Conv", [source, kernel, f"b{index}"], [f"c{index}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        source = f"r{index}"
    weights |= {"head": (draw.standard_normal((1, 16, 1, 1)) * 0.2).astype(dtype), "one": np.array([-1], np.int64)}
    nodes += [
        helper.make_node("Conv", [source, "head"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["map"]),
        helper.make_node("ReduceMax", ["map"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "one"], ["score"]),
    ]
    shape, image_kind = ((batch, 32, 32, 1), TensorProto.UINT8) if uint8 else ((batch, 1, 32, 32), kind)
    return _saved(
        nodes, [("image", image_kind, shape)], [("score", kind, (1,)), ("map", kind, (batch, 1, 8, 8))], weights
    )


def cell(*, batch=1):
    """One step of a gated recurrent unit, written out: no loop, so that it can be recorded as a graph."""
    draw = np.random.default_rng(4)
    weights = {
        f"{letter}_{gate}": (draw.standard_normal((fan_in, HIDDEN)) * 0.4).astype(np.float32)
        for letter, fan_in in (("W", WIDTH), ("R", HIDDEN))
        for gate in "zrn"
    }
    weights |= {"V": (draw.standard_normal((HIDDEN, WIDTH)) * 0.4).astype(np.float32), "one": np.array(1, np.float32)}
    nodes = []
    for gate in "zrn":
        nodes += [
            helper.make_node("MatMul", ["x", f"W_{gate}"], [f"x_{gate}"]),
            helper.make_node("MatMul", ["h", f"R_{gate}"], [f"h_{gate}"]),
        ]
    for gate in "zr":
        nodes += [
            helper.make_node("Add", [f"x_{gate}", f"h_{gate}"], [f"s_{gate}"]),
            helper.make_node("Sigmoid", [f"s_{gate}"], [gate]),
        ]
    nodes += [
        helper.make_node("Mul", ["r", "h_n"], ["reset"]),
        helper.make_node("Add", ["x_n", "reset"], ["s_n"]),
        helper.make_node("Tanh", ["s_n"], ["n"]),
        helper.make_node("Sub", ["one", "z"], ["keep"]),
        helper.make_node("Mul", ["keep", "n"], ["new"]),
        helper.make_node("Mul", ["z", "h"], ["old"]),
        helper.make_node("Add", ["new", "old"], ["h_next"]),
        helper.make_node("MatMul", ["h_next", "V"], ["y"]),
    ]
    kind = TensorProto.FLOAT
    return _saved(
        nodes,
        [("x", kind, (batch, WIDTH)), ("h", kind, (batch, HIDDEN))],
        [("y", kind, (batch, WIDTH)), ("h_next", kind, (batch, HIDDEN))],
        weights,
    )


def gru(steps=1):
    """ONNX' own GRU operator over a window, state in and out."""
    draw = np.random.default_rng(5)
    weights = {
        "W": (draw.standard_normal((1, 3 * HIDDEN, WIDTH)) * 0.3).astype(np.float32),
        "R": (draw.standard_normal((1, 3 * HIDDEN, HIDDEN)) * 0.3).astype(np.float32),
        "B": np.zeros((1, 6 * HIDDEN), np.float32),
    }
    node = helper.make_node(
        "GRU", ["x", "W", "R", "B", "", "h"], ["", "h_next"], hidden_size=HIDDEN, linear_before_reset=1
    )
    kind = TensorProto.FLOAT
    return _saved(
        [node],
        [("x", kind, (steps, 1, WIDTH)), ("h", kind, (1, 1, HIDDEN))],
        [("h_next", kind, (1, 1, HIDDEN))],
        weights,
    )


def unknown(operator="Unique", domain=""):
    """One node that no builder can run."""
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n",))],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def mixed():
    """A half-precision kernel on a single-precision image: forbidden where types are strong."""
    weights = {"w": np.ones((4, 1, 3, 3), np.float16)}
    node = helper.make_node("Conv", ["image", "w"], ["y"])
    return _saved(
        [node],
        [("image", TensorProto.FLOAT, (1, 1, 8, 8))],
        [("y", TensorProto.FLOAT, (1, 4, 6, 6))],
        weights,
    )
