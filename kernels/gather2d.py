"""Gather of source pixels for each pixel of a result: one kernel for pooling, resizing and padding.

    add    result[n, c, row, col] = sum_i a_i(row) * sum_j b_j(col) * source[n, c, h_i(row), w_j(col)]
    max    result[n, c, row, col] = the largest of these pixels; codes = i * J + j of its tap
    won    result[n, c, row, col] = sum of source[n, c, p, q] over the windows (p, q) with their maximum at (row, col), as
                                    found by their codes: the gradient of max

Rows and columns are independent. An operator describes each axis by a function

    TAP(i, position, axis, DTYPE) -> (pixel, reads, weight)

It returns source pixel i of a result position, whether the position reads this pixel, and its weight. For `won`, the weight is
the tap of window (p, q) at the position. With a function COUNT(position, axis, DTYPE), the sum is divided by the counts of its
row and its column. A gradient is a gather too, over the outputs that read a pixel. So there are no atomics, and every sum has a
fixed order. In a max the last NaN wins; without NaN, the first of the largest values. A position that reads no pixel gets the
lowest value of the dtype, and code 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device.columns import any_row, full_tile, plan_columns, plane_at, program_columns, wide_index_type
from .device.function import device_function, function_of, name_of
from .device.indexing import empty_tuple, inside
from .device.precision import accumulator, beats, divide, lowest, round_to, widen
from .runtime.interpreter import INTERPRETED
from .runtime.launch import launch
from .runtime.layout import Ints

MAX_UNROLLED = 2**12 if INTERPRETED else 8  # taps along a row: each needs registers for its position and its weight


@device_function
def _add_pixel(
    acc, code, source, codes, h, w, source_strides, codes_strides, reads, weight_h, weight, i, j, code_width,
    MODE: tl.constexpr,
):  # fmt: skip
    """(accumulator, code) after tap (i, j) of the sum or maximum: the pixel at (h, w), if the position reads it."""
    value = widen(tl.load(source + w * source_strides[3] + h * source_strides[2], mask=reads, other=0)).to(acc.dtype)
    if MODE == "max":
        wins = reads & ((code < 0) | beats(value, acc))
        acc, code = tl.where(wins, value, acc), tl.where(wins, i * code_width + j, code)
    elif MODE == "won":
        winner = tl.load(codes + w * codes_strides[3] + h * codes_strides[2], mask=reads, other=0).to(tl.int32)
        acc += tl.where(winner == weight_h * code_width + weight, value, 0.0)
    else:
        acc += weight * value
    return acc, code


@triton.jit
def _gather2d_kernel(
    source, codes, result,
    source_strides, codes_strides, result_strides,
    out_height, out_width, grid,
    axis_h, axis_w, scale_h: tl.float64, scale_w: tl.float64, taps_h, taps_w, code_width,
    TAP: tl.constexpr, COUNT: tl.constexpr, MODE: tl.constexpr, UNROLLED: tl.constexpr, START: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the result. MODE is "add", "max" or "won" as above, or "copy" or "add in order" as in gather2d."""
    # Arguments: the scales are separate, because Triton passes a Python float in a tuple as float32.
    axis_h, axis_w = axis_h + (tl.full((), scale_h, tl.float64),), axis_w + (tl.full((), scale_w, tl.float64),)
    # Indices: all column arithmetic is here, because the loop changes only the row.
    n, c, col, first, steps = program_columns(grid, out_height, out_width, INDEX, TILE)
    source, x_h, x_w = plane_at(source, source_strides, n, c)
    result, y_h, y_w = plane_at(result, result_strides, n, c)
    result += col * y_w
    if codes is not None:
        codes, _codes_h, codes_w = plane_at(codes, codes_strides, n, c)
    if MODE == "max":
        codes += col * codes_w
    pixels, reads, weights = empty_tuple(), empty_tuple(), empty_tuple()
    for j in tl.static_range(UNROLLED):
        w, reads_w, weight = function_of(TAP)(j, col, axis_w, ACCUMULATOR)
        pixels, reads, weights = pixels + (w,), reads + (reads_w,), weights + (weight,)
    if COUNT is not None:
        columns = function_of(COUNT)(col, axis_w, ACCUMULATOR)
    # Loop: a row of the result at a time. Row taps are scalars, so taps outside the source are skipped, not masked.
    for step in range(steps):
        row = first + step
        if MODE == "copy":
            h, _reads, _weight = function_of(TAP)(0, row, axis_h, ACCUMULATOR)
            value = tl.load(source + pixels[0] * x_w + h * x_h)
        else:
            acc, code = full_tile(START, TILE, ACCUMULATOR), full_tile(-1, TILE, tl.int32)
            for i in range(taps_h):
                h, reads_h, weight_h = function_of(TAP)(i, row, axis_h, ACCUMULATOR)
                if any_row(reads_h, TILE):
                    row_acc = full_tile(0, TILE, ACCUMULATOR) if MODE == "add" else acc
                    if UNROLLED > 0:
                        for j in tl.static_range(UNROLLED):
                            row_acc, code = _add_pixel(
                                row_acc, code, source, codes, h, pixels[j], source_strides, codes_strides,
                                reads_h & reads[j], weight_h, weights[j], i, j, code_width, MODE,
                            )  # fmt: skip
                    else:
                        for j in range(taps_w):
                            w, reads_w, weight = function_of(TAP)(j, col, axis_w, ACCUMULATOR)
                            row_acc, code = _add_pixel(
                                row_acc, code, source, codes, h, w, source_strides, codes_strides,
                                reads_h & reads_w, weight_h, weight, i, j, code_width, MODE,
                            )  # fmt: skip
                    acc = acc + weight_h * row_acc if MODE == "add" else row_acc
            # Epilogue: divide in the precision of the accumulator, before the only rounding.
            if COUNT is not None:
                count = (function_of(COUNT)(row, axis_h, ACCUMULATOR) * columns).to(ACCUMULATOR)
                acc = acc // count if ACCUMULATOR == tl.int64 else divide(acc, count)  # integers towards zero, as in torch
            value = round_to(acc, result.dtype.element_ty)
            if MODE == "max":
                tl.store(codes + row * codes_strides[2], tl.maximum(code, 0).to(codes.dtype.element_ty))
        # Store: no mask, because lanes past the end repeat the last column.
        tl.store(result + row * y_h, value)


