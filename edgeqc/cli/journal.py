"""`edgeqc journal`: what the processes wrote, record by record."""

from __future__ import annotations

import dataclasses
import heapq
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeqc.cli.console import emit, talk, tell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgeqc.journal import Entry, JournalReader

POLL_S: Final = 0.2
"""A follower is a person: five looks a second."""


def journal(
    file: Annotated[Path | None, typer.Argument(help="The line's configuration, for its state directory.")] = None,
    state: Annotated[Path | None, typer.Option("--state", help="The state directory itself.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, edgeqc.journal/1.")] = False,
) -> None:
    """Print the journals of all processes in the order of their time. The daemon may be running."""
    from edgeqc.cli.state import state_of  # noqa: PLC0415 - heavy
    from edgeqc.journal import JournalReader, list_journals  # noqa: PLC0415 - heavy

    state_dir = state_of(file, state)
    readers: dict[Path, JournalReader] = {}
    shown = 0
    try:
        while True:
            for folder in list_journals(state_dir):
                readers.setdefault(folder, JournalReader(folder, None))
            for entry in in_order(readers.values()):
                shown += 1
                if as_json:
                    emit("edgeqc.journal/1", plain(entry))
                else:
                    tell(line(entry))
            if not follow:
                break
            time.sleep(POLL_S)
    finally:
        for reader in readers.values():
            reader.close()
    if not shown:
        talk(f"{state_dir}: no journal yet; `edgeqc run` writes one with its first part.")
    damaged = sum(reader.lost for reader in readers.values())
    if damaged:
        talk(f"{damaged} damaged records were left out.", style="yellow")


def plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it."""
    return {
        "kind": type(entry.body).__name__,
        "at": _utc(entry.wall_ns),
        **{name: getattr(entry, name) for name in ("writer", "sequence", "wall_ns", "mono_ns")},
        "body": dataclasses.asdict(entry.body),
    }


def line(entry: Entry) -> str:
    """An entry as a person reads it: when, who, what, then facts as key=value."""
    facts = " ".join(f"{key}={value}" for key, value in _flat(dataclasses.asdict(entry.body)))
    return f"{_utc(entry.wall_ns)} {entry.writer}#{entry.sequence} {type(entry.body).__name__} {facts}"


def in_order(readers: Iterable[JournalReader]) -> Iterator[Entry]:
    """What is new in all of them by its time, some records of each at a time: journals are larger than a box's memory."""
    return heapq.merge(*map(_new, readers), key=lambda entry: (entry.wall_ns, entry.writer, entry.sequence))


def _new(reader: JournalReader) -> Iterator[Entry]:
    while batch := reader.read():
        yield from batch


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bytes):
            rows.append((prefix + key, value.hex()[:16]))
        else:
            rows.append((prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def _utc(wall_ns: int) -> str:
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
