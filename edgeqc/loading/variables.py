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


def override(data: dict[str, Any], names: Mapping[str, str]) -> dict[Path, str]:
    """Put each value of `names` (dotted key or number: text) over what `data` has; returns path: name.

    A step that leads nowhere is made a mapping, so that validation names it as an unknown key.
    """
    origin: dict[Path, str] = {}
    for name, value in names.items():
        keys: list[str | int] = [
            int(part) if part.isdecimal() else part.lower() for part in name.removeprefix(PREFIX).split("__")
        ]
        node: Any = data
        for key in keys[:-1]:
            node = _step(node, key)
        last = keys[-1]
        if isinstance(node, list) and isinstance(last, int) and last < len(node):
            node[last] = None if value == "null" else value
        elif isinstance(node, dict):
            node[str(last)] = None if value == "null" else value
        else:
            keys = [str(keys[0])]
            data[str(keys[0])] = value
        origin[tuple(keys)] = name
    return origin


def _step(node: Any, key: str | int) -> Any:
    if isinstance(node, list):
        return node[key] if isinstance(key, int) and key < len(node) else None
    if isinstance(node, dict):
        if not isinstance(node.get(str(key)), (dict, list)):
            node[str(key)] = {}
        return node[str(key)]
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
