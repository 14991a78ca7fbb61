"""What a record looks like on disk: 512 bytes, little-endian, CRC-32 over all but the first eight bytes.

    0  magic u32 | 4 crc u32 | 8 kind u16 | 10 length u16 | 12 zero u32 | 16 sequence u64 | 24 wall_ns i64 |
    32 mono_ns i64 | 40 body (length bytes), zeros to the end

Parts, their views, snapshots and deliveries have a binary body (they come with every part); what is rare is JSON.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Final

from edgeqc.records import (
    AlertChange,
    Cause,
    Defect,
    Delivery,
    Event,
    Ledger,
    Ne107,
    PartRecord,
    Quality,
    Snapshot,
    SnapshotTag,
    Started,
    Trigger,
    Verdict,
    ViewRecord,
)

Body = PartRecord | ViewRecord | Delivery | Snapshot | Started | Event | AlertChange

RECORD_BYTES: Final = 512
_MAGIC: Final = 0x45514A31  # "EQJ1"
_HEAD: Final = struct.Struct("<IIHHIQqq")
_BODY_BYTES: Final = RECORD_BYTES - _HEAD.size
_PART_FORMAT: Final = "QQqqddq8qBBBBiQ48s32s32s"
_PART: Final = struct.Struct(f"<{_PART_FORMAT}")
_PART_RECORD: Final = struct.Struct(f"<IIHHIQqq{_PART_FORMAT}")
"""Head and body at once: a part's record is on the way of its verdict, where each step more costs several times its usual
time, because the engine has just emptied the caches."""
_CRC: Final = struct.Struct("<I")
_CRC_AT: Final = 4
_CHECKED_AT: Final = 8
_VIEW: Final = struct.Struct("<QqQdd4qBBBBBxxxiQ32s32s")
_DEFECT: Final = struct.Struct("<16sfHHHHI")
_DEFECT_BEFORE_AREA: Final = struct.Struct("<16sfHHHH")
_DELIVERY: Final = struct.Struct("<QBBBBqd96s")
_SNAPSHOT: Final = struct.Struct("<QB")
_SNAPSHOT_TAG: Final = struct.Struct("<dfBB")
"""Value, age, quality, length of the name that follows."""
_NAME_BYTES: Final = 48
MAX_DEFECTS: Final = (_BODY_BYTES - _PART.size) // _DEFECT.size
_VERDICTS: Final = tuple(Verdict)
_CAUSES: Final = tuple(Cause)  # the order is the file format: append only
_U16: Final = 0xFFFF
_U32: Final = 0xFFFF_FFFF
_WITH_AREA: Final = 0x80
"""In the byte that counts a record's defects: they have their area. Releases before areas wrote the count alone."""
_NO_VIEW: Final = 0xFF
_NEEDED: Final = frozenset({"id", "active", "priority", "ne107", "text", "action", "value", "limit"})
"""Of an alert, even where empty or zero; the rest is left out then: the texts need the room."""
_SHORT: Final = 16
"""Characters: shorter facts are dropped rather than halved."""


class _Kind(IntEnum):
    PART = 1
    DELIVERY = 2
    STARTED = 3
    EVENT = 4
    ALERT = 5
    SNAPSHOT = 6
    VIEW = 7


_PART_KIND: Final = int(_Kind.PART)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record as read back."""

    writer: str
    """Whose journal, e.g. `station-top`."""
    sequence: int
    """Counts this journal's records from 1, without gaps."""
    wall_ns: int
    """UTC of appending."""
    mono_ns: int
    body: Body


def split_snapshot(sequence: int, tags: tuple[SnapshotTag, ...]) -> list[Snapshot]:
    """Give the fewest records that hold all of a part's tags."""
    records: list[Snapshot] = []
    first, size = 0, _SNAPSHOT.size
    for place, tag in enumerate(tags):
        more = _SNAPSHOT_TAG.size + len(_text(tag.name, _NAME_BYTES))
        if size + more > _BODY_BYTES:
            records.append(Snapshot(sequence=sequence, tags=tags[first:place]))
            first, size = place, _SNAPSHOT.size
        size += more
    return [*records, Snapshot(sequence=sequence, tags=tags[first:])] if tags else []


