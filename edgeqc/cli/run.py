"""`edgeqc run`: the daemon, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    file: Annotated[Path, typer.Argument(help="The line's configuration.")],
) -> None:
    """Run the line until SIGTERM or SIGINT.

    An invalid configuration, a missing secret or a damaged engine package starts nothing at all.
    """
    from edgeqc import loading  # noqa: PLC0415 - heavy
    from edgeqc.inference.choice import judging  # noqa: PLC0415 - heavy
    from edgeqc.inference.package import load_package  # noqa: PLC0415 - heavy
    from edgeqc.inference.trust import trust_of  # noqa: PLC0415 - heavy
    from edgeqc.supervisor import run as supervise  # noqa: PLC0415 - heavy

    settings = loading.load(file)
    loading.resolved(settings)
    trust = trust_of(settings.engines)
    for recipe in [recipe for station in settings.stations for recipe in station.engines]:
        judging(load_package(recipe.engine, trust=trust), recipe)
    raise typer.Exit(supervise(settings, config_path=file))
