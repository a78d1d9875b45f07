"""A walk down the rows of tensors of one shape (N, C, H, W), in the order of the first one's memory.

Columns are the channels and what lies closer together than they do, rows are all else. In a contiguous tensor a row is an image
and a channel has H * W columns, side by side; in channels_last a row is a pixel and a channel one column. A program takes some
columns and steps down some of the rows. What depends on the column it computes once; a step is loads, arithmetic and stores.

A pass that changes each element takes any columns. One that sums channels takes some channels whole, or a piece of one.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..runtime import tuning
from ..runtime.interpreter import INTERPRETED
from ..runtime.layout import index_type, memory_order
from ..runtime.settings import settings
from .function import device_function
from .indexing import empty_tuple, offset_of
from .precision import accumulator

SETUP = 4  # how many steps take as long as all that a program does besides
_INTERPRETED = tl.constexpr(INTERPRETED)


class WalkTile(NamedTuple):
    """What a program holds at once: `lanes` columns of `rows` rows; where it sums, these are `pixels` of some `channels`."""

    rows: int
    lanes: int
    ahead: int  # how many such tiles, one below the other, are read before the first is used
    rows_fit: bool  # none of the rows lies past the last one
    lanes_fit: bool
    vectors_fit: bool  # of 16 neighbours all exist, or none
    channels: int = 1
    pixels: int = 1


class WalkGrid(NamedTuple):
    """What kernels need to know of the tensors and the programs. A tile's columns are some channels, or a piece of one."""

    column_axes: tuple[int, ...]
    row_axes: tuple[int, ...]
    columns: int
    rows: int
    channels: int
    inner: int  # columns of a channel
    tiles: int  # side by side
    rows_per_split: int
    group: int  # columns of the channels that a tile holds, or holds a piece of
    pieces: int  # of a group
    span: int  # columns of a piece
    together: int  # channels of a group


Strides = tuple[tuple[int, ...], tuple[int, ...]]  # of the axes of columns, of rows


class Walk(NamedTuple):
    """How to start a kernel that walks. Where it sums, each channel has `partials` sums, by as many programs."""

    programs: int
    partials: int
    grid: WalkGrid
    strides: list[Strides]
    constants: dict[str, Any]  # that each such kernel takes


