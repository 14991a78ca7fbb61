"""The demo's machine: a valve that closes on a pump's loop (SKAB), from the rise of its alarm to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeqc.cli.console import talk
from edgeqc.errors import EdgeqcError

if TYPE_CHECKING:
    from edgeqc.sim.line import SimLine
    from edgeqc.sim.machine import SimMachine

SKAB: Final = Path(__file__).parents[2] / ".." / "shared" / "data" / "skab"
FILE: Final = "valve1/1.csv"
NAME: Final = "pump"
ALERT: Final = f"machine.{NAME}.deviation"
RATE_HZ: Final = 10.0
"""Rows per second, of which the recording has one: its last 14 minutes in 90 s."""
LEARNED_ROWS: Final = 400
REST: Final = (200, 399)
"""Rows among which the machine waits until the line runs: good ones, which the model has learned."""
_TAGS: Final = {
    "Accelerometer1RMS": ("vibration-1", "g"),
    "Accelerometer2RMS": ("vibration-2", "g"),
    "Current": ("current", "A"),
    "Pressure": ("pressure", "bar"),
    "Temperature": ("temperature", "degC"),
    "Thermocouple": ("fluid-temperature", "degC"),
    "Voltage": ("voltage", "V"),
    "Volume Flow RateRMS": ("flow", "l/min"),
}
_PATIENCE_S: Final = 30.0
"""Beyond what the recording takes."""


@dataclass(slots=True, kw_only=True)
class DemoMachine:
    """What the demo needs of it."""

    package: Path
    rows: Path
    names: list[str]
    units: dict[str, str]
    fault_row: int
    """First row that is labelled as anomalous: known to the spectator, not to the daemon."""
    fault_end: int
    total: int
    network: bool
    began_s: float = 0.0
    """UTC seconds at which the machine left its rest."""
    seen: list[str] = field(default_factory=list)
    """States of the alarm, in the order in which they were told."""

    def start(self) -> SimMachine:
        """The simulated PLC that replays it; a context."""
        from edgeqc.sim.machine import SimMachine  # noqa: PLC0415 - asyncua

        return SimMachine(self.rows, self.names, rate_hz=RATE_HZ, rest=REST)

    def changes(self, server: SimMachine) -> dict[str, Any]:
        """What the line's configuration needs beside the rest: source, grid, machine, commands."""
        return {
            "source": server.source(NAME, self.units),
            "grid": {"period_ms": 1000 / RATE_HZ, "late_ms": 300},
            "machines": [
                {
                    "name": NAME,
                    "model": str(self.package),
                    "priority": "high",
                    "action": "Check the valve behind the pump",
                    "alarm": {"on_delay_s": 0.5},
                }
            ],
        }

    def go(self, server: SimMachine) -> None:
        """The recording goes on; say when its label says that the valve closes."""
        self.began_s = time.time()
        server.go()
        first, last = ((self.fault_row - row) / RATE_HZ for row in reversed(REST))
        over = (self.fault_end - REST[1]) / RATE_HZ
        talk(
            f"Machine: the valve closes {first:.0f} to {last:.0f} s from now and is open again from about {over:.0f} s on."
        )

    def watch(self, line: SimLine) -> list[str]:
        """Follow the alarm until it is over; acknowledge it on the way. Give what was missing, one line each."""
        until = time.monotonic() + (self.total - REST[0]) / RATE_HZ + _PATIENCE_S
        acknowledged = False
        told = 0
        while time.monotonic() < until:
            for body in self._told(line)[told:]:
                told += 1
                self._show(body)
            if self.seen and self.seen[-1] == "active_unacked" and not acknowledged:
                acknowledged = True
                self._acknowledge(line)
            if acknowledged and self.seen[-1] == "normal":
                break
            time.sleep(0.1)  # alarms take seconds to rise and to clear
        wanted = {
            "active_unacked": "the alarm never rose",
            "active_acked": "the acknowledgement did not arrive",
            "normal": "the alarm did not clear",
        }
        return [f"{NAME}: {fault}" for state, fault in wanted.items() if state not in self.seen]

    def _told(self, line: SimLine) -> list[dict[str, Any]]:
        """What the broker (the archive, where there is none) was told of the alarm so far."""
        if line.listener is not None:
            return line.listener.payloads(f"edgeqc/demo/alert/{ALERT}")
        from edgeqc.office.alarmlist import history  # noqa: PLC0415 - sqlite

        return list(reversed(history(line.state_dir, alarm=ALERT)))

    def _show(self, body: dict[str, Any]) -> None:
        state = body["state"]
        if state == "normal" and not self.seen:
            return  # of the start: the rise is still to come
        at_s = datetime.fromisoformat(body["ts"]).timestamp() - self.began_s
        if state not in self.seen[-1:]:
            colour = {"active_unacked": "bold red", "active_acked": "yellow", "normal": "green"}.get(state, "")
            talk(f"{at_s:5.1f} s  {body['id']}: {state}", style=colour)
            if state == "active_unacked":
                talk(f"         {body['text']}")
                shares = ", ".join(f"{one['tag']} {one['share']:.0%}" for one in body["contribution"])
                talk(f"         cause: {shares}   do: {body['action']}")
            elif state == "active_acked":
                talk(f"         by {body['acked_by']}: {body['note']}")
            elif state == "normal":
                talk(f"         {body['text']}")
            self.seen.append(state)

    def _acknowledge(self, line: SimLine) -> None:
        from edgeqc.office.commands import ask  # noqa: PLC0415

        said = ask(
            line.state_dir,
            {"verb": "ack", "user": "demo", "args": {"id": ALERT, "note": "on my way to the valve"}},
        )
        if said["status"] != "ok":
            talk(f"acknowledging failed: {said['error']['message']}", style="red")


