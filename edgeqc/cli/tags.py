"""`edgeqc tags`: the machine's values now and before: to look at, to record, to take away."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgeqc.cli.console import emit, show, talk
from edgeqc.cli.records import When, moment_ns
from edgeqc.errors import EdgeqcError

if TYPE_CHECKING:
    from edgeqc.history import Chunk, History
    from edgeqc.records import TagValue
    from edgeqc.watch.recording import Recording

_File = Annotated[Path, typer.Argument(help="The line's configuration.")]
_Only = Annotated[str | None, typer.Option("--tags", help="Only these, with commas between; all if left out.")]
_COLUMNS: Final = ("tag", "value", "unit", "quality", "age", "source")


def application() -> typer.Typer:
    """The commands under `tags`."""
    app = typer.Typer(help="The machine's values: now, recorded, exported.", no_args_is_help=True)
    app.callback()(lambda: None)
    app.command("list")(_list)
    app.command("record")(_record)
    app.command("export")(_export)
    app.command("accept")(_accept)
    return app


def _list(
    file: _File,
    tags: _Only = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, edgeqc.tag/1.")] = False,
) -> None:
    """Show each tag as the running daemon knows it: value, quality, how long ago it came."""
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.shm.tagtable import FILE_NAME, TagTable  # noqa: PLC0415 - heavy

    settings = loading.load(file)
    _, run_dir = loading.paths(settings)
    try:
        table = TagTable.attach(run_dir / FILE_NAME)
    except FileNotFoundError:
        raise EdgeqcError(
            f"{run_dir}: no daemon runs with {file}, or it has no tags; start it: edgeqc run {file}"
        ) from None
    units = {tag.name: tag.unit for source in settings.tags for tag in source.tags}
    wanted = _names(tags) or table.names
    now_ns = time.monotonic_ns()
    try:
        rows = [
            (table.read(table.index(name), now_ns), table.sources[table.source_of(table.index(name))])
            for name in wanted
        ]
    except KeyError as exc:
        raise typer.BadParameter(f"{exc.args[0]} is no tag of this configuration", param_hint="--tags") from None
    finally:
        table.close()
    if as_json:
        for value, source in rows:
            emit("edgeqc.tag/1", {**_facts(value, now_ns), "unit": units.get(value.name, ""), "source": source})
    else:
        show(_COLUMNS, [_cells(value, units.get(value.name, ""), source, now_ns) for value, source in rows])


def _record(
    file: _File,
    out: Annotated[Path, typer.Option("--out", help="Folder for the recording; made if missing.")],
    seconds: Annotated[
        float | None, typer.Option("--for", help="Seconds to record; until Ctrl-C if left out.", min=0.1)
    ] = None,
) -> None:
    """Record the tags of a configuration without the daemon: connect, write, show how it goes.

    With the daemon running this is not needed: it records by itself (`history` in the configuration).
    """
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.watch.recording import Recording  # noqa: PLC0415 - heavy

    settings = loading.resolved(loading.load(file))
    if not settings.tags:
        raise EdgeqcError(f"{file}: has no tags to record")
    with Recording(settings, out) as recording:
        _follow(recording, seconds)
    history = recording.history
    if history.trouble:
        raise EdgeqcError(f"{out}: {history.trouble}; {history.lost} samples are missing")
    talk(f"{history.written} samples, {history.written_bytes / 1e6:.1f} MB in {out}.")
    talk(f"To take it away: edgeqc tags export --history {out} --out tags.csv --grid 1000")


def _follow(recording: Recording, seconds: float | None) -> None:
    """Show once a second what came, until the time is over or someone presses Ctrl-C."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    down: dict[str, str] = {}
    before = 0
    try:
        while (left := until - time.monotonic()) > 0:
            recording.work(min(1.0, left))
            for name, reason in recording.down().items():
                if down.get(name) != reason:
                    talk(f"{name}: {reason}", style="yellow")
            down = recording.down()
            if sys.stderr.isatty():
                bad = f", {recording.bad} tags bad" if recording.bad else ""
                sys.stderr.write(f"\r\033[K{recording.updates} samples, {recording.updates - before}/s{bad}")
                before = recording.updates
    except KeyboardInterrupt:
        talk("")


