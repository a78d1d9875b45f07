"""Windows whose sizes are known at run time only: bins of adaptive pooling, and windows of pooling with many taps.

    max    y[n, c, p, q]  = max over the window of (p, q)       dx[n, c, h, w] = sum of dy[n, c, p, q] whose winner is (h, w)
    pick   y[n, c, p, q]  = x at the winner of (p, q)           places         = h * width + w of the winner of (p, q)

An operator says by two functions what an axis of its windows is:

    TAP(i, position, axis, DTYPE)    -> (pixel, reads, 1)       the i-th pixel of a window, and whether there is one
    READER(i, pixel, axis, DTYPE)    -> (position, reads, tap)  the i-th window that may hold a pixel, and as which of its taps

A winner is remembered as the number of its tap, `taps along a row * i + j`. NaN wins, the last one; of equal values the first.
A window that misses the image has the least value of its dtype and no winner.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.columns import columns, columns_of, filled, some, wide_index_type, zeros
from trinn.kernels.indexing import bin_end, bin_start, inside
from trinn.kernels.launch import device_function, launch
from trinn.kernels.precision import accumulator, compared, widened


@device_function
def beats(value, best):
    """Whether a later value of a window wins over the best so far: it is larger, or NaN."""
    return (value > best) | (value != value)


@device_function
def window_tap(i, position, axis, DTYPE: tl.constexpr):
    """A pooling's window: `axis` has the size of the image, taps, stride, padding and dilation."""
    size, taps, stride, padding, dilation = axis
    pixel = position * stride - padding + i * dilation
    return pixel, (i < taps) & inside(pixel, size), 1


