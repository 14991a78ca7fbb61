"""The two Modbus blocks that daemon and PLC share, as registers. Pure.

Holding registers, offsets from `registers.trigger` and `registers.result` of the configuration; high byte and high word first.

| trigger block (the PLC writes, we read all 9 at once) | |
|---|---|
| +0       | counter: the PLC adds 1 for each part, after it has put the part id; wraps at 65535 |
| +1 .. +8 | part id: 16 characters, 2 per register, padded with zeros |

| result block (we write all 16 at once) | |
|---|---|
| +0, +1   | sequence: the station's own number of the part, high word first; wraps at 32 bit |
| +2       | status: bit 0 PASS, 1 REJECT, 2 RESULT_VALID, 3 READY, 4 BUSY, 5 FAULT |
| +3       | result code: 0 none, below 100 judged, from 100 fail-safe |
| +4       | heartbeat: another value at each write |
| +5       | score: 0 .. 10000 for 0 .. 1; 0 where there is none |
| +6 .. +13 | part id as read from the trigger block |
| +14, +15 | reserved, 0 |

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


_SHOWN: Final[dict[Verdict | None, int]] = {
    Verdict.PASS: int(Status.PASS | Status.RESULT_VALID),
    Verdict.REJECT: int(Status.REJECT | Status.RESULT_VALID),
    None: 0,
}
_READY, _BUSY, _FAULT = int(Status.READY), int(Status.BUSY), int(Status.FAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultImage:
    """What the PLC finds in the result block, contradictions included."""

    sequence: int
    status: Status
    code: int
    heartbeat: int
    score: float
    part_id: str


def pack_trigger(counter: int, part_id: str) -> list[int]:
    """The trigger block as a PLC holds it; `counter` wraps."""
    return [counter & 0xFFFF, *_words(part_id)]


def unpack_trigger(registers: Sequence[int]) -> tuple[int, str]:
    """Counter and part id.

    Bytes above 127 are taken as Latin-1, not refused: the part must be judged, and its echo has the same bytes.
    """
    counter, text = struct.unpack(">H16s", struct.pack(">9H", *registers))
    return counter, _text(text)


def pack_result(result: PlcResult, heartbeat: int) -> list[int]:
    """The result block. Sequence and heartbeat wrap; a part id over 16 characters is cut."""
    # plain ints: an IntFlag's operators cost ten times as much, on the decision path
    status = _SHOWN[result.verdict] | _READY * result.ready | _BUSY * result.busy | _FAULT * result.fault
    score = 0 if math.isnan(result.score) else round(min(max(result.score, 0.0), 1.0) * SCORE_SCALE)
    return [
        result.sequence >> 16 & 0xFFFF,
        result.sequence & 0xFFFF,
        status,
        result.code,
        heartbeat & 0xFFFF,
        score,
        *_words(result.part_id),
        0,
        0,
    ]


def unpack_result(registers: Sequence[int]) -> ResultImage:
    """What a PLC makes of the block."""
    sequence, status, code, heartbeat, score, text = struct.unpack(
        ">I4H16s4x", struct.pack(f">{RESULT_REGISTERS}H", *registers)
    )
    return ResultImage(
        sequence=sequence,
        status=Status(status),
        code=code,
        heartbeat=heartbeat,
        score=score / SCORE_SCALE,
        part_id=_text(text),
    )


def _words(part_id: str) -> tuple[int, ...]:
    raw = part_id.encode("latin-1", "replace")[:PART_ID_CHARS]
    return struct.unpack(">8H", raw.ljust(PART_ID_CHARS, b"\0"))


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("latin-1")
