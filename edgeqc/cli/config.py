"""`edgeqc config`: what a configuration may hold."""

from __future__ import annotations

import json
from typing import Any

import typer

from edgeqc.cli.console import tell


def application() -> typer.Typer:
    """The commands under `config`."""
    app = typer.Typer(help="The configuration's schema.", no_args_is_help=True)
    app.callback()(lambda: None)
    app.command("schema")(_schema)
    return app


def schema() -> dict[str, Any]:
    """JSON schema of a configuration file, for editors."""
    from edgeqc.settings import Settings  # noqa: PLC0415 - pydantic takes 0.1 s

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "edgeqc.line/1",
        **Settings.model_json_schema(by_alias=True),
    }


def schema_text() -> str:
    """The schema as it stands in config/schema/line.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False)


def _schema() -> None:
    """Print the JSON schema of the configuration, with every key's unit and limits."""
    tell(schema_text())
