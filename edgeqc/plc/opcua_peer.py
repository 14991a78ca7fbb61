"""The process that talks OPC UA for a station's PLC link, or for its gate: `python -m edgeqc.plc.opcua_peer FD FD`.

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
from typing import Any, Final

from asyncua import ua
from asyncua.client.client import Client

from edgeqc.core.handshake import Form
from edgeqc.cores import real_time
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.logs import configure
from edgeqc.plc import opcua_session, opcua_variables
from edgeqc.plc.opcua_variables import BITS, COUNTERS, FLAG, REAL, TEXT, WIDE, Variable
from edgeqc.records import NS_PER_S, PlcResult, Verdict
from edgeqc.settings import OpcuaPlcSettings
from edgeqc.settings.gate import GateNodes

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


def main(argv: list[str]) -> int:
    """Serve the link until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's concerns the parent, and this one ends with it
    reads, writes = (socket.socket(fileno=int(descriptor)) for descriptor in argv)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_MB << 20, MEMORY_MB << 20))
    asked = json.loads(reads.recv(MESSAGE_BYTES))
    configure(process=f"opcua {asked['peer']}")
    real_time(PRIORITY if asked["real_time"] else 0)
    settings = OpcuaPlcSettings.model_validate(asked["settings"])
    gate = None if asked["gate"] is None else GateNodes.model_validate(asked["gate"])
    try:
        asyncio.run(_live(settings, gate, asked["peer"], Path(asked["state_dir"]), (reads, writes)))
    except MemoryError:  # nothing that came can be trusted any more; the parent opens another process
        return 1
    finally:
        reads.close()
        writes.close()
    return 0


async def _live(
    settings: OpcuaPlcSettings,
    gate: GateNodes | None,
    peer: str,
    state_dir: Path,
    channels: tuple[socket.socket, socket.socket],
) -> None:
    """Connect, say how that went, and answer."""
    loop = asyncio.get_running_loop()
    reads, writes = channels
    for each in channels:
        each.setblocking(False)
    try:
        client = await opcua_session.connect(settings, peer=peer, state_dir=state_dir, timeout_s=CONNECT_S)
    except PeerError as exc:
        await _say(loop, reads, _failure(exc))
        return
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                answers = await _answers(client, settings, gate, peer)
        except Exception as exc:  # noqa: BLE001 - hostile bytes make asyncua's decoder raise anything
            await _say(loop, reads, _failure(opcua_session.peer_error(peer, exc)))
            return
        await _say(loop, reads, b"{}")
        async with asyncio.TaskGroup() as tasks:
            serving = [
                tasks.create_task(_serve(reads, peer, answers.read), name="reads"),
                tasks.create_task(_serve(writes, peer, answers.write), name="writes"),
            ]
            await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
            for task in serving:
                task.cancel()
    finally:
        await opcua_session.close(client)


async def _answers(
    client: Client, settings: OpcuaPlcSettings, gate: GateNodes | None, peer: str
) -> _Handshake | _GateAnswers:
    """Find the nodes of the handshake, or those of the gate; PeerError."""
    handshake = _SUITABLE if settings.handshake.form is Form.PULSE else _SUITABLE | {"result_sequence": WIDE}
    path, suitable, named = (
        ("nodes", handshake, settings.nodes) if gate is None else ("gate.nodes", _GATE_SUITABLE, gate)
    )
    texts = {name: text for name in suitable if (text := getattr(named, name)) is not None}
    nodes = await opcua_variables.find(client, texts, suitable, path=path, peer=peer)
    if gate is None:
        return _Handshake(settings=settings, peer=peer, client=client, nodes=nodes)
    return _GateAnswers(peer=peer, client=client, nodes=nodes)


