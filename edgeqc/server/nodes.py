"""The address space of the OPC UA server: which nodes there are, and what they say of a picture.

Everything hangs under Objects/edgeqc in the namespace `urn:edgeqc`. NodeIds are strings that never change: `Box.State`,
`Station.<name>.Result.Verdict`, `Tag.<name>`.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

from asyncua import ua

from edgeqc.records import NS_PER_MS, NS_PER_S, Quality
from edgeqc.server.picture import COUNTED, Picture, Result, StationPicture
from edgeqc.shm.board import State
from edgeqc.shm.tagtable import TagTable

NAMESPACE: Final = "urn:edgeqc"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable(Generic[_T]):
    """One variable and where its value is in a picture."""

    name: str
    """Its path below the box or the station, with dots."""
    type: ua.VariantType
    what: str
    value: Callable[[_T], Any]
    """None: there is no value, Bad_NoData."""
    at_ns: Callable[[_T], int] | None = None
    """UTC of the value's origin, where it is not now."""
    array: bool = False


def box_variables(*, version: str, config_digest: str) -> tuple[Variable[Picture], ...]:
    """What is under Box."""
    return (
        Variable(name="State", type=_TEXT, what="worst NE 107 state of all", value=lambda box: box.state.value),
        Variable(
            name="Time",
            type=_TIME,
            what="of these values; stands still when they are old",
            value=lambda b: _utc(b.wall_ns),
        ),
        Variable(name="Version", type=_TEXT, what="of edgeqc", value=lambda _: version),
        Variable(name="ConfigDigest", type=_TEXT, what="SHA-256 of the configuration", value=lambda _: config_digest),
        Variable(
            name="StartTime",
            type=_TIME,
            what="when the daemon started",
            value=lambda b: _utc(b.started_wall_ns, whole=True),
        ),
        Variable(
            name="ResetTime",
            type=_TIME,
            what="when Shift counters began",
            value=lambda b: _utc(b.reset_wall_ns, whole=True),
        ),
        Variable(
            name="Alerts", type=_TEXT, what="ids of the active alerts", value=lambda box: sorted(box.alerts), array=True
        ),
        Variable(
            name="AlertTexts",
            type=_TEXT,
            what="their texts, in the same order",
            value=lambda box: [box.alerts[id_].text for id_ in sorted(box.alerts)],
            array=True,
        ),
        Variable(
            name="Processes",
            type=_TEXT,
            what="`name state` of each process of the daemon",
            value=lambda box: [f"{name} {state.name.lower()}" for name, state in box.processes.items()],
            array=True,
        ),
    )


def station_variables() -> tuple[Variable[StationPicture], ...]:
    """What is under each station."""
    counters = [
        Variable(name=f"Counters.{_camel(name)}", type=_U64, what="since the daemon started", value=_counter(name))
        for name in COUNTED
    ]
    shift = [
        Variable(name=f"Shift.{_camel(name)}", type=_U64, what="since ResetCounters", value=_shift(name))
        for name in COUNTED
    ]
    return (
        Variable(
            name="State", type=_TEXT, what="off, starting, ready, ...", value=lambda each: each.state.name.lower()
        ),
        Variable(name="Ready", type=_BOOL, what="is it judging?", value=lambda each: each.state is State.READY),
        Variable(name="CameraUp", type=_BOOL, what="does the camera answer?", value=lambda each: each.camera_up),
        Variable(name="PlcUp", type=_BOOL, what="does the PLC answer?", value=lambda each: each.plc_up),
        Variable(name="Backend", type=_TEXT, what="what the engine runs on", value=lambda each: each.backend),
        *counters,
        *shift,
        _of_result("Sequence", _U64, "number of the part", lambda result: result.part.trigger.sequence),
        _of_result("PartId", _TEXT, "as the PLC names the part", lambda result: result.part.trigger.part_id),
        _of_result("Verdict", _TEXT, "pass or reject", lambda result: result.verdict.value),
        _of_result("Code", ua.VariantType.UInt16, "result code", lambda result: result.code),
        _of_result("Score", _REAL, "0..1, higher is worse", lambda result: _finite(result.part.score)),
        _of_result("Threshold", _REAL, "0..1", lambda result: _finite(result.part.threshold)),
        _of_result(
            "LatencyMs", _REAL, "trigger to the PLC's acknowledgement", lambda result: result.latency_ns / NS_PER_MS
        ),
        _of_result("Delivered", _BOOL, "has the PLC acknowledged it?", lambda result: result.delivered),
        _of_result("Recipe", _TEXT, "by which it was judged", lambda result: result.part.recipe),
        _of_result("Model", _TEXT, "SHA-256 of the model", lambda result: result.part.model_digest.hex()),
        _of_result("Json", _TEXT, "all of it, of one moment", lambda result: json.dumps(as_json(result))),
    )