@triton.jit
def _pick2d_kernel(
    source, codes, result,
    source_strides, codes_strides, result_strides,
    height, width, out_height, out_width, grid,
    axis_h, axis_w, code_width,
    TAP: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the result: the source pixel of each code or, without a source, its index h * width + w.

    If the position does not read this pixel, the value is 0, and the index is any index of the image.
    """
    n, c, col, first, steps = program_columns(grid, out_height, out_width, INDEX, TILE)
    codes, codes_h, codes_w = plane_at(codes, codes_strides, n, c)
    result, y_h, y_w = plane_at(result, result_strides, n, c)
    codes, result = codes + col * codes_w, result + col * y_w
    if source is not None:
        source, x_h, x_w = plane_at(source, source_strides, n, c)
    for step in range(steps):
        row = first + step
        code = tl.load(codes + row * codes_h)
        if code.dtype == tl.int64:  # indices from the caller, perhaps invalid
            exists = inside(code, tl.full((), height, tl.int64) * width)
            tl.device_assert(exists, "max_unpool2d: found an invalid max index")
            code = tl.where(exists, code, -1).to(INDEX)
        else:
            code = code.to(tl.int32)
        h, reads_h, _weight = function_of(TAP)(code // code_width, row, axis_h, tl.float32)
        w, reads_w, _weight = function_of(TAP)(code % code_width, col, axis_w, tl.float32)
        if source is not None:
            value = tl.load(source + h * x_h + w * x_w, mask=reads_h & reads_w, other=0)
        else:
            h, w = tl.minimum(tl.maximum(h, 0), height - 1).to(tl.int64), tl.minimum(tl.maximum(w, 0), width - 1)
            value = h * width + w
        tl.store(result + row * y_h, value)


def gather2d(
    source: Tensor, result: Tensor, axes: Sequence[tuple[Any, ...]], taps: Ints, tap: Callable[..., Any],
    count: Callable[..., Any] | None = None, mode: str = "add", scales: Sequence[float] = (0.0, 0.0),
    channels_last: bool | None = None, codes: Tensor | None = None, code_width: int = 0,
) -> None:  # fmt: skip
    """Fill a result (N, C, P, Q) from a source (N, C, H, W), any strides.

    Args:
        axes, scales: the argument `axis` of TAP for rows and for columns: a tuple of numbers, followed by a float64 scale.
        taps: largest number of source pixels of a position, along each axis.
        tap, count: TAP and COUNT.
        mode: "add", "max" or "won", as above. "add in order" adds pixel after pixel instead of row after row, with weights 1,
            as torch does for means. "copy" copies one pixel, of any dtype.
        channels_last: the order of the result; by default the order of its strides.
        codes: output of "max", with the shape of the result; input of "won", with the shape of the source.
        code_width: J, the number of taps along a row.
    """
    taps_h, taps_w = taps
    tensors = source, codes if codes is not None else source, result
    room, lanes = (1024, 256) if codes is not None else (2048, 1024 if taps_w <= 2 else 512)
    programs, grid, tile, strides = plan_columns(result, tensors, channels_last, room, lanes)
    launch(
        _gather2d_kernel, programs, source, codes, result,
        *strides,
        *result.shape[2:], grid,
        *axes, *map(float, scales), taps_h, taps_w, code_width,
        TAP=name_of(tap), COUNT=name_of(count) if count else None, MODE=mode,
        UNROLLED=taps_w if taps_w <= MAX_UNROLLED else 0, START=lowest(source.dtype) if mode == "max" else 0,
        ACCUMULATOR=accumulator(source.dtype, whole=mode in ("max", "add in order")),
        INDEX=wide_index_type(axes, *tensors), TILE=tile, device=source.device,
    )  # fmt: skip


def pick2d(
    source: Tensor | None, codes: Tensor, result: Tensor, axes: Sequence[tuple[Any, ...]], size: Ints,
    tap: Callable[..., Any], code_width: int, channels_last: bool | None = None,
) -> None:  # fmt: skip
    """Fill a result with the pixel of a source (N, C, H, W) for each of `codes` (N, C, P, Q), or with its index.

    Args:
        axes, tap, code_width, channels_last: as in gather2d.
        codes: if int64, indices h * W + w, which the kernel checks.
        size: (H, W).
    """
    given = source if source is not None else result
    programs, grid, tile, strides = plan_columns(result, (given, codes, result), channels_last)
    launch(
        _pick2d_kernel, programs, source, codes, result,
        *strides,
        *size, *result.shape[2:], grid,
        *axes, code_width,
        TAP=name_of(tap), INDEX=wide_index_type(axes, given, codes, result), TILE=tile, device=result.device,
        asserts=codes.dtype == torch.int64,
    )  # fmt: skip
