"""The windows of pooling, for gather2d.py: which pixels a window holds, and which windows hold a pixel.

A window of max_pool2d and avg_pool2d has taps, a stride, padding and a dilation. A bin of adaptive pooling holds the pixels
that it touches when P bins cover H pixels, so bins overlap where sizes do not divide. Which bins hold a pixel is the same
formula with pixels and bins exchanged.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..runtime.layout import Ints
from .function import device_function
from .indexing import bin_end, bin_start, cdiv, inside, max_in_bin
from .precision import divide


class Windows(NamedTuple):
    """The windows of an operator. The functions are a TAP and a COUNT of gather2d.py, and the TAPs of two gradients."""

    axes: Sequence[tuple[int, ...]]  # what the functions are told of rows and of columns
    taps: Ints  # the largest number of pixels along each axis of a window
    most: Ints  # the largest number of windows along each axis that may hold a pixel
    pixel: Callable[..., Any]
    count: Callable[..., Any]
    holder: Callable[..., Any]  # with the tap by which a window holds the pixel
    share: Callable[..., Any]  # with the share of the mean that the pixel has


def windows_of(
    size: Ints, out_size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, count_include_pad: bool = False,
    divisor_override: int | None = None,
) -> Windows:  # fmt: skip
    """The windows over an image of that size; without a kernel, bins."""
    if not kernel:
        axes: list[tuple[int, ...]] = list(zip(size, out_size, strict=True))
        taps, most = [max_in_bin(n, m) for n, m in axes], [max_in_bin(m, n) for n, m in axes]
        return Windows(axes, taps, most, _bin_pixel, _bin_count, _bin_holder, _bin_share)
    counted = padding if count_include_pad else (0, 0)  # pixels of padding at each edge
    divisors = (divisor_override, 1) if divisor_override is not None else (0, 0)  # along each axis; 0: the pixels
    axes = list(zip(size, out_size, kernel, stride, padding, dilation, counted, divisors, strict=True))
    most = [triton.cdiv((k - 1) * d + 1, s) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    return Windows(axes, kernel, most, _pixel, _count, _holder, _share)


@device_function
def _pixel(i, position, axis, DTYPE: tl.constexpr):
    """The i-th pixel of a window."""
    size, _windows, _taps, stride, padding, dilation, _counted, _divisor = axis[:8]
    pixel = position * stride - padding + i * dilation
    return pixel, inside(pixel, size), 1


@device_function
def _count(position, axis, DTYPE: tl.constexpr):
    """What an axis divides a sum by."""
    size, _windows, taps, stride, padding, _dilation, counted, divisor = axis[:8]
    first = position * stride - padding
    pixels = tl.minimum(first + taps, size + counted) - tl.maximum(first, -counted)
    return tl.where(divisor == 0, pixels, divisor)


@device_function
def _holder(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th window that may hold a pixel."""
    _size, windows, taps, stride, padding, dilation, _counted, _divisor = axis[:8]
    window = tl.maximum(cdiv(pixel + padding - (taps - 1) * dilation, stride), 0) + i
    distance = pixel + padding - window * stride
    return window, (window < windows) & (distance >= 0) & (distance % dilation == 0), distance // dilation


@device_function
def _share(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th window that may hold a pixel."""
    window, holds, _tap = _holder(i, pixel, axis, DTYPE)
    return window, holds, _inverse(tl.where(holds, _count(window, axis, DTYPE), 1), DTYPE)


@device_function
def _bin_pixel(i, position, axis, DTYPE: tl.constexpr):
    """The i-th pixel of a bin."""
    pixel = bin_start(position, axis[0], axis[1]) + i
    return pixel, pixel < bin_end(position, axis[0], axis[1]), 1


@device_function
def _bin_count(position, axis, DTYPE: tl.constexpr):
    """How many pixels of an axis a bin holds."""
    return bin_end(position, axis[0], axis[1]) - bin_start(position, axis[0], axis[1])


@device_function
def _bin_holder(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th bin that may hold a pixel."""
    number = bin_start(pixel, axis[1], axis[0]) + i
    return number, number < bin_end(pixel, axis[1], axis[0]), pixel - bin_start(number, axis[0], axis[1])


@device_function
def _bin_share(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th bin that may hold a pixel."""
    number, holds, _tap = _bin_holder(i, pixel, axis, DTYPE)
    return number, holds, _inverse(tl.where(holds, _bin_count(number, axis, DTYPE), 1), DTYPE)


@device_function
def _inverse(count, DTYPE: tl.constexpr):
    return divide(tl.full(count.shape, 1, DTYPE), count.to(DTYPE))
