"""The plan builder, with TensorRT for RTX: a real parser and builder that need no GPU to build.

It stands in for TensorRT's own builder, which is another program for other GPUs: what it shows is that our files parse,
are strongly typed, and that each mistake becomes our error with its reason.
"""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpumodels import HIDDEN, WIDTH, cell, cnn, gru, mixed, unknown

from edgeqc.errors import PackageError
from edgeqc.inference import precision
from edgeqc.inference.package import load_package
from edgeqc.inference.pixels import with_pixels
from edgeqc.inference.tensorrt.build import BuildOptions, build_plan, shapes_of

# TensorRT for RTX says so of its timing cache, which it takes and does not use
pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
ENGINES = Path(__file__).parents[3] / "engines"


@pytest.fixture(scope="module")
def trt():
    return importlib.import_module("tensorrt_rtx")


def _package():
    return load_package(ENGINES / "demo-part" / "1")


MODELS = {
    "cnn": cnn,
    "cnn in fp16": lambda: cnn(np.float16),
    "cnn with quantised layers": lambda: cnn(quantised=True),
    "cnn that takes pixels as they are": lambda: cnn(uint8=True),
    "gru cell": cell,
    "gru cells of 50 machines": lambda: cell(batch=50),
    "gru operator": gru,
    "shipped": lambda: _package().model,
    "shipped, put into fp16": lambda: precision.to_fp16(_package().model),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_that_we_ship_builds(trt, name):
    plan, _ = build_plan(trt, MODELS[name](), BuildOptions())
    assert len(plan) > 1000


def test_quantised_file_of_a_shipped_package_builds(trt):
    package = _package()
    inputs = [{"image": package.golden["input.image"][0]}]
    plan, _ = build_plan(trt, precision.to_int8(package.model, inputs).tensorrt, BuildOptions())
    assert len(plan) > 1000


def test_shipped_net_behind_its_own_preprocessing_builds(trt):
    package = _package()
    spec = package.manifest.preprocess.model_copy(update={"fill": "mean"})
    mean = replace(package, manifest=package.manifest.model_copy(update={"preprocess": spec}))
    contents = with_pixels(mean)
    plan, _ = build_plan(trt, contents.model, BuildOptions(shapes={"pixels": (1, 256, 256, 1)}))
    assert len(plan) > 1000


def test_shapes_of_the_manifest_fit_the_shipped_model(trt):
    package = _package()
    build_plan(trt, package.model, BuildOptions(shapes=shapes_of(package.io)))


FAULTS = {
    "unsupported operator": (unknown, {}, r"cannot read the model: Unique: UNSUPPORTED_NODE"),
    "operator of nobody": (lambda: unknown("Trapdoor", "evil"), {}, r"Trapdoor: .*Plugin not found"),
    "mixed types": (mixed, {}, r"same type"),
    "empty file": (lambda: b"", {}, "the ONNX file is empty"),
    "not a model": (lambda: b"<html>not found</html>", {}, "has no output: it is cut off or empty"),
    "noise": (lambda: b"no onnx at all", {}, "Failed to parse the ONNX model"),
    "first half": (lambda: cnn()[:2000], {}, "Failed to parse the ONNX model"),
    "last byte missing": (lambda: cnn()[:-1], {}, "Failed to parse the ONNX model"),
    "shape of another size": (cnn, {"image": (1, 1, 64, 64)}, r"image: shape \[1, 1, 64, 64\] does not fit .*32, 32"),
    "shape of another rank": (cnn, {"image": (1, 1, 32)}, r"image: shape \[1, 1, 32\] does not fit"),
    "shape of nothing": (lambda: cnn(batch="n"), {"image": (0, 1, 32, 32)}, r"shape \[0, 1, 32, 32\] does not fit"),
    "shape of an unknown input": (cnn, {"picture": (1, 1, 32, 32)}, "given for picture; the model reads image"),
    "open shape without one": (lambda: cnn(batch="n"), {}, r"image: shape \[-1, 1, 32, 32\] is not fixed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_mistake_is_our_error_with_its_reason(trt, name):
    model, shapes, reason = FAULTS[name]
    with pytest.raises(PackageError, match=reason):
        build_plan(trt, model(), BuildOptions(shapes=shapes))


def test_open_batch_is_fixed_by_the_shape_given(trt):
    build_plan(trt, gru(steps="s"), BuildOptions(shapes={"x": (1, 1, WIDTH), "h": (1, 1, HIDDEN)}))


def test_progress_is_told_and_can_stop_the_build(trt):
    told = []
    build_plan(trt, cnn(), BuildOptions(), progress=lambda *step: told.append(step) or True)
    assert all(0 <= step <= steps for _, step, steps in told)
    assert len({phase for phase, _, _ in told}) > 1
    with pytest.raises(PackageError, match="the build was stopped"):
        build_plan(trt, cnn(), BuildOptions(), progress=lambda *_: False)


def test_timing_cache_is_given_back_and_taken_again(trt):
    _, timings = build_plan(trt, cnn(), BuildOptions())
    assert timings
    build_plan(trt, cnn(), BuildOptions(), timings=timings)
