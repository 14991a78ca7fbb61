"""The seams of the daemon. A docstring here is the contract; adapters and simulators both keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgeqc.records import Frame, PlcResult, PlcTrigger, TagBatch, TagRemark


class Camera(Protocol):
    """One connection to one camera, used once: after it is lost, close it and open another.

    `open_camera` (edgeqc.cameras) makes it, streaming, with slots of the station's own memory.
    `next_frame` and `release` are called by one thread, `trigger` by one, which may be another; `close` by any one thread
    when all of these have returned, and none of them after it.
    """

    zero_copy: bool
    """True while every frame handed out was in the slot that the camera's library wrote (pointer identity)."""

    def trigger(self) -> None:
        """Send the software trigger. Bounded to 100 ms. Raises PeerError."""

    def next_frame(self, until_ns: int) -> Frame | None:
        """Block, with the GIL released, for the next frame in order, good or bad; None at `until_ns`.

        Raises PeerError once the connection is known to be lost (control lost, end of file).
        """

    def release(self, slot: int) -> None:
        """Hand a slot back to the camera. Any order."""

    def counters(self) -> dict[str, int]:
        """What the camera's library counted since open, e.g. underruns and missing packets."""

    def close(self) -> None:
        """Stop and free. May block 8 s when the peer is dead: never on the line thread. Never raises."""


class EngineSlot(Protocol):
    """One set of input and output buffers, owned by the engine, lent to the caller between acquire and release.

    A slot of an engine with state (`EngineIo.state`) remembers from one run to the next: what a run wrote as its new
    state is what the next run reads, without leaving the engine's memory. It is lent out with all state zero.
    """

    def input(self, name: str) -> NDArray[np.generic]:
        """The very memory that the engine reads: write it before submit."""

    def point(self, name: str, array: NDArray[np.generic]) -> None:
        """Have the runs until release read this input from `array`, in place, not from the slot's own buffer.

        `array` lies in memory that the engine adopted, whole and contiguous, of the input's dtype and shape, and stays
        as it is until `wait` has returned. EngineError where not.
        """

    def output(self, name: str) -> NDArray[np.generic]:
        """The very memory that the engine writes: valid from wait to release."""

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of the state, by name; empty for an engine without. Between runs only: not from submit to wait."""

    def restore(self, state: Mapping[str, NDArray[np.generic]] | None) -> None:
        """Go on from such a copy, None: from zero. Between runs only. EngineError where name, dtype or shape differs."""

    def release(self) -> None:
        """Give the buffers back. Twice is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of an engine; fixed shape."""

    name: str
    dtype: str
    """numpy's name: float32, uint8, ..."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIo:
    """Everything an engine reads and writes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...] = ()
    """What each slot carries from run to run, under the names of the model's inputs; not among inputs and outputs."""


class Engine(Protocol):
    """A model ready to run: one API for every backend. Not thread-safe: one thread at a time."""

    backend: str
    """The name that log, metrics and MQTT say, e.g. `onnxruntime 1.31 CPU, 1 thread`."""
    io: EngineIo

    def acquire(self) -> EngineSlot:
        """Lend a free slot; EngineError when all are out."""

    def submit(self, slot: EngineSlot) -> None:
        """Start the work on the slot. Never blocks for the length of an inference. EngineError."""

    def wait(self, slot: EngineSlot, until_ns: int) -> None:
        """Return when the outputs are valid. EngineError when it failed.

        A backend that computes on the caller's thread does it here and may overrun `until_ns`; the station's
        guard answers for the deadline in any case.
        """

    def adopt(self, memory: NDArray[np.uint8]) -> bool:
        """Make ready for inputs that lie in memory which is not the engine's, e.g. all of a camera's frame slots.

        It must outlive the engine. On a GPU this page-locks it; False where that cannot be done, and frames are copied.
        """

    def close(self) -> None:
        """Free everything; the slots' views are dead after this."""


class PlcLink(Protocol):
    """One connection to a PLC, used once. Thread-safe: each call holds the link for at most its own bound."""

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        """Read counter and part id in one request. PeerTimeoutError at `until_ns`, PeerError if refused or garbled."""

    def write_result(self, result: PlcResult, until_ns: int) -> None:
        """Write the whole result block in one request, heartbeat included; return when the PLC acknowledged it.

        After PeerTimeoutError the write may still be executed later: sequence and part id are in the same write so
        that the PLC can tell.
        """

    def close(self) -> None:
        """Never raises, blocks at most 1 s."""


class TagSource(Protocol):
    """One tag server. Runs until cancelled, reconnects by itself, tells only what it knows."""

    async def run(self) -> None:
        """Feed samples to the sink given at construction until cancelled."""


class TagSink(Protocol):
    """Where samples go. All methods are called on the loop on which the sources run; all but `room` return at once."""

    async def room(self) -> None:
        """Return when more samples can be taken: called before asking the peer for more, so that the rest waits there."""

    def take(self, batch: TagBatch) -> None:
        """Take samples; the arrays are the sink's from now on. PeerError: connect anew, so that all is told again."""

    def alive(self, source: str, at_ns: int) -> None:
        """The source gave a sign of life at this monotonic time, with values or without."""

    def lost(self, source: str, reason: str, *, hung: bool) -> None:
        """The source is gone, or (`hung`) there and does not answer: its tags turn BAD at once."""

    def back(self, source: str) -> None:
        """The source answers again; the next sample of each tag is what it holds now."""

    def remark(self, source: str, remark: TagRemark, text: str) -> None:
        """Say what is to be known of the source, until it is said again with another text; empty: no longer."""
