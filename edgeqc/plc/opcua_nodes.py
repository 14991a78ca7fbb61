"""From NodeIds as the configuration has them to a server's own: namespaces by URI get the number it has for them now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds

from edgeqc.core import nodeid
from edgeqc.core.nodeid import NodeKind, NodeName


async def resolve(client: Client, texts: Sequence[str]) -> list[ua.NodeId | str]:
    """Give each node's id on this very connection, or why there is none, in the order asked.

    The server is asked for its namespaces once, and only where a URI is among them.
    """
    names: list[NodeName | str] = [_parsed(text) for text in texts]
    uris: list[str] = []
    if any(isinstance(name, NodeName) and isinstance(name.namespace, str) for name in names):
        uris = await namespaces(client)
    return [name if isinstance(name, str) else _node_id(name, uris) for name in names]


async def namespaces(client: Client) -> list[str]:
    """The server's namespace URIs, by their index."""
    (value,) = await client.uaclient.read_attributes([ua.NodeId(ua.Int32(_NAMESPACE_ARRAY))], AttributeIds.Value)
    found = value.Value.Value if value.Value is not None else None
    return [str(uri) for uri in found] if isinstance(found, list) else []


def _parsed(text: str) -> NodeName | str:
    try:
        return nodeid.parse(text)
    except ValueError as exc:
        return str(exc)


def _node_id(name: NodeName, uris: list[str]) -> ua.NodeId | str:
    index = name.namespace
    if isinstance(index, str):
        if index not in uris:
            return f"{name}: the server has no namespace {index}; it has {', '.join(uris) or 'none'}"
        index = uris.index(index)
    return ua.NodeId(cast("Any", name.identifier), ua.Int16(index), _KINDS[name.kind])


_NAMESPACE_ARRAY: Final = 2255
"""Server_NamespaceArray (OPC 10000-5, 6.3.1)."""
_KINDS: Final = {
    NodeKind.NUMERIC: ua.NodeIdType.Numeric,
    NodeKind.STRING: ua.NodeIdType.String,
    NodeKind.GUID: ua.NodeIdType.Guid,
    NodeKind.OPAQUE: ua.NodeIdType.ByteString,
}
