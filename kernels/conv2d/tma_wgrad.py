"""wgrad of 2-D convolution on Hopper's copy engine (TMA) and its matrix instructions (wgmma).

    acc[filters, channels] += dy[run, filters]^T @ x[run, channels]    for each run of pixels

A *run* is BLOCK_K pixels of the sum: consecutive columns of one image, or one pixel in consecutive images. The latter works
for every batch, stride, padding and dilation. A *TMA box* (CUDA's boxDim) is the block of a tensor that one TMA copy moves,
here a run of pixels and some of their channels. Triton keeps a run in shared memory as a left operand, unlike a box of several
rows. So TMA copies both operands to shared memory and wgmma multiplies them there, as in tma.py.

One program computes several taps of a filter row with one copy of dy; or of a filter column, if rows have one tap. It skips
the pixels for which all of these taps are outside the image. The runs are divided into *splits*, enough to fill the GPU.
reduce.py adds the sums of the splits in a fixed order.

Some operands need a copy or a change first:

    few channels        Read from a *window copy*: the copy of an image in which each window is contiguous (few_channels.py).
    narrow groups       Merged, as in tma.py. The products between different groups are not stored.
    TF32                wgmma sums TF32 only along the contiguous axis, so both operands are copied with images innermost:
                        memory order (H, W, C, N).
    float32, no TF32    Split into three *bf16 terms*: bfloat16 values whose sum is the float32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device.function import device_function
from ..device.indexing import Axis, axes_of, big_from_small, cdiv, floor_div, increment, small_pixels_hit
from ..device.precision import CROSS_PAIRS, conv_precision, dot, term_pair
from ..reduce import partials_of, sum_partials
from ..runtime.allocate import empty
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type
from ..runtime.tuning import Gemm, GemmTile, count_splits, gemm_tile
from .few_channels import WindowCopy, copy_image, window_view
from .relayout import copy_into, to_bf16_terms, to_channels_last, to_images_last
from .tma import (
    OUTSIDE,
    channel_multiple,
    count_merged_groups,
    may_use_tma,
    operand_precision,
    plan_few_channels,
    too_few,
    uses_bf16_terms,
)
from .tma_box import best_run, flat_view, planar_view, tma_can_read, tma_descriptor, tma_strides


@device_function
def _accumulate(
    accs, steps, x, dy,
    n, p, q, first_p, end_p, first_q, end_q, r, s, x_channel, x_pitch, dy_channel, term_pitches,
    H: tl.constexpr, W: tl.constexpr, SPAN: tl.constexpr, ALONG_IMAGES: tl.constexpr, IMAGES_LAST: tl.constexpr,
    PAIRS: tl.constexpr, APART: tl.constexpr, DOWN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """accs + dy^T @ x, summed over `steps` runs from (n, p, q) on and PAIRS pairs of bf16 terms.

    accs has one (BLOCK_M, BLOCK_N) sum per tap. The taps begin at (r, s) and follow a filter row or, if DOWN, a filter column.
    """
    BLOCK_M: tl.constexpr = accs[0].shape[0]
    BLOCK_N: tl.constexpr = accs[0].shape[1]
    pair = 0
    for _ in range(tl.maximum(steps * PAIRS, 1)):  # the maximum proves to the compiler that the loop runs
        term, other = term_pair(pair, PAIRS)
        k = dy_channel + term * term_pitches[1]
        a = dy.load((p, q, k, n) if IMAGES_LAST else (p, q, n, k) if ALONG_IMAGES else (n, p, q, k))
        boxes = ()  # consecutive copies share one barrier
        for i in tl.static_range(len(accs)):
            row, col = big_from_small(p, r + i * DOWN, H), big_from_small(q, s + i * (1 - DOWN), W)
            at = floor_div(col, SPAN)
            c = (col - at * SPAN) * x_pitch + x_channel + other * term_pitches[0]
            box = x.load((row, col, c, n) if IMAGES_LAST else (row, col, n, c) if ALONG_IMAGES else (n, row, at, c))
            boxes = boxes + (box,)
        a = tl.reshape(a, (BLOCK_M, BLOCK_K)) if IMAGES_LAST else tl.reshape(a, (BLOCK_K, BLOCK_M)).T
        sums = ()
        for i in tl.static_range(len(accs)):
            b = tl.reshape(boxes[i], (BLOCK_N, BLOCK_K)).T if IMAGES_LAST else tl.reshape(boxes[i], (BLOCK_K, BLOCK_N))
            sums = sums + (dot(a, b, accs[i], PRECISION, APART),)
        accs = sums
        pair, carry = increment(pair, 1, 0, PAIRS)
        q, carry = increment(q, carry * (1 if ALONG_IMAGES else BLOCK_K), first_q, end_q)
        p, carry = increment(p, carry, first_p, end_p)
        n += carry * (BLOCK_K if ALONG_IMAGES else 1)
    return accs


@device_function
def _zeros(TAPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """One accumulator per tap."""
    accs = ()
    for _ in tl.static_range(TAPS):
        accs = accs + (tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32),)
    return accs


@triton.jit
def _conv2d_wgrad_tma_kernel(
    x, dy, partials,
    dw_strides, dw_split,
    filters, channels, narrow_filters, narrow_channels, x_pitch, term_pitches,
    run_tiles, height, width, out_height, out_width, splits,
    H: tl.constexpr, W: tl.constexpr, SPAN: tl.constexpr, ALONG_IMAGES: tl.constexpr, IMAGES_LAST: tl.constexpr,
    CROSS: tl.constexpr, TAPS: tl.constexpr, PITCH: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M filters and BLOCK_N channels of dw for TAPS taps, in one group, summed over one split of the runs.

    `filters` and `channels` are per group after merging, `narrow_filters` and `narrow_channels` before. `run_tiles` is the
    number of images or, with ALONG_IMAGES, of runs that cover all images.

    Where narrow groups are merged, the program stores the products of each filter with the channels of its own group. With a
    PITCH, x is a view of a window copy: its channels are (S, PITCH), and dw has the first `narrow_channels` of each PITCH.

    With ALONG_IMAGES a run is one pixel in consecutive images. With IMAGES_LAST it is too, and images are innermost in memory.
    SPAN and CROSS are the same as in tma.py.
    """
    dw_k, dw_c, dw_r, dw_s = dw_strides
    # Filter tiles vary fastest: consecutive programs copy the same runs of x, from L2.
    program = tl.program_id(0)
    filter_tiles, channel_tiles = cdiv(filters, BLOCK_M), cdiv(channels, BLOCK_N)
    filter_tile, program = program % filter_tiles, program // filter_tiles
    channel_tile, program = program % channel_tiles, program // channel_tiles
    DOWN: tl.constexpr = 1 if W.taps == 1 else 0
    TAPS_H: tl.constexpr = TAPS if DOWN else 1
    TAPS_W: tl.constexpr = 1 if DOWN else TAPS
    s, program = program % (W.taps // TAPS_W) * TAPS_W, program // (W.taps // TAPS_W)
    r, program = program % cdiv(H.taps, TAPS_H) * TAPS_H, program // cdiv(H.taps, TAPS_H)
    split, group = program % splits, program // splits

    # Number the runs of the pixels under any of these taps, in int64: runs * splits may exceed int32.
    first_p, count_p = small_pixels_hit(r, r + TAPS_H - 1, out_height, height, H)
    first_q, count_q = small_pixels_hit(s, s + TAPS_W - 1, out_width, width, W)
    end_p, end_q = first_p + count_p, first_q + count_q
    count_q = count_q if ALONG_IMAGES else cdiv(count_q, BLOCK_K)
    runs = tl.full((), run_tiles, tl.int64) * count_p * count_q
    first, last = (split * runs // splits).to(tl.int32), ((split + 1) * runs // splits).to(tl.int32)

    # An empty split multiplies zeros once, from outside both tensors: see OUTSIDE in tma.py.
    x_channel, dy_channel = group * channels + channel_tile * BLOCK_N, group * filters + filter_tile * BLOCK_M
    if first == last:
        x_channel, dy_channel = OUTSIDE, OUTSIDE
    count_p, count_q, steps = tl.maximum(count_p, 1), tl.maximum(count_q, 1), tl.maximum(last - first, 1)
    n, p = first // (count_q * count_p) * (BLOCK_K if ALONG_IMAGES else 1), first_p + first // count_q % count_p
    q = first_q + first % count_q * (1 if ALONG_IMAGES else BLOCK_K)

    # Add the small CROSS products first, and replace non-finite sums by 0, as in tma.py.
    accs = _zeros(TAPS, BLOCK_M, BLOCK_N)
    if CROSS:
        accs = _accumulate(
            accs, steps, x, dy,
            n, p, q, first_p, end_p, first_q, end_q, r, s, x_channel, x_pitch, dy_channel, term_pitches,
            H, W, SPAN, ALONG_IMAGES, IMAGES_LAST, CROSS, False, DOWN, PRECISION, BLOCK_K,
        )  # fmt: skip
        finite = ()
        for i in tl.static_range(TAPS):
            finite = finite + (tl.where(tl.abs(accs[i]) < float("inf"), accs[i], 0.0),)
        accs = finite
    accs = _accumulate(
        accs, steps, x, dy,
        n, p, q, first_p, end_p, first_q, end_q, r, s, x_channel, x_pitch, dy_channel, term_pitches,
        H, W, SPAN, ALONG_IMAGES, IMAGES_LAST, 1, CROSS > 0, DOWN, PRECISION, BLOCK_K,
    )  # fmt: skip

    # Mask the products that are no element of dw: beyond its filters and channels, in the padded pitch, between merged groups.
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
    partials += split.to(INDEX) * dw_split
    # TAPS divides a filter row, but down a column the last program may have fewer taps.
    for i in tl.static_range(TAPS):
        value = accs[i].to(partials.dtype.element_ty)
        if DOWN:
            tl.store(partials + at + (r + i) * dw_r, value, mask=owned & (r + i < H.taps))
        else:
            tl.store(partials + at + r * dw_r + i * dw_s, value, mask=owned)


class TmaWgrad(NamedTuple):
    """The plan of a wgrad through TMA."""

    x: Tensor  # the given x and dy, or views of them; run_tma_wgrad makes the copies
    dy: Tensor
    H: Axis
    W: Axis
    groups: int
    filters: int  # per group
    channels: int  # per group
    run: int  # pixels
    along_images: bool  # a run is one pixel in consecutive images
    images_last: bool  # copy x and dy with images innermost
    tile: GemmTile  # tile.k == run
    block_n: int
    taps_at_once: int
    window_copy: WindowCopy | None  # for an image of few channels

    @property
    def tiles(self) -> int:
        taps_h, taps_w = self.H.taps, self.W.taps
        tap_blocks = triton.cdiv(taps_h, self.taps_at_once) if taps_w == 1 else taps_h * taps_w // self.taps_at_once
        return triton.cdiv(self.filters, self.tile.m) * triton.cdiv(self.channels, self.block_n) * tap_blocks * self.groups


def plan_tma_wgrad(
    x: Tensor, dy: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> TmaWgrad | None:
    """Plan conv2d_wgrad through TMA; None leaves it to pointer.py."""
    merged = count_merged_groups(x.shape[1] // groups, dy.shape[1] // groups, groups)
    groups //= merged
    filters, channels, (taps_h, taps_w) = dy.shape[1] // groups, x.shape[1] // groups, size
    unit, in_terms = channel_multiple(x), uses_bf16_terms(x)
    if not may_use_tma(x) or filters % unit:
        return None
    window_copy = plan_few_channels(x, (filters, channels, *size), dy.shape[2:], stride, padding, dilation, groups)
    if window_copy:
        channels, taps_w, stride, padding, dilation = window_copy.depth, 1, (stride[0], 1), (padding[0], 0), (dilation[0], 1)
    elif channels % unit or too_few(filters, channels):
        return None
    elif taps_h * taps_w == 1 and tuple(padding) == (0, 0):
        x, stride = x[:, :, :: stride[0], :: stride[1]][:, :, : dy.shape[2], : dy.shape[3]], (1, 1)
        for view in (flat_view, planar_view) if x.shape[2:] == dy.shape[2:] else ():
            if (image := view(x)) is not None and (gradient := view(dy)) is not None:
                # wgrad sums over images and pixels alike: swap the two axes, and a run of images is a run of pixels.
                x, dy = (t.transpose(0, 3) for t in (image, gradient))
                break

    images, _, height, width = dy.shape
    padded = max(16, triton.next_power_of_2(channels))
    product_n = (padded if window_copy else channels) * (taps_h if taps_w == 1 else taps_w)
    precision = "bf16x6" if in_terms else conv_precision(x.dtype, x.device)
    tile = gemm_tile(Gemm("tma wgrad", filters, product_n, images * height * width, x.dtype, precision), x.device)
    # TF32 needs images innermost. For 16-bit images, use this order only if both tensors already have it.
    images_last = not in_terms and (
        x.dtype == torch.float32 or (not window_copy and tma_can_read(x, 0) and tma_can_read(dy, 0))
    )
    # A run of columns views `stride` columns of x as one, so the stride must divide the width.
    along_columns = not images_last and (window_copy is not None or x.shape[3] % stride[1] == 0)
    run, along_images = best_run(tile.k, images, width if along_columns else 0)
    if run == 0:
        return None
    block_n = min(1 << tile.n.bit_length() - 1, padded, 256)
    max_accumulators = max(1, min(tile.n, 320 if block_n > 64 else tile.n) // block_n)
    if taps_w == 1:  # the fewest programs per column; the last may have fewer taps
        taps_at_once = triton.cdiv(taps_h, triton.cdiv(taps_h, max_accumulators))
    else:
        taps_at_once = max(n for n in range(1, max_accumulators + 1) if taps_w % n == 0)
    # Eight warps would split the columns of a tile of 64 filters, and dy would be read twice.
    warps = min(tile.warps, 4) if window_copy and tile.m == 64 and taps_at_once * block_n <= 256 else tile.warps
    H, W = axes_of((taps_h, taps_w), stride, padding, dilation)
    tile = tile._replace(k=run, warps=warps)
    return TmaWgrad(
        x, dy, H, W, groups, filters, channels, run, along_images, images_last, tile, block_n, taps_at_once, window_copy
    )


def run_tma_wgrad(plan: TmaWgrad, dw: Tensor, groups: int) -> Tensor:
    """Fill and return the result of conv2d_wgrad by its plan. `groups` counts the groups before merging."""
    x, dy, tile, window_copy, images_last = plan.x, plan.dy, plan.tile, plan.window_copy, plan.images_last
    images, _, height, width = dy.shape
    term_pitches, in_terms = (x.shape[1], dy.shape[1]), uses_bf16_terms(x)
    if window_copy:
        copy = copy_image(x, window_copy)
        x = window_view(to_images_last(copy) if images_last else copy, window_copy)
    if in_terms:
        x, dy = to_bf16_terms(x), to_bf16_terms(dy)
    elif images_last:
        x, dy = (image if tma_can_read(image, 0) else to_images_last(image) for image in (x, dy))
    else:
        x, dy = (image if tma_can_read(image) else to_channels_last(image) for image in (x, dy))
    span = 1 if plan.along_images else plan.W.stride
    splits = count_splits(plan.tiles, images * height * width, plan.run)
    # Store sums with channels innermost, as in a tile, so that the stores are contiguous.
    sums = dw if dw.is_contiguous(memory_format=torch.channels_last) else empty(dw, dw.shape, channels_last=True)
    partials = partials_of(sums, splits)
    launch(
        _conv2d_wgrad_tma_kernel, plan.tiles * splits,
        _run_descriptor(x, plan, plan.block_n, span), _run_descriptor(dy, plan, tile.m, 1), partials,
        sums.stride(), dw.numel(),
        plan.filters, plan.channels, dw.shape[0] // groups, dw.shape[1], tma_strides(x)[3], term_pitches,
        triton.cdiv(images, plan.run) if plan.along_images else images, *x.shape[2:], height, width, splits,
        H=plan.H, W=plan.W, SPAN=span, ALONG_IMAGES=plan.along_images, IMAGES_LAST=images_last,
        CROSS=CROSS_PAIRS if in_terms else 0, TAPS=plan.taps_at_once,
        PITCH=window_copy.pitch if window_copy else 0, PRECISION=operand_precision(x), INDEX=index_type(partials),
        BLOCK_M=tile.m, BLOCK_N=plan.block_n, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=x.device,
    )  # fmt: skip
    sum_partials(partials, sums)
    return sums if sums is dw else copy_into(sums, dw)


def _run_descriptor(image: Tensor, plan: TmaWgrad, channels: int, span: int) -> TensorDescriptor:
    """A descriptor with boxes of one run and `channels` channels; `span` columns are merged into the channels."""
    n, c, h, w = image.shape
    s_n, s_c, s_h, s_w = tma_strides(image, 0 if plan.images_last else 1)
    if plan.images_last:
        return tma_descriptor(image, (h, w, c, n), (s_h, s_w, s_c, s_n), (1, 1, channels, plan.run))
    if plan.along_images:
        return tma_descriptor(image, (h, w, n, c), (s_h, s_w, s_n, 1), (1, 1, plan.run, channels))
    return tma_descriptor(image, (n, h, w // span, (span - 1) * s_w + c), (s_n, s_h, span * s_w, 1), (1, 1, plan.run, channels))
