"""Windows whose sizes are known at run time only: bins of adaptive pooling, and windows of pooling with many taps.

    max    y[n, c, p, q]  = max over the window of (p, q)       dx[n, c, h, w] = sum of dy[n, c, p, q] whose winner is (h, w)
    pick   y[n, c, p, q]  = x at the winner of (p, q)           places         = h * width + w of the winner of (p, q)

An operator says by two functions what an axis of its windows is:

    WINDOW(position, axis)   -> (first, end, step)    a window's pixels: those of first, first + step, ... from 0 on to `end`
    HOLDERS(pixel, axis)     -> (first, end)          the windows that may hold a pixel; they do if it is one of theirs

where `axis` begins with the size of the image and the number of windows. A winner is remembered as the number of its tap,
counted row by row of the widest window. NaN wins, the last one; of equal values the first. A window that misses the image has
the least value of its dtype and no winner.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.columns import columns, columns_of, filled, some, wide_index_type, zeros
from trinn.kernels.indexing import bin_end, bin_start, cdiv, inside
from trinn.kernels.launch import device_function, function_of, launch, named
from trinn.kernels.precision import accumulator, compared, widened


@device_function
def beats(value, best):
    """Whether a later value of a window wins over the best so far: it is larger, or NaN."""
    return (value > best) | (value != value)


@device_function
def window(position, axis):
    """A pooling's window: `axis` goes on with taps, stride, padding and dilation."""
    size, _windows, taps, stride, padding, dilation = axis
    first = position * stride - padding
    return first, tl.minimum(first + taps * dilation, size), dilation


