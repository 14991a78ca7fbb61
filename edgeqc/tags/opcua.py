"""Tags by OPC UA subscription: asyncua below, a fresh client per connection, health by the age of what was published.

Publish responses are taken as they come: no queue and no task per notification between asyncua's decoder and the sink,
so nothing can overflow here, and a response that cannot be decoded ends the connection instead of being skipped.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import time
from pathlib import Path
from typing import Final

import structlog
from asyncua import ua
from asyncua.client.client import Client
from asyncua.client.ua_session import UaSession
from asyncua.ua import uaerrors
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.ua_binary import struct_from_binary

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import opcua_nodes, opcua_session
from edgeqc.ports import TagSink
from edgeqc.records import NS_PER_MS, Quality
from edgeqc.settings import OpcuaTagSource
from edgeqc.tags.connection import keep_connected
from edgeqc.tags.reading import Reading

CONNECT_TIMEOUT_S: Final = 5.0
"""Session and subscription of 1000 nodes took 0.3 s against node-opcua; a PLC may be ten times slower."""


class OpcuaTags:
    """One OPC UA server's tags."""

    def __init__(self, settings: OpcuaTagSource, *, first_index: int, sink: TagSink, state_dir: Path) -> None:
        """Connect in `run`, not here; `state_dir` keeps our certificate."""
        self._settings = settings
        self._first = first_index
        self._sink = sink
        self._state_dir = state_dir
        self._readings = [Reading.of(tag) for tag in settings.tags]
        self._log = structlog.get_logger().bind(source=settings.name)

    async def run(self) -> None:
        """Feed the sink until cancelled."""
        await keep_connected(self._settings.name, self._sink, self._serve)

    async def _serve(self) -> None:
        """One connection, from connect to its end."""
        name = self._settings.name
        client = await opcua_session.connect(
            self._settings, peer=name, state_dir=self._state_dir, timeout_s=CONNECT_TIMEOUT_S
        )
        try:
            subscription = _Subscription(self._settings, self._first, self._readings, self._sink)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    silence_ms = await subscription.open(client)
            except Exception as exc:
                raise opcua_session.peer_error(name, exc) from exc
            self._sink.back(name)
            self._log.info("tag_source_up", refused=len(subscription.refused), **subscription.revised)
            if subscription.refused:
                self._log.warning("tags_refused", tags=subscription.refused)
            await subscription.watch(client, silence_ms)
        finally:
            await opcua_session.close(client)


