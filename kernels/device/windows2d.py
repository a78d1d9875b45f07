"""Windows of pooling, as functions for gather2d.py: the pixels of a window, and the windows of a pixel.

max_pool2d and avg_pool2d have windows with taps, a stride, padding and a dilation. Adaptive pooling has bins: P bins cover H
pixels, and a bin contains every pixel that it touches. So bins overlap if P does not divide H. The bins of a pixel follow from
the same formula with pixels and bins swapped.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..runtime.layout import Ints
from .function import device_function
from .indexing import bin_end, bin_start, cdiv, inside, max_in_bin
from .precision import divide


class WindowFunctions(NamedTuple):
    """Windows of one operator, described by functions for the kernel of gather2d.py: `count` is a COUNT, all others are TAPs.

    The *readers* of a pixel are the windows with this pixel. A gradient gathers over them.
    """

    axes: Sequence[tuple[int, ...]]  # argument `axis` of the functions, for rows and for columns; gather2d appends a scale
    taps: Ints  # largest number of pixels in a window, along each axis
    most_readers: Ints  # largest number of readers of a pixel, along each axis
    pixel: Callable[..., Any]  # a pixel of a window
    count: Callable[..., Any]  # divisor of a mean
    reader: Callable[..., Any]  # a reader of a pixel, and the pixel's tap in it
    weighted_reader: Callable[..., Any]  # a reader of a pixel, and the pixel's weight in its mean


def windows_of(
    size: Ints, out_size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, count_include_pad: bool = False,
    divisor_override: int | None = None,
) -> WindowFunctions:  # fmt: skip
    """Windows over an image of `size`; bins if `kernel` is empty."""
    if not kernel:
        axes: list[tuple[int, ...]] = list(zip(size, out_size, strict=True))
        taps, most_readers = [max_in_bin(n, m) for n, m in axes], [max_in_bin(m, n) for n, m in axes]
        return WindowFunctions(axes, taps, most_readers, _bin_pixel, _bin_count, _bin_reader, _weighted_bin_reader)
    counted = padding if count_include_pad else (0, 0)  # width of the padding that counts in a mean
    divisors = (divisor_override, 1) if divisor_override is not None else (0, 0)  # per axis; 0 for the number of pixels
    axes = list(zip(size, out_size, kernel, stride, padding, dilation, counted, divisors, strict=True))
    most_readers = [triton.cdiv((k - 1) * d + 1, s) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    return WindowFunctions(axes, kernel, most_readers, _pixel, _count, _reader, _weighted_reader)


@device_function
def _pixel(i, position, axis, DTYPE: tl.constexpr):
    """Pixel i of a window."""
    size, _windows, _taps, stride, padding, dilation, _counted, _divisor = axis[:8]
    pixel = position * stride - padding + i * dilation
    return pixel, inside(pixel, size), 1


@device_function
def _count(position, axis, DTYPE: tl.constexpr):
    """Divisor of a mean, along one axis."""
    size, _windows, taps, stride, padding, _dilation, counted, divisor = axis[:8]
    first = position * stride - padding
    pixels = tl.minimum(first + taps, size + counted) - tl.maximum(first, -counted)
    return tl.where(divisor == 0, pixels, divisor)


@device_function
def _reader(i, pixel, axis, DTYPE: tl.constexpr):
    """Candidate i for a reader of a pixel, whether it is a reader, and the pixel's tap in it."""
    _size, windows, taps, stride, padding, dilation, _counted, _divisor = axis[:8]
    window = tl.maximum(cdiv(pixel + padding - (taps - 1) * dilation, stride), 0) + i
    distance = pixel + padding - window * stride
    return window, (window < windows) & (distance >= 0) & (distance % dilation == 0), distance // dilation


@device_function
def _weighted_reader(i, pixel, axis, DTYPE: tl.constexpr):
    """Candidate i for a reader of a pixel, whether it is a reader, and the pixel's weight in its mean."""
    window, reads, _tap = _reader(i, pixel, axis, DTYPE)
    return window, reads, _inverse(tl.where(reads, _count(window, axis, DTYPE), 1), DTYPE)


@device_function
def _bin_pixel(i, position, axis, DTYPE: tl.constexpr):
    """Pixel i of a bin."""
    pixel = bin_start(position, axis[0], axis[1]) + i
    return pixel, pixel < bin_end(position, axis[0], axis[1]), 1


@device_function
def _bin_count(position, axis, DTYPE: tl.constexpr):
    """Number of pixels of a bin, along one axis."""
    return bin_end(position, axis[0], axis[1]) - bin_start(position, axis[0], axis[1])


@device_function
def _bin_reader(i, pixel, axis, DTYPE: tl.constexpr):
    """Bin i among the readers of a pixel, whether it exists, and the pixel's position in it."""
    number = bin_start(pixel, axis[1], axis[0]) + i
    return number, number < bin_end(pixel, axis[1], axis[0]), pixel - bin_start(number, axis[0], axis[1])


@device_function
def _weighted_bin_reader(i, pixel, axis, DTYPE: tl.constexpr):
    """Bin i among the readers of a pixel, whether it exists, and the pixel's weight in its mean."""
    number, reads, _tap = _bin_reader(i, pixel, axis, DTYPE)
    return number, reads, _inverse(tl.where(reads, _bin_count(number, axis, DTYPE), 1), DTYPE)


@device_function
def _inverse(count, DTYPE: tl.constexpr):
    """1 / count."""
    return divide(tl.full(count.shape, 1, DTYPE), count.to(DTYPE))
