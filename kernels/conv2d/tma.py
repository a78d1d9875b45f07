"""2-D convolution on Hopper's copy engine (TMA) and its matrix instructions (wgmma): conv2d.py's fprop and dgrad, in boxes.

A host-side descriptor of an image lets one instruction copy a box of pixels and channels from global to shared memory, and
write zeros for what lies outside the image, which is what padding asks for. wgmma multiplies what lies in shared memory. So
there are no addresses to compute, no masks, and no operand passes through registers:

    acc[channels, pixels] += w[channels, depth] @ box[pixels, depth]^T    for each tap, BLOCK_K of the depth at a time

The box stands on the right of the product and the filters on the left, since Triton keeps a box of several rows in shared
memory only as a right operand. dgrad reads the same filters, transposed by wgmma; no copy is made.

A box is (images, rows, columns) of the result, whichever shape of so many pixels wastes the least: 64 pixels of 7 x 7 images
are one pixel of 64 images. Taps that fall outside the image for all of a box are skipped; dilated convolutions of small images
spend most of their time on those. A stride along the columns becomes a factor of the channels, as in a view
(N, H, W / stride, stride * C); rows that are strided have boxes of one row.

Images of few channels, which a copy engine does not take, are done by way of what first2d.py makes of them. Narrow groups
become wide ones, a block of 16 or fewer of them at once, by filters with zeros. TF32's matrix instruction sums along what lies
side by side in memory, and nothing else: its dgrad takes filters from a copy in that order, which relayout.py makes. It makes
channels_last copies of contiguous images too.

conv2d_tma_wgrad.py has the gradient of the filters. conv2d.py has kernels for all that is not done here, on any device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.epilogue import finished, store_statistics
from ..device.function import device_function
from ..device.indexing import Axis, advanced, axes_of, big_from_small, cdiv, floor_div, hitting_taps, small_from_big
from ..device.precision import CROSS_PAIRS, conv_precision, dot, pair_of
from ..runtime.hardware import architecture
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type
from ..runtime.settings import settings
from ..runtime.tuning import Product, Tile, gemm_tile
from ..statistics2d import Parts
from .few_channels import Fold, fold_of, folded, folded_filters, windows
from .relayout import channels_last, planes, spread
from .tma_box import Along, Box, best_box, described, flat, is_readable, planar, strides_of

# Where no tap hits a tile, it is multiplied once by zeros, which come from this far outside of both tensors. Around a loop that
# may have no turn there would be a way on which others than wgmma write its sum, and ptxas would have each wgmma wait for the
# one before.
OUTSIDE = tl.constexpr(2**30)

# If a thread has more numbers of a tile, they are stored one half after the other: where they go must fit its registers too.
STORED_AT_ONCE = 64

# Channels on either side, for which the tensor cores would mostly multiply zeros.
FEWEST = 32

# Groups with fewer channels become one of so many or more, with zeros among its filters, but no more than that of them at once.
WIDE, MOST_AT_ONCE = 64, 16


@device_function
def _summed(
    acc, steps, source, weight,
    n, top, left, first_h, first_w, hits_w, first_r, first_s,
    source_channel, source_pitch, weight_row, weight_channel, tap_pitch, channels, planes,
    H: tl.constexpr, W: tl.constexpr, SPAN: tl.constexpr, PLANAR: tl.constexpr, ADJOINT: tl.constexpr,
    TRANSPOSED: tl.constexpr, PAIRS: tl.constexpr, APART: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc (BLOCK_M, pixels) and the products of boxes with filters, for all taps that hit, pairs of planes and channels."""
    c, pair, i, j = 0, 0, first_h, first_w
    for _ in range(tl.maximum(steps * PAIRS, 1)):  # so that the compiler knows of a turn
        plane, other = pair_of(pair, PAIRS)
        if ADJOINT:
            row, col = top - i * H.tap_back, left - j * W.tap_back
            tap = (first_r + i * H.tap_step) * W.taps + first_s + j * W.tap_step
        else:
            row, col = top + i * H.dilation, left + j * W.dilation
            tap = i * W.taps + j
        channel = plane * planes[0] + source_channel + c
        at = floor_div(col, SPAN)
        coordinates = (n, channel, left) if PLANAR else (n, row, at, (col - at * SPAN) * source_pitch + channel)
        at = weight_channel + tap * tap_pitch + other * planes[1]
        box = source.load(coordinates)  # one copy after the other, so that they have one barrier
        filters = weight.load((weight_row + c, at) if TRANSPOSED else (weight_row, at + c))
        box = tl.reshape(box, (BLOCK_K, acc.shape[1])) if PLANAR else tl.reshape(box, (acc.shape[1], BLOCK_K)).T
        filters = filters.T if TRANSPOSED else filters
        acc = dot(filters, box, acc, PRECISION, APART)
        c, carry = advanced(c, BLOCK_K, 0, channels)
        pair, carry = advanced(pair, carry, 0, PAIRS)
        j, carry = advanced(j, carry, first_w, first_w + hits_w)
        i += carry
    return acc


