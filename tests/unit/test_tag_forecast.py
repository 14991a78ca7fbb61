"""The forecaster: one step in ONNX is the trained network, its state outlives restarts, and a NaN never stays."""

import itertools
import json

import numpy as np
import pytest

from edgeqc.core.align import GridRow, Mark
from edgeqc.errors import EngineError, PackageError
from edgeqc.inference.fleet import Fleet, Sight
from edgeqc.inference.tagpackage import load_tag_package
from edgeqc.records import NS_PER_S, AlertChange, Ne107
from edgeqc.settings import MachineSettings
from edgeqc.watch.grid import Moment
from edgeqc.watch.machines import Machines

torch = pytest.importorskip("torch", reason="training needs the train extra")
pytest.importorskip("onnx", reason="training needs the train extra")


from edgeqc.inference.forecast import Forecaster  # noqa: E402
from edgeqc.train.tags.course import learn  # noqa: E402
from edgeqc.train.tags.export import export_step  # noqa: E402
from edgeqc.train.tags.network import Plan, _Member, _weights, train  # noqa: E402
from edgeqc.train.tags.package import Wishes, forecast_rows  # noqa: E402
from edgeqc.train.tags.recording import Recording  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def waves(rows: int, seed: int = 1) -> np.ndarray:
    at = np.arange(rows)
    noise = np.random.default_rng(seed).normal(0, 0.05, (rows, 3))
    return np.column_stack([np.sin(at / 9), np.cos(at / 9), np.sin(at / 9) * 2 + 5]) + noise


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waves") / "1"
    recording = Recording(
        source="waves", tags=("a", "b", "c"), seconds=np.arange(500, dtype=np.float64), values=waves(500)
    )
    learn(recording, [slice(0, 500)], Wishes(name="waves", per_day=None), folder)
    return load_tag_package(folder)


def test_the_exported_step_is_the_trained_network():
    torch.manual_seed(1)
    member = _Member(3, 8)
    rows = waves(40).astype(np.float32)
    told = forecast_rows(export_step(_weights([member])), rows, [slice(0, 40)])
    expected = member(torch.from_numpy(rows[None]))[0][0].detach().numpy()
    np.testing.assert_allclose(told[1:, 0, :], expected[:-1], atol=1e-5)


def test_training_the_same_twice_gives_the_same():
    rows = waves(200).astype(np.float32)
    plan = Plan(members=1, hidden=4, epochs=2)
    first, second = (train(rows, [slice(0, 200)], plan) for _ in range(2))
    np.testing.assert_array_equal(first.forecast, second.forecast)


def test_short_stretches_train_nothing():
    with pytest.raises(ValueError, match="the longest has 50"):
        train(waves(100).astype(np.float32), [slice(0, 50), slice(60, 100)], Plan())


def test_a_forecast_is_better_than_standing_still_and_lies_within_its_quantiles(package):
    forecaster = Forecaster(package)
    rows = package.calibration.model().forecast_scale.apply(waves(300, seed=2))
    missed, still, inside = [], [], []
    for now, then in itertools.pairwise(rows):
        forecast, quantile = forecaster.step(now[None, :])
        missed.append(np.abs(forecast[:, 0].mean(axis=0) - then).mean())
        still.append(np.abs(now - then).mean())
        inside.append((quantile[0, 0] <= then) & (then <= quantile[0, 2]))
        assert (np.diff(quantile[0], axis=0) >= 0).all()
    forecaster.close()
    assert np.mean(missed[50:]) < np.mean(still[50:])
    assert 0.7 < np.mean(inside[50:]) <= 1


def test_machines_step_side_by_side_as_each_alone(package):
    rows = waves(60, seed=3)
    alone = [Fleet(package) for _ in range(2)]
    both = Fleet(package, 2)
    for place, row in enumerate(rows):
        pair = np.stack([row, rows[::-1][place]])
        seen = both.step(pair, place * NS_PER_S)
        for which, fleet in enumerate(alone):
            single = fleet.step(pair[which][None, :], place * NS_PER_S)[0]
            assert seen[which].sight is single.sight
            np.testing.assert_allclose(seen[which].score, single.score, rtol=1e-4)
    for fleet in (both, *alone):
        fleet.close()


