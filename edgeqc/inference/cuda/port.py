"""What an engine asks of the CUDA driver, what the driver says of its device, and what its error codes mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from edgeqc.errors import EngineError, EngineLostError


class MemoryMode(StrEnum):
    """How a tensor gets from the CPU to the device."""

    MAPPED = "mapped"
    """One memory, seen from both sides: the device shares it with the CPU (Jetson)."""
    COPIED = "copied"
    """Page-locked memory of the CPU and memory of the device, copied asynchronously (a PC's card)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, as its driver describes it."""

    name: str
    sm: str
    """Compute capability, e.g. `8.7`."""
    driver: str
    """CUDA version that the driver implements, e.g. `12.6`."""
    memory_bytes: int
    integrated: bool
    """It shares the CPU's memory."""
    maps_host_memory: bool
    registers_host_memory: bool
    """It can page-lock memory that something else allocated."""

    @property
    def mode(self) -> MemoryMode:
        """By what the device says it can do, never by its name."""
        return MemoryMode.MAPPED if self.integrated and self.maps_host_memory else MemoryMode.COPIED


class Cuda(Protocol):
    """One device's primary context. Addresses, streams, events and graphs are plain integers, owned by the caller.

    Any thread on which `attach` was called; one call at a time for one stream. Every call raises EngineError with
    the driver's own name of the error, EngineLostError where no later call in this process can work.
    """

    adapter: str
    """Library and version, for logs."""
    device: Device
    graphs: bool
    """Whether `begin_capture` and what belongs to it exist; where not, they raise EngineError."""

    def attach(self) -> None:
        """Make the primary context current on the calling thread. A thread that never did gets errors."""

    def host_alloc(self, size: int) -> int:
        """Page-locked memory of the CPU, visible from every context and mapped into the device's address space."""

    def host_free(self, address: int) -> None:
        """Give memory of `host_alloc` back."""

    def host_register(self, address: int, size: int) -> None:
        """Page-lock and map memory that something else allocated; it must outlive `host_unregister`."""

    def host_unregister(self, address: int) -> None:
        """Undo `host_register`."""

    def mapped(self, address: int) -> int:
        """Where the device sees page-locked memory; `address` may lie inside it. Often not the CPU's address."""

    def device_alloc(self, size: int) -> int:
        """Memory of the device. The CPU must not touch it."""

    def device_free(self, address: int) -> None:
        """Give memory of `device_alloc` back."""

    def zero(self, address: int, size: int, stream: int) -> None:
        """Have the device's memory set to zero, in the stream's order."""

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Have it copied to the device; page-locked `host` memory must stay as it is until then."""

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Have it copied from the device; `host` is valid once an event behind it is done."""

    def stream(self) -> int:
        """A stream that does not wait for the default one."""

    def stream_free(self, stream: int) -> None:
        """End a stream."""

    def synchronise(self, stream: int) -> None:
        """Wait, without the interpreter's lock, until the stream is empty."""

    def event(self) -> int:
        """An event without timing."""

    def event_free(self, event: int) -> None:
        """End an event."""

    def record(self, event: int, stream: int) -> None:
        """The event is done when all that is in the stream now is."""

    def done(self, event: int) -> bool:
        """Whether it is. True for one never recorded."""

    def begin_capture(self, stream: int) -> None:
        """Record what is put into the stream instead of doing it. Only this thread's calls are watched for misuse."""

    def end_capture(self, stream: int) -> int:
        """The graph of what was recorded, ready to launch."""

    def launch(self, graph: int, stream: int) -> None:
        """Put a graph into the stream."""

    def graph_free(self, graph: int) -> None:
        """Free a graph."""

    def close(self) -> None:
        """Release the primary context; none is current on the calling thread after that. Never raises."""


def check(call: str, code: int, name: str) -> None:
    """Raise what a driver's return code other than success means."""
    if code:
        kind = EngineLostError if is_lost(code) else EngineError
        raise kind(f"{call}: {name} ({code}){_HINTS.get(code, '')}")


def is_lost(code: int) -> bool:
    """Whether no call can work any more in a process that got this CUresult."""
    return code in _LOST


_LOST: Final = frozenset(
    {4, 35, 46, 100, 214, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 803, 804, 810, 911, 999}
)
"""After these "the process must be terminated and relaunched" (cuda.h 13, the comments on CUresult), or the driver or
device itself is gone or not there (4, 35, 46, 100, 214, 709, 803, 804, 999): a fresh process may find it."""
_HINTS: Final = {
    2: "; the device's memory is full: fewer slots, a smaller model, or end what else uses it",
    35: "; the driver is older than this library: update the driver, or install cuda-bindings of its version",
    100: "; no GPU is visible: is the driver loaded, and may this user open /dev/nvidia* (Jetson: group video)?",
    101: "; there are fewer GPUs than gpu.device says",
    803: "; driver and user libraries are of different versions: reboot after a driver update",
}
"""By CUresult."""
