"""The index arithmetic of every windowed operator, written once.

A window fuses two images. Per axis, with `big` a pixel of the larger image (the input of a convolution or a pooling, the
output of a transposed convolution) and `small` a pixel of the other:

    big = small * stride - padding + tap * dilation

Walked from `small` to `big` this is a forward convolution or pooling. Solved for `small` it is the adjoint: an input
gradient, a transposed convolution. The equation has a solution only for some taps: with g = gcd(stride, dilation), a `big`
pixel hits the taps `first, first + step, first + 2 * step, ...` with step = stride / g, and each further tap lies
`dilation / g` small pixels back.

Triton divides and takes remainders like C, towards zero. Only this file knows how that is dealt with.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import triton.language as tl

from ..runtime.layout import Ints
from .function import device_function

# How far rounding may move the coordinates of a resized image: in output pixels, for each output of an axis.
READER_SLACK = tl.constexpr(2.0**-20)


class Window(NamedTuple):
    """Of a pooling whose windows lie side by side."""

    height: int
    width: int

    @property
    def taps(self) -> int:
        return self.height * self.width


class Axis(NamedTuple):
    """One axis of a window, known when a kernel is compiled: `taps` of them, and the constants of the equation above."""

    taps: int
    stride: int
    padding: int
    dilation: int

    @property
    def gcd(self) -> int:
        return math.gcd(self.stride, self.dilation)

    @property
    def tap_step(self) -> int:
        """From one tap that hits a given `big` pixel to the next."""
        return self.stride // self.gcd

    @property
    def tap_back(self) -> int:
        """How far `small` moves back from one such tap to the next."""
        return self.dilation // self.gcd

    @property
    def inverse(self) -> int:
        """Solves tap * (dilation / g) = 1 modulo tap_step."""
        return pow(self.tap_back, -1, self.tap_step)

    @property
    def max_hits(self) -> int:
        """The largest number of taps that hit one `big` pixel."""
        return -(-self.taps // self.tap_step)


def axes_of(kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[Axis, Axis]:
    """The axes of windows for height and width."""
    H, W = (Axis(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True))
    return H, W


@device_function
def empty_tuple():
    """A tuple to begin with."""
    return ()


@device_function
def cdiv(a, b):
    """a / b, rounded up, for b > 0 and a > -b; as large an `a` as its type holds."""
    return a // b + (a % b > 0)


@device_function
def floor_div(a, b):
    """a / b, rounded down, for b > 0 and any a."""
    return a // b - (a % b < 0)


@device_function
def increment(digit, step, first, end):
    """A digit of a counter, `step` further or again the `first`, and what it carries. It costs far less than to divide."""
    digit += step
    over = digit >= end
    return tl.where(over, first, digit), tl.where(over, 1, 0)


@device_function
def split_pixel(pixel, height, width):
    """(image, row, column) of a pixel counted through images, rows and columns."""
    row = pixel // width
    return row // height, row % height, pixel % width


@device_function
def pixel_of_window(pixel, rows, columns, WINDOW: tl.constexpr):
    """(image, row, column) of a pixel counted through images, rows and columns of windows, and through each window."""
    n, row, col = split_pixel(pixel // WINDOW.taps, rows, columns)
    tap = pixel % WINDOW.taps
    return n, row * WINDOW.height + tap // WINDOW.width, col * WINDOW.width + tap % WINDOW.width


@device_function
def inside(position, size):
    """Whether a position lies on an axis of that size."""
    return (position >= 0) & (position < size)


@device_function
def big_from_small(small, tap, AXIS: tl.constexpr):
    """The equation, forwards."""
    return small * AXIS.stride - AXIS.padding + tap * AXIS.dilation


@device_function
def small_from_big(big, AXIS: tl.constexpr):
    """The equation, solved: (small, tap, hits) of the first tap that hits `big`, and how many do.

    The i-th hit, i < hits, is tap + i * AXIS.tap_step, from small - i * AXIS.tap_back. `small` may lie off its image.
    """
    shifted = big + AXIS.padding
    tap = (shifted % AXIS.stride) // AXIS.gcd * AXIS.inverse % AXIS.tap_step
    small = (shifted - tap * AXIS.dilation) // AXIS.stride
    hits = cdiv(AXIS.taps - tap, AXIS.tap_step)
    return small, tap, tl.where(shifted % AXIS.gcd == 0, hits, 0)


@device_function
def hitting_taps(start, reach, size, taps, STEP: tl.constexpr):
    """(first, how many) of the taps that see an axis at all, where the i-th sees start + i * STEP to `reach` behind that."""
    if STEP > 0:
        first, last = -floor_div(start + reach, STEP), floor_div(size - 1 - start, STEP)
    else:
        first, last = -floor_div(size - 1 - start, -STEP), floor_div(start + reach, -STEP)
    first = tl.maximum(first, 0)
    return first, tl.maximum(tl.minimum(last, taps - 1) - first + 1, 0)


@device_function
def hitting_smalls(first_tap, last_tap, small_size, big_size, AXIS: tl.constexpr):
    """(first, how many) of the `small` pixels for which one of these taps lies on the axis of `big` pixels."""
    first = -floor_div(last_tap * AXIS.dilation - AXIS.padding, AXIS.stride)
    last = floor_div(big_size - 1 + AXIS.padding - first_tap * AXIS.dilation, AXIS.stride)
    first = tl.maximum(first, 0)
    return first, tl.maximum(tl.minimum(last, small_size - 1) - first + 1, 0)


@device_function
def bin_start(position, size, bins):
    """The first pixel that a bin touches when `bins` of them cover an axis; exchanged, the first bin that touches a pixel."""
    return position * size // bins


@device_function
def bin_end(position, size, bins):
    """The pixel after the last that a bin touches, or the bin after the last that touches a pixel."""
    return cdiv((position + 1) * size, bins)


def max_in_bin(size: int, bins: int) -> int:
    """The largest number of pixels that a bin touches, or of bins that touch a pixel."""
    return 1 + (size - math.gcd(size, bins) + bins - 1) // bins if bins else 0


@device_function
def bilinear_source(position, size, out_size, scale, shift):
    """(first, second, weight): the two pixels an output position lies between, and the weight of the second.

    `scale` is in input pixels an output pixel; its dtype is that of the coordinates. `shift` is where in a pixel its
    coordinate lies: 0.5, or 0.0 if the corners of both images are aligned. Axes of one size are copied.
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
    """The pixel that an output position copies: the one under its edge (shift 0.0) or its centre (0.5). Float32, as torch."""
    return tl.minimum(tl.floor((position.to(tl.float32) + shift) * scale).to(position.dtype), size - 1)


