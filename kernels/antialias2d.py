"""Bilinear resizing with antialiasing: where an image shrinks, each output averages all the pixels it covers.

    forward    y[n, c, p, q]  = sum_{i, j} a_i(p) * b_j(q) * x[n, c, top(p) + i, left(q) + j]
    backward   dx[n, c, h, w] = sum over the (p, q) that read pixel (h, w) of the same weights times dy[n, c, p, q]

The weights fall off from the centre of an output like a triangle that reaches max(scale, 1) pixels to either side, and add
up to 1. They are the same for a whole column or row of outputs: one small kernel writes those of an axis into a table, which
forward and backward read. The backward is a gather, without atomics. All is computed in float32, or float64 for float64.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import first_reader, most_readers
from trinn.kernels.launch import device_function, empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator, divided
from trinn.kernels.separable2d import gather2d
from trinn.kernels.tuning import elementwise_block


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


@device_function
def _tap(i, position, axis, DTYPE: tl.constexpr):
    """The i-th pixel that an output reads."""
    size, out_size, taps, scale, weights = axis
    first, count, _center = _taps(position, size, out_size, scale.to(DTYPE))
    reads = i < count
    return first + i, reads, tl.load(weights + position * taps + i, mask=reads, other=0.0)


@device_function
def _reader(i, position, axis, DTYPE: tl.constexpr):
    """The i-th output that may read a pixel."""
    size, out_size, taps, scale, weights = axis
    scale = scale.to(DTYPE)
    reader = first_reader(position, out_size, scale, 0.5 - tl.maximum(scale, 1.0), 0.5) + i
    first, count, _center = _taps(reader, size, out_size, scale)
    reads = (reader < out_size) & (position >= first) & (position < first + count)
    return reader, reads, tl.load(weights + reader * taps + position - first, mask=reads, other=0.0)


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
    axes = _axes(x.shape[2:], size, scales)
    gather2d(
        x,
        y,
        [axis[:3] for axis in axes],
        [axis.scale for axis in axes],
        [axis.taps for axis in axes],
        _tap,
        tables=_weights(x, axes),
    )
    return y


@op(fake=_empty)
def antialias2d_backward(dy: Tensor, size: Sequence[int], scales: Sequence[float]) -> Tensor:
    """Gradient of antialiased interpolation: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`."""
    dx = _empty(dy, size, scales)
    axes = _axes(size, dy.shape[2:], scales)
    readers = [most_readers(a.size, a.out_size, a.scale, 0.5 - max(a.scale, 1.0), 0.5 + max(a.scale, 1.0), 0.5) for a in axes]
    gather2d(dy, dx, [axis[:3] for axis in axes], [axis.scale for axis in axes], readers, _reader, tables=_weights(dy, axes))
    return dx


class _Axis(NamedTuple):
    """Sizes before and after, the largest number of pixels that an output reads, and the scale, 1 for an axis that is copied."""

    size: int
    out_size: int
    taps: int
    scale: float


def _axes(size: Sequence[int], out_size: Sequence[int], scales: Sequence[float]) -> list[_Axis]:
    scales = [1.0 if n == m else float(scale) for n, m, scale in zip(size, out_size, scales, strict=True)]
    return [_Axis(n, m, 2 * math.ceil(max(s, 1.0)) + 1, s) for n, m, s in zip(size, out_size, scales, strict=True)]


def _weights(like: Tensor, axes: Sequence[_Axis]) -> list[Tensor]:
    """For each axis a table of the weights of the pixels that each output reads."""
    tables = []
    for axis in axes:
        weights = torch.empty(
            (axis.out_size, axis.taps),
            dtype=torch.float64 if like.dtype == torch.float64 else torch.float32,
            device=like.device,
        )
        block = elementwise_block(axis.out_size)
        launch(
            _weights_kernel, triton.cdiv(axis.out_size, block), weights, *axis,
            ACCUMULATOR=accumulator(like.dtype), INDEX=index_type(weights), BLOCK=block, device=like.device,
        )  # fmt: skip
        tables.append(weights)
    return tables
