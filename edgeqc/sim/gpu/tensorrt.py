"""A stand-in for the module `tensorrt` that computes with ONNX Runtime what the addresses point to, when the stream does.

Names and signatures are the real library's (10.3 to 11; a contract test compares them), a plan is the ONNX file with a
header. Where it is lenient the real one is not: precision, memory limits and time mean nothing to it.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edgeqc.sim.gpu.driver import PretendedDriver

__version__ = "10.3.0"


class Stage:
    """What this double needs to know that the real one asks the driver for; set once by who loads it."""

    driver: PretendedDriver | None = None
    refuse_execute = False
    """Plant: execute_async_v3 returns False."""
    fail_execute = ""
    """Plant: the run reports this error to the recorder, as a kernel's fault does."""
    wrong_by = 0.0
    """Plant: added to every output, as a plan of the wrong precision would."""
    races: Final[list[str]] = []
    """Inputs in the CPU's memory that changed between submit and run."""


class DataType(enum.Enum):
    """As the real one; bf16 has no numpy type."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class TensorIOMode(enum.Enum):
    """As the real one."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    """As the real one."""

    DEVICE = 0
    HOST = 1


class MemoryPoolType(enum.Enum):
    """As the real one, as far as it is used."""

    WORKSPACE = 0


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """As the real one, as far as it is used."""

    STRONGLY_TYPED = 1


class ErrorCodeTRT(enum.Enum):
    """As the real one, as far as it is used."""

    FAILED_EXECUTION = 5


_NUMPY: Final = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT8: np.int8,
    DataType.INT32: np.int32,
    DataType.BOOL: np.bool_,
    DataType.UINT8: np.uint8,
    DataType.INT64: np.int64,
}
_ONNX: Final = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int8)": DataType.INT8,
    "tensor(int32)": DataType.INT32,
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(int64)": DataType.INT64,
    "tensor(bfloat16)": DataType.BF16,
}
_MAGIC: Final = b"pretended plan\0"


def nptype(trt_type: DataType) -> Any:
    """TypeError where numpy has no such type."""
    if trt_type not in _NUMPY:
        raise TypeError(f"Could not resolve TensorRT datatype {trt_type} to an equivalent numpy datatype.")
    return _NUMPY[trt_type]


class ILogger:
    """To be derived from."""

    class Severity(enum.Enum):
        """As the real one."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: Severity, msg: str) -> None:
        """Told by the library."""


class IErrorRecorder:
    """To be derived from."""

    def __init__(self) -> None:
        self.made = True

    def report_error(self, arg0: ErrorCodeTRT, arg1: str) -> bool:
        """Told by the library."""
        raise NotImplementedError


class IProgressMonitor:
    """To be derived from."""

    def __init__(self) -> None:
        self.made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Told by the library."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Told by the library; False stops it."""
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        """Told by the library."""


def _complain(logger: Any, message: str) -> None:
    logger.log(ILogger.Severity.ERROR, message)


def _made(*derived: Any) -> None:
    """The bindings crash on a derived class that did not call their __init__; here it is an error."""
    for one in derived:
        if not one.made:
            raise AssertionError(f"{type(one).__name__} did not call its base's __init__")


# --- building ---------------------------------------------------------------------------------------------------------


class IHostMemory(bytes):
    """As the real one: a buffer."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self)


class ITensor:
    """One input of a network."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class INetworkDefinition:
    """What the parser fills."""

    def __init__(self) -> None:
        self.onnx = b""
        self.inputs: list[ITensor] = []
        self.num_outputs = 0

    @property
    def num_inputs(self) -> int:
        """How many."""
        return len(self.inputs)

    def get_input(self, index: int) -> ITensor:
        """One of them."""
        return self.inputs[index]


class ParserError:
    """What the parser says."""

    def __init__(self, text: str) -> None:
        self._text = text

    def code(self) -> str:
        """As the real one's."""
        return "ErrorCode.MODEL_DESERIALIZE_FAILED"

    def desc(self) -> str:
        """In words."""
        return self._text

    def node_name(self) -> str:
        """Of the node; none."""
        return ""

    def node_operator(self) -> str:
        """Of the node; none."""
        return ""


