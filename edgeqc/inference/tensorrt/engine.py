"""Engine on TensorRT: the plan shared, and per slot an execution context, a stream, an event and page-locked buffers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError, EngineLostError
from edgeqc.inference.carry import carried
from edgeqc.inference.cuda.memory import Adopted
from edgeqc.inference.cuda.port import Cuda
from edgeqc.inference.tensorrt.slot import Slot
from edgeqc.inference.tensorrt.vendor import log_of, recorder_of, take_faults
from edgeqc.ports import EngineIo, EngineSlot, TensorSpec


class TensorRtEngine:
    """An `Engine` that computes on the device. `submit` enqueues and returns; `wait` asks the slot's event.

    The engine owns `cuda` and closes it. Each call makes the context current again (0.3 us on cuda-bindings): another
    engine of the same thread may have been closed meanwhile.
    """

    def __init__(
        self,
        plan: bytes,
        *,
        trt: Any,
        cuda: Cuda,
        slots: int = 2,
        carry: Mapping[str, str] | None = None,
        graphs: bool = True,
    ) -> None:
        """Load the plan, make `slots` sets of buffers, run each once and record it as a graph. EngineError if it cannot.

        `carry` as for every engine: input > output of the run before; here that memory stays on the device.
        """
        self._cuda = cuda
        self._log, self._recorder = log_of(trt), recorder_of(trt)
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._adopted: list[Adopted] = []
        self._closed = False
        self._carry = dict(carry or {})
        recorded = graphs and cuda.graphs
        try:
            # The order of these matters, and so does keeping all: the bindings do not keep what they depend on.
            self._runtime: Any = trt.Runtime(self._log)
            self._engine: Any = self._loaded(plan)
            contexts = [self._context(trt) for _ in range(slots)]
            self.io = carried(_io(trt, self._engine, contexts[0]), self._carry)
            while contexts:
                slot = Slot(contexts.pop(), self.io, self._carry, cuda)
                self._slots.append(slot)
                slot.warm_up(graph=recorded)
                self._complain()
        except EngineError:
            self.close()
            raise
        self._free += self._slots
        self.backend = (
            f"tensorrt {trt.__version__} {cuda.device.name}, {cuda.device.mode} memory, "
            f"{'graph' if recorded else 'no graph'}, {cuda.adapter}"
        )

    def acquire(self) -> EngineSlot:
        """Lend a free slot; EngineError when all are out. A slot that was released in mid-run comes free with its end."""
        self._cuda.attach()
        for slot in self._free:
            if slot.idle():
                self._free.remove(slot)
                slot.lent(self._free)
                return slot
        raise EngineError(f"{self.backend}: all {len(self._slots)} slots are out or still running")

    def submit(self, slot: EngineSlot) -> None:
        """Put the slot's run into its stream: microseconds. EngineError where it was refused or is still running."""
        own = self._own(slot)
        if own.submitted:
            raise EngineError(f"{self.backend}: submit again without wait")
        own.start()

    def wait(self, slot: EngineSlot, until_ns: int) -> None:
        """Return when the outputs are valid. EngineError when the run failed, EngineLostError when the device hangs.

        A run that is late is waited for, so that its score can be kept; `HUNG_NS` after `until_ns`, and after this call, it counts as hung.
        """
        own = self._own(slot)
        if not own.submitted:
            raise EngineError(f"{self.backend}: wait without submit")
        hung_ns = (
            max(until_ns, time.monotonic_ns()) + HUNG_NS
        )  # a frame that waited may be due long since: its run is not
        pause_s = min(max(own.usual_ns / _PAUSES, _PAUSE_LEAST_NS), _PAUSE_MOST_NS) / 1e9
        while not own.done():
            if time.monotonic_ns() > hung_ns:
                raise EngineLostError(f"{self.backend}: no result {HUNG_NS // 1_000_000} ms after it was due")
            time.sleep(pause_s)  # without the interpreter's lock
        self._complain()

    def adopt(self, memory: NDArray[np.uint8]) -> bool:
        """Page-lock foreign memory, so that a slot's input may lie in it. False where device or adapter cannot."""
        if not self._cuda.device.registers_host_memory:
            return False
        self._cuda.attach()
        self._adopted.append(Adopted(self._cuda, memory))
        for slot in self._slots:
            slot.adopted = self._adopted
        return True

    def close(self) -> None:
        """Wait for what runs, free everything in the order that the driver wants. Never raises; twice is harmless.

        Where the device hangs nothing is freed: calls that free would hang, too, and the process is about to end.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(EngineError):
            self._cuda.attach()
        freed = [slot.close() for slot in self._slots]
        if not all(freed):
            return
        for adopted in self._adopted:
            with contextlib.suppress(EngineError):
                adopted.release()
        self._slots.clear()
        self._free.clear()
        self._adopted.clear()
        self._engine = self._runtime = None
        self._cuda.close()

    def _loaded(self, plan: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"TensorRT cannot load the plan: {take_faults(self._log) or 'it does not say why'}")
        engine.error_recorder = self._recorder
        return engine

    def _context(self, trt: Any) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"TensorRT makes no execution context: {take_faults(self._log, self._recorder)}")
        context.error_recorder = self._recorder
        for name in _names(self._engine):
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, _fixed_shape(self._engine, name))
        return context

    def _own(self, slot: EngineSlot) -> Slot:
        if not isinstance(slot, Slot) or slot not in self._slots:
            raise EngineError(f"{self.backend}: the slot is not of this engine, or the engine is closed")
        if not slot.out:
            raise EngineError(f"{self.backend}: the slot was released")
        self._cuda.attach()
        return slot

    def _complain(self) -> None:
        if self._recorder.faults or self._log.faults:
            raise EngineError(f"TensorRT: {take_faults(self._recorder, self._log)}")


HUNG_NS: Final = 1_000_000_000
"""Less than the 2 s after which the supervisor ends a station whose line thread is stuck: we end it in order first."""
_PAUSES: Final = 16
"""Pauses per run: what a wait is longer than the run, at most, is a sixteenth of it."""
_PAUSE_LEAST_NS: Final = 20_000
"""About what a real-time thread needs to sleep and wake."""
_PAUSE_MOST_NS: Final = 200_000


def _names(engine: Any) -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]


def _io(trt: Any, engine: Any, context: Any) -> EngineIo:
    """What the plan reads and writes. EngineError for what a slot cannot hold."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for name in _names(engine):
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(
                f"{name}: is not in the device's memory; export the model without shape tensors as inputs"
            )
        try:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        except TypeError as exc:
            raise EngineError(f"{name}: numpy has no {engine.get_tensor_dtype(name)}; give it another type") from exc
        shape = tuple(context.get_tensor_shape(name))
        if min(shape, default=1) < 1:
            raise EngineError(f"{name}: shape {list(shape)} is not fixed; export the model with static shapes")
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(TensorSpec(name=name, dtype=dtype, shape=shape))
    return EngineIo(inputs=tuple(inputs), outputs=tuple(outputs))


def _fixed_shape(engine: Any, name: str) -> tuple[int, ...]:
    """The model's own, or the only one of the profile that the plan was built with."""
    shape: tuple[int, ...] = tuple(engine.get_tensor_shape(name))
    if -1 not in shape:
        return shape
    least, _, most = (tuple(side) for side in engine.get_tensor_profile_shape(name, 0))
    if least != most:
        raise EngineError(f"{name}: the plan's profile is {list(least)} to {list(most)}, must be one fixed shape")
    return tuple(int(side) for side in least)
