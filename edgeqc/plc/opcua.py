"""The PLC link over OPC UA: asyncua on a loop and a thread of its own, each call one service request."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import math
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds

from edgeqc.core.handshake import SEQUENCE_MASK
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc import opcua_nodes, opcua_session
from edgeqc.records import NS_PER_S, PlcResult, PlcTrigger, Verdict
from edgeqc.settings import OpcuaNodes, OpcuaPlcSettings

CONNECT_S: Final = 4.0
"""For channel, session and the check of all nodes; 0.2 s against a server on the same box with encryption."""
_CLOSE_S: Final = 1.0

_S = TypeVar("_S")
_T = TypeVar("_T")


class OpcuaLink:
    """A `PlcLink`. A call that ran out of time may still be executed by the server; its late answer is dropped."""

    def __init__(self, settings: OpcuaPlcSettings, *, peer: str, state_dir: Path) -> None:
        """Connect and check every node, within `CONNECT_S`. Raises PeerError that names the node at fault."""
        self._peer = peer
        self._settings = settings
        self._state_dir = state_dir
        # another start at each connection: the first write after a reconnect moves it too
        self._heartbeat = itertools.count(time.monotonic_ns() // 1_000_000)
        self._stop = asyncio.Event()
        opened: concurrent.futures.Future[_Session] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(opened)), name=f"opcua-{peer}", daemon=True
        )
        self._thread.start()
        try:
            self._session = opened.result()
        except PeerError:
            self._thread.join(_CLOSE_S)
            raise

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        """Read counter, part id and what else the PLC says in one Read request."""
        return self._call(self._read(), until_ns)

    def write_result(self, result: PlcResult, until_ns: int) -> None:
        """Write all result nodes in one Write request; every node's status counts."""
        self._call(self._write(result), until_ns)

    def close(self) -> None:
        """End session, loop and thread."""
        if self._thread.is_alive():
            self._session.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_CLOSE_S)

    def _call(self, request: Coroutine[Any, Any, _T], until_ns: int) -> _T:
        """Run the request on the link's loop and wait for it to `until_ns`; then it is cancelled."""
        left_ns = until_ns - time.monotonic_ns()
        if left_ns <= 0:
            request.close()
            raise PeerTimeoutError(self._peer, "no time left")
        try:
            future = asyncio.run_coroutine_threadsafe(request, self._session.loop)
        except RuntimeError as exc:  # the loop is closed
            request.close()
            raise PeerError(self._peer, "the link is closed") from exc
        try:
            return future.result(left_ns / NS_PER_S)
        except PeerError:
            raise
        except TimeoutError as exc:
            future.cancel()
            raise PeerTimeoutError(self._peer, "no answer in time") from exc
        except concurrent.futures.CancelledError as exc:
            raise PeerError(self._peer, "the link is closed") from exc
        except Exception as exc:
            raise opcua_session.peer_error(self._peer, exc) from exc

    async def _read(self) -> PlcTrigger:
        nodes = self._session.nodes
        asked = [nodes[name] for name in _READ if name in nodes]
        found = await self._session.client.uaclient.read_attributes(
            [node.node_id for node in asked], AttributeIds.Value
        )
        read_ns = time.monotonic_ns()
        values: dict[str, Any] = {"result_ack": 0, "plc_heartbeat": 0, "recipe": 0}
        for node, value in _paired(asked, found, self._peer):
            _check(node.name, node.text, value.StatusCode, self._peer)
            content = _content(value)
            if not isinstance(content, (str, type(None)) if node.type is ua.VariantType.String else int):
                raise PeerError(self._peer, f"nodes.{node.name}: {node.text} is {content!r}")
            values[node.name] = content
        return PlcTrigger(
            counter=values["trigger"],
            part_id=values["part_id"] or "",
            read_ns=read_ns,
            ack=values["result_ack"],
            heartbeat=values["plc_heartbeat"],
            recipe=values["recipe"],
        )

    async def _write(self, result: PlcResult) -> None:
        nodes, session = self._session.nodes, self._session.client.uaclient
        values = [
            (nodes[name], _fitted(value, nodes[name].type))
            for name, value in _values(result, next(self._heartbeat)).items()
            if name in nodes
        ]
        ids = [node.node_id for node, _ in values]
        # no timestamps: many PLCs refuse a write that brings some
        statuses = await session.write_attributes(
            ids, [ua.DataValue(ua.Variant(value, node.type)) for node, value in values]
        )
        for (node, _), status in _paired(values, statuses, self._peer):
            _check(node.name, node.text, status, self._peer)
        if self._settings.handshake.read_back:
            for (node, written), found in _paired(
                values, await session.read_attributes(ids, AttributeIds.Value), self._peer
            ):
                _check(node.name, node.text, found.StatusCode, self._peer)
                _compare(node, written, _content(found), self._peer)

    async def _live(self, opened: concurrent.futures.Future[_Session]) -> None:
        """The thread's root: connect, let other threads' calls run, leave."""
        try:
            client = await opcua_session.connect(
                self._settings, peer=self._peer, state_dir=self._state_dir, timeout_s=CONNECT_S
            )
        except Exception as exc:  # noqa: BLE001 - handed to the thread that waits for it
            opened.set_exception(exc)
            return
        try:
            try:
                async with asyncio.timeout(CONNECT_S):
                    nodes = await _resolve(client, self._settings.nodes, self._peer)
            except Exception as exc:  # noqa: BLE001 - as above; hostile bytes make asyncua's decoder raise anything
                opened.set_exception(opcua_session.peer_error(self._peer, exc))
                return
            opened.set_result(_Session(loop=asyncio.get_running_loop(), client=client, nodes=nodes))
            await self._stop.wait()
        finally:
            await opcua_session.close(client)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """One variable of the handshake as the server has it."""

    name: str
    """Its key in the configuration."""
    text: str
    """Its NodeId as configured."""
    node_id: ua.NodeId
    type: ua.VariantType


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What the calling threads need of the link's thread."""

    loop: asyncio.AbstractEventLoop
    client: Client
    nodes: dict[str, _Node]


