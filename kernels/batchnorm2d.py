"""Batch normalisation: normalise each channel to mean 0 and variance 1 over its m = N * H * W pixels, then scale and shift it.

    forward      y = f(z)                                    with z = w * x' + b + residual; residual and activation f are
                                                             optional; x' = (x - mean) * s, s = 1 / sqrt(var + eps)
                 y = f(w * x' + b) + residual                if the residual is added `after` the activation
    sums         dw[c] = sum dz * x'                         db[c] = sum dz
    backward     dx = w * s * (dz - db / m - x' * dw / m)    if mean and var are the statistics of x
                 dx = w * s * dz                             if they are fixed
    fold         scale = w * s                               for a convolution that includes a batch normalisation by fixed
                 shift = (bias - mean) * scale + b           statistics; `bias` is the convolution's own

statistics2d.py computes the mean and the variance. If several processes share a batch, m, dw and db are totals over all of
them. Without an activation, dz is dy. With one, dz is dy * f'(z), from y or from z, which is computed again from x:
`activation_sums` also returns dz, for `backward` and as the gradient of the residual.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import dense, dense_or_one, fill
from .device.activations import activate, activation_gradient, constant_of, kept_from, load_slopes, stride_of
from .device.function import device_function
from .device.precision import accumulator, divide, narrow, widen
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
    x, mean, var, w, b, residual, slopes, y,
    x_strides, y_strides, residual_strides,
    slope_stride, grid, eps: tl.float64,
    ACTIVATION: tl.constexpr, AFTER: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """y in one tile of columns and one split of the rows."""
    column, exists, c = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    center = tl.load(mean + c).to(ACCUMULATOR)
    scale = _scale(var, w, c, None, eps, ACCUMULATOR)
    shift = 0.0
    if b is not None:
        shift = tl.load(b + c).to(ACCUMULATOR)
    slope = load_slopes(slopes, slope_stride, c, None, ACCUMULATOR)
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
            if AFTER:
                value = activate(value, slope, ACTIVATION)
            if residual is not None:
                value += widen(residuals[i]).to(ACCUMULATOR)
            if not AFTER:
                value = activate(value, slope, ACTIVATION)
            at = row + i * TILE.rows
            value = value.to(y.dtype.element_ty)
            tl.store(y + row_offset(at, grid, y_strides, INDEX, TILE), value, mask=exists & rows_exist(at, last, TILE))


@triton.jit
def _batchnorm2d_sums_kernel(
    x, dy, y, residual, mean, var, w, b, slopes, partials, dz,
    x_strides, dy_strides, y_strides, dz_strides, residual_strides,
    slope_stride, grid, eps: tl.float64,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Partial dw and db of a tile's channels over one split of the rows; with slopes, also of PReLU's weight.

    With an activation, also dz: from y if it is given, else from z.
    """
    # What depends on the channel, before the loop.
    column, exists, c = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    center = tl.load(mean + c).to(ACCUMULATOR)
    x, dy = tile_start(x, column, grid, x_strides, TILE), tile_start(dy, column, grid, dy_strides, TILE)
    if y is not None:
        y = tile_start(y, column, grid, y_strides, TILE)
    if dz is not None:
        dz = tile_start(dz, column, grid, dz_strides, TILE)
        slope = load_slopes(slopes, slope_stride, c, None, ACCUMULATOR)
        if y is None:
            scale, shift = _scale(var, w, c, None, eps, ACCUMULATOR), 0.0
            if b is not None:
                shift = tl.load(b + c).to(ACCUMULATOR)
        if residual is not None:
            residual = tile_start(residual, column, grid, residual_strides, TILE)
    below = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    total = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    moment = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for row in range(first, last, TILE.rows * TILE.ahead):
        values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        upstreams = load_tiles(dy, row, last, grid, dy_strides, INDEX, TILE)
        if y is not None:
            results = load_tiles(y, row, last, grid, y_strides, INDEX, TILE)
        if residual is not None:
            residuals = load_tiles(residual, row, last, grid, residual_strides, INDEX, TILE)
        for i in tl.static_range(len(values)):
            gradient = widen(upstreams[i]).to(ACCUMULATOR)
            deviation = widen(values[i]).to(ACCUMULATOR) - center
            if dz is not None:
                if y is not None:
                    kept = widen(results[i]).to(ACCUMULATOR)
                else:
                    kept = deviation * scale + shift
                    if residual is not None:
                        kept += widen(residuals[i]).to(ACCUMULATOR)
                    kept = kept_from(kept, slope, ACTIVATION)
                if slopes is not None:
                    below += tl.where(kept > 0, 0.0, gradient * kept)
                # Sum the rounded dz, which the next kernel reads.
                rounded = narrow(activation_gradient(gradient, kept, slope, ACTIVATION), dz.dtype.element_ty)
                at = row + i * TILE.rows
                tl.store(dz + row_offset(at, grid, dz_strides, INDEX, TILE), rounded, mask=exists & rows_exist(at, last, TILE))
                gradient = widen(rounded).to(ACCUMULATOR)
            total += gradient
            moment += gradient * deviation
    # Store: the sums of a program are two or three rows of channels.
    c, exists, partial, pixels = program_channels(grid, INDEX, TILE)
    dw = sum_rows(by_channel(moment, pixels, grid, TILE)) * _scale(var, None, c, exists, eps, ACCUMULATOR)
    ROWS: tl.constexpr = 2 if slopes is None else 3
    at = partial * ROWS * grid.channels + c
    tl.store(partials + at, dw, mask=exists)
    tl.store(partials + at + grid.channels, sum_rows(by_channel(total, pixels, grid, TILE)), mask=exists)
    if slopes is not None:
        tl.store(partials + at + 2 * grid.channels, sum_rows(by_channel(below, pixels, grid, TILE)), mask=exists)


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


