"""tests/precision.py measures every case of the records."""

import math

import pytest

from tests.precision import CASES, TORCH_CASES, rows_of


def test_every_case_has_a_twin_in_torch() -> None:
    assert list(CASES) == list(TORCH_CASES)


@pytest.mark.parametrize("name", ["add", "channel_scale", "interpolate, nearest"])
def test_rows(name: str) -> None:
    """A row for the output and each gradient in each dtype; none is much larger than torch's error."""
    rows = rows_of(name)
    assert len(rows) == 4 * (1 + len(CASES[name].shapes))
    assert all(tensor in ("output", "d x", "d weight") for _, tensor, *_ in rows)
    assert all(math.isfinite(value) and value < 4 for *_, largest, mean in rows for value in (largest, mean))