class OnnxParser:
    """Takes what ONNX Runtime can load."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        """False where it cannot be read."""
        del path
        try:
            session = _session(model)
        except Exception as exc:  # noqa: BLE001 - bare RuntimeError and kinds of its own
            self._errors.append(ParserError(str(exc)))
            return False
        self._network.onnx = bytes(model)
        self._network.num_outputs = len(session.get_outputs())
        self._network.inputs = [
            ITensor(t.name, tuple(s if isinstance(s, int) else -1 for s in t.shape), _ONNX[t.type])
            for t in session.get_inputs()
        ]
        return True

    @property
    def num_errors(self) -> int:
        """How many."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """One of them."""
        return self._errors[index]


class IOptimizationProfile:
    """The shapes of inputs that the model leaves open."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - the vendor's names
        """One fixed shape is all that it knows."""
        if tuple(min) != tuple(opt) or tuple(opt) != tuple(max):
            raise NotImplementedError
        self.shapes[input] = tuple(min)


_OTHER_DEVICE: Final = b"@"
"""A timing cache that begins so is of another device."""


class ITimingCache:
    """Counts the builds that it has seen."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> IHostMemory:
        """For the next build."""
        return IHostMemory(self.content + b"+")


class IBuilderConfig:
    """What is asked of the builder."""

    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.progress_monitor: IProgressMonitor | None = None
        self.profiles: list[IOptimizationProfile] = []
        self.workspace = 0

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """The workspace's."""
        self.workspace = pool_size if pool is MemoryPoolType.WORKSPACE else self.workspace

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Its index."""
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        """From the last build's, or empty; None where it is damaged."""
        content = bytes(serialized_timing_cache)
        return None if content.strip(b"+" + _OTHER_DEVICE) else ITimingCache(content)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """False for one of another device; the bindings take no None for it."""
        if not isinstance(cache, ITimingCache):
            raise TypeError("set_timing_cache(): incompatible function arguments")
        return ignore_mismatch or not cache.content.startswith(_OTHER_DEVICE)