def prepare(folder: Path, data: Path | None = None) -> DemoMachine | None:
    """Learn the machine from the recording's first rows; None, said loudly, where the recording is not there."""
    from edgeqc.train.tags.course import learn  # noqa: PLC0415 - heavy
    from edgeqc.train.tags.package import Wishes  # noqa: PLC0415
    from edgeqc.train.tags.recording import read_csv  # noqa: PLC0415

    path = (data or SKAB) / FILE
    if not path.exists():
        talk(
            f"--tags skab: {path} is not there. The recordings (SKAB, GPL-3.0, github.com/waico/SKAB) are not part of "
            "edgeqc; put them there, or name their folder with --tag-data. The machine is left out.",
            style="bold yellow",
        )
        return None
    found = read_csv(path, list(_TAGS))
    if found.anomaly is None:
        raise EdgeqcError(f"{path}: has no column anomaly")
    names = [name for name, _ in _TAGS.values()]
    units = dict(_TAGS.values())
    train = found.picked(slice(0, LEARNED_ROWS))
    train = type(train)(
        source=train.source,
        tags=tuple(names),
        seconds=np.arange(LEARNED_ROWS, dtype=np.float64) / RATE_HZ,
        values=train.values,
    )
    package = folder / "machine" / "1"
    network = True
    talk(f"Learning the machine from {LEARNED_ROWS} rows of {FILE} ...")

    def wishes(with_network: bool) -> Wishes:
        return Wishes(
            name=NAME,
            description="The demo's pump and valve",
            licence="GPL-3.0 (SKAB)",
            per_day=None,
            grid_ms=1000 / RATE_HZ,
            network=with_network,
            units=units,
        )

    try:
        learn(train, [slice(0, LEARNED_ROWS)], wishes(True), package)
    except EdgeqcError as exc:
        network = False
        talk(f"No forecaster: {exc}.", style="bold yellow")
        learn(train, [slice(0, LEARNED_ROWS)], wishes(False), package)
    rows = folder / "machine" / "rows.npy"
    np.save(rows, found.values)
    faulty = np.flatnonzero(found.anomaly)
    return DemoMachine(
        package=package,
        rows=rows,
        names=names,
        units=units,
        fault_row=int(faulty[0]),
        fault_end=int(faulty[-1]),
        total=len(found),
        network=network,
    )
