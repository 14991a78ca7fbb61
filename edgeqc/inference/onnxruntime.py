"""Engine on ONNX Runtime's CPU provider: the portable reference that every box can run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError
from edgeqc.inference.carry import carried, checked_state
from edgeqc.inference.foreign import AdoptedBlocks, checked_input
from edgeqc.inference.manifest import Precision
from edgeqc.ports import EngineIo, EngineSlot, TensorSpec


class OnnxRuntimeEngine:
    """An `Engine` that computes in `wait`, on the caller's thread. Slots are numpy arrays bound to the session."""

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 1,
        slots: int = 2,
        carry: Mapping[str, str] | None = None,
        precision: Precision = Precision.FP32,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """Build the session from bytes, bind `slots` sets of buffers, and run each once. EngineError if it cannot.

        `carry` makes state of pairs of tensors: each key is an input that reads what the output named by its value
        was in the slot's last run. `precision` is what the file is in; it only shows in `backend`. `sizes` fixes what
        the model leaves open, by the name of the dimension.
        """
        os.environ[_NO_TELEMETRY] = "1"
        import onnxruntime as ort  # noqa: PLC0415 - 40 MB and 0.3 s that only the station needs; after the line above

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _FATAL
        # A spinning pool burns the cores that the camera and the PLC link need between parts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        # Without VNNI int8 products of uint8 and int8 saturate (0.38 off on the demo part); computed in uint8 they do not.
        options.add_session_config_entry("session.x64quantprecision", "1")
        for name, size in (sizes or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # bare RuntimeError and kinds of its own
            raise EngineError(f"onnxruntime cannot load the model: {_first_line(exc)}") from exc
        self.io = carried(
            EngineIo(
                inputs=tuple(_spec(tensor) for tensor in session.get_inputs()),
                outputs=tuple(_spec(tensor) for tensor in session.get_outputs()),
            ),
            carry or {},
        )
        shown = "" if precision is Precision.FP32 else f" {precision}"
        self.backend = f"onnxruntime {ort.__version__} CPU{shown}, {threads} thread{'s' if threads > 1 else ''}"
        self._session: Any = session
        self._adopted = AdoptedBlocks()
        self._slots = [_Slot(session, self.io, ort, carry or {}, self._adopted) for _ in range(slots)]
        self._free = list(self._slots)
        for slot in self._slots:  # the first run allocates the arena; a part must not pay for it
            slot.run(session)

    def acquire(self) -> EngineSlot:
        """Lend a free slot; EngineError when all are out."""
        if not self._free:
            raise EngineError(f"{self.backend}: all {len(self._slots)} slots are out")
        slot = self._free.pop()
        slot.lent(self._free)
        return slot

    def submit(self, slot: EngineSlot) -> None:
        """Mark the slot as ready to run."""
        self._own(slot).submitted = True

    def wait(self, slot: EngineSlot, until_ns: int) -> None:  # noqa: ARG002 - it computes here and may overrun
        """Run the slot. EngineError when it was not submitted, was cancelled, or the runtime failed."""
        own = self._own(slot)
        if not own.submitted:
            raise EngineError(f"{self.backend}: wait without submit")
        own.submitted = False
        own.run(self._session)

    def cancel(self, slot: EngineSlot) -> None:
        """Make a running `wait` of this slot end soon with EngineError. From any thread; a no-op on an idle slot."""
        if isinstance(slot, _Slot):
            slot.cancel()

    def adopt(self, memory: NDArray[np.uint8]) -> bool:
        """Nothing to do but to know it."""
        self._adopted.add(memory)
        return True

    def close(self) -> None:
        """Free the session; the slots' views stay readable but nothing writes them any more."""
        for slot in self._slots:
            slot.drop()
        self._free.clear()
        self._slots.clear()
        self._adopted.forget()
        self._session = None

    def _own(self, slot: EngineSlot) -> _Slot:
        if not isinstance(slot, _Slot) or slot not in self._slots:
            raise EngineError(f"{self.backend}: the slot is not of this engine, or the engine is closed")
        if not slot.out:
            raise EngineError(f"{self.backend}: the slot was released")
        return slot


_NO_TELEMETRY: Final = "ORT_DISABLE_TELEMETRY"
"""From 1.29 on the official Linux wheels keep a device id and a database in the home directory and send usage to
Microsoft. Only this, set before the library is loaded, stops all of it (its Privacy.md); the API call comes too late."""
_NO_GRAPH: Final = ("gpu_graph_id", "-1")
"""No CUDA graph. Where it is not said, each run's Python wrapper looks for it and catches an exception: 40 us of 44
(1.31.1, `scripts/bench engines`)."""
_FATAL: Final = 4  # ONNX Runtime would print to stderr what it raises anyway


class _Slot:
    """One set of buffers and their bindings: one, or two that take turns where there is state to carry."""

    def __init__(self, session: Any, io: EngineIo, ort: Any, carry: Mapping[str, str], adopted: AdoptedBlocks) -> None:
        self._spec = io.state
        self._arrays = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in io.inputs + io.outputs}
        # Each run reads one set and writes the other.
        sets = [{tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in io.state} for _ in range(2)]
        self._state, self._next_state = sets
        self._binding, self._next_binding = session.io_binding(), session.io_binding()
        for binding, now, then in ((self._binding, *sets), (self._next_binding, *reversed(sets))):
            reads = {tensor.name: self._arrays[tensor.name] for tensor in io.inputs} | now
            writes = {tensor.name: self._arrays[tensor.name] for tensor in io.outputs}
            writes |= {carry[name]: array for name, array in then.items()}
            # The OrtValue aliases the array (contract test), which must therefore live as long as the slot.
            for name, array in reads.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            for name, array in writes.items():
                binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._ort, self._adopted = ort, adopted
        self._pointed: dict[str, NDArray[np.generic]] = {}
        self._inputs = {tensor.name for tensor in io.inputs}
        self._options = ort.RunOptions()
        self._options.log_severity_level = _FATAL
        self._options.add_run_config_entry(*_NO_GRAPH)
        self._running = False
        self._free: list[_Slot] = []
        self.out = False
        self.submitted = False

    def input(self, name: str) -> NDArray[np.generic]:
        """The memory that the session reads."""
        if name not in self._inputs:
            raise EngineError(f"no input named {name}; there are {sorted(self._inputs)}")
        return self._pointed.get(name, self._arrays[name])

    def point(self, name: str, array: NDArray[np.generic]) -> None:
        """Read that array in place, until release."""
        if name not in self._inputs:
            raise EngineError(f"no input named {name}; there are {sorted(self._inputs)}")
        checked_input(name, self._arrays[name], array)
        self._adopted.check(name, array)
        self._read(name, array)
        self._pointed[name] = array

    def output(self, name: str) -> NDArray[np.generic]:
        """The memory that the session writes."""
        if name in self._inputs or name not in self._arrays:
            raise EngineError(f"no output named {name}; there are {sorted(self._arrays.keys() - self._inputs)}")
        return self._arrays[name]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy."""
        return {name: array.copy() for name, array in self._state.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]] | None) -> None:
        """Go on from a copy, or from zero."""
        checked_state(self._spec, state)
        for name, array in self._state.items():
            np.copyto(array, 0 if state is None else state[name])

    def release(self) -> None:
        """Back to the engine."""
        if not self.out:
            raise EngineError("slot released twice")
        self.out = self.submitted = False
        self._free.append(self)

    def lent(self, free: list[_Slot]) -> None:
        self._free = free
        self.out = True
        for name in list(self._pointed):
            self._read(name, self._arrays[name])
            del self._pointed[name]
        if self._spec:
            self.restore(None)

    def run(self, session: Any) -> None:
        self._options.terminate = False
        self._running = True
        try:
            session.run_with_iobinding(self._binding, self._options)
        except Exception as exc:  # bare RuntimeError and kinds of its own
            raise EngineError(f"onnxruntime failed: {_first_line(exc)}") from exc
        finally:
            self._running = False
        if self._spec:  # a run that failed has not moved on
            self._state, self._next_state = self._next_state, self._state
            self._binding, self._next_binding = self._next_binding, self._binding

    def _read(self, name: str, array: NDArray[np.generic]) -> None:
        for binding in {id(b): b for b in (self._binding, self._next_binding)}.values():
            binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))

    def drop(self) -> None:
        self._pointed.clear()
        self._binding = self._next_binding = None

    def cancel(self) -> None:
        if self._running:
            self._options.terminate = True


def _spec(tensor: Any) -> TensorSpec:
    """Shape and type as the model has them; EngineError where it leaves a size open."""
    sizes = tuple(tensor.shape)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise EngineError(f"{tensor.name}: shape {list(sizes)} is not fixed; export the model with static shapes")
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(name=tensor.name, dtype=_DTYPES.get(kind, kind), shape=sizes)


_DTYPES: Final = {"float": "float32", "double": "float64"}


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:255]
