"""The pretended GPU (and, by the marker `gpu`, the real one) for the same tests."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

import pytest

from edgeqc.inference.cuda import open_cuda
from edgeqc.inference.tensorrt import vendor
from edgeqc.inference.tensorrt.build import BuildOptions, build_plan
from edgeqc.inference.tensorrt.engine import TensorRtEngine
from edgeqc.sim.gpu import tensorrt as double
from edgeqc.sim.gpu.driver import PretendedDriver, build_driver


@dataclass
class Gpu:
    """One way to run engines: which library, which memory, with or without graphs."""

    trt: object
    adapter: str = "cuda-bindings"
    graphs: bool = True
    driver: PretendedDriver | None = None
    opened: list = field(default_factory=list)

    def engine(self, model, **options):
        plan, _ = build_plan(self.trt, model, BuildOptions())
        return self.run_plan(plan, **options)

    def run_plan(self, plan, **options):
        options.setdefault("graphs", self.graphs)
        engine = TensorRtEngine(plan, trt=self.trt, cuda=open_cuda(self.adapter), **options)
        self.opened.append(engine)
        return engine

    def close(self):
        for engine in self.opened:
            engine.close()


@pytest.fixture(scope="session")
def pretended(tmp_path_factory):
    """The pretended driver, loaded into this process for good."""
    return PretendedDriver(build_driver(tmp_path_factory.mktemp("driver")))


@pytest.fixture
def driver(pretended):
    """The same, as new; whatever a test leaves on the device is a failure."""
    before = pretended.alive
    pretended.pretend(integrated=0, maps=1, registers=1, no_device=0, limit_bytes=8 << 30, copy_delay_us=0)
    pageable = pretended.pageable_copies
    double.Stage.driver = pretended
    yield pretended
    pretended.fail(0)
    pretended.let_go()
    pretended.pretend(integrated=0, maps=1, registers=1, no_device=0, limit_bytes=8 << 30, copy_delay_us=0)
    double.Stage.refuse_execute, double.Stage.fail_execute, double.Stage.wrong_by = False, "", 0.0
    races, double.Stage.races[:] = list(double.Stage.races), []
    assert not races, f"written while the engine read it: {races}"
    assert pretended.alive == before, "left on the device"
    assert pretended.pageable_copies == pageable, "copied from memory that is not page-locked"


PRETENDED = ("mapped-graph", "mapped-plain", "copied-graph", "copied-plain")


def _pycuda():
    """PyCUDA's name where it is installed; it has no wheels, and what it needs to be compiled is in scripts/install."""
    if importlib.util.find_spec("pycuda") is None:
        if os.environ.get("EDGEQC_REQUIRE_PEERS"):
            pytest.fail("pycuda is not installed, and EDGEQC_REQUIRE_PEERS says that it must be")
        pytest.skip("pycuda is not installed: scripts/install test")
    return "pycuda"


@pytest.fixture(params=[*PRETENDED, "mapped-pycuda", "copied-pycuda", pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request):
    """Each kind of memory, with and without graphs, on the pretended device; the real one where asked for."""
    if request.param == "device":
        if os.environ.get("EDGEQC_GPU") != "1":
            pytest.skip("EDGEQC_GPU=1 says that there is a GPU to use")
        on = Gpu(vendor.load())
        yield on
        on.close()
        return
    driver = request.getfixturevalue("driver")
    adapter = "cuda-bindings"
    if request.param.endswith("pycuda"):
        adapter = _pycuda()
    driver.pretend(integrated=request.param.startswith("mapped"))
    on = Gpu(double, adapter=adapter, graphs=request.param.endswith("graph"), driver=driver)
    yield on
    on.close()
