from __future__ import annotations

from pathlib import Path

import pytest

from edgeqc.errors import JournalError
from edgeqc.records import NS_PER_S, AlertChange, Ne107, Quality, TagValue
from edgeqc.settings import ReplayTagSource
from edgeqc.shm.tagtable import TagTable
from edgeqc.watch.keeper import OFF_DELAY_NS, ON_DELAY_NS, TagKeeper
from edgeqc.watch.latch import Latch

NAMES = tuple(f"t{index}" for index in range(6))
STEP_NS = NS_PER_S // 4


class Bench:
    """A keeper with one source of six tags, a clock to turn and a journal to look into."""

    def __init__(self, path: Path) -> None:
        settings = ReplayTagSource.model_validate(
            {"name": "press", "type": "replay", "file": "x.csv", "tags": [{"name": name} for name in NAMES]}
        )
        self.table = TagTable.create(path, [settings])
        self.told: list[AlertChange] = []
        self.full = False
        self.now_ns = NS_PER_S
        self.keeper = TagKeeper(self.table, [settings], self._append, now_ns=self.now_ns)

    def _append(self, change: AlertChange) -> None:
        if self.full:
            raise JournalError("disk full")
        self.told.append(change)

    def values(self, quality: Quality = Quality.GOOD, *places: int) -> None:
        self.keeper.alive("press", self.now_ns)
        for index in places or range(len(NAMES)):
            self.keeper.put(
                index,
                TagValue(name=NAMES[index], value=1.0, quality=quality, source_ts=2.0, received_ns=self.now_ns),
            )

    def wait(self, span_ns: int) -> list[AlertChange]:
        """Let time go by; what was told meanwhile."""
        before = len(self.told)
        end = self.now_ns + span_ns
        while self.now_ns < end:
            self.now_ns += STEP_NS
            self.keeper.tick(self.now_ns)
        return self.told[before:]

    def settled(self) -> Bench:
        self.keeper.back("press")
        self.values()
        self.wait(2 * (ON_DELAY_NS + OFF_DELAY_NS))
        self.values()
        return self


@pytest.fixture
def bench(tmp_path: Path):
    made = Bench(tmp_path / "tags")
    yield made
    made.table.close()


def qualities(bench: Bench) -> set[Quality]:
    return {bench.table.read(index, bench.now_ns).quality for index in range(len(NAMES))}


def test_a_source_that_never_answers_is_told(bench: Bench):
    (change,) = [change for change in bench.wait(ON_DELAY_NS + NS_PER_S) if change.active]
    assert change.id == "tags.press.lost"
    assert change.ne107 is Ne107.FAILURE
    assert change.priority == "high"
    assert change.action


def test_a_good_start_clears_what_an_earlier_run_may_have_raised(bench: Bench):
    told = bench.settled().told
    assert {(change.id, change.active) for change in told} == {("tags.press.lost", False), ("tags.press.stale", False)}


def test_a_lost_source_turns_its_tags_bad_at_once_and_keeps_their_values(bench: Bench):
    bench.settled()
    assert qualities(bench) == {Quality.GOOD}
    bench.keeper.lost("press", "connection refused")
    assert qualities(bench) == {Quality.BAD}
    value = bench.table.read(3, bench.now_ns)
    assert (value.value, value.source_ts) == (1.0, 2.0)
    assert value.received_ns > 0
    state = bench.table.source(0)
    assert (state.up, state.losses, state.reason) == (False, 1, "connection refused")


def test_one_alert_for_a_lost_source_and_one_when_it_is_back(bench: Bench):
    bench.settled()
    bench.keeper.lost("press", "connection refused")
    (raised,) = [change for change in bench.wait(10 * NS_PER_S) if change.active]
    assert raised.id == "tags.press.lost"
    assert "connection refused" in raised.text
    assert raised.value is not None
    assert raised.value >= 2.0
    bench.keeper.back("press")
    bench.values()
    (cleared,) = bench.wait(10 * NS_PER_S)
    assert (cleared.id, cleared.active, cleared.ne107) == ("tags.press.lost", False, Ne107.NORMAL)


def test_a_short_loss_alarms_nobody(bench: Bench):
    bench.settled()
    bench.keeper.lost("press", "reset")
    bench.wait(ON_DELAY_NS - STEP_NS)
    bench.keeper.back("press")
    bench.values()
    assert bench.wait(20 * NS_PER_S) == []


def test_a_source_that_comes_and_goes_is_one_alert(bench: Bench):
    bench.settled()
    before = len(bench.told)
    bench.keeper.lost("press", "reset")
    bench.wait(ON_DELAY_NS + STEP_NS)
    for _ in range(5):
        bench.keeper.back("press")
        bench.values()
        bench.wait(OFF_DELAY_NS - STEP_NS)
        bench.keeper.lost("press", "reset")
        bench.wait(NS_PER_S)
    assert [change.active for change in bench.told[before:]] == [True]


def test_bad_tags_of_a_living_source_are_one_alert_that_names_them(bench: Bench):
    bench.settled()
    bench.values(Quality.BAD, 1, 4)
    (raised,) = bench.wait(ON_DELAY_NS + NS_PER_S)
    assert (raised.id, raised.active, raised.value, raised.unit) == ("tags.press.stale", True, 2.0, "tags")
    assert raised.text == "2 of 6 tags of press are bad: t1, t4"
    bench.values()
    (cleared,) = bench.wait(OFF_DELAY_NS + NS_PER_S)
    assert (cleared.id, cleared.active) == ("tags.press.stale", False)


def test_an_uncertain_value_is_no_alert(bench: Bench):
    bench.settled()
    bench.values(Quality.UNCERTAIN)
    assert bench.wait(10 * NS_PER_S) == []


def test_an_alert_the_journal_could_not_take_is_told_later(bench: Bench):
    bench.settled()
    bench.full = True
    bench.keeper.lost("press", "reset")
    assert bench.wait(5 * NS_PER_S) == []
    bench.full = False
    assert [change.id for change in bench.wait(NS_PER_S)] == ["tags.press.lost"]


def test_updates_per_second_are_counted(bench: Bench):
    bench.settled()
    for _ in range(20):
        bench.values()
        bench.wait(STEP_NS)
    assert bench.table.source(0).updates_hz == pytest.approx(len(NAMES) * 4)


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
