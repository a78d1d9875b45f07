"""Traversal of the planes of images. A plane is the (H, W) pixels of one channel of one image.

A program has a tile of `planes` planes, and loops over one split of their pixels, `pixels` of each plane at once. It loads a
value of each plane once, such as its scale, and needs no other program to add up a plane, or one split of it.

The lanes of a tile follow the smaller stride: they are adjacent channels in channels_last, adjacent pixels otherwise. Small
contiguous planes may be *joined*: the lanes of a tile are its whole planes, one behind the other, and a program has one tile.
Then loads are wide although a plane is not a multiple of 16 bytes.

This traversal is for values of each channel of each image; walk.py is for values of each channel.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..runtime.allocate import widest
from ..runtime.interpreter import INTERPRETED
from ..runtime.layout import index_type, memory_order
from ..runtime.tuning import elementwise_block
from .function import device_function
from .indexing import offset_of
from .precision import accumulator
from .walk import choose_lanes, choose_splits, sum_rows


class PlaneTile(NamedTuple):
    """Tile of one program: `pixels` pixels of each of `planes` planes."""

    planes: int
    pixels: int
    joined: int | None = None  # pixels of each plane, if the tile is a row of `pixels` lanes with joined planes

    @property
    def rows(self) -> int:
        return self.planes if self.joined is None else 1


class PlaneGrid(NamedTuple):
    """Run-time arguments of a kernel: the sizes of the images, and their division among programs."""

    planes: int
    channels: int
    tiles: int  # number of tiles that cover all planes
    pixels: int
    pixels_per_split: int
    pixel_axes: tuple[int, ...]  # sizes, innermost first; adjacent axes are merged


PlaneStrides = tuple[int, int, tuple[int, ...]]  # of the images, of the channels, of the pixel axes


class PlanePlan(NamedTuple):
    """Launch of a kernel over planes. Each plane gets a partial sum from each split."""

    programs: int
    splits: int
    grid: PlaneGrid
    strides: list[PlaneStrides]
    constants: dict[str, Any]  # options of launch(): constexpr arguments of every such kernel, and the device


def plan_planes(*tensors: Tensor, of_planes: Sequence[Tensor] = (), join: bool = False) -> PlanePlan:
    """Plan the traversal of tensors of one shape (N, C, H, W) in the memory order of the first. No tensor is empty.

    Args:
        of_planes: further tensors that the kernel reads, with the shape (N, C).
        join: whether the kernel can join planes.

    The accumulator is float64 if one tensor is.
    """
    x = tensors[0]
    planes, pixels, room = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], plane_room(x)
    read = *tensors, *of_planes
    constants = {"ACCUMULATOR": accumulator(widest(*read)), "INDEX": index_type(*read), "device": x.device}
    if join and x.is_contiguous() and pixels <= room // 8:  # any 8 planes are a multiple of 16 bytes
        axes, axis_strides = memory_order(*tensors, axes=(3, 2, 1, 0))
        lanes = triton.next_power_of_2(pixels)
        at_once = min(triton.next_power_of_2(planes), room // lanes)
        grid = PlaneGrid(planes, x.shape[1], triton.cdiv(planes, at_once), pixels, pixels, axes)
        strides = [(0, 0, of_axes) for of_axes in axis_strides]
        return PlanePlan(grid.tiles, 1, grid, strides, constants | {"TILE": PlaneTile(at_once, at_once * lanes, pixels)})
    pixel_axes, pixel_strides = memory_order(*(tensor[:1, :1] for tensor in tensors))
    if x.stride(1) < pixel_strides[0][0]:  # lanes along the channels, to load contiguous memory
        at_once = min(triton.next_power_of_2(planes), room if INTERPRETED else 64)
        tile = PlaneTile(at_once, min(triton.next_power_of_2(pixels), max(1, room // at_once)))
    else:
        lanes = choose_lanes(pixels, room, 1.35)
        tile = PlaneTile(min(triton.next_power_of_2(planes), room // lanes), lanes)
    tiles = triton.cdiv(planes, tile.planes)
    splits, steps = choose_splits(tiles, triton.cdiv(pixels, tile.pixels))
    grid = PlaneGrid(planes, x.shape[1], tiles, pixels, steps * tile.pixels, pixel_axes)
    strides = [(t.stride(0), t.stride(1), of_pixels) for t, of_pixels in zip(tensors, pixel_strides, strict=True)]
    return PlanePlan(tiles * splits, splits, grid, strides, constants | {"TILE": tile})


def plane_room(x: Tensor) -> int:
    """Elements of a tile."""
    return 2 * elementwise_block(x.numel())


@device_function
def program_planes(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(planes of a program, whether they exist), each of shape (TILE.planes, 1)."""
    plane = ((tl.program_id(0) % grid.tiles).to(INDEX) * TILE.planes + tl.arange(0, TILE.planes))[:, None]
    return plane, plane < grid.planes


