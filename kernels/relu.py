"""Rectified linear unit.

    forward    y = x, but 0 where x < 0    (NaN stays NaN)
    backward   dx = dy, but 0 where y <= 0

Both walk memory in the order of their first tensor, whatever its strides: a dense tensor is one long row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import offset_of
from trinn.kernels.launch import index_type, launch, memory_order
from trinn.kernels.op import op
from trinn.kernels.precision import widened
from trinn.kernels.tuning import elementwise_block


@triton.jit
def _relu_kernel(x, y, sizes, x_strides, y_strides, elements, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of y."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)
    zero = tl.full((BLOCK,), 0, value.dtype)
    tl.store(y + offset_of(element, sizes, y_strides), tl.where(widened(value) < 0, zero, value), mask=element < elements)


@triton.jit
def _relu_backward_kernel(
    y, dy, dx, sizes, y_strides, dy_strides, dx_strides, elements, INDEX: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK elements of dx."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(y + offset_of(element, sizes, y_strides), mask=element < elements)
    upstream = tl.load(dy + offset_of(element, sizes, dy_strides), mask=element < elements)
    zero = tl.full((BLOCK,), 0, upstream.dtype)
    tl.store(dx + offset_of(element, sizes, dx_strides), tl.where(widened(value) <= 0, zero, upstream), mask=element < elements)


def _empty_relu(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _empty_relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(y)


def _nothing(x: Tensor) -> None:
    return None


@op(fake=_empty_relu)
def relu_forward(x: Tensor) -> Tensor:
    """max(x, 0), elementwise.

    Args:
        x: any shape, strides and real dtype.

    Returns:
        Like `x`, in its memory order.
    """
    y = _empty_relu(x)
    _relu(x, y)
    return y


@op(fake=_nothing, mutates=("x",))
def relu_(x: Tensor) -> None:
    """max(x, 0), written over `x`, whose elements must not share memory."""
    _relu(x, x)


@op(fake=_empty_relu_backward)
def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    """Gradient of relu: `dy` where `y` is positive or NaN, else 0, also where `dy` is NaN.

    Args:
        dy: like `y`, any strides.
        y: what relu returned.
    """
    dx = _empty_relu_backward(dy, y)
    sizes, (y_strides, dy_strides, dx_strides) = memory_order(y, dy, dx)
    block = elementwise_block(y.numel())
    launch(
        _relu_backward_kernel, triton.cdiv(y.numel(), block), y, dy, dx, sizes, y_strides, dy_strides, dx_strides, y.numel(),
        INDEX=index_type(y, dy, dx), BLOCK=block, device=y.device,
    )  # fmt: skip
    return dx


def _relu(x: Tensor, y: Tensor) -> None:
    sizes, (x_strides, y_strides) = memory_order(x, y)
    block = elementwise_block(x.numel())
    launch(
        _relu_kernel, triton.cdiv(x.numel(), block), x, y, sizes, x_strides, y_strides, x.numel(),
        INDEX=index_type(x, y), BLOCK=block, device=x.device,
    )  # fmt: skip
