"""Traversal of tensors of one shape (N, C, H, W) as matrices, in the memory order of the first tensor.

The plan views each tensor as a matrix and divides it among the programs:

    column   an index of the inner axes: the channels, and the axes with smaller strides than theirs
    row      an index of the outer axes
    tile     `rows` consecutive rows of `lanes` adjacent columns, which a program processes at once
    split    a range of consecutive rows; each program loops over its columns in one split

A program computes once, before its loop, all values that depend on the column, such as the parameters of a channel. An
iteration is loads, arithmetic and stores.

Example: x of shape (4, 3, 2, 2), with tiles of 1 row and 16 lanes.

    contiguous      4 rows (images) of 12 columns (c, h, w); each channel has `inner` = 4 adjacent columns
    channels_last   16 rows (pixels of all images) of 3 columns (channels); inner = 1

In the contiguous case one tile covers the 12 columns, and 4 lanes are idle. With 2 splits, program 0 traverses the rows 0 and
1, program 1 the rows 2 and 3.

In an elementwise pass, a tile may have any columns: the whole row is one group, its tiles are the pieces. In a pass with sums
over each channel, a tile has a *group*: the columns of one or several whole channels. If one channel has more columns than a
tile, it is a group of several *pieces*, with a tile each. In the example, with 8 lanes, the channels 0 and 1 are one group, and
channel 2 is the next. Every program stores a partial sum for each of its channels.

This traversal is for operators that use all tensors at the same position: batch normalisation and sums. columns.py is for
pixels that depend on pixels at other positions. Its columns are defined differently.
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

SETUP = 4  # fixed cost of a program, in iterations of its loop
_INTERPRETED = tl.constexpr(INTERPRETED)


class WalkTile(NamedTuple):
    """Tile of one program: `rows` rows of `lanes` columns. In a pass with sums the lanes are `channels` times `pixels`."""

    rows: int
    lanes: int
    ahead: int  # tiles per iteration, one below the other; all are loaded before the first is used
    rows_fit: bool  # no row of a tile is past the last row
    lanes_fit: bool  # no lane is idle
    vectors_fit: bool  # of 16 aligned, adjacent columns, all exist or none
    channels: int = 1
    pixels: int = 1


class WalkGrid(NamedTuple):
    """Run-time arguments of a kernel: the sizes of the matrix, and its division among programs."""

    column_axes: tuple[int, ...]  # sizes, innermost first; adjacent axes are merged
    row_axes: tuple[int, ...]
    columns: int
    rows: int
    channels: int
    inner: int  # columns per channel
    tiles: int  # number of tiles that cover all columns of a row
    rows_per_split: int
    group: int  # columns per group; in an elementwise pass, all columns, rounded up to a multiple of 16
    pieces: int  # pieces per group; each is one tile
    span: int  # columns per piece
    together: int  # channels per group


Strides = tuple[tuple[int, ...], tuple[int, ...]]  # of the column axes, of the row axes


class Walk(NamedTuple):
    """Launch of a kernel over a matrix. In a pass with sums, each channel gets `partials` sums, from as many programs."""

    programs: int
    partials: int
    grid: WalkGrid
    strides: list[Strides]
    constants: dict[str, Any]  # options of launch(): constexpr arguments of every such kernel, and the device


def plan_walk(*tensors: Tensor, sums: bool = False, ahead: int = 2) -> Walk:
    """Plan the traversal of tensors in the memory order of the first. No tensor is empty.

    Args:
        sums: whether the pass sums each channel.
        ahead: tiles that an iteration loads at once, if the matrix has enough of them. A kernel that reads fewer tensors needs
            more, to keep as many loads in flight.
    """
    # Matrix: the channels and all axes with smaller strides are the columns. All other axes are the rows.
    x = tensors[0]
    channels, room = x.shape[1], (1 if x.dtype.itemsize == 8 else 2) * tuning.elementwise_block(x.numel())
    order = sorted((a for a in range(x.dim()) if x.shape[a] != 1), key=x.stride)
    channel_at = order.index(1) if channels > 1 else max(1, len(order) - 1)
    inner, first_row_axis = math.prod(x.shape[a] for a in order[:channel_at]), channel_at + (channels > 1)
    column_axes, column_strides = memory_order(*tensors, axes=order[:first_row_axis])
    row_axes, row_strides = memory_order(*tensors, axes=order[first_row_axis:])
    columns, rows = math.prod(column_axes), math.prod(row_axes)

    # Columns of a tile: with sums, whole channels or a piece of one channel, so that a program can add up its lanes.
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

    # Rows of a tile and of a split. Load fewer tiles at once if the last iteration would be partial, or the programs too few.
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
    """Lanes of a tile: a power of two up to `most`, halved until few lanes are idle, but not below 16.

    Few lanes are idle if the lanes of all tiles are at most `waste` times the columns.
    """
    lanes = min(triton.next_power_of_2(columns), most)
    while lanes > 16 and not tuning.INTERPRETED and triton.cdiv(columns, lanes) * lanes > waste * columns:
        lanes //= 2
    return lanes


def choose_splits(tiles: int, steps: int) -> tuple[int, int]:
    """(number of splits, iterations per split) for `tiles` tiles and `steps` iterations over all rows.

    The candidates give each multiprocessor about 3, 4 or 5 programs. The best takes the least time: the number of programs on
    the busiest multiprocessor, times the iterations of a program plus its SETUP.
    """
    # Units run at the same time: the multiprocessors, half of wanted_programs; in the interpreter, as many as wanted_programs.
    units, waves = (settings.wanted_programs, [1]) if tuning.INTERPRETED else (max(1, settings.wanted_programs // 2), [3, 4, 5])
    candidates = (triton.cdiv(steps, min(steps, max(1, wave * units // tiles))) for wave in waves)
    steps_per_split = min(candidates, key=lambda n: triton.cdiv(tiles * triton.cdiv(steps, n), units) * (n + SETUP))
    return triton.cdiv(steps, steps_per_split), steps_per_split


@device_function
def tile_columns(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(columns, whether the lane is in use, channels) of a tile.

    Idle lanes load too, so they get a column that exists. With `vectors_fit`, idle lanes get the columns 0 to 15 in order, so
    that any 16 aligned lanes have adjacent columns and load vectors.
    """
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
    """First row of a program, and one past its last row."""
    first = (tl.program_id(0) // grid.tiles).to(INDEX) * grid.rows_per_split
    return first, tl.minimum(first + grid.rows_per_split, grid.rows)


@device_function
def tile_start(tensor, column, grid, strides, TILE: tl.constexpr):
    """Pointers to the columns of a tile; add row_offset. With a single row axis, they already include the rows of the tile."""
    start = tensor + offset_of(column, grid.column_axes, strides[0])
    if len(grid.row_axes) == 1:
        start += (tl.arange(0, TILE.rows).to(column.dtype) * strides[1][0])[:, None]
    return start


@device_function
def row_offset(row, grid, strides, INDEX: tl.constexpr, TILE: tl.constexpr):
    """Offset from tile_start to the tile at `row`."""
    row = tl.full((), row, INDEX)  # in the interpreter, a loop counter is a Python int
    if len(grid.row_axes) == 1:
        offset = row * strides[1][0]
    else:
        offset = offset_of(row + tl.arange(0, TILE.rows), grid.row_axes, strides[1])[:, None]
    return offset


@device_function
def rows_exist(row, last, TILE: tl.constexpr):
    """Mask of the rows before `last`, for the tile at `row`."""
    exist = row + tl.arange(0, TILE.rows) < last
    if TILE.rows_fit:
        exist = tl.full((TILE.rows,), True, tl.int1)
    return exist[:, None]


@device_function
def load_tiles(start, row, last, grid, strides, INDEX: tl.constexpr, TILE: tl.constexpr):
    """Load TILE.ahead tiles, the first at `row`. Rows from `last` on are 0."""
    AHEAD: tl.constexpr = TILE.ahead
    tiles = empty_tuple()
    for i in tl.static_range(AHEAD):
        at = row + i * TILE.rows
        tiles += (tl.load(start + row_offset(at, grid, strides, INDEX, TILE), mask=rows_exist(at, last, TILE), other=0.0),)
    return tiles


@device_function
def program_channels(grid, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(channels, whether they exist, index of the partial sum, pixels per channel and row) of a program that sums."""
    tile, lane = (tl.program_id(0) % grid.tiles).to(INDEX), tl.arange(0, TILE.channels)
    c, piece = tile // grid.pieces * grid.together + lane, tile % grid.pieces
    pixels = tl.minimum(grid.span, grid.group - piece * grid.span) // grid.together
    partial = (tl.program_id(0) // grid.tiles).to(INDEX) * grid.pieces + piece
    return c, (lane < grid.together) & (c < grid.channels), partial, pixels


@device_function
def by_channel(value, pixels, grid, TILE: tl.constexpr):
    """A tile reshaped to (TILE.rows * TILE.pixels, TILE.channels). Idle lanes are 0."""
    place, channel = tl.arange(0, TILE.rows * TILE.pixels)[:, None], tl.arange(0, TILE.channels)[None, :]
    pixel = place % TILE.pixels
    # A channel has `inner` lanes, at most TILE.pixels: gather the lanes of each channel.
    if TILE.channels > 1 and TILE.pixels > 1:
        at = place // TILE.pixels * TILE.lanes + channel * tl.minimum(grid.inner, TILE.pixels) + pixel
        value = tl.reshape(value, (TILE.rows * TILE.lanes,))
        value = tl.gather(value, tl.reshape(at, (TILE.rows * TILE.lanes,)).to(tl.int32), 0)
    value = tl.reshape(value, (TILE.rows * TILE.pixels, TILE.channels))
    return tl.where((pixel < pixels) & (channel < grid.together), value, 0.0)


@device_function
def sum_rows(value):
    """Sum of each column. In float64 under the interpreter: NumPy adds row after row, less accurately than a GPU in pairs."""
    if _INTERPRETED:
        total = tl.sum(value.to(tl.float64), axis=0).to(value.dtype)
    else:
        total = tl.sum(value, axis=0)
    return total
