"""OPC UA NodeIds as people write them, in all forms (OPC 10000-6, 5.3.1.10 and 5.3.1.11). Pure.

`i=2258` · `ns=2;i=5` · `ns=3;s="DB1"."Part"` · `ns=1;g=09087e75-8e5e-499b-954f-f2a9603db28a` · `ns=1;b=M/RbKBsRVkePCePcx24oRA==` ·
`nsu=urn:plant:line3;s=Part`: a namespace by its URI keeps its meaning when the server numbers them anew.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_HIGHEST: Final = {"ns": 0xFFFF, "i": 0xFFFF_FFFF}


class NodeKind(StrEnum):
    """What kind of identifier a node has."""

    NUMERIC = "i"
    STRING = "s"
    GUID = "g"
    OPAQUE = "b"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeName:
    """A NodeId before it is known what number the server gives to a namespace."""

    namespace: int | str
    """Its index, or its URI."""
    kind: NodeKind
    identifier: int | str | uuid.UUID | bytes

    def __str__(self) -> str:
        """As it is written."""
        match self.identifier:
            case bytes():
                shown = base64.b64encode(self.identifier).decode()
            case _:
                shown = str(self.identifier)
        match self.namespace:
            case 0:
                return f"{self.kind}={shown}"
            case str() as uri:
                return f"nsu={uri.replace('%', '%25').replace(';', '%3B')};{self.kind}={shown}"
            case index:
                return f"ns={index};{self.kind}={shown}"


def parse(text: str) -> NodeName:
    """Understand one NodeId. ValueError says what is wrong with it and how it is written."""
    namespace: int | str = 0
    rest = text.strip()
    if rest.startswith(("ns=", "nsu=")):
        head, semicolon, rest = rest.partition(";")
        if not semicolon:
            raise ValueError(f"{text}: nothing behind the namespace; {_WRITTEN}")
        key, _, shown = head.partition("=")
        namespace = _number(text, "ns", shown) if key == "ns" else _uri(text, shown)
    key, equals, shown = rest.partition("=")
    if not equals or key not in tuple(NodeKind):
        raise ValueError(f"{text}: {_WRITTEN}")
    kind = NodeKind(key)
    return NodeName(namespace=namespace, kind=kind, identifier=_identifier(text, kind, shown))


_WRITTEN: Final = (
    "a NodeId is written i=NUMBER, s=TEXT, g=GUID or b=BASE64, behind ns=INDEX; or nsu=URI; where it has a namespace"
)


def _identifier(text: str, kind: NodeKind, shown: str) -> int | str | uuid.UUID | bytes:
    match kind:
        case NodeKind.NUMERIC:
            return _number(text, "i", shown)
        case NodeKind.STRING:
            return shown
        case NodeKind.GUID:
            try:
                return uuid.UUID(shown)
            except ValueError:
                raise ValueError(f"{text}: {shown} is no GUID (8-4-4-4-12 hex digits)") from None
        case NodeKind.OPAQUE:
            try:
                return base64.b64decode(shown, validate=True)
            except binascii.Error:
                raise ValueError(f"{text}: {shown} is not base64") from None


def _number(text: str, key: str, shown: str) -> int:
    if not (shown.isascii() and shown.isdigit()) or int(shown) > _HIGHEST[key]:
        raise ValueError(f"{text}: {key}={shown} is no number from 0 to {_HIGHEST[key]}")
    return int(shown)


def _uri(text: str, shown: str) -> str:
    if not shown:
        raise ValueError(f"{text}: nsu= names no namespace")
    return shown.replace("%3B", ";").replace("%3b", ";").replace("%25", "%")
