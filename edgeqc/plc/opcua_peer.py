"""The process that talks OPC UA for a station's PLC link: `python -m edgeqc.plc.opcua_peer FD FD`.

A process of its own, because what a broken or hostile server sends is decoded here: it may cost this process its memory
(capped) and its time, never the station's. Two sockets come from the parent (edgeqc.plc.opcua), one for reads and one
for writes; each message is one JSON object, one request at a time. It ends when the parent hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from asyncua import ua
from asyncua.client.client import Client
from asyncua.ua.attribute_ids import AttributeIds

from edgeqc.core.handshake import SEQUENCE_MASK
from edgeqc.cores import real_time
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.logs import configure
from edgeqc.plc import opcua_nodes, opcua_session
from edgeqc.records import NS_PER_S, PlcResult, Verdict
from edgeqc.settings import OpcuaNodes, OpcuaPlcSettings

CONNECT_S: Final = 4.0
"""For channel, session and the check of all nodes; 0.2 s against a server on the same box with encryption."""
MEMORY_MB: Final = 256
"""What this process may have (RLIMIT_DATA); it has 93 MB with a session open."""
PRIORITY: Final = 10
"""SCHED_FIFO, where the station has it: above ordinary processes, below every thread of the station."""
MESSAGE_BYTES: Final = 65_536
_CANCEL_S: Final = 0.05
"""For a request to take note that nobody waits for it any more."""
_TEXT_MOST: Final = 255
"""Of a part id or a reason that the server sends."""

_S = TypeVar("_S")
_T = TypeVar("_T")


def main(argv: list[str]) -> int:
    """Serve the link until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's concerns the parent, and this one ends with it
    reads, writes = (socket.socket(fileno=int(descriptor)) for descriptor in argv)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MB << 20, MEMORY_MB << 20))
    asked = json.loads(reads.recv(MESSAGE_BYTES))
    configure(process=f"opcua {asked['peer']}")
    real_time(PRIORITY if asked["real_time"] else 0)
    settings = OpcuaPlcSettings.model_validate(asked["settings"])
    try:
        asyncio.run(_live(settings, asked["peer"], Path(asked["state_dir"]), reads, writes))
    except MemoryError:  # nothing that came can be trusted any more; the parent opens another process
        return 1
    finally:
        reads.close()
        writes.close()
    return 0


async def _live(
    settings: OpcuaPlcSettings, peer: str, state_dir: Path, reads: socket.socket, writes: socket.socket
) -> None:
    """Connect, say how that went, and answer."""
    loop = asyncio.get_running_loop()
    for each in (reads, writes):
        each.setblocking(False)
    try:
        client = await opcua_session.connect(settings, peer=peer, state_dir=state_dir, timeout_s=CONNECT_S)
    except PeerError as exc:
        await _say(loop, reads, _failure(exc))
        return
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                nodes = await _resolve(client, settings.nodes, peer)
        except Exception as exc:  # noqa: BLE001 - hostile bytes make asyncua's decoder raise anything
            await _say(loop, reads, _failure(opcua_session.peer_error(peer, exc)))
            return
        session = _Session(settings=settings, peer=peer, client=client, nodes=nodes)
        await _say(loop, reads, b"{}")
        async with asyncio.TaskGroup() as tasks:
            serving = [
                tasks.create_task(_serve(reads, session, session.read), name="reads"),
                tasks.create_task(_serve(writes, session, session.write), name="writes"),
            ]
            await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
            for task in serving:
                task.cancel()
    finally:
        await opcua_session.close(client)


async def _serve(
    channel: socket.socket, session: _Session, handle: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
) -> None:
    """Answer one request after the other until the parent hangs up."""
    loop = asyncio.get_running_loop()
    while message := await _received(loop, channel):
        request: dict[str, Any] = json.loads(message)
        # a task of its own and no asyncio.timeout: a cancellation that comes just as the answer does stays with the
        # task in Python 3.11, and would end this loop at its next await
        handling = asyncio.ensure_future(handle(request))
        await asyncio.wait((handling,), timeout=(request["until_ns"] - time.monotonic_ns()) / NS_PER_S)
        if not handling.done():
            handling.cancel()
            await asyncio.wait((handling,), timeout=_CANCEL_S)
        answer = _told(handling, session.peer, request["n"])
        await _say(loop, channel, answer)


