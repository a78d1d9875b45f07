"""Batch normalisation: normalise each channel to mean 0 and variance 1 over its m = N * H * W pixels, then scale and shift it.

    forward      y = z or relu(z)                            with z = w * x' + b + residual; the residual is optional
                                                             and x' = (x - mean) * s, s = 1 / sqrt(var + eps)
    sums         dw[c] = sum dz * x'                         db[c] = sum dz
    backward     dx = w * s * (dz - db / m - x' * dw / m)    if mean and var are the statistics of x
                 dx = w * s * dz                             if they are fixed
    fold         scale = w * s                               for a convolution that includes a batch normalisation by fixed
                 shift = (bias - mean) * scale + b           statistics; `bias` is the convolution's own

statistics2d.py computes the mean and the variance. If several processes share a batch, m, dw and db are totals over all of
them. Without a ReLU, dz is dy. With a ReLU, dz is dy where y is positive, else 0: `relu_sums` also returns it, for `backward`
and as the gradient of the residual.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import dense, fill
from .device.epilogue import rectify
from .device.function import device_function
from .device.precision import accumulator, divide, widen
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
from .reduce import partials_of, sum_partials
from .runtime.allocate import empty, empty_like
from .runtime.launch import launch
from .runtime.layout import has_one_order, index_type, is_channels_last
from .runtime.op import op
from .runtime.tuning import elementwise_block
from .runtime.vmap import FIRST_AXIS, MergedAxes


@device_function
def _scale(var, w, c, exists, eps, ACCUMULATOR: tl.constexpr):
    """w * s of some channels, or s if w is None."""
    scale = tl.rsqrt(tl.load(var + c, mask=exists).to(ACCUMULATOR) + tl.full((), eps, ACCUMULATOR))
    if w is not None:
        scale *= tl.load(w + c, mask=exists).to(ACCUMULATOR)
    return scale


@triton.jit
def _batchnorm2d_fold_kernel(
    mean, var, w, b, bias, scale, shift,
    channels, eps: tl.float64,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scale and shift of BLOCK channels; `bias` is the preceding convolution's."""
    c = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    factor = _scale(var, w, c, c < channels, eps, ACCUMULATOR)
    offset = -tl.load(mean + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    if bias is not None:
        offset += tl.load(bias + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    offset *= factor
    if b is not None:
        offset += tl.load(b + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    tl.store(scale + c, factor, mask=c < channels)
    tl.store(shift + c, offset, mask=c < channels)


@triton.jit
def _batchnorm2d_forward_kernel(
    x, mean, var, w, b, residual, y,
    x_strides, y_strides, residual_strides,
    grid, eps: tl.float64,
    RELU: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """y in one tile of columns and one split of the rows."""
    column, exists, c = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    center = tl.load(mean + c).to(ACCUMULATOR)
    scale = _scale(var, w, c, None, eps, ACCUMULATOR)
    if b is not None:
        shift = tl.load(b + c).to(ACCUMULATOR)
    x, y = tile_start(x, column, grid, x_strides, TILE), tile_start(y, column, grid, y_strides, TILE)
    if residual is not None:
        residual = tile_start(residual, column, grid, residual_strides, TILE)
    for row in range(first, last, TILE.rows * TILE.ahead):
        values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        if residual is not None:
            residuals = load_tiles(residual, row, last, grid, residual_strides, INDEX, TILE)
        for i in tl.static_range(len(values)):
            value = (widen(values[i]).to(ACCUMULATOR) - center) * scale
            if b is not None:
                value += shift
            if residual is not None:
                value += widen(residuals[i]).to(ACCUMULATOR)
            if RELU:
                value = rectify(value)
            at = row + i * TILE.rows
            value = value.to(y.dtype.element_ty)
            tl.store(y + row_offset(at, grid, y_strides, INDEX, TILE), value, mask=exists & rows_exist(at, last, TILE))


@triton.jit
def _batchnorm2d_sums_kernel(
    x, dy, y, mean, var, partials, dz,
    x_strides, dy_strides, y_strides, dz_strides,
    grid, eps: tl.float64,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Partial dw and db of a tile's channels over one split of the rows. With y, the result of a ReLU, also dz."""
    column, exists, c = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    center = tl.load(mean + c).to(ACCUMULATOR)
    x, dy = tile_start(x, column, grid, x_strides, TILE), tile_start(dy, column, grid, dy_strides, TILE)
    if y is not None:
        y, dz = tile_start(y, column, grid, y_strides, TILE), tile_start(dz, column, grid, dz_strides, TILE)
    total = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    moment = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for row in range(first, last, TILE.rows * TILE.ahead):
        values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        upstreams = load_tiles(dy, row, last, grid, dy_strides, INDEX, TILE)
        if y is not None:
            results = load_tiles(y, row, last, grid, y_strides, INDEX, TILE)
        for i in tl.static_range(len(values)):
            upstream = upstreams[i]
            if y is not None:
                upstream = tl.where(widen(results[i]) <= 0, tl.zeros_like(upstream), upstream)
                at = row + i * TILE.rows
                tl.store(dz + row_offset(at, grid, dz_strides, INDEX, TILE), upstream, mask=exists & rows_exist(at, last, TILE))
            gradient = widen(upstream).to(ACCUMULATOR)
            total += gradient
            moment += gradient * (widen(values[i]).to(ACCUMULATOR) - center)
    c, exists, partial, pixels = program_channels(grid, INDEX, TILE)
    dw = sum_rows(by_channel(moment, pixels, grid, TILE)) * _scale(var, None, c, exists, eps, ACCUMULATOR)
    at = partial * 2 * grid.channels + c
    tl.store(partials + at, dw, mask=exists)
    tl.store(partials + at + grid.channels, sum_rows(by_channel(total, pixels, grid, TILE)), mask=exists)


@triton.jit
def _batchnorm2d_backward_kernel(
    x, dy, mean, var, w, sums, pixels, dx,
    x_strides, dy_strides, dx_strides,
    grid, share: tl.float64, eps: tl.float64,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dx in one tile of columns and one split of the rows.

    Without `sums`, the statistics are fixed. With `sums`, dx = scale * (dz - level - (x - mean) * slope), where level = db / m
    and slope = s * dw / m. m is the value of `pixels` if given, else 1 / `share`.
    """
    column, exists, c = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    scale = _scale(var, w, c, None, eps, ACCUMULATOR)
    if sums is not None:
        share = tl.full((), share, ACCUMULATOR)
        if pixels is not None:
            share = divide(tl.full((), 1, ACCUMULATOR), tl.load(pixels))
        center = tl.load(mean + c).to(ACCUMULATOR)
        slope = _scale(var, None, c, None, eps, ACCUMULATOR) * tl.load(sums + c) * share
        level = tl.load(sums + grid.channels + c) * share
        x = tile_start(x, column, grid, x_strides, TILE)
    dy, dx = tile_start(dy, column, grid, dy_strides, TILE), tile_start(dx, column, grid, dx_strides, TILE)
    for row in range(first, last, TILE.rows * TILE.ahead):
        upstreams = load_tiles(dy, row, last, grid, dy_strides, INDEX, TILE)
        if sums is not None:
            values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        for i in tl.static_range(len(upstreams)):
            value = widen(upstreams[i]).to(ACCUMULATOR)
            if sums is not None:
                value -= level + (widen(values[i]).to(ACCUMULATOR) - center) * slope
            at = row + i * TILE.rows
            value = (value * scale).to(dx.dtype.element_ty)
            tl.store(dx + row_offset(at, grid, dx_strides, INDEX, TILE), value, mask=exists & rows_exist(at, last, TILE))


def _is_sequence(x: Tensor) -> bool:
    """Whether x is a 3-d tensor with an axis added at the end. torch has no channels_last for 3-d tensors."""
    return x.shape[3] == 1 and x.stride(3) == 1


def _like(x: Tensor, *_: Any, relu: bool = False) -> Tensor:
    # As in torch: a contiguous x gives a contiguous result, for any strides of axes of one element. So does a ReLU, if both
    # orders are the same.
    dense = x.is_contiguous(memory_format=torch.channels_last) and not _is_sequence(x)
    channels_last = not x.is_contiguous() and (dense or is_channels_last(x))
    return empty(x, x.shape, channels_last and not (relu and has_one_order(x.shape)))


def _empty_forward(x: Tensor, mean: Any, var: Any, w: Any, b: Any, residual: Any, relu: bool, eps: float) -> Tensor:
    return _like(x, relu=relu)


def _empty_folded(mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    scale = empty(mean, mean.shape, dtype=torch.float64 if mean.dtype == torch.float64 else torch.float32)
    return scale, empty_like(scale)


def _empty_relu_sums(x: Tensor, dy: Tensor, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty_sums(x), empty_like(y)


def _empty_sums(x: Tensor, *_: Any) -> Tensor:
    return empty(x, (2, x.shape[1]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@op(fake=_empty_folded, vmap=FIRST_AXIS)
def batchnorm2d_fold(
    mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch normalisation with fixed statistics, as a scale and a shift of the result of the preceding convolution.

        scale = w / sqrt(var + eps)        shift = (bias - mean) * scale + b

    Args:
        mean, var, w, b: (C), any floating dtype. `w` None is 1, `b` None is 0.
        bias: (C), of the preceding convolution; None is 0.

    Returns:
        (C) and (C), float32, or float64 for a float64 `mean`.
    """
    scale, shift = _empty_folded(mean)
    block = elementwise_block(mean.numel())
    launch(
        _batchnorm2d_fold_kernel, triton.cdiv(mean.numel(), block), *map(dense, (mean, var, w, b, bias)), scale, shift,
        mean.numel(), eps,
        ACCUMULATOR=accumulator(mean.dtype), INDEX=index_type(scale), BLOCK=block, device=mean.device,
    )  # fmt: skip
    return scale, shift


@op(fake=_empty_forward, vmap=(MergedAxes((1, 0, 0, 0, 0, 1), (1,)),))
def batchnorm2d_forward(
    x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, residual: Tensor | None, relu: bool, eps: float
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * w + b + residual, followed by a ReLU if `relu`.

    Args:
        x: (N, C, H, W), any strides.
        mean, var, w, b: (C), any floating dtype. `w` None is 1, `b` None is 0.
        residual: (N, C, H, W), any strides; None is 0.

    Returns:
        (N, C, H, W), of the dtype of `x`, in its memory format.
    """
    y = _like(x, relu=relu)
    if x.numel() > 0:
        more = residual if residual is not None else x
        plan = plan_walk(x, y, more)
        launch(
            _batchnorm2d_forward_kernel, plan.programs, x, *map(dense, (mean, var, w, b)), residual, y,
            *plan.strides, plan.grid, eps, RELU=relu, **plan.constants,
        )  # fmt: skip
    return y


@op(fake=_empty_sums, vmap=(MergedAxes((1, 1, 0, 0), (1,)),))
def batchnorm2d_sums(x: Tensor, dy: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Gradients of batch normalisation with respect to weight and bias.

    Args:
        x, dy: (N, C, H, W), any strides.
        mean, var: (C).

    Returns:
        (2, C): dw and db, float32, or float64 for a float64 `x`.
    """
    return _sums(x, dy, None, mean, var, None, eps)


@op(fake=_empty_relu_sums, vmap=(MergedAxes((1, 1, 1, 0, 0), (1, 1)),))
def batchnorm2d_relu_sums(x: Tensor, dy: Tensor, y: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """batchnorm2d_sums for a batch normalisation with ReLU, in one pass.

    Args:
        x, dy: (N, C, H, W), any strides.
        y: the result of batchnorm2d_forward with `relu`.
        mean, var: (C).

    Returns:
        (2, C): dw and db, float32, or float64 for a float64 `x`. And the gradient of the ReLU's input, like `y`.
    """
    dz = empty_like(y)
    return _sums(x, dy, y, mean, var, dz, eps), dz


def _sums(x: Tensor, dy: Tensor, y: Tensor | None, mean: Tensor, var: Tensor, dz: Tensor | None, eps: float) -> Tensor:
    """dw and db. If `y`, the result of a ReLU, is given, also fill `dz`."""
    sums = _empty_sums(x)
    if x.numel() == 0:
        return fill(sums, 0.0)
    y_and_dz = (y, dz) if y is not None and dz is not None else (dy, dy)
    plan = plan_walk(x, dy, *y_and_dz, sums=True, ahead=2 if dz is None else 1)
    partials = partials_of(sums, plan.partials)
    launch(
        _batchnorm2d_sums_kernel, plan.programs, x, dy, y, dense(mean), dense(var), partials, dz,
        *plan.strides, plan.grid, eps, **plan.constants,
    )  # fmt: skip
    return sum_partials(partials, sums)


@op(fake=_like, vmap=(MergedAxes((1, 1, 0, 0, 0, 1, None), (1,)),))
def batchnorm2d_backward(
    x: Tensor, dy: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, sums: Tensor | None, eps: float,
    pixels: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Gradient of batch normalisation with respect to its input.

    Args:
        x: (N, C, H, W), any strides.
        dy: the same; with a ReLU, the second result of batchnorm2d_relu_sums.
        mean, var, w: (C). `w` None is 1.
        sums: the result of batchnorm2d_sums if `mean` and `var` are the statistics of `x`; None if they are fixed.
        pixels: (1), same dtype as `sums`: the total number m of pixels, if `sums` is a total over several processes. None if
            `sums` covers `x` alone.

    Returns:
        (N, C, H, W), of the dtype of `x`, in its memory format.
    """
    dx = _like(x)
    if x.numel() > 0:
        plan = plan_walk(x, dy, dx)
        launch(
            _batchnorm2d_backward_kernel, plan.programs, x, dy, *map(dense, (mean, var, w)), sums, pixels, dx,
            *plan.strides, plan.grid, x.shape[1] / x.numel(), eps, **plan.constants,
        )  # fmt: skip
    return dx
