"""`edgeqc doctor`: what is installed, reachable and tuned, and how to mend what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeqc.cli.console import emit, show, talk
from edgeqc.cli.exits import Exit
from edgeqc.errors import SettingsError

if TYPE_CHECKING:
    from edgeqc.cli.findings import Finding
    from edgeqc.settings import Settings


def doctor(
    file: Annotated[Path | None, typer.Argument(help="The line's configuration; without one, only the box.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, edgeqc.doctor/1.")] = False,
) -> None:
    """Look at libraries, buffers, rights, memory, disk, clock and every peer; say how to mend what is not right."""
    from edgeqc.cli.findings import State  # noqa: PLC0415 - heavy

    findings = list(examine(file))
    failed = sum(finding.state is State.FAIL for finding in findings)
    warned = sum(finding.state is State.WARN for finding in findings)
    if as_json:
        rows = [finding.as_dict() for finding in findings]
        emit("edgeqc.doctor/1", {"ok": not failed, "fail": failed, "warn": warned, "rows": rows})
    else:
        show(
            ("what", "state", "found", "should be", "mend"),
            [(row.name, row.state, row.found, row.limit, row.mend) for row in findings],
        )
        talk(f"{len(findings)} looked at: {failed} failed, {warned} to be better.")
    raise typer.Exit(Exit.FAILED if failed or (strict and warned) else Exit.OK)


def examine(file: Path | None) -> Iterator[Finding]:
    """All rows, one after the other as they are found."""
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.cli import box, packages  # noqa: PLC0415 - heavy
    from edgeqc.cli.findings import Finding, State  # noqa: PLC0415 - heavy

    settings: Settings | None = None
    if file is not None:
        try:
            settings = loading.load(file)
            yield Finding(name="configuration", state=State.OK, found=f"{file}, {loading.digest(settings)[:16]}")
        except SettingsError as error:
            shown = "; ".join(error.faults[:3])
            yield Finding(
                name="configuration", state=State.FAIL, found=shown, limit="no fault", mend=f"edgeqc check {file}"
            )
    state_dir, run_dir = loading.paths(settings) if settings else loading.default_paths()
    looks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("software", box.software),
        ("libaravis", lambda: [box.aravis(settings)]),
        ("receive buffer", lambda: [box.receive_buffer(settings)]),
        ("packet size", lambda: box.packets(settings)),
        ("real time", lambda: [box.real_time(settings)]),
        ("locked memory", lambda: [box.locked_memory(settings)]),
        ("cores", lambda: [box.cores(settings)]),
        ("shared memory", lambda: [box.shared_memory(settings, run_dir)]),
        ("disk space", lambda: [box.disk_space(settings, state_dir)]),
        ("disk speed", lambda: [box.disk_speed(state_dir)]),
        ("clock", lambda: [box.clock()]),
        ("engines", lambda: packages.examine(settings)),
    ]
    if settings is not None:
        known = settings
        looks += [("gpu", lambda: box.gpu(known, state_dir)), ("line", lambda: _line(known, state_dir))]
    for name, look in looks:
        try:
            yield from look()
        except OSError as error:  # what one look may not see is no reason to tell nothing of the others
            yield Finding(
                name=name,
                state=State.FAIL,
                found=f"{error.filename}: {error.strerror}" if error.filename else str(error),
                limit="to be seen",
                mend="run doctor as the user the daemon runs as: sudo -u edgeqc edgeqc doctor",
            )


def _line(settings: Settings, state_dir: Path) -> Iterator[Finding]:
    from edgeqc.cli.findings import Finding, State  # noqa: PLC0415 - heavy
    from edgeqc.cli.peers import reach  # noqa: PLC0415 - heavy
    from edgeqc.cli.state import in_use  # noqa: PLC0415 - heavy

    if in_use(state_dir):
        yield Finding(
            name="daemon",
            state=State.OK,
            found=f"running in {state_dir}; it holds the camera and the PLC, so they are not tried",
        )
        return
    yield Finding(name="daemon", state=State.OK, found=f"not running in {state_dir}")
    yield from reach(settings)
