"""Operators that combine rows and columns apart from one another, with weights that depend on places alone.

    result[n, c, row, col] = sum_i a_i(row) * sum_j b_j(col) * source[n, c, h_i(row), w_j(col)]

Average pooling, resizing and padding have this form, and so has the gradient of each: there i and j count the outputs that
read a pixel. An operator describes one axis by a function

    TAP(i, position, axis, DTYPE) -> (pixel, reads, weight)

the i-th pixel of the source for a position of the result, whether the position reads it, and with what weight. With a function
COUNT(position, axis, DTYPE) the sum is divided by the counts of its row and its column. Gradients are gathers: there are no
atomics, and every sum has a fixed order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.columns import columns, columns_of, some, wide_index_type, zeros
from trinn.kernels.indexing import nothing
from trinn.kernels.launch import INTERPRETED, function_of, launch, named
from trinn.kernels.precision import accumulator, divided, rounded, widened

MOST_UNROLLED = 2**12 if INTERPRETED else 8  # taps along a row: a thread holds the place and the weight of each of them


@triton.jit
def _gather_kernel(
    source, result,
    source_strides, result_strides,
    out_height, out_width, cut,
    axis_h, axis_w, scale_h: tl.float64, scale_w: tl.float64, taps_h, taps_w,
    TAP: tl.constexpr, COUNT: tl.constexpr, COPY: tl.constexpr, IN_ORDER: tl.constexpr, UNROLLED: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the result."""
    x_n, x_c, x_h, x_w = source_strides
    y_n, y_c, y_h, y_w = result_strides
    axis_h, axis_w = axis_h + (tl.full((), scale_h, tl.float64),), axis_w + (tl.full((), scale_w, tl.float64),)
    n, c, col, first, steps = columns_of(cut, out_height, out_width, INDEX, TILE)
    source += n * x_n + c * x_c
    result += n * y_n + c * y_c + col * y_w
    sources, reads, weights = nothing(), nothing(), nothing()
    for j in tl.static_range(UNROLLED):
        w, reads_w, weight = function_of(TAP)(j, col, axis_w, ACCUMULATOR)
        sources, reads, weights = sources + (source + w * x_w,), reads + (reads_w,), weights + (weight,)
    if COUNT is not None:
        columns = function_of(COUNT)(col, axis_w, ACCUMULATOR)
    for step in range(steps):
        row = first + step
        if COPY:
            h, _reads, _weight = function_of(TAP)(0, row, axis_h, ACCUMULATOR)
            value = tl.load(sources[0] + h * x_h)
        else:
            acc = zeros(TILE, ACCUMULATOR)
            for i in range(taps_h):
                h, reads_h, weight_h = function_of(TAP)(i, row, axis_h, ACCUMULATOR)
                if some(reads_h, TILE):
                    line = acc if IN_ORDER else zeros(TILE, ACCUMULATOR)
                    if UNROLLED > 0:
                        for j in tl.static_range(UNROLLED):
                            value = tl.load(sources[j] + h * x_h, mask=reads_h & reads[j], other=0)
                            line += weights[j] * widened(value).to(ACCUMULATOR)
                    else:
                        for j in range(taps_w):
                            w, reads_w, weight = function_of(TAP)(j, col, axis_w, ACCUMULATOR)
                            value = tl.load(source + h * x_h + w * x_w, mask=reads_h & reads_w, other=0)
                            line += weight * widened(value).to(ACCUMULATOR)
                    acc = line if IN_ORDER else acc + weight_h * line
            if COUNT is not None:
                count = (function_of(COUNT)(row, axis_h, ACCUMULATOR) * columns).to(ACCUMULATOR)
                acc = acc // count if ACCUMULATOR == tl.int64 else divided(acc, count)  # integers towards zero, as torch
            value = rounded(acc, result.dtype.element_ty)
        tl.store(result + row * y_h, value)


def gather2d(
    source: Tensor, result: Tensor, axes: Sequence[tuple[Any, ...]], scales: Sequence[float], taps: Sequence[int],
    tap: Callable[..., Any], count: Callable[..., Any] | None = None, in_order: bool = False, channels_last: bool | None = None,
) -> None:  # fmt: skip
    """Fill a result (N, C, P, Q) from a source (N, C, H, W), any strides.

    Args:
        axes, scales: what TAP is told of rows and of columns: numbers, and behind them a scale, as float64.
        taps: the largest number of pixels that a position of the result reads along each axis; () to copy one, of any dtype.
        tap, count: the functions above.
        in_order: all weights are 1, and pixels are added one after the other, as torch does for means; else row by row.
        channels_last: the order of the result, where its strides do not tell.
    """
    taps_h, taps_w = taps or (1, 1)
    lanes = 1024 if taps_w <= 2 else 512
    programs, cut, tile, strides = columns(result, (source, result), channels_last, room=2048, lanes=lanes)
    launch(
        _gather_kernel, programs, source, result,
        *strides,
        *result.shape[2:], cut,
        *axes, *map(float, scales), taps_h, taps_w,
        TAP=named(tap), COUNT=named(count) if count else None, COPY=not taps, IN_ORDER=in_order,
        UNROLLED=taps_w if taps_w <= MOST_UNROLLED else 0,
        ACCUMULATOR=tl.int64 if source.dtype == torch.int64 else accumulator(source.dtype),
        INDEX=wide_index_type(axes, source, result), TILE=tile, device=source.device,
    )  # fmt: skip
