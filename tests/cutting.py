"""Matrix units that cut float32 to TF32 where torch's flags allow it, in the interpreter: `pytest --tf32`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import tests.check
from bench import tf32
from trinn.kernels.device import precision
from trinn.kernels.runtime.settings import settings


def _cut(operand: TensorHandle) -> TensorHandle:
    return TensorHandle((operand.data.view(numpy.int32) & numpy.int32(tf32.CUT)).view(numpy.float32), tl.float32)


@contextlib.contextmanager
def units_that_cut() -> Iterator[None]:
    """Within, float32 is multiplied as an NVIDIA GPU does it, and the rule of check.py is the one for GPUs."""
    multiply, choose = InterpreterBuilder.create_dot, precision._precision

    def cut_and_multiply(self: Any, a: TensorHandle, b: TensorHandle, d: Any, input_precision: Any, *rest: Any) -> Any:
        if input_precision == ir.INPUT_PRECISION.TF32 and a.data.dtype == numpy.float32:
            a, b = _cut(a), _cut(b)
        return multiply(self, a, b, d, input_precision, *rest)

    def chosen(dtype: torch.dtype, device: torch.device, allowed: str) -> str:
        if settings.intercept is not None:
            return choose(dtype, device, allowed)
        return "tf32" if dtype == torch.float32 and allowed == "tf32" else "ieee"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", cut_and_multiply)
        patch.setattr(precision, "_precision", chosen)
        patch.setattr(tests.check, "cuts", tf32.is_allowed)
        yield
