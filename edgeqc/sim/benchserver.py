"""`scripts/bench server`: what 1000 polls a second are answered in, and what they do to the verdicts meanwhile.

The whole daemon runs a simulated line, once without and once with the polls, in turn. Polled are the Modbus server for
SCADA (a process of its own) and, where the PLC comes to us, the station's own server. The client that polls shares the
box's cores with the daemon, which a real one does not: it is kept off the line thread's core.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal

from edgeqc.cli.console import talk
from edgeqc.cores import pin
from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.sim.gate import Benched, Gate
from edgeqc.sim.images import PartImages, drawn_parts
from edgeqc.sim.line import STATION, Plan, SimLine
from edgeqc.sim.report import archived, build

POLLS_HZ: Final = 1000
REGISTERS: Final = 60
"""Of one poll: a station's state, counters and last result."""
RATE_HZ: Final = 25.0
BUDGET_MS: Final = 36.0
_ENGINE: Final = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
_LIMIT_MS: Final = 2.0
_UNTOUCHED: Final = 1.1
"""Single runs of the same line differ by a tenth in their median on a shared box."""
_TAIL_UNTOUCHED: Final = 1.5
_HEAD: Final = struct.Struct(">HHHBB")
_REPLY_HEAD: Final = 9

PlcKind = Literal["modbus", "modbus-server"]


def server(folder: Path, *, parts: int, rounds: int) -> Benched:
    """Measure in rounds; the table has the median of each figure over them."""
    images = drawn_parts(folder)
    found: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        one: dict[str, Any] = {}
        for kind, whom in (("modbus", "SCADA's server"), ("modbus-server", "the station's own server")):
            talk(f"round {number} of {rounds}: the line, nobody polls {whom}")
            quiet = _run(folder, images, kind, parts=parts, polled=False)
            talk(f"round {number} of {rounds}: the line, {POLLS_HZ} polls/s of {whom}")
            one[kind] = {"quiet": quiet, "polled": _run(folder, images, kind, parts=parts, polled=True)}
        found.append(one)
    return Benched(
        title=f"{rounds} rounds of {parts} parts at {RATE_HZ:g}/s, {POLLS_HZ} polls/s of {REGISTERS} registers, loopback",
        gates=[*_gates("SCADA", "modbus", found), *_gates("handshake", "modbus-server", found)],
        figures={"rounds": found},
    )


def _gates(name: str, kind: str, rounds: list[dict[str, Any]]) -> list[Gate]:
    def middle(what: str, part: str) -> float:
        return float(statistics.median(one[kind]["polled"][what][part] for one in rounds))

    def ratio(part: str) -> float:
        return float(
            statistics.median(
                one[kind]["polled"]["latency_ms"][part] / one[kind]["quiet"]["latency_ms"][part] for one in rounds
            )
        )

    lost = sum(
        one[kind][run][what] for one in rounds for run in ("quiet", "polled") for what in ("unaccounted", "late")
    )
    stalled = sum(one[kind][run]["stalled"] for one in rounds for run in ("quiet", "polled"))
    stood = f" ({stalled} more: the box stood still)" if stalled else ""
    missed = max(0.0, 1 - middle("poll_ms", "hz") / POLLS_HZ)
    return [
        Gate(name=f"{name}: poll p50", measured=middle("poll_ms", "p50"), limit=_LIMIT_MS, unit="ms"),
        Gate(name=f"{name}: poll p99", measured=middle("poll_ms", "p99"), limit=_LIMIT_MS, unit="ms"),
        Gate(name=f"{name}: share of polls that came too late to be sent", measured=missed, limit=0.05),
        Gate(name=f"{name}: verdict latency p50, polled / not", measured=ratio("p50"), limit=_UNTOUCHED),
        Gate(name=f"{name}: verdict latency p99, polled / not", measured=ratio("p99"), limit=_TAIL_UNTOUCHED),
        Gate(name=f"{name}: triggers unaccounted, late{stood}", measured=float(lost), limit=0),
    ]


