"""The pretended GPU (and, by the marker `gpu`, the real one) for the same tests."""

from __future__ import annotations

import os

import pytest
from gpubox import PRETENDED, Gpu, pycuda

from edgeqc.inference.tensorrt import vendor
from edgeqc.sim.gpu import tensorrt as double
from edgeqc.sim.gpu.driver import PretendedDriver, build_driver


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
    pretended.let_go()
    pretended.fail(0)
    pretended.pretend(integrated=0, maps=1, registers=1, no_device=0, limit_bytes=8 << 30, copy_delay_us=0)
    double.Stage.refuse_execute, double.Stage.fail_execute, double.Stage.wrong_by = False, "", 0.0
    races, double.Stage.races[:] = list(double.Stage.races), []
    assert not races, f"written while the engine read it: {races}"
    assert pretended.alive == before, "left on the device"
    assert pretended.pageable_copies == pageable, "copied from memory that is not page-locked"


WITH_PYCUDA = (*PRETENDED, "mapped-pycuda", "copied-pycuda")


@pytest.fixture(params=[*WITH_PYCUDA, pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request):
    """Each kind of memory, with and without graphs, on the pretended device; the real one where asked for."""
    if request.param != "device":
        yield from _pretended(request)
        return
    if os.environ.get("EDGEQC_GPU") != "1":
        pytest.skip("EDGEQC_GPU=1 says that there is a GPU to use")
    on = Gpu(vendor.load())
    yield on
    on.close()


@pytest.fixture(params=WITH_PYCUDA)
def pretended_gpu(request):
    """The pretended device only: what needs one that can be held and broken."""
    yield from _pretended(request)


@pytest.fixture(params=PRETENDED)
def locking_gpu(request):
    """The same, through the adapter that page-locks foreign memory."""
    yield from _pretended(request)


def _pretended(request):
    driver = request.getfixturevalue("driver")
    adapter = pycuda() if request.param.endswith("pycuda") else "cuda-bindings"
    driver.pretend(integrated=request.param.startswith("mapped"))
    on = Gpu(double, adapter=adapter, graphs=request.param.endswith("graph"), driver=driver)
    yield on
    on.close()
