"""`edgeqc audit`: who changed what, and whether that record is as it was written."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from edgeqc.cli.console import emit, show, talk
from edgeqc.cli.exits import Exit
from edgeqc.cli.records import When, moment_ns


def audit(
    file: Annotated[Path | None, typer.Argument(help="The line's configuration, for its state directory.")] = None,
    *,
    state: Annotated[Path | None, typer.Option("--state", help="The state directory itself.")] = None,
    since: When = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only say whether it is as it was written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, edgeqc.audit/1.")] = False,
) -> None:
    """Who changed what: configuration, models, recipes, alarms, counters. The daemon may be running or not.

    Exit code 1 where a line was changed, lost, added or swapped since it was written.
    """
    from edgeqc.cli.state import state_of  # noqa: PLC0415 - heavy
    from edgeqc.office import audit as trail  # noqa: PLC0415 - heavy

    path = state_of(file, state) / trail.FILE_NAME
    try:
        extent = trail.verify(path)
    except trail.DamagedTrailError as exc:
        talk(str(exc), style="red")
        raise typer.Exit(Exit.FAILED) from exc
    if verify:
        if as_json:
            told = {"lines": extent.lines, "seal": extent.seal, "unfinished_bytes": extent.unfinished_bytes}
            emit("edgeqc.audit-verified/1", told)
        else:
            talk(f"{path}: {extent.lines} changes, as they were written; seal {extent.seal[:16] or '-'}")
        return
    since_ns = moment_ns(since) or 0
    chosen = (line for line in islice(trail.read(path), extent.lines) if line.fields["at"] >= since_ns)
    if as_json:
        for line in chosen:
            emit("edgeqc.audit/1", {**line.fields, "seal": line.seal})
        return
    show(
        ("n", "when (UTC)", "who", "what", "told by", "particulars"),
        [
            [
                str(line.number),
                datetime.fromtimestamp(line.fields["at"] / 1e9, UTC).isoformat(sep=" ", timespec="seconds")[:19],
                str(line.fields["who"]),
                str(line.fields["what"]),
                str(line.fields["source"]),
                " ".join(f"{key}={value}" for key, value in line.fields["facts"].items()),
            ]
            for line in chosen
        ],
    )
