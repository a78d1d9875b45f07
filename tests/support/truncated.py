"""TF32 products in the interpreter: `pytest --tf32` truncates float32 operands to TF32 where torch's flags allow it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import tests.support.check
from bench import tf32
from trinn.kernels.device import precision
from trinn.kernels.runtime.settings import settings


def _truncated(operand: TensorHandle) -> TensorHandle:
    return TensorHandle((operand.data.view(numpy.int32) & numpy.int32(tf32.MASK)).view(numpy.float32), tl.float32)


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Multiply float32 as an NVIDIA GPU does. Allow errors of TF32 truncation, as tests/support/check.py does on a GPU."""
    multiply, choose = InterpreterBuilder.create_dot, precision._precision

    def truncate_and_multiply(self: Any, a: TensorHandle, b: TensorHandle, d: Any, input_precision: Any, *rest: Any) -> Any:
        if input_precision == ir.INPUT_PRECISION.TF32 and a.data.dtype == numpy.float32:
            a, b = _truncated(a), _truncated(b)
        return multiply(self, a, b, d, input_precision, *rest)

    def chosen(dtype: torch.dtype, device: torch.device, allowed: str) -> str:
        if settings.intercept is not None:
            return choose(dtype, device, allowed)
        return "tf32" if dtype == torch.float32 and allowed == "tf32" else "ieee"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", truncate_and_multiply)
        patch.setattr(precision, "_precision", chosen)
        patch.setattr(tests.support.check, "truncates", tf32.is_allowed)
        yield
