"""What `edgeqc` and `python -m edgeqc` run: a worker process straight away, or the command line."""

from __future__ import annotations

import importlib
import sys
from typing import Final

WORKERS: Final = frozenset({"station", "watch", "server", "office"})
"""Started by the supervisor only; they must not pay for the command line's libraries (80 ms, 30 MB)."""


def main() -> None:
    """Run what the arguments name and exit with its code."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in WORKERS:
        process = importlib.import_module(f"edgeqc.{arguments[0]}.process")
        sys.exit(process.main(arguments[1:]))
    try:
        from edgeqc.cli import main as command_line  # noqa: PLC0415 - see WORKERS

        sys.exit(command_line(arguments))
    except KeyboardInterrupt:  # while the libraries are loaded; later each command has its own answer to it
        sys.exit(130)


if __name__ == "__main__":
    main()
