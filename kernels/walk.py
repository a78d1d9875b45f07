"""A walk over tensors of one shape (N, C, H, W), channel by channel, in the order of their memory.

A tile is some channels times some pixels. `inner` counts pixels along the axis that lies densest, `outer` through all others:
in a contiguous tensor these are H * W and N; in channels_last there is one axis of N * H * W, and a tile lies along the
channels. Pixels are cut into chunks of one tile each. The lanes of a tile divide by powers of two only, which costs nothing.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels import tuning
from trinn.kernels.indexing import cdiv, offset_of
from trinn.kernels.launch import device_function, memory_order


class Tile(NamedTuple):
    """What a program holds at once: `channels`, times `inner` pixels in a row at `outer` places."""

    channels: int
    outer: int
    inner: int

    @property
    def pixels(self) -> int:
        return self.outer * self.inner


Sizes = tuple[int, int, int, tuple[int, ...]]  # channels, outer, inner, and the axes of outer from within
Strides = tuple[int, int, tuple[int, ...]]  # of channels, of inner, of the axes of outer


class Walk(NamedTuple):
    """The tile, how many of them, and what the kernels need to know of the tensors."""

    tile: Tile
    tiles: int  # over the channels
    chunks: int  # over the pixels
    sizes: Sizes
    strides: list[Strides]

    def parts(self) -> tuple[int, int]:
        """Into how many parts to cut a reduction over the pixels so that it fills the GPU, and the chunks in each."""
        wanted = min(triton.cdiv(2 * tuning.wanted_programs, self.tiles), self.chunks // 4)
        chunks = triton.cdiv(self.chunks, max(1, wanted))
        return triton.cdiv(self.chunks, chunks), chunks


def walk(*tensors: Tensor) -> Walk:
    """The walk in the memory order of the first of these tensors, none of which is empty."""
    axes, pixel_strides = memory_order(*(t[:, 0] for t in tensors))
    strides = [(t.stride(1), s[0], s[1:]) for t, s in zip(tensors, pixel_strides, strict=True)]
    channels, outer, inner = tensors[0].shape[1], math.prod(axes[1:]), axes[0]
    elements = tensors[0].numel()
    # Few channels fill a GPU by their pixels: tiles so small that each program of a reduction gets its four.
    fair = max(256, triton.next_power_of_2(elements // (4 * tuning.wanted_programs)))
    room = min(4 * tuning.elementwise_block(elements), fair)
    tile_c, tile_inner = min(triton.next_power_of_2(channels), 64), triton.next_power_of_2(inner)
    stride_c, stride_inner, _ = strides[0]
    if stride_c < stride_inner:
        tile_inner = min(tile_inner, room // tile_c)
    else:
        tile_inner = min(tile_inner, room)
        tile_c = min(tile_c, room // tile_inner)
    tile = Tile(tile_c, min(triton.next_power_of_2(outer), room // (tile_c * tile_inner)), tile_inner)
    chunks = triton.cdiv(outer, tile.outer) * triton.cdiv(inner, tile.inner)
    return Walk(tile, triton.cdiv(channels, tile_c), chunks, (channels, outer, inner, axes[1:]), strides)


@device_function
def channels_of(tile, INDEX: tl.constexpr, TILE: tl.constexpr):
    """The channels of the tile of that number."""
    return tile.to(INDEX) * TILE.channels + tl.arange(0, TILE.channels)


@device_function
def pixels_of(chunk, sizes, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(outer, inner, whether it exists) of each pixel of the chunk of that number, which is an INDEX."""
    _, outer, inner, _ = sizes
    lane = tl.arange(0, TILE.pixels).to(INDEX)
    stretches = cdiv(inner, TILE.inner)
    at_outer = chunk // stretches * TILE.outer + lane // TILE.inner
    at_inner = chunk % stretches * TILE.inner + lane % TILE.inner
    return at_outer, at_inner, (at_outer < outer) & (at_inner < inner)


@device_function
def offsets_of(c, at_outer, at_inner, sizes, strides):
    """Where the elements of a tile, (TILE.channels, TILE.pixels), lie in the tensor of those strides."""
    stride_c, stride_inner, stride_outer = strides
    return (c * stride_c)[:, None] + (at_inner * stride_inner + offset_of(at_outer, sizes[3], stride_outer))[None, :]


@device_function
def part_of(part, chunks_per_part, sizes, TILE: tl.constexpr):
    """The first chunk of a part, or of several, and the chunk after its last."""
    chunks = cdiv(sizes[1], TILE.outer) * cdiv(sizes[2], TILE.inner)
    first = tl.minimum(part * chunks_per_part, chunks)
    return first, tl.minimum(first + chunks_per_part, chunks)


@device_function
def pixels_before(chunk, sizes, TILE: tl.constexpr):
    """How many pixels there are in the chunks before that one: a tile has several places only if each fits into it whole."""
    _, outer, inner, _ = sizes
    stretches = cdiv(inner, TILE.inner)
    return tl.minimum(chunk // stretches * TILE.outer, outer) * inner + chunk % stretches * TILE.inner