class DamagedRecordError(Exception):
    """These bytes are no whole record: torn, flipped, or of another version."""


def encode(body: Body, *, sequence: int, wall_ns: int, mono_ns: int) -> bytearray:
    """One record, RECORD_BYTES long. Texts that do not fit are cut, never refused: the verdict must get through."""
    record = bytearray(RECORD_BYTES)
    if isinstance(body, PartRecord):
        _pack_part(record, body, sequence, wall_ns, mono_ns)
    else:
        kind, packed = _pack(body)
        _HEAD.pack_into(record, 0, _MAGIC, 0, kind, len(packed), 0, sequence, wall_ns, mono_ns)
        record[_HEAD.size : _HEAD.size + len(packed)] = packed
    _CRC.pack_into(record, _CRC_AT, zlib.crc32(memoryview(record)[_CHECKED_AT:]))
    return record


def decode(data: bytes | bytearray, *, writer: str) -> Entry:
    """The record in these RECORD_BYTES bytes; DamagedRecordError where there is none."""
    magic, crc, kind, length, _, sequence, wall_ns, mono_ns = _HEAD.unpack_from(data)
    if magic != _MAGIC or length > _BODY_BYTES or zlib.crc32(data[8:RECORD_BYTES]) != crc:
        raise DamagedRecordError
    packed = bytes(data[_HEAD.size : _HEAD.size + length])
    try:
        body = _unpack(_Kind(kind), packed, writer)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as exc:
        raise DamagedRecordError from exc
    return Entry(writer=writer, sequence=sequence, wall_ns=wall_ns, mono_ns=mono_ns, body=body)


def _pack(body: ViewRecord | Delivery | Snapshot | Started | Event | AlertChange) -> tuple[_Kind, bytes | bytearray]:
    match body:
        case ViewRecord():
            return _Kind.VIEW, _pack_view(body)
        case Delivery():
            return _Kind.DELIVERY, _pack_delivery(body)
        case Snapshot():
            return _Kind.SNAPSHOT, _pack_snapshot(body)
        case Started():
            return _Kind.STARTED, _pack_text(asdict(body))
        case Event():
            return _Kind.EVENT, _pack_text({"name": body.name, "facts": body.facts})
        case AlertChange():
            return _Kind.ALERT, _pack_text(
                {key: value for key, value in asdict(body).items() if value or key in _NEEDED}
            )


def _unpack(kind: _Kind, packed: bytes, writer: str) -> Body:  # noqa: PLR0911 - a table
    match kind:
        case _Kind.PART:
            return _unpack_part(packed, writer.removeprefix("station-"))
        case _Kind.VIEW:
            return _unpack_view(packed)
        case _Kind.DELIVERY:
            return _unpack_delivery(packed)
        case _Kind.SNAPSHOT:
            return _unpack_snapshot(packed)
        case _Kind.STARTED:
            return Started(**json.loads(packed))
        case _Kind.EVENT:
            return Event(**json.loads(packed))
        case _Kind.ALERT:
            fields = json.loads(packed)
            shares = tuple((str(tag), float(share)) for tag, share in fields.get("contribution", ()))
            return AlertChange(**{**fields, "ne107": Ne107(fields["ne107"]), "contribution": shares})


