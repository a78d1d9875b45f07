"""fprop and dgrad of 2-D convolution on Hopper's copy engine (TMA) and its matrix instructions (wgmma).

A *TMA box* (CUDA's boxDim) is the block of a tensor that one TMA copy moves. The host makes a descriptor of each tensor. With
it, one instruction copies a box of pixels and channels from global to shared memory and writes zeros outside the image, as
padding requires. wgmma multiplies operands in shared memory. So a program computes no addresses and no masks, and no operand
passes through registers:

    acc[channels, pixels] += w[channels, depth] @ box[pixels, depth]^T    for each tap, BLOCK_K of the depth at a time

The box is the right operand and the filters are the left one, since Triton keeps a box of several rows in shared memory only as
a right operand. So M counts channels and N counts pixels, the reverse of the table in passes.py. dgrad reads the same filters,
and wgmma transposes them without a copy. Its programs compute one *phase* each: pixels with equal h mod stride and equal w mod
stride, since these share their taps.

A box has (images, rows, columns) of the result, in the shape with the least work: for 7 x 7 images, a box of 64 pixels is one
pixel of 64 images. A box skips the taps outside the image for all of its pixels: dilated convolutions of small images would
spend most of their time on them. A column stride becomes a factor of the channels: the source is viewed as
(N, H, W / stride, stride * C). With a row stride, boxes have one row.

Some operands need a copy or a change first:

    few channels        TMA cannot read them in place. few_channels.py makes a *window copy*: the copy of an image in which each
                        window is contiguous.
    narrow groups       Up to 16 neighbouring groups are merged into one. The merged filters have zeros for other groups.
    TF32 in dgrad       wgmma sums TF32 only along the contiguous axis. relayout.py copies the filters into that order.
    float32, no TF32    relayout.py splits each value into three *bf16 terms*: bfloat16 values whose sum is the float32.
    contiguous images   relayout.py copies them into channels_last.

tma_wgrad.py computes the gradient of the filters. pointer.py has the kernels for all other cases, on any device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.epilogue import Epilogue, activate_channels, add_residual, scale_and_shift, store_statistics
from ..device.function import device_function
from ..device.indexing import (
    Axis,
    axes_of,
    big_from_small,
    cdiv,
    empty_tuple,
    floor_div,
    hitting_taps,
    increment,
    small_from_big,
)
from ..device.precision import CROSS_PAIRS, conv_precision, dot, term_pair
from ..runtime.hardware import architecture_of
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type
from ..runtime.settings import settings
from ..runtime.tuning import Gemm, GemmTile, gemm_tile
from ..statistics2d import PartialStatistics
from .few_channels import WindowCopy, copy_filters, copy_image, plan_window_copy, window_view
from .relayout import merge_groups, to_bf16_terms, to_channels_last
from .tma_box import Box, GatherAxis, best_box, flat_view, planar_view, tma_can_read, tma_descriptor, tma_strides

# Coordinates outside every tensor, where TMA reads zeros. A tile without taps multiplies those once: if the loop could run zero
# times, an instruction other than wgmma could write the sum, and ptxas would serialise every wgmma.
OUTSIDE = tl.constexpr(2**30)

# Above this many accumulators per thread, store in two parts so that the addresses fit in registers; with a second result or a
# residual, in eight.
MAX_STORED_AT_ONCE = 64

# With fewer channels on either side, the tensor cores would mostly multiply zeros.
MIN_CHANNELS = 32

# Merge narrow groups, at most MAX_MERGED_GROUPS, into one of MIN_GROUP_CHANNELS or more, and pad its filters with zeros.
MIN_GROUP_CHANNELS, MAX_MERGED_GROUPS = 64, 16


@device_function
def _accumulate(
    acc, steps, source, weight,
    n, top, left, first_h, first_w, hits_w, first_r, first_s,
    source_channel, source_pitch, weight_row, weight_channel, tap_pitch, channels, term_pitches,
    H: tl.constexpr, W: tl.constexpr, SPAN: tl.constexpr, PLANAR: tl.constexpr, ADJOINT: tl.constexpr,
    TRANSPOSED: tl.constexpr, PAIRS: tl.constexpr, APART: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc (BLOCK_M, pixels) + filters @ box^T, summed over all taps that hit, PAIRS pairs of bf16 terms, and channels.

    `steps` counts these taps times the blocks of channels. Taps are numbered (i, j), in dgrad within the phase: i begins with
    `first_h`, and j runs from `first_w` to first_w + hits_w - 1. Tap (0, 0) is (first_r, first_s) of the filter, and reads the
    box at (top, left) of image `n`.
    """
    c, pair, i, j = 0, 0, first_h, first_w
    for _ in range(tl.maximum(steps * PAIRS, 1)):  # the maximum proves to the compiler that the loop runs: see OUTSIDE
        term, other = term_pair(pair, PAIRS)
        if ADJOINT:
            row, col = top - i * H.tap_back, left - j * W.tap_back
            tap = (first_r + i * H.tap_step) * W.taps + first_s + j * W.tap_step
        else:
            row, col = top + i * H.dilation, left + j * W.dilation
            tap = i * W.taps + j
        channel = term * term_pitches[0] + source_channel + c
        at = floor_div(col, SPAN)
        coordinates = (n, channel, left) if PLANAR else (n, row, at, (col - at * SPAN) * source_pitch + channel)
        at = weight_channel + tap * tap_pitch + other * term_pitches[1]
        box = source.load(coordinates)  # consecutive copies share one barrier
        filters = weight.load((weight_row + c, at) if TRANSPOSED else (weight_row, at + c))
        box = tl.reshape(box, (BLOCK_K, acc.shape[1])) if PLANAR else tl.reshape(box, (acc.shape[1], BLOCK_K)).T
        filters = filters.T if TRANSPOSED else filters
        acc = dot(filters, box, acc, PRECISION, APART)
        c, carry = increment(c, BLOCK_K, 0, channels)
        pair, carry = increment(pair, carry, 0, PAIRS)
        j, carry = increment(j, carry, first_w, first_w + hits_w)
        i += carry
    return acc


