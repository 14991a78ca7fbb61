import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.core.alarm import Alarm, AlarmState
from edgeqc.office import payloads, verdicts
from edgeqc.office.payloads import AlertState, Model
from edgeqc.office.verdicts import Seen
from edgeqc.records import (
    JUDGED,
    AlertChange,
    Cause,
    Defect,
    Delivery,
    Ledger,
    Ne107,
    PartRecord,
    Trigger,
    Verdict,
    ViewRecord,
)

SCHEMAS = Path(__file__).parents[2] / "config" / "schema"
WALL_NS = 1_795_335_330_123_456_789


def record(cause: Cause = Cause.DEFECT, **changes) -> PartRecord:
    judged = cause in JUDGED
    part = PartRecord(
        station="top",
        trigger=Trigger(sequence=7, part_id="SN-0042", at_ns=1_000_000_000, wall_ns=WALL_NS),
        frame_id=70,
        verdict=Verdict.PASS if cause is Cause.OK else Verdict.REJECT,
        cause=cause,
        score=0.93 if judged else math.nan,
        threshold=0.45,
        ledger=Ledger(
            trigger_ns=1_000_000_000,
            frame_ns=1_006_300_000 if judged else 0,
            transfer_ns=4_000_000 if judged else 0,
            prepared_ns=1_007_000_000 if judged else 0,
            scored_ns=1_016_000_000 if judged else 0,
            decided_ns=1_016_400_000,
            journaled_ns=1_016_410_000,
        ),
        deadline_ns=1_060_000_000,
        recipe="cap-blue",
        model_digest=b"\xab" * 32 if judged else bytes(32),
        defects=(Defect(name="scratch", score=0.93, x_px=412, y_px=220, width_px=64, height_px=18),) if judged else (),
    )
    return dataclasses.replace(part, **changes)


def delivery(part: PartRecord, **changes) -> Delivery:
    told = Delivery(
        sequence=part.trigger.sequence,
        verdict=part.verdict,
        cause=part.cause,
        delivered=True,
        delivered_ns=1_020_500_000,
        late=False,
        late_score=math.nan,
    )
    return dataclasses.replace(told, **changes)


def verdict(part: PartRecord, told: Delivery | None, image: str | None = None, um_per_px: float | None = None) -> dict:
    scales = {} if um_per_px is None else {"cam": um_per_px}
    model = Model(name="surface", version="7")
    return verdicts.verdict(part, told, node="l3c2", model=model, cameras=["cam"], image=image, um_per_px=scales)


def test_area_of_a_defect_is_in_square_micrometres_where_the_scale_is_set() -> None:
    scratch = Defect(name="scratch", score=0.9, x_px=1, y_px=2, width_px=30, height_px=40, area_px=700)
    part = record(Cause.DEFECT, defects=(scratch,))
    (plain,) = verdict(part, delivery(part))["defects"]
    assert (plain["area_px"], plain["area_um2"]) == (700, None)
    (scaled,) = verdict(part, delivery(part), um_per_px=20.0)["defects"]
    assert scaled["area_um2"] == 280_000


def seen(camera: str, cause: Cause, image: str | None = None) -> Seen:
    judged = cause in JUDGED
    view = ViewRecord(
        sequence=7,
        wall_ns=WALL_NS,
        place=0,
        camera=camera,
        verdict=Verdict.PASS if cause is Cause.OK else Verdict.REJECT,
        cause=cause,
        frame_id=70 if judged else 0,
        score=0.9 if judged else math.nan,
        threshold=0.45,
        model_digest=b"\xab" * 32 if judged else bytes(32),
        frame_ns=1_006_300_000 if judged else 0,
        transfer_ns=4_000_000 if judged else 0,
        prepared_ns=1_007_000_000 if judged else 0,
        scored_ns=1_016_000_000 if judged else 0,
        defects=(Defect(name="dent", score=0.9, x_px=1, y_px=2, width_px=3, height_px=4),) if judged else (),
    )
    return Seen(record=view, model=Model(name="surface", version="7"), image=image)


def several(part: PartRecord, *views: Seen) -> dict:
    names = [view.record.camera for view in views]
    model = Model(name="surface", version="7")
    return verdicts.verdict(part, delivery(part), node="l3c2", model=model, cameras=names, image=None, views=views)


