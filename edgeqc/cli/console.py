"""The two streams: data on stdout, talk on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "pass": "green", "reject": "bold red"}
"""Colour is never alone: the word it colours says the same."""


def talk(text: str, *, style: str = "") -> None:
    """Say one line to the person; colour only on a terminal and without NO_COLOR."""
    Console(stderr=True, highlight=False).print(Text(text, style=style), soft_wrap=True)


def tell(text: str) -> None:
    """One line of data."""
    sys.stdout.write(f"{text}\n")


def command() -> str:
    """How this very command can be called again from here: `edgeqc`, or where it lies if the shell would not find that."""
    return "edgeqc" if shutil.which("edgeqc") else os.path.relpath(sys.argv[0])


def emit(schema: str, fields: Mapping[str, Any]) -> None:
    """One JSON object on one line, with its `schema`; what JSON has no word for (NaN) becomes null."""
    sys.stdout.write(json.dumps(_sound({"schema": schema, **fields}), default=str, allow_nan=False) + "\n")


def show(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """A table on stdout: lines and colour on a terminal, plain columns in a pipe."""
    console = Console(highlight=False)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    if not console.is_terminal:
        console.width = 2000  # a pipe has no edge; 80 columns would fold what grep looks for
    console.print(table)


def _sound(value: Any) -> Any:
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN is not itself
            return None
        case Mapping():
            return {str(key): _sound(item) for key, item in value.items()}
        case list() | tuple():
            return [_sound(item) for item in value]
        case bytes():
            return value.hex()
        case _:
            return value
