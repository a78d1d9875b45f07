"""2-D max unpooling, the partial inverse of max pooling.

    forward    y[n, c, indices[n, c, p, q]]  = x[n, c, p, q], and 0 elsewhere; an index is h * W + w
    backward   dx[n, c, p, q] = dy[n, c, indices[n, c, p, q]]

If the windows of the pooling overlap, several values may have the same index. The last one is the result, in every run: a
program computes a whole (H, W) plane of one channel, block after block, and of the values in a block with the same index it
stores only the last. So there are no atomics and no races. The backward is a gather. Its adjoint, max_unpool2d_add, adds values
with the same index, in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import convert
from .device.function import device_function
from .device.indexing import inside
from .gather2d import pick2d
from .runtime.allocate import empty, empty_like, empty_resized
from .runtime.launch import launch
from .runtime.layout import Ints, index_type
from .runtime.op import op
from .runtime.tuning import elementwise_block
from .runtime.vmap import FIRST_AXIS

VALUES = 64  # values per block; a program compares all pairs of indices


@triton.jit
def _max_unpool2d_scatter_kernel(
    x, indices, y,
    x_strides, indices_strides, y_strides,
    channels, height, width, out_height, out_width,
    ADD: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """A plane of y: zeros, then the values of x in blocks. With ADD, values with the same index add up; else the last stays."""
    x_n, x_c, x_h, x_w = x_strides
    indices_n, indices_c, indices_h, indices_w = indices_strides
    y_n, y_c, y_h, y_w = y_strides
    plane = tl.program_id(0).to(INDEX)
    n, c = plane // channels, plane % channels
    out_pixels = tl.full((), out_height, INDEX) * out_width
    y += n * y_n + c * y_c
    # Zeros: the barrier after the loop orders them before the values of other threads.
    for start in range(0, out_pixels, FILL):
        place = start + tl.arange(0, FILL).to(INDEX)
        at = place // out_width * y_h + place % out_width * y_w
        tl.store(y + at, tl.full((FILL,), 0, tl.int32).to(y.dtype.element_ty), mask=place < out_pixels)
    tl.debug_barrier()
    pixels = tl.full((), height, INDEX) * width
    lane = tl.arange(0, BLOCK).to(INDEX)
    # Values: a barrier per block, so that later blocks overwrite earlier ones, or add to their stored sums.
    for start in range(0, pixels, BLOCK):
        pixel = start + lane
        h, w = pixel // width, pixel % width
        place = tl.load(indices + n * indices_n + c * indices_c + h * indices_h + w * indices_w, mask=pixel < pixels, other=-1)
        tl.device_assert(inside(place, out_pixels), "max_unpool2d: found an invalid max index", mask=pixel < pixels)
        valid = (pixel < pixels) & inside(place, out_pixels)
        value = tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=valid, other=0).to(y.dtype.element_ty)
        same = place[:, None] == place[None, :]
        later = tl.max((same & (lane[None, :] > lane[:, None])).to(tl.int32), axis=1)
        at = place // out_width * y_h + place % out_width * y_w
        if ADD:
            value = tl.sum(tl.where(same, value[None, :], 0.0), axis=1) + tl.load(y + at, mask=valid, other=0.0)
        tl.store(y + at, value, mask=valid & (later == 0))  # 0: no later value of this block has the same index
        tl.debug_barrier()


@device_function
def _place(i, position, axis, DTYPE: tl.constexpr):
    """A TAP of gather2d.py: the code of a position is an index h * W + w, so tap i is row or column i, for every position."""
    return i, inside(i, axis[0]), 1


def _empty_forward(x: Tensor, indices: Tensor, size: Ints) -> Tensor:
    return empty_resized(x, size)


def _empty_backward(dy: Tensor, indices: Tensor, channels_last: bool) -> Tensor:
    return empty(dy, indices.shape, channels_last)


@op(fake=_empty_forward, vmap=FIRST_AXIS)
def max_unpool2d_forward(x: Tensor, indices: Tensor, size: Ints) -> Tensor:
    """Each value at its index, zeros elsewhere. Of several values with the same index, the last.

    Args:
        x: (N, C, P, Q), any strides.
        indices: (N, C, P, Q), int64, any strides: h * W + w.
        size: (H, W).

    Returns:
        (N, C, H, W), channels_last if `x` is.

    Raises:
        RuntimeError: an index is outside of H * W. On a GPU this is a device assertion, as in torch.
    """
    y = _empty_forward(x, indices, size)
    _scatter(x, indices, y, add=False)
    return y


@op(fake=_empty_backward, vmap=FIRST_AXIS)
def max_unpool2d_backward(dy: Tensor, indices: Tensor, channels_last: bool) -> Tensor:
    """Gradient of max unpooling: the values of dy (N, C, H, W) at `indices`, in contiguous or channels_last order."""
    _check(indices, dy.shape[2:])
    dx = _empty_backward(dy, indices, channels_last)
    size = dy.shape[2:]
    pick2d(dy, indices, dx, list(zip(size, dx.shape[2:], strict=True)), size, _place, size[1], channels_last)
    return dx


@op(fake=_empty_forward, vmap=FIRST_AXIS)
def max_unpool2d_add(x: Tensor, indices: Tensor, size: Ints) -> Tensor:
    """Adjoint of max_unpool2d_backward: like max_unpool2d_forward, but values with the same index add up."""
    y = _empty_forward(x, indices, size)
    total = y if y.dtype.itemsize > 2 else empty_like(y, torch.float32)
    _scatter(x, indices, total, add=True)
    return y if total is y else convert(total, y)


def _scatter(x: Tensor, indices: Tensor, y: Tensor, add: bool) -> None:
    """Check the indices and launch the kernel that fills `y`."""
    _check(indices, y.shape[2:])
    launch(
        _max_unpool2d_scatter_kernel, y.shape[0] * y.shape[1], x, indices, y,
        x.stride(), indices.stride(), y.stride(),
        *x.shape[1:], *y.shape[2:],
        ADD=add, INDEX=index_type(x, indices, y), BLOCK=VALUES, FILL=elementwise_block(y.shape[2] * y.shape[3]),
        device=x.device, asserts=True,
    )  # fmt: skip


def _check(indices: Tensor, size: Ints) -> None:
    """Check the indices of a CPU tensor. On a GPU, the kernels' device assertions check them."""
    if indices.device.type == "cpu" and indices.numel() > 0:
        for index in (int(indices.min()), int(indices.max())):
            if not 0 <= index < size[0] * size[1]:
                raise RuntimeError(f"Found an invalid max index: {index} (output volumes are of size {size[0]}x{size[1]})")
