"""One OPC UA subscription on one session: opened, listened to, judged by the age of what it last published.

Publish responses are taken as they come: no queue and no task per notification between the bytes and the sink, so
nothing can overflow here, and a response that makes no sense ends the connection instead of being skipped.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import numpy as np
import structlog
from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua import uaerrors
from asyncua.ua.ua_binary import struct_from_binary
from numpy.typing import NDArray

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.ports import TagSink
from edgeqc.records import NS_PER_MS, NS_PER_S, Quality, TagFault, TagRemark
from edgeqc.settings import OpcuaTagSource
from edgeqc.tags.items import FASTEST_MS, MonitoredItems, listed
from edgeqc.tags.memory import Memory
from edgeqc.tags.publication import ARRAY, KIND_NAMES, Publication, read_publication
from edgeqc.tags.reading import Readings

RETRY_S: Final = 10.0
"""A tag that the server refuses is asked for again: a program that is changed in the PLC brings it back."""


class Subscription:
    """From `open` to the end of the session."""

    def __init__(self, settings: OpcuaTagSource, readings: Readings, sink: TagSink, memory: Memory) -> None:
        """`memory` says of what type each tag was, and learns it for those it does not know."""
        self.revised: dict[str, float] = {}
        """What the server made of the publishing interval and keep-alive that were asked for."""
        self._settings = settings
        self._readings = readings
        self._sink = sink
        self._memory = memory
        self._published_ns = time.monotonic_ns()
        self._silence_ms = settings.stale_ms
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pumps = _PUBLISH_REQUESTS
        self._items = MonitoredItems(settings, readings, sink)
        self._kinds = np.array([_KINDS.get(memory.kinds.get(name, ""), 0) for name in readings.names], np.int32)
        """Type of each tag's value as remembered; 0 = not known yet."""
        self._changed: dict[int, str] = {}
        self._lost_at_ns = 0

    @property
    def refused(self) -> dict[int, str]:
        """Tags (by place) that the server will not let us monitor, and its word for why."""
        return self._items.refused

    async def open(self, client: Client, nodes: list[ua.NodeId | str]) -> None:
        """Subscribe to every tag. Raises whatever asyncua raises."""
        settings, session = self._settings, client.uaclient.session
        # what the connection before had found is found again if it still holds
        self._tell_types()
        self._sink.remark(settings.name, TagRemark.SAMPLES_LOST, "")
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
        silent_ms = publishing_ms * max(keep_alives, 1)
        slow = f"it may say nothing for {silent_ms:g} ms, and tags are BAD after {settings.stale_ms:g} (stale_ms)"
        self._sink.remark(settings.name, TagRemark.SLOW, slow if silent_ms > settings.stale_ms else "")
        self._silence_ms = max(settings.stale_ms, _PATIENCE * silent_ms)
        await self._items.ask(client, int(made.SubscriptionId), nodes)

    async def watch(self, client: Client) -> None:
        """Take what is published; raise PeerError when the connection breaks or is silent for too long."""

        async def on_lost(exc: Exception) -> None:
            self._fail(f"connection lost: {exc}")

        client.connection_lost_callback = on_lost
        self._published_ns = time.monotonic_ns()  # how long it took to open says nothing
        name = self._settings.name
        pumps = [
            asyncio.create_task(self._pump(client), name=f"tags {name} publish {number}")
            for number in range(_PUBLISH_REQUESTS)
        ]
        retry_ns = time.monotonic_ns() + int(RETRY_S * NS_PER_S)
        try:
            while True:
                silent_ms = (time.monotonic_ns() - self._published_ns) / NS_PER_MS
                if silent_ms >= self._silence_ms:
                    raise PeerTimeoutError(name, f"no sign of life for {silent_ms:.0f} ms")
                wait_s = min((self._silence_ms - silent_ms) / 1000, _LOOK_S)
                done, _ = await asyncio.wait([self._failed], timeout=wait_s)
                if done:
                    raise PeerError(name, self._failed.result())
                self._look_after()
                if self.refused and time.monotonic_ns() >= retry_ns:
                    retry_ns = time.monotonic_ns() + int(RETRY_S * NS_PER_S)
                    await self._items.ask_again(client, timeout_s=self._silence_ms / 1000)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, client: Client) -> None:
        """Keep one publish request with the server. The silence rule is its timeout."""
        acknowledged: list[ua.SubscriptionAcknowledgement] = []
        try:
            while True:
                await self._sink.room()
                try:
                    told = await _publish(client, acknowledged)
                except uaerrors.BadTooManyPublishRequests:
                    self._pumps -= 1
                    if self._pumps:
                        return  # the server has enough with the others
                    raise
                except uaerrors.BadTimeout:
                    continue  # the server gave the request back unused
                self._take(told)
                acknowledged = []
                if told.to_acknowledge:
                    acknowledged = [
                        ua.SubscriptionAcknowledgement(
                            SubscriptionId=ua.IntegerId(told.subscription), SequenceNumber=ua.Counter(told.sequence)
                        )
                    ]
        except PeerError as exc:
            self._fail(exc.reason)
        except Exception as exc:  # noqa: BLE001 - root of the task; told to the source's task
            self._fail(f"{type(exc).__name__}: {exc}")

    def _take(self, told: Publication) -> None:
        self._published_ns = now_ns = time.monotonic_ns()
        name = self._settings.name
        self._sink.alive(name, now_ns)
        if told.ended:
            raise PeerError(name, f"subscription ended: {told.ended}")
        handles = np.array(told.handles, np.int64)
        if len(handles) and handles.max() >= len(self._readings.names):
            raise PeerError(name, f"a value for item {handles.max()} that was not asked for")
        places = handles.astype(np.int32)
        statuses = np.array(told.statuses, np.uint32)
        if (statuses & _OVERFLOW == _OVERFLOW).any():
            self._overflowed(now_ns, places[statuses & _OVERFLOW == _OVERFLOW])
        faults = np.zeros(len(places), np.uint8)
        faults[np.isin(statuses >> 16, _GONE)] = TagFault.REFUSED
        qualities = _SEVERITY[statuses >> 30]
        raw = self._numbers(told)
        odd = self._other_type(places, np.array(told.kinds, np.int32))
        qualities[odd & (qualities == Quality.GOOD)] = Quality.UNCERTAIN
        faults[odd] = TagFault.TYPE
        # what changed less than a sampling interval before it was sent may be in the next response
        sampling_ns = int(max(self._settings.sampling_ms, FASTEST_MS) * NS_PER_MS)
        complete_to_ns = 0 if told.more else now_ns - sampling_ns
        self._sink.take(
            self._readings.batch(
                places,
                raw,
                received_ns=now_ns,
                qualities=qualities,
                faults=faults,
                source_ns=np.array(told.source_ns, np.int64),
                sent_ns=told.sent_ns,
                complete_to_ns=complete_to_ns,
            )
        )

    def _numbers(self, told: Publication) -> NDArray[np.float64]:
        values: list[Any] = told.values
        if any(kind == 0 or kind > _LAST_NUMBER for kind in told.kinds):
            values = [
                value if 0 < kind <= _LAST_NUMBER else self._readings.number(place, value)
                for place, value, kind in zip(told.handles, values, told.kinds, strict=True)
            ]
        return np.array(values, np.float64)

    def _other_type(self, places: NDArray[np.int32], kinds: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which samples are of another type than their tag was; the types of tags that are new are learnt."""
        known = self._kinds[places]
        new = (known == 0) & (kinds != 0)
        if new.any():
            self._kinds[places[new]] = kinds[new]
            for place in set(places[new].tolist()):
                self._memory.kinds[self._readings.names[place]] = _kind_name(int(self._kinds[place]))
            self._save()
            known = self._kinds[places]
        other: NDArray[np.bool_] = (kinds != known) & (kinds != 0)
        was_odd = len(self._changed)
        for index in np.flatnonzero(other).tolist():
            place = int(places[index])
            self._changed[place] = (
                f"{self._readings.names[place]}: {_kind_name(int(kinds[index]))}, was {_kind_name(int(known[index]))}"
            )
        if len(self._changed) != was_odd:
            self._tell_types()
        if self._changed:
            for place in set(places[(kinds == known) & (kinds != 0)].tolist()) & self._changed.keys():
                del self._changed[place]
                self._tell_types()
        return other

    def _tell_types(self) -> None:
        self._sink.remark(self._settings.name, TagRemark.TYPE, listed(sorted(self._changed.values())))

    def _overflowed(self, now_ns: int, places: NDArray[np.int32]) -> None:
        self._lost_at_ns = now_ns
        named = sorted({self._readings.names[place] for place in places.tolist()})
        self._sink.remark(self._settings.name, TagRemark.SAMPLES_LOST, listed(named))

    def _look_after(self) -> None:
        """Once a second: take back what no longer holds."""
        if self._lost_at_ns and time.monotonic_ns() - self._lost_at_ns > _OVERFLOW_STANDS_NS:
            self._lost_at_ns = 0
            self._sink.remark(self._settings.name, TagRemark.SAMPLES_LOST, "")
        if self._memory.forgotten and (self._changed or self._memory.kinds):
            raise PeerError(self._settings.name, "what was remembered of the server was removed: it is read anew")

    def _save(self) -> None:
        try:
            self._memory.save()
        except OSError as exc:
            structlog.get_logger().warning(
                "tag_memory_not_saved", path=str(self._memory.path), reason=str(exc), source=self._settings.name
            )

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)


_SEVERITY: Final = np.array([Quality.GOOD, Quality.UNCERTAIN, Quality.BAD, Quality.BAD], np.uint8)
"""By the two top bits of a status code (OPC 10000-4, 7.39.1; 11 is reserved, to be taken as bad)."""
_OVERFLOW: Final = 0x0480
"""Info type DataValue with the overflow bit (OPC 10000-4, table 180)."""
_OVERFLOW_STANDS_NS: Final = 10 * NS_PER_S
_GONE: Final = (0x8033, 0x8034)
"""BadNodeIdInvalid, BadNodeIdUnknown: the tag was taken out of the server while we listened."""
_KEEP_ALIVES_PER_SILENCE: Final = 3
"""So that two keep-alives may be late before a living server is taken for dead."""
_PATIENCE: Final = 1.5
"""Times the keep-alive period that the server insists on, where that is over stale_ms."""
_LIFETIME_COUNT: Final = 1000
"""Publishing intervals after which the server forgets a dead client's subscription; at least 3 keep-alives."""
_PUBLISH_REQUESTS: Final = 3
"""With the server at a time, so that a backlog goes out at once and not one response per round trip (node-opcua)."""
_MAX_NOTIFICATIONS: Final = 2000
"""Per publish response: taking them in holds the loop for about 10 ms."""
_LOOK_S: Final = 1.0
_LAST_NUMBER: Final = 11
"""Built-in types 1 to 11 are bool, integers and floats."""
_KINDS: Final = {name: number for number, name in KIND_NAMES.items()} | {
    f"{name}[]": number + ARRAY for number, name in KIND_NAMES.items()
}


def _kind_name(kind: int) -> str:
    return KIND_NAMES.get(kind & ~ARRAY, f"type {kind & ~ARRAY}") + ("[]" if kind & ARRAY else "")


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


async def _publish(client: Client, acknowledged: list[ua.SubscriptionAcknowledgement]) -> Publication:
    """Hand the server one publish request, with no timeout of its own, and read its response."""
    protocol = client.uaclient.protocol
    if protocol is None:
        raise ConnectionError("closed")
    request = ua.PublishRequest()
    request.Parameters.SubscriptionAcknowledgements = acknowledged
    return read_publication(await protocol.send_request(request, timeout=0))
