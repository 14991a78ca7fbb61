"""One way to run engines, and which ways there are."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

import pytest

from edgeqc.inference.cuda import open_cuda
from edgeqc.inference.tensorrt.build import BuildOptions, build_plan
from edgeqc.inference.tensorrt.engine import TensorRtEngine
from edgeqc.sim.gpu.driver import PretendedDriver

PRETENDED = ("mapped-graph", "mapped-plain", "copied-graph", "copied-plain")


def pycuda():
    """PyCUDA's name where it is installed; it has no wheels, and what it needs to be compiled is in scripts/install."""
    if importlib.util.find_spec("pycuda") is None:
        if os.environ.get("EDGEQC_REQUIRE_PEERS"):
            pytest.fail("pycuda is not installed, and EDGEQC_REQUIRE_PEERS says that it must be")
        pytest.skip("pycuda is not installed: scripts/install test")
    return "pycuda"


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