@device_function
def first_reader(position, out_size, scale, low, shift):
    """The first output that may read the pixel of this position, with room for rounding.

    An output reads a pixel if (output + shift) * scale lies between pixel + low and pixel + high. Those before the first
    pixel read that; they do not count for the second, where their weight is 0.
    """
    step = tl.maximum(scale, 1e-30)  # it is 0 where one pixel or one output is all there is
    # The slack covers the two units in the last place by which Triton's division may be off.
    out = (position.to(scale.dtype) + low) / step - shift - out_size * READER_SLACK
    out = tl.minimum(tl.maximum(tl.ceil(out), 0.0), out_size - 1.0).to(position.dtype)
    return tl.where(position == 0, 0, out)


def scales_of(size: Ints, out_size: Ints, factors: Sequence[float], align_corners: bool = False) -> list[float]:
    """The distance of two outputs of a resizing in input pixels, along each axis.

    By the factors that the user gave, or else by the sizes; between aligned corners by the sizes, and 0 for a single output.
    """
    if align_corners:
        return [(n - 1) / (m - 1) if m > 1 else 0.0 for n, m in zip(size, out_size, strict=True)]
    return [1 / factor for factor in factors] or [n / m for n, m in zip(size, out_size, strict=True)]


@functools.lru_cache(maxsize=1024)
def max_readers(size: int, out_size: int, scale: float, low: float, high: float, shift: float) -> int:
    """How far it is, at most, from a pixel's first_reader past the last output that reads it."""
    if scale == 0:
        return out_size
    slack = out_size * READER_SLACK.value
    if size > 2**16:  # too many to ask each: not less than any of them would say
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
    """Where the element of that number lies in storage; sizes and strides count from the innermost axis outwards."""
    offset = index * 0
    for axis in tl.static_range(len(sizes)):
        if axis + 1 < len(sizes):
            offset += (index % sizes[axis]) * strides[axis]
            index = index // sizes[axis]
        else:  # the index is within the sizes, so the outermost axis needs no division
            offset += index * strides[axis]
    return offset
