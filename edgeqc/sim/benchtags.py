"""`scripts/bench tags`: 1000 tags and 50 machines with a GRU each, at 10 Hz, from node-opcua through watch and office.

Samples are counted in the recording: each tag counts, so one that is lost is a jump. The time from a sample to its alarm
is taken on a tag that goes to and fro and the machine that watches it: from the server's own stamp to the arrival of the
raised alarm at an MQTT subscriber, on the same box's clock. That tag stands still until everything runs, and
again at the end, so that the first alarm is of its first rise and the last of its last.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeqc import loading
from edgeqc.cli.console import talk
from edgeqc.core.align import Mark
from edgeqc.errors import EdgeqcError
from edgeqc.history import FOLDER, History
from edgeqc.plc.opcua_session import server_certificate
from edgeqc.records import NS_PER_S
from edgeqc.settings import OpcuaEndpoint, Settings
from edgeqc.shm.board import Board, State
from edgeqc.sim.benchmachines import TAGS_EACH, TOLD, machines
from edgeqc.sim.broker import Listener, SimBroker
from edgeqc.sim.gate import Benched, Gate
from edgeqc.sim.nodeopcua import PASSWORD, USER, NodeOpcua

TAGS: Final = 1000
PUBLISHING_MS: Final = 100
MACHINES: Final = 50
WARM_UP_S: Final = 10.0
"""Of which the models need 3 s to settle."""
_CPU_LIMIT: Final = 30.0
"""Per cent of a core."""
_GRID_MS: Final = 100.0
_TOLD_LIMIT_MS: Final = 150 + PUBLISHING_MS
_ALARM: Final = f"machine.{TOLD}.deviation"
_START_S: Final = 60.0
_DRAIN_S: Final = 3.0


def tags(folder: Path, *, seconds: float, node: Path | None) -> Benched:
    """Run for `seconds`; `node` keeps node-opcua from one run to the next."""
    with NodeOpcua(node or folder / "node", tags=TAGS) as server, SimBroker() as broker:
        settings = _settings(folder, server, broker.port)
        talk(f"{TAGS} tags at 10 Hz and {MACHINES} models for {seconds:g} s")
        with _processes(folder, settings) as (watch, office), Listener("127.0.0.1", broker.port, qos=0) as listener:
            time.sleep(WARM_UP_S)
            who = [watch.pid, office.pid, server.pid]
            row = Board.attach(folder / "run")["watch"]
            before_rows = row.get("machine_rows")
            began, busy = time.monotonic(), [_busy_s(each) for each in who]
            began_ns = time.time_ns()
            server.toggle()
            time.sleep(seconds)
            elapsed, ended_ns = time.monotonic() - began, time.time_ns()
            server.toggle()
            shares = [100 * (_busy_s(each) - before) / elapsed for each, before in zip(who, busy, strict=True)]
            rows = row.get("machine_rows") - before_rows
            memory_mb = _pss_mb(watch.pid)
            time.sleep(_DRAIN_S)
            told_ns = [_told_ns(message) for message in listener.received(f"/alert/{_ALARM}") if _is_rise(message)]
    losses = (folder / "log").read_text().count("tag_source_lost")
    counted = _counted(folder / "state" / FOLDER, began_ns, ended_ns)
    rises, delays_ms = _delays_ms(folder / "state" / FOLDER, told_ns, began_ns, ended_ns)
    figures = {
        "seconds": elapsed,
        "samples": counted["samples"],
        "samples_lost": counted["lost"],
        "connections_lost": losses,
        "bytes_per_sample": counted["bytes_per_sample"],
        "watch_percent": shares[0],
        "office_percent": shares[1],
        "server_percent": shares[2],
        "watch_pss_mb": memory_mb,
        "machine_rows": rows,
        "rises": rises,
        "alarms": len(delays_ms),
        "told_ms_p50": float(np.percentile(delays_ms, 50)),
        "told_ms_p99": float(np.percentile(delays_ms, 99)),
        "told_ms_max": float(np.max(delays_ms)),
    }
    rate_hz = counted["samples"] / elapsed
    return Benched(
        title=(
            f"{TAGS} tags at 10 Hz from node-opcua, Basic256Sha256 SignAndEncrypt, {elapsed:.0f} s, "
            f"{counted['samples']} samples ({rate_hz:.0f}/s); {MACHINES} machines of {TAGS_EACH} tags, each with its own GRU, "
            f"at 10 rows/s; {len(delays_ms)} alarms"
        ),
        gates=[
            Gate(name="samples lost", measured=float(counted["lost"]), limit=0),
            Gate(name="connections lost", measured=float(losses), limit=0),
            Gate(name="samples/s missing to 1000 x 10 Hz", measured=max(0.0, 10.0 * TAGS - rate_hz), limit=100),
            Gate(
                name="machine rows/s missing to 50 x 10",
                measured=max(0.0, MACHINES * 1000 / _GRID_MS - rows / elapsed),
                limit=5,
            ),
            Gate(name="watch process, of a core", measured=shares[0], limit=_CPU_LIMIT, unit="%"),
            Gate(name="rises without their alarm", measured=float(rises - len(delays_ms)), limit=0),
            Gate(
                name="sample to alarm published, p99",
                measured=figures["told_ms_p99"],
                limit=_TOLD_LIMIT_MS,
                unit="ms",
            ),
            Gate(name="memory of the watch process", measured=memory_mb, limit=200, unit="MB"),
            Gate(name="history, a sample", measured=counted["bytes_per_sample"], limit=8, unit="bytes"),
        ],
        figures=figures,
    )


def _settings(folder: Path, server: NodeOpcua, mqtt_port: int) -> Settings:
    certificate = asyncio.run(
        server_certificate(OpcuaEndpoint.model_validate({"url": server.url}), peer="line", timeout_s=10)
    )
    pinned = folder / "server.der"
    pinned.write_bytes(certificate)
    source = {
        "name": "line",
        "type": "opcua",
        "url": server.url,
        "server_certificate": pinned,
        "user": USER,
        "password": PASSWORD,
        "stale_ms": 10_000,  # a server that a loaded box starves is slow, not lost
        "publishing_ms": PUBLISHING_MS,
        "sampling_ms": 0,  # each change, not what stands there every so often
        "tags": [
            {"name": "toggle", "node": f"{server.namespace};s=Toggle"},
            *({"name": f"t{index}", "node": f"{server.namespace};s=Tag{index}"} for index in range(TAGS)),
        ],
    }
    return Settings.model_validate(
        {
            "version": 1,
            "node": "bench",
            "state_dir": folder / "state",
            "run_dir": folder / "run",
            "stations": [
                {
                    "name": "top",
                    "takt_ms": 100,
                    "budget_ms": 50,
                    "camera": {"type": "replay", "folder": folder, "width_px": 64, "height_px": 64},
                    "recipe": {"engine": folder},
                    "plc": {"type": "none"},
                }
            ],
            "mqtt": {"host": "127.0.0.1", "port": mqtt_port},
            "tags": [source],
            "grid": {"period_ms": _GRID_MS},
            "machines": machines(folder / "machines", MACHINES, grid_ms=_GRID_MS),
        }
    )


@contextmanager
def _processes(folder: Path, settings: Settings) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The watch and the office process, as the supervisor starts them; the station of this configuration does not run."""
    run_dir = folder / "run"
    run_dir.mkdir()
    (folder / "state").mkdir()
    board = Board.create(run_dir, ["station-top", "watch", "office"])
    (run_dir / "settings.json").write_bytes(loading.dump(settings))
    running: list[subprocess.Popen[bytes]] = []
    with (folder / "log").open("wb") as log:
        try:
            for name in ("watch", "office"):
                command = [sys.executable, "-m", "edgeqc", name, "--run-dir", str(run_dir)]
                running.append(subprocess.Popen(command, stderr=log))  # noqa: S603 - this very package
            row, until = board["watch"], time.monotonic() + _START_S
            while row.state is not State.READY or row.get("tags_good") < TAGS:
                if time.monotonic() > until or any(process.poll() is not None for process in running):
                    raise EdgeqcError(f"the tags did not come: {(folder / 'log').read_text()[-1000:]}")
                time.sleep(0.1)
            yield running
        finally:
            for process in running:
                process.terminate()
            for process in running:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end, and kill it where that does not come: what was measured is kept."""
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        talk(f"did not end in order: {' '.join(str(part) for part in process.args[2:4])}", style="yellow")  # type: ignore[index]
        process.kill()
        process.wait()


def _busy_s(pid: int) -> float:
    """CPU time of all its threads so far (proc(5): fields 14 and 15, behind the name in brackets)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _is_rise(message: Any) -> bool:
    body: dict[str, Any] = message.json
    return bool(body.get("event") == "raise")