def test_one_machine_that_is_blind_leaves_the_other_alone(package):
    rows = waves(120, seed=3)
    fleet, alone = Fleet(package, 2), Fleet(package)
    for place, row in enumerate(rows):
        broken = row if place < 60 else np.full(3, np.nan)
        seen = fleet.step(np.stack([broken, row]), place * NS_PER_S)
        single = alone.step(row[None, :], place * NS_PER_S)[0]
    assert seen[0].sight is Sight.BLIND
    np.testing.assert_allclose(seen[1].score, single.score, rtol=1e-4)
    assert np.isfinite(fleet.forecaster.state()["hidden"]).all()
    for each in (fleet, alone):
        each.close()


def test_a_kept_state_goes_on_as_if_nothing_had_been(package):
    rows = waves(150, seed=4)
    whole, first = Fleet(package), Fleet(package)
    for place, row in enumerate(rows[:100]):
        whole.step(row[None, :], place * NS_PER_S)
        first.step(row[None, :], place * NS_PER_S)
    second = Fleet(package)
    second.restore(json.loads(json.dumps(first.kept())), 99 * NS_PER_S)
    for place, row in enumerate(rows[100:], 100):
        expected = whole.step(row[None, :], place * NS_PER_S)[0]
        found = second.step(row[None, :], place * NS_PER_S)[0]
        assert found.sight is Sight.MODEL
        assert found.score == pytest.approx(expected.score, rel=1e-5)
    for fleet in (whole, first, second):
        fleet.close()


def test_a_state_that_is_no_number_is_not_taken_up(package):
    fleet = Fleet(package)
    fleet.step(waves(1), 0)
    kept = fleet.kept()
    kept["hidden"][0][0][0] = float("nan")
    with pytest.raises(ValueError, match="not usable"):
        fleet.restore(kept, 0)
    assert not fleet.forecaster.state()["hidden"].any()
    fleet.close()


def test_an_engine_that_fails_leaves_the_rest_watching_and_comes_back(package):
    fleet = Fleet(package)
    rows = waves(200, seed=5)
    for place, row in enumerate(rows[:80]):
        fleet.step(row[None, :], place * NS_PER_S)
    step = fleet.forecaster.step

    def broken(_rows):
        raise EngineError("no")

    fleet.forecaster.step = broken
    fleet.step(rows[80][None, :], 80 * NS_PER_S)
    fleet.forecaster.step = step
    sights = [fleet.step(row[None, :], place * NS_PER_S)[0].sight for place, row in enumerate(rows[81:], 81)]
    assert (fleet.failures, sights[0], sights[-1]) == (1, Sight.PLAIN, Sight.MODEL)
    fleet.close()


def test_a_network_that_is_off_its_golden_rows_is_refused(package):
    package.golden["forecast"][3] += 1
    try:
        with pytest.raises(PackageError, match="golden"):
            Forecaster(package)
    finally:
        package.golden["forecast"][3] -= 1


def test_a_machine_without_its_forecast_is_an_alarm_until_it_is_back(package, tmp_path):
    told: list[AlertChange] = []
    machines = Machines(
        [MachineSettings(name="rig", model=package.folder)],
        {name: place for place, name in enumerate(package.tags)},
        told.append,
        period_ns=NS_PER_S,
        state_dir=tmp_path,
    )
    (group,) = machines._groups
    step, fails = group.fleet.forecaster.step, range(100, 110)

    def sometimes(rows):
        if place in fails:
            raise EngineError("the runtime is out of memory")
        return step(rows)

    group.fleet.forecaster.step = sometimes
    for place, row in enumerate(waves(260, seed=6)):
        marks = np.full(3, Mark.GOOD, np.uint8)
        grid = GridRow(at_ns=place * NS_PER_S, values=row, marks=marks, ages_s=np.zeros(3, np.float32))
        machines.judge(Moment(row=grid, states={}))
    machines.close()
    changes = [one for one in told if one.id == "machine.rig.forecast"]
    assert [one.active for one in changes] == [False, True, False]
    assert "out of memory" in changes[1].text
    assert changes[1].ne107 is Ne107.FUNCTION_CHECK
