"""The OPC UA server for SCADA and MES: asyncua below, in a process of its own, its clients strangers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from asyncua import ua
from asyncua.common.connection import TransportLimits
from asyncua.common.node import Node
from asyncua.server.server import Server
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from edgeqc import __version__
from edgeqc.errors import EdgeqcError, PeerError
from edgeqc.loading import paths
from edgeqc.plc.opcua_bounds import bound_decoding
from edgeqc.plc.opcua_session import own_identity
from edgeqc.server.doorkeeper import (
    ACTIVATION_S,
    CHUNK_BYTES,
    MESSAGE_BYTES,
    PENDING,
    Doorkeeper,
    GuardedServer,
    Ruleset,
    caller,
    certificate_check,
)
from edgeqc.server.nodes import (
    NAMESPACE,
    Variable,
    as_json,
    box_variables,
    data_value,
    no_value,
    station_variables,
    tag_values,
)
from edgeqc.server.picture import RESULTS, Picture
from edgeqc.server.process import LOOK_S, Desk
from edgeqc.settings import OpcuaEndpoint, OpcuaSecurity, OpcuaServerSettings, Role, Settings
from edgeqc.shm.tagtable import FILE_NAME, TagTable

_SUBSCRIPTIONS_PER_CLIENT: Final = 4
_QUEUE: Final = 100
_UNACKED: Final = 200
_SESSION_MS: Final = 120_000
_APPLICATION: Final = "edgeqc"


async def serve_opcua(settings: Settings, desk: Desk) -> None:
    """Serve until SIGTERM. PeerError where the port, the certificate or a user's folder cannot be had."""
    chosen = settings.server.opcua
    if chosen is None:
        raise EdgeqcError("server.opcua is not configured")
    logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)
    bound_decoding()
    doorkeeper = Doorkeeper(chosen, lambda name, who, reason: desk.refused(name, user=who, reason=reason))
    server = await _made(chosen, doorkeeper, desk)
    space = await AddressSpace.make(server, settings, desk, doorkeeper)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    listener = await _listen(server, chosen, desk)
    try:
        desk.ready(listener.port)
        if chosen.security is OpcuaSecurity.NONE:
            desk.log.warning(
                "opcua_server_unprotected",
                port=listener.port,
                meaning="anyone on this network can read along and forge; use security: sign_encrypt",
            )
        gc.collect()
        gc.freeze()
        while not stop.is_set():
            await space.show(desk.look())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await stop.wait()
    finally:
        with contextlib.suppress(Exception):  # a client in the middle of something must not keep us
            async with asyncio.timeout(_STOP_S):
                await server.stop()
        space.close()


