"""What a client of the servers can know: the box, its stations, their counters and last results, at one moment.

It is read from the status board and the journals, which nobody has to be asked for.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from edgeqc.journal import Entry, JournalReader, list_journals, recent_cursor
from edgeqc.records import NS_PER_S, RESULT_CODE, AlertChange, Delivery, Ne107, PartRecord, Started, Verdict
from edgeqc.server.shift import Shift
from edgeqc.settings import Settings
from edgeqc.shm.board import Board, Row, State

COUNTED: Final = ("triggers", "verdicts", "passed", "rejected", "fail_safe", "late", "missed", "doubled", "stale")
"""Counters of a station that clients see, in this order."""
RESULTS: Final = 100
"""Kept per station for those who ask: 4 s of a line with 25 parts a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One part as the journal has it, and how its verdict reached the PLC."""

    part: PartRecord
    verdict: Verdict
    """As announced: a PASS that could not be delivered in time is a REJECT here."""
    code: int
    wall_ns: int
    delivered: bool
    settled: bool
    """Is the record of the delivery there?"""

    @property
    def latency_ns(self) -> int:
        """Trigger to the PLC's acknowledgement, or to the decision where there was none."""
        ledger = self.part.ledger
        end_ns = ledger.delivered_ns or ledger.decided_ns
        return max(0, end_ns - ledger.trigger_ns) if end_ns else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StationPicture:
    """One station now."""

    name: str
    state: State
    camera_up: bool
    plc_up: bool | None
    """None: it has no PLC."""
    backend: str
    counters: Mapping[str, int]
    """Since the daemon started; the keys of COUNTED."""
    since_reset: Mapping[str, int]
    result: Result | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All of it."""

    state: Ne107
    wall_ns: int
    started_wall_ns: int
    reset_wall_ns: int
    """When `since_reset` began."""
    processes: Mapping[str, State]
    alerts: Mapping[str, AlertChange]
    """Those that are active, by id."""
    stations: tuple[StationPicture, ...]


@dataclass(slots=True)
class _Tailed:
    reader: JournalReader
    results: deque[Result] = field(default_factory=lambda: deque(maxlen=RESULTS))
    alerts: dict[str, AlertChange] = field(default_factory=dict)


class Observer:
    """Looks at the board and tails the journals. One thread."""

    def __init__(self, settings: Settings, board: Board, state_dir: Path) -> None:
        """Results and alerts begin with what the newest two segments of each journal hold.

        Journals of what the configuration does not have any more are passed over: their alerts would never end.
        """
        self._settings, self._board, self._state_dir = settings, board, state_dir
        self._tailed: dict[str, _Tailed] = {}
        self._listed_ns = 0
        self._writers = {_SUPERVISOR, *board.rows}
        self._without_plc = {station.name for station in settings.stations if station.plc.type == "none"}

    def look(self, shift: Shift) -> Picture:
        """Give what is known now. Some milliseconds where much was written since the last look, else 0.2 ms."""
        now_ns = time.monotonic_ns()
        self._follow(now_ns)
        alerts = {id_: alert for tailed in self._tailed.values() for id_, alert in tailed.alerts.items()}
        stations = tuple(self._station(station.name, shift) for station in self._settings.stations)
        rows = self._board.rows
        began_ns = min((row.started_ns for row in rows.values() if row.started_ns), default=now_ns)
        wall_ns = time.time_ns()
        return Picture(
            state=_worst(rows, alerts, stations),
            wall_ns=wall_ns,
            started_wall_ns=wall_ns - (now_ns - began_ns),
            reset_wall_ns=shift.reset_wall_ns or wall_ns - (now_ns - began_ns),
            processes={row.name: row.state for row in rows.values()},
            alerts=alerts,
            stations=stations,
        )

    def results(self, station: str) -> list[Result]:
        """The last parts of a station, newest last; KeyError where there is no such station."""
        if station not in {each.name for each in self._settings.stations}:
            raise KeyError(station)
        tailed = self._tailed.get(f"station-{station}")
        return list(tailed.results) if tailed else []

    def close(self) -> None:
        """Close the journals."""
        for tailed in self._tailed.values():
            tailed.reader.close()

    def _station(self, name: str, shift: Shift) -> StationPicture:
        row = self._board[f"station-{name}"]
        counters = {counter: row.get(counter) for counter in COUNTED}
        tailed = self._tailed.get(row.name)
        return StationPicture(
            name=name,
            state=row.state,
            camera_up=bool(row.get("camera_up")),
            plc_up=None if name in self._without_plc else bool(row.get("plc_up")),
            backend=row.backend,
            counters=counters,
            since_reset=shift.since(name, counters),
            result=tailed.results[-1] if tailed and tailed.results else None,
        )

    def _follow(self, now_ns: int) -> None:
        if now_ns - self._listed_ns > _LIST_NS:
            self._listed_ns = now_ns
            for folder in list_journals(self._state_dir):
                if folder.name in self._writers and folder.name not in self._tailed:
                    self._tailed[folder.name] = _Tailed(JournalReader(folder, recent_cursor(folder)))
        for tailed in self._tailed.values():
            for entry in _read(tailed.reader):
                _take(tailed, entry)


_SUPERVISOR: Final = "supervisor"
"""It writes a journal and is no row of the board."""
_LIST_NS: Final = NS_PER_S
_ENTRIES: Final = 200
"""Read from a journal at a look: 5 ms at most, so that a backlog never holds the clients up."""
_PRIORITIES: Final = {
    Ne107.NORMAL: 0,
    Ne107.MAINTENANCE_REQUIRED: 1,
    Ne107.OUT_OF_SPECIFICATION: 2,
    Ne107.FUNCTION_CHECK: 3,
    Ne107.FAILURE: 4,
}


def _read(reader: JournalReader) -> list[Entry]:
    try:
        return reader.read(_ENTRIES)
    except OSError:  # the disk is ill: what is known stays, and the office tells about it
        return []


def _take(tailed: _Tailed, entry: Entry) -> None:
    match entry.body:
        case PartRecord() as part:
            tailed.results.append(
                Result(
                    part=part,
                    verdict=part.verdict,
                    code=RESULT_CODE[part.cause],
                    wall_ns=part.trigger.wall_ns,
                    delivered=False,
                    settled=False,
                )
            )
        case Delivery() as delivery:
            if delivery.delivered or math.isnan(
                delivery.late_score
            ):  # else a score behind the fail-safe verdict that is out
                _settle(tailed.results, delivery)
        case AlertChange() as alert:
            if alert.active:
                tailed.alerts[alert.id] = alert
            else:
                tailed.alerts.pop(alert.id, None)
        case Started():  # what stood ended with the run before; what still stands is told anew
            tailed.alerts.clear()
        case _:
            pass


def _settle(results: deque[Result], delivery: Delivery) -> None:
    for back in range(len(results) - 1, -1, -1):
        result = results[back]
        if result.part.trigger.sequence == delivery.sequence:
            ledger = replace(result.part.ledger, delivered_ns=delivery.delivered_ns)
            results[back] = replace(
                result,
                part=replace(result.part, ledger=ledger),
                verdict=delivery.verdict,
                code=RESULT_CODE[delivery.cause],
                delivered=delivery.delivered,
                settled=True,
            )
            return


def _worst(rows: Mapping[str, Row], alerts: Mapping[str, AlertChange], stations: tuple[StationPicture, ...]) -> Ne107:
    states = [alert.ne107 for alert in alerts.values()]
    states += [Ne107.FAILURE for row in rows.values() if row.state is not State.READY]
    states += [Ne107.FAILURE for each in stations if not each.camera_up or each.plc_up is False]
    return max(states, key=_PRIORITIES.__getitem__, default=Ne107.NORMAL)
