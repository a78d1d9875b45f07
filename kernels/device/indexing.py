"""Index arithmetic of every operator with windows.

A window relates two images. Per axis, with `big` a pixel of the larger image (the input of a convolution or a pooling, the
output of a transposed convolution) and `small` a pixel of the other:

    big = small * stride - padding + tap * dilation

From `small` to `big`, this is a forward convolution or pooling. Solved for `small`, it is the adjoint: an input gradient or a
transposed convolution. A tap *hits* a `big` pixel if there is a solution. With g = gcd(stride, dilation), either no tap hits
the pixel, or the taps `first, first + step, first + 2 * step, ...` do, with step = stride / g. From each of these taps to the
next, `small` decreases by dilation / g.

In pooling and resizing, the *readers* of a pixel are the outputs that read it.

Triton's `//` and `%` truncate towards zero, as in C. All code that depends on this is in this file.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import triton.language as tl

from ..runtime.layout import Ints
from .function import device_function

# In a resized axis of `out_size` outputs, the rounding error of a coordinate is at most out_size * READER_SLACK output pixels.
READER_SLACK = tl.constexpr(2.0**-20)


class PoolWindow(NamedTuple):
    """Window of a pooling whose windows are adjacent and do not overlap."""

    height: int
    width: int

    @property
    def taps(self) -> int:
        return self.height * self.width


class Axis(NamedTuple):
    """One axis of a window, a compile-time constant: the number of taps, and the constants of the equation above."""

    taps: int
    stride: int
    padding: int
    dilation: int

    @property
    def gcd(self) -> int:
        return math.gcd(self.stride, self.dilation)

    @property
    def tap_step(self) -> int:
        """Distance between two successive taps that hit the same `big` pixel."""
        return self.stride // self.gcd

    @property
    def tap_back(self) -> int:
        """Decrease of `small` from one such tap to the next."""
        return self.dilation // self.gcd

    @property
    def inverse(self) -> int:
        """The solution of inverse * (dilation / g) = 1 modulo tap_step."""
        return pow(self.tap_back, -1, self.tap_step)

    @property
    def max_hits(self) -> int:
        """Largest number of taps that hit one `big` pixel."""
        return -(-self.taps // self.tap_step)


def axes_of(kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[Axis, Axis]:
    """Axis of the height, Axis of the width."""
    H, W = (Axis(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    return H, W


@device_function
def empty_tuple():
    """An empty tuple, for a loop to extend."""
    return ()


@device_function
def cdiv(a, b):
    """a / b, rounded up, for b > 0 and a > -b. No `a` is too large: a + b - 1 could overflow."""
    return a // b + (a % b > 0)


@device_function
def floor_div(a, b):
    """a / b, rounded down, for b > 0 and any a."""
    return a // b - (a % b < 0)


@device_function
def increment(digit, step, first, end):
    """Add `step` to one digit of a counter: (new digit, carry). A digit that reaches `end` restarts at `first` and carries 1.

    Loops count in digits such as (image, row, column), because a division per iteration costs far more.
    """
    digit += step
    over = digit >= end
    return tl.where(over, first, digit), tl.where(over, 1, 0)


@device_function
def split_pixel(pixel, height, width):
    """(image, row, column) of a pixel number; numbers run through columns first, then rows, then images."""
    row = pixel // width
    return row // height, row % height, pixel % width


@device_function
def pixel_of_window(pixel, rows, columns, WINDOW: tl.constexpr):
    """(image, row, column) of a pixel number; numbers run through the pixels of a window first, then through windows."""
    n, row, col = split_pixel(pixel // WINDOW.taps, rows, columns)
    tap = pixel % WINDOW.taps
    return n, row * WINDOW.height + tap // WINDOW.width, col * WINDOW.width + tap % WINDOW.width


@device_function
def inside(position, size):
    """Whether 0 <= position < size."""
    return (position >= 0) & (position < size)


@device_function
def big_from_small(small, tap, AXIS: tl.constexpr):
    """The equation at the top, for `big`."""
    return small * AXIS.stride - AXIS.padding + tap * AXIS.dilation


@device_function
def small_from_big(big, AXIS: tl.constexpr):
    """The equation at the top, solved for `small`: (small, tap) of the first tap that hits `big`, and the number of hits.

    Hit i < hits is tap + i * AXIS.tap_step, at small - i * AXIS.tap_back. `small` may be outside its image.
    """
    shifted = big + AXIS.padding
    tap = (shifted % AXIS.stride) // AXIS.gcd * AXIS.inverse % AXIS.tap_step
    small = (shifted - tap * AXIS.dilation) // AXIS.stride
    hits = cdiv(AXIS.taps - tap, AXIS.tap_step)
    return small, tap, tl.where(shifted % AXIS.gcd == 0, hits, 0)


@device_function
def hitting_taps(start, reach, size, taps, STEP: tl.constexpr):
    """(first, count) of the taps that read any pixel of an axis, for a block of positions.

    The axis has the pixels 0 to size - 1. Tap i reads the positions from start + i * STEP to start + i * STEP + reach.
    """
    if STEP > 0:
        first, last = -floor_div(start + reach, STEP), floor_div(size - 1 - start, STEP)
    else:
        first, last = -floor_div(size - 1 - start, -STEP), floor_div(start + reach, -STEP)
    first = tl.maximum(first, 0)
    return first, tl.maximum(tl.minimum(last, taps - 1) - first + 1, 0)


@device_function
def small_pixels_hit(first_tap, last_tap, small_size, big_size, AXIS: tl.constexpr):
    """(first, count) of the `small` pixels for which a tap from first_tap to last_tap is inside the axis of `big` pixels."""
    first = -floor_div(last_tap * AXIS.dilation - AXIS.padding, AXIS.stride)
    last = floor_div(big_size - 1 + AXIS.padding - first_tap * AXIS.dilation, AXIS.stride)
    first = tl.maximum(first, 0)
    return first, tl.maximum(tl.minimum(last, small_size - 1) - first + 1, 0)


@device_function
def bin_start(position, size, bins):
    """First pixel of bin `position`, when `bins` bins cover `size` pixels.

    With the sizes swapped, bin_start(pixel, bins, size) is the first bin with this pixel.
    """
    return position * size // bins


@device_function
def bin_end(position, size, bins):
    """One past the last pixel of bin `position`. With the sizes swapped, as in bin_start: one past the last bin of a pixel."""
    return cdiv((position + 1) * size, bins)


def max_in_bin(size: int, bins: int) -> int:
    """Largest number of pixels in a bin. With the sizes swapped: largest number of bins with one pixel in common."""
    return 1 + (size - math.gcd(size, bins) + bins - 1) // bins if bins else 0


@device_function
def bilinear_source(position, size, out_size, scale, shift):
    """(first, second, weight): the two pixels on either side of an output position, and the weight of the second.

    `scale` is in input pixels per output pixel; coordinates have its dtype. `shift` is the coordinate of the first pixel: 0.5,
    or 0.0 if the corners of both images are aligned. Axes of equal size are copied.
    """
    source = tl.maximum((position.to(scale.dtype) + shift) * scale - shift, 0.0)
    first = tl.minimum(source.to(position.dtype), size - 1)
    weight = tl.minimum(source - first.to(scale.dtype), 1.0)
    same = size == out_size
    first = tl.where(same, position, first)
    second = tl.where(same, first, tl.minimum(first + 1, size - 1))
    return first, second, tl.where(same, 0.0, weight)


@device_function
def nearest_source(position, size, scale, shift):
    """The pixel under the near edge (shift 0.0) or the centre (0.5) of an output position. In float32, as in torch."""
    return tl.minimum(tl.floor((position.to(tl.float32) + shift) * scale).to(position.dtype), size - 1)


@device_function
def first_reader(position, out_size, scale, low, shift):
    """First output that may read the pixel at `position`, with a margin for rounding.

    An output reads a pixel if (output + shift) * scale is between pixel + low and pixel + high. The caller chooses `low` and
    `high` for its kind of interpolation. Outputs before the first pixel read the first pixel. They do not count as readers of
    the second pixel, because its weight is 0 there.
    """
    step = tl.maximum(scale, 1e-30)  # the scale is 0 for a single pixel or a single output
    # The slack covers the error of Triton's division, up to two units in the last place.
    out = (position.to(scale.dtype) + low) / step - shift - out_size * READER_SLACK
    out = tl.minimum(tl.maximum(tl.ceil(out), 0.0), out_size - 1.0).to(position.dtype)
    return tl.where(position == 0, 0, out)


def scales_of(size: Ints, out_size: Ints, factors: Sequence[float], align_corners: bool = False) -> list[float]:
    """Distance between two outputs of a resizing, in input pixels, along each axis.

    It is 1 / factor, or the ratio of the sizes if the user gave no factors. With aligned corners it always follows from the
    sizes, and is 0 for a single output.
    """
    if align_corners:
        return [(n - 1) / (m - 1) if m > 1 else 0.0 for n, m in zip(size, out_size, strict=True)]
    return [1 / factor for factor in factors] or [n / m for n, m in zip(size, out_size, strict=True)]


@functools.lru_cache(maxsize=1024)
def max_readers(size: int, out_size: int, scale: float, low: float, high: float, shift: float) -> int:
    """Largest number of outputs from a pixel's first_reader to its last reader, both included. Arguments as in first_reader."""
    if scale == 0:
        return out_size
    slack = out_size * READER_SLACK.value
    if size > 2**16:  # too many pixels for the loop below: an upper bound
        return min(out_size, math.ceil((high - low) / scale + 3 * slack) + 2)

    def end(pixel: int) -> int:
        if pixel == size - 1:
            return out_size
        return min(out_size, math.ceil((pixel + high) / scale - shift + slack))

    def first(pixel: int) -> int:
        return max(0, math.ceil((pixel + low) / scale - shift - 2 * slack)) if pixel > 0 else 0

    return max(end(pixel) - first(pixel) for pixel in range(size))


@device_function
def offset_of(index, sizes, strides):
    """Offset in storage of element number `index`. Sizes, strides and the numbering begin with the innermost axis."""
    offset = index * 0
    for axis in tl.static_range(len(sizes)):
        if axis + 1 < len(sizes):
            offset += (index % sizes[axis]) * strides[axis]
            index = index // sizes[axis]
        else:  # the outermost index is already below its size, so it needs no division
            offset += index * strides[axis]
    return offset