def _told_ns(message: Any) -> int:
    """UTC of the message's arrival; the listener took it on the monotonic clock."""
    return int(message.at_ns) + time.time_ns() - time.monotonic_ns()


def _counted(folder: Path, began_ns: int, ended_ns: int) -> dict[str, float]:
    """Look for jumps in what was recorded of each counting tag."""
    history = History(folder, [f"t{index}" for index in range(TAGS)])
    last: dict[int, float] = {}
    samples = lost = 0
    for chunk in history.chunks(began_ns, ended_ns):
        order = np.lexsort((chunk.samples.at_ns, chunk.samples.places))
        ordered = chunk.samples.picked(order)
        good = ordered.picked(ordered.marks == Mark.GOOD)
        samples += len(good.places)
        for place, group in itertools.groupby(
            zip(good.places.tolist(), good.values.tolist(), strict=True), key=lambda pair: pair[0]
        ):
            values = [value for _, value in group]
            steps = np.diff([last.get(place, values[0] - 1), *values])
            lost += int(np.sum(steps[steps > 1] - 1))
            last[place] = values[-1]
    everything = sum(path.stat().st_size for path in folder.iterdir())
    written = sum(len(chunk.samples.places) for chunk in History(folder).chunks())
    return {"samples": samples, "lost": lost, "bytes_per_sample": everything / max(written, 1)}


