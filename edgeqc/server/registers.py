"""The register map of the Modbus server: one table, from which the registers are filled, shown and tested. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from edgeqc.core.datatype import DataType, Value, encode, width
from edgeqc.plc.registers import SCORE_SCALE, Status
from edgeqc.records import NS_PER_S, Ne107, Verdict
from edgeqc.server.picture import COUNTED, Picture, Result, StationPicture
from edgeqc.settings import Command
from edgeqc.shm.board import State

MAP_VERSION: Final = 1
STATIONS_AT: Final = 100
STATION_REGISTERS: Final = 100
RESULT_AT: Final = 40
"""Offset of the last result in a station's block."""
NE107: Final = {
    Ne107.NORMAL: 0,
    Ne107.MAINTENANCE_REQUIRED: 1,
    Ne107.OUT_OF_SPECIFICATION: 2,
    Ne107.FUNCTION_CHECK: 3,
    Ne107.FAILURE: 4,
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field(Generic[_T]):
    """Some registers of a block and what they say."""

    name: str
    at: int
    """Offset in its block."""
    type: DataType
    what: str
    value: Callable[[_T], Value]
    chars: int = 0
    writable: Command | None = None

    @property
    def count(self) -> int:
        """How many registers."""
        return width(self.type, chars=self.chars)


def box_fields(*, version: str, config_digest: str, heartbeat: Callable[[], int]) -> tuple[Field[Picture], ...]:
    """The block at 0. `heartbeat` gives the number of the look; the watchdog's registers are filled in by the bank."""
    return (
        Field(name="map_version", at=0, type=_U16, what=f"{MAP_VERSION}: this map", value=lambda _: MAP_VERSION),
        Field(
            name="heartbeat",
            at=1,
            type=_U16,
            what="counts up 20 times a second; stands still when the values are old",
            value=lambda _: heartbeat() & 0xFFFF,
        ),
        Field(
            name="state",
            at=2,
            type=_U16,
            what="NE 107: 0 normal, 1 maintenance required, 2 out of specification, 3 function check, 4 failure",
            value=lambda box: NE107[box.state],
        ),
        Field(name="stations", at=3, type=_U16, what="how many", value=lambda box: len(box.stations)),
        Field(
            name="alerts", at=4, type=_U16, what="how many are active", value=lambda box: min(len(box.alerts), 65_535)
        ),
        Field(
            name="now_s",
            at=6,
            type=_U32,
            what="this box's clock, UTC seconds since 1970",
            value=lambda box: _s(box.wall_ns),
        ),
        Field(
            name="started_s",
            at=8,
            type=_U32,
            what="when the daemon started, UTC seconds",
            value=lambda box: _s(box.started_wall_ns),
        ),
        Field(
            name="reset_s",
            at=10,
            type=_U32,
            what="when the counters since reset began, UTC seconds",
            value=lambda box: _s(box.reset_wall_ns),
        ),
        Field(
            name="config",
            at=12,
            type=_U32,
            what="first 8 hex digits of the configuration's SHA-256",
            value=lambda _: int(config_digest[:8] or "0", 16),
        ),
        Field(name="version", at=14, type=_TEXT, chars=12, what="of edgeqc", value=lambda _: version),
        Field(
            name="watchdog",
            at=20,
            type=_U16,
            what="for the client to write any value into",
            value=lambda _: 0,
            writable=Command.WATCHDOG,
        ),
        Field(
            name="watchdog_age_ms",
            at=21,
            type=_U16,
            what="since the watchdog was written; 65535 = longer, or never",
            value=lambda _: 0xFFFF,
        ),
        Field(
            name="reset_counters",
            at=22,
            type=_U16,
            what="write 1: all stations' counters since reset begin anew; reads 0",
            value=lambda _: 0,
            writable=Command.RESET_COUNTERS,
        ),
    )


def _result(read: Callable[[Result], Value], none: Value = 0) -> Callable[[StationPicture], Value]:
    return lambda station: none if station.result is None else read(station.result)


def station_fields() -> tuple[Field[StationPicture], ...]:
    """The block of station n, at 100 + 100 n in the order of the configuration."""
    since_start = [
        Field(name=name, at=2 + 2 * place, type=_U32, what="since the daemon started", value=_counter(name))
        for place, name in enumerate(COUNTED)
    ]
    since_reset = [
        Field(name=f"shift_{name}", at=20 + 2 * place, type=_U32, what="since reset", value=_shift(name))
        for place, name in enumerate(COUNTED)
    ]
    at = RESULT_AT
    return (
        Field(
            name="state",
            at=0,
            type=_U16,
            what="0 off, 1 starting, 2 ready, 3 degraded, 4 stopping, 5 failed",
            value=lambda station: int(station.state),
        ),
        Field(name="flags", at=1, type=_U16, what="bit 0 ready, 1 camera is up, 2 PLC is up", value=_flags),
        *since_start,
        *since_reset,
        Field(
            name="shift_reject_ratio",
            at=38,
            type=_U16,
            what="rejected / verdicts since reset, times 10000",
            value=lambda station: _ratio(station.since_reset["rejected"], station.since_reset["verdicts"]),
        ),
        Field(
            name="sequence",
            at=at,
            type=_U32,
            what="of the last part; 0 = none yet",
            value=_result(lambda result: result.part.trigger.sequence & 0xFFFF_FFFF),
        ),
        Field(name="result", at=at + 2, type=_U16, what="bit 0 PASS, 1 REJECT, 2 RESULT_VALID", value=_result(_status)),
        Field(name="code", at=at + 3, type=_U16, what="result code", value=_result(lambda result: result.code)),
        Field(
            name="score",
            at=at + 4,
            type=_U16,
            what="times 10000; 0 where there is none",
            value=_result(lambda result: _scaled(result.part.score)),
        ),
        Field(
            name="threshold",
            at=at + 5,
            type=_U16,
            what="times 10000",
            value=_result(lambda result: _scaled(result.part.threshold)),
        ),
        Field(
            name="part_id",
            at=at + 6,
            type=_TEXT,
            chars=16,
            what="16 characters",
            value=_result(lambda result: result.part.trigger.part_id, ""),
        ),
        Field(
            name="latency_us",
            at=at + 14,
            type=_U32,
            what="trigger to the PLC's acknowledgement, microseconds",
            value=_result(lambda result: min(result.latency_ns // 1000, 0xFFFF_FFFF)),
        ),
        Field(
            name="time_s",
            at=at + 16,
            type=_U32,
            what="of the trigger, UTC seconds",
            value=_result(lambda r: _s(r.wall_ns)),
        ),
        Field(
            name="delivered",
            at=at + 18,
            type=_U16,
            what="1 = the PLC has acknowledged it",
            value=_result(lambda result: int(result.delivered)),
        ),
        Field(
            name="defects",
            at=at + 19,
            type=_U16,
            what="how many were found",
            value=_result(lambda r: len(r.part.defects)),
        ),
        Field(name="station", at=60, type=_TEXT, chars=16, what="its name", value=lambda station: station.name),
        Field(
            name="recipe",
            at=68,
            type=_TEXT,
            chars=16,
            what="of the last part",
            value=_result(lambda r: r.part.recipe, ""),
        ),
    )


def registers(stations: int) -> int:
    """How many the map has, from 0 on."""
    return STATIONS_AT + STATION_REGISTERS * stations


def image(box: Picture, fields: tuple[Field[Picture], ...], each: tuple[Field[StationPicture], ...]) -> bytearray:
    """All registers of the map, 2 bytes each; what belongs to no field is 0."""
    memory = bytearray(2 * registers(len(box.stations)))
    for field in fields:
        _put(memory, field.at, field, box)
    for place, station in enumerate(box.stations):
        for of in each:
            _put(memory, STATIONS_AT + STATION_REGISTERS * place + of.at, of, station)
    return memory


def lines(stations: list[str]) -> Iterator[dict[str, str | int]]:
    """The map as people read it, for these stations: address, name, type, how many registers, access, what it says."""
    blocks: list[tuple[str, int, tuple[Field[Picture] | Field[StationPicture], ...]]] = [
        ("", 0, box_fields(version="", config_digest="0", heartbeat=int))
    ]
    blocks += [
        (f"{name}.", STATIONS_AT + STATION_REGISTERS * place, station_fields()) for place, name in enumerate(stations)
    ]
    for prefix, at, fields in blocks:
        for field in fields:
            yield {
                "address": at + field.at,
                "name": prefix + field.name,
                "type": f"string{field.chars}" if field.type is DataType.STRING else str(field.type),
                "registers": field.count,
                "access": "read, write" if field.writable else "read",
                "what": field.what,
            }


_U16: Final = DataType.UINT16
_U32: Final = DataType.UINT32
_TEXT: Final = DataType.STRING


def _put(memory: bytearray, at: int, field: Field[_T], source: _T) -> None:
    data = encode(field.value(source), field.type, chars=field.chars)
    memory[2 * at : 2 * at + len(data)] = data


def _counter(name: str) -> Callable[[StationPicture], Value]:
    return lambda station: station.counters[name] & 0xFFFF_FFFF


def _shift(name: str) -> Callable[[StationPicture], Value]:
    return lambda station: station.since_reset[name] & 0xFFFF_FFFF


def _flags(station: StationPicture) -> int:
    return (station.state is State.READY) | station.camera_up << 1 | bool(station.plc_up) << 2


def _status(result: Result) -> int:
    return int((Status.PASS if result.verdict is Verdict.PASS else Status.REJECT) | Status.RESULT_VALID)


def _scaled(share: float) -> int:
    return 0 if math.isnan(share) else round(min(max(share, 0.0), 1.0) * SCORE_SCALE)


def _ratio(part: int, whole: int) -> int:
    return _scaled(part / whole) if whole else 0


def _s(wall_ns: int) -> int:
    return wall_ns // NS_PER_S & 0xFFFF_FFFF
