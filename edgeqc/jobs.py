"""The daemon's processes: one table, in the order in which they are started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeqc.records import NS_PER_MS, NS_PER_S
from edgeqc.settings import NoPlcSettings, Settings, StationSettings

_PEER_NS: Final = 60 * NS_PER_S
"""For who opens peers: OPC UA may take 14 s, and Aravis was seen to sit 5 s in a call to a dead camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process of the daemon."""

    name: str
    """Row of the status board, journal and log name."""
    argv: tuple[str, ...]
    """What stands behind `edgeqc` in `ps`."""
    limits_ns: Mapping[str, int]
    """A loop that has not beaten for so long is hung: the process is killed and started again."""
    stop_s: float
    """How long it may take to stop in order."""
    turn: int = 1
    """In which it is stopped: 0 stations, so that outputs are safe; 1 who only reads; 2 the office, which still sees what
    all of them wrote. Those of one turn are stopped together."""
    serves_others: bool = False
    """Its clients are strangers: the daemon is ready, and a line runs, without it."""


def jobs(settings: Settings) -> list[Job]:
    """The table of processes, in the order in which they are started; `Job.turn` is that in which they are stopped."""
    table = [
        Job(
            name=f"station-{station.name}",
            argv=("station", station.name),
            limits_ns=_station_limits(station),
            stop_s=4,
            turn=0,
        )
        for station in settings.stations
    ]
    if settings.tags:
        table.append(Job(name="watch", argv=("watch",), limits_ns={"main": 10 * NS_PER_S}, stop_s=3))
    for protocol, chosen in (("modbus", settings.server.modbus), ("opcua", settings.server.opcua)):
        if chosen is not None:
            table.append(
                Job(
                    name=f"server-{protocol}",
                    argv=("server", protocol),
                    limits_ns={"main": 10 * NS_PER_S},
                    stop_s=3,
                    serves_others=True,
                )
            )
    table.append(Job(name="office", argv=("office",), limits_ns={"main": 20 * NS_PER_S}, stop_s=5, turn=2))
    return table


def _station_limits(station: StationSettings) -> dict[str, int]:
    most_ns = 2 * NS_PER_S + int(station.budget_ms * NS_PER_MS)  # a verdict's write may take until its deadline
    limits_ns = {"line": most_ns, "guard": most_ns, "cameras": _PEER_NS}
    if not isinstance(station.plc, NoPlcSettings):
        limits_ns["plc"] = _PEER_NS
    if station.polls_plc:
        limits_ns["triggers"] = most_ns
    if station.tracked_gate is not None:
        limits_ns["gate"] = _PEER_NS
    return limits_ns