@device_function
def window_reader(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th window that may hold a pixel; the last one comes first. `axis` has the number of windows for the size."""
    windows, taps, stride, padding, dilation = axis
    position = (pixel + padding) // stride - i
    behind = pixel + padding - position * stride
    reads = (behind % dilation == 0) & (behind // dilation < taps) & inside(position, windows)
    return position, reads, behind // dilation


@device_function
def bin_tap(i, position, axis, DTYPE: tl.constexpr):
    """A bin of adaptive pooling: `axis` has the size of the image and the number of bins."""
    size, bins = axis
    pixel = bin_start(position, size, bins) + i
    return pixel, pixel < bin_end(position, size, bins), 1


@device_function
def bin_reader(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th bin that holds a pixel."""
    size, bins = axis
    position = bin_start(pixel, bins, size) + i
    return position, position < bin_end(pixel, bins, size), pixel - bin_start(position, size, bins)


@triton.jit
def _max_kernel(
    x, y, codes,
    x_strides, y_strides,
    out_height, out_width, cut,
    axis_h, axis_w, taps_h, taps_w,
    TAP: tl.constexpr, LEAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y and the taps it came from."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, q, exists, first, steps = columns_of(cut, out_height, out_width, INDEX, TILE)
    x += n * x_n + c * x_c
    at = n * y_n + c * y_c + q * y_w
    for step in range(steps):
        p = first + step
        code = zeros(TILE, tl.int32) - 1
        best = filled(LEAST, y.dtype.element_ty, TILE)
        for i in range(taps_h):
            h, reads_h, _one = TAP(i, p, axis_h, tl.float32)
            if some(reads_h, TILE):
                for j in range(taps_w):
                    w, reads_w, _one = TAP(j, q, axis_w, tl.float32)
                    hit = reads_h & reads_w
                    value = compared(tl.load(x + h * x_h + w * x_w, mask=hit, other=0))
                    wins = hit & ((code < 0) | beats(value, best))
                    best = tl.where(wins, value, best)
                    code = tl.where(wins, i * taps_w + j, code)
        tl.store(y + at + p * y_h, best.to(y.dtype.element_ty), mask=exists)
        tl.store(codes + at + p * y_h, tl.maximum(code, 0).to(codes.dtype.element_ty), mask=exists)


@triton.jit
def _max_backward_kernel(
    dy, codes, dx,
    dy_strides, codes_strides, dx_strides,
    height, width, cut,
    axis_h, axis_w, readers_h, readers_w, taps_w,
    READER: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    codes_n, codes_c, codes_p, codes_q = codes_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, w, exists, first, steps = columns_of(cut, height, width, INDEX, TILE)
    dy += n * dy_n + c * dy_c
    codes += n * codes_n + c * codes_c
    dx += n * dx_n + c * dx_c + w * dx_w
    for step in range(steps):
        h = first + step
        acc = zeros(TILE, ACCUMULATOR)
        for i in range(readers_h):
            p, reads_h, tap_h = READER(i, h, axis_h, tl.float32)
            if some(reads_h, TILE):
                for j in range(readers_w):
                    q, reads_w, tap_w = READER(j, w, axis_w, tl.float32)
                    hit = reads_h & reads_w
                    code = tl.load(codes + p * codes_p + q * codes_q, mask=hit, other=0).to(tl.int32)
                    upstream = tl.load(dy + p * dy_p + q * dy_q, mask=hit, other=0.0)
                    acc += tl.where(code == tap_h * taps_w + tap_w, widened(upstream).to(ACCUMULATOR), 0.0)
        tl.store(dx + h * dx_h, acc.to(dx.dtype.element_ty), mask=exists)


@triton.jit
def _pick_kernel(
    x, codes, y,
    x_strides, codes_strides, y_strides,
    height, width, out_height, out_width, cut,
    axis_h, axis_w, taps_w,
    TAP: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y: the values of x at the winners or, without x, their places h * width + w.

    Where nothing won, the value is 0 and the place that of some pixel.
    """
    codes_n, codes_c, codes_p, codes_q = codes_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, q, exists, first, steps = columns_of(cut, out_height, out_width, INDEX, TILE)
    codes += n * codes_n + c * codes_c + q * codes_q
    y += n * y_n + c * y_c + q * y_w
    if x is not None:
        x_n, x_c, x_h, x_w = x_strides
        x += n * x_n + c * x_c
    for step in range(steps):
        p = first + step
        code = tl.load(codes + p * codes_p).to(tl.int32)
        h, _reads, _one = TAP(code // taps_w, p, axis_h, tl.float32)
        w, _reads, _one = TAP(code % taps_w, q, axis_w, tl.float32)
        if x is not None:
            value = tl.load(x + h * x_h + w * x_w, mask=inside(h, height) & inside(w, width), other=0)
            tl.store(y + p * y_h, value, mask=exists)
        else:
            h, w = tl.minimum(tl.maximum(h, 0), height - 1).to(tl.int64), tl.minimum(tl.maximum(w, 0), width - 1)
            tl.store(y + p * y_h, h * width + w, mask=exists)


def max_forward(x: Tensor, y: Tensor, codes: Tensor, axes: Any, taps: Sequence[int], tap: Callable[..., Any]) -> None:
    """Fill y and codes (N, C, P, Q) from x (N, C, H, W), any strides.

    Args:
        axes: what TAP is told of rows and of columns.
        taps: the largest number of pixels along each axis of a window.
    """
    programs, cut, tile, strides = columns(y, (x, y))
    launch(
        _max_kernel, programs, x, y, codes,
        *strides,
        *y.shape[2:], cut,
        *axes, *taps,
        TAP=tap, LEAST=least(x.dtype), INDEX=wide_index_type(axes, x, y), TILE=tile, device=x.device,
    )  # fmt: skip


def max_backward(
    dy: Tensor, codes: Tensor, dx: Tensor, axes: Any, readers: Sequence[int], taps_w: int, reader: Callable[..., Any]
) -> None:
    """Fill dx (N, C, H, W) from dy and codes (N, C, P, Q), any strides.

    Args:
        axes: what READER is told of rows and of columns.
        readers: the largest number of windows along each axis that may hold a pixel.
        taps_w: the largest number of taps along a row.
    """
    programs, cut, tile, strides = columns(dx, (dy, codes, dx))
    launch(
        _max_backward_kernel, programs, dy, codes, dx,
        *strides,
        *dx.shape[2:], cut,
        *axes, *readers, taps_w,
        READER=reader, ACCUMULATOR=accumulator(dy.dtype), INDEX=wide_index_type(axes, dy, codes, dx), TILE=tile, device=dy.device,
    )  # fmt: skip


def pick(
    x: Tensor | None, codes: Tensor, y: Tensor, size: Sequence[int], axes: Any, taps_w: int, tap: Callable[..., Any]
) -> None:
    """Fill y, like codes (N, C, P, Q), from x (N, C, H, W) at the winners, or with their places in an image of that size."""
    programs, cut, tile, strides = columns(y, (x if x is not None else y, codes, y))
    launch(
        _pick_kernel, programs, x, codes, y,
        *strides,
        *size, *y.shape[2:], cut,
        *axes, taps_w,
        TAP=tap, INDEX=wide_index_type(axes, codes, y, *([x] if x is not None else [])), TILE=tile, device=y.device,
    )  # fmt: skip


def least(dtype: torch.dtype) -> float | int:
    """The value of a dtype that no other is below."""
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min
