"""Inputs in memory that is not the engine's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError


def checked_input(name: str, own: NDArray[np.generic], array: NDArray[np.generic]) -> None:
    """EngineError where `array` cannot be read in the place of the slot's `own` buffer."""
    if array.dtype != own.dtype or array.shape != own.shape:
        raise EngineError(f"input {name}: {array.dtype}{list(array.shape)} is not {own.dtype}{list(own.shape)}")
    if not array.flags.c_contiguous:
        raise EngineError(f"input {name}: the array is not contiguous")


class AdoptedBlocks:
    """The blocks that an engine on the CPU was told of: nothing has to be done to them, but other memory is refused."""

    def __init__(self) -> None:
        """None yet."""
        self._blocks: list[NDArray[np.uint8]] = []

    def add(self, memory: NDArray[np.uint8]) -> None:
        """Inputs may lie in there."""
        self._blocks.append(memory)

    def forget(self) -> None:
        """Hold none of them any more."""
        self._blocks.clear()

    def check(self, name: str, array: NDArray[np.generic]) -> None:
        """EngineError where it lies elsewhere."""
        if not any(np.may_share_memory(block, array) for block in self._blocks):
            raise EngineError(f"input {name}: the array is not inside memory that the engine adopted")