def _run(folder: Path, images: PartImages, kind: Any, *, parts: int, polled: bool) -> dict[str, Any]:
    """One run of the line; the polls begin with the first part and end with the last."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    scada = _free_port()
    plan = Plan(
        folder=place,
        images=images,
        engine=_ENGINE,
        parts=parts,
        rate_hz=RATE_HZ,
        budget_ms=BUDGET_MS,
        plc=kind,
        start="go",
        changes={"server": {"modbus": {"bind": "127.0.0.1", "peers": ["127.0.0.1"], "port": scada}}},
    )
    with SimLine(plan) as line:
        assert line.plc is not None  # noqa: S101 - SimLine started it
        line.start_daemon()
        board = line.wait_ready()
        row = board[f"station-{STATION}"]
        poller = None
        if polled:
            port, address, count = (scada, 100, REGISTERS) if kind == "modbus" else (line.plc.port, 100, 16)
            poller = _start_poller(port, address, count, seconds=parts / RATE_HZ)
        line.plc.go()
        summary = line.plc.wait_done(parts / RATE_HZ * 2 + 30)
        poll_ms = {} if poller is None else _answer(poller)
        counters, backend = row.counters(), row.backend
        line.stop_daemon()
        report = build(
            judged=line.judged(),
            summary=summary,
            rows=archived(line.state_dir),
            messages=None,
            counters=counters,
            camera=plan.camera,
            backend=backend,
            stalls=line.stalls(),
        )
    kept = ("latency_ms", "overhead_ms", "unaccounted", "late", "stalled", "fail_safe")
    return {**{name: report[name] for name in kept}, "poll_ms": poll_ms}


def _start_poller(port: int, address: int, count: int, *, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(port), str(address), str(count), str(seconds)]
    return subprocess.Popen(  # noqa: S603 - this very package
        [sys.executable, "-m", "edgeqc.sim.benchserver", *arguments], stdout=subprocess.PIPE, text=True
    )


def _answer(poller: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = poller.communicate(timeout=60)
    if poller.returncode:
        raise RuntimeError("the polls failed")
    found: dict[str, float] = json.loads(out)
    return found


def _poll(port: int, address: int, count: int, seconds: float) -> dict[str, float]:
    """Poll at POLLS_HZ over one connection; from a request's sending to the whole of its answer."""
    pin({min(os.sched_getaffinity(0))})
    request = struct.pack(">HHHBBHH", 1, 0, 6, 1, 3, address, count)
    size = _REPLY_HEAD + 2 * count
    spent: list[int] = []
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_ns = time.monotonic_ns()
        due_ns, end_ns = began_ns, began_ns + int(seconds * NS_PER_S)
        while due_ns < end_ns:
            time.sleep(max(0, due_ns - time.monotonic_ns()) / NS_PER_S)
            sent_ns = time.monotonic_ns()
            connection.sendall(request)
            reply = b""
            while len(reply) < size:
                some = connection.recv(4096)
                if not some:
                    raise ConnectionError("the server hung up")
                reply += some
            spent.append(time.monotonic_ns() - sent_ns)
            if _HEAD.unpack_from(reply)[4] != 3:  # noqa: PLR2004 - the function code
                raise ConnectionError(f"refused: {reply.hex()}")
            due_ns = max(due_ns + NS_PER_S // POLLS_HZ, time.monotonic_ns() - NS_PER_S // 100)
        took_s = (time.monotonic_ns() - began_ns) / NS_PER_S
    spent.sort()
    return {
        "p50": spent[len(spent) // 2] / NS_PER_MS,
        "p99": spent[int(len(spent) * 0.99)] / NS_PER_MS,
        "max": spent[-1] / NS_PER_MS,
        "n": float(len(spent)),
        "hz": len(spent) / took_s,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_poll(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))) + "\n")
