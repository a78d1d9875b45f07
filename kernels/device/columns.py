"""A walk down the rows: how a kernel fills an image when the memory, and not arithmetic, should set its speed.

A program owns a tile of columns and walks down one part of the rows:

    n, c, col, first, steps = columns_of(...)
    for step in range(steps):
        row = first + step

What depends on the column is computed once, before the loop. What depends on the row is a scalar. So a step costs its loads,
its arithmetic and its stores. Sizes are known at run time only: a new shape needs no new kernel.

    order             along the lanes of a tile, neighbours in memory            along its rows
    "channels_last"   channels                                                   columns of all images
    "few channels"    channels, then columns of all images, in channels_last
    "contiguous"      columns of all images and channels

The interpreter pays for each step and not for its size. There a tile takes several parts of the rows at once, along its own
rows, and `first` is a block instead of a scalar.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..runtime import tuning
from ..runtime.hardware import architecture
from ..runtime.layout import Ints, index_type, is_channels_last
from ..runtime.settings import settings
from .function import device_function
from .indexing import Axis

MIN_ROWS = 6  # of a part on a GPU: before its first row a kernel computes what depends on the column
PROGRAMS = 4  # parts are cut so that there are this many times settings.wanted_programs


class ColumnTile(NamedTuple):
    """The columns of a program, known when a kernel is compiled: its shape is (parts * columns, lanes)."""

    order: str
    whole: bool  # whether every tile is full
    splits: int
    columns: int
    lanes: int


class TapRange(NamedTuple):
    """The taps of an axis that lie inside the image for every window: low <= tap < high."""

    low: int
    high: int


def taps_always_inside(axis: Axis, size: int, out_size: int) -> TapRange:
    """Those taps, for `out_size` windows over `size` pixels."""
    low = min(axis.taps, -(-axis.padding // axis.dilation))
    last_window = (out_size - 1) * axis.stride - axis.padding
    return TapRange(low, max(low, min(axis.taps, (size - 1 - last_window) // axis.dilation + 1)))


@device_function
def program_columns(grid, height, width, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(image, channel, column, first row, number of rows) of this program, of an image that `cut` cuts.

    A column or channel past the last is the last once more: it reads and writes the same, and needs no mask.
    """
    places, channels, splits, split_tiles, channel_tiles, rows_per_split = grid
    program = tl.program_id(0)
    channel_tile, program = program % channel_tiles, program // channel_tiles
    split, tile = (program % split_tiles).to(INDEX), (program // split_tiles).to(INDEX)
    row, lane = tl.arange(0, TILE.splits * TILE.columns)[:, None], tl.arange(0, TILE.lanes)[None, :]
    if TILE.order == "channels_last":
        place, c = tile * TILE.columns + row % TILE.columns, channel_tile.to(INDEX) * TILE.lanes + lane
        if not TILE.whole:
            place, c = tl.minimum(place, places - 1), tl.minimum(c, channels - 1)
        n, col = place // width, place % width
    else:
        place = tile * TILE.lanes + lane
        if not TILE.whole:
            place = tl.minimum(place, places - 1)
        if TILE.order == "few channels":
            c, place = place % channels, place // channels
            n, col = place // width, place % width
        else:
            plane, col = place // width, place % width
            n, c = plane // channels, plane % channels
    if TILE.splits > 1:  # whole parts, of which the last may be there twice
        first = tl.minimum(split * TILE.splits + row // TILE.columns, splits - 1) * rows_per_split
        steps = rows_per_split
    else:
        first = split * rows_per_split
        steps = tl.minimum(first + rows_per_split, height) - first
    return n, c, col, first, steps


@device_function
def any_row(condition, TILE: tl.constexpr):
    """Whether to do at all what a condition on the row allows: where the row is a block, some of it may need it."""
    if TILE.splits > 1:
        condition = True
    return condition


@device_function
def all_rows(condition, TILE: tl.constexpr):
    """Whether a condition on the row is true; where the row is a block, nobody knows."""
    if TILE.splits > 1:
        condition = False
    return condition


@device_function
def full_tile(value, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of one value."""
    return tl.full((TILE.splits * TILE.columns, TILE.lanes), value, DTYPE)


@device_function
def plane_at(tensor, strides, n, c):
    """Where a channel of an image begins, and the strides of its rows and columns."""
    return tensor + (n * strides[0] + c * strides[1]), strides[2], strides[3]


def wide_index_type(axes: Iterable[Sequence[Any]], *tensors: Tensor) -> tl.dtype:
    """The type of offsets, and of products of the first two numbers of an axis."""
    return tl.int64 if max((axis[0] + 1) * (axis[1] + 1) for axis in axes) >= 2**31 else index_type(*tensors)


class ColumnPlan(NamedTuple):
    """How an image is filled: the number of programs, and the arguments that columns_of needs in the kernel."""

    programs: int
    grid: tuple[int, ...]
    tile: ColumnTile
    strides: list[tuple[int, ...]]  # of the tensors


def plan_columns(
    image: Tensor, tensors: Sequence[Tensor], channels_last: bool | None = None, room: int = 1024, lanes: int = 256,
    size: Ints = (),
) -> ColumnPlan:  # fmt: skip
    """The columns of an image (N, C, H, W), and the strides of these tensors, which have the same images and channels.

    Args:
        channels_last: the order, where the strides of the image do not tell.
        room: elements of a tile in channels_last.
        lanes: elements of a tile that lies along columns.
        size: rows and columns to walk, if they are not those of the image.
    """
    n, c, height, width = (*image.shape[:2], *(size or image.shape[2:]))
    channels_last = is_channels_last(image) if channels_last is None else channels_last
    order = "contiguous" if not channels_last else "few channels" if c % 8 else "channels_last"
    strides = [tensor.stride() for tensor in tensors]
    if image.numel() == 0:
        return ColumnPlan(0, (1,) * 6, ColumnTile(order, False, 1, 1, 16), strides)
    if order == "contiguous" and strides and all(s[0] == c * s[1] for s in strides):
        n, c, strides = n * c, 1, [(s[1], 0, *s[2:]) for s in strides]  # a channel is an image: there is less to divide
    interpreted = architecture(image.device) == "interpreter"
    if image.dtype.itemsize == 8:  # takes twice as many registers
        room, lanes = room // 2, lanes // 2
    if interpreted:
        room = lanes = tuning.elementwise_block(n * c * height * width)
    if order == "channels_last":
        places, lanes = n * width, min(triton.next_power_of_2(c), room) if interpreted else min(c & -c, 128)
        across, channel_tiles = min(triton.next_power_of_2(places), room // lanes), triton.cdiv(c, lanes)
        place_tiles, whole = triton.cdiv(places, across), places % across == 0 and c % lanes == 0
    else:
        places, lanes = n * c * width, min(max(16, triton.next_power_of_2(n * c * width)), lanes)
        across, channel_tiles, place_tiles, whole = 1, 1, triton.cdiv(places, lanes), places % lanes == 0
    if interpreted:
        rows_per_split = max(rows for rows in range(1, settings.interpreted_rows + 1) if height % rows == 0)
        splits = height // rows_per_split
        splits_at_once = min(triton.next_power_of_2(splits), room // (across * lanes))
    else:
        wanted = PROGRAMS * settings.wanted_programs // (place_tiles * channel_tiles)
        rows_per_split = triton.cdiv(height, max(1, min(wanted, height // MIN_ROWS)))
        splits, splits_at_once = triton.cdiv(height, rows_per_split), 1
    split_tiles = triton.cdiv(splits, splits_at_once)
    grid = (places, c, splits, split_tiles, channel_tiles, rows_per_split)
    return ColumnPlan(
        place_tiles * split_tiles * channel_tiles, grid, ColumnTile(order, whole, splits_at_once, across, lanes), strides
    )
