from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeqc.core.align import Mark
from edgeqc.core.linestate import LineState
from edgeqc.errors import JournalError, PeerError
from edgeqc.records import NS_PER_MS, NS_PER_S, AlertChange, Event, Ne107, Quality, TagBatch, TagFault, TagRemark
from edgeqc.settings import Settings
from edgeqc.shm.tagtable import TagTable
from edgeqc.watch import intake as intake_module
from edgeqc.watch.faults import GAP_NS, STANDS_NS
from edgeqc.watch.grid import Moment, TagGrid
from edgeqc.watch.intake import TagIntake
from edgeqc.watch.keeper import OFF_DELAY_NS, ON_DELAY_NS, TagKeeper
from edgeqc.watch.latch import Latch

NAMES = tuple(f"t{index}" for index in range(6))
STEP_NS = NS_PER_S // 4
UTC_NS = 1_790_000_000 * NS_PER_S


def configured(*more: dict[str, Any], **tag_fields: Any) -> Settings:
    press = {
        "name": "press",
        "type": "opcua",
        "url": "opc.tcp://127.0.0.1:4840",
        "security": "none",
        "tags": [{"name": name, "node": f"ns=2;s={name}", **tag_fields} for name in NAMES],
    }
    return Settings.model_validate(
        {
            "version": 1,
            "node": "box",
            "stations": [
                {
                    "name": "top",
                    "takt_ms": 100,
                    "budget_ms": 50,
                    "camera": {"type": "replay", "folder": "x", "width_px": 64, "height_px": 64},
                    "recipe": {"engine": "x"},
                    "plc": {"type": "none"},
                }
            ],
            "tags": [press, *more],
        }
    )


