"""Sliding kernels for depthwise convolution with one filter per channel: they load each row once for all rows of a filter.

In the window equation of indexing.py, the *smaller image* is `small`, the result of the convolution or its gradient; the
*larger image* is `big`, the input. dgrad runs as an fprop of dy, so there dx has the role of the smaller image. A program owns
some columns of some channels and slides down the rows. In each step it advances by one row of the smaller image and by H.stride
rows of the larger one. A row of the larger image contributes to several rows of the smaller image, the *pending rows*. Each
step begins one pending row and completes the oldest. The program keeps pending rows in a tuple, as partial sums or, in wgrad,
as upstream gradients, and shifts the tuple by one per step. So it reads and widens an element once per tap of a filter row, not
once per tap of the whole filter. It loads the next rows while it multiplies the current ones. The rows are divided into
*splits*, enough to fill the GPU.

dgrad is fprop with flipped taps, except at the edges. fprop multiplies the zeros of its padding by the filter, and 0 * inf is
NaN. dgrad has no products there, so it sets these filter values to 0, and an infinite one leaves no NaN.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..device.epilogue import Epilogue, activate_channels, add_residual, scale_and_shift
from ..device.function import device_function
from ..device.indexing import Axis, axes_of, big_from_small, empty_tuple, inside
from ..device.precision import accumulator
from ..reduce import partials_of, sum_partials
from ..runtime import tuning
from ..runtime.interpreter import INTERPRETED
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type, is_channels_last
from ..runtime.settings import settings
from ..runtime.tuning import ElementTile

# A thread keeps the filters of all its elements in registers, at most MAX_REGISTERS. In contiguous images it loads element by
# element, with LOAD_REGISTERS more registers for each element.
MAX_REGISTERS, LOAD_REGISTERS = 120, 10
MAX_TAPS = 49


@device_function
def _positions(
    pixel_tile, channel_tile, pixels, channels, width, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr
):
    """(image, column, channel, mask of pixels, mask of channels) of a tile. Lanes are channels if CHANNELS_LAST, else pixels.

    Pixels are numbered through images and columns only, since the program steps through the rows.
    """
    row, lane = tl.arange(0, TILE.rows)[:, None], tl.arange(0, TILE.lanes)[None, :]
    if CHANNELS_LAST:
        pixel, channel = pixel_tile.to(INDEX) * TILE.rows + row, channel_tile.to(INDEX) * TILE.lanes + lane
    else:
        pixel, channel = pixel_tile.to(INDEX) * TILE.lanes + lane, channel_tile.to(INDEX) * TILE.rows + row
    return pixel // width, pixel % width, channel, pixel < pixels, channel < channels


@device_function
def _load_rows(h, start, tap_exists, x_h, x_tap, height, H: tl.constexpr, W: tl.constexpr):
    """The H.stride rows that begin with row `h`, each as W.taps tiles: one per tap of a filter row, shifted by the tap."""
    ROWS: tl.constexpr = H.stride
    TAPS: tl.constexpr = W.taps
    rows = empty_tuple()
    for i in tl.static_range(ROWS):
        for s in tl.static_range(TAPS):
            rows += (tl.load(start + (h + i) * x_h + s * x_tap, mask=tap_exists[s] & inside(h + i, height), other=0.0),)
    return rows


@device_function
def _converted(tiles, DTYPE: tl.constexpr):
    """The tiles converted to DTYPE."""
    result = empty_tuple()
    for i in tl.static_range(len(tiles)):
        result += (tiles[i].to(DTYPE),)
    return result


@device_function
def _add_products(sums, filters, rows, H: tl.constexpr, W: tl.constexpr):
    """The sums of the pending rows, newest first, plus the products of `rows` with the taps of each pending row."""
    ROWS: tl.constexpr = H.stride
    TAPS: tl.constexpr = W.taps
    result = empty_tuple()
    for j in tl.static_range(len(sums)):
        acc = sums[j]
        for i in tl.static_range(ROWS):
            for s in tl.static_range(TAPS):
                if j * ROWS + i < H.taps:
                    acc += filters[(j * ROWS + i) * TAPS + s] * rows[i * TAPS + s]
        result += (acc,)
    return result


@device_function
def _add_to_taps(accs, upstream, rows, J: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """The gradients of all taps, plus the products of `rows` with `upstream`, the row of dy from J steps ago."""
    ROWS: tl.constexpr = H.stride
    TAPS: tl.constexpr = W.taps
    result = empty_tuple()
    for tap in tl.static_range(len(accs)):
        acc = accs[tap]
        if tap // TAPS // ROWS == J:
            acc += upstream * rows[tap // TAPS % ROWS * TAPS + tap % TAPS]
        result += (acc,)
    return result


@triton.jit
def _depthwise2d_sliding_gather_kernel(
    source, weight, scale, bias, slopes, slope_stride, residual, result, kept,
    source_strides, weight_strides, result_strides,
    pixels, channels, source_height, source_width, result_height, result_width, pixel_tiles, channel_tiles, rows_per_split,
    H: tl.constexpr, W: tl.constexpr, ADJOINT: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the result, through one split of its rows.

    ADJOINT selects dgrad, computed as an fprop with flipped taps: H and W describe this fprop.
    """
    x_n, x_c, x_h, x_w = source_strides
    w_k, w_r, w_s = weight_strides
    y_n, y_c, y_h, y_w = result_strides
    x_h, y_h = tl.full((), 1, INDEX) * x_h, tl.full((), 1, INDEX) * y_h
    TAPS: tl.constexpr = W.taps
    ALL_TAPS: tl.constexpr = H.taps * W.taps
    PENDING: tl.constexpr = (H.taps + H.stride - 1) // H.stride - 1

    # Channel tiles vary fastest: consecutive programs read neighbouring channels.
    program = tl.program_id(0)
    channel_tile, program = program % channel_tiles, program // channel_tiles
    first = (program // pixel_tiles).to(INDEX) * rows_per_split
    last = tl.minimum(first + rows_per_split, result_height)
    n, col, channel, has_pixel, has_channel = _positions(
        program % pixel_tiles, channel_tile, pixels, channels, result_width, CHANNELS_LAST, INDEX, TILE
    )
    # The columns of a program are fixed, so the masks and filters of all taps are too: compute them before the loop.
    left = big_from_small(col, 0, W)
    tap_exists = empty_tuple()
    for s in tl.static_range(TAPS):
        tap_exists += (has_pixel & has_channel & inside(left + s * W.dilation, source_width),)
    filters = empty_tuple()
    for tap in tl.static_range(ALL_TAPS):
        flipped = ALL_TAPS - 1 - tap if ADJOINT else tap
        at = channel * w_k + tl.full((), flipped // TAPS, INDEX) * w_r + tl.full((), flipped % TAPS, INDEX) * w_s
        filters += (tl.load(weight + at, mask=tap_exists[tap % TAPS] if ADJOINT else has_channel, other=0.0).to(ACCUMULATOR),)

    # Load each row one step ahead, so that the loads overlap the products. The last PENDING steps only complete rows.
    source += n * x_n + channel * x_c + left * x_w
    offset = n * y_n + channel * y_c + col * y_w
    result += offset
    if residual is not None:
        residual += offset
    if kept is not None:
        kept += offset
    x_tap = tl.full((), W.dilation, INDEX) * x_w
    zero = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    pending = (zero,) * PENDING
    next_rows = _load_rows(big_from_small(first, 0, H), source, tap_exists, x_h, x_tap, source_height, H, W)
    for row in range(first, last + PENDING):
        rows = _converted(next_rows, ACCUMULATOR)
        next_rows = _load_rows(big_from_small(row + 1, 0, H), source, tap_exists, x_h, x_tap, source_height, H, W)
        sums = (zero,) + pending
        if ADJOINT:
            if inside(big_from_small(row, 0, H), source_height):
                sums = _add_products(sums, filters, rows, H, W)
        else:
            sums = _add_products(sums, filters, rows, H, W)
        # The oldest row is complete now. Store no row above the split: it belongs to the previous one.
        pending, acc = sums[:PENDING], sums[PENDING]
        acc = scale_and_shift(acc, scale, bias, channel, has_channel)
        complete = row - PENDING
        mask = has_pixel & has_channel & (complete >= first)
        if residual is not None:
            acc = add_residual(acc, tl.load(residual + complete * y_h, mask=mask))
        if kept is not None:
            tl.store(kept + complete * y_h, acc.to(kept.dtype.element_ty), mask=mask)
        acc = activate_channels(acc, slopes, slope_stride, channel, has_channel, ACTIVATION)
        tl.store(result + complete * y_h, acc.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _depthwise2d_sliding_wgrad_kernel(
    x, dy, partials,
    x_strides, dy_strides,
    pixels, channels, height, width, out_height, out_width, splits, row_splits, rows_per_split, chunks, chunks_per_split,
    H: tl.constexpr, W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, CHANNELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """All taps of a tile's channels, summed over one split of the chunks.

    A chunk is a tile of pixels through `rows_per_split` rows of dy.
    """
    x_n, x_c, x_h, x_w = x_strides
    dy_n, dy_k, dy_p, dy_q = dy_strides
    x_h, dy_p = tl.full((), 1, INDEX) * x_h, tl.full((), 1, INDEX) * dy_p
    TAPS: tl.constexpr = W.taps
    ALL_TAPS: tl.constexpr = H.taps * W.taps
    PENDING: tl.constexpr = (H.taps + H.stride - 1) // H.stride - 1

    # A program has a fixed range of chunks, so that the order of the sum never changes.
    program = tl.program_id(0)
    split, channel_tile = (program % splits).to(INDEX), program // splits
    zero = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    accs = (zero,) * ALL_TAPS
    x_tap = tl.full((), W.dilation, INDEX) * x_w
    for chunk in range(split * chunks_per_split, tl.minimum((split + 1) * chunks_per_split, chunks)):
        n, q, channel, has_pixel, has_channel = _positions(
            chunk // row_splits, channel_tile, pixels, channels, out_width, CHANNELS_LAST, INDEX, TILE
        )
        # The columns of a chunk are fixed: compute masks and pointers before the loop over its rows.
        first = chunk % row_splits * rows_per_split
        last = tl.minimum(first + rows_per_split, out_height)
        exists = has_pixel & has_channel
        left = big_from_small(q, 0, W)
        tap_exists = empty_tuple()
        for s in tl.static_range(TAPS):
            tap_exists += (exists & inside(left + s * W.dilation, width),)
        from_x = x + n * x_n + channel * x_c + left * x_w
        from_dy = dy + n * dy_n + channel * dy_k + q * dy_q
        # Load each row one step ahead, so that the loads overlap the products.
        pending = (zero,) * PENDING
        next_x = _load_rows(big_from_small(first, 0, H), from_x, tap_exists, x_h, x_tap, height, H, W)
        next_dy = tl.load(from_dy + first * dy_p, mask=exists & (first < last), other=0.0)
        for row in range(first, last + PENDING):
            rows, upstreams = _converted(next_x, ACCUMULATOR), (next_dy.to(ACCUMULATOR),) + pending
            next_x = _load_rows(big_from_small(row + 1, 0, H), from_x, tap_exists, x_h, x_tap, height, H, W)
            next_dy = tl.load(from_dy + (row + 1) * dy_p, mask=exists & (row + 1 < last), other=0.0)
            for j in tl.static_range(PENDING + 1):
                # Skip gradient rows outside the chunk: they are zeros here, and 0 * inf is NaN.
                if (row - j >= first) & (row - j < last):
                    accs = _add_to_taps(accs, upstreams[j], rows, j, H, W)
            pending = upstreams[:PENDING]

    # Sum the pixels of the tile last: inside the loop, threads would have to exchange data.
    channel = channel_tile.to(INDEX) * CHANNELS + tl.arange(0, CHANNELS)
    for tap in tl.static_range(ALL_TAPS):
        total = tl.sum(accs[tap], axis=0 if CHANNELS_LAST else 1)
        at = (split * channels + channel) * ALL_TAPS + tap
        tl.store(partials + at, total.to(partials.dtype.element_ty), mask=channel < channels)


def can_slide(source: Tensor, result: Tensor, filters: Tensor, stride: Ints, dilation: Ints, adjoint: bool = False) -> bool:
    """Whether the kernels of this file can compute a convolution or, if `adjoint`, its dgrad.

    Pending rows are consecutive, so rows have no dilation. A dgrad with a stride is no fprop with flipped taps.
    """
    one_filter_a_channel = source.shape[1] == result.shape[1]
    few_taps = filters.shape[2] * filters.shape[3] <= MAX_TAPS
    return one_filter_a_channel and few_taps and dilation[0] == 1 and not (adjoint and max(stride) > 1)


def run_sliding_gather(
    source: Tensor, weight: Tensor, epilogue: Epilogue, result: Tensor, stride: Ints, padding: Ints, dilation: Ints,
    adjoint: bool,
) -> None:  # fmt: skip
    """Fill the result of conv2d_fprop or, if `adjoint`, of conv2d_dgrad."""
    if result.numel() == 0:
        return
    taps = weight.shape[2:]
    if adjoint:
        padding = [(taps[i] - 1) * dilation[i] - padding[i] for i in (0, 1)]
    H, W = axes_of(taps, stride, padding, dilation)
    images, channels, height, width = result.shape
    plan = _plan(result, H, W)
    w_k, _, w_r, w_s = weight.stride()
    launch(
        _depthwise2d_sliding_gather_kernel, plan.pixel_tiles * plan.channel_tiles * plan.splits,
        source, weight, *epilogue.operands, epilogue.residual, result, epilogue.kept,
        source.stride(), (w_k, w_r, w_s), result.stride(),
        images * width, channels, source.shape[2], source.shape[3], height, width,
        plan.pixel_tiles, plan.channel_tiles, plan.rows_per_split,
        H=H, W=W, ADJOINT=adjoint, ACTIVATION=epilogue.constant, CHANNELS_LAST=plan.channels_last,
        ACCUMULATOR=accumulator(source.dtype), INDEX=index_type(source, weight, result), TILE=plan.tile, device=source.device,
    )  # fmt: skip


def run_sliding_wgrad(x: Tensor, dy: Tensor, dw: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Fill and return the result of conv2d_wgrad."""
    H, W = axes_of(dw.shape[2:], stride, padding, dilation)
    images, channels, height, width = dy.shape
    plan = _plan(dy, H, W)
    chunks = plan.pixel_tiles * plan.splits
    chunks_per_split = triton.cdiv(chunks * plan.channel_tiles, 4 * settings.wanted_programs) or 1
    splits = max(1, triton.cdiv(chunks, chunks_per_split))
    partials = partials_of(dw, splits)
    tile = plan.tile
    launch(
        _depthwise2d_sliding_wgrad_kernel, plan.channel_tiles * splits, x, dy, partials,
        x.stride(), dy.stride(),
        images * width, channels, x.shape[2], x.shape[3], height, width,
        splits, plan.splits, plan.rows_per_split, chunks, chunks_per_split,
        H=H, W=W, CHANNELS_LAST=plan.channels_last, CHANNELS=tile.lanes if plan.channels_last else tile.rows,
        ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, dy, partials), TILE=tile, device=x.device,
    )  # fmt: skip
    return sum_partials(partials, dw)


class SlidingPlan(NamedTuple):
    """Division of the smaller image: its columns and channels into tiles, its rows into splits."""

    channels_last: bool
    tile: ElementTile
    pixel_tiles: int
    channel_tiles: int
    splits: int
    rows_per_split: int


def _plan(small: Tensor, H: Axis, W: Axis) -> SlidingPlan:
    """Divide the smaller image so that a thread's filters fit in its registers and the programs fill the GPU.

    A split takes a few more steps than it has rows, to complete its pending rows. So it has at least four times as many rows as
    extra steps.
    """
    images, channels, height, width = small.shape
    channels_last, pixels = is_channels_last(small), images * width
    lanes_axis, rows_axis = (channels, pixels) if channels_last else (pixels, channels)
    registers = (H.taps * W.taps + (0 if channels_last else LOAD_REGISTERS)) * triton.cdiv(small.dtype.itemsize, 4)
    room = tuning.elementwise_block(small.numel())
    while room > 128 and room // 128 * registers > MAX_REGISTERS and not INTERPRETED:
        room //= 2
    most = settings.interpreted_block if INTERPRETED else 128 if channels_last else 64
    lanes = min(triton.next_power_of_2(lanes_axis), room, most)
    while lanes > 16 and not INTERPRETED and triton.cdiv(lanes_axis, lanes) * lanes > 1.25 * lanes_axis:
        lanes //= 2
    tile = ElementTile(max(1, min(triton.next_power_of_2(rows_axis), room // lanes)), lanes)
    across, down = triton.cdiv(lanes_axis, lanes), triton.cdiv(rows_axis, tile.rows)
    pixel_tiles, channel_tiles = (down, across) if channels_last else (across, down)
    overlap = triton.cdiv(H.taps, H.stride)
    wanted = triton.cdiv(4 * settings.wanted_programs, max(1, across * down))
    splits = max(1, min(wanted, height // (4 * max(1, overlap - 1))))
    rows_per_split = triton.cdiv(height, splits)
    return SlidingPlan(channels_last, tile, pixel_tiles, channel_tiles, triton.cdiv(height, rows_per_split), rows_per_split)
