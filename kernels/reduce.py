"""Sums in a fixed order: partial sums of a split reduction, sums of channels, means of planes.

    channel_sum   db[c] = sum_{n, h, w} x[n, c, h, w]

A long reduction is split so that its programs fill the GPU. Each program sums one split, in the accumulator's precision. A
second kernel adds the partial sums in their order. There are no atomics, so the same inputs give the same bits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import fill
from .device.epilogue import NO_EPILOGUE, Epilogue, activate_channels
from .device.planes import (
    PlaneTile,
    pixel_offset,
    plan_planes,
    plane_room,
    plane_start,
    program_pixels,
    program_planes,
    tile_pixels,
)
from .device.precision import accumulator, divide, widen
from .device.walk import (
    by_channel,
    load_tiles,
    plan_walk,
    program_channels,
    program_rows,
    sum_rows,
    tile_columns,
    tile_start,
)
from .runtime.allocate import empty
from .runtime.launch import launch
from .runtime.layout import index_type, is_channels_last
from .runtime.op import op
from .runtime.settings import settings
from .runtime.tuning import elementwise_block
from .runtime.vmap import MergedAxes


@triton.jit
def _sum_partials_kernel(
    partials, slopes, slope_stride, total, kept,
    elements, splits, count, channels,
    ACTIVATION: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of the total: add SPLITS splits per iteration. If `count` is given, divide the sum by it."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.full((SPLITS, BLOCK), 0.0, partials.dtype.element_ty)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS).to(INDEX)
        at = (split * elements)[:, None] + element[None, :]
        acc += tl.load(partials + at, mask=(split < splits)[:, None] & (element < elements)[None, :], other=0.0)
    value = sum_rows(acc)
    if count is not None:
        value = divide(value, tl.full((), count, value.dtype))
    if kept is not None:
        tl.store(kept + element, value.to(kept.dtype.element_ty), mask=element < elements)
    value = activate_channels(value, slopes, slope_stride, element % channels, element < elements, ACTIVATION)
    tl.store(total + element, value.to(total.dtype.element_ty), mask=element < elements)


@triton.jit
def _channel_sum_kernel(
    x, partials, x_strides, grid, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Partial sums of a tile's channels over one split of the rows."""
    column, _, _ = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    x = tile_start(x, column, grid, x_strides, TILE)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for row in range(first, last, TILE.rows * TILE.ahead):
        values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        for i in tl.static_range(len(values)):
            acc += widen(values[i]).to(ACCUMULATOR)
    c, exists, partial, pixels = program_channels(grid, INDEX, TILE)
    total = sum_rows(by_channel(acc, pixels, grid, TILE)).to(partials.dtype.element_ty)
    tl.store(partials + partial * grid.channels + c, total, mask=exists)