def _delays_ms(folder: Path, told_ns: list[int], began_ns: int, ended_ns: int) -> tuple[int, list[float]]:
    """Give how many rises there were in that time, and of each that raised an alarm how long it took."""
    rises_ns = sorted(
        {
            int(stamp)
            for chunk in History(folder, [TOLD]).chunks()
            for stamp, value in zip(chunk.source_ns.tolist(), chunk.samples.values.tolist(), strict=True)
            if stamp and value == 1 and began_ns <= stamp
        }
    )
    pairs = [pair for pair in matched(rises_ns, sorted(told_ns)) if pair[0] < ended_ns]
    if not pairs:
        raise EdgeqcError("no alarm was told")
    delays = [(told - rise) * 1000 / NS_PER_S for rise, told in pairs]
    return sum(rise < ended_ns for rise in rises_ns), delays


def matched(rises_ns: Sequence[int], told_ns: Sequence[int]) -> list[tuple[int, int]]:
    """Pair each alarm with the rise that raised it: in order, one rise to one alarm. Both ascending, from the first rise on.

    An alert does not say which sample raised it. To take the newest rise before it would hide whole periods of delay; so
    nothing rises before alarms are listened to. One that is never told makes all later ones late and leaves a rise over.
    """
    pairs: list[tuple[int, int]] = []
    for told in told_ns:
        if len(pairs) < len(rises_ns) and rises_ns[len(pairs)] < told:
            pairs.append((rises_ns[len(pairs)], told))
    return pairs
