"""One call of every operator, forward and backward, in each dtype and memory format: the first test to run on a GPU."""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.support.check import DTYPES, check, run
from tests.support.operator_cases import CASES, TORCH_CASES, results
from trinn.kernels.runtime.interpreter import INTERPRETED

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# The operators' own tests cover these in the interpreter.
MORE = pytest.mark.long if INTERPRETED else ()
CALLS = [
    pytest.param(dtype, layout, marks=() if (dtype == torch.float32) == (layout == "contiguous") else MORE)
    for layout in FORMATS
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
]


@pytest.mark.parametrize(("dtype", "layout"), CALLS)
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name: str, dtype: torch.dtype, layout: str) -> None:
    tensors = [t.contiguous(memory_format=FORMATS[layout]) if t.dim() == 4 else t for t in CASES[name].tensors(dtype)]
    others = CASES[name].others()

    def called(whose: str, *inputs: Tensor) -> Tensor:
        converted = (t.to(inputs[0]) if t.is_floating_point() else t.to(inputs[0].device) for t in others)
        return {"ours": CASES, "torch's": TORCH_CASES}[whose][name].function(*inputs, *converted)

    ours, torchs = (partial(called, whose) for whose in ("ours", "torch's"))
    if dtype == torch.float64:  # after several operators or long sums, torch's float64 is no more exact than ours
        got, expected = (run(function, tuple(tensors), {}, dtype) for function in (ours, torchs))
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    else:
        check(ours, torchs, *tensors)


@pytest.mark.parametrize("name", CASES)
def test_expanded_gradients(name: str) -> None:
    """Each upstream gradient is one expanded number, as in the gradient of a sum; float64."""
    others = tuple(t.double() if t.is_floating_point() else t for t in CASES[name].others())
    got, expected = (results(case, case.tensors(torch.float64), others, one) for case in (CASES[name], TORCH_CASES[name]))
    # torch also returns second gradients equal to 0 everywhere.
    torch.testing.assert_close(got, {key: expected[key] for key in got}, rtol=1e-11, atol=1e-11)


def one(upstream: Tensor) -> Tensor:
    return upstream.new_full((), 0.75).expand(upstream.shape)


def test_every_dtype_is_called() -> None:
    assert {call.values[0] for call in CALLS} == set(DTYPES)
