"""A few random cases of each operator, the same in every run; `make fuzz` draws new cases."""

import pytest

pytest.importorskip("hypothesis", reason="hypothesis draws the cases")

from tests.fuzz import OPERATORS, fuzz  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy warns of NaN
]


@pytest.mark.parametrize("name", OPERATORS)
def test_fuzz(name: str) -> None:
    fuzz(name, 12 if "conv" in name else 30, 0)