class AddressSpace:
    """The nodes, and the values that were last written to them."""

    def __init__(self, server: Server, settings: Settings, desk: Desk, doorkeeper: Doorkeeper) -> None:
        """Not for callers: see `make`."""
        self._server, self._settings, self._desk, self._doorkeeper = server, settings, desk, doorkeeper
        self._space = 0
        self._box = box_variables(version=__version__, config_digest=desk.config_digest)
        self._station = station_variables()
        self._shown: dict[str, ua.DataValue] = {}
        self._table: TagTable | None = None
        self._run_dir = paths(settings)[1]

    @classmethod
    async def make(cls, server: Server, settings: Settings, desk: Desk, doorkeeper: Doorkeeper) -> AddressSpace:
        """Make all nodes."""
        self = cls(server, settings, desk, doorkeeper)
        self._space = await server.register_namespace(NAMESPACE)
        root = await self._object(server.nodes.objects, "Edgeqc", "edgeqc")
        box = await self._object(root, "Box", "Box")
        await self._variables(box, "Box", self._box)
        await self._reset_method(box, "Box", None)
        stations = await self._object(root, "Stations", "Stations")
        for station in settings.stations:
            node = await self._object(stations, f"Station.{station.name}", station.name)
            await self._variables(node, f"Station.{station.name}", self._station)
            await self._reset_method(node, f"Station.{station.name}", station.name)
            await self._results_method(node, station.name)
        if settings.tags:
            folder = await self._object(root, "Tags", "Tags")
            for source in settings.tags:
                for tag in source.tags:
                    name = f"Tag.{tag.name}"
                    await folder.add_variable(self._id(name), self._named(tag.name), 0.0, ua.VariantType.Double)
                    await self._write(name, no_value())
        return self

    async def show(self, picture: Picture) -> None:
        """Write what has changed."""
        for variable in self._box:
            await self._write(f"Box.{variable.name}", data_value(variable, picture))
        for station in picture.stations:
            for each in self._station:
                await self._write(f"Station.{station.name}.{each.name}", data_value(each, station))
        table = self._tags()
        if table is not None:
            for name, value in tag_values(table, time.monotonic_ns()):
                await self._write(name, value)

    def close(self) -> None:
        """Forget the tags."""
        if self._table is not None:
            self._table.close()

    async def _write(self, name: str, value: ua.DataValue) -> None:
        before = self._shown.get(name)
        if before is not None and _same(before, value):
            return
        self._shown[name] = value
        await self._server.write_attribute_value(self._id(name), value)

    def _tags(self) -> TagTable | None:
        if self._table is None and self._settings.tags:
            with contextlib.suppress(OSError, EdgeqcError):  # the watch process has not made it yet
                self._table = TagTable.attach(self._run_dir / FILE_NAME)
        return self._table

    async def _object(self, parent: Node, name: str, shown: str) -> Node:
        return await parent.add_object(self._id(name), self._named(shown))

    async def _variables(self, parent: Node, prefix: str, variables: tuple[Variable[Any], ...]) -> None:
        folders: dict[str, Node] = {"": parent}
        for variable in variables:
            group, _, shown = variable.name.rpartition(".")
            if group not in folders:
                folders[group] = await self._object(parent, f"{prefix}.{group}", group)
            node = await folders[group].add_variable(
                self._id(f"{prefix}.{variable.name}"),
                self._named(shown),
                ua.Variant(_FIRST[variable.type] if not variable.array else [], variable.type, is_array=variable.array),
                variable.type,
            )
            await node.write_attribute(
                AttributeIds.Description, ua.DataValue(ua.Variant(ua.LocalizedText(variable.what)))
            )

    async def _reset_method(self, parent: Node, prefix: str, station: str | None) -> None:
        async def reset(_parent: ua.NodeId) -> ua.StatusCode:
            user = caller()
            if self._doorkeeper.role_of(user) is not Role.OPERATOR:
                return ua.StatusCode(ua.UInt32(StatusCodes.BadUserAccessDenied))
            who = user.name if user is not None and user.name else "anonymous"
            done = self._desk.reset(who, None if station is None else frozenset({station}))
            await self.show(self._desk.picture)
            return ua.StatusCode(ua.UInt32(StatusCodes.Good if done else StatusCodes.BadResourceUnavailable))

        await parent.add_method(self._id(f"{prefix}.ResetCounters"), self._named("ResetCounters"), reset, [], [])

    async def _results_method(self, parent: Node, station: str) -> None:
        async def results(_parent: ua.NodeId, count: ua.Variant) -> list[ua.Variant] | ua.StatusCode:
            asked = count.Value
            if not isinstance(asked, int) or not 1 <= asked <= RESULTS:
                return ua.StatusCode(ua.UInt32(StatusCodes.BadOutOfRange))
            found = self._desk.observer.results(station)[-asked:]
            texts = [json.dumps(as_json(result)) for result in reversed(found)]
            return [ua.Variant(texts, ua.VariantType.String, is_array=True)]

        asked = ua.Argument(
            Name="Count",
            DataType=ua.NodeId(ua.Int32(ObjectIds.UInt32)),
            ValueRank=ua.Int32(-1),
            Description=ua.LocalizedText(f"1 to {RESULTS}"),
        )
        given = ua.Argument(
            Name="Results",
            DataType=ua.NodeId(ua.Int32(ObjectIds.String)),
            ValueRank=ua.Int32(1),
            Description=ua.LocalizedText("one JSON object per part, newest first"),
        )
        await parent.add_method(
            self._id(f"Station.{station}.GetResults"), self._named("GetResults"), results, [asked], [given]
        )

    def _id(self, name: str) -> ua.NodeId:
        return ua.NodeId(ua.String(name), ua.Int16(self._space))

    def _named(self, name: str) -> ua.QualifiedName:
        return ua.QualifiedName(ua.String(name), ua.UInt16(self._space))


