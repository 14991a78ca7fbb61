"""The PLC link over OPC UA. What the server sends is decoded by a process of its own: edgeqc.plc.opcua_peer."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgeqc.core.track import GateOutput
from edgeqc.errors import PeerError, PeerTimeoutError
from edgeqc.plc.gate import GateInputs
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, PlcTrigger
from edgeqc.settings import OpcuaPlcSettings
from edgeqc.settings.gate import GateNodes

CONNECT_S: Final = 4.0
"""For channel, session and the check of all nodes, after `START_S`."""
START_S: Final = 10.0
"""For the process, which loads asyncua: 0.7 s on a free core."""
_CLOSE_S: Final = 0.9
_MESSAGE_BYTES: Final = 65_536


class _Decoder:
    """The process that talks to the server, with a channel to it for reads and one for writes.

    So a read never waits for a write nor a write for a read.
    """

    def __init__(self, settings: OpcuaPlcSettings, gate: GateNodes | None, *, peer: str, state_dir: Path) -> None:
        """Start the process, connect and check every node, within `START_S` and `CONNECT_S`.

        Raises PeerError that names the node at fault.
        """
        self.reads, reads = _Channel.pair(peer)
        self.writes, writes = _Channel.pair(peer)
        with reads, writes, _ordinary() as real_time:
            descriptors = (reads.fileno(), writes.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "edgeqc.plc.opcua_peer", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
            )
        try:
            self.reads.open(
                {
                    "settings": settings.model_dump(mode="json", by_alias=True),
                    "gate": None if gate is None else gate.model_dump(mode="json"),
                    "peer": peer,
                    "state_dir": str(state_dir),
                    "real_time": real_time,
                },
                time.monotonic_ns() + int((START_S + CONNECT_S) * NS_PER_S),
            )
        except PeerError:
            self.close()
            raise

    def close(self) -> None:
        """Let the process say good-bye to the server, then end it."""
        self.reads.close()
        self.writes.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class OpcuaLink:
    """A `PlcLink`. A call that ran out of time may still be executed by the server; its late answer is dropped."""

    def __init__(self, settings: OpcuaPlcSettings, *, peer: str, state_dir: Path) -> None:
        """Connect and check every node, within `START_S` and `CONNECT_S`. Raises PeerError that names the node at fault."""
        self._peer = peer
        # another start at each connection: the first write after a reconnect moves it too
        self._heartbeat = itertools.count(time.monotonic_ns() // NS_PER_MS)
        self._decoder = _Decoder(settings, None, peer=peer, state_dir=state_dir)

    def read_trigger(self, until_ns: int) -> PlcTrigger:
        """Read counter, part id and what else the PLC says in one Read request."""
        said = self._decoder.reads.call({}, until_ns)
        try:
            return PlcTrigger(
                counter=int(said["counter"]),
                part_id=str(said["part_id"]),
                read_ns=int(said["read_ns"]),
                ack=int(said["ack"]),
                heartbeat=int(said["heartbeat"]),
                recipe=int(said["recipe"]),
            )
        except (KeyError, ValueError, TypeError) as exc:
            raise PeerError(self._peer, f"the link's process answers {said!r}") from exc

    def write_result(self, result: PlcResult, until_ns: int) -> None:
        """Write all result nodes in one Write request; every node's status counts."""
        told = {field.name: getattr(result, field.name) for field in _FIELDS}
        self._decoder.writes.call({"result": told, "heartbeat": next(self._heartbeat)}, until_ns)

    def close(self) -> None:
        """Let the process say good-bye to the server, then end it."""
        self._decoder.close()


