"""Tags by OPC UA subscription: asyncua below, a fresh client per connection, health by the age of what was published."""

from __future__ import annotations

import asyncio
import datetime as dt
from pathlib import Path
from typing import Final

import structlog
from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds

from edgeqc.core import nodeid
from edgeqc.plc import opcua_nodes, opcua_session
from edgeqc.ports import TagSink
from edgeqc.records import TagRemark
from edgeqc.settings import OpcuaTagSource
from edgeqc.tags.connection import keep_connected
from edgeqc.tags.memory import Memory
from edgeqc.tags.reading import Readings
from edgeqc.tags.subscription import Subscription

CONNECT_TIMEOUT_S: Final = 5.0
"""Session and subscription of 1000 nodes took 0.3 s against node-opcua; a PLC may be ten times slower."""


class OpcuaTags:
    """One OPC UA server's tags."""

    def __init__(self, settings: OpcuaTagSource, *, sink: TagSink, state_dir: Path) -> None:
        """Connect in `run`, not here; `state_dir` keeps our certificate and what the server was like."""
        self._settings = settings
        self._sink = sink
        self._state_dir = state_dir
        self._readings = Readings(settings.name, settings.tags)
        self._log = structlog.get_logger().bind(source=settings.name)

    async def run(self) -> None:
        """Feed the sink until cancelled."""
        await keep_connected(self._settings.name, self._sink, self._serve)

    async def _serve(self) -> None:
        """One connection, from connect to its end."""
        settings = self._settings
        client = await opcua_session.connect(
            settings,
            peer=settings.name,
            state_dir=self._state_dir,
            timeout_s=CONNECT_TIMEOUT_S,
            # while it opens the timeout decides whether the server is there, from then on the silence rule
            probe_s=max(CONNECT_TIMEOUT_S, settings.stale_ms / 1000),
        )
        try:
            memory = Memory.load(self._state_dir, settings.name, [(tag.name, tag.node or "") for tag in settings.tags])
            subscription = Subscription(settings, self._readings, self._sink, memory)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    started = await _started(client)
                    nodes = await self._nodes(client, memory)
                    await subscription.open(client, nodes)
            except Exception as exc:
                raise opcua_session.peer_error(settings.name, exc) from exc
            self._sink.back(settings.name)
            self._tell_restart(memory, started)
            self._log.info("tag_source_up", refused=len(subscription.refused), **subscription.revised)
            await subscription.watch(client)
        finally:
            await opcua_session.close(client)

    async def _nodes(self, client: Client, memory: Memory) -> list[ua.NodeId | str]:
        """Give the tags' nodes: a number of a namespace means the URI that had it when the tags were first read."""
        texts = [tag.node or "" for tag in self._settings.tags]
        uris = await opcua_nodes.namespaces(client)
        known = memory.namespaces
        if not known:
            memory.namespaces = uris
            _save(memory)
        moved = [_by_uri(text, known, uris) for text in texts]
        followed = sum(text != before for text, before in zip(moved, texts, strict=True))
        text = ""
        if followed:
            text = (
                f"{followed} tags name namespaces by numbers that the server has given anew: it had {_listed(known)}, "
                f"has {_listed(uris)}. They are followed by URI"
            )
        self._sink.remark(self._settings.name, TagRemark.NAMESPACES, text)
        return await opcua_nodes.resolve(client, moved)

    def _tell_restart(self, memory: Memory, started: str) -> None:
        """Say that the server is another one than last time, if it is."""
        if started and memory.started and started != memory.started:
            self._sink.remark(self._settings.name, TagRemark.RESTARTED, f"restarted at {started}")
        if started != memory.started:
            memory.started = started
            _save(memory)


def _by_uri(text: str, known: list[str], uris: list[str]) -> str:
    """The same node by its namespace's URI, where the namespace's number means another one now."""
    try:
        name = nodeid.parse(text)
    except ValueError:
        return text  # told when it is resolved
    index = name.namespace
    # 0 is OPC UA's own, 1 the server's own, whose URI may have its host's name in it
    if not isinstance(index, int) or index < _FIRST_OF_OTHERS or index >= len(known):
        return text
    if index < len(uris) and uris[index] == known[index]:
        return text
    return str(nodeid.NodeName(namespace=known[index], kind=name.kind, identifier=name.identifier))


_FIRST_OF_OTHERS: Final = 2
_LISTED: Final = 6


def _listed(uris: list[str]) -> str:
    return ", ".join(f"{index}={uri}" for index, uri in enumerate(uris[_FIRST_OF_OTHERS:_LISTED], _FIRST_OF_OTHERS))


async def _started(client: Client) -> str:
    """When the server says that it started; empty where it does not."""
    node = ua.NodeId(ua.Int32(ObjectIds.Server_ServerStatus_StartTime))
    (value,) = await client.uaclient.read_attributes([node], AttributeIds.Value)
    moment = value.Value.Value if value.Value is not None else None
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if isinstance(moment, dt.datetime) else ""


def _save(memory: Memory) -> None:
    try:
        memory.save()
    except OSError as exc:
        structlog.get_logger().warning("tag_memory_not_saved", path=str(memory.path), reason=str(exc))
