"""The two Modbus blocks that daemon and PLC share, as registers. Pure.

Holding registers, offsets from `registers.trigger` and `registers.result` of the configuration; high byte and high word first.

| trigger block (the PLC writes, we read it at once, as far as it is used: 9, 12 or 13 registers) | |
|---|---|
| +0       | counter: the PLC adds 1 for each part, after it has put the part id; wraps at 65535 |
| +1 .. +8 | part id: 16 characters, 2 per register, padded with zeros |
| +9, +10  | result ack: the sequence of the result that the PLC has taken, high word first |
| +11      | the PLC program's heartbeat: another value at least every `plc_heartbeat_ms` |
| +12      | number of the recipe that the part is to be judged by |

| result block (we write all 16 at once) | |
|---|---|
| +0, +1   | sequence: the station's own number of the part, high word first; wraps at 32 bit |
| +2       | status: bit 0 PASS, 1 REJECT, 2 RESULT_VALID, 3 READY, 4 BUSY, 5 FAULT, 6 OVERRUN, 7 STOP |
| +3       | result code: 0 none, below 100 judged, from 100 fail-safe |
| +4       | heartbeat: another value at each write |
| +5       | score: 0 .. 10000 for 0 .. 1; 0 where there is none |
| +6 .. +13 | part id as read from the trigger block |
| +14      | trigger ack: the counter of the trigger block as last taken up |
| +15      | results that the PLC has not acknowledged yet, the one that is shown included; forms `ack` and `buffered` |

PASS and REJECT are never both set, and RESULT_VALID is set exactly where one of them is. A PLC that sees anything else
must treat the part as rejected.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from edgeqc.records import PlcResult, Verdict

TRIGGER_REGISTERS: Final = 9
"""Counter and part id: all that the form `pulse` needs."""
HANDSHAKE_REGISTERS: Final = 12
"""The same with acknowledgement and heartbeat: the forms `ack` and `buffered`, or where the heartbeat is watched."""
RECIPE_REGISTERS: Final = 13
"""The same with the recipe's number."""
RESULT_REGISTERS: Final = 16
PART_ID_CHARS: Final = 16
SCORE_SCALE: Final = 10_000


class Status(IntFlag):
    """Bits of the status register."""

    PASS = 1
    REJECT = 2
    RESULT_VALID = 4
    READY = 8
    BUSY = 16
    FAULT = 32
    OVERRUN = 64
    STOP = 128


_SHOWN: Final[dict[Verdict | None, int]] = {
    Verdict.PASS: int(Status.PASS | Status.RESULT_VALID),
    Verdict.REJECT: int(Status.REJECT | Status.RESULT_VALID),
    None: 0,
}
_READY, _BUSY, _FAULT, _OVERRUN = int(Status.READY), int(Status.BUSY), int(Status.FAULT), int(Status.OVERRUN)
_STOP = int(Status.STOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultImage:
    """What the PLC finds in the result block, contradictions included."""

    sequence: int
    status: Status
    code: int
    heartbeat: int
    score: float
    part_id: str
    trigger_ack: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerImage:
    """What the PLC has put into its trigger block."""

    counter: int
    part_id: str
    ack: int
    """0 where it was not read, as the two that follow."""
    heartbeat: int
    recipe: int


def pack_trigger(counter: int, part_id: str, *, ack: int = 0, heartbeat: int = 0, recipe: int = 0) -> list[int]:
    """All 13 registers of the trigger block as a PLC holds them; numbers wrap."""
    return [counter & 0xFFFF, *_words(part_id), ack >> 16 & 0xFFFF, ack & 0xFFFF, heartbeat & 0xFFFF, recipe & 0xFFFF]


def unpack_trigger(block: bytes) -> TriggerImage:
    """Read 9, 12 or 13 registers, as they come over the wire.

    Bytes above 127 are taken as Latin-1, not refused: the part must be judged, and its echo has the same bytes.
    """
    counter, text, ack, heartbeat, recipe = _TRIGGER.unpack(block.ljust(_TRIGGER.size, b"\0"))
    return TriggerImage(counter=counter, part_id=_text(text), ack=ack, heartbeat=heartbeat, recipe=recipe)


def pack_result(result: PlcResult, heartbeat: int) -> bytes:
    """The result block as it goes over the wire. Sequence and heartbeat wrap; a part id over 16 characters is cut."""
    # plain ints: an IntFlag's operators cost ten times as much, on the decision path
    status = _SHOWN[result.verdict] | _READY * result.ready | _BUSY * result.busy
    status |= _FAULT * result.fault | _OVERRUN * result.overrun | _STOP * result.stop
    score = 0 if math.isnan(result.score) else round(min(max(result.score, 0.0), 1.0) * SCORE_SCALE)
    return _RESULT.pack(
        result.sequence & 0xFFFF_FFFF,
        status,
        result.code,
        heartbeat & 0xFFFF,
        score,
        result.part_id.encode("latin-1", "replace")[:PART_ID_CHARS],  # padded with zeros
        result.trigger_ack & 0xFFFF,
        result.waiting,
    )


def unpack_result(registers: Sequence[int]) -> ResultImage:
    """What a PLC makes of the block."""
    sequence, status, code, heartbeat, score, text, trigger_ack, waiting = _RESULT.unpack(
        struct.pack(f">{RESULT_REGISTERS}H", *registers)
    )
    return ResultImage(
        sequence=sequence,
        status=Status(status),
        code=code,
        heartbeat=heartbeat,
        score=score / SCORE_SCALE,
        part_id=_text(text),
        trigger_ack=trigger_ack,
        waiting=waiting,
    )


_TRIGGER: Final = struct.Struct(">H16sI2H")
_RESULT: Final = struct.Struct(">I4H16s2H")


def _words(part_id: str) -> tuple[int, ...]:
    raw = part_id.encode("latin-1", "replace")[:PART_ID_CHARS]
    return struct.unpack(">8H", raw.ljust(PART_ID_CHARS, b"\0"))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("latin-1")
