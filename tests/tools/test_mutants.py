"""The mutants of `make mutants` match the sources. Running them takes longer."""

import ast

import pytest

from tests.mutants import MUTANTS, Mutant, mutated, path_of_test, recorded


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name) for mutant in MUTANTS])
def test_mutant_matches(mutant: Mutant) -> None:
    """The old text occurs once in the file, the mutated file is valid Python, and the named tests exist."""
    ast.parse(mutated(mutant))
    assert mutant.new != mutant.old
    assert all(map(path_of_test, mutant.tests.split()))


def test_there_are_enough_mutants() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25


def test_each_mutant_is_recorded() -> None:
    """docs/evidence.md names the test that caught each mutant: `python -m tests.mutants --only NAME --record`."""
    assert [mutant.name for mutant in MUTANTS] == list(recorded())
