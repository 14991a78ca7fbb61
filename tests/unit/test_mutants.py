"""Every bug planted in the core is noticed on the simulated line, by the invariant that it breaks."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, Mutant, mutated

from edgeqc.sim.virtual.campaign import run_seed

PARTS = 500


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_noticed(mutant: Mutant) -> None:
    with mutated(mutant) as campaign:
        report = campaign.run_seed(mutant.seed, PARTS)
    assert report.violation is not None, "nothing noticed it"
    assert report.violation.name == mutant.breaks


@pytest.mark.timeout(300)
def test_without_a_bug_the_same_lines_violate_nothing() -> None:
    for seed in sorted({mutant.seed for mutant in MUTANTS}):
        assert run_seed(seed, PARTS).violation is None, seed


def test_there_are_forty_bugs_at_least() -> None:
    assert len({(mutant.module, mutant.before, mutant.after) for mutant in MUTANTS}) >= 40
