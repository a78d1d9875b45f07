"""Bilinear resizing with antialiasing: where an image shrinks, each output averages all the pixels it covers.

    forward    y[n, c, p, q]  = sum_{i, j} a_i(p) * b_j(q) * x[n, c, top(p) + i, left(q) + j]
    backward   dx[n, c, h, w] = sum over the (p, q) that read pixel (h, w) of the same weights times dy[n, c, p, q]

The weights fall off from the centre of an output like a triangle that reaches max(scale, 1) pixels to either side, and add
up to 1. They are the same for a whole column or row of outputs: one small kernel writes those of an axis into a table, which
forward and backward read. The backward is a gather, without atomics. All is computed in float32, or float64 for float64.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import elements_of, first_reader, most_readers
from trinn.kernels.launch import device_function, empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator, divided, rounded
from trinn.kernels.tuning import element_tiles, elementwise_block


@device_function
def _taps(position, size, out_size, scale):
    """(first, count) of the pixels that an output position reads, and its centre. An axis that keeps its size is copied."""
    support = tl.maximum(scale, 1.0)
    center = (position.to(scale.dtype) + 0.5) * scale
    first = tl.maximum((center - support + 0.5).to(position.dtype), 0)
    end = tl.minimum((center + support + 0.5).to(position.dtype), size)
    same = size == out_size
    return tl.where(same, position, first), tl.where(same, 1, end - first), tl.where(same, position + 0.5, center)


@device_function
def _falloff(pixel, center, scale):
    """The weight of a pixel before all are made to add up to 1."""
    distance = tl.abs(pixel.to(scale.dtype) + 0.5 - center)
    return tl.maximum(1 - divided(distance, tl.maximum(scale, 1.0)), 0.0)


@triton.jit
def _weights_kernel(
    weights, size, out_size, taps, scale: tl.float64, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr
):
    """The weights of BLOCK outputs, `taps` places for each."""
    position = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.full((), scale, ACCUMULATOR)
    first, count, center = _taps(position, size, out_size, scale)
    total = tl.full((BLOCK,), 0.0, ACCUMULATOR)
    for i in range(taps):
        total += tl.where(i < count, _falloff(first + i, center, scale), 0.0)
    total = tl.where(total > 0, total, 1.0)
    for i in range(taps):
        weight = divided(tl.where(i < count, _falloff(first + i, center, scale), 0.0), total)
        tl.store(weights + position * taps + i, weight, mask=position < out_size)


@triton.jit
def _forward_kernel(
    x, y, weights_h, weights_w,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, scale_h: tl.float64, scale_w: tl.float64, taps_h, taps_w,
    CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    top, rows, _h = _taps(p, height, out_height, tl.full((), scale_h, ACCUMULATOR))
    left, columns, _w = _taps(q, width, out_width, tl.full((), scale_w, ACCUMULATOR))
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(taps_h):
        weight_h = tl.load(weights_h + p * taps_h + i, mask=i < rows, other=0.0)
        for j in range(taps_w):
            weight_w = tl.load(weights_w + q * taps_w + j, mask=(j < columns) & (q < out_width), other=0.0)
            reads = exists & (i < rows) & (j < columns)
            value = tl.load(x + n * x_n + c * x_c + (top + i) * x_h + (left + j) * x_w, mask=reads, other=0).to(ACCUMULATOR)
            acc += weight_h * weight_w * value
    tl.store(y + n * y_n + c * y_c + p * y_h + q * y_w, rounded(acc, y.dtype.element_ty), mask=exists)


@triton.jit
def _backward_kernel(
    dy, dx, weights_h, weights_w,
    dy_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, scale_h: tl.float64, scale_w: tl.float64, taps_h, taps_w,
    readers_h, readers_w,
    CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx; `readers`, from most_readers, is how many outputs of an axis each pixel looks at."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    scale_h, scale_w = tl.full((), scale_h, ACCUMULATOR), tl.full((), scale_w, ACCUMULATOR)
    first_p = first_reader(h, out_height, scale_h, 0.5 - tl.maximum(scale_h, 1.0), 0.5)
    first_q = first_reader(w, out_width, scale_w, 0.5 - tl.maximum(scale_w, 1.0), 0.5)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(readers_h):
        p = first_p + i
        top, rows, _h = _taps(p, height, out_height, scale_h)
        reads_h = (p < out_height) & (h >= top) & (h < top + rows)
        weight_h = tl.load(weights_h + p * taps_h + h - top, mask=reads_h, other=0.0)
        for j in range(readers_w):
            q = first_q + j
            left, columns, _w = _taps(q, width, out_width, scale_w)
            reads_w = (q < out_width) & (w >= left) & (w < left + columns)
            weight_w = tl.load(weights_w + q * taps_w + w - left, mask=reads_w, other=0.0)
            at = n * dy_n + c * dy_c + p * dy_p + q * dy_q
            upstream = tl.load(dy + at, mask=exists & reads_h & reads_w, other=0.0).to(ACCUMULATOR)
            acc += weight_h * weight_w * upstream
    tl.store(dx + n * dx_n + c * dx_c + h * dx_h + w * dx_w, acc.to(dx.dtype.element_ty), mask=exists)


def _empty(x: Tensor, size: Sequence[int], scales: Sequence[float]) -> Tensor:
    return empty(x, (*x.shape[:2], *size), is_channels_last(x))


@op(fake=_empty)
def antialias2d_forward(x: Tensor, size: Sequence[int], scales: Sequence[float]) -> Tensor:
    """An image resized by bilinear interpolation with antialiasing.

    Args:
        x: (N, C, H, W), any strides; uint8 is rounded to the nearest.
        size: (P, Q).
        scales: input pixels an output pixel, for height and width; H / P unless the user fixed it. An axis that keeps its
            size is copied.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = _empty(x, size, scales)
    axes = list(zip(x.shape[2:], size, _effective(x.shape[2:], size, scales), strict=True))
    programs, order = element_tiles(y)
    launch(
        _forward_kernel, programs, x, y, *(_weights(x, *axis) for axis in axes),
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size, *(scale for *_, scale in axes), *(_most_taps(scale) for *_, scale in axes),
        **order, ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, y),
        device=x.device,
    )  # fmt: skip
    return y