@device_function
def _halves(acc):
    """The left half and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1)))


@device_function
def _parts(acc, PARTS: tl.constexpr):
    """The columns in 1, 2, 4 or 8 parts, from left to right."""
    if PARTS == 1:
        parts = (acc,)
    else:
        halves = _halves(acc)
        parts = _parts(halves[0], PARTS // 2) + _parts(halves[1], PARTS // 2)
    return parts


@device_function
def _offsets(n, row, col, channel, strides, INDEX: tl.constexpr):
    """Offsets of a (pixels, channels) tile."""
    pixels = n.to(INDEX) * strides[0] + row.to(INDEX) * strides[2] + col.to(INDEX) * strides[3]
    return pixels[:, None] + (channel.to(INDEX) * strides[1])[None, :]


@device_function
def _pixels_of_part(
    part, n0, row0, col0, first_row, first_col, images, height, width,
    H: tl.constexpr, W: tl.constexpr, BOX: tl.constexpr, ADJOINT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """(image, row, column, whether they are in the result) of the pixels of one of the parts."""
    at = part * (BOX.pixels // PARTS) + tl.arange(0, BOX.pixels // PARTS)
    n = n0 + at // (BOX.rows * BOX.columns)
    row, col = row0 + at // BOX.columns % BOX.rows, col0 + at % BOX.columns
    if ADJOINT:
        row, col = first_row + row * H.stride, first_col + col * W.stride
    # Boxes reach past the last image, row and column; the phases of dgrad differ in size.
    return n, row, col, (n < images) & (row < height) & (col < width)


@triton.jit
def _conv2d_gather_tma_kernel(
    source, weight, scale, bias, slopes, slope_stride, residual, result, kept, means, variances, counts,
    result_strides,
    channels_in, channels_out, source_pitch, tap_pitch, term_pitches, images, source_height, source_width,
    result_height, result_width, row_tiles, column_tiles, image_tiles, phases_h, phases_w,
    H: tl.constexpr, W: tl.constexpr, BOX: tl.constexpr, SPAN: tl.constexpr, PLANAR: tl.constexpr,
    ADJOINT: tl.constexpr, TRANSPOSED: tl.constexpr, CROSS: tl.constexpr, PARTS: tl.constexpr, AHEAD: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One BOX of pixels of the result and BLOCK_M of its channels, in one group and one phase.

    `source` is a descriptor of (N, H, W / SPAN, SPAN * source_pitch) or, if PLANAR, of (N, C, pixels). `weight` is a descriptor
    of (filters, taps * tap_pitch); if TRANSPOSED, its rows are the depth. `channels_in` and `channels_out` are per group.
    ADJOINT selects dgrad.

    SPAN is the column stride as a factor of the channels: SPAN columns, `source_pitch` elements apart, are viewed as one. CROSS
    is the number of products of small bf16 terms, 0 without terms; `term_pitches` are the channels per term in source and
    weight. The tile is stored in PARTS parts, and the residual of AHEAD parts is loaded at once.
    """
    # Channel tiles vary fastest: consecutive programs copy the same boxes, from L2.
    program = tl.program_id(0)
    channel_tiles = cdiv(channels_out, BLOCK_M)
    channel_tile, program = program % channel_tiles, program // channel_tiles
    pixel_tiles = column_tiles * row_tiles * image_tiles
    pixel_tile, program = program % pixel_tiles, program // pixel_tiles
    phase, group = program % (phases_h * phases_w), program // (phases_h * phases_w)
    col0 = pixel_tile % column_tiles * BOX.columns
    row0 = pixel_tile // column_tiles % row_tiles * BOX.rows
    n0 = pixel_tile // (column_tiles * row_tiles) * BOX.images

    # Loop over the taps inside the image for some pixel of the box; all other products are zero.
    if ADJOINT:
        first_row, first_col = phase // phases_w, phase % phases_w
        top, first_r, taps_h = small_from_big(first_row, H)
        left, first_s, taps_w = small_from_big(first_col, W)
        top, left = top + row0, left + col0
        first_h, hits_h = hitting_taps(top, BOX.rows - 1, source_height, taps_h, -H.tap_back)
        first_w, hits_w = hitting_taps(left, BOX.columns - 1, source_width, taps_w, -W.tap_back)
    else:
        first_row, first_col, first_r, first_s = 0, 0, 0, 0
        top, left = big_from_small(row0, 0, H), big_from_small(col0, 0, W)
        first_h, hits_h = hitting_taps(top, (BOX.rows - 1) * H.stride, source_height, H.taps, H.dilation)
        first_w, hits_w = hitting_taps(left, (BOX.columns - 1) * W.stride, source_width, W.taps, W.dilation)

    # The loop needs at least one step, even for a box without taps: see OUTSIDE.
    source_channel = group * channels_in
    weight_row = source_channel if TRANSPOSED else group * channels_out + channel_tile * BLOCK_M
    weight_channel = channel_tile * BLOCK_M if TRANSPOSED else 0
    if hits_h * hits_w == 0:
        source_channel, weight_row = OUTSIDE, OUTSIDE
    steps = tl.maximum(hits_h * hits_w * cdiv(channels_in, BLOCK_K), 1)

    # Add the CROSS products first: they are small. The product of the first terms alone decides where the result is infinite or
    # NaN, so replace non-finite sums by 0 before it.
    acc = tl.full((BLOCK_M, BOX.pixels), 0.0, tl.float32)
    if CROSS:
        acc = _accumulate(
            acc, steps, source, weight,
            n0, top, left, first_h, first_w, hits_w, first_r, first_s,
            source_channel, source_pitch, weight_row, weight_channel, tap_pitch, channels_in, term_pitches,
            H, W, SPAN, PLANAR, ADJOINT, TRANSPOSED, CROSS, False, PRECISION, BLOCK_K,
        )  # fmt: skip
        acc = tl.where(tl.abs(acc) < float("inf"), acc, 0.0)
    acc = _accumulate(
        acc, steps, source, weight,
        n0, top, left, first_h, first_w, hits_w, first_r, first_s,
        source_channel, source_pitch, weight_row, weight_channel, tap_pitch, channels_in, term_pitches,
        H, W, SPAN, PLANAR, ADJOINT, TRANSPOSED, 1, CROSS > 0, PRECISION, BLOCK_K,
    )  # fmt: skip

    # Transpose each part for the epilogue, so that channels run along the rows of the tile, and store it before the next part.
    channel = channel_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = channel < channels_out
    channel += group * channels_out
    stored = _parts(acc, PARTS)
    for i in tl.static_range(PARTS):
        if residual is not None and i % AHEAD == 0:
            ahead = empty_tuple()
            for j in tl.static_range(i, i + AHEAD):
                n, row, col, in_result = _pixels_of_part(
                    j, n0, row0, col0, first_row, first_col, images, result_height, result_width, H, W, BOX, ADJOINT, PARTS
                )
                to = _offsets(n, row, col, channel, result_strides, INDEX)
                ahead += (tl.load(residual + to, mask=in_result[:, None] & exists[None, :]),)
        n, row, col, in_result = _pixels_of_part(
            i, n0, row0, col0, first_row, first_col, images, result_height, result_width, H, W, BOX, ADJOINT, PARTS
        )
        value = scale_and_shift(stored[i].T, scale, bias, channel[None, :], exists[None, :])  # (pixels, BLOCK_M)
        if residual is not None:
            value = add_residual(value, ahead[i % AHEAD])
        # The result may have any strides, so store through pointers.
        if kept is not None:
            to = _offsets(n, row, col, channel, result_strides, INDEX)
            tl.store(kept + to, value.to(kept.dtype.element_ty), mask=in_result[:, None] & exists[None, :])
        value = activate_channels(value, slopes, slope_stride, channel[None, :], exists[None, :], ACTIVATION)
        value = value.to(result.dtype.element_ty)
        # Take the statistics of the rounded values, as the batch normalisation will read them.
        if means is not None:
            partial = pixel_tile * PARTS + i
            at = channel.to(INDEX) * (pixel_tiles * PARTS) + partial
            store_statistics(value, in_result, exists, means + at, variances + at)
            count = tl.sum(in_result.to(tl.int32), axis=0).to(counts.dtype.element_ty)
            tl.store(counts + partial, count, mask=(channel_tile == 0) & (group == 0))
        to = _offsets(n, row, col, channel, result_strides, INDEX)
        tl.store(result + to, value, mask=in_result[:, None] & exists[None, :])


