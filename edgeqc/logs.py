"""How the daemon's processes log: structlog, JSON unless on a terminal, to standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import cast

import structlog

Log = structlog.typing.FilteringBoundLogger


class _StandardError:
    """Writes each line to what is standard error at that moment.

    A line that cannot be written (the journal's daemon is gone, the terminal closed) is lost: the part in hand is not.
    """

    def __init__(self, *_names: object) -> None:
        """What a module named its logger by is not told: the process and the event are."""

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = fatal = exception = log = msg


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
        logger_factory=_StandardError,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # it logs every publish, and tracebacks of lost peers
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    return cast("Log", structlog.get_logger().bind(process=process))
