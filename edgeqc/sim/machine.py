"""A simulated machine: an OPC UA server, a process of its own, that replays a recording of real sensors row by row.

`python -m edgeqc.sim.machine --rows FILE.npy --names a,b --rate 20 --rest 250:390` prints `READY <port>` once it serves.
Until it reads a line on stdin it walks to and fro in the rows `rest`; then it goes on from there to the end of the
recording, and stays at its last row.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from asyncua import ua
from asyncua.server.server import Server

from edgeqc.sim.peer import Peer
from edgeqc.sim.tags import free_port

URI: Final = "urn:edgeqc:sim:machine"


class SimMachine(Peer):
    """The server process. Use as a context."""

    def __init__(self, rows: Path, names: list[str], *, rate_hz: float, rest: tuple[int, int]) -> None:
        """`rows`: .npy, (rows, tags) float64. Nothing runs until `start`."""
        super().__init__("the simulated machine")
        self.names = names
        self.rate_hz = rate_hz
        self.port = 0
        self._rows = rows
        self._rest = rest

    def command(self) -> list[str]:
        """This module."""
        words = [sys.executable, "-m", "edgeqc.sim.machine", "--rows", str(self._rows), "--names", ",".join(self.names)]
        return [*words, "--rate", str(self.rate_hz), "--rest", f"{self._rest[0]}:{self._rest[1]}"]

    def told_ready(self, words: list[str]) -> None:
        """Its port."""
        self.port = int(words[0])

    def go(self) -> None:
        """Leave the rest: the recording goes on."""
        self.tell("go")

    def source(self, name: str, units: dict[str, str]) -> dict[str, Any]:
        """The entry of the configuration's `tags` list that reads it."""
        return {
            "name": name,
            "type": "opcua",
            "url": f"opc.tcp://127.0.0.1:{self.port}",
            "security": "none",
            "publishing_ms": 50,
            "sampling_ms": 10,
            "tags": [{"name": tag, "node": f"ns=2;s={tag}", "unit": units.get(tag, "")} for tag in self.names],
        }


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m edgeqc.sim.machine", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--names", required=True)
    parser.add_argument("--rate", type=float, default=20.0, help="rows per second")
    parser.add_argument("--rest", default="0:1")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    first, _, last = arguments.rest.partition(":")
    rows = np.load(arguments.rows)
    asyncio.run(_serve(rows, arguments.names.split(","), arguments.rate, int(first), int(last)))
    return 0


def walk(first: int, last: int) -> Iterator[int]:
    """To and fro between two rows, both included, for ever, beginning at the first."""
    while True:
        yield from range(first, last)
        yield from range(last, first, -1)


async def _serve(rows: Any, names: list[str], rate_hz: float, first: int, last: int) -> None:
    loop = asyncio.get_running_loop()
    stop, go = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), lambda: _heard(loop, go))
    server, port = Server(), free_port()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{port}")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    await server.register_namespace(URI)
    machine = await server.nodes.objects.add_object(ua.NodeId.from_string("ns=2;s=Machine"), "2:Machine")
    nodes = [
        await machine.add_variable(
            ua.NodeId.from_string(f"ns=2;s={name}"), f"2:{name}", float(rows[first][place]), ua.VariantType.Double
        )
        for place, name in enumerate(names)
    ]
    async with server:
        sys.stdout.write(f"READY {port}\n")
        sys.stdout.flush()
        row, wandering = first, walk(first, last)
        due = loop.time()
        while not stop.is_set():
            stamp = ua.DateTime.now(dt.UTC).replace(tzinfo=None)  # asyncua speaks naive UTC
            for node, value in zip(nodes, rows[row], strict=True):
                told = ua.DataValue(ua.Variant(float(value), ua.VariantType.Double), SourceTimestamp=stamp)
                await server.write_attribute_value(node.nodeid, told)
            row = min(row + 1, len(rows) - 1) if go.is_set() else next(wandering)
            due = max(due + 1 / rate_hz, loop.time() - 1 / rate_hz)
            await asyncio.sleep(max(due - loop.time(), 0.0))


def _heard(loop: asyncio.AbstractEventLoop, go: asyncio.Event) -> None:
    loop.remove_reader(sys.stdin.fileno())
    if sys.stdin.readline():
        go.set()


if __name__ == "__main__":
    sys.exit(main())
