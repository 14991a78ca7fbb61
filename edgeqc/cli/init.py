"""`edgeqc init`: a configuration to begin with."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from edgeqc.cli.console import talk


class Profile(StrEnum):
    """What kind of line it is for."""

    DEMO = "demo"
    GIGE = "gige"
    OPCUA = "opcua"
    FOLDER = "folder"
    VIEWS = "views"


_TEMPLATE: Final = {
    Profile.DEMO: "demo.yaml",
    Profile.GIGE: "line.yaml",
    Profile.OPCUA: "opcua-line.yaml",
    Profile.FOLDER: "folder.yaml",
    Profile.VIEWS: "views.yaml",
}


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("line.yaml"),
    profile: Annotated[Profile, typer.Option(help="What kind of line it is for.")] = Profile.GIGE,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a commented configuration, and beside it the schema that editors complete and check it with."""
    from edgeqc.cli.config import schema_text  # noqa: PLC0415 - heavy

    text = template(profile).replace("../engines", _engines(file.absolute().parent))
    schema = file.parent / "schema" / "line.json"
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} is there already; --force overwrites it", param_hint="FILE")
    schema.parent.mkdir(parents=True, exist_ok=True)
    schema.write_text(schema_text() + "\n")
    file.write_text(text)
    talk(f"Wrote {file} and {schema}. Change what is marked there, then: edgeqc check {file}")


def _engines(folder: Path) -> str:
    """Where the packages are that come with a clone, seen from there; without one, where they may be put."""
    own = Path(__file__).parents[2] / "engines"
    return os.path.relpath(own, folder) if own.is_dir() else "engines"


def template(profile: Profile) -> str:
    """The commented configuration of a profile."""
    package = Path(__file__).parent
    for folder in (package / "templates", package.parent.parent / "config"):  # installed as a wheel, or from a clone
        path = folder / _TEMPLATE[profile]
        if path.is_file():
            return path.read_text()
    raise FileNotFoundError(f"{_TEMPLATE[profile]} did not come with this installation")