class Builder:
    """Makes a plan of what the parser took."""

    def __init__(self, logger: ILogger) -> None:
        _made(logger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        """Strongly typed only."""
        if flags != 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            raise AssertionError("the network is not strongly typed")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        """Empty."""
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        """Empty."""
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """None where an input is open, or the monitor stopped it."""
        known = config.profiles[0].shapes if config.profiles else {}
        if any(-1 in tensor.shape and tensor.name not in known for tensor in network.inputs):
            _complain(self._logger, "Network has dynamic inputs, but no optimization profile has been defined.")
            return None
        if config.progress_monitor is not None:
            _made(config.progress_monitor)
            config.progress_monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                if not config.progress_monitor.step_complete("Building engine", step):
                    return None
            config.progress_monitor.phase_finish("Building engine")
        body = repr(known).encode() + b"\0" + network.onnx
        return IHostMemory(_MAGIC + hashlib.sha256(body).digest() + len(body).to_bytes(8, "little") + body)


# --- running ----------------------------------------------------------------------------------------------------------


def _session(model: bytes) -> Any:
    import onnxruntime as ort  # noqa: PLC0415 - heavy

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(bytes(model), options, providers=["CPUExecutionProvider"])


class Runtime:
    """Loads plans."""

    def __init__(self, logger: ILogger) -> None:
        _made(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """None where the header does not fit; like the real one it does not look at the rest."""
        header = len(_MAGIC) + 32
        if not serialized_engine.startswith(_MAGIC):
            _complain(self._logger, "Serialization assertion magicTag == kENGINE_MAGIC_TAG failed.")
            return None
        body = serialized_engine[header + 8 :]
        if int.from_bytes(serialized_engine[header : header + 8], "little") != len(body):
            _complain(self._logger, "Serialization assertion plan.header.size == blobSize failed.")
            return None
        shapes, _, onnx = body.partition(b"\0")
        return ICudaEngine(_session(onnx), _read_shapes(shapes))


def _read_shapes(text: bytes) -> dict[str, tuple[int, ...]]:
    import ast  # noqa: PLC0415 - for plans with a profile only

    shapes: dict[str, tuple[int, ...]] = ast.literal_eval(text.decode())
    return shapes


class ICudaEngine:
    """A loaded plan."""

    def __init__(self, session: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        self.error_recorder: Any = None
        self.session = session
        self.profile = shapes
        self.modes: dict[str, TensorIOMode] = {t.name: TensorIOMode.INPUT for t in session.get_inputs()}
        self.modes |= {t.name: TensorIOMode.OUTPUT for t in session.get_outputs()}
        self._tensors = {t.name: t for t in [*session.get_inputs(), *session.get_outputs()]}
        self._types = {name: _ONNX[tensor.type] for name, tensor in self._tensors.items()}

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs together."""
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        """In the model's order, inputs first."""
        return [*self.modes][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input or output."""
        return self.modes[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        """Its type."""
        return self._types[name]

    def get_tensor_location(self, name: str) -> TensorLocation:
        """Always the device."""
        del name
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """With -1 for what the model leaves open."""
        return tuple(side if isinstance(side, int) else -1 for side in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Least, best and most, which are one."""
        if profile_index:
            raise IndexError(profile_index)
        return [self.profile.get(name, self.get_tensor_shape(name))] * 3

    def create_execution_context(self) -> IExecutionContext:
        """One that can run."""
        return IExecutionContext(self)


_Callback: Final[Callable[..., Any]] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_CALLBACKS: Final[list[Any]] = []
"""Never emptied: a stream may still enter one whose engine is gone, when its device was lost."""


class IExecutionContext:
    """Runs the model on what its addresses point to at that time, in the stream's thread."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.error_recorder: Any = None
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._running = threading.Lock()

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """For inputs that the model leaves open."""
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an input; the outputs' where the model fixes them."""
        return self._shapes.get(name, self._engine.get_tensor_shape(name))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """False where there is no such tensor."""
        self._addresses[name] = int(memory)
        return name in self._engine.modes

    def execute_async_v3(self, stream_handle: int) -> bool:
        """False where an address is missing. The addresses are those of now, as a captured kernel's are."""
        driver = Stage.driver
        if driver is None:
            raise AssertionError("Stage.driver is not set")
        if Stage.refuse_execute or self._engine.modes.keys() - self._addresses.keys():
            return False
        addresses = dict(self._addresses)
        before = {name: self._print(driver, name, addresses[name]) for name in self._inputs()}

        reference = weakref.ref(self)

        def run(_: Any) -> None:
            context = reference()
            if context is None:
                return
            try:
                context._run(driver, addresses, before)  # noqa: SLF001 - its own
            except Exception as exc:  # noqa: BLE001 - it must not unwind into C
                context._report(driver, f"{type(exc).__name__}: {exc}")  # noqa: SLF001 - its own

        callback = _Callback(run)
        _CALLBACKS.append(callback)
        code = driver.launch(int(stream_handle), ctypes.cast(callback, ctypes.c_void_p).value or 0)
        return code == 0

    def _inputs(self) -> list[str]:
        return [name for name, mode in self._engine.modes.items() if mode is TensorIOMode.INPUT]

    def _run(self, driver: PretendedDriver, addresses: dict[str, int], before: dict[str, bytes]) -> None:
        with self._running:
            if Stage.fail_execute:
                self.error_recorder.report_error(ErrorCodeTRT.FAILED_EXECUTION, Stage.fail_execute)
                return
            feeds = {}
            for name in self._inputs():
                feeds[name] = self._array(driver, name, addresses[name], self.get_tensor_shape(name)).copy()
                if before[name] and hashlib.sha256(feeds[name].tobytes()).digest() != before[name]:
                    Stage.races.append(name)
            outputs = [t.name for t in self._engine.session.get_outputs()]
            for name, value in zip(outputs, self._engine.session.run(outputs, feeds), strict=True):
                target = self._array(driver, name, addresses[name], value.shape)
                np.copyto(target, value + np.asarray(Stage.wrong_by, value.dtype))

    def _array(self, driver: PretendedDriver, name: str, address: int, shape: tuple[int, ...]) -> Any:
        dtype = np.dtype(nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * dtype.itemsize
        at = driver.bytes_at(address, size)
        if at is None:
            raise ValueError(f"{name}: an illegal memory access was encountered")
        return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(at)), dtype).reshape(shape)

    def _print(self, driver: PretendedDriver, name: str, address: int) -> bytes:
        """The input's hash at submit, where no copy can still be on its way: for catching writers that came too early.

        Only mapped memory is read in place by the run; a run that is recorded happens some other time.
        """
        if driver.capturing or not driver.is_mapped(address):
            return b""
        return hashlib.sha256(self._array(driver, name, address, self.get_tensor_shape(name)).tobytes()).digest()

    def _report(self, driver: PretendedDriver, text: str) -> None:
        if self.error_recorder is not None:
            self.error_recorder.report_error(ErrorCodeTRT.FAILED_EXECUTION, text)
        driver.fail(700)
