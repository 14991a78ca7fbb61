"""For trying the bench itself where there is no GPU: the pretended one takes its place. Figures then mean nothing."""

import os
import sys
import tempfile
from pathlib import Path


def install():
    """Only with EDGEQC_HIL_PRETEND=1, before anything looks for a driver."""
    if os.environ.get("EDGEQC_HIL_PRETEND") != "1":
        return
    from edgeqc.sim.gpu import tensorrt  # noqa: PLC0415 - not on a box with a GPU
    from edgeqc.sim.gpu.driver import PretendedDriver, build_driver  # noqa: PLC0415

    tensorrt.Stage.driver = PretendedDriver(build_driver(Path(tempfile.mkdtemp(prefix="edgeqc-hil-"))))
    sys.modules["tensorrt"] = tensorrt
