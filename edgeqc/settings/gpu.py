"""The box's GPU and how it is spoken to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeqc.settings.base import Model


class GpuSettings(Model):
    """For recipes that run on tensorrt."""

    device: int = Field(0, ge=0, le=15, description="number of the GPU, as nvidia-smi counts")
    adapter: Literal["cuda-bindings", "pycuda"] = Field(
        "cuda-bindings",
        description="library to the CUDA driver; pycuda has no graphs and cannot page-lock camera memory",
    )
    graphs: bool = Field(
        True,
        description="record each run once and replay it; false for models with loops or conditions, which cannot be",
    )
    workspace_mb: int = Field(512, ge=16, le=65_536, description="scratch memory that a kernel of a plan may take")
    build_level: int = Field(3, ge=0, le=5, description="how long the plan builder looks for fast kernels")