class OpcuaGate:
    """A `GateLink`: a session of its own, in a process of its own."""

    def __init__(self, settings: OpcuaPlcSettings, nodes: GateNodes, *, peer: str, state_dir: Path) -> None:
        """As `OpcuaLink`."""
        self._peer = peer
        self._heartbeat = itertools.count(time.monotonic_ns() // NS_PER_MS)
        self._decoder = _Decoder(settings, nodes, peer=peer, state_dir=state_dir)

    def read(self, until_ns: int) -> GateInputs:
        """Read all inputs in one Read request. PeerError."""
        said = self._decoder.reads.call({}, until_ns)
        try:
            return GateInputs(
                encoder=int(said["encoder"]),
                confirmations=int(said["confirmations"]),
                running=bool(said["running"]),
                looked=bool(said["looked"]),
                read_ns=int(said["read_ns"]),
            )
        except (KeyError, ValueError, TypeError) as exc:
            raise PeerError(self._peer, f"the gate's process answers {said!r}") from exc

    def write(self, output: GateOutput, encoder_at: int, until_ns: int) -> None:
        """Write the whole output in one Write request; every node's status counts. PeerError."""
        told = {
            "sequence": output.sequence,
            "ejections": output.ejections,
            "position": encoder_at,
            "heartbeat": next(self._heartbeat) & 0xFFFF,
            "eject": output.eject,
        }
        self._decoder.writes.call({"output": told}, until_ns)

    def close(self) -> None:
        """Never raises."""
        self._decoder.close()


@contextlib.contextmanager
def _ordinary() -> Iterator[bool]:
    """Without real time for this thread, so that the process does not load its libraries with it. True: it has it."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    if policy != os.SCHED_FIFO:
        yield False
        return
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield True
    finally:
        os.sched_setscheduler(0, policy, priority)


class _Channel:
    """One request at a time to the link's process, each answer known by its number."""

    def __init__(self, peer: str, own: socket.socket) -> None:
        self._peer = peer
        self._socket = own
        self._poll = select.poll()
        self._poll.register(own, select.POLLIN)
        self._lock = threading.Lock()
        self._number = 0
        self._closed = False

    @classmethod
    def pair(cls, peer: str) -> tuple[_Channel, socket.socket]:
        """The channel, and the process's end of it."""
        # each message whole or not at all
        own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setblocking(False)
        return cls(peer, own), others

    def open(self, message: dict[str, Any], until_ns: int) -> None:
        """Send the first message and wait for the word that all is well. PeerError."""
        self._send(message)
        self._answer(0, until_ns)

    def call(self, request: dict[str, Any], until_ns: int) -> dict[str, Any]:
        """Send and wait for the answer, to `until_ns` at most. PeerTimeoutError, PeerError."""
        if not self._lock.acquire(timeout=max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_S)):
            raise PeerTimeoutError(self._peer, "another request holds the connection")
        try:
            if time.monotonic_ns() >= until_ns:
                raise PeerTimeoutError(self._peer, "no time left")
            self._number += 1
            self._send(request | {"n": self._number, "until_ns": until_ns})
            return self._answer(self._number, until_ns)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Wake a call that is under way, wait for it to notice, close."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        held = self._lock.acquire(timeout=_CLOSE_S / 2)
        self._socket.close()
        if held:
            self._lock.release()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._socket.send(json.dumps(message).encode())
        except BlockingIOError as exc:  # it answered none of many: it hangs
            raise PeerTimeoutError(self._peer, "the link's process takes no more requests") from exc
        except OSError as exc:
            raise self._gone() from exc

    def _answer(self, number: int, until_ns: int) -> dict[str, Any]:
        while True:
            if not self._poll.poll(max(0.0, (until_ns - time.monotonic_ns()) / NS_PER_MS)):
                raise PeerTimeoutError(self._peer, "no answer in time")
            try:
                message = self._socket.recv(_MESSAGE_BYTES)
            except OSError as exc:
                raise self._gone() from exc
            if not message:
                raise self._gone()
            answer: dict[str, Any] = json.loads(message)
            if answer.get("n", 0) != number:
                continue  # late: nobody waits for it any more
            if "error" in answer:
                kind = PeerTimeoutError if answer["timeout"] else PeerError
                raise kind(self._peer, str(answer["error"]))
            return answer

    def _gone(self) -> PeerError:
        return PeerError(
            self._peer,
            "the link is closed" if self._closed else "the process that decodes what this server sends has ended",
        )


_FIELDS: Final = dataclasses.fields(PlcResult)
