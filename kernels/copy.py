"""Copies and constants for launchers: `dense` makes a vector contiguous, `convert` changes the dtype, `fill` stores a constant.

A launcher calls nothing in torch besides allocations and views. Its plan would lack any other call (runtime/plan.py).
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .device.indexing import offset_of
from .runtime.allocate import empty
from .runtime.launch import launch
from .runtime.layout import index_type, memory_order
from .runtime.tuning import elementwise_block


@triton.jit
def _copy_kernel(x, out, value, sizes, x_strides, out_strides, elements, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of `out`: those of `x`, converted; without `x`, all are `value`."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    if x is None:
        result = tl.full((BLOCK,), value, tl.float32)
    else:
        result = tl.load(x + offset_of(element, sizes, x_strides), mask=mask)
    tl.store(out + offset_of(element, sizes, out_strides), result.to(out.dtype.element_ty), mask=mask)


def convert(x: Tensor, out: Tensor) -> Tensor:
    """Fill and return `out`, of the shape of `x` and of any dtype. Both may have any strides."""
    return _copy(x, out, 0.0)


def fill(out: Tensor, value: float) -> Tensor:
    """Fill and return `out`, of any floating dtype, with a value."""
    return _copy(None, out, value)


def dense(vector: Tensor | None) -> Any:
    """A vector with contiguous elements: itself, or a copy. None stays None."""
    if vector is None or vector.is_contiguous():
        return vector
    return _copy(vector, empty(vector, vector.shape), 0.0)


def dense_or_one(vector: Tensor | None) -> Any:
    """`dense`, but a vector with stride 0 stays: one element for all channels."""
    return vector if vector is not None and vector.stride(0) == 0 else dense(vector)


def _copy(x: Tensor | None, out: Tensor, value: float) -> Tensor:
    sizes, (out_strides, x_strides) = memory_order(out, out if x is None else x)
    block = elementwise_block(out.numel())
    launch(
        _copy_kernel, triton.cdiv(out.numel(), block), x, out, value, sizes, x_strides, out_strides, out.numel(),
        INDEX=index_type(out, out if x is None else x), BLOCK=block, device=out.device,
    )  # fmt: skip
    return out