def _like(x: Tensor, *_: Any, activation: str = "") -> Tensor:
    # As in torch: a contiguous x gives a contiguous result, for any strides of axes of one element. So does an activation, if
    # both orders are the same.
    dense = x.is_contiguous(memory_format=torch.channels_last) and not _is_sequence(x)
    channels_last = not x.is_contiguous() and (dense or is_channels_last(x))
    return empty(x, x.shape, channels_last and not (activation and has_one_order(x.shape)))


def _empty_forward(
    x: Tensor, mean: Any, var: Any, w: Any, b: Any, residual: Any, slopes: Any, activation: str, eps: float, after: bool
) -> Tensor:
    return _like(x, activation=activation)


def _empty_folded(mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    scale = empty(mean, mean.shape, dtype=torch.float64 if mean.dtype == torch.float64 else torch.float32)
    return scale, empty_like(scale)


def _empty_activation_sums(
    x: Tensor, dy: Tensor, y: Any, residual: Any, mean: Any, var: Any, w: Any, b: Any, slopes: Any, activation: str, eps: float
) -> tuple[Tensor, Tensor]:
    return _empty_sums(x, rows=2 if slopes is None else 3), _like(x, activation=activation)


def _empty_sums(x: Tensor, *_: Any, rows: int = 2) -> Tensor:
    return empty(x, (rows, x.shape[1]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


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


@op(fake=_empty_forward, vmap=(MergedAxes((1, 0, 0, 0, 0, 1, 0), (1,)),))
def batchnorm2d_forward(
    x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, residual: Tensor | None, slopes: Tensor | None,
    activation: str, eps: float, after: bool,
) -> Tensor:  # fmt: skip
    """(x - mean) / sqrt(var + eps) * w + b + residual, or an activation of it.

    Args:
        x: (N, C, H, W), any strides.
        mean, var, w, b: (C), any floating dtype. `w` None is 1, `b` None is 0.
        residual: (N, C, H, W), any strides; None is 0.
        slopes: (C), any stride, for "prelu"; else None.
        activation: one of ACTIVATIONS with its parameters; empty for none.
        after: add the residual to the result of the activation, in place of its input.

    Returns:
        (N, C, H, W), of the dtype of `x`, in its memory format.
    """
    y, slopes = _like(x, activation=activation), dense_or_one(slopes)
    if x.numel() > 0:
        more = residual if residual is not None else x
        plan = plan_walk(x, y, more)
        launch(
            _batchnorm2d_forward_kernel, plan.programs, x, *map(dense, (mean, var, w, b)), residual, slopes, y,
            *plan.strides, stride_of(slopes), plan.grid, eps, ACTIVATION=constant_of(activation), AFTER=after, **plan.constants,
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
    return _sums(x, dy, None, None, mean, var, None, None, None, "", _empty_sums(x), None, eps)


@op(fake=_empty_activation_sums, vmap=(MergedAxes((1, 1, 1, 1, 0, 0, 0, 0, 0), (1, 1)),))
def batchnorm2d_activation_sums(
    x: Tensor, dy: Tensor, y: Tensor | None, residual: Tensor | None, mean: Tensor, var: Tensor, w: Tensor | None,
    b: Tensor | None, slopes: Tensor | None, activation: str, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """batchnorm2d_sums for a batch normalisation with an activation, in one pass.

    Args:
        x, dy: (N, C, H, W), any strides.
        y: the result of the activation, if its gradient needs it and it was kept; None: it is computed again from x.
        residual, mean, var, w, b, slopes, activation: as in batchnorm2d_forward.

    Returns:
        (2, C): dw and db, or with slopes (3, C): also their gradient; float32, or float64 for a float64 `x`.
        (N, C, H, W): the gradient of the activation's input, like the result of batchnorm2d_forward.
    """
    sums, dz = _empty_activation_sums(x, dy, y, residual, mean, var, w, b, slopes, activation, eps)
    residual = None if y is not None else residual
    return _sums(x, dy, y, residual, mean, var, w, b, slopes, activation, sums, dz, eps), dz


def _sums(
    x: Tensor, dy: Tensor, y: Tensor | None, residual: Tensor | None, mean: Tensor, var: Tensor, w: Tensor | None,
    b: Tensor | None, slopes: Tensor | None, activation: str, sums: Tensor, dz: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """Fill and return the sums. With an activation, also fill `dz`."""
    if x.numel() == 0:
        return fill(sums, 0.0)
    slopes = dense_or_one(slopes)
    others = (tensor if tensor is not None else dy for tensor in (y, dz, residual))
    plan = plan_walk(x, dy, *others, sums=True, ahead=2 if dz is None else 1)
    partials = partials_of(sums, plan.partials)
    launch(
        _batchnorm2d_sums_kernel, plan.programs, x, dy, y, residual, *map(dense, (mean, var, w, b)), slopes, partials, dz,
        *plan.strides, stride_of(slopes), plan.grid, eps, ACTIVATION=constant_of(activation), **plan.constants,
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
        dy: the same; with an activation, the second result of batchnorm2d_activation_sums.
        mean, var, w: (C). `w` None is 1.
        sums: the result of batchnorm2d_sums, or of batchnorm2d_activation_sums, if `mean` and `var` are the statistics of `x`;
            None if they are fixed.
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