def _text(value: str, size: int) -> bytes:
    """UTF-8, cut at a whole character to at most `size` bytes."""
    data = value.encode("utf-8", "replace")
    return data if len(data) <= size else data[:size].decode("utf-8", "ignore").encode()


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _pack_part(record: bytearray, part: PartRecord, sequence: int, wall_ns: int, mono_ns: int) -> None:
    """Head and body of a part, but for the CRC."""
    trigger, ledger, defects = part.trigger, part.ledger, part.defects[:MAX_DEFECTS]
    _PART_RECORD.pack_into(
        record,
        0,
        _MAGIC,
        0,
        _PART_KIND,
        _PART.size + len(defects) * _DEFECT.size,
        0,
        sequence,
        wall_ns,
        mono_ns,
        trigger.sequence,
        part.frame_id,
        trigger.at_ns,
        trigger.wall_ns,
        part.score,
        part.threshold,
        part.deadline_ns,
        ledger.trigger_ns,
        ledger.frame_ns,
        ledger.transfer_ns,
        ledger.prepared_ns,
        ledger.scored_ns,
        ledger.decided_ns,
        ledger.journaled_ns,
        ledger.delivered_ns,
        _VERDICTS.index(part.verdict),
        _CAUSES.index(part.cause),
        len(defects) | _WITH_AREA,
        _NO_VIEW if part.view < 0 else part.view,
        part.slot,
        part.lease,
        _text(trigger.part_id, 48),
        _text(part.recipe, 32),
        part.model_digest,
    )
    _put_defects(record, _PART_RECORD.size, defects)


def _put_defects(record: bytearray, at: int, defects: tuple[Defect, ...]) -> None:
    for index, defect in enumerate(defects):
        _DEFECT.pack_into(
            record,
            at + index * _DEFECT.size,
            _text(defect.name, 16),
            defect.score,
            min(max(defect.x_px, 0), _U16),
            min(max(defect.y_px, 0), _U16),
            min(max(defect.width_px, 0), _U16),
            min(max(defect.height_px, 0), _U16),
            min(max(defect.area_px, 0), _U32),
        )


def _unpack_defects(packed: bytes, count: int) -> tuple[Defect, ...]:
    """`count` as the record has it: with its flag."""
    packing = _DEFECT if count & _WITH_AREA else _DEFECT_BEFORE_AREA
    defects = []
    for index in range(count & ~_WITH_AREA):
        name, value, x_px, y_px, width_px, height_px, *area_px = packing.unpack_from(packed, index * packing.size)
        defects.append(
            Defect(
                name=_string(name),
                score=value,
                x_px=x_px,
                y_px=y_px,
                width_px=width_px,
                height_px=height_px,
                area_px=area_px[0] if area_px else 0,
            )
        )
    return tuple(defects)


def _unpack_part(packed: bytes, station: str) -> PartRecord:
    fields = _PART.unpack_from(packed)
    (sequence, frame_id, at_ns, wall_ns, score, threshold, deadline_ns) = fields[:7]
    times = fields[7:15]
    verdict, cause, count, view, slot, lease, part_id, recipe, digest = fields[15:]
    return PartRecord(
        station=station,
        trigger=Trigger(sequence=sequence, part_id=_string(part_id), at_ns=at_ns, wall_ns=wall_ns),
        frame_id=frame_id,
        verdict=_VERDICTS[verdict],
        cause=_CAUSES[cause],
        score=score,
        threshold=threshold,
        ledger=Ledger(
            trigger_ns=times[0],
            frame_ns=times[1],
            transfer_ns=times[2],
            prepared_ns=times[3],
            scored_ns=times[4],
            decided_ns=times[5],
            journaled_ns=times[6],
            delivered_ns=times[7],
        ),
        deadline_ns=deadline_ns,
        recipe=_string(recipe),
        model_digest=digest,
        defects=_unpack_defects(packed[_PART.size :], count),
        slot=slot,
        lease=lease,
        view=-1 if view == _NO_VIEW else view,
    )


def _pack_view(view: ViewRecord) -> bytearray:
    defects = view.defects[:MAX_DEFECTS]
    packed = bytearray(_VIEW.size + len(defects) * _DEFECT.size)
    _VIEW.pack_into(
        packed,
        0,
        view.sequence,
        view.wall_ns,
        view.frame_id,
        view.score,
        view.threshold,
        view.frame_ns,
        view.transfer_ns,
        view.prepared_ns,
        view.scored_ns,
        view.place,
        _VERDICTS.index(view.verdict),
        _CAUSES.index(view.cause),
        len(defects) | _WITH_AREA,
        view.part_passed,
        view.slot,
        view.lease,
        _text(view.camera, 32),
        view.model_digest,
    )
    _put_defects(packed, _VIEW.size, defects)
    return packed