class _Subscription:
    """One subscription on one session."""

    def __init__(self, settings: OpcuaTagSource, first_index: int, readings: list[Reading], sink: TagSink) -> None:
        self.refused: dict[str, str] = {}
        """Tags that the server will not let us monitor, and its word for why."""
        self.revised: dict[str, float] = {}
        """What the server made of the publishing interval and keep-alive that were asked for."""
        self._settings = settings
        self._first = first_index
        self._readings = readings
        self._sink = sink
        self._published_ns = time.monotonic_ns()
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._overflows = 0
        self._pumps = _PUBLISH_REQUESTS

    async def open(self, client: Client) -> float:
        """Subscribe to every tag; give the longest silence (ms) that a living server may keep."""
        settings, session = self._settings, client.uaclient.session
        asked = ua.CreateSubscriptionParameters(
            RequestedPublishingInterval=ua.Duration(settings.publishing_ms),
            RequestedMaxKeepAliveCount=ua.UInt32(_keep_alives(settings.stale_ms, settings.publishing_ms)),
            RequestedLifetimeCount=ua.UInt32(_LIFETIME_COUNT),
            MaxNotificationsPerPublish=ua.UInt32(_MAX_NOTIFICATIONS),
            PublishingEnabled=True,
        )
        made = await _create_subscription(client, asked)
        publishing_ms, keep_alives = float(made.RevisedPublishingInterval), int(made.RevisedMaxKeepAliveCount)
        wanted = _keep_alives(settings.stale_ms, publishing_ms)
        if keep_alives > wanted:
            changed = await session.update_subscription(
                ua.ModifySubscriptionParameters(
                    SubscriptionId=made.SubscriptionId,
                    RequestedPublishingInterval=made.RevisedPublishingInterval,
                    RequestedLifetimeCount=made.RevisedLifetimeCount,
                    RequestedMaxKeepAliveCount=ua.UInt32(wanted),
                    MaxNotificationsPerPublish=ua.UInt32(_MAX_NOTIFICATIONS),
                )
            )
            publishing_ms = float(changed.RevisedPublishingInterval)
            keep_alives = int(changed.RevisedMaxKeepAliveCount)
        self.revised = {"publishing_ms": publishing_ms, "keep_alive_ms": publishing_ms * keep_alives}
        await self._monitor(client, made.SubscriptionId)
        return max(settings.stale_ms, _PATIENCE * publishing_ms * max(keep_alives, 1))

    async def watch(self, client: Client, silence_ms: float) -> None:
        """Take what is published; raise PeerError when the connection breaks or is silent for `silence_ms`."""

        async def on_lost(exc: Exception) -> None:
            self._fail(f"connection lost: {exc}")

        client.connection_lost_callback = on_lost
        name = self._settings.name
        pumps = [
            asyncio.create_task(self._pump(client.uaclient.session), name=f"tags {name} publish {number}")
            for number in range(_PUBLISH_REQUESTS)
        ]
        try:
            while True:
                silent_ms = (time.monotonic_ns() - self._published_ns) / NS_PER_MS
                if silent_ms >= silence_ms:
                    raise PeerTimeoutError(name, f"no sign of life for {silent_ms:.0f} ms")
                done, _ = await asyncio.wait([self._failed], timeout=(silence_ms - silent_ms) / 1000)
                if done:
                    raise PeerError(name, self._failed.result())
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, session: UaSession) -> None:
        """Keep one publish request with the server. The silence rule is its timeout."""
        acknowledged: list[ua.SubscriptionAcknowledgement] = []
        try:
            while True:
                try:
                    response = await session.publish(acknowledged)
                except uaerrors.BadTooManyPublishRequests:
                    self._pumps -= 1
                    if self._pumps:
                        return  # the server has enough with the others
                    raise
                except uaerrors.BadTimeout:
                    continue  # the server gave the request back unused
                acknowledged = []
                response.ResponseHeader.ServiceResult.check()
                self._take_published(response.Parameters)
                message = response.Parameters.NotificationMessage
                if message.NotificationData:
                    acknowledged = [
                        ua.SubscriptionAcknowledgement(
                            SubscriptionId=response.Parameters.SubscriptionId, SequenceNumber=message.SequenceNumber
                        )
                    ]
        except PeerError as exc:
            self._fail(exc.reason)
        except Exception as exc:  # noqa: BLE001 - root of the task; told to the source's task
            self._fail(f"{type(exc).__name__}: {exc}")

    async def _monitor(self, client: Client, subscription_id: ua.IntegerId) -> None:
        settings = self._settings
        # what a pause shorter than stale_ms piles up must fit, else samples are lost in the server
        queue = math.ceil(settings.stale_ms / max(settings.sampling_ms, _FASTEST_MS))
        asked, places = [], []
        nodes = await opcua_nodes.resolve(client, [tag.node or "" for tag in settings.tags])
        for place, node in enumerate(nodes):
            if isinstance(node, str):
                self._refuse(place, node)
                continue
            places.append(place)
            asked.append(
                ua.MonitoredItemCreateRequest(
                    ItemToMonitor=ua.ReadValueId(NodeId=node, AttributeId=AttributeIds.Value),
                    MonitoringMode=ua.MonitoringMode.Reporting,
                    RequestedParameters=ua.MonitoringParameters(
                        ClientHandle=ua.IntegerId(place),
                        SamplingInterval=ua.Duration(settings.sampling_ms),
                        QueueSize=ua.UInt32(min(queue, _LONGEST_QUEUE)),
                        DiscardOldest=True,
                    ),
                )
            )
        for start in range(0, len(asked), _ITEMS_PER_CALL):
            chunk = places[start : start + _ITEMS_PER_CALL]
            results = await client.uaclient.session.create_monitored_items(
                ua.CreateMonitoredItemsParameters(
                    SubscriptionId=subscription_id,
                    TimestampsToReturn=ua.TimestampsToReturn.Both,
                    ItemsToCreate=asked[start : start + _ITEMS_PER_CALL],
                )
            )
            if len(results) != len(chunk):
                raise PeerError(settings.name, f"{len(results)} answers to {len(chunk)} monitored items")
            for place, result in zip(chunk, results, strict=True):
                if result.StatusCode.is_bad():
                    self._refuse(place, result.StatusCode.name)

    def _refuse(self, place: int, reason: str) -> None:
        reading = self._readings[place]
        self.refused[reading.name] = reason[:255]
        self._sink.put(self._first + place, reading.bad(time.monotonic_ns()))

    def _take_published(self, published: ua.PublishResult) -> None:
        self._published_ns = now_ns = time.monotonic_ns()
        self._sink.alive(self._settings.name, now_ns)
        for notification in published.NotificationMessage.NotificationData or ():
            if isinstance(notification, ua.DataChangeNotification):
                for item in notification.MonitoredItems:
                    self._take(item.ClientHandle, item.Value, now_ns)
            elif isinstance(notification, ua.StatusChangeNotification):
                raise PeerError(self._settings.name, f"subscription ended: {notification.Status.name}")

    def _take(self, place: int, value: ua.DataValue, now_ns: int) -> None:
        if place >= len(self._readings):
            raise PeerError(self._settings.name, f"a value for item {place} that was not asked for")
        status = Quality.GOOD if value.StatusCode is None else _SEVERITY[value.StatusCode.value >> 30]
        if value.StatusCode is not None and value.StatusCode.value & _OVERFLOW == _OVERFLOW:
            self._overflows += 1
            if self._overflows == 1:
                structlog.get_logger().warning(
                    "tag_samples_lost",
                    source=self._settings.name,
                    tag=self._readings[place].name,
                    meaning="the server's queue was full; values change faster than they are published",
                )
        at = value.SourceTimestamp or value.ServerTimestamp
        source_ts = at.replace(tzinfo=dt.UTC).timestamp() if at is not None else 0.0
        raw = None if value.Value is None else value.Value.Value
        self._sink.put(self._first + place, self._readings[place].value(raw, status, source_ts, now_ns))

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)