def _export(
    file: Annotated[Path | None, typer.Argument(help="The line's configuration, for its state directory.")] = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="FILE.csv or FILE.parquet; CSV to stdout if left out.")
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", help="The state directory itself.")] = None,
    history: Annotated[Path | None, typer.Option("--history", help="A folder that `tags record` wrote.")] = None,
    since: When = None,
    until: When = None,
    tags: _Only = None,
    grid: Annotated[
        float | None,
        typer.Option(help="A line each so many ms with a column per tag, as models see it; else every sample.", min=1),
    ] = None,
) -> None:
    """Write the recorded tags as CSV or Parquet. The daemon may be running.

    With --grid an empty cell says that nothing was known of the tag at that moment: its server was away, or it was bad.
    """
    from edgeqc.cli.state import state_of  # noqa: PLC0415 - heavy
    from edgeqc.history import FOLDER, History  # noqa: PLC0415 - heavy

    folder = history or state_of(file, state) / FOLDER
    try:
        found = History(folder, _names(tags))
    except KeyError as exc:
        raise typer.BadParameter(f"{exc.args[0]} was never recorded in {folder}", param_hint="--tags") from None
    if not found.tags:
        talk(f"{folder}: nothing is recorded here yet.")
        return
    since_ns, until_ns = moment_ns(since), moment_ns(until)
    count = _write(found, out, since_ns, until_ns, grid)
    if not count:
        talk("Nothing was recorded in that time.")
    elif out is not None:
        talk(f"{count} {'lines' if grid else 'samples'} of {len(found.tags)} tags in {out}.")
    if found.damaged:
        talk(f"{found.damaged} damaged pieces were left out.", style="yellow")


def _write(found: History, out: Path | None, since_ns: int | None, until_ns: int | None, grid: float | None) -> int:
    from edgeqc.history import export  # noqa: PLC0415 - heavy
    from edgeqc.records import NS_PER_MS  # noqa: PLC0415 - brings numpy

    rows = found.rows(int(grid * NS_PER_MS), since_ns, until_ns) if grid else None
    chunks = _watched(found.chunks(since_ns, until_ns))
    if out is None:
        if rows is not None:
            return export.rows_to_csv(rows, found.tags, sys.stdout)
        return export.samples_to_csv(chunks, found.tags, sys.stdout)
    if out.suffix not in {".csv", ".parquet"}:
        raise typer.BadParameter(f"{out.name} ends neither in .csv nor in .parquet", param_hint="--out")
    with export.whole_file(out) as part:
        if out.suffix == ".parquet":
            if rows is not None:
                return export.rows_to_parquet(rows, found.tags, part)
            return export.samples_to_parquet(chunks, found.tags, part)
        with part.open("w", newline="", encoding="utf-8") as text:
            if rows is not None:
                return export.rows_to_csv(rows, found.tags, text)
            return export.samples_to_csv(chunks, found.tags, text)


def _watched(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The same; on a terminal with a count that grows."""
    count, told_s = 0, time.monotonic()
    for chunk in chunks:
        yield chunk
        count += len(chunk.samples.places)
        if sys.stderr.isatty() and time.monotonic() - told_s > 1:
            told_s = time.monotonic()
            sys.stderr.write(f"\r\033[K{count} samples")
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def _accept(
    file: _File,
    source: Annotated[
        str | None, typer.Option(help="Only this source; all OPC UA sources of the configuration if left out.")
    ] = None,
) -> None:
    """Take the tag servers as they are now for right: their types of values and numbers of namespaces.

    Clears the alarms `tags.<source>.type` and `.namespaces`; the running daemon reads the server anew within a second.
    """
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.settings import OpcuaTagSource  # noqa: PLC0415 - heavy
    from edgeqc.tags.memory import memory_path  # noqa: PLC0415 - heavy

    settings = loading.load(file)
    state_dir, _ = loading.paths(settings)
    names = [each.name for each in settings.tags if isinstance(each, OpcuaTagSource)]
    if source is not None and source not in names:
        raise typer.BadParameter(
            f"{source} is none of the OPC UA sources {', '.join(names) or '(there are none)'}", param_hint="--source"
        )
    for name in names if source is None else [source]:
        path = memory_path(state_dir, name)
        known = path.exists()
        path.unlink(missing_ok=True)
        talk(f"{name}: will be read anew." if known else f"{name}: nothing was remembered.")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _facts(value: TagValue, now_ns: int) -> dict[str, Any]:
    return {
        "name": value.name,
        "value": value.value,
        "quality": value.quality.name.capitalize(),
        "age_ms": round((now_ns - value.received_ns) / 1e6) if value.received_ns else None,
        "source_ts": value.source_ts or None,
    }


def _cells(value: TagValue, unit: str, source: str, now_ns: int) -> list[str]:
    age = f"{(now_ns - value.received_ns) / 1e9:.1f} s" if value.received_ns else "never"
    number = "-" if math.isnan(value.value) else f"{value.value:g}"
    return [value.name, number, unit, value.quality.name.capitalize(), age, source]
