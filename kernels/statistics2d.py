"""Mean and variance of each channel over its m = N * H * W pixels, and updates of the running statistics.

    mean[c] = sum x[n, c, h, w] / m        var[c] = sum (x[n, c, h, w] - mean[c])^2 / m

A variance is never the difference of two large numbers. A program loops over rows. Each element of its tile sums the deviations
of T values from the first value, the *origin*, and the squares of these deviations. Since the origin is one of the values, the
square of the mean deviation is less than T times the variance, and its subtraction from the mean square loses little precision.
Then the elements of a tile are merged, and finally the programs. With m_i pixels each:

    mean = sum m_i * mean_i / m        var = sum m_i * (var_i + (mean_i - mean)^2) / m
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import fill
from .device.function import device_function
from .device.indexing import cdiv
from .device.precision import divide, widen
from .device.walk import (
    by_channel,
    load_tiles,
    plan_walk,
    program_channels,
    program_rows,
    row_offset,
    rows_exist,
    sum_rows,
    tile_columns,
    tile_start,
)
from .runtime.allocate import empty, empty_like
from .runtime.launch import launch
from .runtime.layout import index_type
from .runtime.op import op
from .runtime.tuning import elementwise_block
from .runtime.vmap import MergedAxes

PartialStatistics = tuple[Tensor, Tensor, Tensor]  # means and variances (partials, C), numbers of pixels (partials)


@device_function
def _inverse(value):
    """1 / value."""
    return divide(tl.full(value.shape, 1.0, value.dtype), value)


@triton.jit
def _statistics2d_kernel(
    x, means, variances, counts, x_strides, grid, partials, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr
):
    """Partial mean and variance of a tile's channels over one split of the rows. If `counts` is given, also the pixels."""
    # Indices: columns are fixed, so that each element of the tile keeps sums of its own.
    column, _, _ = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    x = tile_start(x, column, grid, x_strides, TILE)
    # Origin: deviations from a value of the data cannot cancel much.
    origin = tl.load(x + row_offset(first, grid, x_strides, INDEX, TILE), mask=rows_exist(first, last, TILE), other=0.0)
    origin = widen(origin).to(ACCUMULATOR)
    origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)  # the mean of an infinity is infinite, not inf - inf
    # Loop: a single pass over x, because the memory sets the speed.
    total = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    squares = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for row in range(first, last, TILE.rows * TILE.ahead):
        values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        for i in tl.static_range(len(values)):
            deviation = widen(values[i]).to(ACCUMULATOR) - origin
            if not TILE.rows_fit:
                deviation = tl.where(rows_exist(row + i * TILE.rows, last, TILE), deviation, 0.0)
            total += deviation
            squares += deviation * deviation

    # Epilogue: merge the elements of each channel. Means are relative to the channel's first origin, so that they stay small.
    c, exists, partial, pixels = program_channels(grid, INDEX, TILE)
    place = tl.arange(0, TILE.rows * TILE.pixels)[:, None]
    count_of_tile = cdiv(last - first - place // TILE.pixels, TILE.rows).to(ACCUMULATOR)
    share, count = _inverse(tl.maximum(count_of_tile, 1.0)), ((last - first) * pixels).to(ACCUMULATOR)
    count_of_tile = tl.where(place % TILE.pixels < pixels, count_of_tile, 0.0)
    origin, total = by_channel(origin, pixels, grid, TILE), by_channel(total, pixels, grid, TILE)
    squares = by_channel(squares, pixels, grid, TILE) - total * (total * share)
    start = sum_rows(tl.where(place == 0, origin, 0.0))
    mean = origin - start[None, :] + total * share
    center = sum_rows(count_of_tile * mean) * _inverse(count)
    mean -= center[None, :]
    # The center may be far from the start: correct its rounding error.
    residual = sum_rows(count_of_tile * mean) * _inverse(count)
    variance = sum_rows(squares + count_of_tile * (mean * mean)) * _inverse(count) - residual * residual
    center += start
    # Store: the partials of a channel are contiguous, for the merge kernel to read.
    at = c * partials + partial
    tl.store(means + at, center + tl.where(tl.abs(center) < float("inf"), residual, 0.0), mask=exists)
    tl.store(variances + at, tl.where(variance < 0, 0.0, variance), mask=exists)
    if counts is not None:
        tl.store(counts + at, count, mask=c == 0)


@triton.jit
def _statistics2d_merge_kernel(
    means, variances, counts, mean, var,
    means_strides, variances_strides, counts_stride,
    channels, partials,
    INDEX: tl.constexpr, BLOCK_C: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of BLOCK_C channels over all partials, PARTIALS of them at a time."""
    c = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = tl.full((PARTIALS,), 0.0, counts.dtype.element_ty)
    for start in range(0, partials, PARTIALS):
        partial = start + tl.arange(0, PARTIALS).to(INDEX)
        pixels += tl.load(counts + partial * counts_stride, mask=partial < partials, other=0.0)
    pixels = tl.sum(pixels, axis=0)
    center = tl.full((BLOCK_C,), 0.0, mean.dtype.element_ty)
    # An error e of the mean adds e^2 to the variance. The second pass measures it and corrects both.
    for _ in tl.static_range(2):
        shifts = tl.full((PARTIALS, BLOCK_C), 0.0, mean.dtype.element_ty)
        squares = tl.full((PARTIALS, BLOCK_C), 0.0, mean.dtype.element_ty)
        for start in range(0, partials, PARTIALS):
            partial = start + tl.arange(0, PARTIALS).to(INDEX)
            mask = (partial < partials)[:, None] & (c < channels)[None, :]
            share = divide(tl.load(counts + partial * counts_stride, mask=partial < partials, other=0.0), pixels)[:, None]
            centers = tl.broadcast_to(center[None, :], (PARTIALS, BLOCK_C))  # masked partials deviate by 0
            at = (partial * means_strides[0])[:, None] + (c * means_strides[1])[None, :]
            deviation = tl.load(means + at, mask=mask, other=centers) - centers
            at = (partial * variances_strides[0])[:, None] + (c * variances_strides[1])[None, :]
            shifts += share * deviation
            squares += share * (tl.load(variances + at, mask=mask, other=0.0) + deviation * deviation)
        shift = tl.sum(shifts, axis=0)
        center += tl.where(tl.abs(center) < float("inf"), shift, 0.0)
    variance = tl.sum(squares, axis=0) - shift * shift
    tl.store(mean + c, center, mask=c < channels)
    tl.store(var + c, tl.where(variance < 0, 0.0, variance), mask=c < channels)


@triton.jit
def _running_statistics_kernel(
    running_mean, running_var, mean, var, pixels,
    mean_stride, var_stride,
    channels, momentum: tl.float64, correction: tl.float64,
    INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Running statistics of BLOCK channels. The unbiased variance is var * `correction`, or * m / (m - 1) with m = `pixels`."""
    c = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    if pixels is not None:
        count = tl.load(pixels)
        correction = divide(count, count - 1)
        channels = tl.where(count > 0, channels, 0)  # without pixels, all lanes are masked
    new_mean = tl.load(mean + c, mask=c < channels)
    new_var = tl.load(var + c, mask=c < channels) * tl.full((), correction, var.dtype.element_ty)
    old_mean = tl.load(running_mean + c * mean_stride, mask=c < channels).to(new_mean.dtype)
    old_var = tl.load(running_var + c * var_stride, mask=c < channels).to(new_var.dtype)
    step = tl.full((), momentum, new_mean.dtype)
    new_mean = step * new_mean + (1 - step) * old_mean
    new_var = step * new_var + (1 - step) * old_var
    tl.store(running_mean + c * mean_stride, new_mean.to(running_mean.dtype.element_ty), mask=c < channels)
    tl.store(running_var + c * var_stride, new_var.to(running_var.dtype.element_ty), mask=c < channels)


def _empty_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = empty(x, (x.shape[1],), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return mean, empty_like(mean)


def _empty_merged(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return empty(means, means.shape[1:]), empty(means, means.shape[1:])


def _nothing(*_: Any) -> None:
    return None


@op(fake=_empty_statistics, vmap=(MergedAxes((1,), (0, 0)),))
def batchnorm2d_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel.

    Args:
        x: (N, C, H, W), any strides.

    Returns:
        (C) and (C), float32, or float64 for a float64 `x`; zeros if there are no pixels.
    """
    mean, var = _empty_statistics(x)
    if x.numel() == 0:
        return fill(mean, 0.0), fill(var, 0.0)
    plan = plan_walk(x, sums=True, ahead=4)
    single = plan.partials == 1
    means, variances, counts = (mean[None], var[None], None) if single else empty_partial_statistics(mean, plan.partials)
    launch(
        _statistics2d_kernel, plan.programs, x, means, variances, counts,
        *plan.strides, plan.grid, plan.partials, **plan.constants,
    )  # fmt: skip
    return (mean, var) if counts is None else batchnorm2d_merge(means, variances, counts)


def empty_partial_statistics(mean: Tensor, partials: int) -> PartialStatistics:
    """Uninitialised arguments of batchnorm2d_merge. The partials of a channel are contiguous."""
    return empty(mean, (*mean.shape, partials)).T, empty(mean, (*mean.shape, partials)).T, empty(mean, (partials,))


@op(fake=_empty_merged, vmap=(MergedAxes((1, 1, None), (0, 0)),))
def batchnorm2d_merge(means: Tensor, variances: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the means and variances of P disjoint sets of pixels.

    Args:
        means, variances: (P, C), float32 or float64, any strides.
        counts: (P), the same dtype: the number of pixels of each set, 0 allowed.

    Returns:
        (C) and (C).
    """
    mean, var = _empty_merged(means, variances, counts)
    partials, channels = means.shape
    at_once = min(triton.next_power_of_2(partials), 1024 // means.dtype.itemsize)
    block = min(16, 4096 // at_once)
    launch(
        _statistics2d_merge_kernel, triton.cdiv(channels, block), means, variances, counts, mean, var,
        means.stride(), variances.stride(), counts.stride(0),
        channels, partials,
        INDEX=index_type(means, variances), BLOCK_C=block, PARTIALS=at_once, device=means.device,
    )  # fmt: skip
    return mean, var


@op(fake=_nothing, vmap=(), mutates=("running_mean", "running_var"))
def batchnorm2d_update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, count: int,
    pixels: Tensor | None = None,
) -> None:  # fmt: skip
    """Update running statistics with the statistics of a batch, by the weight `momentum`.

    The batch's variance is multiplied by count / (count - 1), so that it is unbiased.

    Args:
        running_mean, running_var: (C), any floating dtype, overwritten.
        mean, var: the result of batchnorm2d_statistics.
        count: the number of pixels, more than one.
        pixels: (1), float32 or float64: the number of pixels in place of `count`, if the host does not have it. If it is 0, the
            running statistics stay unchanged.
    """
    block = elementwise_block(mean.numel())
    launch(
        _running_statistics_kernel, triton.cdiv(mean.numel(), block), running_mean, running_var, mean, var, pixels,
        running_mean.stride(0), running_var.stride(0),
        mean.numel(), momentum, count / (count - 1) if pixels is None else 1.0,
        INDEX=index_type(running_mean, running_var), BLOCK=block, device=mean.device,
    )  # fmt: skip
