"""First layers: images of few channels, copied so that Hopper's copy engine takes them.

The engine moves whole lines, from addresses that are multiples of 16 bytes; a pixel of three channels is neither. But where
channels are innermost, the S * C numbers of a row that a window sees lie side by side, and those that the next window sees lie
stride * C further on. So the image is copied into memory (N, H, W', pitch): channels innermost, with zeros up to a `pitch` with
which every window starts at a multiple of 16 bytes, and with columns of zeros where windows lie over an edge. Of that a view
whose pixels are what windows see of a row, and overlap,

    (N, S * pitch, H, Q), with strides (..., 1, ..., stride * pitch)

is the image of a convolution with R x 1 taps and all of S * pitch to sum over at each. It ends where a window does, so that
what lies behind that in memory is not multiplied, not even by zero. Rows over an edge are the engine's zeros, as always.
ResNet's 7 x 7 taps of 3 channels become 7 of 28 numbers, AlexNet's 11 x 11 become 11 of 44.

Filters are copied into (K, R, S, pitch) by the same kernel, with zeros up to whole blocks. Their gradient needs no copy:
conv2d_tma.py, which does all the rest, stores it where it belongs.
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

# In elements that a box takes from L2 to shared memory, which takes an H100 half a picosecond each: what one costs conv2d.py's
# kernels, that gather them one by one with some 60 of a thread's instructions; to write one of the copy and to read it; and to
# start two kernels more.
GATHERED, COPIED, STARTED = 4, 2, 2**23


class WindowCopy(NamedTuple):
    """How an image is copied, and how windows see the copy."""

    pitch: int  # elements of a column, a power of two
    rows: int
    columns: int
    near: int  # columns of zeros at the near edge
    taps: int  # columns that a window sees
    stride: int  # columns from one window to the next
    windows: int  # in a row

    @property
    def depth(self) -> int:
        return self.taps * self.pitch

    def block(self, most: int) -> int:
        """How much of the depth is summed over at once, at most so much: lines that are long, and few zeros past the depth."""
        least = max(16, min(most // 2, triton.next_power_of_2(self.depth)))
        blocks = [n for n in (most, most // 2, most // 4, most // 8) if n >= least] or [most]
        return min(blocks, key=lambda n: triton.cdiv(self.depth, n) * n)


class CopyTile(NamedTuple):
    """What a program copies: so many columns of so many rows."""

    rows: int
    columns: int


def plan_window_copy(
    x: Tensor, w: Ints, size: Ints, stride: Ints, padding: Ints, dilation: Ints, unit: int
) -> WindowCopy | None:
    """How the image of a convolution is copied, for lines from multiples of `unit` elements on; None if that does not pay.

    It does unless most of what a box holds is zeros, as for one channel with few taps at stride 1, or windows are one pixel.

    Args:
        w: (K, C, R, S), the sizes of the filters.
        size: (P, Q).
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
    pixels, block = triton.cdiv(filters, 64) * images * size[0] * size[1], plan.block(8 * unit)  # once for each tile of filters
    gathered = pixels * triton.cdiv(channels * taps_h * taps_w, 16) * 16
    in_boxes = pixels * taps_h * triton.cdiv(plan.depth, block) * block
    copied = images * rows * columns * pitch
    return plan if in_boxes + COPIED * copied + STARTED <= GATHERED * gathered else None


@triton.jit
def _few_channels_copy_kernel(
    x, folded,
    x_strides,
    channels, width, near, high, rows, units,
    PITCH: tl.constexpr, UNIT: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the copy, as rows that are `units` times UNIT elements long, `high` of them an image."""
    x_n, x_c, x_h, x_w = x_strides
    across = cdiv(units, TILE.columns * PITCH // UNIT)
    program = tl.program_id(0)
    row = (program // across).to(INDEX) * TILE.rows + tl.arange(0, TILE.rows)
    first = program % across * TILE.columns
    w = first + tl.arange(0, TILE.columns) - near
    c = tl.arange(0, PITCH)
    at = (row // high * x_n + row % high * x_h)[:, None, None]
    at = at + (w.to(INDEX) * x_w)[None, :, None] + (c.to(INDEX) * x_c)[None, None, :]
    there = (row < rows)[:, None, None] & inside(w, width)[None, :, None] & (c < channels)[None, None, :]
    value = tl.load(x + at, mask=there, other=0.0)
    lane = first * PITCH + tl.arange(0, TILE.columns * PITCH)
    exists = (row < rows)[:, None] & (lane < units * UNIT)[None, :]
    at = (row * (units * UNIT))[:, None] + lane[None, :]
    tl.store(folded + at, tl.reshape(value, (TILE.rows, TILE.columns * PITCH)), mask=exists)


def copy_image(x: Tensor, plan: WindowCopy) -> Tensor:
    """The copy, as (N, pitch, rows, columns) with channels innermost.

    Args:
        x: (N, C, H, W), any strides.
    """
    return _copy(x, plan.rows, plan.columns, plan.pitch, plan.near)


def window_view(copy: Tensor, plan: WindowCopy) -> Tensor:
    """What windows see of each row of a copy, in whichever order it lies in memory: (N, depth, rows, windows), a view."""
    n, c, h, _ = copy.stride()
    return copy.as_strided((copy.shape[0], plan.depth, plan.rows, plan.windows), (n, c, h, plan.stride * plan.pitch * c))


def copy_filters(w: Tensor, plan: WindowCopy, block: int) -> Tensor:
    """The filters for what windows see: (K, depth, R, 1), its depth innermost and with zeros up to a multiple of `block`.

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
    """16 elements for each thread, or 8 so that a small copy fills the GPU; not too many of them past the end of a row."""
    elements = rows * columns * pitch
    room = tuning.elementwise_block(elements) if INTERPRETED else 2048 if elements >= 2048 * settings.wanted_programs else 1024
    wide = triton.next_power_of_2(columns)
    while wide * pitch > room or (wide > 8 and not INTERPRETED and triton.cdiv(columns, wide) * wide > 1.25 * columns):
        wide //= 2
    return CopyTile(max(1, min(room // (wide * pitch), triton.next_power_of_2(rows))), wide)