_STOP_S: Final = 2.0
_FIRST: Final[dict[ua.VariantType, Any]] = {
    ua.VariantType.String: "",
    ua.VariantType.DateTime: datetime(1970, 1, 1, tzinfo=UTC),
    ua.VariantType.Boolean: False,
    ua.VariantType.Double: 0.0,
    ua.VariantType.UInt64: 0,
    ua.VariantType.UInt16: 0,
}


def _same(before: ua.DataValue, after: ua.DataValue) -> bool:
    """Would a client see no difference? NaN is itself here, and the server's own stamps are not compared."""
    return (before.Value == after.Value or (before.Value != before.Value and after.Value != after.Value)) and (
        before.StatusCode,
        before.SourceTimestamp,
    ) == (after.StatusCode, after.SourceTimestamp)


async def _made(chosen: OpcuaServerSettings, doorkeeper: Doorkeeper, desk: Desk) -> Server:
    """A server that nobody can reach yet, with its bounds set."""
    server = Server(user_manager=doorkeeper)  # type: ignore[arg-type]  # asyncua wants its class, uses one method
    await server.init()
    inner = server.iserver
    inner.max_connections = chosen.connections
    inner.max_pending_messages_per_connection = PENDING
    inner.max_pending_activation_seconds = ACTIVATION_S
    inner.max_subscriptions = chosen.connections * _SUBSCRIPTIONS_PER_CLIENT
    inner.max_monitored_item_queue_size = _QUEUE
    inner.max_unacked_messages_per_subscription = _UNACKED
    inner.max_session_timeout_ms = _SESSION_MS
    server.limits = TransportLimits(
        max_recv_buffer=CHUNK_BYTES,
        max_send_buffer=CHUNK_BYTES,
        max_chunk_count=MESSAGE_BYTES // CHUNK_BYTES + 1,
        max_message_size=MESSAGE_BYTES,
    )
    server.set_server_name(_APPLICATION)
    host = f"[{chosen.bind}]" if ":" in chosen.bind else chosen.bind
    server.set_endpoint(f"opc.tcp://{host}:{chosen.port}/edgeqc")
    tokens: list[type] = [ua.UserNameIdentityToken] if chosen.users else []
    if chosen.anonymous:
        tokens.append(ua.AnonymousIdentityToken)
    server.set_identity_tokens(tokens)
    identity = own_identity(
        OpcuaEndpoint(url="opc.tcp://own", certificate=chosen.certificate, private_key=chosen.private_key),
        peer="server.opcua",
        state_dir=desk.state_dir,
    )
    await server.set_application_uri(identity.application_uri)
    await server.set_build_info("urn:edgeqc", "edgeqc", _APPLICATION, __version__, "", datetime.now(UTC))
    if chosen.security is OpcuaSecurity.NONE:
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity], permission_ruleset=Ruleset())
        return server
    await server.load_certificate(str(identity.certificate))
    await server.load_private_key(str(identity.private_key))
    server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt], permission_ruleset=Ruleset())
    server.set_certificate_validator(await _checked(certificate_check(chosen.clients), chosen.clients))
    return server


async def _checked(making: Any, clients: Path | None) -> Callable[[Any, Any], Any]:
    try:
        check: Callable[[Any, Any], Any] = await making
    except (OSError, ValueError) as exc:
        raise PeerError("server.opcua", f"clients: {clients}: {exc}") from exc
    return check


async def _listen(server: Server, chosen: OpcuaServerSettings, desk: Desk) -> GuardedServer:
    """Start as `Server.start` does, but with a listener that looks at who comes. PeerError without the port."""
    await server._setup_server_nodes()  # noqa: SLF001 - Server.start makes its own listener, there is no hook for another
    await server.iserver.start()
    listener = GuardedServer(server.iserver, chosen.bind, chosen.port, server.limits)
    listener.listener, listener.tell = chosen, desk.on_client
    listener.set_policies(server._policies)  # noqa: SLF001 - as above
    server.bserver = listener
    try:
        await listener.start()
    except OSError as exc:
        await server.iserver.stop()
        raise PeerError(f"{chosen.bind}:{chosen.port}", f"cannot listen here: {exc.strerror or exc}") from exc
    return listener
