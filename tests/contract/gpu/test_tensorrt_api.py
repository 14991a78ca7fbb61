"""Every name and signature that we use, and every one that our double has, exists in the real bindings of TensorRT.

The bindings of 10.3 (JetPack 6), 10.16 (JetPack 7) and 11.4 are loaded as they come from NVIDIA, on libraries that hold
nothing but the nine symbols they want to find: they can be looked at, not run.
"""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeqc.inference.tensorrt
from edgeqc.sim.gpu import tensorrt as double

VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
WHEELS = Path(sys.prefix) / "tensorrt-bindings"
"""Where scripts/install puts them."""
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LOOK = """
import inspect, json, sys
import tensorrt_bindings as trt
def told(thing):
    if not inspect.isclass(thing):
        return thing.__doc__ or "" if callable(thing) else "value"
    return {name: told(getattr(thing, name)) for name in dir(thing) if not name.startswith("__") or name == "__init__"}
json.dump({name: told(getattr(trt, name)) for name in dir(trt) if not name.startswith("_")}, sys.stdout, default=str)
"""
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "error": "ParserError",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
}
"""What our code calls the vendor's objects, in the modules that have them."""
MODULES = ("build", "engine", "slot", "vendor")


@pytest.fixture(scope="module", params=VERSIONS)
def real(request, tmp_path_factory):
    """What one version of the bindings has: class to name to docstring."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = list(WHEELS.glob(f"*-{request.param}-{tag}-*.whl"))
    if not wheels:
        missing = f"{WHEELS} has no bindings of TensorRT {request.param} for {tag}: scripts/install test fetches them"
        if os.environ.get("EDGEQC_REQUIRE_PEERS"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    (folder / "stub.c").write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    major = request.param.split(".")[0]
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{name}.so.{major}"
        subprocess.run(
            [shutil.which("cc"), "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, folder / "stub.c"],
            check=True,
        )
    environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _signatures(doc):
    """Each overload's parameters after self: name to whether it has a default."""
    found = []
    for line in doc.splitlines():
        match = re.match(r"^\s*(?:\d+\. )?\w+\(self\b[^,)]*(?:, )?(.*)\)(?: ->|$)", line)
        if match:
            parts = re.split(r", (?=\w+:)", match[1]) if match[1] else []
            found.append({part.split(":")[0].strip(): "=" in part for part in parts})
    return found


def _fits(call, parameters):
    count, names = len(call.args), list(parameters)
    keywords = {keyword.arg for keyword in call.keywords}
    needed = {parameter for parameter, optional in parameters.items() if not optional}
    return count <= len(names) and keywords <= set(names[count:]) and needed <= {*names[:count], *keywords}


def _uses():
    """(module, line, class, name, call or None) of every use of a vendor's object or module in our code."""
    folder = Path(edgeqc.inference.tensorrt.__file__).parent
    for module in MODULES:
        tree = ast.parse((folder / f"{module}.py").read_text())
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            holder = node.value
            name = holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", None)
            own = isinstance(holder, ast.Attribute) and not (
                isinstance(holder.value, ast.Name) and holder.value.id == "self"
            )
            if name in VARIABLES and not own:
                yield module, node.lineno, VARIABLES[name], node.attr, calls.get(id(node))


def _chains():
    """`trt.A.B` as ("A", "B"), from all of our modules."""
    folder = Path(edgeqc.inference.tensorrt.__file__).parent
    for path in folder.glob("*.py"):
        for match in re.finditer(r"(?<![\w.])(?:self\._)?trt\.(\w+)((?:\.\w+)*)", path.read_text()):
            yield path.name, match[1], [part for part in match[2].split(".") if part]


def test_the_lists_find_what_we_use():
    used = {(kind, name) for _, _, kind, name, _ in _uses()}
    assert {
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_tensor_address"),
        ("IBuilderConfig", "set_timing_cache"),
        ("OnnxParser", "get_error"),
        ("ICudaEngine", "get_tensor_location"),
        ("Runtime", "deserialize_cuda_engine"),
    } <= used
    assert {("ILogger", "Severity"), ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")} <= {
        (first, *rest[:1]) for _, first, rest in _chains()
    }


def test_every_name_that_we_use_exists(real):
    missing = [
        f"{module}.py:{line}: {kind}.{name}" for module, line, kind, name, _ in _uses() if name not in real[kind]
    ]
    for path, first, rest in _chains():
        place = real if first == "__version__" else real.get(first)
        for part in rest if first != "__version__" else []:
            place = place.get(part) if isinstance(place, dict) else None
        if place is None:
            missing.append(f"{path}: trt.{'.'.join([first, *rest])}")
    assert not missing


def test_every_call_fits_a_signature(real):
    wrong, checked = [], 0
    for module, line, kind, name, call in _uses():
        signatures = _signatures(real[kind].get(name, "")) if isinstance(real[kind].get(name), str) else []
        if call is None or not signatures:
            continue
        checked += 1
        if not any(_fits(call, signature) for signature in signatures):
            wrong.append(f"{module}.py:{line}: {kind}.{name}: {signatures}")
    assert checked > 20
    assert not wrong


def test_what_we_derive_overrides_what_is_there(real):
    folder = Path(edgeqc.inference.tensorrt.__file__).parent
    derived = {
        node.bases[0].attr: [item for item in node.body if isinstance(item, ast.FunctionDef)]
        for module in MODULES
        for node in ast.walk(ast.parse((folder / f"{module}.py").read_text()))
        if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Attribute)
    }
    assert derived.keys() == {"ILogger", "IErrorRecorder", "IProgressMonitor"}
    for kind, methods in derived.items():
        for method in methods:
            if method.name.startswith("_"):
                continue
            assert method.name in real[kind], f"{kind}.{method.name}"
            for signature in _signatures(real[kind][method.name])[:1]:
                assert len(signature) == len(method.args.args) - 1, f"{kind}.{method.name}: {signature}"
        assert any(method.name == "__init__" for method in methods), f"{kind}: the bindings crash without __init__"


def test_the_double_has_no_name_and_no_signature_of_its_own(real):
    checked = 0
    for kind, thing in inspect.getmembers(double, inspect.isclass):
        if thing.__module__ != double.__name__ or kind == "Stage":
            continue
        assert kind in real, kind
        for name, member in vars(thing).items():
            if name.startswith("_") or (inspect.isclass(member) and name in real[kind]):
                continue
            assert name in real[kind], f"{kind}.{name}"
            doc = real[kind][name]
            signatures = _signatures(doc) if isinstance(doc, str) else []
            if inspect.isfunction(member) and signatures:
                checked += 1
                ours = [parameter for parameter in inspect.signature(member).parameters if parameter != "self"]
                assert any(
                    ours == list(signature)[: len(ours)] and all(list(signature.values())[len(ours) :])
                    for signature in signatures
                ), f"{kind}.{name}({', '.join(ours)}): {signatures}"
    assert checked > 20