@op(fake=_empty)
def antialias2d_backward(dy: Tensor, size: Sequence[int], scales: Sequence[float]) -> Tensor:
    """Gradient of antialiased interpolation: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`."""
    dx = _empty(dy, size, scales)
    axes = list(zip(size, dy.shape[2:], _effective(size, dy.shape[2:], scales), strict=True))
    readers = [most_readers(*axis, 0.5 - max(axis[2], 1.0), 0.5 + max(axis[2], 1.0), 0.5) for axis in axes]
    programs, order = element_tiles(dx)
    launch(
        _backward_kernel, programs, dy, dx, *(_weights(dy, *axis) for axis in axes),
        dy.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], *(scale for *_, scale in axes), *(_most_taps(scale) for *_, scale in axes),
        *readers,
        **order, ACCUMULATOR=accumulator(dy.dtype), INDEX=index_type(dy, dx),
        device=dy.device,
    )  # fmt: skip
    return dx


def _weights(like: Tensor, size: int, out_size: int, scale: float) -> Tensor:
    """The table of an axis: for each output the weights of the pixels it reads."""
    taps = _most_taps(scale)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    weights = torch.empty((out_size, taps), dtype=dtype, device=like.device)
    block = elementwise_block(out_size)
    launch(
        _weights_kernel, triton.cdiv(out_size, block), weights, size, out_size, taps, scale,
        ACCUMULATOR=accumulator(like.dtype), INDEX=index_type(weights), BLOCK=block, device=like.device,
    )  # fmt: skip
    return weights


def _most_taps(scale: float) -> int:
    """The largest number of pixels that an output reads."""
    return 2 * math.ceil(max(scale, 1.0)) + 1


def _effective(size: Sequence[int], out_size: Sequence[int], scales: Sequence[float]) -> list[float]:
    """The scales, but 1 for an axis that is copied."""
    return [1.0 if n == m else float(scale) for n, m, scale in zip(size, out_size, scales, strict=True)]
