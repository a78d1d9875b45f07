"""Activations of any tensor, elementwise: ReLU, SiLU, GELU and the others of device/activations.py.

    forward    y = f(x)
    backward   dx = dy * f'(x), from x or from y
    PReLU      y = x, but slope[c] * x where x < 0          dslope[c] = sum of dy * x over the images and pixels with x < 0

The passes traverse memory in the order of their first tensor, for any strides. In this order a dense tensor has a single axis.
PReLU has a weight per channel, so it traverses images as batch normalisation does (device/walk.py).

Operators take an activation as text, its name and its parameters: "leaky_relu 0.01". Parameters are compile-time constants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import dense_or_one, fill
from .device.activations import activate, activation_gradient, constant_of
from .device.indexing import offset_of
from .device.precision import accumulator, narrow, widen
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
from .runtime.allocate import empty, empty_elementwise, empty_like
from .runtime.launch import launch
from .runtime.layout import index_type, memory_order
from .runtime.op import op
from .runtime.tuning import elementwise_block
from .runtime.vmap import ELEMENTWISE, MergedAxes


@triton.jit
def _activation_kernel(
    x, dy, result,
    sizes, x_strides, dy_strides, strides,
    elements,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of the result. Without `dy` it is y. With `dy` it is dx, and `x` is the tensor kept for backward."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    value = widen(tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)).to(ACCUMULATOR)
    if dy is None:
        value = activate(value, 0.0, ACTIVATION)
    else:
        upstream = tl.load(dy + offset_of(element, sizes, dy_strides), mask=element < elements)
        value = activation_gradient(widen(upstream).to(ACCUMULATOR), value, 0.0, ACTIVATION)
    tl.store(result + offset_of(element, sizes, strides), narrow(value, result.dtype.element_ty), mask=element < elements)


@triton.jit
def _prelu_kernel(
    x, dy, slopes, result, partials,
    x_strides, dy_strides, result_strides,
    slope_stride, grid,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """PReLU in one tile of columns and one split of the rows. With `dy`, the gradients: dx, and partial sums of dslope."""
    column, exists, c = tile_columns(grid, INDEX, TILE)
    first, last = program_rows(grid, INDEX)
    slope = widen(tl.load(slopes + c * slope_stride)).to(ACCUMULATOR)
    x, result = tile_start(x, column, grid, x_strides, TILE), tile_start(result, column, grid, result_strides, TILE)
    if dy is not None:
        dy = tile_start(dy, column, grid, dy_strides, TILE)
    total = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for row in range(first, last, TILE.rows * TILE.ahead):
        values = load_tiles(x, row, last, grid, x_strides, INDEX, TILE)
        if dy is not None:
            upstreams = load_tiles(dy, row, last, grid, dy_strides, INDEX, TILE)
        for i in tl.static_range(len(values)):
            value = widen(values[i]).to(ACCUMULATOR)
            if dy is None:
                value = activate(value, slope, ACTIVATION)
            else:
                upstream = widen(upstreams[i]).to(ACCUMULATOR)
                total += tl.where(value > 0, 0.0, value * upstream)
                value = activation_gradient(upstream, value, slope, ACTIVATION)
            at = row + i * TILE.rows
            value = narrow(value, result.dtype.element_ty)
            tl.store(
                result + row_offset(at, grid, result_strides, INDEX, TILE), value, mask=exists & rows_exist(at, last, TILE)
            )
    if partials is not None:
        c, exists, partial, pixels = program_channels(grid, INDEX, TILE)
        at = partial * grid.channels + c
        tl.store(partials + at, sum_rows(by_channel(total, pixels, grid, TILE)), mask=exists)


def _empty_forward(x: Tensor, activation: str) -> Tensor:
    return empty_elementwise(x)


def _empty_backward(dy: Tensor, kept: Tensor, activation: str) -> Tensor:
    return empty_like(kept)


def _nothing(x: Tensor, activation: str) -> None:
    return None


def _empty_prelu(x: Tensor, slopes: Tensor) -> Tensor:
    return empty_elementwise(x)


def _empty_prelu_backward(dy: Tensor, x: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    return empty_like(x), empty(slopes, slopes.shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


@op(fake=_empty_forward, vmap=ELEMENTWISE)
def activation_forward(x: Tensor, activation: str) -> Tensor:
    """An activation of each element.

    Args:
        x: any shape and strides; a floating dtype or, for relu and hardtanh, an integer dtype.
        activation: one of ACTIVATIONS without slopes, with its parameters.

    Returns:
        Like `x`, in its memory order.
    """
    y = _empty_forward(x, activation)
    _activation(x, None, y, activation)
    return y


@op(fake=_nothing, vmap=ELEMENTWISE, mutates=("x",))
def activation_(x: Tensor, activation: str) -> None:
    """An activation of each element, in place. The elements of `x` must not share memory."""
    _activation(x, None, x, activation)


@op(fake=_empty_backward, vmap=ELEMENTWISE)
def activation_backward(dy: Tensor, kept: Tensor, activation: str) -> Tensor:
    """Gradient of an activation with respect to its input.

    Args:
        dy: like `kept`, any strides.
        kept: the result of the activation if `keeps_output(activation)`, else its input.
    """
    dx = _empty_backward(dy, kept, activation)
    _activation(kept, dy, dx, activation)
    return dx


def _activation(x: Tensor, dy: Tensor | None, result: Tensor, activation: str) -> None:
    """Launch the kernel: the result is y or, if `dy` is given, dx."""
    sizes, (x_strides, dy_strides, strides) = memory_order(x, x if dy is None else dy, result)
    block = elementwise_block(x.numel())
    launch(
        _activation_kernel, triton.cdiv(x.numel(), block), x, dy, result, sizes, x_strides, dy_strides, strides, x.numel(),
        ACTIVATION=constant_of(activation), ACCUMULATOR=accumulator(x.dtype, whole=True),
        INDEX=index_type(x, x if dy is None else dy, result), BLOCK=block, device=x.device,
    )  # fmt: skip


@op(fake=_empty_prelu, vmap=(MergedAxes((0, None), (0,)), MergedAxes((1, 0), (1,))))
def prelu_forward(x: Tensor, slopes: Tensor) -> Tensor:
    """PReLU: x, but slopes[c] * x where x < 0.

    Args:
        x: (N, C, H, W), any strides.
        slopes: (C), any stride, 0 too.

    Returns:
        Like `x`, in its memory order.
    """
    y, slopes = _empty_prelu(x, slopes), dense_or_one(slopes)
    if x.numel() > 0:
        plan = plan_walk(x, x, y)
        launch(
            _prelu_kernel, plan.programs, x, None, slopes, y, None, *plan.strides, slopes.stride(0), plan.grid,
            ACTIVATION=constant_of("prelu"), **plan.constants,
        )  # fmt: skip
    return y


@op(fake=_empty_prelu_backward, vmap=(MergedAxes((1, 1, 0), (1, 0)),))
def prelu_backward(dy: Tensor, x: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of PReLU with respect to its input and to each slope.

    Args:
        dy, x: (N, C, H, W), any strides.
        slopes: (C), any stride, 0 too.

    Returns:
        dx like `x`; (C), float32, or float64 for a float64 `x`.
    """
    dx, total = _empty_prelu_backward(dy, x, slopes)
    if x.numel() == 0:
        return dx, fill(total, 0.0)
    plan, slopes = plan_walk(x, dy, dx, sums=True), dense_or_one(slopes)
    partials = partials_of(total, plan.partials)
    launch(
        _prelu_kernel, plan.programs, x, dy, slopes, dx, partials, *plan.strides, slopes.stride(0), plan.grid,
        ACTIVATION=constant_of("prelu"), **plan.constants,
    )  # fmt: skip
    return dx, sum_partials(partials, total)
