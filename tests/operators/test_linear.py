"""Linear layers: shapes, dtypes, strides and errors."""

import pytest
import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DTYPES, check, raises_like, randn

CASES = {
    "lenet fc3": ((5, 84), (10, 84), (10,)),
    "no size is a multiple of a tile": ((19, 37), (21, 37), (21,)),
    "a long sum and few outputs: split along the sum": ((3, 400), (5, 400), (5,)),
    "many rows: the weight's gradient is split": ((150, 6), (3, 6), (3,)),
    "one row": ((7,), (4, 7), (4,)),
    "three leading axes": ((2, 3, 2, 8), (4, 8), (4,)),
    "no bias": ((3, 8), (4, 8), None),
    "one weight vector": ((3, 8), (8,), None),
    "one weight vector, scalar bias": ((2, 3, 8), (8,), ()),
    "empty batch": ((0, 8), (4, 8), (4,)),
    "no input features: the output is the bias": ((3, 0), (4, 0), (4,)),
}
Case = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]


def operands(case: Case, dtype: torch.dtype = torch.float32) -> list[torch.Tensor | None]:
    return [randn(*shape, dtype=dtype, seed=i) if shape is not None else None for i, shape in enumerate(case)]


@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: Case) -> None:
    check(tnn.linear, F.linear, *operands(case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    check(tnn.linear, F.linear, *operands(CASES["a long sum and few outputs: split along the sum"], dtype))


def test_any_strides() -> None:
    check(tnn.linear, F.linear, randn(8, 3, 5).transpose(0, 2), randn(16, 8)[::2].T, randn(1).expand(8))


ERRORS = {
    "features of input and weight differ": ((3, 7), (4, 8), (4,)),
    "scalar input": ((), (4, 8), (4,)),
    "weight of three axes": ((3, 8), (2, 4, 8), None),
    "bias too long": ((3, 8), (4, 8), (5,)),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: Case) -> None:
    raises_like(F.linear, tnn.linear, *operands(case))


def test_mixed_dtypes_and_devices() -> None:
    raises_like(F.linear, tnn.linear, randn(3, 8), randn(4, 8, dtype=torch.float64))
    raises_like(F.linear, tnn.linear, randn(3, 8), randn(4, 8), randn(4, dtype=torch.float16))
    with pytest.raises(RuntimeError, match="same device"):
        tnn.linear(randn(3, 8), randn(4, 8).to("meta"))
