"""The mutants of `make mutants` still fit the sources. That they are caught takes longer to see."""

import ast

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, mutated, recorded


@pytest.mark.parametrize("mutant", [pytest.param(mutant, id=mutant.name) for mutant in MUTANTS])
def test_mutant_fits(mutant: Mutant) -> None:
    """Its line stands once in its file, what it becomes is Python, and the tests it names are there."""
    ast.parse(mutated(mutant))
    assert mutant.new != mutant.old
    assert all((ROOT / f"tests/test_{name}.py").exists() for name in mutant.tests.split())


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25


def test_each_is_on_record() -> None:
    """docs/evidence.md says of every one by which test it was caught: `python -m tests.mutants --only NAME --record`."""
    assert [mutant.name for mutant in MUTANTS] == list(recorded())
