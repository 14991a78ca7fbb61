"""`edgeqc records`: the archive's parts, to look at or to take away."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeqc.cli.console import show, talk

if TYPE_CHECKING:
    from collections.abc import Callable

_COLUMNS: Final = ("ts", "station", "part_id", "verdict", "cause", "score", "latency_ms", "image")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO: Final = re.compile(r"(\d{1,6})([smhdw])")
_MOST_NS: Final = 2**63 - 1
"""What a column of the archive holds; no record is from before 1677 or from after 2262."""

When = Annotated[str | None, typer.Option(help="2026-11-22T08:00 (local time unless it says), or 90m, 8h, 7d ago.")]


def records(
    file: Annotated[Path | None, typer.Argument(help="The line's configuration, for its state directory.")] = None,
    *,
    state: Annotated[Path | None, typer.Option("--state", help="The state directory itself.")] = None,
    since: When = None,
    until: When = None,
    station: Annotated[str | None, typer.Option(help="Only of this station.")] = None,
    verdict: Annotated[str | None, typer.Option(help="pass or reject.")] = None,
    cause: Annotated[str | None, typer.Option(help="ok, defect, late, no_frame, ...")] = None,
    part: Annotated[str | None, typer.Option(help="Only this part id.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many, newest first; -1: all.")] = 100,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with every column.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, edgeqc.record/1.")] = False,
    images: Annotated[Path | None, typer.Option(help="Copy the images and defect maps into this folder.")] = None,
) -> None:
    """List parts, newest first, or export them. The daemon may be running."""
    from edgeqc.cli.state import state_of  # noqa: PLC0415 - heavy
    from edgeqc.office import query, tables  # noqa: PLC0415 - heavy
    from edgeqc.records import Cause, Verdict  # noqa: PLC0415 - brings numpy

    _known("--verdict", verdict, Verdict)
    _known("--cause", cause, Cause)
    state_dir = state_of(file, state)
    if not (state_dir / tables.FILE_NAME).exists():
        talk(f"{state_dir}: no archive yet; `edgeqc run` makes one.")
        return
    rows = query.query(
        state_dir,
        since_ns=moment_ns(since),
        until_ns=moment_ns(until),
        station=station,
        verdict=verdict,
        cause=cause,
        part_id=part,
        limit=limit,
    )
    if images is not None:
        found = list(rows)
        copied = query.export_images(state_dir, _with_progress(iter(found)), images)
        talk(f"{copied} images copied to {images}.")
        _tell_limit(len(found), limit)
    elif as_csv:
        _tell_limit(query.export_csv(rows, sys.stdout), limit)
    elif as_json:
        _tell_limit(query.export_json(rows, sys.stdout), limit)
    else:
        _table(list(rows), limit)


def _tell_limit(count: int, limit: int) -> None:
    if count == limit:
        talk(f"The newest {limit}; --limit -1 shows all.")


def _known(option: str, word: str | None, kind: type[StrEnum]) -> None:
    if word is not None and word not in list(kind):
        raise typer.BadParameter(f"{word} is none of {', '.join(kind)}", param_hint=option)


def _table(rows: list[dict[str, Any]], limit: int) -> None:
    if not rows:
        talk("No part matches.")
        return
    show(_COLUMNS, [[_cell(row[name]) for name in _COLUMNS] for row in rows])
    _tell_limit(len(rows), limit)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def moment_ns(text: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> int | None:
    """UTC ns of a moment as people write it; what lies outside 1677 to 2262 is the end of that time."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            moment = now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{text}: write 2026-11-22T08:00, or 90m, 8h, 7d") from error
    whole = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return max(-_MOST_NS, min((whole // timedelta(microseconds=1)) * 1000, _MOST_NS))


def _with_progress(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same rows; on a terminal with a bar."""
    if not sys.stderr.isatty():
        return rows
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import track  # noqa: PLC0415 - only on a terminal

    return iter(track(list(rows), description="copying", console=Console(stderr=True)))