def as_json(result: Result) -> dict[str, Any]:
    """A result as GetResults and Result.Json give it."""
    part = result.part
    return {
        "station": part.station,
        "sequence": part.trigger.sequence,
        "part_id": part.trigger.part_id,
        "time": _utc(result.wall_ns).isoformat(timespec="milliseconds"),
        "verdict": result.verdict.value,
        "cause": part.cause.value,
        "code": result.code,
        "score": _finite(part.score),
        "threshold": _finite(part.threshold),
        "latency_ms": round(result.latency_ns / NS_PER_MS, 3),
        "delivered": result.delivered,
        "recipe": part.recipe,
        "model": part.model_digest.hex(),
        "defects": [
            {"name": each.name, "score": round(each.score, 4), "x_px": each.x_px, "y_px": each.y_px}
            for each in part.defects
        ],
    }


def data_value(variable: Variable[_T], source: _T) -> ua.DataValue:
    """What the node says of this picture."""
    value = variable.value(source)
    at_ns = variable.at_ns(source) if variable.at_ns is not None else 0
    stamp = _stamp(at_ns / NS_PER_S)
    if value is None:
        return no_value()
    return ua.DataValue(ua.Variant(value, variable.type, is_array=variable.array), SourceTimestamp=stamp)


def no_value() -> ua.DataValue:
    """There is none yet."""
    return ua.DataValue(StatusCode=ua.StatusCode(ua.UInt32(_NO_DATA)))


def tag_values(table: TagTable, now_ns: int) -> Iterator[tuple[str, ua.DataValue]]:
    """Every tag with its quality as a status and its source's time."""
    for index, name in enumerate(table.names):
        tag = table.read(index, now_ns)
        yield (
            f"Tag.{name}",
            ua.DataValue(
                ua.Variant(tag.value, ua.VariantType.Double),
                StatusCode=_STATUS[tag.quality],
                SourceTimestamp=_stamp(tag.source_ts),
            ),
        )


_TEXT: Final = ua.VariantType.String
_TIME: Final = ua.VariantType.DateTime
_BOOL: Final = ua.VariantType.Boolean
_REAL: Final = ua.VariantType.Double
_U64: Final = ua.VariantType.UInt64
_NO_DATA: Final = 0x809B0000
"""Bad_NoData: there is no value yet."""
_STATUS: Final = {
    Quality.GOOD: ua.StatusCode(ua.UInt32(0)),
    Quality.UNCERTAIN: ua.StatusCode(ua.UInt32(0x40000000)),
    Quality.BAD: ua.StatusCode(ua.UInt32(0x80000000)),
}


def _of_result(name: str, kind: ua.VariantType, what: str, read: Callable[[Result], Any]) -> Variable[StationPicture]:
    return Variable(
        name=f"Result.{name}",
        type=kind,
        what=what,
        value=lambda station: None if station.result is None else read(station.result),
        at_ns=lambda station: 0 if station.result is None else station.result.wall_ns,
    )


def _counter(name: str) -> Callable[[StationPicture], int]:
    return lambda station: station.counters[name]


def _shift(name: str) -> Callable[[StationPicture], int]:
    return lambda station: station.since_reset[name]


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _utc(wall_ns: int, *, whole: bool = False) -> dt.datetime:
    """OPC UA's clock; whole seconds where the moment is worked out anew at each look."""
    seconds = wall_ns // NS_PER_S if whole else wall_ns / NS_PER_S
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _stamp(seconds: float) -> ua.DateTime | None:
    """A source's time; None where it gave none, or one that is no date."""
    try:
        return cast("ua.DateTime", dt.datetime.fromtimestamp(seconds, dt.UTC)) if seconds > 0 else None
    except (ValueError, OverflowError, OSError):
        return None
