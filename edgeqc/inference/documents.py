"""A package's texts, `manifest.yaml` and `calibration.json`: parsed, bounded, and held against what they must be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from edgeqc.errors import PackageError
from edgeqc.loading.document import parse

_Document = TypeVar("_Document", bound=BaseModel)


def from_yaml(kind: type[_Document], path: Path, content: bytes) -> _Document:
    """PackageError with every fault. A key that is given twice is one: a reader would see the first, the daemon the last."""
    try:
        document = parse(content.decode())
    except UnicodeDecodeError as exc:
        raise PackageError(f"{path}: is not UTF-8 text: {exc}") from exc
    if document.faults:
        told = (f"{path}:{fault.mark.line if fault.mark else 1}: {fault.what}" for fault in document.faults)
        raise PackageError(_first(told))
    return _fits(kind, path, document.plain())


def from_json(kind: type[_Document], path: Path, content: bytes) -> _Document:
    """PackageError with every fault; keys given twice likewise."""
    try:
        return _fits(kind, path, read_json(content))
    except (ValueError, RecursionError) as exc:
        raise PackageError(f"{path}: {str(exc)[:_FAULT_CHARACTERS]}") from exc


def to_yaml(document: Mapping[str, Any]) -> bytes:
    """As `from_yaml` reads it."""
    text: str = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=120)
    return text.encode()


def read_json(content: bytes) -> Any:
    """ValueError or RecursionError where it is no JSON, or an object has a key twice."""
    return json.loads(content, object_pairs_hook=_once)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what only PyYAML takes for text: `y` and `n`, and numbers such as 1e3."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    odd = text[:1] in _NUMBERS_BEGIN or text.lower() in {"y", "n"}
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if odd else None)


_NUMBERS_BEGIN: Final = frozenset("+-.0123456789")
_Dumper.add_representer(str, _text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key is given twice in {sorted(found)}")
    return found


_FAULTS_MOST: Final = 20
_FAULT_CHARACTERS: Final = 300
_VALUE_CHARACTERS: Final = 80


def _fits(kind: type[_Document], path: Path, document: object) -> _Document:
    try:
        return kind.model_validate(document)
    except ValidationError as exc:
        lines = []
        for fault in exc.errors(include_url=False):
            where = ".".join(str(step)[:_VALUE_CHARACTERS] for step in fault["loc"]) or "whole file"
            value = "" if fault["type"] in {"missing", "value_error"} else f"{_shown(fault['input'])}: "
            lines.append(f"{path}: {where}: {value}{fault['msg']}")
        raise PackageError(_first(lines)) from exc


def _shown(value: object) -> str:
    """Short, and without what a terminal would take for a command."""
    text = str(value)[:_VALUE_CHARACTERS]
    return text if text.isprintable() else repr(text)


def _first(lines: Iterable[str]) -> str:
    return "\n".join([line for _, line in zip(range(_FAULTS_MOST), lines, strict=False)])
