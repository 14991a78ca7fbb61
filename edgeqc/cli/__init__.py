"""What the user types. Data goes to stdout, talk to stderr, and the exit code says what kind of end it was."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from edgeqc import __version__
from edgeqc.cli import (
    alarm,
    audit,
    calibrate,
    check,
    commissioning,
    config,
    demo,
    doctor,
    engine,
    evaluate,
    explain,
    init,
    journal,
    probe,
    records,
    run,
    simulate,
    tags,
    train,
)
from edgeqc.cli.console import tell
from edgeqc.cli.exits import code_of, say
from edgeqc.errors import EdgeqcError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `Exit`)."""
    try:
        application()(args=arguments, prog_name="edgeqc", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (EdgeqcError, OSError) as error:
        say(error)
        return code_of(error)
    return 0


def application() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        name="edgeqc",
        help="Looks at every part, tells the PLC pass or reject within takt, and publishes what it saw.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    app.command("init")(init.init)
    app.command("check")(check.check)
    app.add_typer(commissioning.application(), name="test")
    app.add_typer(probe.application(), name="plc")
    app.command("run")(run.run)
    app.command("demo")(demo.demo)
    app.command("doctor")(doctor.doctor)
    app.add_typer(engine.application(), name="engine")
    app.command("records")(records.records)
    app.command("sim")(simulate.sim)
    app.command("journal")(journal.journal)
    app.add_typer(tags.application(), name="tags")
    app.add_typer(alarm.application(), name="alarm")
    app.command("audit")(audit.audit)
    app.add_typer(config.application(), name="config")
    app.add_typer(train.application(), name="train")
    app.command("calibrate")(calibrate.calibrate)
    app.add_typer(evaluate.application(), name="eval")
    app.command("explain")(explain.explain)
    return app


def _version(asked: bool) -> None:
    if asked:
        tell(f"edgeqc {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", is_eager=True, callback=_version
    ),
) -> None:
    del version  # its callback has done all
