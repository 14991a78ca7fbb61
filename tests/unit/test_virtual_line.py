"""The shipping core on a line in virtual time: swarm faults, invariants after every event, one trace per seed."""

from __future__ import annotations

import pickle

import pytest

from edgeqc.records import Verdict
from edgeqc.sim.virtual.campaign import run_seed, runs
from edgeqc.sim.virtual.kernel import Kernel
from edgeqc.sim.virtual.oracle import Oracle, Violation
from edgeqc.sim.virtual.pieces import Piece
from edgeqc.sim.virtual.swarm import RATES, draw

TRIGGERS = 20_000


@pytest.mark.timeout(300)
def test_nothing_is_violated_in_twenty_thousand_triggers() -> None:
    triggers = 0
    faults: set[str] = set()
    for report in runs(0, TRIGGERS):
        assert report.violation is None, f"edgeqc sim --seed {report.swarm.seed}: {report.violation}"
        triggers += report.triggers
        faults |= report.faults.keys()
    assert triggers >= TRIGGERS * 0.9  # some parts come while the station is down, and the PLC sees that
    assert len(faults) > len(RATES) // 2


@pytest.mark.parametrize("seed", [3, 26, 33])
def test_the_same_seed_has_the_same_trace(seed: int) -> None:
    first, again = run_seed(seed, 200), run_seed(seed, 200)
    assert first.trace == again.trace
    assert first.triggers == again.triggers
    assert first.trace != run_seed(seed + 1, 200).trace


def test_seeds_run_side_by_side_report_the_same_in_the_same_order() -> None:
    one, two = list(runs(60, 240, per_seed=60)), list(runs(60, 240, per_seed=60, jobs=2))
    assert [report.trace for report in one] == [report.trace for report in two]


def test_a_violation_survives_the_way_from_another_process() -> None:
    found = pickle.loads(pickle.dumps(Violation("I1 count", 5_000_000_000, "1 and 2")))
    assert (str(found), found.name) == ("I1 count at 5.000000 s: 1 and 2", "I1 count")


def test_a_line_without_faults_passes_every_good_part() -> None:
    seed = next(seed for seed in range(100) if not draw(seed, 100).rates or not any(draw(seed, 100).rates.values()))
    report = run_seed(seed, 100)
    assert report.violation is None
    assert not report.faults
    assert report.rejected == report.defective
    assert report.passed == 100 - report.defective


def test_a_write_that_was_executed_late_excuses_the_result_that_it_hid_and_no_other() -> None:
    oracle = Oracle(Kernel())
    oracle.fault("write_late")
    pieces = [
        Piece(number=number, part_id=f"P{number}", at_ns=0, defective=False, recipe=0, quiet=False, sequences=[number])
        for number in (1, 2)
    ]
    oracle.delivered_pass.update((1, 2))
    oracle.hidden(1)
    oracle.decided(pieces[0], Verdict.REJECT, told=False)
    with pytest.raises(Violation, match="I1 unseen"):
        oracle.decided(pieces[1], Verdict.REJECT, told=False)


def test_a_fault_excuses_the_reject_of_a_good_part_only_until_the_line_must_have_recovered() -> None:
    kernel = Kernel()
    oracle = Oracle(kernel)
    oracle.recovery_ns = 1_000_000_000
    oracle.fault("frame_lost")
    soon, later = (
        Piece(number=number, part_id="", at_ns=kernel.now_ns + after_ns, defective=False, recipe=0, quiet=False)
        for number, after_ns in ((1, 500_000_000), (2, 1_500_000_000))
    )
    oracle.decided(soon, Verdict.REJECT)
    with pytest.raises(Violation, match="I6 overkill"):
        oracle.decided(later, Verdict.REJECT)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nothing_is_violated_in_a_million_triggers() -> None:
    triggers = 0
    for report in runs(1_000_000, 1_050_000, jobs=2):
        assert report.violation is None, f"edgeqc sim --seed {report.swarm.seed}: {report.violation}"
        triggers += report.triggers
    assert triggers >= 1_000_000
