"""Machines under a tag model's eye: alarms with their cause, blind machines, states, restarts. No network needed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeqc.core.align import GridRow, Mark
from edgeqc.core.linestate import LineState
from edgeqc.errors import JournalError, PackageError
from edgeqc.inference.fleet import GAP_ROWS, HOLD_ROWS, Fleet, Sight
from edgeqc.inference.tagpackage import load_tag_package
from edgeqc.journal.codec import decode, encode
from edgeqc.records import NS_PER_S, AlertChange, Ne107
from edgeqc.settings import MachineSettings
from edgeqc.train.tags import course
from edgeqc.train.tags.course import MOST_STANDING_RATIO, learn, run_alarm, watch
from edgeqc.train.tags.package import LIMIT, Wishes
from edgeqc.train.tags.recorded import measure
from edgeqc.train.tags.recording import Recording, good_stretches
from edgeqc.watch.grid import Moment
from edgeqc.watch.machines import Machines, _rule, places

TAGS = ("flow", "pressure", "current", "noise")
SECOND = NS_PER_S


def drawn(rows: int, seed: int = 1) -> np.ndarray:
    """A pump's tags: flow and pressure move together, current follows, noise is noise."""
    lots = np.random.default_rng(seed)
    flow = 30 + np.cumsum(lots.normal(0, 0.05, rows)) * 0.1 + lots.normal(0, 0.3, rows)
    pressure = 2 + 0.05 * (flow - 30) + lots.normal(0, 0.02, rows)
    current = 1 + 0.02 * (flow - 30) + lots.normal(0, 0.02, rows)
    return np.column_stack([flow, pressure, current, lots.normal(0, 1, rows)])


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A package without a network: no torch."""
    folder = tmp_path_factory.mktemp("pump") / "1"
    recording = Recording(
        source="drawn", tags=TAGS, seconds=np.arange(3000, dtype=np.float64), values=drawn(3000, seed=7)
    )
    learn(recording, [slice(0, 3000)], Wishes(name="pump", network=False, per_day=None), folder)
    return folder


class Bench:
    """Machines, a clock, and a journal that can be full."""

    def __init__(self, package: Path, state_dir: Path, *, full: bool = False, **settings) -> None:
        self.told: list[AlertChange] = []
        self.full = full
        self.at = 1000
        self.state = LineState.RUNNING
        configured = MachineSettings.model_validate({"name": "pump", "model": package, **settings})
        self.machines = Machines(
            [configured],
            {f"line-{name}" if settings.get("tags") else name: place for place, name in enumerate(TAGS)},
            self._append,
            period_ns=SECOND,
            state_dir=state_dir,
        )

    def _append(self, change: AlertChange) -> None:
        if self.full:
            raise JournalError("full")
        self.told.append(change)

    def feed(self, rows: np.ndarray) -> list[AlertChange]:
        """Each row a second after the other; what was told of it."""
        before = len(self.told)
        for row in rows:
            self.at += 1
            known = np.isfinite(row)
            grid = GridRow(
                at_ns=self.at * SECOND,
                values=row.copy(),
                marks=np.where(known, Mark.GOOD, Mark.GAP).astype(np.uint8),
                ages_s=np.zeros(len(row), np.float32),
            )
            self.machines.judge(Moment(row=grid, states={"pump-state": self.state}))
        return self.told[before:]


@pytest.fixture
def bench(package, tmp_path) -> Bench:
    return Bench(package, tmp_path)


def faulty(rows: int, seed: int = 3) -> np.ndarray:
    """The valve closes: flow falls, pressure rises."""
    values = drawn(rows, seed)
    values[:, 0] -= 6
    values[:, 1] += 0.8
    return values


def deviations(told: list[AlertChange]) -> list[AlertChange]:
    return [change for change in told if change.id == "machine.pump.deviation"]


def test_a_machine_as_usual_raises_nothing(bench):
    assert deviations(bench.feed(drawn(1200, seed=2))) == deviations(bench.told)[:1]
    assert not any(change.active for change in bench.told)


def test_a_fault_raises_one_alarm_that_names_its_tags_and_clears_when_it_is_over(bench):
    bench.feed(drawn(200, seed=2))
    raised = [change for change in deviations(bench.feed(faulty(120))) if change.active]
    assert raised[0].ne107 is Ne107.OUT_OF_SPECIFICATION
    assert {tag for tag, _ in raised[-1].contribution[:2]} == {"flow", "pressure"}
    assert "flow" in raised[-1].text
    assert "below usual" in raised[-1].text
    assert sum(share for _, share in raised[-1].contribution) <= 1.001
    assert raised[0].latched
    assert raised[0].action
    cleared = deviations(bench.feed(drawn(200, seed=4)))
    assert [change.active for change in cleared if not change.active] == [False]


def test_a_standing_alarm_is_told_again_only_when_it_has_moved(bench):
    bench.feed(drawn(200, seed=2))
    assert len(deviations(bench.feed(faulty(300)))) < 30


def test_a_machine_that_does_not_run_is_not_judged(package, tmp_path):
    bench = Bench(package, tmp_path, state="pump-state")
    bench.feed(drawn(100, seed=2))
    bench.state = LineState.STOPPED
    told = deviations(bench.feed(faulty(100)))
    assert [(change.active, change.suppressed) for change in told] == [(False, True)]
    bench.state = LineState.RUNNING
    told = deviations(bench.feed(drawn(100, seed=5)))
    assert [(change.active, change.suppressed) for change in told] == [(False, False)]


def test_missing_tags_blind_the_machine_loudly_and_only_after_a_while(bench):
    bench.feed(drawn(100, seed=2))
    holes = drawn(HOLD_ROWS, seed=6)
    holes[:, 1] = np.nan
    assert not [change for change in bench.feed(holes) if change.id.endswith(".blind") and change.active]
    holes = drawn(30, seed=6)
    holes[:, 1] = np.nan
    (blind,) = [change for change in bench.feed(holes) if change.id.endswith(".blind")]
    assert (blind.active, blind.ne107) == (True, Ne107.FUNCTION_CHECK)
    assert "pressure" in blind.text
    (back,) = [change for change in bench.feed(drawn(60, seed=8)) if change.id.endswith(".blind")]
    assert not back.active


def test_a_full_journal_is_asked_again(bench):
    bench.feed(drawn(200, seed=2))
    bench.full = True
    bench.feed(faulty(60))
    bench.full = False
    assert [change for change in deviations(bench.feed(faulty(5))) if change.active]


def test_an_alarm_that_stood_before_a_restart_still_stands(package, tmp_path):
    first = Bench(package, tmp_path)
    first.feed(drawn(200, seed=2))
    first.feed(faulty(60))
    first.machines.close()
    second = Bench(package, tmp_path)
    second.at = first.at
    assert second.machines.alarms == 1
    assert not [change for change in deviations(second.feed(faulty(60))) if not change.active]
    assert [change for change in deviations(second.feed(drawn(200, seed=9))) if not change.active]


@pytest.mark.parametrize("away_s", [0, 3600])
def test_an_alarm_that_stood_is_told_before_the_first_row(package, tmp_path, away_s):
    """The office ends what a restarted process does not tell again within 30 s; the row of a slow package comes later."""
    first = Bench(package, tmp_path)
    first.feed(drawn(200, seed=2))
    first.feed(faulty(60))
    first.machines.close()
    (kept,) = (tmp_path / "machines").glob("*.json")
    memory = json.loads(kept.read_text())
    kept.write_text(json.dumps({**memory, "wall_s": memory["wall_s"] - away_s}))
    second = Bench(package, tmp_path)
    second.at = first.at
    assert [change.active for change in deviations(second.told)] == [True]
    assert encode(deviations(second.told)[0], sequence=1, wall_ns=1, mono_ns=1)
    unknown = np.full((5, len(TAGS)), np.nan)  # its server is away, or it has to settle anew
    assert deviations(second.feed(unknown)) == []


def test_an_alarm_that_stood_is_told_with_the_first_row_where_the_journal_was_full_before(package, tmp_path):
    first = Bench(package, tmp_path)
    first.feed(drawn(200, seed=2))
    first.feed(faulty(60))
    first.machines.close()
    second = Bench(package, tmp_path, full=True)
    second.at, second.full = first.at, False
    assert second.told == []
    assert [change.active for change in deviations(second.feed(np.full((5, len(TAGS)), np.nan)))] == [True]


def test_an_alarm_that_stood_suppressed_is_told_as_such(package, tmp_path):
    first = Bench(package, tmp_path, state="pump-state")
    first.feed(drawn(200, seed=2))
    first.feed(faulty(60))
    first.state = LineState.STOPPED
    first.feed(faulty(5))
    assert first.machines.alarms == 1
    first.machines.close()
    second = Bench(package, tmp_path, state="pump-state")
    second.at, second.state = first.at, LineState.STOPPED
    assert [(change.active, change.suppressed) for change in deviations(second.told)] == [(True, True)]
    assert deviations(second.feed(faulty(5))) == []
    second.state = LineState.RUNNING
    told = deviations(second.feed(faulty(120)))
    assert told
    assert not any(change.suppressed or not change.active for change in told)


def test_a_damaged_memory_is_set_aside_and_the_machine_begins_anew(package, tmp_path):
    (tmp_path / "machines").mkdir()
    for text in ("{", "[]", json.dumps({"machines": {"pump": {"on": True}}}), '{"machines": 3}'):
        (tmp_path / "machines" / "pump.json").write_text(text)
        assert Bench(package, tmp_path).machines.alarms == 0


def test_a_package_that_does_not_fit_leaves_its_machine_unwatched_with_an_alarm(package, tmp_path):
    bench = Bench(package, tmp_path, tags={"flow": "line-flow"})
    (told,) = bench.told
    assert (told.id, told.active) == ("machine.pump.model", True)
    assert "pressure" in told.text
    assert bench.machines.count == 0
    bench.feed(drawn(3))


def test_a_damaged_package_is_refused_with_its_file(package, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in package.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "calibration.json").write_bytes((copy / "calibration.json").read_bytes() + b" ")
    with pytest.raises(PackageError, match=r"calibration\.json: SHA-256"):
        load_tag_package(copy)
    (copy / "manifest.yaml").write_text("format: 9\n")
    with pytest.raises(PackageError, match=r"manifest\.yaml: format"):
        load_tag_package(copy)


def test_a_gap_makes_a_machine_settle_again(package):
    fleet = Fleet(load_tag_package(package))
    rows = drawn(200, seed=2)
    sights = [fleet.step(row[None, :], place * SECOND)[0].sight for place, row in enumerate(rows[:100])]
    assert sights[0] is Sight.SETTLING
    assert sights[-1] is Sight.PLAIN
    after = fleet.step(rows[100][None, :], (100 + GAP_ROWS + 1) * SECOND)[0]
    assert after.sight is Sight.SETTLING


def test_what_is_judged_does_not_depend_on_what_comes_later(package):
    rows = drawn(300, seed=2)
    whole, part = Fleet(load_tag_package(package)), Fleet(load_tag_package(package))
    scores = [whole.step(row[None, :], place * SECOND)[0].score for place, row in enumerate(rows)]
    short = [part.step(row[None, :], place * SECOND)[0].score for place, row in enumerate(rows[:150])]
    np.testing.assert_array_equal(scores[:150], short)


def test_an_alarms_text_fits_its_journal_record_whole(bench):
    bench.feed(drawn(200, seed=2))
    for change in deviations(bench.feed(faulty(100))):
        data = encode(change, sequence=1, wall_ns=1, mono_ns=1)
        assert decode(data, writer="watch").body == change


@pytest.mark.parametrize(
    ("columns", "period_ns", "reason"),
    [
        (TAGS[1:], SECOND, "needs the tags flow"),
        (TAGS, 3 * SECOND, "no multiple"),
    ],
)
def test_a_package_is_held_against_the_lines_tags_and_pace(package, columns, period_ns, reason):
    machine = MachineSettings(name="pump", model=package)
    with pytest.raises(PackageError, match=reason):
        places(machine, load_tag_package(package), {name: at for at, name in enumerate(columns)}, period_ns=period_ns)


def test_a_promise_raises_the_limit_that_the_alarm_is_held_to(tmp_path):
    """The good time that sets the limit swings more than what was learned; nothing of it is learned from."""
    values = drawn(4000, seed=7)
    values[3000:3500, :2] += 1.2 * np.sin(np.arange(500) / 40)[:, None] * [1, 0.05]
    recording = Recording(source="drawn", tags=TAGS, seconds=np.arange(4000, dtype=np.float64), values=values)
    lesson = learn(recording, [slice(0, 4000)], Wishes(name="pump", network=False, per_day=1), tmp_path)
    calibration = lesson.package.calibration
    assert calibration.alarm.limit > LIMIT
    assert calibration.plain_limit == calibration.alarm.limit
    deployed = watch(lesson.package, recording)
    np.testing.assert_allclose([one.excess for one in lesson.seen], [one.excess for one in deployed])
    assert any(one.by_monitor for one in deployed)


def test_a_training_that_is_broken_off_leaves_no_package_and_the_one_before_as_it_was(tmp_path, monkeypatch):
    recording = Recording(
        source="drawn", tags=TAGS, seconds=np.arange(1000, dtype=np.float64), values=drawn(1000, seed=7)
    )

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(recording, [slice(0, 1000)], Wishes(name="pump", network=False, per_day=1), tmp_path / "1")
    assert list(tmp_path.iterdir()) == []


def test_a_delay_of_zero_overrules_the_packages(package):
    own = load_tag_package(package)
    slow = own.calibration.alarm.model_copy(update={"on_delay_s": 5.0, "off_delay_s": 7.0})
    slow_package = replace(own, calibration=own.calibration.model_copy(update={"alarm": slow}))
    for alarm, delays_s in (({}, (5, 7)), ({"on_delay_s": 0, "off_delay_s": 0}, (0, 0))):
        rule = _rule(MachineSettings.model_validate({"name": "pump", "model": package, "alarm": alarm}), slow_package)
        assert (rule.on_delay_ns, rule.off_delay_ns) == tuple(delay * NS_PER_S for delay in delays_s)


def stopping(stretches: int, *, stopped: int) -> Recording:
    """Stretches of 300 running rows, noise and nothing else, with so many stopped rows after each."""
    lots = np.random.default_rng(3)
    values, states = [], []
    for _ in range(stretches):
        values += [lots.normal([30, 2, 1, 0], [0.3, 0.02, 0.02, 1], (300, 4)), np.zeros((stopped, 4))]
        states += ["running"] * 300 + ["stopped"] * stopped
    rows = np.concatenate(values)
    return Recording(
        source="stopping", tags=TAGS, seconds=np.arange(len(rows), dtype=np.float64), values=rows, states=tuple(states)
    )


def taught(recording: Recording, folder: Path, *, states: tuple[str, ...] = ("running",), **wishes):
    stretches = good_stretches(recording, states=states, gap_s=10, least_rows=100)
    return learn(recording, stretches, Wishes(name="pump", network=False, states=states, **wishes), folder)


def test_stops_do_not_raise_the_limit(tmp_path):
    """Rows that the daemon does not judge, and those in which it settles after them, set no limit and prove nothing."""
    limits = {}
    for stopped in (0, 20):
        lesson = taught(stopping(8, stopped=stopped), tmp_path / str(stopped))
        limits[stopped] = lesson.package.calibration.alarm.limit
    assert limits[20] == pytest.approx(limits[0], rel=0.1)
    sights = [one.sight for one in lesson.seen[300:352]]
    assert sights == [Sight.OFF] * 20 + [Sight.SETTLING] * 30 + [Sight.PLAIN] * 2
    promise = lesson.package.calibration.promise
    assert promise.hours == pytest.approx((300 - 30) / 3600, abs=0.001)  # the last stretch, once it has settled


def test_a_recording_is_judged_as_the_daemon_judges_it(package, tmp_path):
    """Row by row the same alarm and the same suppression, through a fault, a stop within it, and after it."""
    rows = np.concatenate([drawn(200, seed=2), faulty(100), np.zeros((20, 4)), faulty(60), drawn(200, seed=4)])
    states = ("running",) * 300 + ("stopped",) * 20 + ("running",) * 260
    recording = Recording(
        source="fault",
        tags=TAGS,
        seconds=np.arange(1000, 1000 + len(rows), dtype=np.float64),
        values=rows,
        states=states,
    )
    bench = Bench(package, tmp_path, state="pump-state")
    shown, raised = [], 0
    for row, state in zip(rows, states, strict=True):
        bench.state = LineState[state.upper()]
        bench.feed(row[None, :])
        told = [one for one in bench.told if one.id == "machine.pump.deviation"]
        shown.append(bool(told) and told[-1].active and not told[-1].suppressed)
    loaded = load_tag_package(package)
    alarm, raised = run_alarm(loaded, recording, watch(loaded, recording, ("running",)))
    assert alarm.tolist() == shown
    assert (raised, alarm.any()) == (1, True)


def test_an_evaluation_counts_no_stop_as_a_false_alarm(tmp_path):
    lesson = taught(stopping(8, stopped=20), tmp_path / "1")
    later = stopping(3, stopped=20)
    lines = ["t,pump-state," + ",".join(TAGS)]
    for at, state, row in zip(later.seconds, later.states, later.values, strict=True):
        lines.append(f"{at},{state}," + ",".join(map(str, row)))
    (tmp_path / "later.csv").write_text("\n".join(lines) + "\n")
    report, _ = measure(tmp_path / "later.csv", lesson.package.folder, state="pump-state")
    assert report["alarms"] == 0
    assert report["hours"] == pytest.approx(3 * 270 / 3600, abs=0.001)
    assert report["files_without_state"] == 0


def test_a_promise_is_not_kept_where_the_alarm_stands_on(tmp_path):
    """The machine drifts away in its last rows: one alarm, which never ends, is no rate that anybody was promised."""
    lots = np.random.default_rng(5)
    rows = lots.normal([30, 2, 1, 0], [0.3, 0.02, 0.02, 1], (3000, 4))
    rows[2700:, 0] += 6
    steady = Recording(source="steady", tags=TAGS, seconds=np.arange(3000) * 3600.0, values=rows[:, :])
    lesson = learn(steady, [slice(0, 3000)], Wishes(name="pump", network=False, per_day=1.0), tmp_path / "drift")
    promise = lesson.package.calibration.promise
    assert promise.alarms == 1
    assert promise.bound_per_day <= promise.per_day
    assert promise.standing_ratio > 0.7
    assert not promise.kept
    rows[2700:, 0] -= 6
    lesson = learn(steady, [slice(0, 3000)], Wishes(name="pump", network=False, per_day=1.0), tmp_path / "steady")
    promise = lesson.package.calibration.promise
    assert promise.standing_ratio <= MOST_STANDING_RATIO
    assert promise.kept
