"""Every bug planted in the core is noticed: on the simulated line by the invariant it breaks, or by its rule's own test."""

from __future__ import annotations

import pytest
from mutants import MUTANTS, Mutant, mutated

from edgeqc.sim.virtual.campaign import run_seed

PARTS = 500
ON_THE_LINE = [mutant for mutant in MUTANTS if not mutant.fails]
BY_A_TEST = [mutant for mutant in MUTANTS if mutant.fails]


@pytest.mark.parametrize("mutant", ON_THE_LINE, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_noticed(mutant: Mutant) -> None:
    with mutated(mutant) as campaign:
        report = campaign.run_seed(mutant.seed, PARTS)
    assert report.violation is not None, "nothing noticed it"
    assert report.violation.name == mutant.breaks


@pytest.mark.timeout(300)
def test_without_a_bug_the_same_lines_violate_nothing() -> None:
    for seed in sorted({mutant.seed for mutant in ON_THE_LINE}):
        assert run_seed(seed, PARTS).violation is None, seed


@pytest.mark.parametrize("mutant", BY_A_TEST, ids=lambda mutant: mutant.name)
def test_a_planted_bug_fails_its_rules_test(mutant: Mutant) -> None:
    """Which passes without the bug, as one of this suite."""
    module, function = mutant.fails.split(".")
    with mutated(mutant, test=module) as tests, pytest.raises(AssertionError):
        getattr(tests, function)()


def test_there_are_sixty_bugs_at_least() -> None:
    assert len({(mutant.module, mutant.before, mutant.after) for mutant in MUTANTS}) >= 60
