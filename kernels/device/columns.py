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

LEAST_ROWS = 6  # of a part on a GPU: before its first row a kernel computes what depends on the column
PROGRAMS = 4  # parts are cut so that there are this many times settings.wanted_programs


class Tile(NamedTuple):
    """The columns of a program, known when a kernel is compiled: its shape is (parts * columns, lanes)."""

    order: str
    whole: bool  # whether every tile is full
    parts: int
    columns: int
    lanes: int


class Taps(NamedTuple):
    """The taps of an axis that lie inside the image for every window: low <= tap < high."""

    low: int
    high: int


def always_inside(axis: Axis, size: int, out_size: int) -> Taps:
    """Those taps, for `out_size` windows over `size` pixels."""
    low = min(axis.taps, -(-axis.padding // axis.dilation))
    last_window = (out_size - 1) * axis.stride - axis.padding
    return Taps(low, max(low, min(axis.taps, (size - 1 - last_window) // axis.dilation + 1)))


@device_function
def columns_of(cut, height, width, INDEX: tl.constexpr, TILE: tl.constexpr):
    """(image, channel, column, first row, number of rows) of this program, of an image that `cut` cuts.

    A column or channel past the last is the last once more: it reads and writes the same, and needs no mask.
    """
    places, channels, parts, part_tiles, channel_tiles, rows_per_part = cut
    program = tl.program_id(0)
    channel_tile, program = program % channel_tiles, program // channel_tiles
    part, tile = (program % part_tiles).to(INDEX), (program // part_tiles).to(INDEX)
    row, lane = tl.arange(0, TILE.parts * TILE.columns)[:, None], tl.arange(0, TILE.lanes)[None, :]
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
    if TILE.parts > 1:  # whole parts, of which the last may be there twice
        first = tl.minimum(part * TILE.parts + row // TILE.columns, parts - 1) * rows_per_part
        steps = rows_per_part
    else:
        first = part * rows_per_part
        steps = tl.minimum(first + rows_per_part, height) - first
    return n, c, col, first, steps


@device_function
def some(condition, TILE: tl.constexpr):
    """Whether to do at all what a condition on the row allows: where the row is a block, some of it may need it."""
    if TILE.parts > 1:
        condition = True
    return condition


@device_function
def all_of(condition, TILE: tl.constexpr):
    """Whether a condition on the row is true; where the row is a block, nobody knows."""
    if TILE.parts > 1:
        condition = False
    return condition


@device_function
def filled(value, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of one value."""
    return tl.full((TILE.parts * TILE.columns, TILE.lanes), value, DTYPE)


@device_function
def plane_of(tensor, strides, n, c):
    """Where a channel of an image begins, and the strides of its rows and columns."""
    return tensor + (n * strides[0] + c * strides[1]), strides[2], strides[3]


def wide_index_type(axes: Iterable[Sequence[Any]], *tensors: Tensor) -> tl.dtype:
    """The type of offsets, and of products of the first two numbers of an axis."""
    return tl.int64 if max((axis[0] + 1) * (axis[1] + 1) for axis in axes) >= 2**31 else index_type(*tensors)


class Columns(NamedTuple):
    """How an image is filled: the number of programs, and the arguments that columns_of needs in the kernel."""

    programs: int
    cut: tuple[int, ...]
    tile: Tile
    strides: list[tuple[int, ...]]  # of the tensors


def columns(
    image: Tensor, tensors: Sequence[Tensor], channels_last: bool | None = None, room: int = 1024, lanes: int = 256,
    size: Ints = (),
) -> Columns:  # fmt: skip
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
        return Columns(0, (1,) * 6, Tile(order, False, 1, 1, 16), strides)
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
        rows_per_part = max(rows for rows in range(1, settings.interpreted_rows + 1) if height % rows == 0)
        parts = height // rows_per_part
        parts_at_once = min(triton.next_power_of_2(parts), room // (across * lanes))
    else:
        wanted = PROGRAMS * settings.wanted_programs // (place_tiles * channel_tiles)
        rows_per_part = triton.cdiv(height, max(1, min(wanted, height // LEAST_ROWS)))
        parts, parts_at_once = triton.cdiv(height, rows_per_part), 1
    part_tiles = triton.cdiv(parts, parts_at_once)
    cut = (places, c, parts, part_tiles, channel_tiles, rows_per_part)
    return Columns(place_tiles * part_tiles * channel_tiles, cut, Tile(order, whole, parts_at_once, across, lanes), strides)
