"""Rectified linear unit.

    forward    y = x, but 0 where x < 0    (NaN stays NaN)
    backward   dx = dy, but 0 where y <= 0

Both passes traverse memory in the order of their first tensor, for any strides. In this order a dense tensor has a single axis.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device.indexing import offset_of
from .device.precision import widen
from .runtime.allocate import empty, empty_like
from .runtime.launch import launch
from .runtime.layout import index_type, memory_order
from .runtime.op import op
from .runtime.tuning import elementwise_block
from .runtime.vmap import ELEMENTWISE


@triton.jit
def _relu_kernel(x, dy, result, sizes, x_strides, dy_strides, strides, elements, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of the result. Without `dy` it is y. With `dy` it is dx, and the argument `x` is y."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)
    if dy is None:
        value = tl.where(widen(value) < 0, tl.zeros_like(value), value)
    else:
        upstream = tl.load(dy + offset_of(element, sizes, dy_strides), mask=element < elements)
        value = tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)
    tl.store(result + offset_of(element, sizes, strides), value, mask=element < elements)


def _empty_relu(x: Tensor) -> Tensor:
    # An axis of one element may have any stride. torch's elementwise operators normalise it.
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return empty(x, x.shape, channels_last) if x.is_contiguous() or channels_last else empty_like(x)


def _empty_relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    return empty_like(y)


def _nothing(x: Tensor) -> None:
    return None


@op(fake=_empty_relu, vmap=ELEMENTWISE)
def relu_forward(x: Tensor) -> Tensor:
    """max(x, 0), elementwise.

    Args:
        x: any shape, strides and real dtype.

    Returns:
        Like `x`, in its memory order.
    """
    y = _empty_relu(x)
    _relu(x, None, y)
    return y


@op(fake=_nothing, vmap=ELEMENTWISE, mutates=("x",))
def relu_(x: Tensor) -> None:
    """max(x, 0) in place. The elements of `x` must not share memory."""
    _relu(x, None, x)


@op(fake=_empty_relu_backward, vmap=ELEMENTWISE)
def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    """Gradient of relu: `dy` where `y` is positive or NaN, else 0, also where `dy` is NaN.

    Args:
        dy: like `y`, any strides.
        y: the result of relu.
    """
    dx = _empty_relu_backward(dy, y)
    _relu(y, dy, dx)
    return dx


def _relu(x: Tensor, dy: Tensor | None, result: Tensor) -> None:
    """Launch the kernel: the result is y or, if `dy` is given, dx from x = y."""
    sizes, (x_strides, dy_strides, strides) = memory_order(x, x if dy is None else dy, result)
    block = elementwise_block(x.numel())
    launch(
        _relu_kernel, triton.cdiv(x.numel(), block), x, dy, result, sizes, x_strides, dy_strides, strides, x.numel(),
        INDEX=index_type(x, x if dy is None else dy, result), BLOCK=block, device=x.device,
    )  # fmt: skip