@device_function
def _halves(acc):
    """The left columns and the right ones."""
    return tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _conv2d_gather_tma_kernel(
    source, weight, scale, bias, result, means, variances, counts,
    result_strides,
    channels_in, channels_out, source_pitch, tap_pitch, planes, images, source_height, source_width,
    result_height, result_width, row_tiles, column_tiles, image_tiles, phases_h, phases_w,
    H: tl.constexpr, W: tl.constexpr, BOX: tl.constexpr, SPAN: tl.constexpr, PLANAR: tl.constexpr,
    ADJOINT: tl.constexpr, TRANSPOSED: tl.constexpr, CROSS: tl.constexpr, HALVES: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One BOX of pixels of the result and BLOCK_M of its channels, in one group and one phase.

    `source` is a descriptor of (N, H, W / SPAN, SPAN * source_pitch), or PLANAR of (N, C, pixels). `weight` is one of (filters,
    taps * tap_pitch); where it is TRANSPOSED, the depth runs down its rows. `channels_...` count those of a group. ADJOINT is
    dgrad, as in conv2d.py.
    """
    y_n, y_c, y_h, y_w = result_strides
    program = tl.program_id(0)
    channel_tiles = cdiv(channels_out, BLOCK_M)
    channel_tile, program = program % channel_tiles, program // channel_tiles
    pixel_tiles = column_tiles * row_tiles * image_tiles
    pixel_tile, program = program % pixel_tiles, program // pixel_tiles
    phase, group = program % (phases_h * phases_w), program // (phases_h * phases_w)
    col0 = pixel_tile % column_tiles * BOX.columns
    row0 = pixel_tile // column_tiles % row_tiles * BOX.rows
    n0 = pixel_tile // (column_tiles * row_tiles) * BOX.images

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

    source_channel = group * channels_in
    weight_row = source_channel if TRANSPOSED else group * channels_out + channel_tile * BLOCK_M
    weight_channel = channel_tile * BLOCK_M if TRANSPOSED else 0
    if hits_h * hits_w == 0:
        source_channel, weight_row = OUTSIDE, OUTSIDE
    steps = tl.maximum(hits_h * hits_w * cdiv(channels_in, BLOCK_K), 1)

    acc = tl.full((BLOCK_M, BOX.pixels), 0.0, tl.float32)
    if CROSS:  # what is small comes first; where the first planes are not finite, they alone say what the sum is
        acc = _summed(
            acc, steps, source, weight,
            n0, top, left, first_h, first_w, hits_w, first_r, first_s,
            source_channel, source_pitch, weight_row, weight_channel, tap_pitch, channels_in, planes,
            H, W, SPAN, PLANAR, ADJOINT, TRANSPOSED, CROSS, False, PRECISION, BLOCK_K,
        )  # fmt: skip
        acc = tl.where(tl.abs(acc) < float("inf"), acc, 0.0)
    acc = _summed(
        acc, steps, source, weight,
        n0, top, left, first_h, first_w, hits_w, first_r, first_s,
        source_channel, source_pitch, weight_row, weight_channel, tap_pitch, channels_in, planes,
        H, W, SPAN, PLANAR, ADJOINT, TRANSPOSED, 1, CROSS > 0, PRECISION, BLOCK_K,
    )  # fmt: skip

    channel = channel_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = channel < channels_out
    channel += group * channels_out
    stored = _halves(acc) if HALVES == 2 else (acc,)
    for i in tl.static_range(HALVES):
        at = i * (BOX.pixels // HALVES) + tl.arange(0, BOX.pixels // HALVES)
        n = n0 + at // (BOX.rows * BOX.columns)
        row, col = row0 + at // BOX.columns % BOX.rows, col0 + at % BOX.columns
        if ADJOINT:
            row, col = first_row + row * H.stride, first_col + col * W.stride
        drawn = (n < images) & (row < result_height) & (col < result_width)
        value = finished(stored[i].T, scale, bias, channel, exists, RELU).to(result.dtype.element_ty)  # (pixels, BLOCK_M)
        if means is not None:
            part = pixel_tile * HALVES + i
            at = channel.to(INDEX) * (pixel_tiles * HALVES) + part
            store_statistics(value, drawn, exists, means + at, variances + at)
            count = tl.sum(drawn.to(tl.int32), axis=0).to(counts.dtype.element_ty)
            tl.store(counts + part, count, mask=(channel_tile == 0) & (group == 0))
        at = (n.to(INDEX) * y_n + row.to(INDEX) * y_h + col.to(INDEX) * y_w)[:, None] + (channel.to(INDEX) * y_c)[None, :]
        tl.store(result + at, value, mask=drawn[:, None] & exists[None, :])


class Gather(NamedTuple):
    """How fprop or dgrad is done in boxes."""

    source: Tensor  # as it comes or a view of it; a copy is made when the kernel is started
    size: tuple[int, int, int]  # images, rows and columns of the result
    seen: Callable[[Tensor], Tensor | None] | None  # flat or planar: as that sees the source, the result is seen too
    stride: Ints
    at_once: int  # groups that became one
    box: Box
    tile: Tile
    fold: Fold | None = None  # how the copy of an image of few channels is made

    @property
    def halves(self) -> int:
        return 2 if self.tile.m * self.box.pixels > STORED_AT_ONCE * 32 * self.tile.warps else 1

    @property
    def parts(self) -> int:
        """Of how many parts of the pixels the kernel has statistics."""
        tiles = math.prod(triton.cdiv(size, block) for size, block in zip(self.size, self.box, strict=True))
        return tiles * self.halves


def plan_gather(
    source: Tensor, weight: Tensor, shape: Ints, channels_last: bool,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool,
) -> Gather | None:  # fmt: skip
    """How conv2d.py's gather_gemm does this in boxes, for a result of this shape and memory format; None if it does not."""
    at_once = groups_at_once(source.shape[1] // groups, shape[1] // groups, groups)
    groups //= at_once
    channels_in, channels_out = source.shape[1] // groups, shape[1] // groups
    if not is_hopper(source) or 0 in (*source.shape, *weight.shape, *shape):
        return None
    unit, in_planes = alignment_of(source), are_planes(source)
    if not adjoint and (fold := first_fold(source, weight.shape, shape[2:], stride, padding, dilation, at_once * groups)):
        return _plan_first(source, weight, shape, stride, padding, dilation, fold)
    # Columns of the filters' matrix are the channels of the source, but where it is transposed.
    if channels_in % unit or channels_out % (unit if adjoint else 1) or are_few(channels_in, channels_out):
        return None
    if adjoint and groups > 1 and source.dtype == torch.float32 and not in_planes:
        return None
    images, _, height, width = shape
    taps = weight.shape[2] * weight.shape[3]
    if taps == 1 and tuple(padding) == (0, 0) and not adjoint:
        source, stride = source[:, :, :: stride[0], :: stride[1]][:, :, :height, :width], (1, 1)
    seen = None
    if taps == 1 and tuple(padding) == (0, 0) and tuple(stride) == (1, 1) and source.shape[2:] == shape[2:]:
        if channels_last and (image := flat(source)) is not None:
            seen, source, images, height, width = flat, image, 1, 1, images * height * width
        elif not channels_last and source.dtype.itemsize == 2 and (image := planar(source)) is not None:
            seen, source, height, width = planar, image, 1, height * width

    depth = channels_in * max(1, taps // (stride[0] * stride[1] if adjoint else 1))
    precision = "bf16x6" if in_planes else conv_precision(source.dtype, source.device)
    pixels = images * height * width * groups
    tile = gemm_tile(Product("tma conv2d", channels_out, pixels, depth, source.dtype, precision), source.device)
    block = min(tile.k, channels_in & -channels_in)
    if block < 16:  # its channels end inside a block, where the filters have zeros
        if groups > 1 or in_planes or (stride[1] > 1 and not adjoint):
            return None
        block = tile.k
    axes = axes_of(weight.shape[2:], stride, padding, dilation)
    strided = [step > 1 and not adjoint for step in stride]
    rows = Along(height, source.shape[2], axes[0], adjoint, strided[0])
    columns = Along(width, source.shape[3], axes[1], adjoint, strided[1] and source.shape[3] % stride[1] != 0)
    box = Box(1, 1, tile.n) if seen is not None else best_box(tile.n, images, rows, columns)
    return Gather(source, (images, height, width), seen, stride, at_once, box, tile._replace(k=block))


def _plan_first(x: Tensor, w: Tensor, shape: Ints, stride: Ints, padding: Ints, dilation: Ints, fold: Fold) -> Gather:
    """The same for few channels, as R x 1 taps of what windows see."""
    (images, filters, height, width), taps = shape, w.shape[2]
    precision = conv_precision(x.dtype, x.device)
    tile = gemm_tile(Product("tma conv2d", filters, images * height * width, taps * fold.depth, x.dtype, precision), x.device)
    block = fold.block(tile.k)
    rows = Along(height, fold.rows, Axis(taps, stride[0], padding[0], dilation[0]), False, stride[0] > 1)
    columns = Along(width, width, Axis(1, 1, 0, 1), False)
    box = best_box(tile.n, images, rows, columns, slack=0.1)  # windows overlap: what is read side by side is in L2
    tile = tile._replace(k=block, stages=tile.stages * tile.k // block)
    return Gather(x, (images, height, width), None, (stride[0], 1), 1, box, tile, fold)


def first_fold(x: Tensor, w: Ints, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Fold | None:
    """How first2d.py copies an image of few channels for not few filters, whose sizes are `w`; None if it does not."""
    if groups > 1 or not are_few(w[1]) or are_few(w[0]) or are_planes(x):
        return None
    return fold_of(x, w, size, stride, padding, dilation, alignment_of(x))


def gather_boxes(
    plan: Gather, weight: Tensor, scale: Tensor | None, bias: Tensor | None, result: Tensor,
    padding: Ints, dilation: Ints, groups: int, adjoint: bool, relu: bool, parts: Parts | None,
) -> None:  # fmt: skip
    """Fill a result by its plan; the other arguments are those of conv2d.py's gather_gemm."""
    source, (images, height, width), seen, stride, at_once, box, tile, fold = plan
    if fold:
        source, weight = windows(folded(source, fold), fold), folded_filters(weight, fold, tile.k)
        padding, dilation = (padding[0], 0), (dilation[0], 1)
    if at_once > 1:
        weight, groups = spread(weight, at_once, groups), groups // at_once
    if seen is flat:
        result = result.permute(0, 2, 3, 1).view(1, 1, -1, result.shape[1]).permute(0, 3, 1, 2)
    elif seen is planar:
        result = result.view(*result.shape[:2], 1, -1)
    channels_in, channels_out, taps = source.shape[1] // groups, result.shape[1] // groups, weight.shape[2:]
    plane_pitches = source.shape[1], weight.shape[1]
    in_planes = are_planes(source)
    if in_planes:
        source, weight = planes(source), planes(weight)
    elif seen is not planar and not is_readable(source):
        source = channels_last(source)
    transposed = adjoint and source.dtype.itemsize == 2
    if adjoint and not transposed:
        weight = weight.transpose(0, 1)
    if not transposed and weight.shape[1] % tile.k and taps.numel() > 1:
        weight = channels_last(weight, triton.cdiv(weight.shape[1], tile.k) * tile.k)
    elif not in_planes:
        weight = channels_last(weight)

    phases_h, phases_w = (min(stride[0], height), min(stride[1], width)) if adjoint else (1, 1)
    rows, columns = (triton.cdiv(size, step if adjoint else 1) for size, step in zip((height, width), stride, strict=True))
    image_tiles, row_tiles, column_tiles = map(triton.cdiv, (images, rows, columns), box)
    span = stride[1] if box.columns > 1 and not adjoint else 1
    x_n, x_c, x_h, x_w = strides_of(source)
    if seen is planar:
        boxes = described(source, (images, source.shape[1], width), (x_n, x_c, 1), (1, tile.k, box.columns))
    else:
        size = source.shape[0], source.shape[2], source.shape[3] // span, (span - 1) * x_w + source.shape[1]
        boxes = described(source, size, (x_n, x_h, span * x_w, 1), (*box, tile.k))
    H, W = axes_of(taps, stride, padding, dilation)
    matrix = weight.shape[0], weight.shape[1] * taps.numel()
    means, variances, counts = parts if parts is not None else (None, None, None)
    launch(
        _conv2d_gather_tma_kernel,
        image_tiles * row_tiles * column_tiles * triton.cdiv(channels_out, tile.m) * phases_h * phases_w * groups,
        boxes, described(weight, matrix, (matrix[1], 1), (tile.k, tile.m) if transposed else (tile.m, tile.k)),
        scale, bias, result, means, variances, counts,
        result.stride(),
        channels_in, channels_out, x_w, weight.shape[1], plane_pitches, images, source.shape[2], source.shape[3],
        height, width, row_tiles, column_tiles, image_tiles, phases_h, phases_w,
        H=H, W=W, BOX=box, SPAN=span, PLANAR=seen is planar, ADJOINT=adjoint, TRANSPOSED=transposed,
        CROSS=CROSS_PAIRS if in_planes else 0, HALVES=plan.halves, RELU=relu, PRECISION=operands_of(source),
        INDEX=index_type(result, *(parts or ())),
        BLOCK_M=tile.m, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=source.device,
    )  # fmt: skip


def groups_at_once(channels_in: int, channels_out: int, groups: int) -> int:
    """How many neighbouring groups become one: enough for the tensor cores to multiply more than padding, or else one."""
    few = min(channels_in, channels_out)
    enough = (n for n in range(1, min(groups, MOST_AT_ONCE) + 1) if groups % n == 0 and n * few >= WIDE)
    return next(enough, 1)


def are_few(*channels: int) -> bool:
    return min(channels) < FEWEST


def is_hopper(tensor: Tensor) -> bool:
    """Whether this tensor may be convolved in boxes at all."""
    name = architecture(tensor.device)
    return tensor.dtype.itemsize <= 4 and (name == "sm_90" or name == "interpreter" and settings.interpret_tma)


def are_planes(image: Tensor) -> bool:
    """Whether float32 is multiplied exactly, as three bfloat16 planes."""
    return image.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != "tf32"


def alignment_of(image: Tensor) -> int:
    """Of how many elements a number of channels must be a multiple: the copy engine counts 16 bytes."""
    return 8 if are_planes(image) else 16 // image.dtype.itemsize


def operands_of(image: Tensor) -> str:
    """`input_precision` of what is read from this image."""
    return "tf32" if image.dtype == torch.float32 else "ieee"
