"""The gradient of 2-D convolution with respect to its filters on Hopper's copy engine and matrix instructions, in lines.

    acc[filters, channels] += dy[line, filters]^T @ x[line, channels]    for each line of pixels

A sum over pixels has a line of them as its depth: BLOCK_K images at one place, which there are for every batch, at any stride,
padding and dilation; or as many columns of one image. A line is what Triton keeps in shared memory as a left operand, which it
does not with a box of several rows. Both operands are copied there and multiplied from there, as in conv2d_tma.py.

One program does several taps of a row with one copy of dy, or of a column where rows have one tap. The lines are cut into parts
that fill the GPU, whose sums reduce.py adds in a fixed order. Lines for which a tap falls outside the image are left out.

Of narrow groups several are done as one; what that computes for channels of other groups is not stored. TF32's matrix
instruction sums along what lies side by side in memory: for that, both operands are copied with the images innermost.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device.function import device_function
from ..device.indexing import Axis, advanced, axes_of, big_from_small, cdiv, floor_div, smalls_that_hit
from ..device.precision import CROSS_PAIRS, conv_precision, dot, pair_of
from ..reduce import partials_of, sum_partials
from ..runtime.allocate import empty
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type
from ..runtime.tuning import Product, Tile, gemm_tile, splits
from .few_channels import Fold, folded, windows
from .relayout import channels_last, copied, images_last, planes
from .tma import (
    OUTSIDE,
    alignment_of,
    are_few,
    are_planes,
    first_fold,
    groups_at_once,
    is_hopper,
    operands_of,
)
from .tma_box import best_line, described, flat, is_readable, planar, strides_of


@device_function
def _summed(
    accs, steps, x, dy,
    n, p, q, first_p, end_p, first_q, end_q, r, s, x_channel, x_pitch, dy_channel, planes,
    H: tl.constexpr, W: tl.constexpr, SPAN: tl.constexpr, OF_IMAGES: tl.constexpr, IMAGES_LAST: tl.constexpr,
    PAIRS: tl.constexpr, APART: tl.constexpr, DOWN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """accs, one (BLOCK_M, BLOCK_N) for each tap from (r, s) on, along a row or DOWN a column, and the products of lines: of so
    many from (n, p, q) on, for each pair of planes."""
    BLOCK_M: tl.constexpr = accs[0].shape[0]
    BLOCK_N: tl.constexpr = accs[0].shape[1]
    pair = 0
    for _ in range(tl.maximum(steps * PAIRS, 1)):  # so that the compiler knows of a turn
        plane, other = pair_of(pair, PAIRS)
        k = dy_channel + plane * planes[1]
        a = dy.load((p, q, k, n) if IMAGES_LAST else (p, q, n, k) if OF_IMAGES else (n, p, q, k))
        boxes = ()  # one copy after the other, so that they have one barrier
        for i in tl.static_range(len(accs)):
            row, col = big_from_small(p, r + i * DOWN, H), big_from_small(q, s + i * (1 - DOWN), W)
            at = floor_div(col, SPAN)
            c = (col - at * SPAN) * x_pitch + x_channel + other * planes[0]
            box = x.load((row, col, c, n) if IMAGES_LAST else (row, col, n, c) if OF_IMAGES else (n, row, at, c))
            boxes = boxes + (box,)
        a = tl.reshape(a, (BLOCK_M, BLOCK_K)) if IMAGES_LAST else tl.reshape(a, (BLOCK_K, BLOCK_M)).T
        sums = ()
        for i in tl.static_range(len(accs)):
            b = tl.reshape(boxes[i], (BLOCK_N, BLOCK_K)).T if IMAGES_LAST else tl.reshape(boxes[i], (BLOCK_K, BLOCK_N))
            sums = sums + (dot(a, b, accs[i], PRECISION, APART),)
        accs = sums
        pair, carry = advanced(pair, 1, 0, PAIRS)
        q, carry = advanced(q, carry * (1 if OF_IMAGES else BLOCK_K), first_q, end_q)
        p, carry = advanced(p, carry, first_p, end_p)
        n += carry * (BLOCK_K if OF_IMAGES else 1)
    return accs


@device_function
def _zeros(TAPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    accs = ()
    for _ in tl.static_range(TAPS):
        accs = accs + (tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32),)
    return accs


@triton.jit
def _conv2d_wgrad_tma_kernel(
    x, dy, partials,
    dw_strides, dw_split,
    filters, channels, narrow_filters, narrow_channels, x_pitch, planes,
    line_tiles, height, width, out_height, out_width, parts,
    H: tl.constexpr, W: tl.constexpr, SPAN: tl.constexpr, OF_IMAGES: tl.constexpr, IMAGES_LAST: tl.constexpr,
    CROSS: tl.constexpr, TAPS: tl.constexpr, PITCH: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M filters and BLOCK_N channels of dw for TAPS taps, in one group, summed over one part of the lines.

    Where several narrow groups are one, a filter keeps what it has with the channels of its own. With a PITCH, x is what
    windows see of a copy by first2d.py: its channels are those of (S, PITCH), of which dw has `narrow_channels`.
    """
    dw_k, dw_c, dw_r, dw_s = dw_strides
    program = tl.program_id(0)
    filter_tiles, channel_tiles = cdiv(filters, BLOCK_M), cdiv(channels, BLOCK_N)
    filter_tile, program = program % filter_tiles, program // filter_tiles
    channel_tile, program = program % channel_tiles, program // channel_tiles
    DOWN: tl.constexpr = 1 if W.taps == 1 else 0
    TAPS_H: tl.constexpr = TAPS if DOWN else 1
    TAPS_W: tl.constexpr = 1 if DOWN else TAPS
    s, program = program % (W.taps // TAPS_W) * TAPS_W, program // (W.taps // TAPS_W)
    r, program = program % cdiv(H.taps, TAPS_H) * TAPS_H, program // cdiv(H.taps, TAPS_H)
    part, group = program % parts, program // parts

    first_p, count_p = smalls_that_hit(r, r + TAPS_H - 1, out_height, height, H)
    first_q, count_q = smalls_that_hit(s, s + TAPS_W - 1, out_width, width, W)
    end_p, end_q = first_p + count_p, first_q + count_q
    count_q = count_q if OF_IMAGES else cdiv(count_q, BLOCK_K)
    lines = tl.full((), line_tiles, tl.int64) * count_p * count_q
    first, last = (part * lines // parts).to(tl.int32), ((part + 1) * lines // parts).to(tl.int32)

    x_channel, dy_channel = group * channels + channel_tile * BLOCK_N, group * filters + filter_tile * BLOCK_M
    if first == last:
        x_channel, dy_channel = OUTSIDE, OUTSIDE
    count_p, count_q, steps = tl.maximum(count_p, 1), tl.maximum(count_q, 1), tl.maximum(last - first, 1)
    n, p = first // (count_q * count_p) * (BLOCK_K if OF_IMAGES else 1), first_p + first // count_q % count_p
    q = first_q + first % count_q * (1 if OF_IMAGES else BLOCK_K)

    accs = _zeros(TAPS, BLOCK_M, BLOCK_N)
    if CROSS:  # as in conv2d_tma.py
        accs = _summed(
            accs, steps, x, dy,
            n, p, q, first_p, end_p, first_q, end_q, r, s, x_channel, x_pitch, dy_channel, planes,
            H, W, SPAN, OF_IMAGES, IMAGES_LAST, CROSS, False, DOWN, PRECISION, BLOCK_K,
        )  # fmt: skip
        finite = ()
        for i in tl.static_range(TAPS):
            finite = finite + (tl.where(tl.abs(accs[i]) < float("inf"), accs[i], 0.0),)
        accs = finite
    accs = _summed(
        accs, steps, x, dy,
        n, p, q, first_p, end_p, first_q, end_q, r, s, x_channel, x_pitch, dy_channel, planes,
        H, W, SPAN, OF_IMAGES, IMAGES_LAST, 1, CROSS > 0, DOWN, PRECISION, BLOCK_K,
    )  # fmt: skip

    k = filter_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    c = channel_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    owned = (k < filters)[:, None] & (c < channels)[None, :]
    if PITCH:
        s, c = c // PITCH, c % PITCH
        owned &= (c < narrow_channels)[None, :]
    else:
        owned &= (k // narrow_filters)[:, None] == (c // narrow_channels)[None, :]
        c = c % narrow_channels
    at = ((group * filters + k).to(INDEX) * dw_k)[:, None] + (c * dw_c + s * dw_s)[None, :]
    partials += part.to(INDEX) * dw_split
    for i in tl.static_range(TAPS):
        value = accs[i].to(partials.dtype.element_ty)
        if DOWN:
            tl.store(partials + at + (r + i) * dw_r, value, mask=owned & (r + i < H.taps))
        else:
            tl.store(partials + at + r * dw_r + i * dw_s, value, mask=owned)


class Lines(NamedTuple):
    """How wgrad is done in lines."""

    x: Tensor  # as they come or views of them; copies are made when the kernel is started
    dy: Tensor
    H: Axis
    W: Axis
    groups: int
    filters: int  # of a group
    channels: int
    length: int
    of_images: bool
    inward: bool  # images innermost
    tile: Tile  # its k is the length
    block_n: int
    taps_at_once: int
    fold: Fold | None  # how the copy of an image of few channels is made

    @property
    def tiles(self) -> int:
        taps_h, taps_w = self.H.taps, self.W.taps
        turns = triton.cdiv(taps_h, self.taps_at_once) if taps_w == 1 else taps_h * taps_w // self.taps_at_once
        return triton.cdiv(self.filters, self.tile.m) * triton.cdiv(self.channels, self.block_n) * turns * self.groups


def plan_lines(x: Tensor, dy: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Lines | None:
    """How conv2d_wgrad does this in lines; None if it does not."""
    at_once = groups_at_once(x.shape[1] // groups, dy.shape[1] // groups, groups)
    groups //= at_once
    filters, channels, (taps_h, taps_w) = dy.shape[1] // groups, x.shape[1] // groups, size
    unit, in_planes = alignment_of(x), are_planes(x)
    if not is_hopper(x) or filters % unit:
        return None
    fold = first_fold(x, (filters, channels, *size), dy.shape[2:], stride, padding, dilation, groups)
    if fold:
        channels, taps_w, stride, padding, dilation = fold.depth, 1, (stride[0], 1), (padding[0], 0), (dilation[0], 1)
    elif channels % unit or are_few(filters, channels):
        return None
    elif taps_h * taps_w == 1 and tuple(padding) == (0, 0):
        x, stride = x[:, :, :: stride[0], :: stride[1]][:, :, : dy.shape[2], : dy.shape[3]], (1, 1)
        for seen in (flat, planar) if x.shape[2:] == dy.shape[2:] else ():
            if (image := seen(x)) is not None and (gradient := seen(dy)) is not None:
                # Pixels and images change places, which both are summed over: a line of images is then one of pixels.
                x, dy = (t.transpose(0, 3) for t in (image, gradient))
                break

    images, _, height, width = dy.shape
    padded = max(16, triton.next_power_of_2(channels))
    beside = (padded if fold else channels) * (taps_h if taps_w == 1 else taps_w)
    precision = "bf16x6" if in_planes else conv_precision(x.dtype, x.device)
    tile = gemm_tile(Product("tma wgrad", filters, beside, images * height * width, x.dtype, precision), x.device)
    inward = not in_planes and (x.dtype == torch.float32 or (not fold and is_readable(x, 0) and is_readable(dy, 0)))
    along_columns = not inward and (fold is not None or x.shape[3] % stride[1] == 0)
    length, of_images = best_line(tile.k, images, width if along_columns else 0)
    if length == 0:
        return None
    block_n = min(1 << tile.n.bit_length() - 1, padded, 256)
    most = max(1, min(tile.n, 320 if block_n > 64 else tile.n) // block_n)  # accumulators
    if taps_w == 1:  # in as few turns, of which the last may have fewer
        taps_at_once = triton.cdiv(taps_h, triton.cdiv(taps_h, most))
    else:
        taps_at_once = max(n for n in range(1, most + 1) if taps_w % n == 0)
    # Eight warps would share the columns of 64 filters, and read dy twice.
    warps = min(tile.warps, 4) if fold and tile.m == 64 and taps_at_once * block_n <= 256 else tile.warps
    H, W = axes_of((taps_h, taps_w), stride, padding, dilation)
    tile = tile._replace(k=length, warps=warps)
    return Lines(x, dy, H, W, groups, filters, channels, length, of_images, inward, tile, block_n, taps_at_once, fold)


def wgrad_lines(plan: Lines, dw: Tensor, groups: int) -> Tensor:
    """Fill the result of conv2d_wgrad of so many groups by its plan, and return it."""
    x, dy, tile, fold, inward = plan.x, plan.dy, plan.tile, plan.fold, plan.inward
    images, _, height, width = dy.shape
    plane_pitches, in_planes = (x.shape[1], dy.shape[1]), are_planes(x)
    if fold:
        copy = folded(x, fold)
        x = windows(images_last(copy) if inward else copy, fold)
    if in_planes:
        x, dy = planes(x), planes(dy)
    elif inward:
        x, dy = (image if is_readable(image, 0) else images_last(image) for image in (x, dy))
    else:
        x, dy = (image if is_readable(image) else channels_last(image) for image in (x, dy))
    span = 1 if plan.of_images else plan.W.stride
    parts = splits(plan.tiles, images * height * width, plan.length)
    # Sums are stored with channels innermost, as they stand side by side in a tile.
    sums = dw if dw.is_contiguous(memory_format=torch.channels_last) else empty(dw, dw.shape, channels_last=True)
    partials = partials_of(sums, parts)
    launch(
        _conv2d_wgrad_tma_kernel, plan.tiles * parts, _line(x, plan, plan.block_n, span), _line(dy, plan, tile.m, 1), partials,
        sums.stride(), dw.numel(),
        plan.filters, plan.channels, dw.shape[0] // groups, dw.shape[1], strides_of(x)[3], plane_pitches,
        triton.cdiv(images, plan.length) if plan.of_images else images, *x.shape[2:], height, width, parts,
        H=plan.H, W=plan.W, SPAN=span, OF_IMAGES=plan.of_images, IMAGES_LAST=inward,
        CROSS=CROSS_PAIRS if in_planes else 0, TAPS=plan.taps_at_once,
        PITCH=fold.pitch if fold else 0, PRECISION=operands_of(x), INDEX=index_type(partials),
        BLOCK_M=tile.m, BLOCK_N=plan.block_n, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=x.device,
    )  # fmt: skip
    sum_partials(partials, sums)
    return sums if sums is dw else copied(sums, dw)


def _line(image: Tensor, plan: Lines, channels: int, span: int) -> TensorDescriptor:
    """A descriptor of boxes of a line of pixels, with so many channels."""
    n, c, h, w = image.shape
    s_n, s_c, s_h, s_w = strides_of(image, 0 if plan.inward else 1)
    if plan.inward:
        return described(image, (h, w, c, n), (s_h, s_w, s_c, s_n), (1, 1, channels, plan.length))
    if plan.of_images:
        return described(image, (h, w, n, c), (s_h, s_w, s_n, 1), (1, 1, plan.length, channels))
    return described(image, (n, h, w // span, (span - 1) * s_w + c), (s_n, s_h, span * s_w, 1), (1, 1, plan.length, channels))