class Bench:
    """An intake, its grid and its keeper on a clock that the test turns; the peer's clock can be set."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, *more: dict[str, Any], **tag_fields: Any) -> None:
        self.settings = configured(*more, **tag_fields)
        self.table = TagTable.create(path, self.settings.tags)
        self.told: list[AlertChange] = []
        self.full = False
        self.now_ns = 1000 * NS_PER_S
        self.peer_ahead_ns = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(time, "time_ns", lambda: self.now_ns + UTC_NS)
        self.intake = TagIntake(self.table, self.settings.tags)
        self.grid = TagGrid(self.table, self.settings.tags, self.settings.grid, self.intake)
        self.keeper = TagKeeper(self.table, self.settings.tags, self.intake, self._append, now_ns=self.now_ns)
        self.moments: list[Moment] = []
        self.held: dict[int, float] = {}
        """What the server has."""
        self.connections = 1

    def _append(self, change: AlertChange) -> None:
        if self.full:
            raise JournalError("disk full")
        self.told.append(change)

    def send(
        self,
        values: dict[int, float],
        *,
        quality: Quality = Quality.GOOD,
        fault: TagFault = TagFault.NONE,
        age_ns: int = NS_PER_MS,
        stamps_ahead_ns: int = 0,
    ) -> None:
        """What the server has to say now, in one message."""
        self.intake.alive("press", self.now_ns)
        peer_ns = self.now_ns + UTC_NS + self.peer_ahead_ns
        count = len(values)
        batch = TagBatch(
            source="press",
            places=np.array(list(values), np.int32),
            values=np.array(list(values.values()), np.float64),
            qualities=np.full(count, quality, np.uint8),
            faults=np.full(count, fault, np.uint8),
            source_ns=np.full(count, peer_ns - age_ns + stamps_ahead_ns, np.int64),
            received_ns=self.now_ns,
            sent_ns=peer_ns,
            complete_to_ns=self.now_ns - 50 * NS_PER_MS,
        )
        self.held |= values
        try:
            self.intake.take(batch)
        except PeerError as exc:  # as the source does: a fresh subscription tells all that the server holds
            self.connections += 1
            self.intake.lost("press", exc.reason, hung=False)
            self.intake.back("press")
            self.send(self.held, age_ns=NS_PER_MS)

    def values(self, quality: Quality = Quality.GOOD, *places: int, fault: TagFault = TagFault.NONE) -> None:
        self.send(dict.fromkeys(places or range(len(NAMES)), 1.0), quality=quality, fault=fault)

    def wait(self, span_ns: int, *, sending: bool = False) -> list[AlertChange]:
        """Let time go by; what was told meanwhile. `sending`: the server goes on, values count."""
        before = len(self.told)
        end = self.now_ns + span_ns
        while self.now_ns < end:
            self.now_ns += STEP_NS
            if sending:
                self.send(dict.fromkeys(range(len(NAMES)), float(self.now_ns // STEP_NS)))
            self.look()
        return self.told[before:]

    def look(self) -> None:
        self.intake.look(self.now_ns)
        self.grid.put(self.intake.drain())
        self.moments += self.grid.moments(self.now_ns)
        self.keeper.tick(self.now_ns)

    def settled(self) -> Bench:
        self.intake.back("press")
        self.values()
        self.wait(2 * (ON_DELAY_NS + OFF_DELAY_NS), sending=True)
        self.values()
        return self

    def quality(self, place: int = 0) -> Quality:
        return self.table.read(place, self.now_ns).quality

    def raised(self) -> set[str]:
        state: dict[str, bool] = {}
        for change in self.told:
            state[change.id] = change.active
        return {name for name, active in state.items() if active}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Bench(tmp_path / "tags", monkeypatch)
    yield made
    made.table.close()


def qualities(bench: Bench) -> set[Quality]:
    return {bench.quality(index) for index in range(len(NAMES))}


def marks(moment: Moment) -> set[Mark]:
    return {Mark(mark) for mark in moment.row.marks[: len(NAMES)]}


def test_a_source_that_never_answers_is_told(bench: Bench):
    (change,) = bench.wait(ON_DELAY_NS + NS_PER_S)
    assert change.id == "tags.press.lost"
    assert change.active
    assert change.ne107 is Ne107.FAILURE
    assert change.priority == "high"
    assert "opc.tcp://127.0.0.1:4840" in change.action


def test_a_good_start_tells_nobody(bench: Bench):
    assert bench.settled().told == []
    assert qualities(bench) == {Quality.GOOD}


def test_a_lost_source_turns_its_tags_bad_at_once_and_keeps_their_values(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "connection refused", hung=False)
    assert qualities(bench) == {Quality.BAD}
    value = bench.table.read(3, bench.now_ns)
    assert value.value == 1.0
    assert value.source_ts == pytest.approx((bench.now_ns + UTC_NS) / NS_PER_S, abs=1)
    bench.look()
    state = bench.table.source(0)
    assert (state.up, state.losses, state.reason) == (False, 1, "connection refused")


def test_one_alarm_for_a_lost_source_and_one_when_it_is_back(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "connection refused", hung=False)
    (raised,) = bench.wait(10 * NS_PER_S)
    assert (raised.id, raised.active) == ("tags.press.lost", True)
    assert "connection refused" in raised.text
    assert raised.value is not None
    assert raised.value >= 2.0
    bench.intake.back("press")
    cleared = bench.wait(10 * NS_PER_S, sending=True)
    assert [(change.id, change.active, change.ne107) for change in cleared] == [
        ("tags.press.lost", False, Ne107.NORMAL)
    ]


def test_a_server_that_hangs_has_an_alarm_of_its_own(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "no sign of life for 2000 ms", hung=True)
    (raised,) = bench.wait(10 * NS_PER_S)
    assert raised.id == "tags.press.hung"
    assert "hangs" in raised.action


def test_a_short_loss_alarms_nobody(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "reset", hung=False)
    bench.wait(ON_DELAY_NS - STEP_NS)
    bench.intake.back("press")
    assert bench.wait(20 * NS_PER_S, sending=True) == []


def test_a_source_that_comes_and_goes_is_one_alarm(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "reset", hung=False)
    bench.wait(ON_DELAY_NS + STEP_NS)
    for _ in range(5):
        bench.intake.back("press")
        bench.wait(OFF_DELAY_NS - STEP_NS, sending=True)
        bench.intake.lost("press", "reset", hung=False)
        bench.wait(NS_PER_S)
    assert [change.active for change in bench.told] == [True]


def test_a_server_that_restarted_is_told_and_soon_forgotten(bench: Bench):
    bench.settled()
    bench.intake.remark("press", TagRemark.RESTARTED, "restarted at 2026-11-22T05:00:00Z")
    told = bench.wait(STANDS_NS + 10 * NS_PER_S, sending=True)
    assert [(change.id, change.active) for change in told] == [
        ("tags.press.restarted", True),
        ("tags.press.restarted", False),
    ]


@pytest.mark.parametrize(
    ("remark", "ne107"),
    [
        (TagRemark.REFUSED, Ne107.FAILURE),
        (TagRemark.TYPE, Ne107.MAINTENANCE_REQUIRED),
        (TagRemark.NAMESPACES, Ne107.MAINTENANCE_REQUIRED),
        (TagRemark.SAMPLES_LOST, Ne107.OUT_OF_SPECIFICATION),
        (TagRemark.SLOW, Ne107.OUT_OF_SPECIFICATION),
    ],
)
def test_what_a_source_remarks_is_an_alarm_until_it_takes_it_back(bench: Bench, remark: TagRemark, ne107: Ne107):
    bench.settled()
    bench.intake.remark("press", remark, "t1: something")
    (raised,) = bench.wait(10 * NS_PER_S, sending=True)
    assert (raised.id, raised.active, raised.ne107) == (f"tags.press.{remark.value}", True, ne107)
    assert "t1: something" in raised.text
    assert raised.action
    bench.intake.remark("press", remark, "")
    (cleared,) = bench.wait(10 * NS_PER_S, sending=True)
    assert (cleared.id, cleared.active) == (raised.id, False)


@pytest.mark.parametrize(("fault", "kind"), [(TagFault.STATUS, "bad"), (TagFault.NOT_A_NUMBER, "not_a_number")])
def test_bad_tags_of_a_living_source_are_one_alarm_that_names_them(bench: Bench, fault: TagFault, kind: str):
    bench.settled()
    bench.send({1: math.nan, 4: math.nan}, quality=Quality.BAD, fault=fault)
    (raised,) = bench.wait(ON_DELAY_NS + NS_PER_S)
    assert (raised.id, raised.active, raised.value, raised.unit) == (f"tags.press.{kind}", True, 2.0, "tags")
    assert raised.text.startswith("2 of 6 tags of press are ")
    assert raised.text.endswith(": t1, t4")
    assert marks(bench.moments[-1]) == {Mark.BAD, Mark.GOOD}
    bench.values()
    (cleared,) = bench.wait(OFF_DELAY_NS + NS_PER_S)
    assert (cleared.id, cleared.active) == (f"tags.press.{kind}", False)


def test_an_uncertain_value_is_no_alarm(bench: Bench):
    bench.settled()
    bench.values(Quality.UNCERTAIN)
    assert bench.wait(10 * NS_PER_S) == []


def test_a_stuck_value_is_uncertain_and_an_alarm_until_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "tags", monkeypatch, stuck_s=20.0).settled()
    for _ in range(30):
        bench.now_ns += NS_PER_S
        bench.send({0: 7.0, **dict.fromkeys(range(1, 6), float(bench.now_ns // STEP_NS))})
        bench.look()
    assert [bench.quality(place) for place in (0, 1)] == [Quality.UNCERTAIN, Quality.GOOD]
    assert Mark(bench.moments[-1].row.marks[0]) is Mark.UNCERTAIN
    assert bench.raised() == {"tags.press.stuck"}
    assert bench.told[-1].text.endswith(": t0")
    bench.wait(10 * NS_PER_S, sending=True)
    assert bench.quality() is Quality.GOOD
    assert bench.raised() == set()
    bench.table.close()


def test_a_clock_that_is_hours_off_is_told_and_allowed_for(bench: Bench):
    bench.peer_ahead_ns = 3 * 3600 * NS_PER_S
    bench.settled()
    assert bench.raised() == {"tags.press.clock"}
    assert "3.0 h ahead of" in bench.told[-1].text
    assert marks(bench.moments[-1]) == {Mark.GOOD}
    assert bench.moments[-1].row.ages_s[:6].max() < 1.0
    assert bench.grid.aligner.late == 0


@pytest.mark.parametrize("jump_s", [7200, -7200])
def test_a_clock_that_jumps_is_told_and_followed(bench: Bench, jump_s: int):
    bench.settled()
    bench.peer_ahead_ns = jump_s * NS_PER_S
    bench.wait(10 * NS_PER_S, sending=True)
    assert bench.raised() == {"tags.press.clock", "tags.press.clock_jumped"}
    assert f"set {'forward' if jump_s > 0 else 'back'} by 2.0 h" in next(
        change.text for change in bench.told if change.id.endswith("jumped")
    )
    assert marks(bench.moments[-1]) == {Mark.GOOD}
    assert bench.moments[-1].row.ages_s[:6].max() < 1.0
    assert bench.quality() is Quality.GOOD
    bench.peer_ahead_ns = 0
    bench.wait(20 * NS_PER_S, sending=True)
    bench.wait(STANDS_NS + OFF_DELAY_NS, sending=True)
    assert bench.raised() == set()


@pytest.mark.parametrize("constant", [True, False])
def test_after_a_clock_set_back_what_does_not_change_is_read_anew(bench: Bench, constant: bool):
    bench.settled()
    bench.peer_ahead_ns = -20 * NS_PER_S
    changing = range(5 if constant else 6)
    for number in range(40):
        bench.now_ns += STEP_NS
        bench.send(dict.fromkeys(changing, float(number)))
        bench.look()
    assert bench.connections == (2 if constant else 1)
    assert {bench.quality(place) for place in range(6)} == {Quality.GOOD}
    assert marks(bench.moments[-1]) == {Mark.GOOD}


def test_stamps_behind_the_servers_own_clock_are_told_and_allowed_for(bench: Bench):
    bench.settled()
    for number in range(280):  # a window that began before it, one of its own, and the alarm's delay
        bench.now_ns += STEP_NS
        bench.send(dict.fromkeys(range(6), float(number)), age_ns=40 * NS_PER_S)
        bench.look()
    assert "tags.press.clock" in bench.raised()
    assert any("behind its own clock" in change.text for change in bench.told)
    assert marks(bench.moments[-1]) == {Mark.GOOD}
    assert bench.moments[-1].row.ages_s[:6].max() < 2.0


def test_stamps_from_the_future_count_as_now(bench: Bench):
    bench.settled()
    for number in range(20):
        bench.now_ns += STEP_NS
        bench.send(dict.fromkeys(range(6), float(number)), stamps_ahead_ns=3600 * NS_PER_S)
        bench.look()
    assert bench.raised() == {"tags.press.clock"}
    assert bench.moments[-1].row.ages_s[:6].max() < 1.0


def test_ten_minutes_away_are_a_gap_in_the_grid_and_an_alarm(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "switched off", hung=True)
    away = len(bench.moments)
    bench.wait(10 * GAP_NS)
    gap = bench.moments[away + 5 :]
    assert len(gap) > 5500
    assert all(marks(moment) == {Mark.GAP} for moment in gap)
    assert all(np.isnan(moment.row.values[:6]).all() for moment in gap)
    bench.intake.back("press")
    bench.wait(10 * NS_PER_S, sending=True)
    assert marks(bench.moments[-1]) == {Mark.GOOD}
    assert "tags.press.gap" in bench.raised()
    assert any("was away for 600 s" in change.text for change in bench.told)
    bench.wait(STANDS_NS, sending=True)
    assert bench.raised() == set()


def test_a_value_that_never_changes_is_known_again_after_a_gap(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "switched off", hung=False)
    bench.wait(30 * NS_PER_S)
    bench.intake.back("press")
    bench.send(
        dict.fromkeys(range(6), 1.0), age_ns=86_400 * NS_PER_S
    )  # as a server tells what it holds since yesterday
    bench.wait(2 * NS_PER_S)
    assert marks(bench.moments[-1]) == {Mark.GOOD}
    assert qualities(bench) == {Quality.GOOD}


def test_a_million_queued_samples_are_taken_whole_and_nothing_old_is_taken_for_now(bench: Bench):
    bench.settled()
    bench.intake.lost("press", "link down", hung=True)
    bench.wait(600 * NS_PER_S)
    bench.intake.back("press")
    before, drained, bad_rows = bench.intake.updates, 0, 0
    span = 600 * NS_PER_S
    for number in range(500):  # 2000 samples in each message, ten minutes' worth within 5 s
        bench.now_ns += 10 * NS_PER_MS
        age_ns = span - number * span // 500
        peer_ns = bench.now_ns + UTC_NS
        places = np.tile(np.arange(6), 334)[:2000].astype(np.int32)
        bench.intake.take(
            TagBatch(
                source="press",
                places=places,
                values=np.full(2000, float(number)),
                qualities=np.full(2000, Quality.GOOD, np.uint8),
                faults=np.zeros(2000, np.uint8),
                source_ns=peer_ns - np.linspace(age_ns, age_ns - span // 500, 2000).astype(np.int64),
                received_ns=bench.now_ns,
                sent_ns=peer_ns,
            )
        )
        taken = bench.intake.drain()
        drained += sum(len(each.samples.places) for each in taken)
        bench.grid.put(taken)
        rows = list(bench.grid.moments(bench.now_ns))
        bad_rows += sum(Mark.GOOD in marks(moment) and moment.row.ages_s[:6].min() > 6 for moment in rows)
        if number % 25 == 0:
            bench.keeper.tick(bench.now_ns)
            if 25 < number < 490:
                assert bench.quality() is Quality.BAD  # what is in the table is old
                assert "tags.press.backlog" in bench.raised()
    assert bench.intake.updates - before == 1_000_000
    assert drained >= 1_000_000
    assert bench.intake.dropped == 0
    assert bad_rows == 0
    bench.wait(OFF_DELAY_NS + 2 * NS_PER_S, sending=True)
    assert marks(bench.moments[-1]) == {Mark.GOOD}
    assert "tags.press.backlog" not in bench.raised()


def test_what_nobody_takes_is_bounded_counted_and_told(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    bench.settled()
    bench.intake.drain()
    monkeypatch.setattr(intake_module, "MOST_SAMPLES", 60)
    for _ in range(20):
        bench.values()
    assert bench.intake.queued <= 60
    assert bench.intake.dropped == 60
    assert [change.id for change in bench.wait(STEP_NS)] == ["tags.watch.overrun"]


async def test_sources_wait_while_too_much_is_queued(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    bench.settled()
    bench.intake.drain()
    monkeypatch.setattr(intake_module, "ROOM_SAMPLES", 5)
    await asyncio.wait_for(bench.intake.room(), 1)
    bench.values()
    waiting = asyncio.ensure_future(bench.intake.room())
    await asyncio.sleep(0.05)  # several looks of the one that waits
    assert not waiting.done()
    bench.intake.drain()
    await asyncio.wait_for(waiting, 1)


def test_a_dead_band_lets_only_real_changes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "tags", monkeypatch, deadband=0.5).settled()
    bench.intake.drain()
    bench.send({0: 1.4, 1: 1.6})
    (taken,) = bench.intake.drain()
    assert taken.samples.places.tolist() == [1]
    assert bench.table.read(0, bench.now_ns).value == 1.0
    bench.send({0: 1.4}, quality=Quality.UNCERTAIN)
    assert bench.quality(0) is Quality.UNCERTAIN  # another quality is a change, however small
    bench.table.close()


def test_a_tag_that_left_its_dead_band_and_came_back_in_one_message_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(tmp_path / "tags", monkeypatch, deadband=0.5).settled()
    bench.intake.drain()
    ago_ns = np.array([30, 20, 10]) * NS_PER_MS
    bench.now_ns += STEP_NS
    bench.intake.take(
        TagBatch(
            source="press",
            places=np.array([0, 1, 0], np.int32),
            values=np.array([9.0, 1.1, 1.2]),
            qualities=np.full(3, Quality.GOOD, np.uint8),
            faults=np.zeros(3, np.uint8),
            source_ns=bench.now_ns + UTC_NS - ago_ns,
            received_ns=bench.now_ns,
            sent_ns=bench.now_ns + UTC_NS,
            complete_to_ns=0,
        )
    )
    assert bench.table.read(0, bench.now_ns).value == 1.2
    (taken,) = bench.intake.drain()
    assert taken.samples.values.tolist() == [9.0, 1.2]
    bench.table.close()


def test_tags_that_all_lie_still_in_their_dead_bands_are_fresh_and_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    woken: list[int] = []
    bench = Bench(tmp_path / "tags", monkeypatch, deadband=0.5).settled()
    monkeypatch.setattr(bench.intake, "_wake", lambda: woken.append(bench.now_ns))
    bench.intake.drain()
    for step in range(100):
        bench.now_ns += STEP_NS
        bench.send(dict.fromkeys(range(len(NAMES)), 1.0 + 0.01 * (step % 40)))
    assert bench.intake.drain() == []
    value = bench.table.read(0, bench.now_ns)
    assert (value.value, value.quality, value.received_ns) == (1.0, Quality.GOOD, bench.now_ns)
    assert value.source_ts == pytest.approx((bench.now_ns + UTC_NS - NS_PER_MS) / NS_PER_S, abs=1e-3)
    assert bench.intake.complete_to_ns() == bench.now_ns - 50 * NS_PER_MS
    assert woken[-1] == bench.now_ns  # rows are due though no sample came
    assert bench.wait(10 * NS_PER_S, sending=False) == []
    bench.table.close()


@pytest.mark.parametrize(("step", "stuck"), [(0.01, set()), (0.0, {"tags.press.stuck"})])
def test_what_moves_inside_its_dead_band_is_not_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, stuck: set[str]
):
    bench = Bench(tmp_path / "tags", monkeypatch, deadband=0.5, stuck_s=20.0).settled()
    for number in range(240):
        bench.now_ns += STEP_NS
        bench.send(dict.fromkeys(range(len(NAMES)), 1.0 + step * (number % 40)))
        bench.look()
    assert bench.raised() == stuck
    assert qualities(bench) == {Quality.UNCERTAIN if stuck else Quality.GOOD}
    bench.table.close()


def test_a_sensor_that_got_stuck_inside_its_dead_band_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "tags", monkeypatch, deadband=0.5, stuck_s=20.0).settled()
    for number in range(160):
        bench.now_ns += STEP_NS
        bench.send(dict.fromkeys(range(len(NAMES)), 1.2))
        bench.look()
        assert qualities(bench) == {Quality.UNCERTAIN if number > 20 * 4 else Quality.GOOD}, number
    bench.send(dict.fromkeys(range(len(NAMES)), 1.21))
    assert qualities(bench) == {Quality.GOOD}
    bench.table.close()


def test_a_late_sample_inside_a_dead_band_is_not_what_was_received_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(tmp_path / "tags", monkeypatch, deadband=0.5).settled()
    shown = bench.table.read(0, bench.now_ns)
    bench.now_ns += STEP_NS
    bench.send({0: 1.1}, age_ns=NS_PER_S)
    assert bench.table.read(0, bench.now_ns) == shown
    bench.table.close()


DERIVED = {
    "name": "calc",
    "type": "derived",
    "tags": [
        {"name": "dp", "how": "difference", "of": ["t0", "t1"], "scale": 10, "max": 100},
        {"name": "dp_rate", "how": "rate", "of": ["dp"], "window_s": 1},
    ],
}
MACHINE = {
    "name": "press1",
    "type": "state",
    "running": [{"tag": "t2", "over": 5}],
    "changeover": [{"tag": "dp", "over": 50}],
    "warm_up_s": 2,
}


def test_derived_tags_are_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "tags", monkeypatch, DERIVED).settled()
    dp, rate = bench.table.index("dp"), bench.table.index("dp_rate")
    bench.send({0: 5.0, 1: 3.0})
    assert bench.table.read(dp, bench.now_ns).value == pytest.approx(20)
    assert bench.quality(dp) is Quality.GOOD
    bench.now_ns += 4 * STEP_NS
    bench.send({0: 6.0})
    assert bench.table.read(rate, bench.now_ns).value == pytest.approx(10, rel=0.1)
    bench.send({0: 60.0})
    assert bench.quality(dp) is Quality.UNCERTAIN  # over its max
    bench.wait(NS_PER_S)
    assert bench.moments[-1].row.values[dp] == pytest.approx(570)
    bench.intake.lost("press", "off", hung=False)
    assert bench.quality(dp) is Quality.BAD
    bench.wait(NS_PER_S)
    assert Mark(bench.moments[-1].row.marks[dp]) is Mark.GAP
    bench.table.close()


def test_a_rate_falls_to_nothing_where_its_input_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Servers and dead bands tell changes only: that nothing comes is what a rate has to hear."""
    bench = Bench(tmp_path / "tags", monkeypatch, DERIVED)
    bench.intake.back("press")
    rate = bench.table.index("dp_rate")
    bench.send({0: 1.0, 1: 1.0})
    bench.wait(NS_PER_S // 2)
    assert bench.quality(rate) is Quality.BAD, "one value, seen for less than its window, has no rate"
    bench.wait(2 * NS_PER_S)
    assert (bench.table.read(rate, bench.now_ns).value, bench.quality(rate)) == (0.0, Quality.GOOD)
    bench.send({0: 2.0})
    assert bench.table.read(rate, bench.now_ns).value > 3
    bench.wait(3 * NS_PER_S)
    assert (bench.table.read(rate, bench.now_ns).value, bench.quality(rate)) == (0.0, Quality.GOOD)
    assert bench.moments[-1].row.values[rate] == 0.0
    bench.send({0: 3.0})
    assert bench.table.read(rate, bench.now_ns).value > 0
    bench.table.close()


def test_what_is_made_of_tags_is_as_bad_as_they_are_when_stuck_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "tags", monkeypatch, DERIVED, stuck_s=20.0).settled()
    dp = bench.table.index("dp")
    bench.send({0: 5.0, 1: 3.0})
    assert bench.quality(dp) is Quality.GOOD
    for _ in range(100):  # 25 s
        bench.now_ns += STEP_NS
        bench.send({1: float(bench.now_ns % 7)})
        bench.look()
    assert (bench.quality(0), bench.quality(dp)) == (Quality.UNCERTAIN, Quality.UNCERTAIN)
    bench.send({0: 6.0})
    assert bench.quality(dp) is Quality.GOOD
    bench.send({0: 7.0}, age_ns=8 * NS_PER_S)
    assert bench.quality(dp) is Quality.BAD
    bench.table.close()


