"""Every fault of a configuration, said as `path: what, limit`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgeqc.loading.document import Path
from edgeqc.settings import Settings

PASSES: Final = 8
"""Validation stops at a model's own faults before it compares its fields; a mended copy brings those out too.

A missing key takes three passes at most: put in, given its type, given its range.
"""
SHOWN_CHARS: Final = 60
_SECRET_KEYS: Final = frozenset({"password"})
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s]*@")
"""User and password in a URL."""
_KEY: Final = r"[a-z_][a-z0-9_-]*(?:\[\d+\])?"
_SUB_PATH: Final = re.compile(rf"^({_KEY}(?:\.{_KEY})*): ")
_RANGE: Final = {
    "greater_than_equal": ("is under", "ge"),
    "less_than_equal": ("is over", "le"),
    "greater_than": ("is not over", "gt"),
    "less_than": ("is not under", "lt"),
}
_NEEDED: Final = {
    "string_type": "is not text",
    "path_type": "is not text",
    "int_type": "is not a whole number",
    "int_parsing": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "float_parsing": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "bool_parsing": "is not true or false",
    "model_type": "where a mapping (key: value) is needed",
    "model_attributes_type": "where a mapping (key: value) is needed",
    "dict_type": "where a mapping (key: value) is needed",
    "list_type": "where a list (- item) is needed",
}
_TAG_FAULTS: Final = frozenset({"union_tag_invalid", "union_tag_not_found"})
_KIND_KEYS: Final = ("type", "tracking")
"""By which of them a part of the configuration says what it is."""
_OF_A_KEY: Final = "[key]"
"""Last of pydantic's path where a mapping's key is wrong, not its value."""
_STAND_IN: Final[dict[str, Any]] = {
    "missing": None,
    "model_type": {},
    "model_attributes_type": {},
    "dict_type": {},
    "list_type": [],
    "float_type": 1.0,
    "float_parsing": 1.0,
    "finite_number": 1.0,
    "int_type": 1,
    "int_parsing": 1,
    "int_from_float": 1,
    "bool_type": False,
    "bool_parsing": False,
    "string_type": "x",
    "path_type": ".",
}
_TEXTS: Final = ("x", "i=1", "opc.tcp://x", "127.0.0.1")
"""Tried one after another for a text that its field refuses: a name, a node, a URL, an address."""


def validate(data: dict[str, Any]) -> tuple[Settings | None, list[tuple[Path, str, bool]]]:
    """Make settings of plain data, or say all that is wrong as (path, what, is it the key that is wrong)."""
    faults: list[tuple[Path, str, bool]] = []
    mended: dict[Path, str] = {}
    seen: set[tuple[Path, str]] = set()
    for turn in range(PASSES):
        try:
            settings = Settings.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return (settings if turn == 0 else None), faults
        if turn == 0:
            data = _copy(data)
        again = False
        for detail in details:
            path = _path(detail["loc"], data)
            for at, what in _said(detail, path):
                key_only = detail["type"] == "extra_forbidden" or detail["loc"][-1:] == (_OF_A_KEY,)
                # an unknown key is the user's own, whatever its message has in common with what was mended
                if (key_only or not _follows(at, what, mended)) and (at, what) not in seen:
                    seen.add((at, what))
                    faults.append((at, what, key_only))
            if path and (place := _mend(data, path, detail)):
                mended[place] = _stem(place[-1])
                again = True
        if not again:
            break
    return None, faults


def text(path: Sequence[str | int]) -> str:
    """A path as people write it: `stations[0].camera.exposure_us`."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def parsed(path: str) -> Path:
    """The reverse of `text`."""
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in re.findall(r"\[\d+\]|[^.\[\]]+", path))


def shown(value: Any, path: Sequence[str | int]) -> str:
    """A value as a fault may show it: cut, and never a secret."""
    if path and path[-1] in _SECRET_KEYS:
        return "what is given"
    match value:
        case None:
            said = "null"
        case bool():
            said = str(value).lower()
        case dict() | list():
            said = "a mapping" if isinstance(value, dict) else "a list"
        case float():
            said = f"{value:g}"
        case _:
            said = _CREDENTIALS.sub("...@", str(value)) or '""'
    return said if len(said) <= SHOWN_CHARS else f"{said[:SHOWN_CHARS]}..."


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing where none is near."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _said(detail: ErrorDetails, path: Path) -> Iterator[tuple[Path, str]]:
    """The fault in our own words; a model's validator may tell of several, each with its sub-path."""
    if detail["type"] in _TAG_FAULTS:
        yield (*path, _kind_key(detail)), _what(detail, path)
        return
    if detail["type"] != "value_error" or not isinstance(detail["input"], dict):
        yield path, _what(detail, path)
        return
    for line in detail["msg"].removeprefix("Value error, ").split("\n"):
        sub = _SUB_PATH.match(line)
        if sub:
            yield (*path, *parsed(sub[1])), line[sub.end() :]
        else:
            yield path, line


