"""Padding an image with itself: by reflection, by replicating its edge, or wrapped around (circular).

    forward    y[n, c, p, q]  = x[n, c, h(p), w(q)]
    backward   dx[n, c, h, w] = sum of dy[n, c, p, q] over the (p, q) with h(p) = h and w(q) = w

                 h(p), with i = p - near          the p with h(p) = h
    reflect      i or -i or 2 (H - 1) - i         h and its mirror images in both edges
    replicate    i, at least 0, at most H - 1     h; at an edge, all that lie beyond it too
    circular     i modulo H                       h and its images one H to either side

The backward is a gather over these. Zero padding needs no kernel: a convolution reads zeros past its edges.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import elements_of, inside
from trinn.kernels.launch import device_function, empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator
from trinn.kernels.tuning import element_tiles


@device_function
def _source(position, near, size, MODE: tl.constexpr):
    """h(p)."""
    inner = position - near
    if MODE == "reflect":
        inner = (size - 1) - tl.abs((size - 1) - tl.abs(inner))
    elif MODE == "replicate":
        inner = tl.minimum(tl.maximum(inner, 0), size - 1)
    else:
        inner = (inner + size) % size
    return inner


@device_function
def _reader(i, position, near, size, out_size, MODE: tl.constexpr):
    """The i-th p with h(p) = position, and whether there is one."""
    if MODE == "replicate":
        reader = tl.where(position == 0, 0, position + near) + i
        reads = inside(reader, out_size) & (reader <= tl.where(position == size - 1, out_size - 1, position + near))
    else:
        if MODE == "reflect":
            before, after = -position, (size - 1) - position + (size - 1)
        else:
            before, after = position - size, position + size
        image = tl.where(i == 0, position, tl.where(i == 1, before, after))
        reader = image + near
        reads = inside(reader, out_size) & ((i == 0) | (image != position))
    return reader, reads


@triton.jit
def _forward_kernel(
    x, y,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, top, left,
    MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    h, w = _source(p, top, height, MODE), _source(q, left, width, MODE)
    value = tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=exists)
    tl.store(y + n * y_n + c * y_c + p * y_h + q * y_w, value, mask=exists)


@triton.jit
def _backward_kernel(
    dy, dx,
    dy_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, top, left, readers_h, readers_w,
    MODE: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx; `readers` is the largest number of outputs on an axis that copy one pixel."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(readers_h):
        p, reads_h = _reader(i, h, top, height, out_height, MODE)
        for j in range(readers_w):
            q, reads_w = _reader(j, w, left, width, out_width, MODE)
            reads = exists & reads_h & reads_w
            acc += tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=reads, other=0.0).to(ACCUMULATOR)
    tl.store(dx + n * dx_n + c * dx_c + h * dx_h + w * dx_w, acc.to(dx.dtype.element_ty), mask=exists)


def _empty_forward(x: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    left, right, top, bottom = padding
    # torch wraps into contiguous memory, whatever the input's.
    channels_last = is_channels_last(x) and mode != "circular"
    return empty(x, (*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right), channels_last)


def _empty_backward(dy: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    left, right, top, bottom = padding
    return empty(dy, (*dy.shape[:2], dy.shape[2] - top - bottom, dy.shape[3] - left - right), is_channels_last(dy))


@op(fake=_empty_forward)
def pad2d_forward(x: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """An image with a border made of itself.

    Args:
        x: (N, C, H, W), any strides.
        padding: (left, right, top, bottom), in pixels; below the size for "reflect", at most it for "circular". Negative
            padding crops; not for "circular".
        mode: "reflect", "replicate" or "circular".

    Returns:
        (N, C, H + top + bottom, W + left + right), channels_last if `x` is, but for "circular".
    """
    y = _empty_forward(x, padding, mode)
    programs, order = element_tiles(y)
    launch(
        _forward_kernel, programs, x, y,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *y.shape[2:], padding[2], padding[0],
        MODE=mode, **order, INDEX=index_type(x, y), device=x.device,
    )  # fmt: skip
    return y


@op(fake=_empty_backward)
def pad2d_backward(dy: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """Gradient of pad2d_forward: each pixel gets the sum over its copies; `dy` has the padded size, any strides."""
    dx = _empty_backward(dy, padding, mode)
    left, right, top, bottom = padding
    readers = _most_readers(dx.shape[2], top, bottom, mode), _most_readers(dx.shape[3], left, right, mode)
    programs, order = element_tiles(dx)
    launch(
        _backward_kernel, programs, dy, dx,
        dy.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], top, left, *readers,
        MODE=mode, **order, ACCUMULATOR=accumulator(dy.dtype), INDEX=index_type(dy, dx), device=dy.device,
    )  # fmt: skip
    return dx


def _most_readers(size: int, near: int, far: int, mode: str) -> int:
    """The largest number of outputs of an axis that copy one pixel."""
    near, far = max(near, 0), max(far, 0)
    if mode != "replicate":
        return 3 if near or far else 1
    return 1 + (near + far if size == 1 else max(near, far))