class TmaGather(NamedTuple):
    """The plan of an fprop or a dgrad through TMA."""

    source: Tensor  # the given source or a view of it; run_tma_gather makes the copies
    size: tuple[int, int, int]  # images, rows and columns of the result
    view: Callable[[Tensor], Tensor | None] | None  # flat_view or planar_view if source and result are viewed so
    stride: Ints
    merged: int  # groups merged into one
    box: Box
    tile: GemmTile
    window_copy: WindowCopy | None = None  # for an image of few channels

    @property
    def parts(self) -> int:
        return 2 if self.tile.m * self.box.pixels > MAX_STORED_AT_ONCE * 32 * self.tile.warps else 1

    @property
    def partials(self) -> int:
        """The number of pixel tiles with partial statistics."""
        tiles = math.prod(triton.cdiv(size, block) for size, block in zip(self.size, self.box, strict=True))
        return tiles * self.parts


def plan_tma_gather(
    source: Tensor, weight: Tensor, shape: Ints, channels_last: bool,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool,
) -> TmaGather | None:  # fmt: skip
    """Plan fprop or dgrad through TMA for a result of this shape and memory format; None leaves it to pointer.py."""
    merged = count_merged_groups(source.shape[1] // groups, shape[1] // groups, groups)
    groups //= merged
    channels_in, channels_out = source.shape[1] // groups, shape[1] // groups
    if not may_use_tma(source) or 0 in (*source.shape, *weight.shape, *shape):
        return None
    unit, in_terms = channel_multiple(source), uses_bf16_terms(source)
    if not adjoint and (
        window_copy := plan_few_channels(source, weight.shape, shape[2:], stride, padding, dilation, merged * groups)
    ):
        return _plan_gather_of_copy(source, weight, shape, stride, padding, dilation, window_copy)
    # TMA needs a multiple of `unit` in each innermost axis: the source's channels, and in dgrad also the filters' channels.
    if channels_in % unit or channels_out % (unit if adjoint else 1) or too_few(channels_in, channels_out):
        return None
    # dgrad copies the filters for TF32 with one row per channel of a group: the copy has no rows for further groups.
    if adjoint and groups > 1 and source.dtype == torch.float32 and not in_terms:
        return None
    images, _, height, width = shape
    taps = weight.shape[2] * weight.shape[3]
    if taps == 1 and tuple(padding) == (0, 0) and not adjoint:
        source, stride = source[:, :, :: stride[0], :: stride[1]][:, :, :height, :width], (1, 1)
    view = None
    if taps == 1 and tuple(padding) == (0, 0) and tuple(stride) == (1, 1) and source.shape[2:] == shape[2:]:
        if channels_last and (image := flat_view(source)) is not None:
            view, source, images, height, width = flat_view, image, 1, 1, images * height * width
        elif not channels_last and source.dtype.itemsize == 2 and (image := planar_view(source)) is not None:
            view, source, height, width = planar_view, image, 1, height * width

    depth = channels_in * max(1, taps // (stride[0] * stride[1] if adjoint else 1))
    precision = "bf16x6" if in_terms else conv_precision(source.dtype, source.device)
    pixels = images * height * width * groups
    tile = gemm_tile(Gemm("tma conv2d", channels_out, pixels, depth, source.dtype, precision), source.device)
    block = min(tile.k, channels_in & -channels_in)
    if block < 16:  # the last block reaches past the channels, where the filters are zero
        if groups > 1 or in_terms or (stride[1] > 1 and not adjoint):
            return None
        block = tile.k
    axes = axes_of(weight.shape[2:], stride, padding, dilation)
    strided = [step > 1 and not adjoint for step in stride]
    rows = GatherAxis(height, source.shape[2], axes[0], adjoint, strided[0])
    columns = GatherAxis(width, source.shape[3], axes[1], adjoint, strided[1] and source.shape[3] % stride[1] != 0)
    box = Box(1, 1, tile.n) if view is not None else best_box(tile.n, images, rows, columns)
    return TmaGather(source, (images, height, width), view, stride, merged, box, tile._replace(k=block))


def _plan_gather_of_copy(
    x: Tensor, w: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, window_copy: WindowCopy
) -> TmaGather:
    """Plan fprop of an image of few channels, as a convolution with R x 1 taps of the view of its window copy."""
    (images, filters, height, width), taps = shape, w.shape[2]
    precision = conv_precision(x.dtype, x.device)
    tile = gemm_tile(
        Gemm("tma conv2d", filters, images * height * width, taps * window_copy.depth, x.dtype, precision), x.device
    )
    block = window_copy.block(tile.k)
    rows = GatherAxis(height, window_copy.rows, Axis(taps, stride[0], padding[0], dilation[0]), False, stride[0] > 1)
    columns = GatherAxis(width, width, Axis(1, 1, 0, 1), False)
    # The slack lets wide boxes win: adjacent windows overlap, and L2 serves the overlap.
    box = best_box(tile.n, images, rows, columns, slack=0.1)
    tile = tile._replace(k=block, stages=tile.stages * tile.k // block)
    return TmaGather(x, (images, height, width), None, (stride[0], 1), 1, box, tile, window_copy)


def plan_few_channels(
    x: Tensor, w: Ints, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> WindowCopy | None:
    """Plan the window copy of an image of few channels for many filters of sizes `w`, (K, C, R, S); None for other cases."""
    if groups > 1 or not too_few(w[1]) or too_few(w[0]) or uses_bf16_terms(x):
        return None
    return plan_window_copy(x, w, size, stride, padding, dilation, channel_multiple(x))


def run_tma_gather(
    plan: TmaGather, weight: Tensor, epilogue: Epilogue, result: Tensor,
    padding: Ints, dilation: Ints, groups: int, adjoint: bool, partials: PartialStatistics | None,
) -> None:  # fmt: skip
    """Fill the result by its plan. The other arguments are those of run_gather in passes.py."""
    # Copies and views: all operands that TMA cannot read in place.
    source, (images, height, width), view, stride, merged, box, tile, window_copy = plan
    if window_copy:
        source, weight = window_view(copy_image(source, window_copy), window_copy), copy_filters(weight, window_copy, tile.k)
        padding, dilation = (padding[0], 0), (dilation[0], 1)
    if merged > 1:
        weight, groups = merge_groups(weight, merged, groups), groups // merged
    if view is flat_view:
        result = result.permute(0, 2, 3, 1).view(1, 1, -1, result.shape[1]).permute(0, 3, 1, 2)
    elif view is planar_view:
        result = result.view(*result.shape[:2], 1, -1)
    channels_in, channels_out, taps = source.shape[1] // groups, result.shape[1] // groups, weight.shape[2:]
    term_pitches = source.shape[1], weight.shape[1]
    in_terms = uses_bf16_terms(source)
    if in_terms:
        source, weight = to_bf16_terms(source), to_bf16_terms(weight)
    elif view is not planar_view and not tma_can_read(source):
        source = to_channels_last(source)
    transposed = adjoint and source.dtype.itemsize == 2
    if adjoint and not transposed:
        weight = weight.transpose(0, 1)
    if not transposed and weight.shape[1] % tile.k and taps.numel() > 1:
        weight = to_channels_last(weight, triton.cdiv(weight.shape[1], tile.k) * tile.k)
    elif not in_terms:
        weight = to_channels_last(weight)

    # Tiles and descriptors: dgrad has the tiles of its largest phase, in each phase.
    phases_h, phases_w = (min(stride[0], height), min(stride[1], width)) if adjoint else (1, 1)
    rows, columns = (triton.cdiv(size, step if adjoint else 1) for size, step in zip((height, width), stride, strict=True))
    image_tiles, row_tiles, column_tiles = map(triton.cdiv, (images, rows, columns), box)
    span = stride[1] if box.columns > 1 and not adjoint else 1
    x_n, x_c, x_h, x_w = tma_strides(source)
    if view is planar_view:
        descriptor = tma_descriptor(source, (images, source.shape[1], width), (x_n, x_c, 1), (1, tile.k, box.columns))
    else:
        size = source.shape[0], source.shape[2], source.shape[3] // span, (span - 1) * x_w + source.shape[1]
        descriptor = tma_descriptor(source, size, (x_n, x_h, span * x_w, 1), (*box, tile.k))
    H, W = axes_of(taps, stride, padding, dilation)
    matrix = weight.shape[0], weight.shape[1] * taps.numel()
    means, variances, counts = partials if partials is not None else (None, None, None)
    parts = plan.parts * (1 if epilogue.kept is None and epilogue.residual is None else 4)
    # Load the residual of half the parts at once, to wait for memory only twice. 32 bits would need too many registers, and so
    # would loads of single elements.
    ahead = parts // 2 if epilogue.residual is not None and result.dtype.itemsize == 2 and result.stride(1) == 1 else 1
    launch(
        _conv2d_gather_tma_kernel,
        image_tiles * row_tiles * column_tiles * triton.cdiv(channels_out, tile.m) * phases_h * phases_w * groups,
        descriptor, tma_descriptor(weight, matrix, (matrix[1], 1), (tile.k, tile.m) if transposed else (tile.m, tile.k)),
        *epilogue.operands, epilogue.residual, result, epilogue.kept, means, variances, counts,
        result.stride(),
        channels_in, channels_out, x_w, weight.shape[1], term_pitches, images, source.shape[2], source.shape[3],
        height, width, row_tiles, column_tiles, image_tiles, phases_h, phases_w,
        H=H, W=W, BOX=box, SPAN=span, PLANAR=view is planar_view, ADJOINT=adjoint, TRANSPOSED=transposed,
        CROSS=CROSS_PAIRS if in_terms else 0, PARTS=parts, AHEAD=ahead,
        ACTIVATION=epilogue.constant, PRECISION=operand_precision(source), INDEX=index_type(result, *(partials or ())),
        BLOCK_M=tile.m, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=source.device,
    )  # fmt: skip


def count_merged_groups(channels_in: int, channels_out: int, groups: int) -> int:
    """The number of neighbouring groups to merge into one, so that the tensor cores multiply more than padding; 1 for none."""
    few = min(channels_in, channels_out)
    enough = (n for n in range(1, min(groups, MAX_MERGED_GROUPS) + 1) if groups % n == 0 and n * few >= MIN_GROUP_CHANNELS)
    return next(enough, 1)


def too_few(*channels: int) -> bool:
    """Whether one of these numbers of channels would leave the tensor cores mostly multiplying zeros."""
    return min(channels) < MIN_CHANNELS


def may_use_tma(tensor: Tensor) -> bool:
    """Whether the TMA kernels support this tensor's dtype and device."""
    name = architecture_of(tensor.device)
    return tensor.dtype.itemsize <= 4 and (name == "sm_90" or name == "interpreter" and settings.interpret_tma)


def uses_bf16_terms(image: Tensor) -> bool:
    """Whether to multiply this image as bf16 terms: it is float32, and torch forbids TF32."""
    return image.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != "tf32"


def channel_multiple(image: Tensor) -> int:
    """Every number of channels must be a multiple of this: TMA needs multiples of 16 bytes."""
    return 8 if uses_bf16_terms(image) else 16 // image.dtype.itemsize


def operand_precision(image: Tensor) -> str:
    """`input_precision` of a product with this operand."""
    return "tf32" if image.dtype == torch.float32 else "ieee"
