"""At the gate: each part is ejected there, and only there, unless it passed; what went wrong is told."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqc.core.axis import Axis
from edgeqc.core.conveyor import Conveyor
from edgeqc.core.stopping import StopLimits, StopReason, StopRule
from edgeqc.core.track import FAILURES, Gate, GateEvent, GateFact, GateLayout
from edgeqc.records import NS_PER_MS, Cause, Verdict
from edgeqc.settings import StationSettings
from edgeqc.settings.plc import OpcuaNodes

MS = NS_PER_MS
U16 = 65_536


def gate(**changes: int) -> Gate:
    return Gate(GateLayout(**{"travel": 100, "length": 10, "confirm": 20, **changes}))


def facts(events: list[GateEvent]) -> list[tuple[GateFact, int]]:
    return [(event.fact, event.sequence) for event in events]


def test_a_part_without_a_pass_is_ejected_at_the_gate_for_its_length() -> None:
    line = gate(confirm=0)
    line.part(1, "P1", 0)
    assert line.move(99) == []
    assert not line.output.eject
    assert facts(line.move(100)) == [(GateFact.EJECT, 1)]
    assert (line.output.eject, line.output.sequence, line.output.part_id) == (True, 1, "P1")
    assert line.move(109) == []
    assert line.output.eject
    line.move(110)
    assert not line.output.eject


def test_a_part_that_passed_goes_by() -> None:
    line = gate()
    line.part(1, "P1", 0)
    line.passed(1)
    assert line.move(100) == []
    assert not line.output.eject


def test_a_pass_that_comes_when_the_output_is_on_changes_nothing() -> None:
    line = gate(confirm=0)
    line.part(1, "P1", 0)
    line.move(100)
    line.passed(1)
    line.move(101)
    assert line.output.eject


def test_a_line_that_stands_still_keeps_its_parts() -> None:
    line = gate(confirm=0)
    line.part(1, "P1", 0)
    for _ in range(50):
        assert line.move(60) == []
    assert facts(line.move(103)) == [(GateFact.EJECT, 1)]


def test_parts_close_behind_each_other_are_each_counted() -> None:
    line = gate(confirm=0)
    for sequence, position in ((1, 0), (2, 5), (3, 30)):
        line.part(sequence, "", position)
    assert facts(line.move(101)) == [(GateFact.EJECT, 1)]
    assert facts(line.move(106)) == [(GateFact.EJECT, 2)]
    assert line.output.eject
    assert line.output.ejections == 2
    line.move(120)
    assert not line.output.eject


def test_a_part_that_went_by_unseen_is_told() -> None:
    line = gate()
    line.part(1, "P1", 0)
    line.move(50)
    assert facts(line.move(140)) == [(GateFact.WENT_BY, 1)]


@pytest.mark.parametrize(("step", "short"), [(5, False), (6, True)])
def test_an_output_that_is_on_at_one_reading_only_is_told(step: int, short: bool) -> None:
    line = gate(confirm=0)
    line.part(1, "P1", 0)
    told = [event.fact for at in range(4) for event in line.move(104 + step * at)]
    assert told == [GateFact.EJECT, *[GateFact.TOO_SHORT] * short]


def test_a_part_that_went_by_is_told_once_though_one_before_it_is_at_the_gate_still() -> None:
    line = gate(confirm=0)
    line.part(1, "P1", 20)
    line.part(2, "P2", 5)  # the encoder counted down between them
    told = [fact for position in (120, 123, 126) for fact in facts(line.move(position))]
    assert told == [(GateFact.EJECT, 1), (GateFact.WENT_BY, 2)]


def test_an_ejector_that_did_not_fire_is_told() -> None:
    line = gate()
    line.confirmed(7)
    line.part(1, "P1", 0)
    line.move(100)
    line.move(105)
    assert line.move(129) == []
    assert facts(line.move(130)) == [(GateFact.NOT_EJECTED, 1)]


def test_a_confirmed_part_is_done() -> None:
    line = gate()
    line.confirmed(U16 - 1)
    line.part(1, "P1", 0)
    line.move(100)
    line.move(105)
    assert line.confirmed(0) == []
    assert line.move(200) == []


def test_a_confirmation_that_nobody_asked_for_is_told() -> None:
    line = gate()
    line.confirmed(0)
    assert facts(line.confirmed(1)) == [(GateFact.EJECTED_UNASKED, 0)]


def test_a_part_that_nobody_can_place_is_told_at_once() -> None:
    assert facts(gate().part(1, "P1", None)) == [(GateFact.UNTRACKED, 1)]


def test_parts_whose_place_is_lost_are_told_each() -> None:
    line = gate()
    for sequence in (1, 2, 3):
        line.part(sequence, "", 10 * sequence)
    line.passed(2)
    assert facts(line.lost()) == [(GateFact.UNTRACKED, 1), (GateFact.UNTRACKED, 3)]
    assert not line.output.eject
    assert len(line) == 0


def test_more_parts_than_are_kept_are_told() -> None:
    line = gate(capacity=2)
    line.part(1, "", 0)
    line.part(2, "", 20)
    assert facts(line.part(3, "", 40)) == [(GateFact.UNTRACKED, 1)]


@given(
    st.lists(st.tuples(st.integers(12, 60), st.booleans()), max_size=40),
    st.lists(st.integers(0, 9), min_size=1, max_size=400),
)
def test_exactly_the_parts_that_did_not_pass_are_ejected_at_any_speed(
    parts: list[tuple[int, bool]], steps: list[int]
) -> None:
    """Read more often than the output is long, stops included: none is missed, none is hit for another."""
    line = gate(confirm=0)
    place = 0
    for sequence, (gap, good) in enumerate(parts, start=1):
        place += gap
        line.part(sequence, "", place)
        if good:
            line.passed(sequence)
    position, at = 0, {}
    rest = steps[-1] or 9
    moves = [*steps, *[rest] * ((place + 110) // rest + 20)]
    told: Counter[tuple[GateFact, int]] = Counter()
    for step in moves:
        position += step
        events = facts(line.move(position))
        told.update(events)
        at.update({sequence: position for fact, sequence in events if fact is GateFact.EJECT})
    place = 0
    expected = {}
    for sequence, (gap, good) in enumerate(parts, start=1):
        place += gap
        if not good:
            expected[sequence] = place + 100
    short = {sequence for fact, sequence in told if fact is GateFact.TOO_SHORT}
    assert not short or max(moves) > 5  # two readings are always in an output of 10
    assert told == Counter(
        [
            *((GateFact.EJECT, sequence) for sequence in expected),
            *((GateFact.TOO_SHORT, sequence) for sequence in short),
        ]
    )
    assert short <= expected.keys()
    assert all(expected[sequence] <= at[sequence] < expected[sequence] + 10 for sequence in expected)
    assert not line.output.eject


def test_an_encoder_counts_on_over_its_wrap_and_backwards() -> None:
    axis = Axis(cycle=U16)
    for at, raw in enumerate((65_530, 4, 2, 8)):
        assert axis.encoder(raw, at)
    assert axis.position == 14


def test_an_encoder_that_was_set_anew_loses_the_thread() -> None:
    axis = Axis(cycle=U16, most_step=1000)
    axis.encoder(5000, 0)
    assert not axis.encoder(0, MS)
    assert axis.encoder(10, 2 * MS)


def test_a_gap_in_which_the_encoder_may_have_wrapped_loses_the_thread() -> None:
    axis = Axis(cycle=U16, most_gap_ns=100 * MS)
    axis.encoder(0, 0)
    assert not axis.encoder(5, 101 * MS)


def test_only_the_time_for_which_the_line_ran_counts() -> None:
    axis = Axis()
    axis.clock(running=True, at_ns=0)
    axis.clock(running=True, at_ns=10)
    axis.clock(running=False, at_ns=1000)
    axis.clock(running=True, at_ns=1005)
    assert axis.position == 15


@pytest.mark.parametrize(("at", "position"), [(5, 50), (15, 120), (0, 0), (20, 140), (21, None), (-1, None)])
def test_a_trigger_is_placed_between_the_readings_around_it(at: int, position: int | None) -> None:
    axis = Axis(cycle=1 << 32)
    for when, raw in ((0, 7), (10, 107), (20, 147)):
        axis.encoder(raw, when)
    assert axis.at(at) == position


def test_no_reading_no_place() -> None:
    assert Axis(cycle=U16).at(5) is None


def conveyor(travel: int = 1000, length: int = 100) -> Conveyor:
    """Read each 5 ms, 10 pulses apart, until 20 ms; nobody knows anything after 100 ms without a reading."""
    made = Conveyor(Axis(cycle=1 << 32), Gate(GateLayout(travel=travel, length=length)), most_gap_ns=100 * MS)
    for number in range(5):
        assert not made.encoder(10 * number, 5 * number * MS, confirmations=None)
    return made


def test_a_part_is_placed_by_the_readings_around_its_trigger_however_the_speed_changes() -> None:
    belt = conveyor()
    assert not belt.part(1, "P1", 22 * MS, now_ns=23 * MS)
    assert not belt.encoder(40, 24 * MS, confirmations=None)  # the line stands since 20 ms
    assert not belt.encoder(1039, 25 * MS, confirmations=None)
    assert facts(belt.encoder(1040, 30 * MS, confirmations=None)) == [(GateFact.EJECT, 1)]


def test_a_pass_that_comes_before_the_part_is_placed_counts() -> None:
    belt = conveyor()
    belt.part(1, "P1", 22 * MS, now_ns=23 * MS)
    belt.passed(1)
    assert not belt.encoder(50, 25 * MS, confirmations=None)
    assert not belt.encoder(1060, 30 * MS, confirmations=None)


def test_parts_that_are_triggered_while_nobody_reads_cannot_be_placed() -> None:
    belt = conveyor()
    for sequence, at_ms in ((1, 60), (2, 80)):
        assert not belt.part(sequence, f"P{sequence}", at_ms * MS, now_ns=at_ms * MS)
    belt.passed(2)
    assert facts(belt.part(3, "P3", 125 * MS, now_ns=125 * MS)) == [(GateFact.UNTRACKED, 3)], "told at once"
    assert facts(belt.encoder(5000, 130 * MS, confirmations=None)) == [(GateFact.UNTRACKED, 1)]
    assert not belt.encoder(6500, 135 * MS, confirmations=None), "none of them is on the belt"


def test_a_part_triggered_while_nobody_read_is_untracked_though_it_is_heard_of_later() -> None:
    belt = conveyor()
    assert not belt.encoder(5000, 520 * MS, confirmations=None)  # half a second without a reading
    assert facts(belt.part(1, "P1", 515 * MS, now_ns=522 * MS)) == [(GateFact.UNTRACKED, 1)]
    assert not belt.part(2, "P2", 521 * MS, now_ns=523 * MS)
    assert not belt.encoder(5010, 525 * MS, confirmations=None), "from the first reading on parts are placed again"


def test_parts_without_a_reading_yet_cannot_be_placed() -> None:
    belt = Conveyor(Axis(cycle=1 << 32), Gate(GateLayout(travel=10, length=1)), most_gap_ns=100 * MS)
    assert facts(belt.part(1, "P1", MS, now_ns=MS)) == [(GateFact.UNTRACKED, 1)]


@pytest.mark.parametrize("pulses", [0, -10], ids=["stands still", "counts down"])
def test_an_encoder_by_which_parts_do_not_move_is_told(pulses: int) -> None:
    belt, told = conveyor(), []
    for sequence in (1, 2):
        at_ms = 20 + 5 * sequence
        belt.part(sequence, f"P{sequence}", at_ms * MS, now_ns=at_ms * MS)
        told += belt.encoder(40 + pulses * sequence, at_ms * MS, confirmations=None)
    assert facts(told) == [(GateFact.NOT_MOVING, 2)]
    assert GateFact.NOT_MOVING in FAILURES


def test_three_verdicts_in_a_row_that_say_nothing_ask_for_a_stop() -> None:
    rule = StopRule(StopLimits())
    assert not rule.verdict(Verdict.REJECT, Cause.NO_FRAME)
    assert not rule.verdict(Verdict.REJECT, Cause.LATE)
    assert not rule.verdict(Verdict.REJECT, Cause.DEFECT)
    assert not rule.verdict(Verdict.PASS, Cause.OK, late=True)
    assert not rule.verdict(Verdict.REJECT, Cause.ENGINE)
    assert rule.verdict(Verdict.REJECT, Cause.ENGINE)
    assert rule.reason is StopReason.FAIL_SAFE
    assert not rule.verdict(Verdict.PASS, Cause.OK)
    assert not rule.verdict(Verdict.REJECT, Cause.DEFECT)
    assert rule.reason is StopReason.FAIL_SAFE
    assert rule.verdict(Verdict.PASS, Cause.OK)
    assert rule.reason is None


def test_a_stop_for_the_gate_stands_though_another_was_asked_for_before() -> None:
    rule = StopRule(StopLimits(fail_safe_in_a_row=3))
    for _ in range(3):
        rule.verdict(Verdict.REJECT, Cause.NO_FRAME)
    assert rule.reason is StopReason.FAIL_SAFE
    assert rule.ask(StopReason.GATE), "a bad part went through: no row of good pictures brings it back"
    for _ in range(3):
        rule.verdict(Verdict.PASS, Cause.OK)
    assert rule.reason is StopReason.GATE


def test_a_stop_for_the_gate_stands_until_somebody_has_looked() -> None:
    rule = StopRule(StopLimits())
    assert rule.ask(StopReason.GATE)
    for _ in range(10):
        assert not rule.verdict(Verdict.PASS, Cause.OK)
    rule.reset()
    assert rule.reason is None


def test_too_many_rejects_ask_for_a_stop_fail_safe_ones_left_out() -> None:
    rule = StopRule(StopLimits(fail_safe_in_a_row=0, reject_ratio=0.5, reject_parts=4))
    for cause in (Cause.DEFECT, Cause.NO_FRAME, Cause.NO_FRAME, Cause.DEFECT, Cause.ANOMALY):
        assert not rule.verdict(Verdict.REJECT, cause)
    assert rule.verdict(Verdict.REJECT, Cause.DEFECT)
    assert rule.reason is StopReason.REJECTS


def test_rules_that_are_off_never_ask() -> None:
    rule = StopRule(StopLimits(fail_safe_in_a_row=0))
    assert not any(rule.verdict(Verdict.REJECT, Cause.LATE) for _ in range(100))


def station(plc: dict[str, object], **gate: object) -> list[str]:
    """What is said of a station with this PLC and this gate."""
    return misfits(plc, {"tracking": "encoder", "travel_pulses": 1000, "length_pulses": 100, **gate})


def delayed(plc: dict[str, object], **gate: object) -> list[str]:
    """The same with tracking `delay`."""
    return misfits(plc, {"tracking": "delay", "travel_ms": 500, **gate})


def misfits(plc: dict[str, object], gate: dict[str, object]) -> list[str]:
    return StationSettings.model_validate(
        {
            "name": "top", "takt_ms": 100, "budget_ms": 80, "trigger": {"source": "plc"}, "plc": plc,
            "camera": {"type": "replay", "folder": "parts", "width_px": 640, "height_px": 480},
            "recipe": {"engine": "engines/part/1"},
            "gate": gate,
        }
    ).misfits()  # fmt: skip


def test_an_output_shorter_than_it_may_be_late_is_refused() -> None:
    plc: dict[str, object] = {"type": "modbus", "host": "plc"}
    assert delayed(plc, length_ms=14, poll_ms=5) == []
    assert delayed(plc, length_ms=13.9, poll_ms=5) == [
        "gate.length_ms: 13.9 is under 14 (2 x (trigger.poll_ms + gate.poll_ms))"
    ]


def test_a_gate_over_opcua_needs_the_nodes_of_its_tracking() -> None:
    handshake = {name: "i=1" for name, field in OpcuaNodes.model_fields.items() if field.is_required()}
    plc: dict[str, object] = {"type": "opcua", "url": "opc.tcp://plc", "nodes": handshake}
    nodes = dict.fromkeys(("looked", "eject", "sequence", "ejections", "heartbeat"), "i=2")
    assert station(plc) == ["gate.nodes: is missing, plc.type: opcua needs it"]
    assert station(plc, nodes=nodes, confirmed=True) == [
        "gate.nodes.encoder: is missing, tracking: encoder needs it",
        "gate.nodes.confirmations: is missing, confirmed: true needs it",
    ]
    assert station(plc, nodes=nodes | {"encoder": "i=3"}) == []


@pytest.mark.parametrize(
    "plc", [{"type": "modbus", "host": "plc"}, {"type": "modbus-server", "bind": "127.0.0.1", "peers": ["127.0.0.1"]}]
)
def test_gate_blocks_may_not_overlap_others(plc: dict[str, object]) -> None:
    assert station(plc) == []
    assert station(plc, registers={"inputs": 112}) == [
        "gate.registers.inputs: 112 overlaps another block: all four are at one server"
    ]
    assert station(plc | {"registers": {"result": 138}}) == [  # EJECT would be PASS
        "gate.registers.output: 140 overlaps another block: all four are at one server"
    ]
    assert station(plc | {"registers": {"trigger": 118}}) == [
        "gate.registers.inputs: 120 overlaps another block: all four are at one server"
    ]


def test_gate_inputs_may_follow_what_is_read_of_a_plcs_trigger_block() -> None:
    plc: dict[str, object] = {"type": "modbus", "host": "plc"}
    for more, count in (({}, 9), ({"handshake": {"form": "ack"}}, 12)):
        assert station(plc | more, registers={"inputs": count}) == []
        assert len(station(plc | more, registers={"inputs": count - 1})) == 1
    recipe = {"registers": {"recipe": True}}
    assert station(plc | recipe, registers={"inputs": 13}) == []
    assert len(station(plc | recipe, registers={"inputs": 12})) == 1


def test_a_gate_without_a_plc_is_refused() -> None:
    assert "gate.tracking: encoder needs a plc, and trigger.source: plc" in station({"type": "none"})
