"""A simulated tag server, a process of its own: OPC UA or Modbus TCP with real protocol stacks.

`python -m edgeqc.sim.tags --type opcua --tags 1000 --rate 10 --port 0` prints `READY <port>` once it serves.
Tag 0 is the heartbeat: the server's UTC in seconds at the moment of writing. All others count cycles from 0, a step
of 1 each, so that a lost sample is a jump.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import logging
import math
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Self

from asyncua import ua
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.server import Server
from asyncua.server.user_managers import UserManager
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edgeqc.sim.peer import Peer

Kind = Literal["opcua", "modbus"]

URI: Final = "urn:edgeqc:sim:tags"
REGISTERS_PER_TAG: Final = 2
"""Modbus: heartbeat = uint32 milliseconds of the UTC day, all others float32, ABCD, from register 0 on."""


class SimTags(Peer):
    """The server process; it starts again on the same port."""

    def __init__(
        self, kind: Kind = "opcua", *, tags: int = 1000, rate_hz: float = 10, user: str = "", password: str = ""
    ) -> None:
        """Nothing runs until `start`. With `user`, OPC UA lets nobody else in."""
        super().__init__("the tag server")
        self.kind: Kind = kind
        self.tags = tags
        self.rate_hz = rate_hz
        self.port = 0
        self._login = ["--user", user, "--password", password] if user else []

    @property
    def url(self) -> str:
        """`opc.tcp://127.0.0.1:<port>` or `127.0.0.1:<port>`."""
        return f"{'opc.tcp://' if self.kind == 'opcua' else ''}127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """This module, on the port of the last time where there was one."""
        arguments = ["--type", self.kind, "--tags", str(self.tags), "--rate", str(self.rate_hz)]
        return [sys.executable, "-m", "edgeqc.sim.tags", *arguments, "--port", str(self.port), *self._login]

    def told_ready(self, words: list[str]) -> None:
        """Its port."""
        self.port = int(words[0])


def tag_settings(tags: int, url: str, *, name: str = "sim") -> dict[str, Any]:
    """Give the entry of the configuration's `tags` list that reads a simulated server; `url` as SimTags tells it."""
    names = [f"{name}-heartbeat" if index == 0 else f"{name}-{index:04d}" for index in range(tags)]
    if url.startswith("opc.tcp://"):
        return {
            "name": name,
            "type": "opcua",
            "url": url,
            "security": "none",
            "tags": [{"name": tag, "node": _node(index)} for index, tag in enumerate(names)],
        }
    host, port = url.rsplit(":", 1)
    return {
        "name": name,
        "type": "modbus",
        "host": host,
        "port": int(port),
        "tags": [
            {"name": tag, "register": index * REGISTERS_PER_TAG, "type": "float32" if index else "uint32"}
            for index, tag in enumerate(names)
        ],
    }


def main() -> int:
    """Serve until stdin is closed, SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m edgeqc.sim.tags", description=__doc__.splitlines()[0])
    parser.add_argument("--type", choices=("opcua", "modbus"), default="opcua")
    parser.add_argument("--tags", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=10.0, help="changes per second of each tag")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if arguments.type == "opcua":
        served = _serve_opcua(
            arguments.tags, arguments.rate, arguments.port or free_port(), arguments.user, arguments.password
        )
    else:
        served = _serve_modbus(arguments.tags, arguments.rate, arguments.port or free_port())
    asyncio.run(served)
    return 0


class _Value(ua.DataValue):
    """A value that nobody changes after it was made, so the server's defensive deep copy may be the value itself.

    That copy is two thirds of what asyncua's server spends on a change.
    """

    def __deepcopy__(self, _memo: object) -> Self:
        return self


class _OneUser(UserManager):
    """Lets one user in, or everybody where no name is given."""

    def __init__(self, name: str, password: str) -> None:
        self._login = (name, password)

    def get_user(
        self,
        iserver: object,  # noqa: ARG002 - asyncua's signature
        username: str | None = None,
        password: str | None = None,
        certificate: object = None,  # noqa: ARG002 - asyncua's signature
    ) -> User | None:
        """Say who that is, None for a stranger."""
        if not self._login[0] or (username, password) == self._login:
            return User(role=UserRole.User, name=username or "anyone")
        return None


async def _serve_opcua(tags: int, rate_hz: float, port: int, user: str, password: str) -> None:
    server = Server(user_manager=_OneUser(user, password))
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    if user:
        server.set_identity_tokens([ua.UserNameIdentityToken])
    space = await server.register_namespace(URI)
    folder = await server.nodes.objects.add_object(ua.NodeId.from_string(f"ns={space};s=Line"), "Line")
    ids = [ua.NodeId.from_string(_node(index)) for index in range(tags)]
    for index, node in enumerate(ids):
        await folder.add_variable(node, f"Tag{index}", 0.0)

    async def write(cycle: int) -> None:
        now = ua.DateTime.now(dt.UTC).replace(tzinfo=None)  # asyncua speaks naive UTC
        values = (ua.Variant(time.time(), ua.VariantType.Double), ua.Variant(float(cycle), ua.VariantType.Double))
        stamped = [_Value(value, SourceTimestamp=now) for value in values]
        for node in ids:
            await server.write_attribute_value(node, stamped[node is not ids[0]])

    async with server:
        await _run(port, rate_hz, write)


async def _serve_modbus(tags: int, rate_hz: float, port: int) -> None:
    began = time.monotonic()

    async def answer(
        _function: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        _written: list[int] | list[bool] | None,
    ) -> None:
        """Put the values of this moment into the registers that are asked for."""
        counting = _words(">f", float(math.floor((time.monotonic() - began) * rate_hz)))
        heartbeat = _words(">I", int(time.time() * 1000) % 86_400_000)
        for register in range(address, address + count):
            words = heartbeat if register < REGISTERS_PER_TAG else counting
            registers[register - start] = words[register % REGISTERS_PER_TAG]

    block = SimData(0, values=[0] * (tags * REGISTERS_PER_TAG), datatype=DataType.REGISTERS)
    server = ModbusTcpServer(SimDevice(0, simdata=[block], action=answer), address=("127.0.0.1", port))
    await server.serve_forever(background=True)
    try:
        await _run(port, 1.0, None)
    finally:
        await server.shutdown()  # type: ignore[no-untyped-call]


async def _run(port: int, rate_hz: float, write: Callable[[int], Any] | None) -> None:
    """Write each cycle at its time until told to end."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 4096) else stop.set())
    sys.stdout.write(f"READY {port}\n")
    sys.stdout.flush()
    due, cycle = loop.time(), 0
    while not stop.is_set():
        if write is not None:
            await write(cycle)
            cycle += 1
        # after a freeze the missed cycles are not made up for: a stalled PLC does not either
        due = max(due + 1 / rate_hz, loop.time() - 1 / rate_hz)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(due - loop.time(), 0.0))


def _node(index: int) -> str:
    return f"ns=2;s=Tag{index}"


def _words(layout: str, value: float) -> tuple[int, int]:
    first, second = struct.unpack(">2H", struct.pack(layout, value))
    return first, second


def free_port() -> int:
    """Ask for a free port: neither server library says which one it got for 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
