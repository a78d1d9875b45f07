"""Pixel shuffle: r^2 channels become r x r pixels of one channel, and the inverse.

    shuffle      y[.., c, h r + i, w r + j] = x[.., c r^2 + i r + j, h, w]
    unshuffle    x[.., c r^2 + i r + j, h, w] = y[.., c, h r + i, w r + j]

Both are the same copy between two views with the axes (.., c, i, j, h, w). The gradient of each is the other.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from .device.indexing import offset_of
from .device.walk import choose_lanes
from .runtime.allocate import empty
from .runtime.launch import launch
from .runtime.layout import index_type, is_channels_last, memory_order
from .runtime.op import op
from .runtime.tuning import ElementTile, elementwise_block
from .runtime.vmap import FIRST_AXIS

LEAST_LANES = 32


@triton.jit
def _pixel_shuffle_kernel(
    source, result, rows, lanes, row_axes, lane_axes, lane_tiles, INDEX: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """A tile of the dense result: some rows of `lanes` adjacent elements. The axes are sizes and the source's strides."""
    program = tl.program_id(0).to(INDEX)
    row = (program // lane_tiles * TILE.rows + tl.arange(0, TILE.rows))[:, None]
    lane = (program % lane_tiles * TILE.lanes + tl.arange(0, TILE.lanes))[None, :]
    exists = (row < rows) & (lane < lanes)
    offset = offset_of(row, row_axes[0], row_axes[1]) + offset_of(lane, lane_axes[0], lane_axes[1])
    tl.store(result + row * lanes + lane, tl.load(source + offset, mask=exists), mask=exists)


def _empty_shuffled(x: Tensor, factor: int) -> Tensor:
    *leading, channels, height, width = x.shape
    return _empty(x, (*leading, channels // factor**2, height * factor, width * factor))


def _empty_unshuffled(x: Tensor, factor: int) -> Tensor:
    *leading, channels, height, width = x.shape
    return _empty(x, (*leading, channels * factor**2, height // factor, width // factor))


def _empty(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return empty(x, shape, x.dim() == 4 and is_channels_last(x))


@op(fake=_empty_shuffled, vmap=FIRST_AXIS)
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """r^2 channels as r x r pixels of one channel.

    Args:
        x: (.., C r^2, H, W), any strides, any dtype of up to 8 bytes.
        factor: r.

    Returns:
        (.., C, H r, W r), channels_last if `x` is.
    """
    y = _empty_shuffled(x, factor)
    _copy(x, y, _channels_split(x, factor), _pixels_split(y, factor))
    return y


@op(fake=_empty_unshuffled, vmap=FIRST_AXIS)
def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Inverse and adjoint of pixel_shuffle, from (.., C, H r, W r) to (.., C r^2, H, W)."""
    y = _empty_unshuffled(x, factor)
    _copy(x, y, _pixels_split(x, factor), _channels_split(y, factor))
    return y


def _channels_split(x: Tensor, factor: int) -> Tensor:
    """A view (.., C, r, r, H, W) of (.., C r^2, H, W)."""
    return x.unflatten(-3, (x.shape[-3] // factor**2, factor, factor))


def _pixels_split(x: Tensor, factor: int) -> Tensor:
    """A view (.., C, r, r, H, W) of (.., C, H r, W r)."""
    height, width = x.shape[-2] // factor, x.shape[-1] // factor
    return x.unflatten(-1, (width, factor)).unflatten(-3, (height, factor)).movedim((-3, -1), (-4, -3))


def _copy(x: Tensor, y: Tensor, source: Tensor, result: Tensor) -> None:
    """Launch the kernel: fill y from x, given views of both with the same axes.

    Divisions of indices cost more than the copy. So the innermost axes, enough for a warp, are lanes, and the others rows: each
    index is divided once per tile, not once per element.
    """
    if y.numel() == 0:
        return
    sizes, (_, strides) = memory_order(result, source)
    inner = next((n for n in range(1, len(sizes)) if math.prod(sizes[:n]) >= LEAST_LANES), len(sizes))
    lanes, rows, block = math.prod(sizes[:inner]), math.prod(sizes[inner:]), elementwise_block(y.numel())
    width = choose_lanes(lanes, block)
    tile = ElementTile(min(triton.next_power_of_2(rows), block // width), width)
    lane_tiles = triton.cdiv(lanes, tile.lanes)
    launch(
        _pixel_shuffle_kernel, triton.cdiv(rows, tile.rows) * lane_tiles, x, y, rows, lanes,
        (sizes[inner:], strides[inner:]), (sizes[:inner], strides[:inner]), lane_tiles,
        INDEX=index_type(x, y), TILE=tile, device=x.device,
    )  # fmt: skip