def test_each_view_is_told_and_the_one_that_decided_is_named() -> None:
    part = record(Cause.NO_FRAME, view=1)
    payload = several(part, seen("left", Cause.OK, "images/2026-11-22/top-7.left.png"), seen("right", Cause.NO_FRAME))
    assert (payload["camera"], payload["cause"], payload["evaluation"]) == ("right", "no_frame", "not_decidable")
    left, right = payload["views"]
    assert (left["camera"], left["result"], left["score"]) == ("left", "pass", 0.9)
    assert left["latency_ms"] == {"acquire": 6.3, "transfer": 4.0, "preprocess": 0.7, "infer": 9.0}
    assert left["image"] == {"file": "images/2026-11-22/top-7.left.png"}
    assert (right["camera"], right["result"], right["cause"], right["score"]) == ("right", "reject", "no_frame", None)
    assert (right["model"]["sha256"], right["image"]) == ("", None)
    assert [defect["camera"] for defect in payload["defects"]] == ["left"]
    assert several(record(Cause.IDENTITY, view=-1), seen("left", Cause.OK), seen("right", Cause.OK))["camera"] == ""


def test_one_camera_is_always_named_and_has_no_views() -> None:
    for view in (0, -1):
        part = record(Cause.NO_FRAME, view=view)
        assert verdict(part, delivery(part))["camera"] == "cam"
        assert verdict(part, delivery(part))["views"] == []


def alert_state(*, active: bool = True, value: float | None = 1.8) -> AlertState:
    change = AlertChange(
        id="top.camera.lost",
        active=active,
        priority="high",
        ne107=Ne107.FAILURE,
        text="No frame for 1.8 s",
        action="Check the cable",
        value=value,
        limit=1.0,
        unit="s",
    )
    alarm = Alarm(AlarmState.ACTIVE_UNACKED if active else AlarmState.NORMAL)
    return AlertState(
        source="station-top", sequence=91, wall_ns=WALL_NS, change=change, since_ns=WALL_NS, count=1, alarm=alarm
    )


def told(name: str) -> list[dict]:
    """Payloads of every shape that this kind can take."""
    where = {"node": "l3c2", "sequence": 3, "wall_ns": WALL_NS}
    parts = [record(cause) for cause in Cause]
    match name:
        case "verdict":
            return [
                *(verdict(part, delivery(part)) for part in parts),
                *(verdict(part, None, "images/2026-11-22/top-7.png") for part in parts),
                verdict(parts[0], delivery(parts[0], delivered=False, delivered_ns=0, reason="timeout")),
                verdict(parts[0], delivery(parts[0], late=True, late_score=0.5)),
                *(
                    several(dataclasses.replace(one, view=1), *(seen(name, one.cause) for name in "ab"))
                    for one in parts
                ),
            ]
        case "state":
            return [payloads.state(online=on, reason=why, **where) for on, why in ((True, "start"), (False, "will"))]
        case "info":
            recipe = payloads.RecipeState(
                writer="station-top",
                recipe="cap",
                model="surface@7",
                model_digest="ab" * 32,
                backend="openvino 2026.4 CPU bf16, 1 thread",
                why="fastest here: onnxruntime fp32 8.00 ms, openvino bf16 3.00 ms",
                vouched="signed by quality (0123456789abcdef)",
            )
            stations = [
                payloads.station_info("top", camera="cam", backend="onnxruntime", run_id="00ff", recipes=[recipe]),
                payloads.station_info("low", camera="cam", backend="", run_id="", recipes=[]),
            ]
            return [payloads.info(stations, version="0.1.0", config_digest="00ff", **where)]
        case "health":
            disk = {"free_bytes": 1, "images_bytes": 2, "retention_days": 90}
            some = {"p50": 21.0, "p99": 33.0, "p999": None}
            component = {"camera.top": {"ne107": "failure", "frame_age_ms": 120}}
            return [
                payloads.health({}, latency_ms=some, deadline_missed_total=0, disk=disk, **where),
                payloads.health(component, latency_ms=some, deadline_missed_total=1, disk=disk, **where),
            ]
        case "alert":
            return [
                payloads.alert(alert_state(active=active, value=value), node="l3c2")
                for active in (True, False)
                for value in (None, 1.8, math.nan)
            ]
        case _:
            facts = {"name": "x", "count": 1, "share": 0.5, "broken": math.nan, "on": True}
            return [payloads.event("recipe_changed", facts, node="l3c2", source="watch", sequence=1, wall_ns=WALL_NS)]


