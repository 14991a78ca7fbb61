"""The tags of an OPC UA subscription as monitored items: how each is asked for, which are refused, and asking again."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Final

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua import uaerrors
from asyncua.ua.attribute_ids import AttributeIds

from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.ports import TagSink
from edgeqc.records import TagRemark
from edgeqc.settings import OpcuaTagSource
from edgeqc.tags.reading import Readings

FASTEST_MS: Final = 10.0


class MonitoredItems:
    """One subscription's; the client handle of each is the place of its tag."""

    def __init__(self, settings: OpcuaTagSource, readings: Readings, sink: TagSink) -> None:
        """Nothing is asked for before `ask`; `sink` is told what is refused."""
        self.refused: dict[int, str] = {}
        """Tags (by place) that the server will not let us monitor, and its word for why."""
        self._settings = settings
        self._readings = readings
        self._sink = sink
        self._id = 0
        self._nodes: list[ua.NodeId | str] = []

    async def ask(self, client: Client, subscription: int, nodes: list[ua.NodeId | str]) -> None:
        """Ask for every tag; a text instead of a node says why there is none. Raises whatever asyncua raises."""
        self._id, self._nodes = subscription, nodes
        await self._monitor(client, range(len(nodes)))

    async def ask_again(self, client: Client, *, timeout_s: float) -> None:
        """Try the refused tags once more; one that has no namespace yet waits for the next connection. PeerError."""
        again = [place for place in self.refused if not isinstance(self._nodes[place], str)]
        if not again:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._monitor(client, again)
        except TimeoutError as exc:
            raise PeerTimeoutError(self._settings.name, "no answer to a request for monitored items") from exc
        except (uaerrors.UaError, OSError) as exc:
            raise PeerError(self._settings.name, f"{type(exc).__name__}: {exc}") from exc

    async def _monitor(self, client: Client, wanted: range | list[int]) -> None:
        """Ask for these tags; what is refused is told, as BAD samples and as a remark."""
        places: list[int] = []
        for place in wanted:
            node = self._nodes[place]
            if isinstance(node, str):
                self.refused[place] = node[:255]
            else:
                places.append(place)
        for start in range(0, len(places), _ITEMS_PER_CALL):
            chunk = places[start : start + _ITEMS_PER_CALL]
            unfiltered = await self._create(client, chunk, filtered=True)
            if unfiltered:
                await self._create(client, unfiltered, filtered=False)
        if self.refused:
            self._sink.take(self._readings.refused(list(self.refused), time.monotonic_ns()))
        self._tell_refused()

    async def _create(self, client: Client, places: list[int], *, filtered: bool) -> list[int]:
        """Make monitored items; give those whose dead band the server does not want to apply."""
        results = await client.uaclient.session.create_monitored_items(
            ua.CreateMonitoredItemsParameters(
                SubscriptionId=ua.IntegerId(self._id),
                TimestampsToReturn=ua.TimestampsToReturn.Both,
                ItemsToCreate=[self._request(place, filtered=filtered) for place in places],
            )
        )
        if len(results) != len(places):
            raise PeerError(self._settings.name, f"{len(results)} answers to {len(places)} monitored items")
        unfiltered: list[int] = []
        for place, result in zip(places, results, strict=True):
            if not result.StatusCode.is_bad():
                self.refused.pop(place, None)
            elif filtered and result.StatusCode.value in _FILTER_REFUSED:
                unfiltered.append(place)
            else:
                self.refused[place] = str(result.StatusCode.name)[:255]
        return unfiltered

    def _request(self, place: int, *, filtered: bool) -> ua.MonitoredItemCreateRequest:
        settings = self._settings
        # what a pause shorter than stale_ms piles up must fit, else samples are lost in the server
        queue = math.ceil(settings.stale_ms / max(settings.sampling_ms, FASTEST_MS))
        parameters = ua.MonitoringParameters(
            ClientHandle=ua.IntegerId(place),
            SamplingInterval=ua.Duration(settings.sampling_ms),
            QueueSize=ua.UInt32(min(queue, _LONGEST_QUEUE)),
            DiscardOldest=True,
        )
        tag = settings.tags[place]
        # a sensor whose movement shows that it is not stuck has to be heard inside its dead band, too
        if filtered and tag.deadband and tag.scale and tag.stuck_s is None:
            dead_band: Any = ua.DataChangeFilter(
                Trigger=ua.DataChangeTrigger.StatusValue,
                DeadbandType=ua.UInt32(ua.DeadbandType.Absolute.value),
                DeadbandValue=ua.Double(tag.deadband / abs(tag.scale)),
            )
            parameters.Filter = dead_band
        return ua.MonitoredItemCreateRequest(
            ItemToMonitor=ua.ReadValueId(NodeId=self._nodes[place], AttributeId=AttributeIds.Value),
            MonitoringMode=ua.MonitoringMode.Reporting,
            RequestedParameters=parameters,
        )

    def _tell_refused(self) -> None:
        named = [f"{self._readings.names[place]}: {reason}" for place, reason in sorted(self.refused.items())]
        self._sink.remark(self._settings.name, TagRemark.REFUSED, listed(named))


def listed(named: list[str]) -> str:
    """The first few, and how many more there are."""
    return ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")


_FILTER_REFUSED: Final = frozenset({0x80430000, 0x80440000, 0x80450000, 0x808E0000})
"""BadMonitoredItemFilterInvalid, ...FilterUnsupported, BadFilterNotAllowed, BadDeadbandFilterInvalid."""
_ITEMS_PER_CALL: Final = 500
"""Small PLCs limit operations per call (OperationLimits.MaxMonitoredItemsPerCall), typically at 500 to 1000."""
_LONGEST_QUEUE: Final = 100
_NAMED: Final = 4