def plan_walk(*tensors: Tensor, sums: bool = False, ahead: int = 2) -> Walk:
    """The walk in the memory order of the first of these tensors, none of which is empty; whether it sums channels.

    `ahead` tiles are read at once, where there are so many: the fewer tensors are read, the more are needed on their way.
    """
    x = tensors[0]
    channels, room = x.shape[1], (1 if x.dtype.itemsize == 8 else 2) * tuning.elementwise_block(x.numel())
    order = sorted((a for a in range(x.dim()) if x.shape[a] != 1), key=x.stride)
    at = order.index(1) if channels > 1 else max(1, len(order) - 1)
    inner, outer = math.prod(x.shape[a] for a in order[:at]), at + (channels > 1)
    column_axes, column_strides = memory_order(*tensors, axes=order[:outer])
    row_axes, row_strides = memory_order(*tensors, axes=order[outer:])
    columns, rows = math.prod(column_axes), math.prod(row_axes)

    # Columns of a tile.
    shape, pixels, together = (1, 1), inner, channels
    if not sums:
        lanes = choose_lanes(columns, room)
        group, span = triton.cdiv(columns, 16) * 16, lanes
        pieces = triton.cdiv(columns, lanes)
    else:
        if inner == 1:
            together = choose_lanes(channels, room if tuning.INTERPRETED else 64)
        elif inner <= room:
            together = min(room // triton.next_power_of_2(inner), channels)
        else:
            pixels = triton.cdiv(inner, triton.cdiv(inner, choose_lanes(inner, room, 1.35)))
            together, pixels = 1, triton.cdiv(pixels, 16) * 16
        shape = triton.next_power_of_2(together), triton.next_power_of_2(pixels)
        lanes, group, span, pieces = math.prod(shape), together * inner, together * pixels, triton.cdiv(inner, pixels)
    tiles = triton.cdiv(columns, group) * pieces

    # Rows of a tile, and how many in a row a program takes.
    at_once = min(triton.next_power_of_2(rows), max(1, room // lanes))
    while ahead > 1 and (
        rows % at_once == 0 < rows % (ahead * at_once) or tiles * rows < settings.wanted_programs * ahead * at_once
    ):
        ahead //= 2
    splits, steps = choose_splits(tiles, triton.cdiv(rows, ahead * at_once))
    lanes_fit = span == lanes and group % lanes == 0 and columns % group == 0
    vectors_fit = all(size % 16 == 0 for size in (columns, group, span))
    tile = WalkTile(at_once, lanes, ahead, rows % (ahead * at_once) == 0, lanes_fit, vectors_fit, *shape)
    rows_per_split = steps * ahead * at_once
    grid = WalkGrid(
        column_axes, row_axes, columns, rows, channels, inner, tiles, rows_per_split, group, pieces, span, together
    )  # fmt: skip
    strides = list(zip(column_strides, row_strides, strict=True))
    constants = {"ACCUMULATOR": accumulator(x.dtype), "INDEX": index_type(*tensors), "TILE": tile, "device": x.device}
    return Walk(tiles * splits, splits * pieces, grid, strides, constants)


def choose_lanes(columns: int, most: int, waste: float = 1.15) -> int:
    """How many columns side by side, a power of two; not too many of the last ones idle."""
    lanes = min(triton.next_power_of_2(columns), most)
    while lanes > 16 and not tuning.INTERPRETED and triton.cdiv(columns, lanes) * lanes > waste * columns:
        lanes //= 2
    return lanes


def choose_splits(tiles: int, steps: int) -> tuple[int, int]:
    """Into how many parts to cut the steps, and the steps of each: a few programs for each multiprocessor, and all as many."""
    units, many = (settings.wanted_programs, [1]) if tuning.INTERPRETED else (max(1, settings.wanted_programs // 2), [3, 4, 5])
    longest = (triton.cdiv(steps, min(steps, max(1, turns * units // tiles))) for turns in many)
    steps_per_split = min(longest, key=lambda n: triton.cdiv(tiles * triton.cdiv(steps, n), units) * (n + SETUP))
    return triton.cdiv(steps, steps_per_split), steps_per_split


@device_function
def tile_columns(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(columns, whether they are the program's, their channels) of a tile; idle lanes read some column that exists."""
    tile = (tl.program_id(0) % grid.tiles).to(INDEX)
    lane = tl.broadcast_to(tl.arange(0, TILE.lanes)[None, :], (TILE.rows, TILE.lanes))
    at = tile % grid.pieces * grid.span + lane
    column = tile // grid.pieces * grid.group + at
    exists = (lane < grid.span) & (at < grid.group) & (column < grid.columns)
    if TILE.lanes_fit:
        exists = tl.full((TILE.rows, TILE.lanes), True, tl.int1)
    elif TILE.vectors_fit:
        column = tl.max_contiguous(tl.multiple_of(tl.where(exists, column, lane % 16), (1, 16)), (1, 16))
    else:
        column = tl.where(exists, column, 0)
    return column, exists, column // grid.inner


@device_function
def program_rows(grid, INDEX: tl.constexpr):
    """The first row of a program, and the row after its last."""
    first = (tl.program_id(0) // grid.tiles).to(INDEX) * grid.rows_per_split
    return first, tl.minimum(first + grid.rows_per_split, grid.rows)


@device_function
def tile_start(tensor, column, grid, strides, TILE: tl.constexpr):
    """Where the columns of a tile begin; `down` is how far it is from there to the tile that begins with some row."""
    start = tensor + offset_of(column, grid.column_axes, strides[0])
    if len(grid.row_axes) == 1:
        start += (tl.arange(0, TILE.rows).to(column.dtype) * strides[1][0])[:, None]
    return start


@device_function
def row_offset(row, grid, strides, INDEX: tl.constexpr, TILE: tl.constexpr):
    row = tl.full((), row, INDEX)  # a loop's counter is no tensor where kernels are interpreted
    if len(grid.row_axes) == 1:
        offset = row * strides[1][0]
    else:
        offset = offset_of(row + tl.arange(0, TILE.rows), grid.row_axes, strides[1])[:, None]
    return offset


@device_function
def rows_exist(row, last, TILE: tl.constexpr):
    """Which rows of the tile that begins with that row exist."""
    left = row + tl.arange(0, TILE.rows) < last
    if TILE.rows_fit:
        left = tl.full((TILE.rows,), True, tl.int1)
    return left[:, None]


@device_function
def load_tiles(start, row, last, grid, strides, INDEX: tl.constexpr, TILE: tl.constexpr):
    """The tiles from that row on, TILE.ahead of them; 0 where no row exists."""
    AHEAD: tl.constexpr = TILE.ahead
    tiles = empty_tuple()
    for i in tl.static_range(AHEAD):
        at = row + i * TILE.rows
        tiles += (tl.load(start + row_offset(at, grid, strides, INDEX, TILE), mask=rows_exist(at, last, TILE), other=0.0),)
    return tiles


@device_function
def program_channels(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(channels, whether they exist, which of the partial sums, pixels in a row) of a program that sums."""
    tile, lane = (tl.program_id(0) % grid.tiles).to(INDEX), tl.arange(0, TILE.channels)
    c, piece = tile // grid.pieces * grid.together + lane, tile % grid.pieces
    pixels = tl.minimum(grid.span, grid.group - piece * grid.span) // grid.together
    partial = (tl.program_id(0) // grid.tiles).to(INDEX) * grid.pieces + piece
    return c, (lane < grid.together) & (c < grid.channels), partial, pixels


@device_function
def by_channel(value, pixels, grid, TILE: tl.constexpr):
    """A tile as (TILE.rows * TILE.pixels, TILE.channels), and 0 where a program has no such pixel."""
    place, channel = tl.arange(0, TILE.rows * TILE.pixels)[:, None], tl.arange(0, TILE.channels)[None, :]
    pixel = place % TILE.pixels
    if TILE.channels > 1 and TILE.pixels > 1:
        at = place // TILE.pixels * TILE.lanes + channel * tl.minimum(grid.inner, TILE.pixels) + pixel
        value = tl.reshape(value, (TILE.rows * TILE.lanes,))
        value = tl.gather(value, tl.reshape(at, (TILE.rows * TILE.lanes,)).to(tl.int32), 0)
    value = tl.reshape(value, (TILE.rows * TILE.pixels, TILE.channels))
    return tl.where((pixel < pixels) & (channel < grid.together), value, 0.0)


@device_function
def sum_rows(value):
    """The sums of columns. NumPy adds one row after the other, and would lose what a GPU, which adds in pairs, does not."""
    if _INTERPRETED:
        total = tl.sum(value.to(tl.float64), axis=0).to(value.dtype)
    else:
        total = tl.sum(value, axis=0)
    return total