@device_function
def windows_of(pixel, axis):
    """The windows of a pooling that may hold a pixel."""
    _size, windows, taps, stride, padding, dilation = axis
    first = tl.maximum(cdiv(pixel + padding - (taps - 1) * dilation, stride), 0)
    return first, tl.minimum((pixel + padding) // stride + 1, windows)


@device_function
def bin_of(position, axis):
    """A bin of adaptive pooling."""
    return bin_start(position, axis[0], axis[1]), bin_end(position, axis[0], axis[1]), 1


@device_function
def bins_of(pixel, axis):
    """The bins that hold a pixel."""
    return bin_start(pixel, axis[1], axis[0]), bin_end(pixel, axis[1], axis[0])


@triton.jit
def _max_kernel(
    x, y, codes,
    x_strides, y_strides,
    out_height, out_width, cut,
    axis_h, axis_w, taps_h, taps_w,
    WINDOW: tl.constexpr, LEAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y and the taps it came from."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, q, first, steps = columns_of(cut, out_height, out_width, INDEX, TILE)
    x += n * x_n + c * x_c
    at = n * y_n + c * y_c + q * y_w
    left, right, across = function_of(WINDOW)(q, axis_w)
    for step in range(steps):
        p = first + step
        top, bottom, down = function_of(WINDOW)(p, axis_h)
        code = zeros(TILE, tl.int32) - 1
        best = filled(LEAST, y.dtype.element_ty, TILE)
        for i in range(taps_h):
            h = top + i * down
            row_inside = inside(h, bottom)
            if some(row_inside, TILE):
                for j in range(taps_w):
                    w = left + j * across
                    hit = row_inside & inside(w, right)
                    value = compared(tl.load(x + h * x_h + w * x_w, mask=hit, other=0))
                    wins = hit & ((code < 0) | beats(value, best))
                    best = tl.where(wins, value, best)
                    code = tl.where(wins, i * taps_w + j, code)
        tl.store(y + at + p * y_h, best.to(y.dtype.element_ty))
        tl.store(codes + at + p * y_h, tl.maximum(code, 0).to(codes.dtype.element_ty))


@triton.jit
def _max_backward_kernel(
    dy, codes, dx,
    dy_strides, codes_strides, dx_strides,
    height, width, cut,
    axis_h, axis_w, most_h, most_w, taps_w,
    WINDOW: tl.constexpr, HOLDERS: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    codes_n, codes_c, codes_p, codes_q = codes_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, w, first, steps = columns_of(cut, height, width, INDEX, TILE)
    dy += n * dy_n + c * dy_c
    codes += n * codes_n + c * codes_c
    dx += n * dx_n + c * dx_c + w * dx_w
    left, right = function_of(HOLDERS)(w, axis_w)
    for step in range(steps):
        h = first + step
        top, bottom = function_of(HOLDERS)(h, axis_h)
        acc = zeros(TILE, ACCUMULATOR)
        for i in range(most_h):
            p = top + i
            first_h, _end_h, down = function_of(WINDOW)(p, axis_h)
            row_holds = (p < bottom) & ((h - first_h) % down == 0)
            if some(row_holds, TILE):
                for j in range(most_w):
                    q = left + j
                    first_w, _end_w, across = function_of(WINDOW)(q, axis_w)
                    holds = row_holds & (q < right) & ((w - first_w) % across == 0)
                    code = tl.load(codes + p * codes_p + q * codes_q, mask=holds, other=0).to(tl.int32)
                    upstream = widened(tl.load(dy + p * dy_p + q * dy_q, mask=holds, other=0.0)).to(ACCUMULATOR)
                    own = (h - first_h) // down * taps_w + (w - first_w) // across
                    acc += tl.where(code == own, upstream, 0.0)
        tl.store(dx + h * dx_h, acc.to(dx.dtype.element_ty))


@triton.jit
def _pick_kernel(
    x, codes, y,
    x_strides, codes_strides, y_strides,
    height, width, out_height, out_width, cut,
    axis_h, axis_w, taps_w,
    WINDOW: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y: the values of x at the winners or, without x, their places h * width + w.

    Where nothing won, the value is 0 and the place that of some pixel.
    """
    codes_n, codes_c, codes_p, codes_q = codes_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, q, first, steps = columns_of(cut, out_height, out_width, INDEX, TILE)
    codes += n * codes_n + c * codes_c + q * codes_q
    y += n * y_n + c * y_c + q * y_w
    if x is not None:
        x_n, x_c, x_h, x_w = x_strides
        x += n * x_n + c * x_c
    left, _end_w, across = function_of(WINDOW)(q, axis_w)
    for step in range(steps):
        p = first + step
        top, _end_h, down = function_of(WINDOW)(p, axis_h)
        code = tl.load(codes + p * codes_p).to(tl.int32)
        h, w = top + code // taps_w * down, left + code % taps_w * across
        if x is not None:
            value = tl.load(x + h * x_h + w * x_w, mask=inside(h, height) & inside(w, width), other=0)
            tl.store(y + p * y_h, value)
        else:
            h, w = tl.minimum(tl.maximum(h, 0), height - 1).to(tl.int64), tl.minimum(tl.maximum(w, 0), width - 1)
            tl.store(y + p * y_h, h * width + w)


class Windows(NamedTuple):
    """The windows of an operator: what WINDOW and HOLDERS are told of rows and of columns, and the two functions."""

    axes: Sequence[tuple[int, ...]]
    taps: Sequence[int]  # the largest number of pixels along each axis of a window
    most: Sequence[int]  # the largest number of windows along each axis that may hold a pixel
    window: Callable[..., Any]
    holders: Callable[..., Any]


def max_forward(x: Tensor, y: Tensor, codes: Tensor, windows: Windows) -> None:
    """Fill y and codes (N, C, P, Q) from x (N, C, H, W), any strides."""
    programs, cut, tile, strides = columns(y, (x, y))
    launch(
        _max_kernel, programs, x, y, codes,
        *strides,
        *y.shape[2:], cut,
        *windows.axes, *windows.taps,
        WINDOW=named(windows.window), LEAST=least(x.dtype), INDEX=wide_index_type(windows.axes, x, y), TILE=tile,
        device=x.device,
    )  # fmt: skip


def max_backward(dy: Tensor, codes: Tensor, dx: Tensor, windows: Windows) -> None:
    """Fill dx (N, C, H, W) from dy and codes (N, C, P, Q), any strides."""
    programs, cut, tile, strides = columns(dx, (dy, codes, dx))
    launch(
        _max_backward_kernel, programs, dy, codes, dx,
        *strides,
        *dx.shape[2:], cut,
        *windows.axes, *windows.most, windows.taps[1],
        WINDOW=named(windows.window), HOLDERS=named(windows.holders), ACCUMULATOR=accumulator(dy.dtype),
        INDEX=wide_index_type(windows.axes, dy, codes, dx), TILE=tile, device=dy.device,
    )  # fmt: skip


def pick(x: Tensor | None, codes: Tensor, y: Tensor, windows: Windows) -> None:
    """Fill y, like codes (N, C, P, Q), from x (N, C, H, W) at the winners, or without x with their places."""
    programs, cut, tile, strides = columns(y, (x if x is not None else y, codes, y))
    launch(
        _pick_kernel, programs, x, codes, y,
        *strides,
        *(axis[0] for axis in windows.axes), *y.shape[2:], cut,
        *windows.axes, windows.taps[1],
        WINDOW=named(windows.window), INDEX=wide_index_type(windows.axes, codes, y, x if x is not None else y), TILE=tile,
        device=y.device,
    )  # fmt: skip


def least(dtype: torch.dtype) -> float | int:
    """The value of a dtype that no other is below."""
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min
