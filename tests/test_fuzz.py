"""A few cases of each operator that nobody thought of, the same on every run; `make fuzz` draws new ones."""

import pytest

pytest.importorskip("hypothesis", reason="it draws the cases")

from tests.fuzz import OPERATORS, fuzz  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's of NaN
]


@pytest.mark.parametrize("name", OPERATORS)
def test_fuzz(name: str) -> None:
    fuzz(name, 12 if "conv" in name else 30, 0)
