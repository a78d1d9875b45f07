"""Addition of two tensors, and scaling of channels, each with an optional activation f behind it.

    addition        y = f(x + other)               any shape
    channel scale   y = f(z), z = x * s[n, c] + residual[n, c, h, w]
                    dx = dz * s        ds[n, c] = sum over the plane of dz * x        dresidual = dz = dy * f'(z)

The scale of a channel of an image is that of squeeze-and-excitation; layer scale has the same one for all images. The residual
is optional. Backward computes z again from x.

An activation in front of the scale belongs to the operator before it. The mean of squeeze-and-excitation reads its result too,
so a scale that computes it would save no pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .copy import fill
from .device.activations import activate, activation_gradient, constant_of, kept_from
from .device.indexing import offset_of
from .device.planes import (
    pixel_offset,
    plan_planes,
    plane_start,
    program_pixels,
    program_planes,
    spread,
    sum_planes,
    tile_pixels,
    value_start,
)
from .device.precision import accumulator, narrow, widen
from .reduce import partials_of, sum_partials
from .runtime.allocate import empty, empty_elementwise, empty_like, widest
from .runtime.launch import launch
from .runtime.layout import index_type, memory_order
from .runtime.op import op
from .runtime.tuning import elementwise_block
from .runtime.vmap import ELEMENTWISE, FIRST_AXIS


@triton.jit
def _add_kernel(
    x, other, y,
    sizes, x_strides, other_strides, y_strides,
    elements,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of y = f(x + other)."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    value = widen(tl.load(x + offset_of(element, sizes, x_strides), mask=mask)).to(ACCUMULATOR)
    value += widen(tl.load(other + offset_of(element, sizes, other_strides), mask=mask)).to(ACCUMULATOR)
    value = narrow(activate(value, 0.0, ACTIVATION), y.dtype.element_ty)
    tl.store(y + offset_of(element, sizes, y_strides), value, mask=mask)


@triton.jit
def _channel_scale_kernel(
    x, scale, residual, y,
    x_strides, y_strides, residual_strides, scale_strides,
    grid,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """y in a tile of planes, over one split of their pixels."""
    plane, exists = program_planes(grid, INDEX, TILE)
    _, first, last = program_pixels(grid, INDEX, TILE)
    factor = tl.load(value_start(scale, plane, grid, scale_strides), mask=exists, other=0.0).to(ACCUMULATOR)
    factor = spread(factor, TILE)
    x, y = plane_start(x, plane, grid, x_strides, TILE), plane_start(y, plane, grid, y_strides, TILE)
    if residual is not None:
        residual = plane_start(residual, plane, grid, residual_strides, TILE)
    for start in tl.range(first, last, TILE.pixels, loop_unroll_factor=2):
        pixel, mask = tile_pixels(start, exists, last, INDEX, TILE)
        value = widen(tl.load(x + pixel_offset(pixel, grid, x_strides), mask=mask)).to(ACCUMULATOR) * factor
        if residual is not None:
            value += widen(tl.load(residual + pixel_offset(pixel, grid, residual_strides), mask=mask)).to(ACCUMULATOR)
        value = narrow(activate(value, 0.0, ACTIVATION), y.dtype.element_ty)
        tl.store(y + pixel_offset(pixel, grid, y_strides), value, mask=mask)


@triton.jit
def _channel_scale_backward_kernel(
    x, dy, scale, residual, dx, dz, partials,
    x_strides, dy_strides, dx_strides, dz_strides, residual_strides, scale_strides,
    grid,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dx, and partial sums of ds, in a tile of planes, over one split of their pixels. With an activation, also dz."""
    plane, exists = program_planes(grid, INDEX, TILE)
    split, first, last = program_pixels(grid, INDEX, TILE)
    factor = tl.load(value_start(scale, plane, grid, scale_strides), mask=exists, other=0.0).to(ACCUMULATOR)
    factor = spread(factor, TILE)
    x, dy = plane_start(x, plane, grid, x_strides, TILE), plane_start(dy, plane, grid, dy_strides, TILE)
    dx = plane_start(dx, plane, grid, dx_strides, TILE)
    if dz is not None:
        dz = plane_start(dz, plane, grid, dz_strides, TILE)
    if residual is not None:
        residual = plane_start(residual, plane, grid, residual_strides, TILE)
    total = tl.full((TILE.rows, TILE.pixels), 0.0, ACCUMULATOR)
    for start in tl.range(first, last, TILE.pixels, loop_unroll_factor=2):
        pixel, mask = tile_pixels(start, exists, last, INDEX, TILE)
        value = widen(tl.load(x + pixel_offset(pixel, grid, x_strides), mask=mask, other=0.0)).to(ACCUMULATOR)
        gradient = widen(tl.load(dy + pixel_offset(pixel, grid, dy_strides), mask=mask, other=0.0)).to(ACCUMULATOR)
        if dz is not None:
            z = value * factor
            if residual is not None:
                more = tl.load(residual + pixel_offset(pixel, grid, residual_strides), mask=mask, other=0.0)
                z += widen(more).to(ACCUMULATOR)
            gradient = activation_gradient(gradient, kept_from(z, 0.0, ACTIVATION), 0.0, ACTIVATION)
            gradient = tl.where(mask, gradient, 0.0)  # with an infinite factor, z is NaN where no pixel is
            tl.store(dz + pixel_offset(pixel, grid, dz_strides), narrow(gradient, dz.dtype.element_ty), mask=mask)
        total += gradient * value
        tl.store(dx + pixel_offset(pixel, grid, dx_strides), narrow(gradient * factor, dx.dtype.element_ty), mask=mask)
    tl.store(partials + split * grid.planes + plane, sum_planes(total, TILE), mask=exists)


