"""What the broker is told: topics and payloads, as `config/schema/*.json` fixes them. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from edgeqc.core.alarm import Alarm
from edgeqc.records import (
    JUDGED,
    NS_PER_MS,
    NS_PER_S,
    RESULT_CODE,
    AlertChange,
    Cause,
    Defect,
    Delivery,
    Ne107,
    PartRecord,
    SnapshotTag,
    Verdict,
    ViewRecord,
)

Payload = dict[str, Any]
"""One message body: what `json.dumps` takes."""

STATE: Final = "state"
INFO: Final = "info"
HEALTH: Final = "health"
VERDICT: Final = "verdict"
LAST_VERDICT: Final = "verdict/last"
EVENT: Final = "event"
ALERT: Final = "alert/"
COMMAND: Final = "cmd/"
"""Below it the verb; the answer goes to `<verb>/result`."""

SCHEMAS: Final = tuple(
    f"edgeqc.{name}/1" for name in ("verdict", "state", "info", "health", "alert", "event", "answer")
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

_DIGITS: Final = 6
"""Decimals of a score: a float32 has no more to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model a station runs, as it said when it started."""

    name: str
    version: str
    digest: str = ""
    """SHA-256 in hex."""

    @classmethod
    def parse(cls, text: str, digest: str = "") -> Model:
        """From `name@version`."""
        name, _, version = text.partition("@")
        return cls(name=name or "unknown", version=version or "0", digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeState:
    """What judges by a recipe since its station last started."""

    writer: str
    """Whose journal told it."""
    recipe: str
    model: str
    """name@version"""
    model_digest: str
    """SHA-256 of the model file in hex."""
    backend: str
    why: str
    """Why this backend."""
    vouched: str
    """Who signed the package."""
    camera: str = ""
    """Whose frames it judges; empty where the station has one camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One of several views of a part, as it is told."""

    record: ViewRecord
    model: Model
    image: str | None
    """Its file in the state directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertState:
    """An alert as it stands: its last change, and since when."""

    source: str
    """Whose journal told it; `office` for our own."""
    sequence: int
    wall_ns: int
    change: AlertChange
    since_ns: int
    """UTC at which it last became active."""
    count: int
    """How often it became active."""
    alarm: Alarm
    """Where it stands."""
    event: str = ""
    """What happened to it last: an `AlarmEvent`, or update."""
    teller: str = ""
    """Who told it, where that is not `source`; `sequence` is the teller's."""
    acked_by: str = ""
    acked_ns: int = 0
    """UTC; 0 = not acknowledged."""
    cover_by: str = ""
    """Who shelved it or took it out of service."""
    until_ns: int = 0
    """UTC at which it leaves the shelf; 0 = it is on none."""
    note: str = ""
    """Why the last person who answered did so."""
    first_up: bool = False
    """Nothing else waited for an answer when it came: look here first."""
    confirm_ns: int = 0
    """UTC up to which its process, started anew, may tell it again; 0 = it is told."""


