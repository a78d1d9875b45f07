"""Copies of images and filters in another memory order: what Hopper's copy engine takes, for kernels that read through it.

    channels_last   channels innermost, padded with zeros to a number of them
    images_last     images innermost
    planes          float32 as three bfloat16 whose sum it is, channels innermost

A tile spans the axis that lies densest in the source and the one that lies densest in the copy, so that both the loads and
the stores run along memory. Where these are the same axis it spans that one and the next.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels import tuning
from trinn.kernels.indexing import cdiv, offset_of
from trinn.kernels.launch import INTERPRETED, device_function, empty, index_type, launch, memory_order

_PLANES = 3  # bfloat16 has 8 bits of a float32's 24


class Tile(NamedTuple):
    """What a program copies: `lanes` side by side in the copy, at `rows` places."""

    lanes: int
    rows: int


@device_function
def _bfloat16(value):
    """A float32 rounded to bfloat16, its bits below 2^-133 too: to nearest, but towards zero where that would be infinite.

    On its bits: the interpreter's own conversion truncates.
    """
    bits = value.to(tl.uint32, bitcast=True)
    rounds = (bits & 0x7FFFFFFF) < 0x7F7F8000
    bits += tl.where(rounds, 0x7FFF + ((bits >> 16) & 1), 0).to(tl.uint32)
    bits |= tl.where(value != value, 0x400000, 0).to(tl.uint32)  # a NaN may have no other of the bits that stay
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@device_function
def _remainder(value, rounded):
    """What rounding left of a value, exactly; of what is not finite, nothing."""
    bits = rounded.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    return tl.where((bits & 0x7F800000) != 0x7F800000, value - bits.to(tl.float32, bitcast=True), 0.0)


@triton.jit
def _relayout_kernel(
    x, out,
    x_strides, out_strides,
    sizes, there, plane,
    PLANES: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the copy, zero in the lanes that are not `there`; or of its planes, which lie `plane` elements apart."""
    lanes, rows, outer_sizes = sizes
    x_lane, x_row, x_outer = x_strides
    out_lane, out_row, out_outer = out_strides
    across, down = cdiv(lanes, TILE.lanes), cdiv(rows, TILE.rows)
    program = tl.program_id(0)
    lane = ((program % across).to(INDEX) * TILE.lanes + tl.arange(0, TILE.lanes))[:, None]
    row = ((program // across % down).to(INDEX) * TILE.rows + tl.arange(0, TILE.rows))[None, :]
    outer = (program // across // down).to(INDEX)
    at_x = offset_of(outer, outer_sizes, x_outer) + lane * x_lane + row * x_row
    at_out = offset_of(outer, outer_sizes, out_outer) + lane * out_lane + row * out_row
    value = tl.load(x + at_x, mask=(lane < there) & (row < rows), other=0.0)
    exists = (lane < lanes) & (row < rows)
    if PLANES == 1:
        tl.store(out + at_out, value, mask=exists)
    else:
        for i in tl.static_range(PLANES):
            rounded = _bfloat16(value)
            value = _remainder(value, rounded)
            tl.store(out + (at_out + i * plane), rounded, mask=exists)


def channels_last(x: Tensor, channels: int | None = None) -> Tensor:
    """`x` in dense channels_last memory, with as many channels, of which those that `x` does not have are zero.

    Args:
        x: (N, C, H, W), any strides and dtype. A tensor that is so already, from an address that the copy engine takes, is not
            copied.
        channels: at least C; without it, C.

    Returns:
        (N, channels, H, W) with the strides of its memory (N, H, W, channels), also along axes of one element.
    """
    n, c, height, width = x.shape
    channels = channels or c
    strides = (height * width * channels, 1, width * channels, channels)
    if channels == c and x.data_ptr() % 16 == 0 and _lies(x, strides):
        return x if x.stride() == strides else x.as_strided(x.shape, strides)
    out = empty(x, (n, height, width, channels)).permute(0, 3, 1, 2)
    if x.numel() == 0:
        return out.zero_()
    _copy(x, out)
    return out


def images_last(x: Tensor, least: int = 4) -> Tensor:
    """A copy in memory (H, W, C, N'), where N' is N rounded up to a multiple of `least`: rows start where the copy engine can.

    Args:
        x: (N, C, H, W), any strides and dtype.

    Returns:
        (N, C, H, W) with the strides of that memory, also along axes of one element. What lies between N and N' is not written.
    """
    n, c, height, width = x.shape
    out = empty(x, (height, width, c, triton.cdiv(n, least) * least)).permute(3, 2, 0, 1)[:n]
    if x.numel():
        _copy(x, out)
    return out


def planes(x: Tensor) -> Tensor:
    """Three bfloat16 planes whose sum is `x`: the first is `x` rounded, each other what is left of it, rounded.

    The sum has all 24 bits, down to 2^-133: that is bfloat16's smallest number, and less than half of it is lost. What is
    infinite or NaN is so in the first plane, and zero in the others. No finite number becomes infinite.

    Args:
        x: float32 (N, C, H, W), any strides.

    Returns:
        (N, 3 C, H, W), dense channels_last: channels [0, C) are the first plane.
    """
    n, c, height, width = x.shape
    out = empty(x, (n, height, width, _PLANES * c), dtype=torch.bfloat16).permute(0, 3, 1, 2)
    if x.numel():
        _copy(x, out, _PLANES)
    return out


def _lies(x: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether a tensor has these strides, but for those that no element has."""
    return all(stride == wanted for size, stride, wanted in zip(x.shape, x.stride(), strides, strict=True) if size > 1)


def _copy(x: Tensor, out: Tensor, planes: int = 1) -> None:
    """Fill `out`, whose channels are those of `x`, or are more, or are those of its planes."""
    channels, lanes = x.shape[1], out.shape[1] // planes
    if out.shape[1] == channels:
        sizes, (out_strides, x_strides) = memory_order(out, x)
        there = sizes[0]
    else:
        rest, (out_rest, x_rest) = memory_order(out[:, 0], x[:, 0])
        sizes, out_strides, x_strides = (lanes, *rest), (out.stride(1), *out_rest), (x.stride(1), *x_rest)
        there = channels
    # The rows of a tile: the axis after the first, or one that is denser in x than both.
    row = min((a for a in range(1, len(sizes)) if x_strides[a]), key=lambda a: x_strides[a], default=0)
    if len(sizes) == 1:
        sizes, out_strides, x_strides, row = (*sizes, 1), (*out_strides, 0), (*x_strides, 0), 1
    elif row == 0 or 0 < x_strides[0] <= x_strides[row]:
        row = 1
    tile = _tile(sizes[0], sizes[row], x)
    programs = triton.cdiv(sizes[0], tile.lanes) * triton.cdiv(sizes[row], tile.rows)
    programs *= math.prod(size for axis, size in enumerate(sizes) if axis not in (0, row))

    def walked(axes: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        return axes[0], axes[row], tuple(n for axis, n in enumerate(axes) if axis not in (0, row))

    launch(
        _relayout_kernel, programs, x, out,
        walked(x_strides), walked(out_strides),
        walked(sizes), there, lanes,
        PLANES=planes, INDEX=index_type(x, out), TILE=tile, device=x.device,
    )  # fmt: skip


def _tile(lanes: int, rows: int, x: Tensor) -> Tile:
    """As square as the axes allow."""
    room = tuning.elementwise_block(x.numel()) if INTERPRETED else 4096
    tile = [triton.next_power_of_2(lanes), triton.next_power_of_2(rows)]
    while tile[0] * tile[1] > room:
        tile[tile[1] >= tile[0]] //= 2
    return Tile(*tile)
