"""The handshake's table against a PLC that misses, doubles, delays and invents acknowledgements."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgeqc.core.handshake import (
    DEPTH,
    SEQUENCE_MASK,
    TABLE,
    Act,
    Event,
    Form,
    Given,
    Handshake,
    IllegalMoveError,
    Phase,
    Rules,
)
from edgeqc.core.heartbeat import Heartbeat
from edgeqc.records import PlcResult, Verdict

MS = 1_000_000
FORMS = list(Form)
ACKNOWLEDGED = [Form.ACK, Form.BUFFERED]


def result(sequence: int, verdict: Verdict = Verdict.PASS) -> PlcResult:
    return PlcResult(
        sequence=sequence, part_id=f"P{sequence}", verdict=verdict, code=1 if verdict is Verdict.PASS else 10,
        busy=False, ready=False, fault=False, score=0.5,
    )  # fmt: skip


def online(form: Form, *, hold_ns: int | None = None, depth: int = DEPTH) -> Handshake:
    handshake = Handshake(Rules(form=form, depth=depth, hold_ns=hold_ns))
    handshake.connected()
    handshake.written(0)
    handshake.health(ready=True, fault=False)
    return handshake


def give(handshake: Handshake, sequence: int, now_ns: int = 0) -> Given:
    given = handshake.result(result(sequence))
    handshake.written(now_ns)
    return given


def shown(handshake: Handshake) -> int | None:
    block = handshake.block
    return None if block.verdict is None else block.sequence


# One by one


@pytest.mark.parametrize("form", FORMS)
def test_a_part_goes_from_trigger_to_result(form: Form) -> None:
    handshake = online(form)
    assert (handshake.block.ready, handshake.block.busy, shown(handshake)) == (True, False, None)
    handshake.trigger(1, "P1", counter=501)
    block = handshake.block
    assert (block.busy, block.sequence, block.part_id, block.trigger_ack) == (True, 1, "P1", 501)
    assert give(handshake, 1) is Given.SHOWN
    block = handshake.block
    assert (block.busy, block.verdict, block.code, block.part_id, block.trigger_ack) == (
        False, Verdict.PASS, 1, "P1", 501,
    )  # fmt: skip


def test_a_pulse_ends_with_its_hold_time_and_not_before() -> None:
    handshake = online(Form.PULSE, hold_ns=20 * MS)
    give(handshake, 1, now_ns=5 * MS)
    assert handshake.due_ns == 25 * MS
    assert not handshake.expire(25 * MS - 1)
    assert shown(handshake) == 1
    assert handshake.expire(25 * MS)
    assert shown(handshake) is None
    assert handshake.block.sequence == 1, "the block still names the part that it spoke of last"


def test_the_hold_time_of_one_result_never_ends_the_next() -> None:
    handshake = online(Form.PULSE, hold_ns=20 * MS)
    give(handshake, 1, now_ns=0)
    give(handshake, 2, now_ns=15 * MS)
    assert not handshake.expire(20 * MS)
    assert shown(handshake) == 2


def test_a_trigger_takes_the_last_parts_pulse_off_but_not_in_a_pipeline() -> None:
    handshake = online(Form.PULSE, hold_ns=20 * MS)
    give(handshake, 1)
    handshake.trigger(2, "P2", counter=2)
    assert shown(handshake) is None
    give(handshake, 2)
    handshake.trigger(3, "P3", counter=3)
    handshake.trigger(4, "P4", counter=4)
    give(handshake, 3)
    handshake.trigger(5, "P5", counter=5)
    assert shown(handshake) == 3, "part 4 was under way already: its neighbours' results overlap"


@pytest.mark.parametrize("form", ACKNOWLEDGED)
def test_a_result_stays_until_its_own_number_is_acknowledged(form: Form) -> None:
    handshake = online(form)
    give(handshake, 7)
    handshake.trigger(8, "P8", counter=8)
    for other in (0, 6, 8, 7 + SEQUENCE_MASK):
        assert not handshake.ack(other)
        assert shown(handshake) == 7
    assert handshake.ack(7)
    assert shown(handshake) is None
    assert handshake.block.part_id == "P8", "the part that is under way"


def test_without_acknowledgement_the_next_result_takes_the_place_and_overrun_goes_on() -> None:
    handshake = online(Form.ACK)
    give(handshake, 1)
    assert give(handshake, 2) is Given.SHOWN
    assert (shown(handshake), handshake.block.overrun, handshake.overruns) == (2, True, 1)
    assert not handshake.ack(1), "the acknowledgement of the lost one is late: it must not release the new one"
    assert shown(handshake) == 2
    assert handshake.ack(2)
    assert not handshake.block.overrun


def test_buffered_results_come_in_order_each_by_the_acknowledgement_of_the_one_before() -> None:
    handshake = online(Form.BUFFERED)
    assert [give(handshake, sequence) for sequence in (1, 2, 3)] == [Given.SHOWN, Given.WAITS, Given.WAITS]
    assert handshake.block.waiting == 3
    for sequence in (1, 2, 3):
        assert shown(handshake) == sequence
        assert handshake.ack(sequence)
        handshake.written(0)
    assert shown(handshake) is None
    assert handshake.block.waiting == 0


@pytest.mark.parametrize("repeats", [2, 5])
def test_a_doubled_acknowledgement_never_releases_the_next_result(repeats: int) -> None:
    handshake = online(Form.BUFFERED)
    for sequence in (1, 2, 3):
        give(handshake, sequence)
    for _ in range(repeats):
        handshake.ack(1)
        if handshake.phase is Phase.OFFERED:
            handshake.written(0)
    assert shown(handshake) == 2


def test_after_a_missed_acknowledgement_every_part_still_gets_its_own_result() -> None:
    """The off-by-one fault: the PLC misses one result, and each later part would get the one before it."""
    handshake = online(Form.BUFFERED)
    taken: dict[int, int] = {}
    for part in range(1, 30):
        handshake.trigger(part, f"P{part}", counter=part)
        give(handshake, part)
        if part == 5:
            continue  # the PLC's scan was too slow: it neither took this one nor acknowledged it
        while (sequence := shown(handshake)) is not None and handshake.phase is Phase.VALID:
            if handshake.block.part_id == f"P{part}":
                taken[part] = sequence
            handshake.ack(sequence)
            if handshake.phase is Phase.OFFERED:
                handshake.written(0)
    assert taken == {part: part for part in range(1, 30) if part != 5}


def test_a_full_buffer_says_so_and_keeps_what_it_has() -> None:
    handshake = online(Form.BUFFERED, depth=8)
    for sequence in range(1, 9):
        assert handshake.block.ready
        give(handshake, sequence)
    assert not handshake.block.ready, "no room for one more"
    assert give(handshake, 9) is Given.DROPPED
    assert (handshake.block.overrun, handshake.block.waiting, handshake.overruns) == (True, 8, 1)
    for sequence in range(1, 9):
        assert shown(handshake) == sequence
        assert handshake.block.overrun
        handshake.ack(sequence)
        if handshake.phase is Phase.OFFERED:
            handshake.written(0)
    assert (shown(handshake), handshake.block.overrun, handshake.block.ready) == (None, False, True)


def test_ready_counts_the_parts_that_are_under_way() -> None:
    handshake = online(Form.BUFFERED, depth=2)
    handshake.trigger(1, "P1", counter=1)
    assert handshake.block.ready
    handshake.trigger(2, "P2", counter=2)
    assert not handshake.block.ready


@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_link_begins_with_a_clear_block(form: Form) -> None:
    handshake = online(form)
    give(handshake, 1)
    waiting = give(handshake, 2) is Given.WAITS
    assert handshake.lost() == ((2,) if waiting else ())
    assert handshake.result(result(3)) is Given.DROPPED, "nobody is there to be shown it"
    handshake.connected()
    lost = form is not Form.PULSE
    assert (shown(handshake), handshake.block.waiting, handshake.block.overrun) == (None, 0, lost)


def test_a_link_that_is_lost_leaves_no_result_to_be_shown() -> None:
    handshake = online(Form.ACK)
    give(handshake, 1)
    handshake.lost()
    assert shown(handshake) is None


def test_a_fresh_link_begins_without_ready_until_that_is_said_anew() -> None:
    handshake = online(Form.ACK)
    assert handshake.block.ready
    handshake.lost()
    handshake.connected()
    assert not handshake.block.ready
    handshake.health(ready=True, fault=False)
    assert handshake.block.ready


def test_without_a_result_there_is_no_code() -> None:
    assert online(Form.ACK).block.code == 0


@pytest.mark.parametrize("form", ACKNOWLEDGED)
def test_a_register_that_had_the_number_before_the_result_is_no_acknowledgement(form: Form) -> None:
    handshake = online(form)
    assert not handshake.ack(1)  # of another life: the state directory was wiped, and numbers begin at 1 again
    give(handshake, 1)
    assert not handshake.ack(1)
    assert shown(handshake) == 1
    handshake.ack(0)
    assert handshake.ack(1)


@pytest.mark.parametrize("form", ACKNOWLEDGED)
def test_a_result_is_not_acknowledged_before_the_plc_has_it(form: Form) -> None:
    handshake = online(form)
    handshake.result(result(4))
    assert not handshake.ack(4)
    handshake.written(0)
    assert shown(handshake) == 4


@pytest.mark.parametrize("form", FORMS)
def test_busy_lasts_from_the_first_trigger_to_the_last_result(form: Form) -> None:
    handshake = online(form)
    handshake.trigger(1, "P1", counter=1)
    handshake.trigger(2, "P2", counter=2)
    give(handshake, 1)
    assert handshake.block.busy
    handshake.lost()
    handshake.result(result(2))
    handshake.connected()
    assert not handshake.block.busy, "a result that nobody was shown ends its part all the same"


# The table


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_in_the_table_raises(form: Form) -> None:
    handshake = Handshake(Rules(form=form))
    with pytest.raises(IllegalMoveError, match="written while offline"):
        handshake.written(0)
    handshake.connected()
    with pytest.raises(IllegalMoveError, match="connected while clear"):
        handshake.connected()


@pytest.mark.parametrize("form", FORMS)
def test_every_phase_can_lose_its_link_and_take_triggers_and_results(form: Form) -> None:
    for phase in Phase:
        assert {Event.LOST, Event.TRIGGER, Event.TRIGGER_MORE, Event.RESULT} <= {
            event for at, event in TABLE[form] if at is phase
        }


def test_only_a_result_or_its_turn_brings_a_result_and_only_pulse_ends_by_a_trigger() -> None:
    for form, table in TABLE.items():
        for (before, event), (after, act) in table.items():
            if after is Phase.OFFERED and before is not Phase.OFFERED:
                assert act in {Act.SHOW, Act.OVERRUN, Act.NEXT}
                assert event in {Event.RESULT, Event.ACK_NEXT, Event.EXPIRED_NEXT}
            if after is Phase.VALID and before is not Phase.VALID:
                assert event is Event.WRITTEN
            if event in {Event.TRIGGER, Event.TRIGGER_MORE} and before is not after:
                assert (form, event) == (Form.PULSE, Event.TRIGGER)
            if before in {Phase.OFFERED, Phase.VALID} and after in {Phase.CLEAR, Phase.OFFLINE}:
                assert act in {Act.HIDE, Act.FORGET}


# Any order of events


class Line(RuleBasedStateMachine):
    """A station, a link that fails in every way, and a PLC that reads and acknowledges as it likes."""

    @initialize(form=st.sampled_from(FORMS), depth=st.integers(2, 5), hold_ms=st.none() | st.integers(1, 50))
    def begin(self, form: Form, depth: int, hold_ms: int | None) -> None:
        self.form, self.depth = form, depth
        self.handshake = Handshake(Rules(form=form, depth=depth, hold_ns=None if hold_ms is None else hold_ms * MS))
        self.handshake.health(ready=True, fault=False)
        self.now_ns = 0
        self.triggered: deque[int] = deque()
        self.sequence = 0
        self.given: dict[int, Verdict] = {}
        self.fate: dict[int, Given] = {}
        self.register: PlcResult | None = None
        """The PLC's own copy of the block: what has been executed, acknowledged or not."""
        self.taken: list[int] = []
        self.stale_write: PlcResult | None = None
        """Sent before a freeze; the peer will execute it when it thaws."""

    @property
    def up(self) -> bool:
        return self.handshake.phase is not Phase.OFFLINE

    def write(self, how: str) -> None:
        """Send the block as the station's keeper does."""
        block = self.handshake.block
        if how == "ok":
            self.register = block
            self.handshake.written(self.now_ns)
        else:
            if how == "executed":
                self.register = block
            elif how == "frozen":
                self.stale_write = block
            self.handshake.lost()

    hows = st.sampled_from(["ok", "ok", "ok", "ok", "executed", "refused", "frozen"])

    @rule(how=hows)
    @precondition(lambda self: not self.up)
    def connect(self, how: str) -> None:
        self.handshake.connected()
        assert self.handshake.block.verdict is None
        self.write(how)

    @rule()
    @precondition(lambda self: self.up)
    def lose(self) -> None:
        self.handshake.lost()

    @rule(how=hows)
    def trigger(self, how: str) -> None:
        self.sequence += 1
        self.triggered.append(self.sequence)
        self.handshake.trigger(self.sequence, f"P{self.sequence}", self.sequence)
        if self.up:
            self.write(how)

    @rule(how=hows, oldest=st.booleans(), verdict=st.sampled_from(Verdict))
    @precondition(lambda self: bool(self.triggered))
    def settle(self, how: str, oldest: bool, verdict: Verdict) -> None:
        sequence = self.triggered.popleft() if oldest else self.triggered.pop()
        self.given[sequence] = verdict
        overruns = self.handshake.overruns
        self.fate[sequence] = self.handshake.result(result(sequence, verdict))
        if self.up:
            if self.handshake.overruns > overruns:
                assert self.handshake.block.overrun
            self.write(how)
        else:
            assert self.fate[sequence] is Given.DROPPED

    @rule(how=hows, register=st.integers(-1, 40))
    @precondition(lambda self: self.up)
    def poll(self, how: str, register: int) -> None:
        """The station reads the PLC's acknowledgement: its last, or any number at all."""
        acknowledged = register if register >= 0 else (self.taken[-1] if self.taken else 0)
        before, phase = self.handshake.block, self.handshake.phase
        changed = self.handshake.ack(acknowledged)
        if changed:
            assert before.sequence == acknowledged, "only its own number releases a result"
            assert phase is Phase.VALID
            self.write(how)
        else:
            assert self.handshake.block == before

    @rule(ms=st.integers(0, 60), how=hows)
    @precondition(lambda self: self.up)
    def wait(self, ms: int, how: str) -> None:
        self.now_ns += ms * MS
        due_ns = self.handshake.due_ns
        if self.handshake.expire(self.now_ns):
            assert due_ns is not None
            assert due_ns <= self.now_ns
            self.write(how)

    @rule()
    @precondition(lambda self: self.stale_write is not None)
    def thaw(self) -> None:
        """A write that timed out long ago is executed now, over whatever is there."""
        self.register = self.stale_write
        self.stale_write = None

    @rule()
    def scan(self) -> None:
        """The PLC's program takes a result that it has not had: number, part id and verdict as they stand there."""
        seen = self.register
        if seen is None or seen.verdict is None or seen.sequence in self.taken:
            return
        assert seen.part_id == f"P{seen.sequence}", "number and part id are of one part"
        assert seen.verdict is self.given[seen.sequence], "a part never gets another part's verdict"
        assert seen.code == (1 if seen.verdict is Verdict.PASS else 10)
        self.taken.append(seen.sequence)

    @invariant()
    def what_is_shown_is_what_was_given(self) -> None:
        if not hasattr(self, "handshake"):
            return
        block, phase = self.handshake.block, self.handshake.phase
        assert (block.verdict is not None) == (phase in {Phase.OFFERED, Phase.VALID})
        assert block.busy == bool(self.triggered)
        if block.verdict is not None:
            assert block.verdict is self.given[block.sequence]
            assert self.fate[block.sequence] is not Given.DROPPED
        held = (block.verdict is not None) + self.handshake.waiting
        assert block.waiting == held <= (self.depth if self.form is Form.BUFFERED else 1)
        if block.ready and self.form is Form.BUFFERED:
            assert held + len(self.triggered) < self.depth


Line.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
test_any_order_of_events_keeps_each_part_to_its_own_verdict = Line.TestCase


# The PLC's own heartbeat


def test_a_plc_whose_program_stands_still_is_not_alive() -> None:
    heartbeat = Heartbeat(100 * MS)
    assert heartbeat.alive(10**12), "nothing is known yet"
    heartbeat.heard(7, 0)
    heartbeat.heard(7, 90 * MS)
    assert heartbeat.alive(100 * MS)
    assert not heartbeat.alive(101 * MS)
    heartbeat.heard(6, 102 * MS)
    assert heartbeat.alive(150 * MS)
    heartbeat.forget()
    assert heartbeat.alive(10**12)


def test_a_score_that_is_no_number_stays_what_it_is() -> None:
    handshake = online(Form.PULSE)
    handshake.result(
        PlcResult(
            sequence=1, part_id="", verdict=Verdict.REJECT, code=101, busy=False, ready=True, fault=False,
            score=math.nan,
        )
    )  # fmt: skip
    assert math.isnan(handshake.block.score)
