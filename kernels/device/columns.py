"""Traversal of an image for kernels limited by memory bandwidth: a program fills some columns, one row after the other.

It is for pixels that depend on pixels at other positions: pooling, resizing, padding, depthwise convolution. walk.py is for
operators that use all tensors at the same position. Its columns are defined differently.

The plan divides an image tensor (N, C, H, W) among the programs:

    column   one (n, c, w): the H elements below each other in one channel of one image
    row      one h
    tile     the elements that a program computes in one iteration: its columns, in one row
    split    a range of consecutive rows; each program fills its columns in one split

A kernel computes once, before its loop, all values that depend on the column. The row is a scalar. So an iteration costs only
the loads, the arithmetic and the stores of one tile:

    n, c, col, first, steps = program_columns(...)
    for step in range(steps):
        row = first + step

Example: a contiguous image of shape (2, 3, 8, 5) has 2 * 3 * 5 = 30 columns of 8 rows. Two tiles of 16 lanes cover them; the
last two lanes of the second tile repeat column 29. With 2 splits of 4 rows there are 2 * 2 = 4 programs. Program 3 fills the
columns 16 to 29 in the rows 4 to 7: `first` is 4, `steps` is 4, and n, c and col are blocks with one element per column.

The lanes of a tile follow the memory order of the image, so that loads and stores coalesce. A channels_last tile has another
axis, of `columns` positions:

    order             lanes, fastest index first                    other axis
    "channels_last"   channels                                      w, then n
    "few channels"    channels, w, n of a channels_last image       1
    "contiguous"      w, c, n                                       1

Splits exist because the tiles alone may be too few to fill the GPU. Sizes are run-time arguments: a new shape compiles no new
kernel.

The interpreter takes the same time for a small tile as for a large one. There a tile covers several splits at once, stacked
along its other axis, and `first` is a block instead of a scalar.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..runtime import tuning
from ..runtime.hardware import architecture_of
from ..runtime.layout import Ints, index_type, is_channels_last
from ..runtime.settings import settings
from .function import device_function
from .indexing import Axis

MIN_ROWS = 6  # of a split on a GPU: the work before the loop must pay off
PROGRAMS = 4  # number of programs to aim for, in multiples of settings.wanted_programs


class ColumnTile(NamedTuple):
    """Tile of one program, a compile-time constant: a block of shape (splits * columns, lanes)."""

    order: str
    whole: bool  # every tile is full
    splits: int  # splits per program; 1 on a GPU
    columns: int  # length of the other axis, in positions (n, w); 1 except in "channels_last"
    lanes: int


class TapRange(NamedTuple):
    """Indices along an axis whose loads need no mask, at any position: low <= index < high.

    In a forward pass the indices are taps, inside the image in every window. In a gradient they count the windows or outputs
    near a pixel.
    """

    low: int
    high: int


def taps_always_inside(axis: Axis, size: int, out_size: int) -> TapRange:
    """The taps inside the image in every one of `out_size` windows over `size` pixels."""
    low = min(axis.taps, -(-axis.padding // axis.dilation))
    last_window = (out_size - 1) * axis.stride - axis.padding
    return TapRange(low, max(low, min(axis.taps, (size - 1 - last_window) // axis.dilation + 1)))


@device_function
def program_columns(grid, height, width, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(image, channel, column, first row, number of rows) of this program, from the grid of plan_columns.

    Lanes past the last column or channel repeat the last one. They read and write the same values, so no mask is needed.
    """
    # `places` is the number of positions: (n, w) in "channels_last", else (n, c, w). Channel tiles vary fastest, then splits.
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
    if TILE.splits > 1:  # splits have equal length here; lanes past the last split repeat it
        first = tl.minimum(split * TILE.splits + row // TILE.columns, splits - 1) * rows_per_split
        steps = rows_per_split
    else:
        first = split * rows_per_split
        steps = tl.minimum(first + rows_per_split, height) - first
    return n, c, col, first, steps


@device_function
def any_row(condition, TILE: tl.constexpr):
    """Whether some row of the tile may meet a condition: `if any_row(...)` guards work for the rows that meet it.

    On a GPU the row is a scalar, and the answer is the condition. If the row is a block, the answer is True.
    """
    if TILE.splits > 1:
        condition = True
    return condition


@device_function
def all_rows(condition, TILE: tl.constexpr):
    """Whether all rows of the tile surely meet a condition: `if all_rows(...)` guards a shortcut.

    On a GPU the row is a scalar, and the answer is the condition. If the row is a block, the answer is False.
    """
    if TILE.splits > 1:
        condition = False
    return condition


@device_function
def full_tile(value, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """A tile filled with one value."""
    return tl.full((TILE.splits * TILE.columns, TILE.lanes), value, DTYPE)


@device_function
def plane_at(tensor, strides, n, c):
    """The (H, W) plane of one channel of an image: its first element, its row stride and its column stride."""
    return tensor + (n * strides[0] + c * strides[1]), strides[2], strides[3]


def wide_index_type(axes: Iterable[Sequence[Any]], *tensors: Tensor) -> tl.dtype:
    """Integer type for offsets into the tensors, and for products of the first two numbers of an axis: bin_start forms them."""
    return tl.int64 if max((axis[0] + 1) * (axis[1] + 1) for axis in axes) >= 2**31 else index_type(*tensors)


class ColumnPlan(NamedTuple):
    """Launch of a kernel over an image: the number of programs, and the arguments of program_columns."""

    programs: int
    grid: tuple[int, ...]
    tile: ColumnTile
    strides: list[tuple[int, ...]]  # of each tensor, for the indices of program_columns


def plan_columns(
    image: Tensor, tensors: Sequence[Tensor], channels_last: bool | None = None, room: int = 1024, lanes: int = 256,
    size: Ints = (),
) -> ColumnPlan:  # fmt: skip
    """Plan the traversal of an image (N, C, H, W), and of other tensors with the same N and C.

    Args:
        channels_last: the order of the tiles; by default the order of the image's strides.
        room: largest number of elements of a channels_last tile.
        lanes: largest number of elements of any other tile.
        size: rows and columns to traverse; by default (H, W).
    """
    # Order of the lanes, and the axes: divisions are slow, so merge images and channels where their strides allow it.
    n, c, height, width = (*image.shape[:2], *(size or image.shape[2:]))
    channels_last = is_channels_last(image) if channels_last is None else channels_last
    order = "contiguous" if not channels_last else "few channels" if c % 8 else "channels_last"
    strides = [tensor.stride() for tensor in tensors]
    if image.numel() == 0:
        return ColumnPlan(0, (1,) * 6, ColumnTile(order, False, 1, 1, 16), strides)
    if order == "contiguous" and strides and all(s[0] == c * s[1] for s in strides):
        n, c, strides = n * c, 1, [(s[1], 0, *s[2:]) for s in strides]
    # Size of a tile: `across` columns by `lanes` lanes.
    interpreted = architecture_of(image.device) == "interpreter"
    if image.dtype.itemsize == 8:  # twice the registers per element
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
    # Splits of the rows: enough to fill the GPU.
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
