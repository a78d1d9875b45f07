"""Bilinear resizing with antialiasing: in an image that shrinks, an output averages all pixels under it.

    forward    y[n, c, p, q]  = sum_{i, j} a_i(p) * b_j(q) * x[n, c, top(p) + i, left(q) + j]
    backward   dx[n, c, h, w] = sum of weight * dy[n, c, p, q] over all (p, q) that read pixel (h, w), with the forward's weight

The weights of an output are a triangle around its centre, max(scale, 1) pixels wide on each side, normalised to a sum of 1. The
backward is a gather, without atomics. The computation is in float64 for float64 tensors, else in float32.
"""

import math
from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

from .device.function import device_function
from .device.indexing import first_reader, max_readers, scales_of
from .device.precision import divide
from .gather2d import gather2d
from .runtime.allocate import empty_resized
from .runtime.layout import Ints
from .runtime.op import op
from .runtime.vmap import FIRST_AXIS


@device_function
def _span(position, size, out_size, scale):
    """(first, count) of the pixels under an output, and its centre in output pixels. An axis of equal size is copied."""
    middle = position.to(scale.dtype) + 0.5
    support = tl.maximum(scale, 1.0)
    center = middle * scale
    first = tl.maximum((center - support + 0.5).to(position.dtype), 0)
    end = tl.minimum((center + support + 0.5).to(position.dtype), size)
    same = size == out_size
    return tl.where(same, position, first), tl.where(same, 1, end - first), middle


@device_function
def _falloff(pixel, middle, scale):
    """The weight of a pixel before normalisation. `middle` * `scale` is the centre of the output in input pixels."""
    # The fma does not round the centre. On a long axis, that rounding would be the largest error of the weight.
    distance = tl.abs(tl.fma(-middle, scale, pixel.to(scale.dtype) + 0.5))
    return tl.maximum(1 - divide(distance, tl.maximum(scale, 1.0)), 0.0)


@device_function
def _tap(i, position, axis, DTYPE: tl.constexpr):
    """TAP of gather2d: pixel i under an output, and its weight."""
    size, out_size, _taps, scale = axis
    first, count, middle = _span(position, size, out_size, scale.to(DTYPE))
    return first + i, i < count, tl.where(i < count, _falloff(first + i, middle, scale.to(DTYPE)), 0.0)


@device_function
def _total(position, axis, DTYPE: tl.constexpr):
    """COUNT of gather2d: the sum of an output's weights, or 1 if the sum is 0."""
    total = position.to(DTYPE) * 0
    for i in range(axis[2]):
        _pixel, _reads, weight = _tap(i, position, axis, DTYPE)
        total += weight
    return tl.where(total > 0, total, 1.0)


@device_function
def _reader(i, position, axis, DTYPE: tl.constexpr):
    """TAP of gather2d: output i near a pixel, whether it reads the pixel, and the weight."""
    size, out_size, _taps, scale = axis
    scale = scale.to(DTYPE)
    reader = first_reader(position, out_size, scale, 0.5 - tl.maximum(scale, 1.0), 0.5) + i
    first, count, middle = _span(reader, size, out_size, scale)
    reads = (reader < out_size) & (position >= first) & (position < first + count)
    weight = divide(_falloff(position, middle, scale), _total(reader, axis, DTYPE))
    return reader, reads, tl.where(reads, weight, 0.0)


@op(fake=empty_resized, vmap=FIRST_AXIS)
def antialias2d_forward(x: Tensor, size: Ints, factors: Sequence[float], align_corners: bool) -> Tensor:
    """Resize an image by bilinear interpolation with antialiasing.

    Args:
        x: (N, C, H, W), any strides. uint8 results are rounded to nearest.
        size: (P, Q).
        factors: of height and width, or empty. From an output to the next, coordinates advance by 1 / factor; without factors
            by H / P. An axis of equal size is copied.
        align_corners: coordinates always advance by (H - 1) / (P - 1).

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = empty_resized(x, size)
    axes, scales = _axes(x.shape[2:], size, factors, align_corners)
    gather2d(x, y, axes, [taps for *_, taps in axes], _tap, _total, scales=scales)
    return y


@op(fake=empty_resized, vmap=FIRST_AXIS)
def antialias2d_backward(dy: Tensor, size: Ints, factors: Sequence[float], align_corners: bool) -> Tensor:
    """Gradient of antialiased interpolation: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`."""
    dx = empty_resized(dy, size)
    axes, scales = _axes(size, dy.shape[2:], factors, align_corners)
    supports = [max(scale, 1.0) for scale in scales]
    readers = [max_readers(n, m, s, 0.5 - r, 0.5 + r, 0.5) for (n, m, _), s, r in zip(axes, scales, supports, strict=True)]
    gather2d(dy, dx, axes, readers, _reader, scales=scales)
    return dx


def _axes(
    size: Ints, out_size: Ints, factors: Sequence[float], align_corners: bool
) -> tuple[list[tuple[int, int, int]], list[float]]:
    """(size, out_size, largest number of pixels under an output) of each axis, and the scales: 1 for an axis of equal size."""
    scales = scales_of(size, out_size, factors, align_corners)
    scales = [1.0 if n == m else scale for n, m, scale in zip(size, out_size, scales, strict=True)]
    return [(n, m, 2 * math.ceil(max(s, 1.0)) + 1) for n, m, s in zip(size, out_size, scales, strict=True)], scales