@triton.jit
def _plane_mean_kernel(
    x, partials, x_strides, grid, count, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Partial sums of a tile's planes over one split of their pixels. If `count` is given, they are divided by it."""
    plane, exists = program_planes(grid, INDEX, TILE)
    split, first, last = program_pixels(grid, INDEX, TILE)
    x = plane_start(x, plane, grid, x_strides, TILE)
    acc = tl.full((TILE.planes, TILE.pixels), 0.0, ACCUMULATOR)
    for start in tl.range(first, last, TILE.pixels, loop_unroll_factor=2):
        pixel, mask = tile_pixels(start, exists, last, INDEX, TILE)
        value = tl.load(x + pixel_offset(pixel, grid, x_strides), mask=mask, other=0.0)
        acc += widen(value).to(ACCUMULATOR)
    total = tl.sum(acc, axis=1, keep_dims=True)
    if count is not None:
        total = divide(total, tl.full((), count, ACCUMULATOR))
    tl.store(partials + split * grid.planes + plane, total.to(partials.dtype.element_ty), mask=exists)


@triton.jit
def _small_plane_mean_kernel(x, y, planes, pixels, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr):
    """Means of adjacent planes: load them as one contiguous range, then gather it into a block of (pixels, planes)."""
    plane = tl.program_id(0).to(INDEX) * TILE.planes + tl.arange(0, TILE.planes)
    lane = tl.arange(0, TILE.planes * TILE.pixels)
    span = tl.full((), TILE.planes, INDEX) * pixels
    at = tl.program_id(0) * span + lane
    value = tl.load(x + at, mask=(lane < span) & (at < tl.full((), planes, INDEX) * pixels), other=0.0)
    row, column = tl.arange(0, TILE.pixels)[:, None], tl.arange(0, TILE.planes)[None, :]
    lanes = tl.reshape(column * pixels + row, (TILE.planes * TILE.pixels,))
    value = tl.reshape(tl.gather(widen(value).to(ACCUMULATOR), lanes, 0), (TILE.pixels, TILE.planes))
    total = sum_rows(tl.where(row < pixels, value, 0.0))
    mean = divide(total, tl.full((), pixels, ACCUMULATOR))
    tl.store(y + plane, mean.to(y.dtype.element_ty), mask=plane < planes)


def partials_of(total: Tensor, splits: int) -> Tensor:
    """Uninitialised partial sums, one row per split. With a single split they are the total itself."""
    if splits == 1:
        return total
    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32
    return empty(total, (splits, total.numel()), dtype=dtype)


def sum_partials(partials: Tensor, total: Tensor, epilogue: Epilogue = NO_EPILOGUE, count: int | None = None) -> Tensor:
    """Fill a dense `total` with the sum of its partial sums, from `partials_of`, divided by `count`.

    With a single split `partials` is the total, and `epilogue` and `count` have no effect.

    Args:
        epilogue: without scale and bias; the channels are the last axis of the total.
    """
    if partials is not total:
        # A block has at least 16 elements, contiguous in each split.
        room = elementwise_block(partials.numel())
        at_once = min(triton.next_power_of_2(partials.shape[0]), max(1, room // 16))
        block = room // at_once
        launch(
            _sum_partials_kernel, triton.cdiv(total.numel(), block), partials, *epilogue.operands[2:], total, epilogue.kept,
            total.numel(), partials.shape[0], count, total.shape[-1],
            ACTIVATION=epilogue.constant, INDEX=index_type(partials), BLOCK=block, SPLITS=at_once, device=total.device,
        )  # fmt: skip
    return total


def _empty_channel_sum(x: Tensor) -> Tensor:
    return empty(x, (x.shape[1],))


@op(fake=_empty_channel_sum, vmap=(MergedAxes((1,), (0,)),))
def channel_sum(x: Tensor) -> Tensor:
    """The sum of each channel: the gradient of a bias.

    Args:
        x: (N, C, H, W), any strides.

    Returns:
        (C), of the dtype of `x`.
    """
    total = _empty_channel_sum(x)
    if x.numel() == 0:
        return fill(total, 0.0)
    plan = plan_walk(x, sums=True, ahead=4)
    partials = partials_of(total, plan.partials)
    launch(
        _channel_sum_kernel, plan.programs, x, partials,
        *plan.strides, plan.grid, **plan.constants,
    )  # fmt: skip
    return sum_partials(partials, total)


def plane_mean(x: Tensor) -> Tensor:
    """The mean of each plane, also known as global average pooling.

    Args:
        x: (N, C, H, W), any strides.

    Returns:
        (N, C, 1, 1), channels_last if `x` is; NaN without pixels.
    """
    y = empty(x, (*x.shape[:2], 1, 1), is_channels_last(x))
    if x.numel() == 0:
        return fill(y, math.nan)
    pixels, room = x.shape[2] * x.shape[3], plane_room(x)
    # Small contiguous planes: a program loads several as one range, and no plane is split.
    if x.is_contiguous() and pixels <= room // 8:
        lanes = triton.next_power_of_2(pixels)
        tile = PlaneTile(min(triton.next_power_of_2(y.numel()), 4 * room // lanes), lanes)
        launch(
            _small_plane_mean_kernel, triton.cdiv(y.numel(), tile.planes), x, y, y.numel(), pixels,
            ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, y), TILE=tile, device=x.device,
        )  # fmt: skip
        return y
    plan = plan_planes(x)
    partials = partials_of(y, plan.splits)
    launch(
        _plane_mean_kernel, plan.programs, x, partials, *plan.strides, plan.grid, pixels if plan.splits == 1 else None,
        warps=1 if plan.programs >= 4 * settings.wanted_programs else 4, **plan.constants,
    )  # fmt: skip
    return sum_partials(partials, y, count=pixels)
