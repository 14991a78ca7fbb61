"""The driver through PyCUDA: for boxes that have it already.

No graphs, no page-locking of foreign memory, and one thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError, EngineLostError, PackageError
from edgeqc.inference.cuda.port import Device, is_lost


class PycudaCuda:
    """`Cuda` on `pycuda.driver`. PyCUDA frees with its objects, so each is kept here under the number given out."""

    graphs = False

    def __init__(self, device: int) -> None:
        try:
            import pycuda  # noqa: PLC0415 - only a box that was given it has it
            from pycuda import driver  # noqa: PLC0415 - it looks up all of libcuda.so.1 as it is loaded
        except ImportError as exc:
            raise PackageError(
                f"gpu.adapter: pycuda cannot be loaded ({exc}); it has no wheels: pip install pycuda compiles it and "
                "needs cuda.h and libcuda.so; or use cuda-bindings"
            ) from exc
        self.adapter = f"pycuda {pycuda.VERSION_TEXT}"
        self._drv: Any = driver
        self._libcuda = ctypes.CDLL("libcuda.so.1")
        """For the one thing that PyCUDA keeps to itself: the code of an error."""
        self._objects: dict[int, Any] = {}
        self._views: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self._next = 1
        self._thread = threading.get_ident()
        self._try(driver.init)
        found = self._try(lambda: driver.Device(device))
        self.device = self._describe(found)
        self._context: Any = self._try(found.retain_primary_context)
        self._try(self._context.push)

    def attach(self) -> None:
        """A check only: PyCUDA aborts the process when a thread ends whose own stack of contexts is not empty."""
        if threading.get_ident() != self._thread:
            raise EngineError(f"{self.adapter}: only the thread that opened the device may use it; cuda-bindings: any")

    def host_alloc(self, size: int) -> int:
        """Page-locked, portable, mapped."""
        flags = self._drv.host_alloc_flags.PORTABLE | self._drv.host_alloc_flags.DEVICEMAP
        array = self._try(lambda: self._drv.pagelocked_empty(size, np.uint8, mem_flags=flags))
        address: int = array.ctypes.data
        self._objects[address] = array
        return address

    def host_free(self, address: int) -> None:
        """Free it."""
        self._views = {place: view for place, view in self._views.items() if place[0] != address}
        self._try(self._taken(address).base.free)

    def host_register(self, address: int, size: int) -> None:
        """PyCUDA's own call frees an object that it still uses, with numpy 2 (seen: a crash)."""
        raise EngineError(f"pycuda page-locks no foreign memory ({size} bytes at {address:#x}); cuda-bindings does")

    def host_unregister(self, address: int) -> None:
        """Nothing was registered."""
        raise EngineError(f"pycuda page-locked nothing at {address:#x}")

    def mapped(self, address: int) -> int:
        """The device's address."""
        array = self._objects.get(address)
        if array is None:
            raise EngineError(f"no page-locked memory begins at {address:#x}")
        return int(self._try(array.base.get_device_pointer))

    def device_alloc(self, size: int) -> int:
        """Allocate on the device."""
        allocation = self._try(lambda: self._drv.mem_alloc(size))
        self._objects[int(allocation)] = allocation
        return int(allocation)

    def device_free(self, address: int) -> None:
        """Free it."""
        self._try(self._taken(address).free)

    def zero(self, address: int, size: int, stream: int) -> None:
        """Set to zero in stream order."""
        self._try(lambda: self._drv.memset_d8_async(address, 0, size, self._objects[stream]))

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """To the device in stream order."""
        self._try(lambda: self._drv.memcpy_htod_async(device, self._view(host, size), self._objects[stream]))

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """From the device in stream order."""
        self._try(lambda: self._drv.memcpy_dtoh_async(self._view(host, size), device, self._objects[stream]))

    def stream(self) -> int:
        """Make a stream; here its number is the driver's own, which TensorRT wants."""
        stream = self._try(lambda: self._drv.Stream(_NON_BLOCKING))
        self._objects[int(stream.handle)] = stream
        return int(stream.handle)

    def stream_free(self, stream: int) -> None:
        """End it."""
        self._taken(stream)

    def synchronise(self, stream: int) -> None:
        """Wait for the stream."""
        self._try(self._objects[stream].synchronize)

    def event(self) -> int:
        """Make an event."""
        event = self._try(lambda: self._drv.Event(self._drv.event_flags.DISABLE_TIMING))
        self._next += 1
        self._objects[-self._next] = event
        return -self._next

    def event_free(self, event: int) -> None:
        """End it."""
        self._taken(event)

    def record(self, event: int, stream: int) -> None:
        """Put the event into the stream."""
        self._try(lambda: self._objects[event].record(self._objects[stream]))

    def done(self, event: int) -> bool:
        """Has the stream come past it?"""
        return bool(self._try(self._objects[event].query))

    def begin_capture(self, stream: int) -> None:
        """PyCUDA knows no graphs."""
        raise EngineError(f"pycuda records no graphs (stream {stream:#x})")

    def end_capture(self, stream: int) -> int:
        """PyCUDA knows no graphs."""
        raise EngineError(f"pycuda records no graphs (stream {stream:#x})")

    def launch(self, graph: int, stream: int) -> None:
        """PyCUDA knows no graphs."""
        raise EngineError(f"pycuda launches no graphs ({graph} on stream {stream:#x})")

    def graph_free(self, graph: int) -> None:
        """PyCUDA knows no graphs."""
        raise EngineError(f"pycuda has no graph {graph}")

    def close(self) -> None:
        """Pop the context here and let go of it."""
        self._objects.clear()
        self._views.clear()
        if self._context is not None:
            with contextlib.suppress(EngineError):
                self._try(self._context.detach)
            # It leaves the context on the driver's own stack, where only an ordinary one would have gone with it.
            self._libcuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        self._context = None

    def _describe(self, found: Any) -> Device:
        attribute = self._drv.device_attribute
        version = int(self._drv.get_driver_version())
        major, minor = found.compute_capability()
        return Device(
            name=found.name(),
            sm=f"{major}.{minor}",
            driver=f"{version // 1000}.{version % 1000 // 10}",
            memory_bytes=found.total_memory(),
            integrated=bool(found.get_attribute(attribute.INTEGRATED)),
            maps_host_memory=bool(found.get_attribute(attribute.CAN_MAP_HOST_MEMORY)),
            registers_host_memory=False,  # whatever the device can
        )

    def _view(self, address: int, size: int) -> NDArray[np.uint8]:
        """PyCUDA takes buffers where the driver takes addresses; made once per place."""
        place = (address, size)
        if place not in self._views:
            self._views[place] = np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)
        return self._views[place]

    def _taken(self, number: int) -> Any:
        taken = self._objects.pop(number, None)
        if taken is None:
            raise EngineError(f"pycuda: {number:#x} was not made here, or is freed already")
        return taken

    def _try(self, call: Callable[[], _T]) -> _T:
        """PyCUDA's errors as ours. It tells no code: one that stays is asked for again."""
        try:
            return call()
        except self._drv.Error as exc:
            if is_lost(int(self._libcuda.cuCtxSynchronize())):
                raise EngineLostError(f"pycuda: {exc}") from exc
            raise EngineError(f"pycuda: {exc}") from exc


_T = TypeVar("_T")
_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING; PyCUDA has no name for it."""
