"""Tag values of the machine, one adapter per kind of server, all behind the TagSource port."""

from __future__ import annotations

from pathlib import Path

from edgeqc.ports import TagSink, TagSource
from edgeqc.settings import ModbusTagSource, OpcuaTagSource, ReplayTagSource
from edgeqc.tags.pace import Pace

MeasuredSource = OpcuaTagSource | ModbusTagSource | ReplayTagSource
"""Sources that ask a peer; the others are made of their tags."""


def open_source(settings: MeasuredSource, *, sink: TagSink, state_dir: Path, pace: Pace | None = None) -> TagSource:
    """Make the source that feeds `sink`. Nothing is connected until `run`.

    `pace`: of a Modbus device that other sources ask, too (`paces`).
    """
    match settings:
        # imported here because each library costs 20 to 50 MiB that a box without such a server need not pay
        case OpcuaTagSource():
            from edgeqc.tags.opcua import OpcuaTags  # noqa: PLC0415 - see above

            return OpcuaTags(settings, sink=sink, state_dir=state_dir)
        case ModbusTagSource():
            from edgeqc.tags.modbus import ModbusTags  # noqa: PLC0415 - see above

            return ModbusTags(settings, sink=sink, state_dir=state_dir, pace=pace or Pace(settings.gap_ms))
        case ReplayTagSource():
            from edgeqc.tags.replay import ReplayTags  # noqa: PLC0415 - see above

            return ReplayTags(settings, sink=sink)
