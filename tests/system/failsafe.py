"""The fail-safe matrix: what the PLC sees of each fault, how soon, and who is told. README shows these very rows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Parts(StrEnum):
    """What the parts get that are triggered while the fault lasts."""

    JUDGED = "judged as ever"
    REJECT = "REJECT"
    """Each by its deadline."""
    NOTHING = "nothing"
    """No new result; what comes first when somebody writes again is a block without one."""


class Signal(StrEnum):
    """A bit of the result block, or HEARTBEAT, while the fault lasts."""

    ON = "on"
    OFF = "off"
    COMES_AND_GOES = "comes and goes"
    AS_IT_WAS = "as it was"
    """Nobody is there to write it."""
    MOVES = "moves"
    STANDS = "stands"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault. Times are in seconds, with the settings that README names above its table."""

    fault: str
    parts: Parts
    codes: tuple[int, ...] = ()
    """Result codes that a part may get."""
    parts_s: float = 0.0
    """From the fault until parts get that."""
    ready: Signal = Signal.ON
    fault_bit: Signal = Signal.OFF
    stop: Signal = Signal.OFF
    heartbeat: Signal = Signal.MOVES
    seen_s: float = 1.0
    """From the fault until the signals are so."""
    told: str = ""
    """Topic below the prefix; empty: nobody is told."""
    event: str = "process_ended"
    """Its name, where `told` is `event`."""
    told_s: float = 2.0
    """From the fault."""
    true: tuple[str, ...] = ()
    """Alerts that are so, though nobody can be told of them while the fault lasts: they are told afterwards."""
    logged: str = ""
    """The event of the log that tells of it, and one of its facts."""
    times: int = 1
    """How often the log says so."""
    back_s: float = 0.0
    """From the fault's end (a killed process: from the fault) to the next judged part; 0: they never stopped."""

    @property
    def cells(self) -> tuple[str, ...]:
        """As README has them."""
        parts = f"REJECT {', '.join(map(str, self.codes))}" if self.parts is Parts.REJECT else self.parts.value
        if self.parts_s:
            parts += f" after {self.parts_s:g} s"
        signals = [signal.value for signal in (self.ready, self.fault_bit, self.stop)]
        within = f", {self.seen_s:g} s"
        if (self.ready, self.fault_bit, self.stop, self.heartbeat) == _WELL:
            within = ""
        told = f"`{self.told}`, {self.told_s:g} s" if self.told else ""
        back = f"{self.back_s:g} s" if self.back_s else ""
        return (self.fault, parts, *signals, self.heartbeat.value + within, told, back)


_WELL: Final = (Signal.ON, Signal.OFF, Signal.OFF, Signal.MOVES)
HEAD: Final = ("fault", "parts get", "READY", "FAULT", "STOP", "HEARTBEAT, within", "told, within", "back within")
_BLIND: Final[dict[str, Any]] = {"parts": Parts.REJECT, "stop": Signal.ON, "back_s": 2}
_CAMERA: Final[dict[str, Any]] = {
    **_BLIND,
    "codes": (101,),
    "told": "alert/top.camera.lost",
    "logged": "peer_lost peer=camera",
}
_STOP: Final = "alert/top.line.stop"
_STATION: Final = "process_ended name=station-top"
_DEAD: Final[dict[str, Any]] = {
    "parts": Parts.NOTHING,
    "ready": Signal.AS_IT_WAS,
    "fault_bit": Signal.AS_IT_WAS,
    "stop": Signal.AS_IT_WAS,
    "heartbeat": Signal.STANDS,
    "seen_s": 0.3,
}
_ENDED: Final[dict[str, Any]] = {**_DEAD, "ready": Signal.OFF, "fault_bit": Signal.OFF, "seen_s": 2}
_PLC: Final[dict[str, Any]] = {
    **_DEAD,
    "seen_s": 0.5,
    "told": "alert/top.plc.lost",
    "logged": "peer_lost peer=plc",
    "back_s": 2,
}

