import pytest
import torch
import torch.nn.functional as F
from tests.cases import CONV, Conv, named
from tests.check import DTYPES, check, randn

import trinn.layers as tnn


def operands(case: Conv, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x, w = randn(*case.x, dtype=dtype), randn(*case.w, dtype=dtype, seed=1)
    return x, w, randn(case.w[0], dtype=dtype, seed=2) if case.bias else None


@pytest.mark.parametrize("case", named(CONV))
def test_equals_torch(case: Conv) -> None:
    check(tnn.conv2d, F.conv2d, *operands(case, torch.float32), **case.options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    case = CONV["stride and dilation coprime"]
    check(tnn.conv2d, F.conv2d, *operands(case, dtype), **case.options)
