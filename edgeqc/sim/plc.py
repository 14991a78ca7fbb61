"""A simulated PLC, a process of its own: times the parts, raises their triggers and judges the results.

`python -m edgeqc.sim.plc --type modbus --stage FILE --parts 300 --rate 25 --budget-ms 30` serves on 127.0.0.1 and prints
`READY <port>`. It starts with the first READY bit that the daemon writes (`--start ready`), or with the line `go` on
stdin (which `--start go` alone waits for), and prints `STARTED`. At each takt it then puts the next part (the stage's
part + 1) before the camera and

- `--trigger plc`: raises the trigger with a part id like P000042;
- `--trigger line`: pulses the camera's input line;
- `--trigger camera`: does nothing, for the camera in free run brings the parts itself (`stage.advance`).

Where the PLC raises no trigger, an exposure of the camera is one. After the last part and one budget it writes the
summary and prints `DONE`, and serves on until stdin is closed or SIGTERM. A PLC started again on the same stage goes on
with the next part. Other lines on stdin: `refuse on|off` (result writes are answered with an error), `ack on|off` (the
program takes results and acknowledges them; it begins with `on` unless `--form pulse`), `beat on|off` (the program's own
heartbeat), `recipe N`, `end` (no further part: as if all were through), `summary` (write one now and say SUMMARY).

The log has one JSON line per part (edgeqc.sim.judge.PartReport), one with `stall` (from, to) for each time in which this
PLC itself stood still, and at the end one with `summary`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from edgeqc.core.handshake import Form
from edgeqc.cores import real_time
from edgeqc.errors import PeerError
from edgeqc.sim import plc_modbus
from edgeqc.sim.peer import Peer
from edgeqc.sim.plc_line import Line, Server, TriggerKind, say
from edgeqc.sim.stage import Stage

Kind = Literal["modbus", "modbus-server", "opcua"]
"""As `plc.type` of the configuration; with `modbus-server` this PLC is the client."""
Start = Literal["ready", "go"]

HARDWARE_PRIORITY: Final = 10
"""SCHED_FIFO, where allowed: below the station's threads, above everything else."""