async def _serve(
    channel: socket.socket, peer: str, handle: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
) -> None:
    """Answer one request after the other until the parent hangs up."""
    loop = asyncio.get_running_loop()
    while message := await _received(loop, channel):
        request: dict[str, Any] = json.loads(message)
        if time.monotonic_ns() >= request["until_ns"]:  # nothing is begun that is late already
            await _say(loop, channel, _failure(PeerTimeoutError(peer, "no time was left for it"), request["n"]))
            continue
        # a task of its own and no asyncio.timeout: a cancellation that comes just as the answer does stays with the
        # task in Python 3.11, and would end this loop at its next await
        handling = asyncio.ensure_future(handle(request))
        await asyncio.wait((handling,), timeout=(request["until_ns"] - time.monotonic_ns()) / NS_PER_S)
        if not handling.done():
            handling.cancel()
            await asyncio.wait((handling,), timeout=_CANCEL_S)
        answer = _told(handling, peer, request["n"])
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
class _Handshake:
    """An open session and the nodes of the handshake."""

    settings: OpcuaPlcSettings
    peer: str
    client: Client
    nodes: dict[str, Variable]

    async def read(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Read all that the PLC says in one Read request."""
        names = [name for name in _READ if name in self.nodes]
        found = await opcua_variables.read(self.client, [self.nodes[name] for name in names], self.peer)
        read_ns = time.monotonic_ns()
        values: dict[str, Any] = {"result_ack": 0, "plc_heartbeat": 0, "recipe": 0}
        values.update(zip(names, found, strict=True))
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
        values = [
            (self.nodes[name], value)
            for name, value in _values(result, request["heartbeat"]).items()
            if name in self.nodes
        ]
        await opcua_variables.write(self.client, values, self.peer, read_back=self.settings.handshake.read_back)
        return {}


@dataclass(slots=True, kw_only=True)
class _GateAnswers:
    """An open session and the nodes of the gate."""

    peer: str
    client: Client
    nodes: dict[str, Variable]

    async def read(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Read the gate's inputs in one Read request; numbers as wide as the Modbus block has them."""
        names = [name for name in _GATE_READ if name in self.nodes]
        found = await opcua_variables.read(self.client, [self.nodes[name] for name in names], self.peer)
        read_ns = time.monotonic_ns()
        values: dict[str, Any] = {"encoder": 0, "confirmations": 0, "running": False}
        values.update(zip(names, found, strict=True))
        return values | {
            "encoder": values["encoder"] & 0xFFFF_FFFF,
            "confirmations": values["confirmations"] & 0xFFFF,
            "read_ns": read_ns,
        }

    async def write(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write the gate's output in one Write request: EJECT goes off first, and comes on when all else is there."""
        told: dict[str, bool | int] = request["output"]
        eject = {"eject": told.pop("eject")}
        ordered = told | eject if eject["eject"] else eject | told
        values = [(self.nodes[name], value) for name, value in ordered.items() if name in self.nodes]
        await opcua_variables.write(self.client, values, self.peer)
        return {}


_SUITABLE: Final[dict[str, Sequence[ua.VariantType]]] = {
    "trigger": COUNTERS,
    "part_id": TEXT,
    "result_sequence": tuple(BITS),
    "result_part_id": TEXT,
    "result_pass": FLAG,
    "result_fail": FLAG,
    "result_code": tuple(BITS),
    "result_score": REAL,
    "busy": FLAG,
    "ready": FLAG,
    "fault": FLAG,
    "heartbeat": tuple(BITS),
    "result_valid": FLAG,
    "overrun": FLAG,
    "stop": FLAG,
    "trigger_ack": tuple(BITS),
    "waiting": tuple(BITS),
    "result_ack": WIDE,
    "plc_heartbeat": tuple(BITS),
    "recipe": tuple(BITS),
}
_READ: Final = ("trigger", "part_id", "result_ack", "plc_heartbeat", "recipe")
"""What the PLC says; everything else is ours to write."""
_GATE_SUITABLE: Final[dict[str, Sequence[ua.VariantType]]] = {
    "encoder": tuple(kind for kind, bits in BITS.items() if bits >= 31),  # noqa: PLR2004 - 32 bits, signed or not
    "confirmations": COUNTERS,
    "running": FLAG,
    "looked": FLAG,
    "eject": FLAG,
    "sequence": tuple(BITS),
    "ejections": tuple(BITS),
    "position": tuple(kind for kind, bits in BITS.items() if bits >= 32),  # noqa: PLR2004 - unsigned, or wider
    "heartbeat": tuple(BITS),
}
_GATE_READ: Final = ("encoder", "confirmations", "running", "looked")
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