_BITS: Final = {
    ua.VariantType.Int16: 15,
    ua.VariantType.UInt16: 16,
    ua.VariantType.Int32: 31,
    ua.VariantType.UInt32: 32,
    ua.VariantType.Int64: 63,
    ua.VariantType.UInt64: 64,
}
"""Integer types that a number may have, and at how many bits it wraps (never negative)."""
_WIDE: Final = tuple(kind for kind, bits in _BITS.items() if bits >= SEQUENCE_MASK.bit_length())
"""What holds a sequence number whole enough to acknowledge it."""
_FLAG: Final = (ua.VariantType.Boolean,)
_REAL: Final = (ua.VariantType.Float, ua.VariantType.Double)
_TEXT: Final = (ua.VariantType.String,)
_SUITABLE: Final[dict[str, Sequence[ua.VariantType]]] = {
    "trigger": tuple(_BITS),
    "part_id": _TEXT,
    "result_sequence": tuple(_BITS),
    "result_part_id": _TEXT,
    "result_pass": _FLAG,
    "result_fail": _FLAG,
    "result_code": tuple(_BITS),
    "result_score": _REAL,
    "busy": _FLAG,
    "ready": _FLAG,
    "fault": _FLAG,
    "heartbeat": tuple(_BITS),
    "result_valid": _FLAG,
    "overrun": _FLAG,
    "trigger_ack": tuple(_BITS),
    "waiting": tuple(_BITS),
    "result_ack": _WIDE,
    "plc_heartbeat": tuple(_BITS),
    "recipe": tuple(_BITS),
}
_READ: Final = ("trigger", "part_id", "result_ack", "plc_heartbeat", "recipe")
"""What the PLC says; everything else is ours to write."""
_HEARTBEAT_MASK: Final = 0xFFFF  # as Modbus has it, so that a PLC program need not know which link it is