class SimPlc(Peer):
    """The PLC process; it starts again on the same port."""

    def __init__(
        self,
        kind: Kind,
        stage: Path,
        log: Path,
        *,
        parts: int,
        rate_hz: float,
        budget_ms: float,
        trigger: TriggerKind = "plc",
        start: Start = "ready",
        allowance_ms: float | None = None,
        truth: Path | None = None,
        pki: Path | None = None,
        user: str = "",
        password: str = "",
        form: Form = Form.PULSE,
        scan_ms: float = 2.0,
        recipes: Sequence[int] = (),
        recipe_run: int = 20,
    ) -> None:
        """Nothing runs until `start`. `pki`: OPC UA with SignAndEncrypt only, the certificate made in that folder."""
        super().__init__("the PLC")
        self.kind: Kind = kind
        self.port = 0
        self.log = log
        self._pki = pki
        self._user, self._password = user, password
        self._form = form
        self._arguments = ["--type", kind, "--stage", str(stage), "--log", str(log), "--parts", str(parts)]
        self._arguments += ["--rate", str(rate_hz), "--budget-ms", str(budget_ms), "--trigger", trigger]
        self._arguments += ["--start", start, "--user", user, "--password", password]
        self._arguments += ["--form", form, "--scan-ms", str(scan_ms)]
        for name, value in (("--allowance-ms", allowance_ms), ("--truth", truth), ("--pki", pki)):
            if value is not None:
                self._arguments += [name, str(value)]
        self._recipes = recipes
        if recipes:
            self._arguments += ["--recipes", ",".join(map(str, recipes)), "--recipe-run", str(recipe_run)]

    @property
    def settings(self) -> dict[str, Any]:
        """The `plc:` entry of a configuration that reaches it."""
        handshake = {"form": self._form.value}
        if self.kind == "modbus":
            modbus: dict[str, Any] = {"type": "modbus", "host": "127.0.0.1", "port": self.port, "handshake": handshake}
            return {**modbus, "registers": {"recipe": True}} if self._recipes else modbus
        if self.kind == "modbus-server":
            home = {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": self.port}
            return {"type": "modbus-server", **home, "handshake": handshake}
        from edgeqc.sim import plc_opcua  # noqa: PLC0415 - loads asyncua

        found: dict[str, Any] = {
            "type": "opcua",
            "url": f"opc.tcp://127.0.0.1:{self.port}",
            "security": "none",
            "handshake": handshake,
            "nodes": {name: plc_opcua.node_text(name) for name in plc_opcua.NODES},
        }
        if self._pki is not None:
            found |= {"security": "sign_encrypt", "server_certificate": str(self._pki / "pki" / "own.der")}
        if self._user:
            found |= {"user": self._user, "password": self._password}
        return found

    def command(self) -> list[str]:
        """This module, on the port of the last time where there was one."""
        return [sys.executable, "-m", "edgeqc.sim.plc", *self._arguments, "--port", str(self.port)]

    def told_ready(self, words: list[str]) -> None:
        """Its port."""
        self.port = int(words[0])

    def go(self) -> None:
        """Start with the parts now."""
        self.tell("go")

    def end(self) -> None:
        """No further part: DONE comes after the window of the last one."""
        self.tell("end")

    def so_far(self) -> dict[str, Any]:
        """Its summary of this moment, while parts go on."""
        self.tell("summary")
        self.wait("SUMMARY", 5)
        return self.summary()

    def refuse(self, on: bool) -> None:
        """Answer result writes with an error, or take them again."""
        self.tell(f"refuse {'on' if on else 'off'}")

    def acknowledge(self, on: bool) -> None:
        """Take results and acknowledge them, or no more."""
        self.tell(f"ack {'on' if on else 'off'}")

    def beat(self, on: bool) -> None:
        """Change the program's heartbeat, or let it stand still."""
        self.tell(f"beat {'on' if on else 'off'}")

    def recipe(self, number: int) -> None:
        """Ask for this recipe from the next part on."""
        self.tell(f"recipe {number}")

    def wait_started(self, timeout_s: float) -> None:
        """Until the first part is due; PeerError where it does not come to that."""
        self.wait("STARTED", timeout_s)

    def wait_done(self, timeout_s: float) -> dict[str, Any]:
        """Until all parts are through; give the summary. PeerError where it does not come to that."""
        self.wait("DONE", timeout_s)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """The newest summary in the log; PeerError where there is none."""
        for line in reversed(self.log.read_text().splitlines()):
            found = json.loads(line).get("summary")
            if found is not None:
                return dict(found)
        raise PeerError(self._name, f"no summary in {self.log}")


def main() -> int:
    """Serve until stdin is closed, SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeqc.sim.plc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--type", choices=("modbus", "modbus-server", "opcua"), default="modbus")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stage", type=Path, required=True)
    parser.add_argument("--parts", type=int, default=300)
    parser.add_argument("--rate", type=float, default=10.0, help="parts per second")
    parser.add_argument("--budget-ms", type=float, default=50.0, help="trigger to result")
    parser.add_argument("--allowance-ms", type=float, help="added to the budget: 5 with --trigger plc, else 20")
    parser.add_argument("--trigger", choices=("plc", "line", "camera"), default="plc")
    parser.add_argument("--start", choices=("ready", "go"), default="ready")
    parser.add_argument("--truth", type=Path, help=".npy, one flag per image: is it defective")
    parser.add_argument("--log", type=Path, required=True, help="NDJSON, appended to")
    parser.add_argument("--pki", type=Path, help="OPC UA: SignAndEncrypt only, certificate made in this folder")
    parser.add_argument("--form", choices=[form.value for form in Form], default="pulse", help="of the handshake")
    parser.add_argument("--scan-ms", type=float, default=2.0, help="from one run of the PLC's program to the next")
    parser.add_argument("--recipes", type=_numbers, default=[0], help="recipe numbers, e.g. 1,2: shown in turn")
    parser.add_argument("--recipe-run", type=int, default=20, help="so many parts of one recipe after another")
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    real_time(HARDWARE_PRIORITY)  # a PLC does not share a core with whatever else this box does
    with contextlib.closing(Stage.attach(arguments.stage)) as stage, arguments.log.open("a", buffering=1) as log:
        asyncio.run(_serve(arguments, stage, log))
    return 0


async def _serve(arguments: argparse.Namespace, stage: Stage, log: TextIO) -> None:
    line = Line(arguments, stage, log)
    server: Server
    if arguments.type == "modbus":
        server = plc_modbus.ModbusPlc(line.wrote)
    elif arguments.type == "modbus-server":
        from edgeqc.sim import plc_client  # noqa: PLC0415 - loads pymodbus

        server = plc_client.ModbusClientPlc(line.wrote)
    else:
        from edgeqc.sim import plc_opcua  # noqa: PLC0415 - loads asyncua

        server = plc_opcua.OpcuaPlc(line.wrote, pki=arguments.pki, user=arguments.user, password=arguments.password)
    port = arguments.port or _free_port()
    await server.start(port, line.says)  # no new part for a daemon that is there already
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    say(f"READY {port}")
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(line.run(server), name="line")
            scanning = tasks.create_task(line.scan(server), name="scan")
            listening = tasks.create_task(_listen(line, server, stop), name="stdin")
            await stop.wait()
            for task in (running, scanning, listening):
                task.cancel()
    finally:
        line.finish()
        await server.stop()


async def _listen(line: Line, server: Server, stop: asyncio.Event) -> None:
    """Do what stdin says until it is closed."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while words := (await reader.readline()).decode(errors="replace").split():
        match words:
            case ["go"]:
                line.started.set()
            case ["end"]:
                line.end()
            case ["summary"]:
                line.summarize()
                say("SUMMARY")
            case ["refuse", ("on" | "off") as state]:
                await server.refuse(state == "on")
            case ["ack", ("on" | "off") as state]:
                line.acknowledges = state == "on"
            case ["beat", ("on" | "off") as state]:
                line.beats = state == "on"
            case ["recipe", number] if number.isdecimal():
                await line.say(server, recipe=int(number))
            case _:
                sys.stderr.write(f"edgeqc.sim.plc: unknown command: {' '.join(words)}\n")
    stop.set()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _free_port() -> int:
    """Ask for a free port: asyncua does not say which one it got for 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