def _unpack_view(packed: bytes) -> ViewRecord:
    fields = _VIEW.unpack_from(packed)
    sequence, wall_ns, frame_id, score, threshold = fields[:5]
    place, verdict, cause, count, passed, slot, lease, camera, digest = fields[9:]
    return ViewRecord(
        sequence=sequence,
        wall_ns=wall_ns,
        place=place,
        camera=_string(camera),
        verdict=_VERDICTS[verdict],
        cause=_CAUSES[cause],
        frame_id=frame_id,
        score=score,
        threshold=threshold,
        model_digest=digest,
        frame_ns=fields[5],
        transfer_ns=fields[6],
        prepared_ns=fields[7],
        scored_ns=fields[8],
        defects=_unpack_defects(packed[_VIEW.size :], count),
        slot=slot,
        lease=lease,
        part_passed=bool(passed),
    )


def _pack_delivery(delivery: Delivery) -> bytes:
    return _DELIVERY.pack(
        delivery.sequence,
        _VERDICTS.index(delivery.verdict),
        _CAUSES.index(delivery.cause),
        delivery.delivered,
        delivery.late,
        delivery.delivered_ns,
        delivery.late_score,
        _text(delivery.reason, 96),
    )


def _unpack_delivery(packed: bytes) -> Delivery:
    sequence, verdict, cause, delivered, late, delivered_ns, late_score, reason = _DELIVERY.unpack_from(packed)
    return Delivery(
        sequence=sequence,
        verdict=_VERDICTS[verdict],
        cause=_CAUSES[cause],
        delivered=bool(delivered),
        delivered_ns=delivered_ns,
        late=bool(late),
        late_score=late_score,
        reason=_string(reason),
    )


def _pack_snapshot(snapshot: Snapshot) -> bytes:
    """As many tags as fit; see `split_snapshot`."""
    packed, count = b"", 0
    for tag in snapshot.tags:
        name = _text(tag.name, _NAME_BYTES)
        one = _SNAPSHOT_TAG.pack(tag.value, tag.age_s, tag.quality, len(name)) + name
        if _SNAPSHOT.size + len(packed) + len(one) > _BODY_BYTES:
            break
        packed += one
        count += 1
    return _SNAPSHOT.pack(snapshot.sequence, count) + packed


def _unpack_snapshot(packed: bytes) -> Snapshot:
    sequence, count = _SNAPSHOT.unpack_from(packed)
    at, tags = _SNAPSHOT.size, []
    for _ in range(count):
        value, age_s, quality, length = _SNAPSHOT_TAG.unpack_from(packed, at)
        at += _SNAPSHOT_TAG.size
        name = packed[at : at + length].decode("utf-8", "replace")
        at += length
        tags.append(SnapshotTag(name=name, value=value, quality=Quality(quality), age_s=age_s))
    return Snapshot(sequence=sequence, tags=tuple(tags))


def _pack_text(fields: dict[str, Any]) -> bytes:
    """JSON that fits: the longest text is halved until it does."""
    while len(data := _json(fields)) > _BODY_BYTES:
        fields = _shortened(fields)
    return data


def _json(fields: dict[str, Any]) -> bytes:
    """What is no Unicode (a file's name, a peer's string) is shown as `?`."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _shortened(fields: dict[str, Any]) -> dict[str, Any]:
    """The same with its longest text halved, or without half of its facts where those are all short."""
    facts = fields.get("facts")
    inner = facts if isinstance(facts, dict) and facts else fields
    texts = {key: len(value) for key, value in inner.items() if isinstance(value, str)}
    longest = max(texts, key=lambda key: texts[key], default=None)
    if inner is not fields and (longest is None or texts[longest] < _SHORT):
        inner = dict(list(inner.items())[: len(inner) // 2])
    elif longest is not None:
        inner = {**inner, longest: inner[longest][: texts[longest] // 2]}
    return {**fields, "facts": inner} if facts else inner
