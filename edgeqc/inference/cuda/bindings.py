"""The driver through NVIDIA's own bindings (package `cuda-bindings`)."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from edgeqc.errors import EngineError, EngineLostError, PackageError
from edgeqc.inference.cuda.port import Device, check


class BindingsCuda:
    """`Cuda` on `cuda.bindings.driver`. The driver library, not the runtime: that one links its own and adds rules."""

    graphs = True

    def __init__(self, device: int) -> None:
        try:
            from cuda import bindings  # noqa: PLC0415 - only a box with a GPU has it
            from cuda.bindings import driver  # noqa: PLC0415
        except ImportError as exc:
            raise PackageError(
                f"gpu.adapter: cuda-bindings cannot be loaded ({exc}); pip install 'edgeqc[gpu]'"
            ) from exc
        self.adapter = f"cuda-bindings {bindings.__version__}"
        self._cu: Any = driver
        self._success = driver.CUresult.CUDA_SUCCESS
        self._pending = driver.CUresult.CUDA_ERROR_NOT_READY
        try:
            started = driver.cuInit(0)
        except RuntimeError as exc:  # where it looks for libcuda.so.1
            raise EngineLostError(f"cuInit: {exc}") from exc
        self._check("cuInit", started)
        self._device = self._check("cuDeviceGet", driver.cuDeviceGet(device))
        self.device = self._describe()
        self._context = self._check("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(self._device))
        self.attach()

    def attach(self) -> None:
        """Make the primary context current here."""
        self._check("cuCtxSetCurrent", self._cu.cuCtxSetCurrent(self._context))

    def host_alloc(self, size: int) -> int:
        """Page-locked, portable, mapped."""
        flags = self._cu.CU_MEMHOSTALLOC_PORTABLE | self._cu.CU_MEMHOSTALLOC_DEVICEMAP
        return int(self._check("cuMemHostAlloc", self._cu.cuMemHostAlloc(size, flags)))

    def host_free(self, address: int) -> None:
        """Free it."""
        self._check("cuMemFreeHost", self._cu.cuMemFreeHost(address))

    def host_register(self, address: int, size: int) -> None:
        """Page-locked, portable, mapped from here on."""
        flags = self._cu.CU_MEMHOSTREGISTER_PORTABLE | self._cu.CU_MEMHOSTREGISTER_DEVICEMAP
        self._check("cuMemHostRegister", self._cu.cuMemHostRegister(address, size, flags))

    def host_unregister(self, address: int) -> None:
        """Ordinary memory again."""
        self._check("cuMemHostUnregister", self._cu.cuMemHostUnregister(address))

    def mapped(self, address: int) -> int:
        """The device's address."""
        return int(self._check("cuMemHostGetDevicePointer", self._cu.cuMemHostGetDevicePointer(address, 0)))

    def device_alloc(self, size: int) -> int:
        """Allocate on the device."""
        return int(self._check("cuMemAlloc", self._cu.cuMemAlloc(size)))

    def device_free(self, address: int) -> None:
        """Free it."""
        self._check("cuMemFree", self._cu.cuMemFree(address))

    def zero(self, address: int, size: int, stream: int) -> None:
        """Set to zero in stream order."""
        self._check("cuMemsetD8Async", self._cu.cuMemsetD8Async(address, 0, size, stream))

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """To the device in stream order."""
        self._check("cuMemcpyHtoDAsync", self._cu.cuMemcpyHtoDAsync(device, host, size, stream))

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """From the device in stream order."""
        self._check("cuMemcpyDtoHAsync", self._cu.cuMemcpyDtoHAsync(host, device, size, stream))

    def stream(self) -> int:
        """Make a stream."""
        flag = self._cu.CUstream_flags.CU_STREAM_NON_BLOCKING
        return int(self._check("cuStreamCreate", self._cu.cuStreamCreate(flag)))

    def stream_free(self, stream: int) -> None:
        """End it."""
        self._check("cuStreamDestroy", self._cu.cuStreamDestroy(stream))

    def synchronise(self, stream: int) -> None:
        """Wait for the stream."""
        self._check("cuStreamSynchronize", self._cu.cuStreamSynchronize(stream))

    def event(self) -> int:
        """Make an event."""
        flag = self._cu.CUevent_flags.CU_EVENT_DISABLE_TIMING
        return int(self._check("cuEventCreate", self._cu.cuEventCreate(flag)))

    def event_free(self, event: int) -> None:
        """End it."""
        self._check("cuEventDestroy", self._cu.cuEventDestroy(event))

    def record(self, event: int, stream: int) -> None:
        """Put the event into the stream."""
        self._check("cuEventRecord", self._cu.cuEventRecord(event, stream))

    def done(self, event: int) -> bool:
        """Has the stream come past it?"""
        result = self._cu.cuEventQuery(event)
        if result[0] == self._pending:
            return False
        self._check("cuEventQuery", result)
        return True

    def begin_capture(self, stream: int) -> None:
        """Capture on this stream only: in the default mode any other thread's call would spoil it, and be spoilt."""
        mode = self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._check("cuStreamBeginCapture", self._cu.cuStreamBeginCapture(stream, mode))

    def end_capture(self, stream: int) -> int:
        """Make what was captured launchable."""
        graph = self._check("cuStreamEndCapture", self._cu.cuStreamEndCapture(stream))
        try:
            return int(self._check("cuGraphInstantiate", self._cu.cuGraphInstantiate(graph, 0)))
        finally:
            self._check("cuGraphDestroy", self._cu.cuGraphDestroy(graph))

    def launch(self, graph: int, stream: int) -> None:
        """Put a graph into the stream."""
        self._check("cuGraphLaunch", self._cu.cuGraphLaunch(graph, stream))

    def graph_free(self, graph: int) -> None:
        """Free it."""
        self._check("cuGraphExecDestroy", self._cu.cuGraphExecDestroy(graph))

    def close(self) -> None:
        """Let go of the primary context."""
        with contextlib.suppress(EngineError):  # a lost device has no context left to release
            self._check("cuCtxSetCurrent", self._cu.cuCtxSetCurrent(0))
        with contextlib.suppress(EngineError):
            self._check("cuDevicePrimaryCtxRelease", self._cu.cuDevicePrimaryCtxRelease(self._device))

    def _describe(self) -> Device:
        attribute = self._cu.CUdevice_attribute
        prefix = "CU_DEVICE_ATTRIBUTE_"

        def ask(name: str) -> int:
            found = self._cu.cuDeviceGetAttribute(getattr(attribute, prefix + name), self._device)
            return int(self._check("cuDeviceGetAttribute", found))

        version = int(self._check("cuDriverGetVersion", self._cu.cuDriverGetVersion()))
        name = self._check("cuDeviceGetName", self._cu.cuDeviceGetName(_NAME_BYTES, self._device))
        return Device(
            name=bytes(name).split(b"\0")[0].decode(errors="replace"),
            sm=f"{ask('COMPUTE_CAPABILITY_MAJOR')}.{ask('COMPUTE_CAPABILITY_MINOR')}",
            driver=f"{version // 1000}.{version % 1000 // 10}",
            memory_bytes=int(self._check("cuDeviceTotalMem", self._cu.cuDeviceTotalMem(self._device))),
            integrated=bool(ask("INTEGRATED")),
            maps_host_memory=bool(ask("CAN_MAP_HOST_MEMORY")),
            registers_host_memory=bool(ask("HOST_REGISTER_SUPPORTED")),
        )

    def _check(self, call: str, result: Any) -> Any:
        """The value of a result tuple `(code, value)`, or the error it stands for."""
        if result[0] != self._success:
            check(call, int(result[0]), getattr(result[0], "name", "unknown error"))
        return result[1] if len(result) > 1 else None


_NAME_BYTES: Final = 256
