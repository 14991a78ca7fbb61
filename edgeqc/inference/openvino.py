"""Engine on OpenVINO's CPU plugin: the fast path on x86 with dense convolutions, in fp32, bf16 or int8."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgeqc.errors import EngineError
from edgeqc.inference.carry import carried, checked_state
from edgeqc.inference.foreign import AdoptedBlocks, checked_input
from edgeqc.inference.manifest import Precision
from edgeqc.inference.onnxfile import OnnxFault, survey
from edgeqc.ports import EngineIo, EngineSlot, TensorSpec


class OpenVinoEngine:
    """An `Engine` that computes in `wait`, on the caller's thread: so the station's core and priority are the engine's.

    Slots are numpy arrays that the infer requests use as their tensors. One stream: a part is one inference.
    """

    def __init__(
        self,
        model: bytes,
        *,
        threads: int = 1,
        slots: int = 2,
        carry: Mapping[str, str] | None = None,
        precision: Precision = Precision.FP32,
    ) -> None:
        """Compile from bytes, make `slots` sets of buffers, and run each once. EngineError if it cannot.

        `carry`: as OnnxRuntimeEngine has it. `precision`: bf16 lets the plugin compute the file in bf16, int8 is a file
        with Q/DQ nodes (the rest of it in fp32).
        """
        ov = _openvino()
        try:
            # The library would look for data in other files beside the working directory.
            names = survey(model).tensors
            core = ov.Core()
            compiled = core.compile_model(
                core.read_model(io.BytesIO(model)),
                "CPU",
                {
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": 1,
                    "INFERENCE_NUM_THREADS": threads,
                    "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32",
                    # It would move the caller, which has the station's core already.
                    "ENABLE_CPU_PINNING": False,
                },
            )
        except OnnxFault as exc:
            raise EngineError(f"openvino cannot load the model: it {exc}") from exc
        except Exception as exc:  # bare RuntimeError and kinds of its own
            raise EngineError(f"openvino cannot load the model: {_told(exc)}") from exc
        if precision is Precision.BF16 and str(compiled.get_property("INFERENCE_PRECISION_HINT")) != _BF16:
            raise EngineError("openvino: this processor has no bf16")
        self.io = carried(
            EngineIo(
                inputs=tuple(_spec(port, names) for port in compiled.inputs),
                outputs=tuple(_spec(port, names) for port in compiled.outputs),
            ),
            carry or {},
        )
        version = ov.__version__.split("-")[0]
        self.backend = f"openvino {version} CPU {precision}, {threads} thread{'s' if threads > 1 else ''}"
        self._compiled: Any = compiled
        self._adopted = AdoptedBlocks()
        self._slots = [_Slot(compiled, self.io, ov, carry or {}, self._adopted) for _ in range(slots)]
        self._free = list(self._slots)
        for slot in self._slots:  # the first run allocates; a part must not pay for it
            slot.run()

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
        """Run the slot. EngineError when it was not submitted, or the runtime failed."""
        own = self._own(slot)
        if not own.submitted:
            raise EngineError(f"{self.backend}: wait without submit")
        own.submitted = False
        own.run()

    def adopt(self, memory: NDArray[np.uint8]) -> bool:
        """Nothing to do but to know it."""
        self._adopted.add(memory)
        return True

    def close(self) -> None:
        """Free the model; the slots' views stay readable but nothing writes them any more."""
        for slot in self._slots:
            slot.drop()
        self._free.clear()
        self._slots.clear()
        self._adopted.forget()
        self._compiled = None

    def _own(self, slot: EngineSlot) -> _Slot:
        if not isinstance(slot, _Slot) or slot not in self._slots:
            raise EngineError(f"{self.backend}: the slot is not of this engine, or the engine is closed")
        if not slot.out:
            raise EngineError(f"{self.backend}: the slot was released")
        return slot


_TELEMETRY: Final = "openvino_telemetry"
_BF16: Final = "<Type: 'bfloat16'>"


def _openvino() -> Any:
    """The library, loaded only where it was chosen: 0.6 s and 60 MB. EngineError where it is not installed.

    Merely imported, it writes an id to the home directory and has a thread report to Google (openvino-telemetry, a
    dependency of its own, seen with 2026.4.1). While it loads, that package is not there: it then does without.
    """
    telemetry = sys.modules.pop(_TELEMETRY, None)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # what makes an import fail
    try:
        import openvino  # noqa: PLC0415 - see above
    except ImportError as exc:
        raise EngineError("openvino is not installed: pip install 'edgeqc[openvino]'") from exc
    finally:
        del sys.modules[_TELEMETRY]
        if telemetry is not None:
            sys.modules[_TELEMETRY] = telemetry
    return openvino


class _Slot:
    """One set of buffers and their infer requests: one, or two that take turns where there is state to carry."""

    def __init__(self, compiled: Any, io_: EngineIo, ov: Any, carry: Mapping[str, str], adopted: AdoptedBlocks) -> None:
        self._spec = io_.state
        self._arrays = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in io_.inputs + io_.outputs}
        # Each run reads one set and writes the other.
        sets = [{tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in io_.state} for _ in range(2)]
        self._state, self._next_state = sets
        self._request = self._made(compiled, ov, sets[0], {carry[name]: array for name, array in sets[1].items()})
        self._next_request = self._request
        if io_.state:
            writes = {carry[name]: array for name, array in sets[0].items()}
            self._next_request = self._made(compiled, ov, sets[1], writes)
        self._ov, self._adopted = ov, adopted
        self._pointed: dict[str, NDArray[np.generic]] = {}
        self._inputs = {tensor.name for tensor in io_.inputs}
        self._free: list[_Slot] = []
        self.out = False
        self.submitted = False

    def _made(
        self, compiled: Any, ov: Any, reads: Mapping[str, NDArray[Any]], writes: Mapping[str, NDArray[Any]]
    ) -> Any:
        """A request whose tensors are our arrays, which must therefore live as long as it does."""
        request = compiled.create_infer_request()
        for name, array in {**self._arrays, **reads, **writes}.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        return request

    def input(self, name: str) -> NDArray[np.generic]:
        """The memory that the request reads."""
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
        """The memory that the request writes."""
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

    def run(self) -> None:
        try:
            self._request.infer(share_outputs=True, decode_strings=False)
        except Exception as exc:  # bare RuntimeError and kinds of its own
            raise EngineError(f"openvino failed: {_told(exc)}") from exc
        if self._spec:  # a run that failed has not moved on
            self._state, self._next_state = self._next_state, self._state
            self._request, self._next_request = self._next_request, self._request

    def _read(self, name: str, array: NDArray[np.generic]) -> None:
        for request in {id(r): r for r in (self._request, self._next_request)}.values():
            request.set_tensor(name, self._ov.Tensor(array, shared_memory=True))

    def drop(self) -> None:
        self._pointed.clear()
        self._request = self._next_request = None


def _spec(port: Any, names: set[str]) -> TensorSpec:
    """Name, shape and type as the model has them; EngineError where it leaves a size open.

    A tensor that a cast was folded into goes by several names: the ONNX file's own is the one that counts.
    """
    name = min(names & port.get_names(), default=port.get_any_name())
    shape = port.get_partial_shape()
    if shape.is_dynamic:
        raise EngineError(f"{name}: shape {shape} is not fixed; export the model with static shapes")
    return TensorSpec(name=name, dtype=np.dtype(port.get_element_type().to_dtype()).name, shape=tuple(shape.to_shape()))


def _told(exc: Exception) -> str:
    """The library puts its own source lines first and what was wrong last."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[-1] if lines else type(exc).__name__)[:255]
