"""An engine package that a test breaks at will, by the grey level of what stands before the camera."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import yaml
from conftest import ENGINE
from onnx import TensorProto, helper

from edgeqc.sim.images import PartImages

WELL_LEVEL, SLOW_LEVEL, NAN_LEVEL = 50, 100, 200
"""Score 0.1 at once; the same after SLOW_S or so; not a number."""
SLOW_S: Final = 0.25
"""On this box, with nothing else on the core: over every budget of a test, and no hang."""
UNSIGNED: Final = {"engines": {"unsigned": "allow"}}
_SIDE: Final = 32
_HEAVY_SIDE: Final = 256
_TRIED_TURNS: Final = 10_000.0
_SLOW_ABOVE: Final = 0.3
"""Of white. From there to half of white the engine multiplies matrices, the more often the more turns."""


def flat_package(folder: Path) -> Path:
    """A package whose score is 0.1, not a number above half of white (sqrt(0.5 - mean)), and slow just below that."""
    tried = min(_slow_s(_model(_TRIED_TURNS)) for _ in range(3))
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(_model(_TRIED_TURNS * SLOW_S / tried))
    (folder / "calibration.json").write_text(
        json.dumps({"threshold": 0.5, "map_threshold": 0.5, "goods": 1, "defects": 1})
    )
    np.savez(
        folder / "golden.npz",
        **{
            "input.image": np.full((1, 1, 1, _SIDE, _SIDE), 0.25, np.float32),
            "output.score": np.array([[0.1]], np.float32),
            "output.map": np.full((1, 1, 1, 4, 4), 0.25, np.float32),
        },
    )
    manifest = yaml.safe_load((ENGINE / "manifest.yaml").read_text())
    manifest["name"] = "flat"
    manifest["inputs"] = [{"name": "image", "dtype": "float32", "shape": [1, 1, _SIDE, _SIDE]}]
    manifest["outputs"] = [
        {"name": "score", "dtype": "float32", "shape": [1]},
        {"name": "map", "dtype": "float32", "shape": [1, 1, 4, 4]},
    ]
    manifest["classes"] = ["bright"]
    manifest["preprocess"] = {"fit": "stretch", "normalise": "linear", "gain": 1 / 255, "offset": 0.0}
    seal(folder, manifest)
    return folder


def _slow_s(model: bytes) -> float:
    """How long it takes for a part of SLOW_LEVEL."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    began_s = time.perf_counter()
    session.run(None, {"image": np.full((1, 1, _SIDE, _SIDE), SLOW_LEVEL / 255, np.float32)})
    return time.perf_counter() - began_s


def _model(turns: float) -> bytes:
    """ONNX, as bytes."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, _SIDE, _SIDE])
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, 4, 4]),
    ]
    constants = {
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "slow_above": np.float32(_SLOW_ABOVE),
        "turns_most": np.float32(turns),
        "tenth": np.array([0.1], np.float32),
        "true": np.array(True),
        "heavy": np.zeros((_HEAVY_SIDE, _HEAVY_SIDE), np.float32),
    }
    heavy = (TensorProto.FLOAT, [_HEAVY_SIDE, _HEAVY_SIDE])
    turn = helper.make_graph(
        [helper.make_node("MatMul", ["before", "before"], ["after"]), helper.make_node("Identity", ["go"], ["goes"])],
        "turn",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", *heavy),
        ],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), helper.make_tensor_value_info("after", *heavy)],
    )
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["half", "mean"], ["spare"]),
        helper.make_node("Sqrt", ["spare"], ["root"]),
        helper.make_node("Sub", ["mean", "slow_above"], ["above"]),
        helper.make_node("Relu", ["above"], ["slowness"]),
        helper.make_node("Relu", ["spare"], ["room"]),
        helper.make_node("Mul", ["slowness", "room"], ["between"]),
        helper.make_node("Mul", ["between", "turns_most"], ["turns"]),
        helper.make_node("Cast", ["turns"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "true", "heavy"], ["worked"], body=turn),
        helper.make_node("ReduceMean", ["worked"], ["work"], keepdims=0),
        helper.make_node("Add", ["root", "work"], ["all"]),
        helper.make_node("Mul", ["all", "zero"], ["nothing"]),
        helper.make_node("Add", ["tenth", "nothing"], ["score"]),
        helper.make_node("AveragePool", ["image"], ["map"], kernel_shape=[8, 8], strides=[8, 8]),
    ]
    initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "flat", [image], outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def seal(folder: Path, manifest: dict[str, object]) -> None:
    """Write the manifest with the hashes of the files that are there."""
    files = {"model": "model.onnx", "calibration": "calibration.json", "golden": "golden.npz"}
    manifest["files"] = {key: hashlib.sha256((folder / name).read_bytes()).hexdigest() for key, name in files.items()}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def flat_images(folder: Path, levels: list[int]) -> PartImages:
    """Part n shows grey level levels[n % len]; bright is said to be defective."""
    pictures = np.stack([np.full((240, 320), level, np.uint8) for level in levels])
    np.save(folder / "flat.npy", pictures)
    np.save(folder / "flat-truth.npy", np.array([level > 128 for level in levels]))
    return PartImages(file=folder / "flat.npy", truth=folder / "flat-truth.npy", shape=(240, 320), contrast=None)
