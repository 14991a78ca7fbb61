"""What the broker is told: topics and payloads, as `config/schema/*.json` fixes them; a part's verdict: `verdicts`. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from edgeqc.core.alarm import Alarm
from edgeqc.records import NS_PER_S, AlertChange, Ne107

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

DIGITS: Final = 6
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
        "value": number(change.value),
        "limit": number(change.limit),
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
        "facts": {key: number(value) if isinstance(value, float) else value for key, value in facts.items()},
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


def number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)
