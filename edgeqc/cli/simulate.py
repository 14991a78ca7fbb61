"""`edgeqc sim`: the line in virtual time, for who changes the core or wants to see a seed again."""

from __future__ import annotations

import time
from typing import Annotated

import typer


def sim(
    seed: Annotated[int, typer.Option(help="the first seed; each seed draws its own line and faults")] = 0,
    triggers: Annotated[int, typer.Option(min=60, help="parts in all")] = 20_000,
    per_seed: Annotated[int, typer.Option(min=60, help="parts of one seed, then the next one begins")] = 500,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="seeds at a time, each on a core of its own")] = 1,
) -> None:
    """Run the decision core, handshake, accounting and gate on a simulated line in virtual time; stop at a violation.

    The same seed gives the same trace hash, always. Exit code 1 where an invariant is violated.
    """
    from rich.console import Console  # noqa: PLC0415 - heavy
    from rich.table import Table  # noqa: PLC0415 - heavy

    from edgeqc.sim.virtual.campaign import runs  # noqa: PLC0415 - only this command needs it

    console = Console()
    began_s, parts, passed, rejected, events, hours = time.monotonic(), 0, 0, 0, 0, 0.0
    faults: dict[str, int] = {}
    trace = ""
    for report in runs(seed, triggers, per_seed=per_seed, jobs=jobs):
        parts += report.triggers
        passed += report.passed
        rejected += report.rejected
        events += report.events
        hours += report.virtual_s / 3600
        trace = report.trace
        for name, count in report.faults.items():
            faults[name] = faults.get(name, 0) + count
        if report.violation is not None:
            console.print(f"[red]seed {report.swarm.seed}: {report.violation}[/]")
            console.print(f"see it again: edgeqc sim --seed {report.swarm.seed} --triggers {report.swarm.triggers}")
            raise typer.Exit(1)
        if console.is_terminal:
            console.print(f"seed {report.swarm.seed}: {parts} of {triggers} parts", end="\r")
    table = Table("figure", "value", title=f"seeds from {seed}")
    took_s = time.monotonic() - began_s
    for name, value in (
        ("parts", f"{parts}"),
        ("passed, rejected", f"{passed}, {rejected}"),
        ("faults injected", f"{sum(faults.values())} of {len(faults)} kinds"),
        ("events, invariants checked after each", f"{events}"),
        ("line time", f"{hours:.1f} h"),
        ("took", f"{took_s:.1f} s, {parts / took_s:.0f} parts/s"),
        ("trace of the last seed", trace),
        ("violations", "0"),
    ):
        table.add_row(name, value)
    console.print(table)