_SEVERITY: Final = (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD, Quality.BAD)
"""By the two top bits of a status code (OPC 10000-4, 7.39.1; 11 is reserved, to be taken as bad)."""
_OVERFLOW: Final = 0x0480
"""Info type DataValue with the overflow bit (OPC 10000-4, table 180)."""
_KEEP_ALIVES_PER_SILENCE: Final = 3
"""So that two keep-alives may be late before a living server is taken for dead."""
_PATIENCE: Final = 1.5
"""Times the keep-alive period that the server insists on, where that is over stale_ms."""
_LIFETIME_COUNT: Final = 1000
"""Publishing intervals after which the server forgets a dead client's subscription; at least 3 keep-alives."""
_PUBLISH_REQUESTS: Final = 3
"""With the server at a time, so that a backlog goes out at once and not one response per round trip (node-opcua)."""
_MAX_NOTIFICATIONS: Final = 2000
"""Per publish response: decoding them holds the loop for about 30 ms."""
_ITEMS_PER_CALL: Final = 500
"""Small PLCs limit operations per call (OperationLimits.MaxMonitoredItemsPerCall), typically at 500 to 1000."""
_LONGEST_QUEUE: Final = 100
_FASTEST_MS: Final = 10.0


def _keep_alives(stale_ms: float, publishing_ms: float) -> int:
    return max(1, int(stale_ms / _KEEP_ALIVES_PER_SILENCE / max(publishing_ms, 1.0)))


async def _create_subscription(client: Client, asked: ua.CreateSubscriptionParameters) -> ua.CreateSubscriptionResult:
    """Create it past `UaSession.create_subscription`.

    That one starts asyncua's own publish loop: one request at a time, and a notification that it cannot decode is lost.
    """
    protocol = client.uaclient.protocol
    if protocol is None:
        raise ConnectionError("closed")
    reply = await protocol.send_request(ua.CreateSubscriptionRequest(Parameters=asked))
    response = struct_from_binary(ua.CreateSubscriptionResponse, reply)
    response.ResponseHeader.ServiceResult.check()
    result: ua.CreateSubscriptionResult = response.Parameters
    return result