def _what(detail: ErrorDetails, path: Path) -> str:  # noqa: C901, PLR0911 - a table: one line per kind of fault
    """What is wrong, with the value and its limit."""
    kind, got, limits = detail["type"], shown(detail["input"], path), detail.get("ctx", {})
    if kind in _RANGE:
        words, limit = _RANGE[kind]
        return f"{got} {words} {limits[limit]:.12g}"
    if kind in _NEEDED:
        quotes = kind == "string_type" and isinstance(detail["input"], (int, float))
        return f"{got} {_NEEDED[kind]}{': put it in quotes' if quotes else ''}"
    match kind:
        case "missing":
            return f"is missing{_described(detail['loc'])}"
        case "extra_forbidden":
            return f"is no key here{nearest(str(path[-1]), list(_fields(detail['loc'][:-1])))}"
        case "literal_error" | "enum":
            return _one_of(got, str(limits["expected"]))
        case "union_tag_invalid":
            return _one_of(str(limits["tag"]), str(limits["expected_tags"]))
        case "union_tag_not_found":
            return f"is missing: {', '.join(_tags(detail['loc']))}"
        case "string_pattern_mismatch":
            return f"{got} does not match {limits['pattern']}{_described(detail['loc'])}"
        case "too_short":
            return f"has {limits['actual_length']} items, {limits['min_length']} needed"
        case "too_long":
            return f"has more than {limits['max_length']} items"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
        case _:
            return f"{got}: {detail['msg']}"


def _one_of(got: str, expected: str) -> str:
    words = _words(expected)
    return f"{got} is none of {', '.join(words)}{nearest(got, words)}"


def _words(expected: str) -> list[str]:
    """Take `'a', 'b' or 'c'` of pydantic apart."""
    return [word.strip("' ") for word in re.split(r", | or ", expected)]


def _path(loc: Sequence[str | int], data: Any) -> Path:
    """The fault's path in the file: pydantic puts what kind a union's member is of between its keys."""
    path: list[str | int] = []
    node = data
    for part in loc[:-1] if loc[-1:] == (_OF_A_KEY,) else loc:
        if isinstance(node, dict) and part not in node and part in [node.get(key) for key in _KIND_KEYS]:
            continue
        path.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    return tuple(path)


def _mend(data: dict[str, Any], path: Path, detail: ErrorDetails) -> Path | None:
    """Put something valid in the fault's place and say what is no longer the user's; None where nothing fits."""
    node: Any = data
    for part in path[:-1]:
        node = node[part]
    last: Any = path[-1]
    kind, limits = detail["type"], detail.get("ctx", {})
    if detail["loc"][-1:] == (_OF_A_KEY,):
        return None
    match kind:
        case "extra_forbidden":
            del node[last]
        case "union_tag_invalid" | "union_tag_not_found":
            tags, key = _tags(detail["loc"]), _kind_key(detail)
            near = difflib.get_close_matches(str(node[last].get(key)), tags, n=1)
            node[last][key] = near[0] if near else tags[-1]
            return (*path, key) if near else path
        case "literal_error" | "enum":
            word = _words(str(limits["expected"]))[0]
            node[last] = int(word) if word.isdecimal() else word
        case "greater_than" | "less_than":
            node[last] = limits["gt"] + 1 if kind == "greater_than" else limits["lt"] - 1
        case "greater_than_equal" | "less_than_equal":
            node[last] = limits[_RANGE[kind][1]]
        case "value_error" | "string_pattern_mismatch" if isinstance(node[last], str) and node[last] != _TEXTS[-1]:
            node[last] = _TEXTS[_TEXTS.index(node[last]) + 1 if node[last] in _TEXTS else 0]
        case _ if kind in _STAND_IN and (kind == "missing" or node[last] != _STAND_IN[kind]):
            node[last] = _copy(_STAND_IN[kind])
        case _:
            return None
    return path


def _follows(path: Path, what: str, mended: dict[Path, str]) -> bool:
    """Is this fault there only because of what `_mend` put in? A message names every key that it compares."""
    return any(path[: len(at)] == at or (stem and stem in what and at[:2] == path[:2]) for at, stem in mended.items())


def _stem(key: str | int) -> str:
    """A key without its unit, because messages say `takt 10 ms`; empty for a place in a list."""
    return re.sub(r"_(ns|us|ms|s|px|hz|db|mb|bytes|days)$", "", key) if isinstance(key, str) else ""


def _described(loc: Sequence[str | int]) -> str:
    field = _fields(loc[:-1]).get(str(loc[-1])) if loc else None
    return f" ({field})" if field else ""


def _fields(loc: Sequence[str | int]) -> dict[str, str]:
    """Known keys at a place, each with its description."""
    return {
        field.alias or name: field.description or ""
        for model in _models_at(loc)
        for name, field in model.model_fields.items()
    }


def _tags(loc: Sequence[str | int]) -> list[str]:
    """What `type` may be at a place."""
    return [str(tag) for model in _models_at(loc) for tag in _literal(model)]


def _models_at(loc: Sequence[str | int]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [Settings]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [
            found
            for model in models
            for name, field in model.model_fields.items()
            if (field.alias or name) == part
            for found in _models(field.annotation)
        ]
        models = inner or [model for model in models if part in _literal(model)]
    return models


def _kind_key(detail: ErrorDetails) -> str:
    return str(detail["ctx"]["discriminator"]).strip("'")


def _literal(model: type[BaseModel]) -> tuple[Any, ...]:
    """What a member of a union may say that it is."""
    return next((get_args(model.model_fields[key].annotation) for key in _KIND_KEYS if key in model.model_fields), ())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) is None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _copy(data: Any) -> Any:
    match data:
        case dict():
            return {key: _copy(value) for key, value in data.items()}
        case list():
            return [_copy(item) for item in data]
        case _:
            return data
