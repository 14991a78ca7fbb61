"""Memory that CPU and device both know: an engine's own buffers, and foreign memory such as a camera's frame slots."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError, EngineLostError
from edgeqc.inference.cuda.port import Cuda, MemoryMode
from edgeqc.ports import TensorSpec


class Buffer:
    """One tensor's memory, page-locked on the CPU's side; on the device's side the same memory, or a copy of it."""

    def __init__(self, cuda: Cuda, tensor: TensorSpec) -> None:
        """Allocate; both sides are zero on the CPU and unset on the device. EngineError where there is no room."""
        self.size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        self.copied = cuda.device.mode is MemoryMode.COPIED
        """Whether a run has to copy between the two."""
        self.host = cuda.host_alloc(self.size)
        """The CPU's address."""
        try:
            self.device = cuda.device_alloc(self.size) if self.copied else cuda.mapped(self.host)
            """The device's address."""
        except EngineError:
            cuda.host_free(self.host)
            raise
        memory = memoryview((ctypes.c_uint8 * self.size).from_address(self.host))
        self.array: NDArray[np.generic] = np.frombuffer(memory, tensor.dtype).reshape(tensor.shape)
        """The CPU's view; dead after `free`."""
        self.array.fill(0)
        self._cuda = cuda

    def free(self) -> None:
        """Give both sides back."""
        try:
            if self.copied:
                self._cuda.device_free(self.device)
        finally:
            self._cuda.host_free(self.host)


class Adopted:
    """Foreign memory that the device may read in place: page-locked as long as this lasts."""

    def __init__(self, cuda: Cuda, memory: NDArray[np.uint8]) -> None:
        """Page-lock a whole, contiguous block, e.g. a mapping. It must outlive `release`. EngineError where refused."""
        self._memory = memory  # keeps the mapping
        self._cuda = cuda
        self._start = memory.ctypes.data
        self._end = self._start + memory.nbytes
        try:
            cuda.mapped(self._start)  # another engine of this process, i.e. of another recipe, has it already
            self._registered = False
        except EngineLostError:
            raise
        except EngineError:
            cuda.host_register(self._start, memory.nbytes)
            self._registered = True

    def holds(self, array: NDArray[np.generic]) -> bool:
        """Whether the contiguous `array` lies inside."""
        start = array.ctypes.data
        return self._start <= start and start + array.nbytes <= self._end and array.flags.c_contiguous

    def release(self) -> None:
        """Page it like other memory again, if it was this that changed it."""
        if self._registered:
            self._cuda.host_unregister(self._start)
