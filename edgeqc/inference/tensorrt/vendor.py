"""The vendor's library: found or told why not, and what it says of its own accord turned into errors of ours."""

from __future__ import annotations

import importlib
from typing import Any, Final

from edgeqc.errors import PackageError


def load() -> Any:
    """The module `tensorrt`. PackageError with the reason and what to do where it cannot be loaded."""
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, RuntimeError, OSError) as exc:  # a missing libnvinfer or libnvdla is an ImportError
        raise PackageError(
            f"backend: tensorrt cannot be loaded ({_first_line(str(exc))}); on a Jetson: apt-get install "
            "python3-libnvinfer and a virtual environment with --system-site-packages; on a PC: pip install tensorrt; "
            "or take another backend"
        ) from exc


def log_of(trt: Any) -> Any:
    """A logger to give to the library, with `.faults`: its errors since the last `take_faults`. Any thread."""

    class _Log(trt.ILogger):  # type: ignore[misc] # the base comes with the module
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.faults: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}:
                self.faults = [*self.faults[-_FAULTS_MOST:], msg]

    return _Log()


def recorder_of(trt: Any) -> Any:
    """An error recorder for engine and contexts, with `.faults` likewise: what goes wrong between submit and wait."""

    class _Recorder(trt.IErrorRecorder):  # type: ignore[misc] # the base comes with the module
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.faults: list[str] = []
            self._codes: list[Any] = []

        def report_error(self, code: Any, description: str) -> bool:
            self.faults.append(description)
            self._codes.append(code)
            return len(self.faults) > _FAULTS_MOST

        def num_errors(self) -> int:
            return len(self.faults)

        def get_error_code(self, index: int) -> Any:
            return self._codes[index]

        def get_error_desc(self, index: int) -> str:
            return self.faults[index]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.faults.clear()
            self._codes.clear()

    return _Recorder()


def take_faults(*tellers: Any) -> str:
    """What the library complained of, in one line, and forget it. Empty where it did not."""
    told: list[str] = []
    for teller in tellers:
        told += teller.faults
        teller.faults = []
    return "; ".join(dict.fromkeys(_first_line(text) for text in told))[:_FAULT_CHARACTERS]


_FAULTS_MOST: Final = 8
_FAULT_CHARACTERS: Final = 500


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