@device_function
def program_pixels(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(number of a program's split, its first pixel, one past its last pixel); joined planes share one numbering."""
    if TILE.joined is not None:
        split = tl.full((), 0, INDEX)
        first = tl.program_id(0).to(INDEX) * (TILE.planes * TILE.joined)
        last = tl.minimum(first + TILE.planes * TILE.joined, tl.full((), grid.planes, INDEX) * TILE.joined)
    else:
        split = (tl.program_id(0) // grid.tiles).to(INDEX)
        first, last = split * grid.pixels_per_split, tl.minimum((split + 1) * grid.pixels_per_split, grid.pixels)
    return split, first, last


@device_function
def value_start(tensor, plane, grid, strides):
    """Pointers to the values of the planes in a tensor (N, C)."""
    return tensor + plane // grid.channels * strides[0] + plane % grid.channels * strides[1]


@device_function
def plane_start(tensor, plane, grid, strides, TILE: tl.constexpr):
    """Pointers to the first pixel of each plane; of joined planes, the pointer to the first of all pixels."""
    start = tensor
    if TILE.joined is None:
        start = value_start(tensor, plane, grid, strides)
    return start


@device_function
def tile_pixels(start, exists, last, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(pixels of a tile from `start` on, of shape (1, TILE.pixels); mask of those before `last` in planes that exist)."""
    pixel = (tl.full((), start, INDEX) + tl.arange(0, TILE.pixels))[None, :]
    mask = pixel < last
    if TILE.joined is None:
        mask = exists & mask
    return pixel, mask


@device_function
def pixel_offset(pixel, grid, strides):
    """Offsets of pixels from plane_start."""
    return offset_of(pixel, grid.pixel_axes, strides[2])


@device_function
def spread(value, TILE: tl.constexpr):
    """A value of each plane, of shape (TILE.planes, 1), for each lane of a tile."""
    if TILE.joined is not None:
        plane = tl.minimum(tl.arange(0, TILE.pixels) // TILE.joined, TILE.planes - 1)
        value = tl.gather(tl.reshape(value, (TILE.planes,)), plane, 0)[None, :]
    return value


@device_function
def sum_planes(value, TILE: tl.constexpr):
    """The sum of each plane, of shape (TILE.planes, 1). Lanes without a pixel are 0."""
    if TILE.joined is not None:
        PIXELS: tl.constexpr = TILE.pixels // TILE.planes
        plane, pixel = tl.arange(0, TILE.planes)[:, None], tl.arange(0, PIXELS)[None, :]
        at = tl.reshape(plane * TILE.joined + pixel, (TILE.pixels,))
        value = tl.reshape(tl.gather(tl.reshape(value, (TILE.pixels,)), at, 0), (TILE.planes, PIXELS))
        value = tl.where(pixel < TILE.joined, value, 0.0)
    return sum_rows(tl.trans(value))[:, None]
