"""One part, as the broker and the records are told of it: verdict, views, defects, where its time went. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeqc.office.payloads import DIGITS, Model, Payload, number, rfc3339
from edgeqc.records import (
    JUDGED,
    NS_PER_MS,
    RESULT_CODE,
    Cause,
    Defect,
    Delivery,
    PartRecord,
    SnapshotTag,
    Verdict,
    ViewRecord,
)

REASON: Final[dict[Cause, str]] = {
    Cause.OK: "ok",
    Cause.DEFECT: "defect",
    Cause.ANOMALY: "anomaly",
    Cause.HOLD: "hold",
    Cause.LATE: "deadline",
    Cause.NO_FRAME: "no_image",
    Cause.BAD_FRAME: "no_image",
    Cause.ENGINE: "model_error",
    Cause.BAD_TAG: "process",
    Cause.JOURNAL: "station",
    Cause.PLC: "plc_error",
    Cause.STARTING: "station",
    Cause.RECIPE: "station",
    Cause.IDENTITY: "no_image",
}
"""The coarse class that dashboards group by; `cause` says it exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One of several views of a part, as it is told."""

    record: ViewRecord
    model: Model
    image: str | None
    """Its file in the state directory."""


def process(tags: Iterable[SnapshotTag]) -> dict[str, Payload]:
    """The machine at a part's exposure, by the tags' names."""
    return {
        tag.name: {
            "value": number(tag.value),
            "quality": tag.quality.name.capitalize(),
            "age_ms": round(tag.age_s * 1000, 1) if math.isfinite(tag.age_s) else None,
        }
        for tag in tags
    }


def verdict(
    record: PartRecord,
    delivery: Delivery | None,
    *,
    node: str,
    model: Model,
    cameras: Sequence[str],
    image: str | None,
    snapshot: Mapping[str, Payload] | None = None,
    views: Sequence[Seen] = (),
    um_per_px: Mapping[str, float] | None = None,
    unknown: str = "",
) -> Payload:
    """One part.

    Args:
        record: the part's.
        delivery: None: it is unknown.
        node: this box's name.
        model: that judged it; of several views' the one that decided.
        cameras: the station's, by name.
        image: its file in the state directory.
        snapshot: what `process` gave.
        views: of each camera, where there are several.
        um_per_px: scale of those cameras that have one, by name.
        unknown: why the delivery is.
    """
    scales = um_per_px or {}
    if delivery is not None:
        announced, cause = delivery.verdict, delivery.cause
        plc = {"delivered": delivery.delivered, "late": delivery.late, "reason": delivery.reason}
        met: bool | None = delivery.delivered and not delivery.late
        late_score = delivery.late_score
    else:
        announced, cause = record.verdict, record.cause
        plc = {"delivered": None, "late": None, "reason": f"unknown: {unknown}"}
        met = None
        late_score = math.nan
    score, threshold = number(record.score), number(record.threshold)
    digest = _sha256(record.model_digest)
    camera = cameras[0] if len(cameras) == 1 else cameras[record.view] if 0 <= record.view < len(cameras) else ""
    found = [_defect(defect, camera, scales.get(camera)) for defect in record.defects]
    if views:
        found = [
            _defect(defect, seen.record.camera, scales.get(seen.record.camera))
            for seen in views
            for defect in seen.record.defects
        ]
    return {
        "schema": "edgeqc.verdict/1",
        "ts": rfc3339(record.trigger.wall_ns),
        "node": node,
        "seq": record.trigger.sequence,
        "station": record.station,
        "part_id": record.trigger.part_id,
        "trigger_id": record.trigger.sequence,
        "frame_id": record.frame_id,
        "recipe": record.recipe,
        "result": announced.value,
        "evaluation": _evaluation(announced, cause),
        "reason": REASON[cause],
        "cause": cause.value,
        "result_code": RESULT_CODE[cause],
        "camera": camera,
        "views": [_view(seen, record) for seen in views],
        "defects": found,
        "score": score,
        "threshold": threshold,
        "margin": None if score is None or threshold is None else round(score - threshold, DIGITS),
        "late_score": number(late_score),
        "models": [{"name": model.name, "version": model.version, "sha256": digest, "role": "champion"}]
        if digest
        else [],
        "latency_ms": latencies_ms(record, delivery),
        "deadline_ms": round((record.deadline_ns - record.ledger.trigger_ns) / NS_PER_MS, 3),
        "deadline_met": met,
        "plc": plc,
        "image": None if image is None else {"file": image},
        "process": dict(snapshot or {}),
        "replayed": False,
    }


def _defect(defect: Defect, camera: str, um_per_px: float | None) -> Payload:
    return {
        "class": defect.name,
        "score": number(defect.score),
        "bbox": [defect.x_px, defect.y_px, defect.width_px, defect.height_px],
        "area_px": defect.area_px,
        "area_um2": None if um_per_px is None else round(defect.area_px * um_per_px**2, 1),
        "camera": camera,
    }


def _view(seen: Seen, part: PartRecord) -> Payload:
    view = seen.record
    score, threshold = number(view.score), number(view.threshold)
    return {
        "camera": view.camera,
        "result": view.verdict.value,
        "evaluation": _evaluation(view.verdict, view.cause),
        "cause": view.cause.value,
        "frame_id": view.frame_id,
        "score": score,
        "threshold": threshold,
        "margin": None if score is None or threshold is None else round(score - threshold, DIGITS),
        "model": {"name": seen.model.name, "version": seen.model.version, "sha256": _sha256(view.model_digest)},
        "latency_ms": {
            "acquire": _between_ms(part.ledger.trigger_ns, view.frame_ns),
            "transfer": round(view.transfer_ns / NS_PER_MS, 3) if view.frame_ns else None,
            "preprocess": _between_ms(view.frame_ns, view.prepared_ns),
            "infer": _between_ms(view.prepared_ns, view.scored_ns),
        },
        "image": None if seen.image is None else {"file": seen.image},
    }


def latencies_ms(record: PartRecord, delivery: Delivery | None) -> dict[str, float | None]:
    """Where the part's time went; None for a stage it never reached. `total` is trigger to PLC acknowledgement."""
    ledger = record.ledger
    delivered_ns = delivery.delivered_ns if delivery is not None else 0

    return {
        "acquire": _between_ms(ledger.trigger_ns, ledger.frame_ns),
        "transfer": round(ledger.transfer_ns / NS_PER_MS, 3) if ledger.frame_ns else None,
        "preprocess": _between_ms(ledger.frame_ns, ledger.prepared_ns),
        "infer": _between_ms(ledger.prepared_ns, ledger.scored_ns),
        "decide": _between_ms(ledger.scored_ns or ledger.trigger_ns, ledger.decided_ns),
        "journal": _between_ms(ledger.decided_ns, ledger.journaled_ns),
        "plc_write": _between_ms(ledger.journaled_ns or ledger.decided_ns, delivered_ns),
        "total": _between_ms(ledger.trigger_ns, delivered_ns),
    }


def _sha256(digest: bytes) -> str:
    """In hex; empty where no model was asked."""
    return digest.hex() if any(digest) else ""


def _between_ms(start_ns: int, end_ns: int) -> float | None:
    return round((end_ns - start_ns) / NS_PER_MS, 3) if start_ns and end_ns else None


def _evaluation(announced: Verdict, cause: Cause) -> str:
    """OPC 40001-101's names. A fail-safe verdict says nothing about the part."""
    if cause not in JUDGED:
        return "not_decidable"
    return "ok" if announced is Verdict.PASS else "not_ok"