def _values(result: PlcResult, heartbeat: int) -> dict[str, bool | int | float | str]:
    """Node name to value, in the order of writing.

    A server may apply the nodes one by one: RESULT_VALID, PASS and REJECT go off first, and what is due comes on last,
    when sequence and part id are this part's already.
    """
    flags = {
        "result_pass": result.verdict is Verdict.PASS,
        "result_fail": result.verdict is Verdict.REJECT,
        "result_valid": result.verdict is not None,
    }
    return {
        **{name: on for name, on in reversed(flags.items()) if not on},
        "result_sequence": result.sequence,
        "result_part_id": result.part_id,
        "result_code": result.code,
        "result_score": 0.0 if math.isnan(result.score) else result.score,
        "busy": result.busy,
        "ready": result.ready,
        "fault": result.fault,
        "overrun": result.overrun,
        "trigger_ack": result.trigger_ack,
        "waiting": result.waiting,
        "heartbeat": heartbeat & _HEARTBEAT_MASK,
        **{name: on for name, on in flags.items() if on},
    }


def _compare(node: _Node, written: object, found: object, peer: str) -> None:
    """Refuse a value that reads back as another; a Float keeps 24 bits of what was written."""
    if isinstance(written, float) and isinstance(found, float):
        same = math.isclose(written, found, rel_tol=1e-6, abs_tol=1e-6)
    else:
        same = found == written or (written == "" and found is None)
    if not same:
        raise PeerError(
            peer,
            f"nodes.{node.name}: {node.text} reads back as {found!r}, {written!r} was written: "
            "does the PLC program write there too?",
        )


def _fitted(value: bool | float | str, kind: ua.VariantType) -> bool | int | float | str:
    """Wrap a whole number at the width of its node."""
    bits = _BITS.get(kind)
    return value if bits is None else int(value) & ((1 << bits) - 1)


async def _resolve(client: Client, settings: OpcuaNodes, peer: str) -> dict[str, _Node]:
    """Ask the server what type each node has; PeerError that names the first that won't do."""
    named = {name: text for name in _SUITABLE if (text := getattr(settings, name)) is not None}
    resolved = await opcua_nodes.resolve(client, list(named.values()))
    ids: dict[str, ua.NodeId] = {}
    for name, node_id in zip(named, resolved, strict=True):
        if isinstance(node_id, str):
            raise PeerError(peer, f"nodes.{name}: {node_id}")
        ids[name] = node_id
    order = list(ids.values())
    declared = await client.uaclient.read_attributes(order, AttributeIds.DataType)
    current = await client.uaclient.read_attributes(order, AttributeIds.Value)
    if not len(declared) == len(current) == len(order):
        raise PeerError(peer, "the server answers for fewer nodes than were asked")
    nodes: dict[str, _Node] = {}
    for (name, node_id), kind, value in zip(ids.items(), declared, current, strict=True):
        text = named[name]
        _check(name, text, kind.StatusCode, peer)
        found = _variant_type(_content(kind), value)
        if found is None or found not in _SUITABLE[name]:
            wanted = ", ".join(one.name for one in _SUITABLE[name])
            raise PeerError(peer, f"nodes.{name}: {text} is {found.name if found else 'no plain value'}, not {wanted}")
        nodes[name] = _Node(name=name, text=text, node_id=node_id, type=found)
    return nodes


def _variant_type(declared: object, value: ua.DataValue) -> ua.VariantType | None:
    """Give the built-in type on the wire: as declared, or as the present value has it where a subtype is declared."""
    variant = value.Value
    if variant is not None and isinstance(variant.Value, list):
        return None
    if isinstance(declared, ua.NodeId) and declared.NamespaceIndex == 0 and isinstance(declared.Identifier, int):
        try:
            return ua.VariantType(declared.Identifier)
        except ValueError:
            pass
    return variant.VariantType if variant is not None else None


def _content(value: ua.DataValue) -> object:
    return None if value.Value is None else value.Value.Value


def _paired(asked: Sequence[_S], found: Sequence[_T], peer: str) -> list[tuple[_S, _T]]:
    if len(found) != len(asked):
        raise PeerError(peer, f"the server answers for {len(found)} of {len(asked)} nodes")
    return list(zip(asked, found, strict=True))


def _check(name: str, text: str, status: ua.StatusCode | None, peer: str) -> None:
    if status is not None and not status.is_good():  # none on the wire means Good
        raise PeerError(peer, f"nodes.{name}: {text}: {status.name}")