ROWS: Final[dict[str, Row]] = {
    "camera_gone": Row(fault="camera gone", ready=Signal.OFF, fault_bit=Signal.ON, **_CAMERA),
    "camera_silent": Row(
        fault="camera answers, but sends no image",
        ready=Signal.COMES_AND_GOES,
        fault_bit=Signal.COMES_AND_GOES,
        **_CAMERA,
    ),
    "camera_late": Row(
        fault="image later than its part", codes=(101, 109), told=_STOP, logged="line_stop_asked", **_BLIND
    ),
    "camera_broken": Row(fault="image incomplete", codes=(102,), told=_STOP, logged="line_stop_asked", **_BLIND),
    "engine_slow": Row(
        fault="engine slower than the budget", codes=(100, 101), told=_STOP, logged="line_stop_asked", **_BLIND
    ),
    "engine_nan": Row(
        fault="a score is no number",
        parts=Parts.REJECT,
        codes=(103,),
        told="event",
        event="engine_failed",
        logged="part_without_score",
    ),
    "engine_failing": Row(
        fault="engine fails three times in a row: the station ends and starts anew",
        told="alert/top.engine.failed",
        logged="engine_failed",
        back_s=8,
        codes=(103,),
        **_ENDED,
    ),
    "tags_gone": Row(
        fault="server of a required tag gone",
        codes=(104,),
        parts_s=1,
        told="alert/tags.sim.lost",
        told_s=4,
        logged="alert_raised id=tags.sim.lost",
        **_BLIND,
    ),
    "tags_hung": Row(
        fault="server of a required tag hangs",
        codes=(104,),
        parts_s=1,
        told="alert/tags.sim.hung",
        told_s=4,
        logged="alert_raised id=tags.sim.hung",
        **_BLIND,
    ),
    "plc_program_stopped": Row(
        fault="PLC answers, its program stands still",
        parts=Parts.JUDGED,
        ready=Signal.OFF,
        told="alert/top.plc.program",
        logged="plc_program_stopped",
    ),
    "plc_refuses": Row(fault="PLC refuses writes", **_PLC),
    "plc_hung": Row(fault="PLC hangs", **_PLC),
    "plc_gone": Row(fault="PLC or its network gone", **_PLC),
    "office_killed": Row(fault="office killed", parts=Parts.JUDGED, told="state", logged="process_ended name=office"),
    "broker_gone": Row(fault="broker gone", parts=Parts.JUDGED, logged="broker_lost"),
    "server_killed": Row(
        fault="SCADA server killed", parts=Parts.JUDGED, told="event", logged="process_ended name=server-modbus"
    ),
    "station_killed": Row(fault="station killed", told="event", logged=_STATION, back_s=8, **_DEAD),
    "station_hung": Row(
        fault="station hangs", told="event", logged="process_hung name=station-top", told_s=5, back_s=11, **_DEAD
    ),
    "station_keeps_ending": Row(
        fault="station ends more than three times in 10 s",
        told="alert/process.station-top",
        logged=_STATION,
        times=4,
        back_s=9,
        **_DEAD,
    ),
    "supervisor_hung": Row(fault="supervisor hangs", parts=Parts.JUDGED, logged="supervisor_stood_still"),
    "supervisor_killed": Row(fault="supervisor killed", told="state", logged="daemon_started", back_s=10, **_ENDED),
    "told_to_stop": Row(fault="told to stop", told="state", told_s=5, logged="daemon_stopping", back_s=10, **_ENDED),
    "box_dead": Row(
        fault="all its processes killed at once", told="state", logged="daemon_started", back_s=10, **_DEAD
    ),
    "disk_full": Row(fault="disk full", parts=Parts.JUDGED, told="alert/office.archive.stuck", logged="archive_stuck"),
    "disk_used_up": Row(
        fault="disk full, and what the journal had prepared used up",
        codes=(105,),
        logged="disk_full",
        true=("top.line.stop",),
        **_BLIND,
    ),
}
"""By the name of what brings the fault about, in the order in which they come."""


def table(rows: dict[str, Row]) -> list[str]:
    """The matrix in Markdown, line by line."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(row.cells for row in rows.values())]
    return [f"| {' | '.join(cells)} |" for cells in lines]