def rfc3339(wall_ns: int) -> str:
    """UTC with microseconds and Z."""
    moment = datetime.fromtimestamp(wall_ns // NS_PER_S, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ns % NS_PER_S // 1000:06d}Z"


def encode(payload: Payload) -> bytes:
    """UTF-8 JSON on one line; NaN is an error."""
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def replayed(body: bytes) -> bytes:
    """The same payload, marked as told after the fact."""
    return encode({**json.loads(body), "replayed": True})


def process(tags: Iterable[SnapshotTag]) -> dict[str, Payload]:
    """The machine at a part's exposure, by the tags' names."""
    return {
        tag.name: {
            "value": _number(tag.value),
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
    score, threshold = _number(record.score), _number(record.threshold)
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
        "margin": None if score is None or threshold is None else round(score - threshold, _DIGITS),
        "late_score": _number(late_score),
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
        "score": _number(defect.score),
        "bbox": [defect.x_px, defect.y_px, defect.width_px, defect.height_px],
        "area_px": defect.area_px,
        "area_um2": None if um_per_px is None else round(defect.area_px * um_per_px**2, 1),
        "camera": camera,
    }


def _view(seen: Seen, part: PartRecord) -> Payload:
    view = seen.record
    score, threshold = _number(view.score), _number(view.threshold)
    return {
        "camera": view.camera,
        "result": view.verdict.value,
        "evaluation": _evaluation(view.verdict, view.cause),
        "cause": view.cause.value,
        "frame_id": view.frame_id,
        "score": score,
        "threshold": threshold,
        "margin": None if score is None or threshold is None else round(score - threshold, _DIGITS),
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


def alert(state: AlertState, *, node: str) -> Payload:
    """An alert as it stands; `normal` once it is cleared."""
    change = state.change
    return {
        "schema": "edgeqc.alert/1",
        "ts": rfc3339(state.wall_ns),
        "node": node,
        "seq": state.sequence,
        "source": state.teller or state.source,
        "id": change.id,
        "state": state.alarm.state.value,
        "priority": change.priority,
        "ne107": change.ne107.value,
        "text": change.text,
        "value": _number(change.value),
        "limit": _number(change.limit),
        "unit": change.unit,
        "since": rfc3339(state.since_ns),
        "count": state.count,
        "event": state.event,
        "first_up": state.first_up,
        "contribution": [{"tag": tag, "share": round(share, 3)} for tag, share in change.contribution],
        "shelved_until": rfc3339(state.until_ns) if state.until_ns else None,
        "covered_by": state.cover_by or None,
        "acked_by": state.acked_by or None,
        "acked_at": rfc3339(state.acked_ns) if state.acked_ns else None,
        "note": state.note,
        "action": change.action,
        "replayed": False,
    }


def event(name: str, facts: dict[str, Any], *, node: str, source: str, sequence: int, wall_ns: int) -> Payload:
    """A change of state worth keeping."""
    return {
        "schema": "edgeqc.event/1",
        "ts": rfc3339(wall_ns),
        "node": node,
        "seq": sequence,
        "source": source,
        "name": name,
        "facts": {key: _number(value) if isinstance(value, float) else value for key, value in facts.items()},
        "replayed": False,
    }


def state(*, online: bool, reason: str, node: str, sequence: int, wall_ns: int) -> Payload:
    """Is the daemon there? `reason` is start, reconnect, stop or will."""
    return {
        "schema": "edgeqc.state/1",
        "ts": rfc3339(wall_ns),
        "node": node,
        "seq": sequence,
        "state": "online" if online else "offline",
        "reason": reason,
    }


def info(
    stations: list[Payload], *, version: str, config_digest: str, node: str, sequence: int, wall_ns: int
) -> Payload:
    """What runs here: one entry per station, as `station_info` makes it."""
    return {
        "schema": "edgeqc.info/1",
        "ts": rfc3339(wall_ns),
        "node": node,
        "seq": sequence,
        "version": version,
        "schemas": list(SCHEMAS),
        "capabilities": ["verdict", "alert", "event", "health", "command"],
        "stations": stations,
        "config_hash": config_digest,
        "restart_required": [],
    }


def station_info(station: str, *, camera: str, backend: str, run_id: str, recipes: Sequence[RecipeState]) -> Payload:
    """One station in `info`: for each recipe which model judges, on which backend and why, and who vouches for it."""
    models: list[Payload] = []
    for recipe in recipes:
        model = Model.parse(recipe.model, recipe.model_digest)
        models.append(
            {
                "recipe": recipe.recipe,
                "name": model.name,
                "version": model.version,
                "sha256": model.digest,
                "role": "champion",
                "backend": recipe.backend,
                "why": recipe.why,
                "vouched": recipe.vouched,
                "camera": recipe.camera,
            }
        )
    return {"station": station, "camera": camera, "backend": backend, "run_id": run_id, "models": models}


def health(
    components: dict[str, Any],
    *,
    latency_ms: dict[str, float | None],
    deadline_missed_total: int,
    disk: dict[str, int],
    node: str,
    sequence: int,
    wall_ns: int,
) -> Payload:
    """How everything is; the status is that of the worst component (NE 107)."""
    states = {part.get("ne107", Ne107.NORMAL) for part in components.values() if isinstance(part, dict)}
    status = "failed" if Ne107.FAILURE in states else "degraded" if states - {Ne107.NORMAL} else "ok"
    return {
        "schema": "edgeqc.health/1",
        "ts": rfc3339(wall_ns),
        "node": node,
        "seq": sequence,
        "status": status,
        "components": components,
        "latency_ms": latency_ms,
        "deadline_missed_total": deadline_missed_total,
        "disk": disk,
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else round(value, _DIGITS)


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
