"""Measures the daemon: `python -m edgeqc.sim.bench isolation|plc|server|tags|engines`. Ratios of one run, never bare times.

The box is the developer's, shared and noisy: each figure that is a ratio has both of its sides measured in turn, in
several rounds, and the table shows the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeqc.cli.console import show, talk
from edgeqc.sim.gate import Benched, Gate
from edgeqc.sim.images import PartImages, drawn_parts
from edgeqc.sim.line import STATION, Plan, SimLine
from edgeqc.sim.report import archived, build

RATE_HZ: Final = 25.0
BUDGET_MS: Final = 36.0
"""Of the takt of 40 ms."""
SIDE_TAGS: Final = 1000
_ENGINE: Final = Path(__file__).parents[2] / "engines" / "demo-part" / "1"
_MEMORY_MB: Final = 400
_START_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the line."""

    report: dict[str, Any]
    memory_mb: float
    """Proportional set size of all the daemon's processes, at the end."""
    grown_mb: float
    """Of the station's resident set, from a tenth of the run to its end."""
    first_verdict_s: float
    """From the daemon's start to the first verdict that the PLC acknowledged; the PLC raises triggers all the time."""


def main() -> int:
    """Run one bench; exit code 6 where a figure is over its limit."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("what", choices=list(_BENCHES))
    parser.add_argument("--parts", type=int, default=500, help="per run of the line")
    parser.add_argument("--seconds", type=float, default=60, help="of the bench of tags; 600: the long form")
    parser.add_argument("--node", type=Path, help="folder that keeps node-opcua from one bench of tags to the next")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeqc-bench-") as folder:
        found = _BENCHES[asked.what](Path(folder), asked)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )
    show(
        ["figure", "measured", "limit", ""],
        [
            [
                gate.name,
                f"{gate.measured:.2f} {gate.unit}",
                f"{gate.limit:g} {gate.unit}",
                "ok" if gate.holds else "OVER",
            ]
            for gate in found.gates
        ],
        title=f"{found.title}; {machine}",
    )
    if asked.json is not None:
        asked.json.write_text(json.dumps({"machine": machine, **found.figures}, indent=2) + "\n")
    return 0 if all(gate.holds for gate in found.gates) else 6


def _isolation(folder: Path, asked: argparse.Namespace) -> Benched:
    gates, rounds = isolation(folder, parts=asked.parts, rounds=asked.rounds)
    title = f"{asked.rounds} rounds of {asked.parts} parts at {RATE_HZ:g}/s, 1280x1024 Mono8, located part, Modbus, loopback"
    return Benched(title=title, gates=gates, figures={"rounds": rounds})


def _plc(folder: Path, asked: argparse.Namespace) -> Benched:
    from edgeqc.sim import benchplc  # noqa: PLC0415 - each bench has its own libraries

    return benchplc.plc(folder, rounds=asked.rounds)


def _tags(folder: Path, asked: argparse.Namespace) -> Benched:
    from edgeqc.sim import benchtags  # noqa: PLC0415 - each bench has its own libraries

    return benchtags.tags(folder, seconds=asked.seconds, node=asked.node)


def _engines(folder: Path, asked: argparse.Namespace) -> Benched:
    from edgeqc.sim import benchengines  # noqa: PLC0415 - each bench has its own libraries

    return benchengines.engines(folder, rounds=asked.rounds)


def _server(folder: Path, asked: argparse.Namespace) -> Benched:
    from edgeqc.sim import benchserver  # noqa: PLC0415 - each bench has its own libraries

    return benchserver.server(folder, parts=asked.parts, rounds=asked.rounds)


_BENCHES: Final[dict[str, Callable[[Path, argparse.Namespace], Benched]]] = {
    "isolation": _isolation,
    "plc": _plc,
    "tags": _tags,
    "engines": _engines,
    "server": _server,
}


def isolation(folder: Path, *, parts: int, rounds: int) -> tuple[list[Gate], list[dict[str, Any]]]:
    """What the decision path costs beside the engine, and what everything else does to it."""
    images = drawn_parts(folder)
    found: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        talk(f"round {number} of {rounds}: journal")
        journal = _child("journal", str(folder))
        talk(f"round {number} of {rounds}: engine back to back")
        alone = _child("engine", str(images.file))
        talk(f"round {number} of {rounds}: a plain loop (camera thread, engine, asyncio, pymodbus)")
        loop = plain_loop(folder, images)
        talk(f"round {number} of {rounds}: the line alone")
        plain = run_line(folder, images, parts=parts, side_load=0)
        talk(f"round {number} of {rounds}: the line with {SIDE_TAGS} tags at 10 Hz, broker stopped half-way")
        loaded = run_line(folder, images, parts=parts, side_load=SIDE_TAGS)
        again = _child("engine", str(images.file))
        found.append(
            {
                "journal_us": journal,
                "plain_loop_overhead_ms": loop,
                "engine_alone_ms": alone,
                "engine_alone_again_ms": again,
                "plain": _facts(plain),
                "loaded": _facts(loaded),
            }
        )
    return _gates(found), found


def _facts(run: Run) -> dict[str, Any]:
    kept = (
        "latency_ms",
        "engine_ms",
        "overhead_ms",
        "transfer_ms",
        "fail_safe",
        "late",
        "unaccounted",
        "stalled",
        "zero_copy",
    )
    return {
        **{name: run.report[name] for name in kept},
        "memory_mb": run.memory_mb,
        "grown_mb": run.grown_mb,
        "first_verdict_s": run.first_verdict_s,
    }


def _gates(rounds: list[dict[str, Any]]) -> list[Gate]:
    def middle(pick: Any) -> float:
        return float(statistics.median(pick(found) for found in rounds))

    def alone(found: dict[str, Any]) -> float:
        return (float(found["engine_alone_ms"]["p99"]) + float(found["engine_alone_again_ms"]["p99"])) / 2

    return [
        Gate(name="overhead p50", measured=middle(lambda r: r["plain"]["overhead_ms"]["p50"]), limit=1.0, unit="ms"),
        Gate(name="overhead p99", measured=middle(lambda r: r["plain"]["overhead_ms"]["p99"]), limit=2.0, unit="ms"),
        Gate(
            name="overhead p50, ours / a plain loop's",
            measured=middle(lambda r: r["plain"]["overhead_ms"]["p50"] / r["plain_loop_overhead_ms"]["p50"]),
            limit=1.0,
        ),
        Gate(
            name="overhead p99, ours / a plain loop's",
            measured=middle(lambda r: r["plain"]["overhead_ms"]["p99"] / r["plain_loop_overhead_ms"]["p99"]),
            limit=1.0,
        ),
        Gate(
            name="engine p99, in the loop / back to back",
            measured=middle(lambda r: r["plain"]["engine_ms"]["p99"] / alone(r)),
            limit=1.3,
        ),
        Gate(
            name="latency p99, with side load / without",
            measured=middle(lambda r: r["loaded"]["latency_ms"]["p99"] / r["plain"]["latency_ms"]["p99"]),
            limit=1.5,
        ),
        Gate(name="journal append p50", measured=middle(lambda r: r["journal_us"]["p50"]), limit=20, unit="us"),
        Gate(name="journal append p99", measured=middle(lambda r: r["journal_us"]["p99"]), limit=100, unit="us"),
        Gate(
            name="first verdict after start",
            measured=max(r["plain"]["first_verdict_s"] for r in rounds),
            limit=_START_S,
            unit="s",
        ),
        Gate(
            name="memory of the daemon, side load on",
            measured=max(r["loaded"]["memory_mb"] for r in rounds),
            limit=_MEMORY_MB,
            unit="MB",
        ),
        Gate(
            name="station's growth over the run",
            measured=max(r["plain"]["grown_mb"] for r in rounds),
            limit=1.3,
            unit="MB",
        ),
        Gate(name="frames copied by us", measured=float(not all(r["plain"]["zero_copy"] for r in rounds)), limit=0),
        Gate(
            name=f"triggers unaccounted, late{_stood(rounds)}",
            measured=float(sum(r[k][n] for r in rounds for k in ("plain", "loaded") for n in ("unaccounted", "late"))),
            limit=0,
        ),
    ]


def _stood(rounds: list[dict[str, Any]]) -> str:
    stalled = sum(one[kind]["stalled"] for one in rounds for kind in ("plain", "loaded"))
    return f" ({stalled} more: the box stood still)" if stalled else ""


def run_line(folder: Path, images: PartImages, *, parts: int, side_load: int) -> Run:
    """One run of the whole line; with side load the broker is stopped half-way and comes back."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    plan = Plan(
        folder=place,
        images=images,
        engine=_ENGINE,
        parts=parts,
        rate_hz=RATE_HZ,
        budget_ms=BUDGET_MS,
        side_load=side_load,
        start="go",
    )
    with SimLine(plan) as line:
        assert line.plc is not None  # noqa: S101 - SimLine started it
        line.start_daemon()
        board = line.wait_ready()
        row = board[f"station-{STATION}"]
        if side_load:
            _until(lambda: board["watch"].get("tags_good") >= side_load)
        line.plc.go()
        first_s = 0.0
        early_mb = 0.0
        stopped = False
        until = time.monotonic() + parts / RATE_HZ * 1.5 + 30
        while time.monotonic() < until:
            verdicts = row.get("verdicts")
            if verdicts and not first_s:
                first_s = (row.get("first_verdict_ns") - line.daemon_started_ns) / 1e9
            if verdicts >= parts // 10 and not early_mb:
                early_mb = _memory_mb(row.pid, "Rss")
            if side_load and line.broker is not None and verdicts >= parts // 2 and not stopped:
                stopped = True
                line.broker.stop()
            if verdicts >= parts:
                break
            time.sleep(0.05)  # the line is what is measured: who looks on must not load the box
        if stopped and line.broker is not None:
            line.broker.start()
        summary = line.plc.wait_done(15)
        assert line.daemon is not None  # noqa: S101 - it runs
        pids = [line.daemon.pid, *(other.pid for other in board.rows.values())]
        memory_mb = sum(_memory_mb(pid, "Pss") for pid in pids)
        grown_mb = _memory_mb(row.pid, "Rss") - early_mb
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
    return Run(report=report, memory_mb=memory_mb, grown_mb=grown_mb, first_verdict_s=first_s)


def plain_loop(folder: Path, images: PartImages) -> dict[str, float]:
    """The loop that one would write first, against the same camera and PLC, without the daemon."""
    place = folder / "plain"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    plan = Plan(
        folder=place, images=images, engine=_ENGINE, rate_hz=RATE_HZ, budget_ms=BUDGET_MS, trigger="camera", mqtt=False
    )
    with SimLine(plan) as line:
        assert line.cameras  # noqa: S101 - SimLine started them
        assert line.plc is not None  # noqa: S101
        height, width = images.shape
        return _child("plain", line.cameras[0].address, str(line.plc.port), str(height), str(width), str(RATE_HZ))


def _memory_mb(pid: int, field: str) -> float:
    for text in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if text.startswith(f"{field}:"):
            return int(text.split()[1]) / 1024
    raise RuntimeError(f"{pid}: no {field}")


def _until(condition: Any, timeout_s: float = 40) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("the line did not get going")
        time.sleep(0.05)


def _child(what: str, *arguments: str) -> dict[str, float]:
    """Run one measurement in a process of its own, on the core and with the priority that the line thread has."""
    done = subprocess.run(  # noqa: S603 - this very package
        [sys.executable, "-m", "edgeqc.sim.benchparts", what, *arguments], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
