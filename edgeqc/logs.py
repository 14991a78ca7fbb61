"""How the daemon's processes log: structlog, JSON unless on a terminal, to standard error."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TextIO, cast

import structlog

Log = structlog.typing.FilteringBoundLogger

WAITING: Final = 1000
"""Lines that wait for who reads them, at most: some 300 KB."""
_LAST_LINES_S: Final = 1.0
"""So long a process waits at its end for its last lines to be read."""


class _Writer:
    """Writes lines to standard error in a thread of its own: whoever reads there may hang, and a part must not wait for it.

    A line that cannot be written (the journal's daemon is gone, the terminal closed) is lost: the part in hand is not. So is
    one that comes while `WAITING` lines wait; how many were lost is told when there is room again.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[tuple[TextIO, str] | None] = queue.Queue(WAITING)
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._turning = threading.Lock()

    def put(self, line: str) -> None:
        """Have it written, to what is standard error now. Never blocks, never raises."""
        if self._thread is None:
            self._begin()
        try:
            self._lines.put_nowait((sys.stderr, line))
        except queue.Full:
            self._lost += 1

    def close(self, timeout_s: float) -> None:
        """Wait for what was put so far to be written, so long at most; the next line begins anew."""
        with self._turning:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout_s)
            thread.join(timeout_s)

    def _begin(self) -> None:
        with self._turning:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            _write(*line)
            if self._lost and self._lines.qsize() < WAITING // 2:
                lost, self._lost = self._lost, 0
                structlog.wrap_logger(_Lines(partial(_write, line[0]))).warning("log_lines_lost", lines=lost)


def _write(stream: TextIO, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
        stream.write(f"{text}\n")
        stream.flush()


_WRITER: Final = _Writer()
atexit.register(_WRITER.close, _LAST_LINES_S)
close = _WRITER.close


class _Lines:
    """What structlog writes to."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def msg(self, message: str) -> None:
        self._write(message)

    debug = info = warning = error = critical = fatal = exception = log = msg


class _Handler(logging.Handler):
    """The libraries' warnings go the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        _WRITER.put(self.format(record))


def configure(*, process: str, json: bool | None = None) -> Log:
    """Set this process's logging up once and return its logger, which names the process in every line."""
    plain = not sys.stderr.isatty() if json is None else json
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if plain else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.dict_tracebacks if plain else structlog.processors.UnicodeDecoder(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_names: _Lines(_WRITER.put),  # a module's name for its logger is not told
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Handler()])
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # it logs every publish, and tracebacks of lost peers
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    return cast("Log", structlog.get_logger().bind(process=process))