def _empty_add(x: Tensor, other: Tensor, activation: str) -> Tensor:
    return empty_elementwise(x, other)


def _nothing(x: Tensor, other: Tensor) -> None:
    return None


def _empty_scaled(x: Tensor, scale: Tensor, residual: Tensor | None, activation: str, axis: int) -> Tensor:
    along = [n if a in (0, axis) else 1 for a, n in enumerate(x.shape)]
    operands = x, scale.view(along).expand(x.shape), *(() if residual is None else (residual,))
    return empty_elementwise(*operands)


def _empty_scale_backward(x: Tensor, dy: Tensor, scale: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if torch.float64 in (x.dtype, scale.dtype) else torch.float32
    return empty_like(x), empty(scale, scale.shape, dtype=dtype)


def _empty_scale_activation_backward(
    x: Tensor, dy: Tensor, scale: Tensor, residual: Tensor | None, activation: str, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    return *_empty_scale_backward(x, dy, scale, axis), _empty_scaled(x, scale, residual, activation, axis)


@op(fake=_empty_add, vmap=ELEMENTWISE)
def add_forward(x: Tensor, other: Tensor, activation: str) -> Tensor:
    """f(x + other), elementwise.

    Args:
        x, other: of one shape, any strides; any floating dtypes or, without an activation, one integer dtype.
        activation: one of ACTIVATIONS without slopes, with its parameters; empty for none.

    Returns:
        A dense tensor, in torch's memory order and dtype for these operands.
    """
    y = _empty_add(x, other, activation)
    _add(x, other, y, activation)
    return y


@op(fake=_nothing, vmap=ELEMENTWISE, mutates=("x",))
def add_(x: Tensor, other: Tensor) -> None:
    """Add `other` to `x` in place. The elements of `x` must not share memory; `other` is `x` or shares no memory with it."""
    _add(x, other, x, "")


def _add(x: Tensor, other: Tensor, y: Tensor, activation: str) -> None:
    sizes, (y_strides, x_strides, other_strides) = memory_order(y, x, other)
    block = elementwise_block(x.numel())
    launch(
        _add_kernel, triton.cdiv(x.numel(), block), x, other, y, sizes, x_strides, other_strides, y_strides, x.numel(),
        ACTIVATION=constant_of(activation), ACCUMULATOR=accumulator(widest(x, other), whole=True),
        INDEX=index_type(x, other, y), BLOCK=block, device=x.device,
    )  # fmt: skip


@op(fake=_empty_scaled, vmap=FIRST_AXIS)
def channel_scale_forward(x: Tensor, scale: Tensor, residual: Tensor | None, activation: str, axis: int) -> Tensor:
    """f(x * scale + residual).

    Args:
        x: (N, C, H, W) or (N, H, W, C), any strides.
        scale: (N, C), any strides.
        residual: of the shape of `x`, any strides; None is 0.
        activation: one of ACTIVATIONS without slopes, with its parameters; empty for none.
        axis: of the channels in `x`, 1 or 3.

    Returns:
        Of the shape of `x`, in torch's memory order and dtype for these operands.
    """
    y = _empty_scaled(x, scale, residual, activation, axis)
    if x.numel() > 0:
        plan = plan_planes(*_images(axis, x, y, residual if residual is not None else x), of_planes=(scale,), join=True)
        launch(
            _channel_scale_kernel, plan.programs, x, scale, residual, y, *plan.strides, scale.stride(), plan.grid,
            ACTIVATION=constant_of(activation), **plan.constants,
        )  # fmt: skip
    return y


@op(fake=_empty_scale_backward, vmap=FIRST_AXIS)
def channel_scale_backward(x: Tensor, dy: Tensor, scale: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Gradients of x * scale + residual with respect to x and scale.

    Args:
        x, scale, axis: as in channel_scale_forward.
        dy: of the shape of `x`, any strides.

    Returns:
        dx like `x`; (N, C): ds, float32, or float64 for a float64 `x` or `scale`.
    """
    dx, ds = _empty_scale_backward(x, dy, scale, axis)
    _scale_backward(x, dy, scale, None, dx, None, ds, "", axis)
    return dx, ds


@op(fake=_empty_scale_activation_backward, vmap=FIRST_AXIS)
def channel_scale_activation_backward(
    x: Tensor, dy: Tensor, scale: Tensor, residual: Tensor | None, activation: str, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of f(x * scale + residual), in one pass.

    Args:
        x, scale, residual, activation, axis: as in channel_scale_forward.
        dy: of the shape of `x`, any strides.

    Returns:
        dx like `x`; (N, C): ds, float32, or float64 for a float64 `x` or `scale`; and dz, the gradient of the residual, like
        the result of channel_scale_forward.
    """
    dx, ds, dz = _empty_scale_activation_backward(x, dy, scale, residual, activation, axis)
    _scale_backward(x, dy, scale, residual, dx, dz, ds, activation, axis)
    return dx, ds, dz


def _scale_backward(
    x: Tensor, dy: Tensor, scale: Tensor, residual: Tensor | None, dx: Tensor, dz: Tensor | None, ds: Tensor, activation: str,
    axis: int,
) -> None:  # fmt: skip
    if x.numel() == 0:
        fill(ds, 0.0)
        return
    others = (tensor if tensor is not None else x for tensor in (dz, residual))
    plan = plan_planes(*_images(axis, x, dy, dx, *others), of_planes=(scale,), join=True)
    partials = partials_of(ds, plan.splits)
    launch(
        _channel_scale_backward_kernel, plan.programs, x, dy, scale, residual, dx, dz, partials,
        *plan.strides, scale.stride(), plan.grid, ACTIVATION=constant_of(activation), **plan.constants,
    )  # fmt: skip
    sum_partials(partials, ds)


def _images(axis: int, *tensors: Tensor) -> list[Tensor]:
    """Views of the shape (N, C, H, W)."""
    return [tensor.movedim(axis, 1) for tensor in tensors]
