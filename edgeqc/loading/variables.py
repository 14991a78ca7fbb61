"""What the environment may put into a configuration: `${VAR}` inside text, and EDGEQC__KEY__KEY over any value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from edgeqc.loading.document import Path

PREFIX: Final = "EDGEQC__"
_REFERENCE: Final = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}|\$\{")


def expand(data: Any, environ: Mapping[str, str], path: Path, faults: list[tuple[Path, str]]) -> Any:
    """Fill `${VAR}`, `${VAR:-default}` and `${VAR:?message}` in every text of `data`; `$$` stands for one `$`.

    It happens after parsing, so a value can never become a key or a list.
    """
    match data:
        case dict():
            return {key: expand(value, environ, (*path, key), faults) for key, value in data.items()}
        case list():
            return [expand(item, environ, (*path, index), faults) for index, item in enumerate(data)]
        case str() if "$" in data:
            return _filled(data, environ, path, faults)
        case _:
            return data


def override(data: dict[str, Any], names: Mapping[str, str], faults: list[tuple[Path, str]]) -> dict[Path, str]:
    """Put each value of `names` (EDGEQC__KEY__KEY or a number in a list: text) over what `data` has.

    Returns which name a path's value is from. Missing mappings are made, so that validation sees unknown keys.
    """
    origin: dict[Path, str] = {}
    for name, value in names.items():
        keys: list[str | int] = [
            int(part) if part.isdecimal() else part.lower() for part in name.removeprefix(PREFIX).split("__")
        ]
        origin[tuple(keys)] = name
        node: Any = data
        for key in keys[:-1]:
            node = _step(node, key)
        match node, keys[-1]:
            case dict(), str() as key:
                node[key] = None if value == "null" else value
            case list(), int() as index if index < len(node):
                node[index] = None if value == "null" else value
            case _:
                faults.append((tuple(keys), "leads nowhere in the file"))
    return origin


def _step(node: Any, key: str | int) -> Any:
    match node, key:
        case dict(), str() as name:
            if not isinstance(node.get(name), (dict, list)):
                node[name] = {}
            return node[name]
        case list(), int() as index if index < len(node):
            return node[index]
        case _:
            return None


def _filled(text: str, environ: Mapping[str, str], path: Path, faults: list[tuple[Path, str]]) -> str:
    def one(match: re.Match[str]) -> str:
        name, kind, rest = match["name"], match["kind"], match["rest"]
        if match[0] == "$$":
            return "$"
        if name is None:
            faults.append((path, "${ without a name and }: write ${VAR}, or $$ for one $"))
            return ""
        value = environ.get(name, "")
        if value or (kind is None and name in environ):
            return value
        if kind == "-":
            return str(rest)
        faults.append((path, f"${{{name}}} is not set{': ' + rest if rest else ' in the environment'}"))
        return ""

    return _REFERENCE.sub(one, text)
