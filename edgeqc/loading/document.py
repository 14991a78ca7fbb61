"""A YAML document in which every value knows where it stands.

Only what YAML 1.1 and 1.2 read alike is taken: PyYAML follows 1.1, where `no` is false, 010 is 8 and 12:30 is 750.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

DEPTH_LIMIT: Final = 16
"""The settings are 6 levels deep; libyaml itself goes 1000 deep and recursion in Python about as far."""
NODE_LIMIT: Final = 200_000
"""Values after all aliases are followed; 1000 tags with every key are 24,000."""
NUMBER_CHARS: Final = 40
"""A longer word is text: int() raises from 4300 digits on."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_TRAP_BOOL: Final = {"y": True, "yes": True, "on": True, "n": False, "no": False, "off": False}
_TRAP_OCTAL: Final = re.compile(r"[-+]?0[0-9_]+")
_TRAP_UNDERSCORE: Final = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?")
_TRAP_SEXAGESIMAL: Final = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the file; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Node:
    """One value: a scalar, a list of nodes, or a mapping of key to (where the key stands, node)."""

    mark: Mark
    value: Any
    size: int = 1
    """Values in it, aliases followed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the document."""

    mark: Mark | None
    path: Path
    what: str


@dataclass(slots=True)
class Document:
    """What a text holds. `root` is None where nothing can be made of it; `faults` then says why."""

    root: Node | None = None
    faults: list[Fault] = field(default_factory=list)

    def plain(self) -> Any:
        """The values alone, as dict, list, str, int, float, bool and None; aliases become copies."""
        return None if self.root is None else _plain(self.root)

    def locate(self, path: Sequence[str | int], *, key: bool = False) -> Mark | None:
        """Where `path` stands, or the nearest thing above it; with `key`, the key rather than its value."""
        node, mark = self.root, None
        if node is None:
            return None
        mark = node.mark
        for part in path:
            match node.value:
                case dict() as mapping if part in mapping:
                    key_mark, node = mapping[part]
                    mark = key_mark if key else node.mark
                case list() as items if isinstance(part, int) and part < len(items):
                    node = items[part]
                    mark = node.mark
                case _:
                    return mark
        return mark


def parse(text: str) -> Document:
    """Read one YAML document; never raises for what the text holds."""
    document = Document()
    try:
        events = yaml.parse(text, _LOADER)
        document.root = _Builder(document.faults).document(iter(events))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Mark(mark.line + 1, mark.column + 1) if mark is not None else None
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.faults.append(Fault(where, (), f"this is not YAML: {what}"))
    except yaml.YAMLError as error:
        document.faults.append(Fault(None, (), f"this is not YAML: {str(error).splitlines()[0]}"))
    except _RefusedError as error:
        document.faults.append(error.fault)
    return document


class _RefusedError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


class _Builder:
    """Makes nodes of events, so that depth and size are checked before anything grows."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._anchors: dict[str, Node | None] = {}

    def document(self, events: Iterator[Any]) -> Node | None:
        root: Node | None = None
        for event in events:
            match event:
                case yaml.StreamStartEvent() | yaml.DocumentStartEvent() | yaml.DocumentEndEvent():
                    continue
                case yaml.StreamEndEvent():
                    break
                case _ if root is not None:
                    raise _RefusedError(Fault(_mark(event), (), "a second document (---); one file holds one"))
                case _:
                    root = self._node(event, events, ())
        if root is None:
            self._faults.append(Fault(None, (), "the file is empty"))
        elif not isinstance(root.value, dict):
            raise _RefusedError(Fault(root.mark, (), "the top level must be a mapping (key: value)"))
        return root

    def _node(self, event: Any, events: Iterator[Any], path: Path) -> Node:
        mark = _mark(event)
        if len(path) > DEPTH_LIMIT:
            raise _RefusedError(Fault(mark, path[:3], f"nested more than {DEPTH_LIMIT} deep"))
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, mark, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # until it is whole, so that nothing can hold itself
        if event.tag is not None and event.tag != "!":
            self._faults.append(Fault(mark, path, f"tag {event.tag[:40]} is not used here; write the value alone"))
        match event:
            case yaml.ScalarEvent():
                node = Node(mark, self._scalar(event, mark, path))
            case yaml.SequenceStartEvent():
                node = self._sequence(events, mark, path)
            case _:
                node = self._mapping(events, mark, path)
        if node.size > NODE_LIMIT:
            raise _RefusedError(Fault(mark, path, f"more than {NODE_LIMIT} values once aliases are followed"))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any, mark: Mark, path: Path) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            what = "holds itself" if event.anchor in self._anchors else "is not defined above"
            raise _RefusedError(Fault(mark, path, f"alias *{event.anchor} {what}"))
        return node

    def _sequence(self, events: Iterator[Any], mark: Mark, path: Path) -> Node:
        items: list[Node] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, events, (*path, len(items))))
        return Node(mark, items, 1 + sum(item.size for item in items))

    def _mapping(self, events: Iterator[Any], mark: Mark, path: Path) -> Node:
        entries: dict[str, tuple[Mark, Node]] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            at = _mark(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise _RefusedError(Fault(at, path, "a key must be a plain word"))
            key = str(event.value)
            node = self._node(next(events), events, (*path, key))
            if key == "<<":
                self._faults.append(Fault(at, path, "<< (merge) is not used here; write the keys out"))
            elif key in entries:
                first = entries[key][0].line
                self._faults.append(Fault(at, (*path, key), f"is given twice, first in line {first}"))
            else:
                entries[key] = (at, node)
        return Node(mark, entries, 1 + sum(node.size for _, node in entries.values()))

    def _scalar(self, event: Any, mark: Mark, path: Path) -> Any:
        text: str = event.value
        if not event.implicit[0] or len(text) > NUMBER_CHARS:
            return text
        if trap := _trap(text):
            self._faults.append(Fault(mark, path, trap))
            return _TRAP_BOOL.get(text.lower(), text)
        return _plain_word(text)


def _plain_word(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEX.fullmatch(text):
        return int(text, 16)
    return float(text) if _FLOAT.fullmatch(text) else text


def _trap(text: str) -> str | None:
    """What is wrong with a plain word that YAML 1.1 and 1.2 read differently."""
    if (truth := _TRAP_BOOL.get(text.lower())) is not None:
        return (
            f'{text} means {str(truth).lower()} to some readers: write {str(truth).lower()}, or "{text}" for the text'
        )
    if _TRAP_OCTAL.fullmatch(text):
        return f'{text} is octal to some readers: write {text.lstrip("0") or "0"}, or "{text}" for the text'
    if _TRAP_UNDERSCORE.fullmatch(text):
        return f'{text} is a number to some readers: write {text.replace("_", "")}, or "{text}" for the text'
    if _TRAP_SEXAGESIMAL.fullmatch(text):
        return f'{text} is a number of base 60 to some readers: write "{text}" for the text'
    return None


def _mark(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def _plain(node: Node) -> Any:
    match node.value:
        case dict() as entries:
            return {key: _plain(value) for key, (_, value) in entries.items()}
        case list() as items:
            return [_plain(item) for item in items]
        case scalar:
            return scalar
