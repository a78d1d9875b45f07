"""The rule of check.py bites: each way to be wrong is noticed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tests.check
from bench import tf32
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


def products(bits: int) -> Callable[..., Tensor]:
    """A convolution that multiplies numbers, forward and backward, of which so many bits are zero."""

    def convolution(*tensors: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf32, "CUT", ~((1 << bits) - 1))
            with tf32.Cutting():
                return F.conv2d(*tensors, padding=1)

    return convolution


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_may_be_cut(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU's flags allow TF32: not elsewhere, and no further than to TF32."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    monkeypatch.setattr(tests.check, "cuts", lambda: allowed)
    tensors = randn(2, 8, 6, 6), randn(8, 8, 3, 3, seed=1), randn(8, seed=2)
    for bits in (13, 15):
        if allowed and bits == 13:
            check(products(bits), lambda *t: F.conv2d(*t, padding=1), *tensors)
        else:
            with pytest.raises(AssertionError):
                check(products(bits), lambda *t: F.conv2d(*t, padding=1), *tensors)
