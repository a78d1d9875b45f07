"""Copies of images and filters, in memory orders for the TMA kernels (TMA is Hopper's copy engine).

    to_channels_last   channels innermost, padded with zero channels to a given number
    to_images_last     images innermost
    to_bf16_terms      each float32 as three *bf16 terms*, bfloat16 values with the float32 as their sum; channels innermost
    merge_groups       the filters of several narrow groups as the filters of one group, channels innermost

A tile spans two axes: the one with the smallest stride in the source, and the one with the smallest stride in the copy. So
both loads and stores are coalesced. If the two are the same axis, the tile spans it and the next one.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..copy import fill
from ..device.function import device_function
from ..device.indexing import cdiv, offset_of
from ..device.precision import widen
from ..runtime import tuning
from ..runtime.allocate import empty
from ..runtime.interpreter import INTERPRETED
from ..runtime.launch import launch
from ..runtime.layout import index_type, memory_order
from ..runtime.settings import settings
from ..runtime.tuning import ElementTile

_TERMS = 3  # bfloat16 has 8 bits of a float32's 24
_LARGEST = tl.constexpr(torch.finfo(torch.bfloat16).max)
_INTERPRETED = tl.constexpr(INTERPRETED)


@device_function
def _bfloat16(value):
    """A float32 rounded to the nearest bfloat16, subnormals included. The interpreter truncates, so round the bits there."""
    if not _INTERPRETED:
        return value.to(tl.bfloat16)
    bits = value.to(tl.uint32, bitcast=True)
    bits += tl.where(value == value, 0x7FFF + ((bits >> 16) & 1), 0).to(tl.uint32)
    bits |= tl.where(value != value, 0x400000, 0).to(tl.uint32)  # keep a NaN whose set bits are all dropped
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@device_function
def _bf16_terms(value):
    """The three bf16 terms of a value."""
    within = tl.minimum(tl.maximum(value, -_LARGEST), _LARGEST)
    first = _bfloat16(tl.where(tl.abs(value) < float("inf"), within, value))
    rest = value - widen(first)
    rest = tl.where(rest == rest, rest, 0.0)  # NaN is the remainder of an infinity or a NaN
    second = _bfloat16(rest)
    return first, second, _bfloat16(rest - widen(second))


@triton.jit
def _relayout_kernel(
    x, out,
    x_strides, out_strides,
    sizes, filled, term_pitch,
    TERMS: tl.constexpr, X_LANES: tl.constexpr, X_ROWS: tl.constexpr, OUT_LANES: tl.constexpr,
    INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the copy, or of TERMS bf16 terms `term_pitch` elements apart. Lanes from `filled` on are zero.

    One instruction can move X_LANES lanes or X_ROWS rows of x, and OUT_LANES lanes of the copy. The kernel gives Triton hints
    for this, because by itself Triton finds only multiples of 16.
    """
    lanes, rows, outer_sizes = sizes
    x_lane, x_row, x_outer = x_strides
    out_lane, out_row, out_outer = out_strides
    across, down = cdiv(lanes, TILE.lanes), cdiv(rows, TILE.rows)
    program = tl.program_id(0)
    lane = ((program % across).to(INDEX) * TILE.lanes + tl.arange(0, TILE.lanes))[:, None]
    row = ((program // across % down).to(INDEX) * TILE.rows + tl.arange(0, TILE.rows))[None, :]
    outer = (program // across // down).to(INDEX)
    at = tl.multiple_of(offset_of(outer, outer_sizes, x_outer) + lane * x_lane + row * x_row, [X_LANES, X_ROWS])
    exists = tl.max_constancy((lane < filled) & (row < rows), [X_LANES, X_ROWS])
    value = tl.load(x + at, mask=exists, other=0.0)
    terms = (value,)
    if TERMS > 1:
        terms = _bf16_terms(value)
    at = tl.multiple_of(offset_of(outer, outer_sizes, out_outer) + lane * out_lane + row * out_row, [OUT_LANES, 1])
    exists = tl.max_constancy((lane < lanes) & (row < rows), [OUT_LANES, 1])
    for i in tl.static_range(TERMS):
        tl.store(out + tl.multiple_of(at + i * term_pitch, [OUT_LANES, 1]), terms[i], mask=exists)


def to_channels_last(x: Tensor, channels: int | None = None) -> Tensor:
    """`x` in dense channels_last memory, padded with zero channels to `channels`.

    Args:
        x: (N, C, H, W), any strides and dtype. A dense channels_last tensor at a multiple of 16 bytes is not copied.
        channels: at least C, the default.

    Returns:
        (N, channels, H, W) with the strides of the memory order (N, H, W, channels), even for axes of one element.
    """
    n, c, height, width = x.shape
    channels = channels or c
    strides = (height * width * channels, 1, width * channels, channels)
    if channels == c and x.data_ptr() % 16 == 0 and has_strides(x, strides):
        return x if x.stride() == strides else x.as_strided(x.shape, strides)
    out = empty(x, (n, height, width, channels)).permute(0, 3, 1, 2)
    if x.numel() == 0:
        return fill(out, 0.0)
    _copy(x, out)
    return out


def to_images_last(x: Tensor, least: int = 4) -> Tensor:
    """A copy in memory order (H, W, C, N'), with N rounded up to N', a multiple of `least`, so that TMA can read its rows.

    Args:
        x: (N, C, H, W), any strides and dtype.

    Returns:
        (N, C, H, W) with the strides of that memory order, even for axes of one element. The images from N to N' are not
        initialised.
    """
    n, c, height, width = x.shape
    out = empty(x, (height, width, c, triton.cdiv(n, least) * least)).permute(3, 2, 0, 1)[:n]
    if x.numel():
        _copy(x, out)
    return out


def to_bf16_terms(x: Tensor) -> Tensor:
    """Three bfloat16 terms with the sum `x`: the first is `x`, rounded; each later one is the remainder so far, rounded.

    The sum has all 24 bits, down to 2^-133, the smallest bfloat16: the error is less than half of it. For an infinity or a NaN,
    the first term is the value and the others are zero. No finite value becomes infinite.

    Args:
        x: float32 (N, C, H, W), any strides.

    Returns:
        (N, 3 C, H, W), dense channels_last: channels [0, C) are the first terms.
    """
    n, c, height, width = x.shape
    out = empty(x, (n, height, width, _TERMS * c), dtype=torch.bfloat16).permute(0, 3, 1, 2)
    if x.numel():
        _copy(x, out, _TERMS)
    return out


def copy_into(x: Tensor, out: Tensor) -> Tensor:
    """Fill and return `out`, of the shape and dtype of `x`. Both may have any memory order."""
    _copy(x, out)
    return out


def has_strides(x: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether a tensor has these strides, except along axes of one element."""
    return all(stride == wanted for size, stride, wanted in zip(x.shape, x.stride(), strides, strict=True) if size > 1)


def _copy(x: Tensor, out: Tensor, terms: int = 1) -> None:
    """Fill `out`. It may have more channels than `x`, filled with zeros, or `terms` times as many, for bf16 terms."""
    # Axes: the lanes follow the innermost axis of the copy. `filled` of them exist in x.
    if out.shape == x.shape:
        sizes, (out_strides, x_strides) = memory_order(out, x)
        filled = sizes[0]
    else:
        filled, (rest, (out_rest, x_rest)) = x.shape[1], memory_order(out[:, 0], x[:, 0])
        sizes = out.shape[1] // terms, *rest
        out_strides, x_strides = (out.stride(1), *out_rest), (x.stride(1), *x_rest)
    if len(sizes) == 1:
        sizes, out_strides, x_strides = (*sizes, 1), (*out_strides, 0), (*x_strides, 0)
    # Rows: the axis with the smallest stride in x or, if this is the axis of the lanes, the next axis.
    densest = min((a for a in range(len(sizes)) if x_strides[a]), key=lambda a: x_strides[a], default=0)
    row = densest or 1
    order = 0, row, *(a for a in range(1, len(sizes)) if a != row)
    sizes, out_strides, x_strides = (tuple(t[a] for a in order) for t in (sizes, out_strides, x_strides))
    tile = _tile(sizes[0], sizes[1], x)
    x_vector = _vector(x, (filled, *sizes[1:]), x_strides)
    programs = triton.cdiv(sizes[0], tile.lanes) * triton.cdiv(sizes[1], tile.rows) * math.prod(sizes[2:])
    launch(
        _relayout_kernel, programs, x, out,
        _nested(x_strides), _nested(out_strides),
        _nested(sizes), filled, sizes[0],
        TERMS=terms, X_LANES=x_vector.lanes, X_ROWS=x_vector.rows, OUT_LANES=_vector(out, sizes, out_strides).lanes,
        INDEX=index_type(x, out), TILE=tile, device=x.device,
    )  # fmt: skip


def _nested(axes: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """(lane, row, outer axes), the form of the kernel's arguments."""
    return axes[0], axes[1], axes[2:]


def _tile(lanes: int, rows: int, x: Tensor) -> ElementTile:
    """A tile as square as the axes allow: on a GPU 64 x 64, or 32 x 32 so that a small tensor fills the GPU."""
    if INTERPRETED:
        room = tuning.elementwise_block(x.numel())
    else:
        room = 4096 if x.numel() >= 4096 * settings.wanted_programs else 1024
    tile = [triton.next_power_of_2(lanes), triton.next_power_of_2(rows)]
    while tile[0] * tile[1] > room:
        tile[tile[1] >= tile[0]] //= 2
    return ElementTile(tile[1], tile[0])


def _vector(tensor: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...]) -> ElementTile:
    """The lanes or rows of a tile that one instruction moves: contiguous, aligned, and all or none of them masked.

    At most 16 bytes, the limit of an instruction; 1 x 1 if neither axis is contiguous.
    """
    if 1 not in strides[:2]:
        return ElementTile(1, 1)
    axis = strides.index(1)
    length = math.gcd(16 // tensor.element_size(), sizes[axis], *strides[:axis], *strides[axis + 1 :])
    return ElementTile(length, 1) if axis else ElementTile(1, length)


@triton.jit
def _merge_groups_kernel(
    w, out,
    w_strides,
    elements, taps_w, filters, channels, taps, channels_at_once, at_once,
    INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of the filters of merged groups, in memory order (K, R, S, channels_at_once).

    `at_once` groups of `channels` channels and `filters` filters become one, of `channels_at_once` channels.
    """
    w_k, w_c, w_r, w_s = w_strides
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    wide, rest = element % channels_at_once, element // channels_at_once
    tap, k = rest % taps, rest // taps
    # `wide` counts the channels of the merged group, `c` those of the filter's own group. All others are zeros.
    c = wide - k // filters % at_once * channels
    at = k * w_k + c * w_c + tap // taps_w * w_r + tap % taps_w * w_s
    value = tl.load(w + at, mask=(element < elements) & (c >= 0) & (c < channels), other=0.0)
    tl.store(out + element, value, mask=element < elements)


def merge_groups(w: Tensor, at_once: int, groups: int) -> Tensor:
    """The filters of a convolution with `groups` groups, for groups / at_once groups: zeros for channels of other groups.

    Args:
        w: (K, C / groups, R, S), any strides and dtype.
        at_once: the number of neighbouring groups merged into one.

    Returns:
        (K, at_once * C / groups, R, S), dense channels_last.
    """
    k, c, r, s = w.shape
    out = empty(w, (k, r, s, at_once * c)).permute(0, 3, 1, 2)
    block = tuning.elementwise_block(out.numel())
    launch(
        _merge_groups_kernel, triton.cdiv(out.numel(), block), w, out,
        w.stride(),
        out.numel(), s, k // groups, c, r * s, at_once * c, at_once,
        INDEX=index_type(w, out), BLOCK=block, device=w.device,
    )  # fmt: skip
    return out
