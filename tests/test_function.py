"""What torch.func sees of an operator."""

import pytest
import torch
from torch import Tensor

from tests.check import randn
from tests.every import EVERY, Every, results


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in EVERY.items()])
def test_vjp(case: Every) -> None:
    """Function transforms take the same output and gradients, to the bit."""
    tensors, others = case.tensors(), case.others()

    def output(*inputs: Tensor) -> Tensor:
        result = case.function(*inputs, *others)
        return result[0] if isinstance(result, tuple) else result

    expected = results(case, tensors, others)
    got, pullback = torch.func.vjp(output, *tensors)[:2]
    gradients = pullback(torch.empty_like(got).copy_(randn(*got.shape, seed=1)))
    assert torch.equal(got, expected["output 0"])
    assert all(torch.equal(g, expected[f"gradient {i}"]) for i, g in enumerate(gradients))
