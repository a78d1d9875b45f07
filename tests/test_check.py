"""The rule of check.py bites: each way to be wrong is noticed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.check import check, randn

WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "value": lambda x: x * (1 + 1e-5),
    "one element": lambda x: x + (torch.arange(x.numel(), device=x.device).view(x.shape) == 3) * 1e-4,
    "gradient": lambda x: x.detach() + (x - x.detach()) * 1.001,
    "shape": lambda x: x[None],
    "dtype": lambda x: x.double(),
    "strides": lambda x: x.contiguous(memory_format=torch.channels_last),
    "NaN where torch has none": lambda x: torch.where(x == x.max(), x.new_tensor(float("nan")), x),
    "no gradient": lambda x: x.detach(),
    "memory that nobody wrote": lambda x: x + torch.empty_like(x) * 0,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_notices(wrong: str) -> None:
    check(lambda x: x * 1, lambda x: x * 1, randn(2, 3, 4, 5))
    with pytest.raises(AssertionError):
        check(WRONG[wrong], lambda x: x * 1, randn(2, 3, 4, 5))
