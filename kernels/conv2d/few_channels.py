"""Copies of images of few channels, as in the first layer of a network, for TMA to read.

TMA, Hopper's copy engine, moves *boxes* (CUDA's boxDim): blocks of a tensor whose rows are contiguous and start at multiples
of 16 bytes. A pixel of three channels does not meet either condition. But with channels innermost, the S * C elements of one
row of a window are contiguous, and the next window starts stride * C elements later. So this file makes a *window copy*: the
copy of an image in which each window is contiguous. Its memory order is (N, H, W', pitch). Channels are innermost and padded
with zeros to a `pitch` for which every window starts at a multiple of 16 bytes. Columns of zeros are added where windows reach
over an edge. A view of this copy has one pixel per window and image row; adjacent pixels overlap in memory:

    (N, S * pitch, H, Q), with strides (..., 1, ..., stride * pitch)

For a convolution with R x 1 taps this view is an image with S * pitch channels, the *depth*. It ends where its last window
ends, so the elements behind it are never multiplied, not even by zero. Rows over an edge are zeros from TMA, as in tma.py.
ResNet's 7 x 7 taps of 3 channels become 7 taps of 28 elements, AlexNet's 11 x 11 become 11 taps of 44.

The same kernel copies the filters into (K, R, S, pitch), with zeros up to whole blocks. Their gradient needs no copy:
tma_wgrad.py stores it in place. The convolution itself is in tma.py.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..device.indexing import cdiv, inside
from ..runtime import tuning
from ..runtime.allocate import empty
from ..runtime.interpreter import INTERPRETED
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type
from ..runtime.settings import settings

# Costs in units of one element moved by TMA from L2 to shared memory (half a picosecond on an H100).
# GATHER_COST: an element gathered by pointer.py, with about 60 instructions of a thread. COPY_COST: an element of the copy,
# written and read. LAUNCH_COST: two more kernel launches.
GATHER_COST, COPY_COST, LAUNCH_COST = 4, 2, 2**23


class WindowCopy(NamedTuple):
    """The plan of a window copy, and of the view of it with one pixel per window."""

    pitch: int  # elements per pixel, a power of two
    rows: int
    columns: int
    near: int  # columns of zeros at the near edge
    taps: int  # columns per window
    stride: int  # columns from one window to the next
    windows: int  # per row

    @property
    def depth(self) -> int:
        return self.taps * self.pitch

    def block(self, most: int) -> int:
        """The best BLOCK_K, at most `most`: the one with the fewest zeros past the depth. Ties go to the largest."""
        least = max(16, min(most // 2, triton.next_power_of_2(self.depth)))
        blocks = [n for n in (most, most // 2, most // 4, most // 8) if n >= least] or [most]
        return min(blocks, key=lambda n: triton.cdiv(self.depth, n) * n)


class CopyTile(NamedTuple):
    """The pixels that one program copies: `rows` x `columns`."""

    rows: int
    columns: int


def plan_window_copy(
    x: Tensor, w: Ints, size: Ints, stride: Ints, padding: Ints, dilation: Ints, unit: int
) -> WindowCopy | None:
    """Plan the window copy of a convolution's image; None if it does not pay.

    It does not pay if windows are one pixel, or if a box would be mostly zeros, as for one channel with few taps at stride 1.
    It is impossible if columns are dilated, because a window is not contiguous then.

    Args:
        w: (K, C, R, S), the sizes of the filters.
        size: (P, Q).
        unit: the number of elements in 16 bytes.
    """
    images, channels, height, _ = x.shape
    filters, _, taps_h, taps_w = w
    if taps_h * taps_w == 1 or dilation[1] != 1:
        return None
    pitch = max(triton.next_power_of_2(channels), unit // math.gcd(stride[1], unit))
    least = unit // math.gcd(pitch, unit)
    columns = triton.cdiv((size[1] - 1) * stride[1] + taps_w, least) * least
    rows = max(1, min(height, (size[0] - 1) * stride[0] + (taps_h - 1) * dilation[0] + 1 - padding[0]))
    plan = WindowCopy(pitch, rows, columns, padding[1], taps_w, stride[1], size[1])
    pixels, block = triton.cdiv(filters, 64) * images * size[0] * size[1], plan.block(8 * unit)  # per tile of filters
    gathered = pixels * triton.cdiv(channels * taps_h * taps_w, 16) * 16
    through_tma = pixels * taps_h * triton.cdiv(plan.depth, block) * block
    copied = images * rows * columns * pitch
    return plan if through_tma + COPY_COST * copied + LAUNCH_COST <= GATHER_COST * gathered else None


@triton.jit
def _few_channels_copy_kernel(
    x, copy,
    x_strides,
    channels, width, near, copy_height, rows, units,
    PITCH: tl.constexpr, UNIT: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the copy. Its images have `copy_height` rows, and its rows `units` times UNIT elements.

    UNIT is a compile-time factor of the row length, at most 16 bytes, so that Triton can store vectors.
    """
    x_n, x_c, x_h, x_w = x_strides
    across = cdiv(units, TILE.columns * PITCH // UNIT)
    program = tl.program_id(0)
    row = (program // across).to(INDEX) * TILE.rows + tl.arange(0, TILE.rows)
    first = program % across * TILE.columns
    w = first + tl.arange(0, TILE.columns) - near
    c = tl.arange(0, PITCH)
    at = (row // copy_height * x_n + row % copy_height * x_h)[:, None, None]
    at = at + (w.to(INDEX) * x_w)[None, :, None] + (c.to(INDEX) * x_c)[None, None, :]
    in_image = (row < rows)[:, None, None] & inside(w, width)[None, :, None] & (c < channels)[None, None, :]
    value = tl.load(x + at, mask=in_image, other=0.0)
    lane = first * PITCH + tl.arange(0, TILE.columns * PITCH)
    exists = (row < rows)[:, None] & (lane < units * UNIT)[None, :]
    at = (row * (units * UNIT))[:, None] + lane[None, :]
    tl.store(copy + at, tl.reshape(value, (TILE.rows, TILE.columns * PITCH)), mask=exists)


def copy_image(x: Tensor, plan: WindowCopy) -> Tensor:
    """The window copy of an image: (N, pitch, rows, columns), channels innermost.

    Args:
        x: (N, C, H, W), any strides.
    """
    return _copy(x, plan.rows, plan.columns, plan.pitch, plan.near)


def window_view(copy: Tensor, plan: WindowCopy) -> Tensor:
    """A view (N, depth, rows, windows) of a window copy: its pixels are rows of windows. The copy may have any memory order."""
    n, c, h, _ = copy.stride()
    return copy.as_strided((copy.shape[0], plan.depth, plan.rows, plan.windows), (n, c, h, plan.stride * plan.pitch * c))


def copy_filters(w: Tensor, plan: WindowCopy, block: int) -> Tensor:
    """The filters for a window view: (K, depth, R, 1), depth innermost and padded with zeros to a multiple of `block`.

    Args:
        w: (K, C, R, S), any strides.
        block: a multiple of the pitch.
    """
    depth = triton.cdiv(plan.depth, block) * block
    copy = _copy(w, w.shape[2], depth // plan.pitch, plan.pitch, 0)
    return copy.as_strided((w.shape[0], depth, w.shape[2], 1), (w.shape[2] * depth, 1, depth, depth))


def _copy(x: Tensor, rows: int, columns: int, pitch: int, near: int) -> Tensor:
    images, channels, _, width = x.shape
    copy = empty(x, (images, rows, columns, pitch))
    unit = math.gcd(16 // x.element_size(), columns * pitch)
    tile = _tile(images * rows, columns, pitch)
    launch(
        _few_channels_copy_kernel, triton.cdiv(images * rows, tile.rows) * triton.cdiv(columns, tile.columns), x, copy,
        x.stride(),
        channels, width, near, rows, images * rows, columns * pitch // unit,
        PITCH=pitch, UNIT=unit, INDEX=index_type(x, copy), TILE=tile, device=x.device,
    )  # fmt: skip
    return copy.permute(0, 3, 1, 2)


def _tile(rows: int, columns: int, pitch: int) -> CopyTile:
    """A tile of 16 elements per thread, or 8 so that a small copy fills the GPU, with few elements past the end of a row."""
    elements = rows * columns * pitch
    room = tuning.elementwise_block(elements) if INTERPRETED else 2048 if elements >= 2048 * settings.wanted_programs else 1024
    wide = triton.next_power_of_2(columns)
    while wide * pitch > room or (wide > 8 and not INTERPRETED and triton.cdiv(columns, wide) * wide > 1.25 * columns):
        wide //= 2
    return CopyTile(max(1, min(room // (wide * pitch), triton.next_power_of_2(rows))), wide)
