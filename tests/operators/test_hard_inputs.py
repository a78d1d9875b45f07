"""A hundred numbered inputs known to break operators. trinn must do the same as torch.

    1-25    tests/operators/hard_inputs/pool2d.py             70-74   tests/operators/hard_inputs/activation.py
    26-43   tests/operators/hard_inputs/conv2d.py             75-78   tests/operators/hard_inputs/linear.py
    44-50   tests/operators/hard_inputs/conv_transpose2d.py   79-89   tests/operators/hard_inputs/upsample2d.py
    51-69   tests/operators/hard_inputs/batchnorm2d.py        90-107  tests/operators/hard_inputs/everything.py
                                                              109-115 tests/operators/hard_inputs/activation.py

`pytest -k hard_053` runs the rows of number 53. docs/differences.md explains each intended difference from torch.
"""

import importlib

import pytest

from tests.operators.hard_inputs import ROWS, Row

for operator in ("pool2d", "conv2d", "conv_transpose2d", "batchnorm2d", "activation", "linear", "upsample2d", "everything"):
    importlib.import_module(f"tests.operators.hard_inputs.{operator}")


@pytest.mark.usefixtures("full_float32")
@pytest.mark.parametrize("row", [pytest.param(row, id=f"hard_{row.number:03}: {row.name}") for row in ROWS])
def test_hard_input(row: Row) -> None:
    row.run()


def test_all_numbers_are_used() -> None:
    assert {row.number for row in ROWS} >= set(range(1, 101))
