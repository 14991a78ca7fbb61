"""The network as ONNX: one step with its hidden state in the open, so that a row costs the same however long it runs.

The cell is written out in MatMul, Add, Mul, Sigmoid and Tanh instead of ONNX's GRU: TensorRT makes a loop of that one
even for a single step, and a loop cannot be part of a CUDA graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeqc.inference.tagmanifest import FORECAST, HIDDEN, HIDDEN_NEXT, MACHINES, QUANTILE, TAGS
from edgeqc.train.tags.weights import QUANTILES, Weights

_OPSET = 17
_IR = 9
"""What opset 17's time can read."""


def export_step(weights: Weights) -> bytes:
    """Give the ONNX file of one step for any number of machines at once: the batch axis, open under the name `machines`.

    Inputs: `tags` (machines, tags), `hidden` (members, machines, hidden). Outputs: `forecast` (members, machines, tags)
    of the next row, `quantile` (machines, 3 tags), `hidden_next`. All float32, scaled.
    """
    members, tags, gates = weights.input.shape
    hidden = gates // 3
    nodes = [
        helper.make_node("MatMul", [TAGS, "w_input"], ["from_tags_raw"]),
        helper.make_node("Add", ["from_tags_raw", "b_input"], ["from_tags"]),
        helper.make_node("MatMul", [HIDDEN, "w_hidden"], ["from_hidden_raw"]),
        helper.make_node("Add", ["from_hidden_raw", "b_hidden"], ["from_hidden"]),
        helper.make_node("Split", ["from_tags", "halves"], ["gates_tags", "new_tags"], axis=2),
        helper.make_node("Split", ["from_hidden", "halves"], ["gates_hidden", "new_hidden"], axis=2),
        helper.make_node("Add", ["gates_tags", "gates_hidden"], ["gates_raw"]),
        helper.make_node("Sigmoid", ["gates_raw"], ["gates"]),
        helper.make_node("Split", ["gates", "gate"], ["reset", "update"], axis=2),
        helper.make_node("Mul", ["reset", "new_hidden"], ["new_kept"]),
        helper.make_node("Add", ["new_tags", "new_kept"], ["new_raw"]),
        helper.make_node("Tanh", ["new_raw"], ["new"]),
        # (1 - update) new + update hidden = new + update (hidden - new)
        helper.make_node("Sub", [HIDDEN, "new"], ["apart"]),
        helper.make_node("Mul", ["update", "apart"], ["kept"]),
        helper.make_node("Add", ["new", "kept"], [HIDDEN_NEXT]),
        helper.make_node("MatMul", [HIDDEN_NEXT, "w_forecast"], ["forecast_raw"]),
        helper.make_node("Add", ["forecast_raw", "b_forecast"], [FORECAST]),
        helper.make_node("MatMul", [HIDDEN_NEXT, "w_quantile"], ["quantile_raw"]),
        helper.make_node("Add", ["quantile_raw", "b_quantile"], ["quantile_each"]),
        helper.make_node("ReduceMean", ["quantile_each"], [QUANTILE], axes=[0], keepdims=0),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "w_input": weights.input,
        "b_input": weights.input_bias,
        "w_hidden": weights.hidden,
        "b_hidden": weights.hidden_bias,
        "w_forecast": weights.forecast,
        "b_forecast": weights.forecast_bias,
        "w_quantile": weights.quantiles,
        "b_quantile": weights.quantiles_bias,
        "halves": np.array([2 * hidden, hidden], np.int64),
        "gate": np.array([hidden, hidden], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "gru_step",
        [_tensor(TAGS, MACHINES, tags), _tensor(HIDDEN, members, MACHINES, hidden)],
        [
            _tensor(FORECAST, members, MACHINES, tags),
            _tensor(QUANTILE, MACHINES, len(QUANTILES) * tags),
            _tensor(HIDDEN_NEXT, members, MACHINES, hidden),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="edgeqc")
    model.ir_version = _IR
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
