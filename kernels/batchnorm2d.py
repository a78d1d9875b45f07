"""Batch normalisation: each channel brought to mean 0 and variance 1 over its m = N * H * W pixels, then scaled and shifted.

    statistics   mean[c] = sum x[n, c, h, w] / m            var[c] = sum (x[n, c, h, w] - mean[c])^2 / m
    forward      y = w * z + b                              with z = (x - mean) * s, s = 1 / sqrt(var + eps)
    sums         dw[c] = sum dy * z                         db[c] = sum dy
    backward     dx = w * s * (dy - db / m - z * dw / m)    where mean and var are those of x
                 dx = w * s * dy                            where they are given numbers

A variance is never the difference of two large numbers. Each part of the pixels is summed as deviations from the mean of its
first tile. In a part T times as long as that tile, the square of the mean deviation is less than T times the variance, so
that subtracting it costs little. The parts, of m_i pixels each, are merged by

    mean = sum m_i * mean_i / m        var = sum m_i * (var_i + (mean_i - mean)^2) / m
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import cdiv
from trinn.kernels.launch import device_function, empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator
from trinn.kernels.reduce import partials_of, sum_partials
from trinn.kernels.tuning import elementwise_block
from trinn.kernels.walk import channels_of, offsets_of, part_of, pixels_before, pixels_of, walk


@triton.jit
def _statistics_kernel(
    x, means, variances,
    x_strides,
    sizes, parts, chunks_per_part,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mean and variance of a tile's channels over one part of the pixels."""
    channels = sizes[0]
    program = tl.program_id(0)
    part = (program % parts).to(INDEX)
    c = channels_of(program // parts, INDEX, TILE)
    first, last = part_of(part, chunks_per_part, sizes, TILE)

    at_outer, at_inner, exists = pixels_of(first, sizes, INDEX, TILE)
    mask = (c < channels)[:, None] & exists[None, :]
    value = tl.load(x + offsets_of(c, at_outer, at_inner, sizes, x_strides), mask=mask, other=0.0).to(ACCUMULATOR)
    before = pixels_before(first, sizes, TILE)
    origin = tl.sum(value, axis=1) / (pixels_before(first + 1, sizes, TILE) - before)
    origin = tl.where(tl.abs(origin) < float("inf"), origin, 0.0)  # the mean of an infinity is infinite, not inf - inf

    total = tl.full((TILE.channels, TILE.pixels), 0.0, ACCUMULATOR)
    squares = tl.full((TILE.channels, TILE.pixels), 0.0, ACCUMULATOR)
    for chunk in range(first, last):
        at_outer, at_inner, exists = pixels_of(chunk, sizes, INDEX, TILE)
        mask = (c < channels)[:, None] & exists[None, :]
        value = tl.load(x + offsets_of(c, at_outer, at_inner, sizes, x_strides), mask=mask, other=0.0).to(ACCUMULATOR)
        deviation = tl.where(mask, value - origin[:, None], 0.0)
        total += deviation
        squares += deviation * deviation
    count = pixels_before(last, sizes, TILE) - before
    shift = tl.sum(total, axis=1) / count
    variance = tl.sum(squares, axis=1) / count - shift * shift
    at = part * channels + c
    tl.store(means + at, origin + shift, mask=c < channels)
    tl.store(variances + at, tl.where(variance < 0, 0.0, variance), mask=c < channels)


@triton.jit
def _merge_kernel(
    means, variances, mean, var,
    sizes, pixels, parts, chunks_per_part,
    INDEX: tl.constexpr, TILE: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Mean and variance of BLOCK_C channels over all parts, of which there are at most PARTS."""
    channels = sizes[0]
    c = tl.program_id(0).to(INDEX) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.arange(0, PARTS).to(INDEX)
    mask = (part < parts)[:, None] & (c < channels)[None, :]
    at = (part * channels)[:, None] + c[None, :]
    part_mean = tl.load(means + at, mask=mask, other=0.0)
    part_var = tl.load(variances + at, mask=mask, other=0.0)
    first, last = part_of(part, chunks_per_part, sizes, TILE)
    count = pixels_before(last, sizes, TILE) - pixels_before(first, sizes, TILE)
    share = (count.to(part_mean.dtype) / pixels)[:, None]
    center = tl.sum(share * part_mean, axis=0)
    # The variance has the square of what is wrong with the mean, so what the sum has left over is added.
    center += tl.where(tl.abs(center) < float("inf"), tl.sum(share * (part_mean - center[None, :]), axis=0), 0.0)
    deviation = part_mean - center[None, :]
    tl.store(mean + c, center, mask=c < channels)
    tl.store(var + c, tl.sum(share * (part_var + deviation * deviation), axis=0), mask=c < channels)


@triton.jit
def _update_kernel(
    running_mean, running_var, mean, var,
    mean_stride, var_stride,
    channels, momentum: tl.float64, correction: tl.float64,
    INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK channels of the running statistics; `correction` makes the variance unbiased."""
    c = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    new_mean = tl.load(mean + c, mask=c < channels)
    new_var = tl.load(var + c, mask=c < channels) * tl.full((), correction, var.dtype.element_ty)
    old_mean = tl.load(running_mean + c * mean_stride, mask=c < channels).to(new_mean.dtype)
    old_var = tl.load(running_var + c * var_stride, mask=c < channels).to(new_var.dtype)
    step = tl.full((), momentum, new_mean.dtype)
    new_mean = step * new_mean + (1 - step) * old_mean
    new_var = step * new_var + (1 - step) * old_var
    tl.store(running_mean + c * mean_stride, new_mean.to(running_mean.dtype.element_ty), mask=c < channels)
    tl.store(running_var + c * var_stride, new_var.to(running_var.dtype.element_ty), mask=c < channels)


@device_function
def _inverse_deviation(var, c, channels, eps, ACCUMULATOR: tl.constexpr):
    """s of some channels."""
    return tl.rsqrt(tl.load(var + c, mask=c < channels, other=1.0).to(ACCUMULATOR) + tl.full((), eps, ACCUMULATOR))


@triton.jit
def _forward_kernel(
    x, mean, var, w, b, y,
    x_strides, y_strides,
    sizes, eps: tl.float64,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of y."""
    channels = sizes[0]
    tiles = cdiv(channels, TILE.channels)
    program = tl.program_id(0)
    c = channels_of(program % tiles, INDEX, TILE)
    at_outer, at_inner, exists = pixels_of((program // tiles).to(INDEX), sizes, INDEX, TILE)
    mask = (c < channels)[:, None] & exists[None, :]
    value = tl.load(x + offsets_of(c, at_outer, at_inner, sizes, x_strides), mask=mask, other=0.0).to(ACCUMULATOR)
    center = tl.load(mean + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    scale = _inverse_deviation(var, c, channels, eps, ACCUMULATOR)
    if w is not None:
        scale *= tl.load(w + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    value = (value - center[:, None]) * scale[:, None]
    if b is not None:
        value += tl.load(b + c, mask=c < channels, other=0.0).to(ACCUMULATOR)[:, None]
    tl.store(y + offsets_of(c, at_outer, at_inner, sizes, y_strides), value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _sums_kernel(
    x, dy, mean, var, partials,
    x_strides, dy_strides,
    sizes, parts, chunks_per_part, eps: tl.float64,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dw and db of a tile's channels over one part of the pixels."""
    channels = sizes[0]
    program = tl.program_id(0)
    part = (program % parts).to(INDEX)
    c = channels_of(program // parts, INDEX, TILE)
    first, last = part_of(part, chunks_per_part, sizes, TILE)
    center = tl.load(mean + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    total = tl.full((TILE.channels, TILE.pixels), 0.0, ACCUMULATOR)
    moment = tl.full((TILE.channels, TILE.pixels), 0.0, ACCUMULATOR)
    for chunk in range(first, last):
        at_outer, at_inner, exists = pixels_of(chunk, sizes, INDEX, TILE)
        mask = (c < channels)[:, None] & exists[None, :]
        value = tl.load(x + offsets_of(c, at_outer, at_inner, sizes, x_strides), mask=mask, other=0.0).to(ACCUMULATOR)
        upstream = tl.load(dy + offsets_of(c, at_outer, at_inner, sizes, dy_strides), mask=mask, other=0.0).to(ACCUMULATOR)
        total += upstream
        moment += upstream * (value - center[:, None])
    dw = tl.sum(moment, axis=1) * _inverse_deviation(var, c, channels, eps, ACCUMULATOR)
    at = part * 2 * channels + c
    tl.store(partials + at, dw, mask=c < channels)
    tl.store(partials + at + channels, tl.sum(total, axis=1), mask=c < channels)


@triton.jit
def _backward_kernel(
    x, dy, mean, var, w, sums, dx,
    x_strides, dy_strides, dx_strides,
    sizes, pixels, eps: tl.float64,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of dx; without sums, for given statistics."""
    channels = sizes[0]
    tiles = cdiv(channels, TILE.channels)
    program = tl.program_id(0)
    c = channels_of(program % tiles, INDEX, TILE)
    at_outer, at_inner, exists = pixels_of((program // tiles).to(INDEX), sizes, INDEX, TILE)
    mask = (c < channels)[:, None] & exists[None, :]
    value = tl.load(dy + offsets_of(c, at_outer, at_inner, sizes, dy_strides), mask=mask, other=0.0).to(ACCUMULATOR)
    scale = _inverse_deviation(var, c, channels, eps, ACCUMULATOR)
    if sums is not None:
        center = tl.load(mean + c, mask=c < channels, other=0.0)
        dw = tl.load(sums + c, mask=c < channels, other=0.0)
        db = tl.load(sums + channels + c, mask=c < channels, other=0.0)
        deviation = tl.load(x + offsets_of(c, at_outer, at_inner, sizes, x_strides), mask=mask, other=0.0).to(ACCUMULATOR)
        deviation -= center[:, None]
        value -= (db / pixels)[:, None] + deviation * (scale * dw / pixels)[:, None]
    if w is not None:
        scale *= tl.load(w + c, mask=c < channels, other=0.0).to(ACCUMULATOR)
    value *= scale[:, None]
    tl.store(dx + offsets_of(c, at_outer, at_inner, sizes, dx_strides), value.to(dx.dtype.element_ty), mask=mask)


def _like(x: Tensor, *_: Any) -> Tensor:
    return empty(x, x.shape, is_channels_last(x))


def _empty_sums(x: Tensor, *_: Any) -> Tensor:
    return empty(x, (2, x.shape[1]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _empty_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = empty(x, (x.shape[1],), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return mean, torch.empty_like(mean)


def _nothing(*_: Any) -> None:
    return None


@op(fake=_empty_statistics)
def batchnorm2d_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel.

    Args:
        x: (N, C, H, W), any strides.

    Returns:
        (C) and (C), float32, or float64 for a float64 `x`; zeros if there are no pixels.
    """
    mean, var = _empty_statistics(x)
    if x.numel() == 0:
        return mean.zero_(), var.zero_()
    path = walk(x)
    parts, chunks = path.parts()
    means, variances = partials_of(mean, parts), partials_of(var, parts)
    launch(
        _statistics_kernel, path.tiles * parts, x, means, variances,
        *path.strides,
        path.sizes, parts, chunks,
        ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x), TILE=path.tile, warps=8, device=x.device,
    )  # fmt: skip
    if parts > 1:
        most = triton.next_power_of_2(parts)
        block = max(1, min(16, 4096 // most))
        launch(
            _merge_kernel, triton.cdiv(x.shape[1], block), means, variances, mean, var,
            path.sizes, x.numel() // x.shape[1], parts, chunks,
            INDEX=index_type(x), TILE=path.tile, BLOCK_C=block, PARTS=most, device=x.device,
        )  # fmt: skip
    return mean, var


@op(fake=_nothing, mutates=("running_mean", "running_var"))
def batchnorm2d_update(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, pixels: int
) -> None:
    """Move running statistics by `momentum` towards those of a batch, the variance towards its unbiased estimate.

    Args:
        running_mean, running_var: (C), any floating dtype, written over.
        mean, var: what batchnorm2d_statistics returned.
        pixels: of how many pixels; more than one.
    """
    block = elementwise_block(mean.numel())
    launch(
        _update_kernel, triton.cdiv(mean.numel(), block), running_mean, running_var, mean, var,
        running_mean.stride(0), running_var.stride(0),
        mean.numel(), momentum, pixels / (pixels - 1),
        INDEX=index_type(running_mean, running_var), BLOCK=block, device=mean.device,
    )  # fmt: skip


@op(fake=_like)
def batchnorm2d_forward(x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * w + b.

    Args:
        x: (N, C, H, W), any strides.
        mean, var, w, b: (C), any floating dtype; without `w` and `b`, 1 and 0.

    Returns:
        (N, C, H, W), of the dtype of `x`, in its memory format.
    """
    y = _like(x)
    if x.numel() > 0:
        path = walk(x, y)
        launch(
            _forward_kernel, path.tiles * path.chunks, x, *_dense(mean, var, w, b), y,
            *path.strides,
            path.sizes, eps,
            ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, y), TILE=path.tile, warps=8, device=x.device,
        )  # fmt: skip
    return y


@op(fake=_empty_sums)
def batchnorm2d_sums(x: Tensor, dy: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Gradients of batch normalisation with respect to its weight and its bias.

    Args:
        x, dy: (N, C, H, W), any strides.
        mean, var: (C).

    Returns:
        (2, C): dw and db, float32, or float64 for a float64 `x`.
    """
    sums = _empty_sums(x)
    if x.numel() == 0:
        return sums.zero_()
    path = walk(x, dy)
    parts, chunks = path.parts()
    partials = partials_of(sums, parts)
    launch(
        _sums_kernel, path.tiles * parts, x, dy, *_dense(mean, var), partials,
        *path.strides,
        path.sizes, parts, chunks, eps,
        ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, dy), TILE=path.tile, warps=8, device=x.device,
    )  # fmt: skip
    return sum_partials(partials, sums)


@op(fake=_like)
def batchnorm2d_backward(
    x: Tensor, dy: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, sums: Tensor | None, eps: float
) -> Tensor:
    """Gradient of batch normalisation with respect to its input.

    Args:
        x, dy: (N, C, H, W), any strides.
        mean, var, w: (C); without `w`, 1.
        sums: what batchnorm2d_sums returned, if `mean` and `var` are those of `x`; None if they are given numbers.

    Returns:
        (N, C, H, W), of the dtype of `x`, in its memory format.
    """
    dx = _like(x)
    if x.numel() > 0:
        path = walk(x, dy, dx)
        launch(
            _backward_kernel, path.tiles * path.chunks, x, dy, *_dense(mean, var, w), sums, dx,
            *path.strides,
            path.sizes, x.numel() // x.shape[1], eps,
            ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, dy, dx), TILE=path.tile, warps=8, device=x.device,
        )  # fmt: skip
    return dx


def _dense(*vectors: Tensor | None) -> list[Tensor | None]:
    return [v.contiguous() if v is not None else None for v in vectors]