def test_what_is_made_of_tags_is_bad_when_nobody_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The process hangs, or has ended: the tags that it fetched are BAD after their own `stale_ms`, these must be, too."""
    bench = Bench(tmp_path / "tags", monkeypatch, DERIVED, MACHINE).settled()
    bench.wait(NS_PER_S, sending=True)
    made = [bench.table.index(name) for name in ("dp", "press1")]
    bench.wait(4 * NS_PER_S)  # its inputs say nothing new, and it is there
    assert [bench.quality(place) for place in made] == [Quality.GOOD, Quality.GOOD]
    bench.now_ns += 3 * NS_PER_S
    assert [bench.quality(place) for place in made] == [Quality.BAD, Quality.BAD]
    bench.table.close()


def test_a_machines_state_is_a_tag_and_its_changes_are_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(tmp_path / "tags", monkeypatch, DERIVED, MACHINE)
    place = bench.table.index("press1")
    bench.intake.back("press")
    events: list[Event] = []

    def run(seconds: float, speed: float, t0: float = 0.0) -> LineState:
        bench.moments.clear()
        for _ in range(int(seconds * 4)):
            bench.now_ns += STEP_NS
            bench.send({0: t0, 1: 0.0, 2: speed})
            bench.look()
        events.extend(event for moment in bench.moments for event in moment.changed)
        state = bench.moments[-1].states["press1"]
        assert bench.moments[-1].row.values[place] == state
        assert bench.table.read(place, bench.now_ns).value == state
        return state

    assert run(2, 0.0) is LineState.STOPPED
    assert run(1, 9.0) is LineState.WARM_UP
    assert run(3, 9.0) is LineState.RUNNING
    assert run(1, 9.0, t0=8.0) is LineState.CHANGEOVER
    assert [(event.facts["was"], event.facts["state"]) for event in events] == [
        ("unknown", "stopped"),
        ("stopped", "warm_up"),
        ("warm_up", "running"),
        ("running", "changeover"),
    ]
    bench.intake.lost("press", "off", hung=False)
    bench.wait(NS_PER_S)
    assert bench.moments[-1].states["press1"] is LineState.UNKNOWN
    assert bench.quality(place) is Quality.UNCERTAIN
    bench.table.close()


def test_a_row_comes_as_soon_as_all_have_told_what_was_until_then(bench: Bench):
    bench.settled()
    bench.look()
    bench.moments.clear()
    now_ms = bench.now_ns // NS_PER_MS // 100 * 100 + 160
    bench.now_ns = now_ms * NS_PER_MS  # the row 160 ms ago waits no longer than for this message
    bench.values()
    bench.look()
    assert bench.moments[-1].row.at_ns // NS_PER_MS == now_ms - 60


def test_an_alarm_the_journal_could_not_take_is_told_later(bench: Bench):
    bench.settled()
    bench.full = True
    bench.intake.lost("press", "reset", hung=False)
    assert bench.wait(5 * NS_PER_S) == []
    bench.full = False
    assert [change.id for change in bench.wait(NS_PER_S)] == ["tags.press.lost"]


def test_updates_per_second_are_counted(bench: Bench):
    bench.settled()
    bench.wait(5 * NS_PER_S, sending=True)
    assert bench.table.source(0).updates_hz == pytest.approx(len(NAMES) * 4)


def test_a_history_that_cannot_be_written_is_an_alarm(bench: Bench):
    bench.settled()
    bench.keeper.history_trouble, bench.keeper.history_lost = "No space left on device", 700
    (raised,) = bench.wait(ON_DELAY_NS + NS_PER_S, sending=True)
    assert raised.id == "tags.history.disk"
    assert "No space left" in raised.text
    bench.keeper.history_trouble = ""
    (cleared,) = bench.wait(OFF_DELAY_NS + NS_PER_S, sending=True)
    assert not cleared.active


def test_a_latch_waits_for_its_delays():
    latch = Latch(on_ns=10, off_ns=20)
    assert latch.update(True, 0) is False
    assert latch.update(True, 9) is False
    assert latch.update(True, 10) is True
    latch.settle()
    assert latch.active is True
    assert latch.update(False, 20) is False
    assert latch.update(True, 30) is False
    assert latch.update(False, 35) is False
    assert latch.update(False, 54) is False
    assert latch.update(False, 55) is True


def test_a_latch_asks_again_until_it_is_settled():
    latch = Latch(on_ns=0, off_ns=0)
    assert latch.update(True, 1) is True
    assert latch.update(True, 2) is True
    latch.settle()
    assert latch.update(True, 3) is False
