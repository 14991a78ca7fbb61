"""`scripts/bench plc`: how long a verdict's way to the PLC takes, and how soon a trigger is seen.

Each measurement runs in a process of its own, pinned and with the priority that the station's threads have, against a
peer in another process: libmodbus for Modbus, the simulated PLC (asyncua's server) for OPC UA. Loopback, no network.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter
from pymodbus.client import ModbusTcpClient

from edgeqc.cli.console import talk
from edgeqc.cores import pin, real_time
from edgeqc.plc import open_link
from edgeqc.plc.registers import RESULT_REGISTERS
from edgeqc.records import NS_PER_MS, NS_PER_S, PlcResult, Verdict
from edgeqc.settings import OpcuaNodes, PlcSettings
from edgeqc.sim import libmodbus
from edgeqc.sim.gate import Benched, Gate
from edgeqc.sim.plc import SimPlc
from edgeqc.sim.stage import Stage

WRITES: Final = 3000
"""Back to back over Modbus."""
OPCUA_WRITES: Final = 600
PACED: Final = 250
RATE_HZ: Final = 25.0
POLL_MS: Final = 2.0
TRIGGERS: Final = 200
_PRIORITY: Final = 20
"""As StationSettings.priority."""
_WITHIN_NS: Final = 2 * NS_PER_S
_REQUIRED: Final = {name for name, field in OpcuaNodes.model_fields.items() if field.is_required()}
"""Nodes that every configuration has: 12."""
_USER, _PASSWORD = "edge", "s3cret"


def plc(folder: Path, *, rounds: int) -> Benched:
    """Measure in rounds; the table has the median of each figure over them."""
    found = [_round(folder, f"round {number} of {rounds}") for number in range(1, rounds + 1)]

    def middle(name: str, part: str) -> float:
        return float(statistics.median(one[name][part] for one in found))

    names = ("modbus_write_ms", "modbus_write_paced_ms", "opcua_write_ms", "trigger_seen_ms", "pymodbus_write_paced_ms")
    spread: dict[str, Any] = {name: {part: middle(name, part) for part in ("p50", "p99", "max", "n")} for name in names}
    ours, plain = middle("modbus_write_paced_ms", "p50"), middle("pymodbus_write_paced_ms", "p50")
    gates = [
        Gate(name="Modbus write, back to back p50", measured=middle("modbus_write_ms", "p50"), limit=0.2, unit="ms"),
        Gate(name="Modbus write, 25/s p50", measured=ours, limit=0.6, unit="ms"),
        Gate(name="Modbus write, 25/s p99", measured=middle("modbus_write_paced_ms", "p99"), limit=2.0, unit="ms"),
        Gate(name="Modbus write, 25/s p50, ours / pymodbus", measured=ours / plain, limit=1.0),
        Gate(
            name="OPC UA write, 10 nodes, SignAndEncrypt p50",
            measured=middle("opcua_write_ms", "p50"),
            limit=2.5,
            unit="ms",
        ),
        Gate(
            name=f"trigger seen p99, polled each {POLL_MS:g} ms",
            measured=middle("trigger_seen_ms", "p99"),
            limit=2 * POLL_MS,
            unit="ms",
        ),
        Gate(name="triggers missed", measured=sum(one["trigger_seen_ms"]["missed"] for one in found), limit=0),
        Gate(name="the poll's share of a core", measured=middle("poll", "cpu_ratio"), limit=0.1),
    ]
    return Benched(
        title=f"{rounds} rounds: verdict to the PLC's acknowledgement, loopback, peer not loaded",
        gates=gates,
        figures=spread | {"poll_cpu_ratio": middle("poll", "cpu_ratio"), "rounds": found},
    )


def _round(folder: Path, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        here = Path(place)
        talk(f"{name}: Modbus, libmodbus")
        with libmodbus.serve(here / "writes") as peer:
            address = json.dumps({"type": "modbus", "host": "127.0.0.1", "port": peer.port})
            found: dict[str, Any] = {
                "modbus_write_ms": _child("write", address, str(WRITES), "0", str(here)),
                "modbus_write_paced_ms": _child("write", address, str(PACED), str(RATE_HZ), str(here)),
                "pymodbus_write_paced_ms": _child("pymodbus", str(peer.port), str(PACED), str(RATE_HZ)),
            }
        with closing(Stage.create(here / "stage")):
            talk(f"{name}: OPC UA, SignAndEncrypt, user and password")
            with SimPlc(
                "opcua", here / "stage", here / "opcua.log", parts=0, rate_hz=RATE_HZ, budget_ms=100, start="go",
                pki=here / "plc", user=_USER, password=_PASSWORD,
            ) as server:  # fmt: skip
                found["opcua_write_ms"] = _child(
                    "write", json.dumps(server.settings), str(OPCUA_WRITES), "0", str(here)
                )
            talk(f"{name}: triggers")
            with SimPlc(
                "modbus", here / "stage", here / "modbus.log", parts=TRIGGERS, rate_hz=RATE_HZ, budget_ms=30, start="go"
            ) as line:
                seen = _start("poll", json.dumps(line.settings), str(here))
                line.go()
                line.wait_done(TRIGGERS / RATE_HZ * 2 + 10)
            polled = _answer(seen)
            found["poll"] = {"cpu_ratio": polled["cpu_ratio"]}
            found["trigger_seen_ms"] = _seen_late(here / "modbus.log", polled["seen"])
    return found


def _seen_late(log: Path, seen: dict[str, int]) -> dict[str, float]:
    """From the PLC's own time of each trigger to the end of the read that brought it."""
    raised = {
        one["part_id"]: one["triggered_ns"] for one in map(json.loads, log.read_text().splitlines()) if "part" in one
    }
    late = [(seen[part_id] - at_ns) / NS_PER_MS for part_id, at_ns in raised.items() if part_id in seen]
    return _spread(late) | {"missed": float(len(raised) - len(late))}


