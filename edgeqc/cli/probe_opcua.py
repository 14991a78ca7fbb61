"""Reading nodes of an OPC UA server that nobody knows yet."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIdNames

from edgeqc.core.nodeid import NodeKind, NodeName
from edgeqc.errors import PeerError
from edgeqc.plc import opcua_nodes, opcua_session
from edgeqc.settings import OpcuaEndpoint

TIMEOUT_S: Final = 10.0
_CHILDREN: Final = 500
_READABLE: Final = 1
_WRITABLE: Final = 2


@dataclass(kw_only=True, eq=False)
class NodeReport:
    """What one node said of itself."""

    node: str
    """As it was asked for."""
    by_uri: str = ""
    """The same with its namespace by URI, for the configuration."""
    name: str = ""
    type: str = ""
    array: bool = False
    access: str = ""
    value: Any = None
    status: str = ""
    source_ts: str = ""
    fault: str = ""
    """Why nothing is known."""
    registers: bytes = b""
    """Where the value is a row of words or bytes: them, for all that they could mean."""
    children: list[dict[str, str]] = field(default_factory=list)


class OpcuaProbe:
    """One session. Blocking calls: each runs the loop until it is done."""

    def __init__(self, endpoint: OpcuaEndpoint, state_dir: Path) -> None:
        """Nothing is connected before `with`."""
        self._endpoint, self._state_dir = endpoint, state_dir
        self._runner = asyncio.Runner()
        self._client: Client | None = None

    def __enter__(self) -> Self:
        try:
            self._client = self._runner.run(
                opcua_session.connect(
                    self._endpoint, peer=self._endpoint.url, state_dir=self._state_dir, timeout_s=TIMEOUT_S
                )
            )
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._runner.run(opcua_session.close(self._client))
        self._runner.close()

    def look(self, nodes: list[str], *, browse: bool) -> list[NodeReport]:
        """Ask each node for its type, rights and value; with `browse` for what is below it. PeerError."""
        return self._runner.run(self._look(nodes, browse=browse))

    async def _look(self, nodes: list[str], *, browse: bool) -> list[NodeReport]:
        client = self._client
        if client is None:
            raise PeerError(self._endpoint.url, "not connected")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                uris = await opcua_nodes.namespaces(client)
                resolved = await opcua_nodes.resolve(client, nodes)
                return [
                    NodeReport(node=text, fault=found)
                    if isinstance(found, str)
                    else await _report(client, text, found, uris, browse=browse)
                    for text, found in zip(nodes, resolved, strict=True)
                ]
        except Exception as exc:
            raise opcua_session.peer_error(self._endpoint.url, exc) from exc


async def _report(client: Client, text: str, node: ua.NodeId, uris: list[str], *, browse: bool) -> NodeReport:
    asked = (AttributeIds.DisplayName, AttributeIds.DataType, AttributeIds.UserAccessLevel, AttributeIds.Value)
    found = [(await client.uaclient.read_attributes([node], attribute))[0] for attribute in asked]
    report = NodeReport(node=text, by_uri=_by_uri(node, uris))
    title, kind, access, value = found
    if title.Value is None or title.Value.Value is None:
        report.fault = title.StatusCode.name if title.StatusCode is not None else "no such node"
        return report
    report.name = str(title.Value.Value.Text)
    variant = value.Value
    if variant is not None and variant.Value is not None:
        report.value, report.array = variant.Value, isinstance(variant.Value, list)
        report.type = variant.VariantType.name
        report.registers = _words(variant)
    elif kind.Value is not None and kind.Value.Value is not None:
        report.type = ObjectIdNames.get(kind.Value.Value.Identifier, str(kind.Value.Value))
    if access.Value is not None and access.Value.Value is not None:
        level = int(access.Value.Value)
        report.access = (
            " ".join(word for bit, word in ((_READABLE, "read"), (_WRITABLE, "write")) if level & bit) or "none"
        )
    report.status = value.StatusCode.name if value.StatusCode is not None else "Good"
    report.source_ts = value.SourceTimestamp.isoformat(timespec="milliseconds") if value.SourceTimestamp else ""
    if browse:
        report.children = await _children(client, node, uris)
    return report


async def _children(client: Client, node: ua.NodeId, uris: list[str]) -> list[dict[str, str]]:
    below = await client.get_node(node).get_children_descriptions()
    return [
        {
            "node": _by_uri(each.NodeId, uris),
            "name": str(each.DisplayName.Text),
            "class": each.NodeClass_.name if hasattr(each, "NodeClass_") else each.NodeClass.name,
        }
        for each in below[:_CHILDREN]
    ]


def _by_uri(node: ua.NodeId, uris: list[str]) -> str:
    index = int(node.NamespaceIndex)
    namespace: int | str = uris[index] if 0 < index < len(uris) else index
    kinds = {
        ua.NodeIdType.String: NodeKind.STRING,
        ua.NodeIdType.Guid: NodeKind.GUID,
        ua.NodeIdType.ByteString: NodeKind.OPAQUE,
    }
    kind = kinds.get(node.NodeIdType, NodeKind.NUMERIC)
    identifier: Any = node.Identifier
    return str(NodeName(namespace=namespace, kind=kind, identifier=identifier))


def _words(variant: ua.Variant) -> bytes:
    """The registers behind a value, where it is a row of them: gateways show Modbus devices so."""
    value = variant.Value
    match variant.VariantType:
        case ua.VariantType.UInt16 | ua.VariantType.Int16 if isinstance(value, list) and value:
            return struct.pack(f">{len(value)}H", *(word & 0xFFFF for word in value))
        case ua.VariantType.ByteString if isinstance(value, bytes):
            return value[: len(value) // 2 * 2]
        case _:
            return b""
