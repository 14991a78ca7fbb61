"""The device, the packages and the report."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import pretend

from edgeqc.errors import PackageError
from edgeqc.inference.manifest import Backend, Precision
from edgeqc.inference.package import load_package
from edgeqc.inference.tensorrt.workshop import Workshop
from edgeqc.settings import GpuSettings

ROOT = Path(__file__).parents[1]


def pytest_configure():
    pretend.install()


def _packages():
    told = os.environ.get("EDGEQC_HIL_PACKAGES", "")
    folders = [Path(part) for part in told.split(":") if part]
    return folders or sorted(path.parent for path in (ROOT / "engines").glob("*/*/manifest.yaml"))


def _ways():
    for folder in _packages():
        package = load_package(folder)
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
            try:
                yield pytest.param(package.as_run(Backend.TENSORRT, precision), id=f"{package.name}-{precision}")
            except PackageError:
                continue


def pytest_generate_tests(metafunc):
    if "package" in metafunc.fixturenames:
        metafunc.parametrize("package", list(_ways()))


@pytest.fixture(scope="session")
def gpu():
    return GpuSettings(adapter=os.environ.get("EDGEQC_HIL_ADAPTER", "cuda-bindings"))


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("hil")


@pytest.fixture(scope="session")
def built(gpu, state_dir):
    """Build a package's plan once."""
    workshop = Workshop(state_dir, gpu)
    done = {}

    def build(package):
        if package.digest not in done:
            done[package.digest] = workshop.build(package)
        return done[package.digest]

    build.device = workshop.device
    build.tensorrt = workshop.tensorrt
    yield build
    workshop.close()


@pytest.fixture
def report(built, request):
    """Append what was measured, with what it was measured on."""

    def tell(**facts):
        line = {
            "test": request.node.name,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": built.device.name,
            "sm": built.device.sm,
            "driver": built.device.driver,
            "tensorrt": built.tensorrt,
            "pretended": os.environ.get("EDGEQC_HIL_PRETEND") == "1",
            **facts,
        }
        path = Path(os.environ.get("EDGEQC_HIL_REPORT", "hil-report.jsonl"))
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line))

    return tell