def _start(what: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(  # noqa: S603 - this very module
        [sys.executable, "-m", "edgeqc.sim.benchplc", what, *arguments], stdout=subprocess.PIPE, text=True
    )
    if process.stdout is None or process.stdout.readline() != "READY\n":
        raise RuntimeError(f"the measurement {what} did not start")
    return process


def _answer(process: subprocess.Popen[str]) -> Any:
    with process:
        said, _ = process.communicate(timeout=60)
        if process.returncode:
            raise RuntimeError("a measurement failed")
    return json.loads(said)


def _child(what: str, *arguments: str) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    found: dict[str, float] = _answer(_start(what, *arguments))
    return found


def _spread(values: list[float]) -> dict[str, float]:
    shares = (("p50", 50), ("p99", 99), ("max", 100))
    return {name: float(np.percentile(values, share)) for name, share in shares} | {"n": float(len(values))}


# What follows runs in the measurement's own process.


def main() -> int:
    """Print one measurement as JSON."""
    what, *arguments = sys.argv[1:]
    real_time(_PRIORITY)
    match what:
        case "write":
            found: Any = _write(arguments[0], int(arguments[1]), float(arguments[2]), Path(arguments[3]))
        case "pymodbus":
            found = _pymodbus(int(arguments[0]), int(arguments[1]), float(arguments[2]))
        case _:
            found = _poll(arguments[0], Path(arguments[1]))
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _pin() -> None:
    """As the line thread is; after the link was opened, whose threads and processes belong on the other cores."""
    pin({max(os.sched_getaffinity(0))})


def _write(address: str, count: int, rate_hz: float, state_dir: Path) -> dict[str, float]:
    """The link's own write, from verdict to acknowledgement."""
    settings: PlcSettings = TypeAdapter(PlcSettings).validate_json(address)
    with closing(open_link(settings, peer="bench", state_dir=state_dir)) as link:
        _pin()

        def write(number: int) -> None:
            verdict = Verdict.REJECT if number % 7 == 0 else Verdict.PASS
            result = PlcResult(
                sequence=number, part_id=f"P{number:06d}", verdict=verdict, code=1, busy=False, ready=True,
                fault=False, score=0.25,
            )  # fmt: skip
            link.write_result(result, time.monotonic_ns() + _WITHIN_NS)

        return _timed(write, count, rate_hz)


def _pymodbus(port: int, count: int, rate_hz: float) -> dict[str, float]:
    """The same by what one would write first."""
    client = ModbusTcpClient("127.0.0.1", port=port)
    client.connect()  # type: ignore[no-untyped-call]
    _pin()

    def write(number: int) -> None:
        client.write_registers(100, [number & 0xFFFF] * RESULT_REGISTERS)

    try:
        return _timed(write, count, rate_hz)
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _timed(write: Callable[[int], None], count: int, rate_hz: float) -> dict[str, float]:
    write(0)
    _ready()
    took: list[float] = []
    due_s = time.monotonic()
    for number in range(1, count + 1):
        if rate_hz:
            due_s += 1 / rate_hz
            time.sleep(max(0.0, due_s - time.monotonic()))
        began_ns = time.monotonic_ns()
        write(number)
        took.append((time.monotonic_ns() - began_ns) / NS_PER_MS)
    return _spread(took)


def _poll(address: str, state_dir: Path) -> dict[str, Any]:
    """Poll the trigger block as the station does until all triggers came."""
    settings: PlcSettings = TypeAdapter(PlcSettings).validate_json(address)
    seen: dict[str, int] = {}
    with closing(open_link(settings, peer="bench", state_dir=state_dir)) as link:
        counter = link.read_trigger(time.monotonic_ns() + _WITHIN_NS).counter
        _ready()
        began_s, cpu_s, next_s = time.monotonic(), time.process_time(), time.monotonic()
        until_s = began_s + TRIGGERS / RATE_HZ * 2 + 5
        while counter < TRIGGERS and time.monotonic() < until_s:
            trigger = link.read_trigger(time.monotonic_ns() + _WITHIN_NS)
            if trigger.counter != counter:
                counter = trigger.counter
                seen[trigger.part_id] = trigger.read_ns
            next_s = max(next_s + POLL_MS / 1000, time.monotonic())
            time.sleep(max(0.0, next_s - time.monotonic()))
        share = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
    return {"seen": seen, "cpu_ratio": share}


def _ready() -> None:
    sys.stdout.write("READY\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