async def _say(loop: asyncio.AbstractEventLoop, channel: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # the parent has hung up: the next look says so
        await loop.sock_sendall(channel, message)


async def _received(loop: asyncio.AbstractEventLoop, channel: socket.socket) -> bytes:
    """The next message; none where the parent has hung up, with answers unread or not."""
    try:
        return await loop.sock_recv(channel, MESSAGE_BYTES)
    except ConnectionError:
        return b""


def _told(handling: asyncio.Future[dict[str, Any]], peer: str, number: int) -> bytes:
    """The answer, or why there is none."""
    if not handling.done() or handling.cancelled():
        return _failure(PeerTimeoutError(peer, "no answer in time"), number)
    exc = handling.exception()
    if exc is None:
        return json.dumps(handling.result() | {"n": number}).encode()
    if not isinstance(exc, Exception):
        raise exc
    return _failure(opcua_session.peer_error(peer, exc), number)


def _failure(exc: PeerError, number: int = 0) -> bytes:
    return json.dumps({"n": number, "error": exc.reason, "timeout": isinstance(exc, PeerTimeoutError)}).encode()


@dataclass(slots=True, kw_only=True)
class _Session:
    """An open session and the nodes of the handshake."""

    settings: OpcuaPlcSettings
    peer: str
    client: Client
    nodes: dict[str, _Node]

    async def read(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Read all that the PLC says in one Read request."""
        asked = [self.nodes[name] for name in _READ if name in self.nodes]
        found = await self.client.uaclient.read_attributes([node.node_id for node in asked], AttributeIds.Value)
        read_ns = time.monotonic_ns()
        values: dict[str, Any] = {"result_ack": 0, "plc_heartbeat": 0, "recipe": 0}
        for node, value in _paired(asked, found, self.peer):
            _check(node.name, node.text, value.StatusCode, self.peer)
            content = _content(value)
            if not isinstance(content, (str, type(None)) if node.type is ua.VariantType.String else int):
                raise PeerError(self.peer, f"nodes.{node.name}: {node.text} is {content!r}")
            values[node.name] = content
        return {
            "counter": values["trigger"],
            "part_id": (values["part_id"] or "")[:_TEXT_MOST],
            "read_ns": read_ns,
            "ack": values["result_ack"],
            "heartbeat": values["plc_heartbeat"],
            "recipe": values["recipe"],
        }

    async def write(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write all result nodes in one Write request; every node's status counts."""
        told = request["result"]
        verdict = None if told["verdict"] is None else Verdict(told["verdict"])
        result = PlcResult(**(told | {"verdict": verdict}))
        nodes, session = self.nodes, self.client.uaclient
        values = [
            (nodes[name], _fitted(value, nodes[name].type))
            for name, value in _values(result, request["heartbeat"]).items()
            if name in nodes
        ]
        ids = [node.node_id for node, _ in values]
        # no timestamps: many PLCs refuse a write that brings some
        statuses = await session.write_attributes(
            ids, [ua.DataValue(ua.Variant(value, node.type)) for node, value in values]
        )
        for (node, _), status in _paired(values, statuses, self.peer):
            _check(node.name, node.text, status, self.peer)
        if self.settings.handshake.read_back:
            for (node, written), found in _paired(
                values, await session.read_attributes(ids, AttributeIds.Value), self.peer
            ):
                _check(node.name, node.text, found.StatusCode, self.peer)
                _compare(node, written, _content(found), self.peer)
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """One variable of the handshake as the server has it."""

    name: str
    """Its key in the configuration."""
    text: str
    """Its NodeId as configured."""
    node_id: ua.NodeId
    type: ua.VariantType


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
    "stop": _FLAG,
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
        "stop": result.stop,
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
