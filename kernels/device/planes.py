"""Traversal of the planes of images. A plane is the (H, W) pixels of one channel of one image.

A program has a tile of `planes` planes, and loops over one split of their pixels, `pixels` of each plane at once. It loads a
value of each plane once, such as its scale, and needs no other program to add up a plane, or one split of it.

The lanes of a tile follow the smaller stride: they are adjacent channels in channels_last, adjacent pixels otherwise.

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
from .walk import choose_lanes, choose_splits


class PlaneTile(NamedTuple):
    """Tile of one program: `pixels` pixels of each of `planes` planes."""

    planes: int
    pixels: int


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


def plan_planes(*tensors: Tensor, of_planes: Sequence[Tensor] = ()) -> PlanePlan:
    """Plan the traversal of tensors of one shape (N, C, H, W) in the memory order of the first. No tensor is empty.

    Args:
        of_planes: further tensors that the kernel reads, with the shape (N, C).

    The accumulator is float64 if one tensor is.
    """
    x = tensors[0]
    planes, pixels, room = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], plane_room(x)
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
    read = *tensors, *of_planes
    constants = {"ACCUMULATOR": accumulator(widest(*read)), "INDEX": index_type(*read), "TILE": tile, "device": x.device}
    return PlanePlan(tiles * splits, splits, grid, strides, constants)


def plane_room(x: Tensor) -> int:
    """Elements of a tile."""
    return 2 * elementwise_block(x.numel())


@device_function
def program_planes(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(planes of a program, whether they exist), each of shape (TILE.planes, 1)."""
    plane = ((tl.program_id(0) % grid.tiles).to(INDEX) * TILE.planes + tl.arange(0, TILE.planes))[:, None]
    return plane, plane < grid.planes


@device_function
def program_pixels(grid, INDEX: tl.constexpr):
    """(number of a program's split, its first pixel, one past its last pixel)."""
    split = (tl.program_id(0) // grid.tiles).to(INDEX)
    return split, split * grid.pixels_per_split, tl.minimum((split + 1) * grid.pixels_per_split, grid.pixels)


@device_function
def plane_start(tensor, plane, grid, strides):
    """Pointers to the first pixel of each plane."""
    return tensor + plane // grid.channels * strides[0] + plane % grid.channels * strides[1]


@device_function
def tile_pixels(start, INDEX: tl.constexpr, TILE: tl.constexpr):
    """The pixels of a tile from `start` on, of shape (1, TILE.pixels)."""
    return (tl.full((), start, INDEX) + tl.arange(0, TILE.pixels))[None, :]


@device_function
def pixel_offset(pixel, grid, strides):
    """Offsets of pixels from plane_start."""
    return offset_of(pixel, grid.pixel_axes, strides[2])
