"""What a package is called that nobody has named: as its folder, NAME/VERSION, says; that is where `engine import` puts it."""

from __future__ import annotations

import re
from pathlib import Path


def name_of(out: Path | None, *, name: str | None, version: str | None, data: Path) -> tuple[str, str]:
    """(name, version): what was asked for, else by an `out` that ends in NAME/VERSION, else the data's name and 1."""
    by_folder = out.absolute() if out is not None and re.fullmatch(r"[0-9][0-9A-Za-z._-]*", out.name) else None
    return (
        name or (by_folder.parent.name if by_folder is not None else data.resolve().stem),
        version or (by_folder.name if by_folder is not None else "1"),
    )