@pytest.mark.parametrize("name", ["verdict", "state", "info", "health", "alert", "event"])
def test_every_payload_is_what_its_schema_says(name):
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for payload in told(name):
        validator.validate(json.loads(payloads.encode(payload)))
        assert payload["schema"] in payloads.SCHEMAS
    unknown = {**told(name)[0], "surprise": 1}
    assert list(validator.iter_errors(unknown))


@pytest.mark.parametrize("cause", list(Cause))
def test_a_fail_safe_verdict_is_never_told_as_a_defect(cause):
    payload = verdict(record(cause), None)
    if cause in JUDGED:
        assert payload["evaluation"] == ("ok" if cause is Cause.OK else "not_ok")
        assert payload["reason"] in {"ok", "defect", "anomaly", "hold"}
    else:
        assert payload["evaluation"] == "not_decidable"
        assert payload["reason"] not in {"ok", "defect", "anomaly", "hold"}
    assert payload["cause"] == cause.value


def test_what_was_announced_counts_not_what_was_decided():
    part = record(Cause.OK)
    payload = verdict(part, delivery(part, verdict=Verdict.REJECT, cause=Cause.JOURNAL))
    assert (payload["result"], payload["cause"], payload["evaluation"]) == ("reject", "journal", "not_decidable")


def test_the_ledger_is_told_in_milliseconds():
    part = record()
    assert verdict(part, delivery(part))["latency_ms"] == {
        "acquire": 6.3,
        "transfer": 4.0,
        "preprocess": 0.7,
        "infer": 9.0,
        "decide": 0.4,
        "journal": 0.01,
        "plc_write": 4.09,
        "total": 20.5,
    }


def test_a_stage_that_was_never_reached_has_no_time():
    latency = verdict(record(Cause.NO_FRAME), None)["latency_ms"]
    assert latency["acquire"] is latency["infer"] is latency["plc_write"] is latency["total"] is None


def test_a_delivery_nobody_told_of_is_unknown():
    payload = verdict(record(), None)
    assert payload["plc"]["delivered"] is None
    assert payload["deadline_met"] is None


def test_a_late_delivery_missed_its_deadline():
    part = record()
    assert verdict(part, delivery(part, late=True))["deadline_met"] is False


def test_marking_as_replayed_changes_nothing_else():
    payload = verdict(record(), None)
    assert json.loads(payloads.replayed(payloads.encode(payload))) == {**payload, "replayed": True}


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([], "ok"),
        (["normal", "normal"], "ok"),
        (["normal", "maintenance_required"], "degraded"),
        (["maintenance_required", "failure"], "failed"),
    ],
)
def test_health_is_that_of_the_worst_component(states, status):
    payload = payloads.health(
        {str(index): {"ne107": state} for index, state in enumerate(states)},
        latency_ms={},
        deadline_missed_total=0,
        disk={},
        node="n",
        sequence=1,
        wall_ns=0,
    )
    assert payload["status"] == status


def test_a_cleared_alert_is_normal():
    assert payloads.alert(alert_state(active=False), node="n")["state"] == "normal"
    assert payloads.alert(alert_state(), node="n")["state"] == "active_unacked"


@given(st.integers(min_value=0, max_value=4_102_444_800 * 10**9))
def test_timestamps_sort_as_text(wall_ns):
    assert payloads.rfc3339(wall_ns) <= payloads.rfc3339(wall_ns + 1000)
    assert len(payloads.rfc3339(wall_ns)) == len("2026-11-22T08:15:30.123456Z")


@given(st.text(max_size=48))
def test_any_part_id_makes_valid_json(part_id):
    part = dataclasses.replace(record(), trigger=dataclasses.replace(record().trigger, part_id=part_id))
    body = payloads.encode(verdict(part, None))
    if part_id.isprintable() and part_id.isascii():
        assert json.loads(body)["part_id"] == part_id
    assert b"\n" not in body
