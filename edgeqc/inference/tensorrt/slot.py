"""One slot of a TensorRT engine: its buffers and what runs on them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError, EngineLostError
from edgeqc.inference.carry import checked_state
from edgeqc.inference.cuda.memory import Adopted, Buffer
from edgeqc.inference.cuda.port import Cuda
from edgeqc.inference.foreign import checked_input
from edgeqc.ports import EngineIo, TensorSpec


class Slot:
    """An `EngineSlot`. The engine sees to the thread and to the order of calls."""

    def __init__(self, context: Any, io: EngineIo, carry: Mapping[str, str], cuda: Cuda) -> None:
        """Allocate everything. EngineError where there is no room; nothing is kept then."""
        self.out = self.submitted = False
        self.usual_ns = 0
        """About how long a run takes."""
        self.adopted: list[Adopted] = []
        self._context, self._io, self._carry, self._cuda = context, io, carry, cuda
        self._undo: list[Callable[[], None]] = []
        self._free: list[Slot] = []
        self._graphs: list[int] = []
        self._turn = 0
        """Which of the two sets of state the next run reads."""
        self._pointed: dict[str, NDArray[np.generic]] = {}
        self._started_ns = 0
        try:
            self._stream = self._keep(cuda.stream(), cuda.stream_free)
            self._event = self._keep(cuda.event(), cuda.event_free)
            self._inputs = {tensor.name: self._buffer(tensor) for tensor in io.inputs}
            self._outputs = {tensor.name: self._buffer(tensor) for tensor in io.outputs}
            sets = ({tensor.name: self._device_alloc(tensor) for tensor in io.state} for _ in range(2))
            self._state: list[dict[str, int]] = list(sets)
            self._staging = {tensor.name: self._buffer(tensor) for tensor in io.state}
            self._zero_state()
            cuda.synchronise(self._stream)
        except EngineError:
            self.close()
            raise

    # --- what the caller sees -----------------------------------------------------------------------------------

    def input(self, name: str) -> NDArray[np.generic]:
        """Page-locked memory that the run reads, in place or by a copy of the device's own."""
        if name not in self._inputs:
            raise EngineError(f"no input named {name}; there are {sorted(self._inputs)}")
        return self._pointed.get(name, self._inputs[name].array)

    def output(self, name: str) -> NDArray[np.generic]:
        """Page-locked memory that the run writes, in place or by a copy of the device's own."""
        if name not in self._outputs:
            raise EngineError(f"no output named {name}; there are {sorted(self._outputs)}")
        return self._outputs[name].array

    def point(self, name: str, array: NDArray[np.generic]) -> None:
        """Have the run read this input from adopted memory instead, until release."""
        if name not in self._inputs:
            raise EngineError(f"no input named {name}; there are {sorted(self._inputs)}")
        checked_input(name, self._inputs[name].array, array)
        if not any(adopted.holds(array) for adopted in self.adopted):
            raise EngineError(f"input {name}: the array is not inside memory that the engine adopted")
        self._pointed[name] = array

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of the device's own."""
        self._at_rest()
        for name, buffer in self._staging.items():
            self._cuda.copy_out(buffer.host, self._state[self._turn][name], buffer.size, self._stream)
        if self._staging:
            self._cuda.synchronise(self._stream)
        return {name: buffer.array.copy() for name, buffer in self._staging.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]] | None) -> None:
        """Go on from a copy, or from zero."""
        checked_state(self._io.state, state)
        self._at_rest()
        if state is None:
            self._zero_state()
            return
        for name, buffer in self._staging.items():
            np.copyto(buffer.array, state[name])
            self._cuda.copy_in(self._state[self._turn][name], buffer.host, buffer.size, self._stream)
        if self._staging:
            self._cuda.synchronise(self._stream)  # the staging memory is used again

    def release(self) -> None:
        """Back to the engine, which lends it again only after a run that is still under way has ended."""
        if not self.out:
            raise EngineError("slot released twice")
        self.out = False
        self._free.append(self)

    # --- what the engine does with it ---------------------------------------------------------------------------

    def idle(self) -> bool:
        """No run is under way in its buffers."""
        return not self.submitted or self.done()

    def lent(self, free: list[Slot]) -> None:
        """To a new borrower: nothing of the last one's is left."""
        self._free, self.out = free, True
        self._pointed.clear()
        if self._io.state:
            self._zero_state()

    def start(self) -> None:
        """Enqueue a run and the event behind it. A run that fails to start leaves the state as it was."""
        self._started_ns = time.monotonic_ns()
        try:
            if self._graphs and not self._pointed:
                self._cuda.launch(self._graphs[self._turn], self._stream)
            else:
                self._enqueue()
            self._cuda.record(self._event, self._stream)
        except EngineError as exc:
            try:  # half of a run must not go on in buffers that are lent again
                self._cuda.synchronise(self._stream)
            except EngineLostError as lost:  # that is why
                raise lost from exc
            raise
        self.submitted = True
        if self._io.state:
            self._turn = 1 - self._turn

    def done(self) -> bool:
        """Has the run ended? From then on the outputs are valid and the inputs free."""
        if self.submitted and self._cuda.done(self._event):
            self.submitted = False
            taken_ns = time.monotonic_ns() - self._started_ns
            self.usual_ns = taken_ns if not self.usual_ns else (3 * self.usual_ns + taken_ns) // 4
        return not self.submitted

    def warm_up(self, *, graph: bool) -> None:
        """Run once each way, so that no part pays for it; with `graph`, record both. EngineError where it cannot."""
        turns = 2 if self._io.state else 1
        for _ in range(turns):
            self.start()
            self._cuda.synchronise(self._stream)
            self.done()
        if graph:
            for self._turn in range(turns):
                self._graphs.append(self._keep(self._record(), self._cuda.graph_free))
            self._turn = 0
            for _ in range(turns):
                self.start()
                self._cuda.synchronise(self._stream)
                self.done()
        self._zero_state()
        self._cuda.synchronise(self._stream)

    def close(self) -> bool:
        """Let the stream run dry and free everything, last made first. Never raises.

        False where the device hangs: it may still write there, so that all is left to the end of the process.
        """
        self.out = False
        try:
            until_ns = time.monotonic_ns() + _DRY_NS
            self._cuda.record(self._event, self._stream)  # behind all that is queued, a state's zeroing included
            self.submitted = True
            while not self.idle():
                if time.monotonic_ns() > until_ns:
                    return False
                time.sleep(_DRY_PAUSE_S)
        except EngineError:  # a lost device runs nothing any more
            self.submitted = False
        self._context = None  # it still knows the addresses
        for step in reversed(self._undo):
            with contextlib.suppress(EngineError):
                step()
        self._undo.clear()
        return True

    def _record(self) -> int:
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
        except EngineError as exc:
            with contextlib.suppress(EngineError):
                self._cuda.graph_free(self._cuda.end_capture(self._stream))
            raise EngineError(f"{exc} (while recording a graph; with gpu.graphs: false it runs without)") from exc
        return self._cuda.end_capture(self._stream)

    def _enqueue(self) -> None:
        """Copies in, the run, copies out: all in the stream's order, none of it waited for."""
        context, cuda, stream = self._context, self._cuda, self._stream
        for name, buffer in self._inputs.items():
            address = buffer.device
            pointed = self._pointed.get(name)
            if pointed is not None and not buffer.copied:
                address = cuda.mapped(pointed.ctypes.data)
            elif buffer.copied:
                cuda.copy_in(
                    buffer.device, buffer.host if pointed is None else pointed.ctypes.data, buffer.size, stream
                )
            self._bind(name, address)
        for name, buffer in self._outputs.items():
            self._bind(name, buffer.device)
        for name, address in self._state[self._turn].items():
            self._bind(name, address)
        for name, address in self._state[1 - self._turn].items():
            self._bind(self._carry[name], address)
        if not context.execute_async_v3(stream):
            raise EngineError("TensorRT refused to run the model")
        for buffer in self._outputs.values():
            if buffer.copied:
                cuda.copy_out(buffer.host, buffer.device, buffer.size, stream)

    def _bind(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"TensorRT refused the address of {name}")

    def _at_rest(self) -> None:
        if self.submitted:
            raise EngineError("the slot's state is in use until its run has been waited for")

    def _zero_state(self) -> None:
        for tensor in self._io.state:
            self._cuda.zero(self._state[self._turn][tensor.name], _size(tensor), self._stream)

    def _buffer(self, tensor: TensorSpec) -> Buffer:
        buffer = Buffer(self._cuda, tensor)
        self._undo.append(buffer.free)
        return buffer

    def _device_alloc(self, tensor: TensorSpec) -> int:
        return self._keep(self._cuda.device_alloc(_size(tensor)), self._cuda.device_free)

    def _keep(self, handle: int, free: Callable[[int], None]) -> int:
        self._undo.append(lambda: free(handle))
        return handle


_DRY_NS: Final = 500_000_000
"""Longer than any run that fits a takt, short enough for an orderly stop."""
_DRY_PAUSE_S: Final = 0.001
"""Between looks at a stream that runs dry: nothing waits for a slot that is freed."""


def _size(tensor: TensorSpec) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
