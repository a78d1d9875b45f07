"""2-D convolution by pointers: the kernels for every geometry, dtype and GPU.

passes.py has the formulas, maps them to matrix products, and defines tap, phase and split. tma.py and tma_wgrad.py have the
kernels for Hopper.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..device.epilogue import Epilogue, activate_channels, add_residual, max_of_windows, scale_and_shift, store_statistics
from ..device.indexing import PoolWindow, axes_of, big_from_small, cdiv, inside, pixel_of_window, small_from_big, split_pixel
from ..device.precision import accumulator, conv_precision, dot, widen
from ..reduce import partials_of, sum_partials
from ..runtime.launch import launch
from ..runtime.layout import Ints, exceeds_int32, index_type
from ..runtime.tuning import Gemm, GemmTile, count_splits, gemm_tile
from ..statistics2d import PartialStatistics


@triton.jit
def _conv2d_gather_kernel(
    source, weight, scale, bias, slopes, slope_stride, residual, result, kept, codes, means, variances, counts,
    source_strides, weight_strides, result_strides, weight_group,
    pixels, channels_in, channels_out, source_height, source_width, result_height, result_width, phase_height, phase_width,
    phases_h, phases_w,
    H: tl.constexpr, W: tl.constexpr, ADJOINT: tl.constexpr, ACTIVATION: tl.constexpr, WINDOW: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M pixels, BLOCK_N channels) tile of the result, in one group and one phase.

    ADJOINT selects dgrad. `weight_strides` follow the order (result channels, source channels, R, S), and `weight_group` is the
    stride between groups. `pixels` counts the pixels of the result or, in dgrad, of the largest phase: a smaller phase has
    pixels outside the result. With `codes`, the kernel max-pools: `result` gets the maximum of each window and `codes` its
    argmax position. Then pixels are numbered window by window, phase_height and phase_width count windows, and result_height
    and result_width are the sizes before pooling.
    """
    x_n, x_c, x_h, x_w = source_strides
    w_out, w_in, w_r, w_s = weight_strides
    y_n, y_c, y_h, y_w = result_strides

    # Channel tiles vary fastest: consecutive programs gather the same pixels, from L2.
    channel_tiles = cdiv(channels_out, BLOCK_N)
    pixel_tiles = cdiv(pixels, BLOCK_M)
    program = tl.program_id(0)
    channel_tile, program = program % channel_tiles, program // channel_tiles
    pixel_tile, program = program % pixel_tiles, program // pixel_tiles
    if ADJOINT:
        phase, group = program % (phases_h * phases_w), program // (phases_h * phases_w)
    else:
        phase, group = 0, program
    group = group.to(INDEX)

    pixel = pixel_tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = channel_tile.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Number the pixels of a max pooling window by window, so that a tile holds whole windows.
    if codes is not None:
        n, row, col = pixel_of_window(pixel, phase_height, phase_width, WINDOW)
    else:
        n, row, col = split_pixel(pixel, phase_height, phase_width)
    # Source pixel and taps of each destination pixel. All pixels of a phase have the same taps: these are scalars.
    if ADJOINT:
        first_row, first_col = phase // phases_w, phase % phases_w
        first_top, first_r, taps_h = small_from_big(first_row, H)
        first_left, first_s, taps_w = small_from_big(first_col, W)
        top, left = first_top + row, first_left + col
        row, col = first_row + row * H.stride, first_col + col * W.stride
    else:
        first_r, taps_h, first_s, taps_w = 0, H.taps, 0, W.taps
        top, left = big_from_small(row, 0, H), big_from_small(col, 0, W)

    source += group * channels_in * x_c
    weight += group * weight_group
    from_pixel = n * x_n + top * x_h + left * x_w
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, ACCUMULATOR)
    depth = tl.full((), channels_in, INDEX) * (taps_h * taps_w)
    # Triton computes the first indices before the loop, even if no tap hits. Division by 0 is undefined, so the compiler would
    # infer at least one tap.
    across = tl.maximum(taps_w, 1)
    # Taps and channels share the K axis: a block of few channels covers several taps.
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(INDEX)
        tap, c = k // channels_in, k % channels_in
        i, j = tap // across, tap % across
        if ADJOINT:
            r, s = first_r + i * H.tap_step, first_s + j * W.tap_step
            down, right = -i * H.tap_back, -j * W.tap_back
        else:
            r, s = i, j
            down, right = i * H.dilation, j * W.dilation
        hit = inside(top[:, None] + down[None, :], source_height) & inside(left[:, None] + right[None, :], source_width)
        hit &= (pixel < pixels)[:, None] & (k < depth)[None, :]
        # A masked load may still compute its address: keep it inside the image.
        at = tl.where(hit, from_pixel[:, None] + (down * x_h + right * x_w)[None, :], 0)
        a = tl.load(source + at + (c * x_c)[None, :], mask=hit, other=0.0)  # (BLOCK_M, BLOCK_K)
        at = (c * w_in + r * w_r + s * w_s)[:, None] + (channel * w_out)[None, :]
        b = tl.load(weight + at, mask=(k < depth)[:, None] & (channel < channels_out)[None, :], other=0.0)
        acc = dot(a, b, acc, PRECISION)

    # Apply the epilogue while the tile is in registers: it saves a pass over the result.
    channel_of_all = group * channels_out + channel
    exists = channel < channels_out
    in_result = (pixel < pixels) & (row < result_height) & (col < result_width)
    at = (n * y_n + row * y_h + col * y_w)[:, None] + (channel_of_all * y_c)[None, :]
    value = scale_and_shift(acc, scale, bias, channel_of_all[None, :], exists[None, :])
    if residual is not None:
        value = add_residual(value, tl.load(residual + at, mask=in_result[:, None] & exists[None, :]))
    if kept is not None:
        tl.store(kept + at, value.to(kept.dtype.element_ty), mask=in_result[:, None] & exists[None, :])
    value = activate_channels(value, slopes, slope_stride, channel_of_all[None, :], exists[None, :], ACTIVATION)
    value = value.to(result.dtype.element_ty)
    # Take the statistics of the rounded values, as the batch normalisation will read them.
    if means is not None:
        partial = channel_of_all * pixel_tiles + pixel_tile
        store_statistics(value, in_result, exists, means + partial, variances + partial)
        count = tl.sum(in_result.to(tl.int32), axis=0).to(counts.dtype.element_ty)
        tl.store(counts + pixel_tile, count, mask=(channel_tile == 0) & (group == 0))
    if codes is not None:
        value, code = max_of_windows(widen(value), WINDOW.taps)
        value = value.to(result.dtype.element_ty)
        pixel = pixel_tile.to(INDEX) * (BLOCK_M // WINDOW.taps) + tl.arange(0, BLOCK_M // WINDOW.taps)
        n, row, col = split_pixel(pixel, phase_height, phase_width)
        in_result = pixel < pixels // WINDOW.taps
        at = (n * y_n + row * y_h + col * y_w)[:, None] + (channel_of_all * y_c)[None, :]
    # The result, its argmax positions, the residual and the activation's input have the same strides, so share the offsets.
    tl.store(result + at, value, mask=in_result[:, None] & exists[None, :])
    if codes is not None:
        tl.store(codes + at, code.to(codes.dtype.element_ty), mask=in_result[:, None] & exists[None, :])


@triton.jit
def _conv2d_wgrad_kernel(
    x, dy, partials,
    x_strides, dy_strides, dw_strides, dw_split,
    pixels, channels, filters, height, width, out_height, out_width, splits, pixels_per_split,
    H: tl.constexpr, W: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M filters, BLOCK_N channels and taps) tile of dw in one group, summed over one split of the pixels.

    `channels` and `filters` are per group.
    """
    x_n, x_c, x_h, x_w = x_strides
    dy_n, dy_k, dy_p, dy_q = dy_strides
    dw_k, dw_c, dw_r, dw_s = dw_strides

    # Filter tiles vary fastest: consecutive programs read the same pixels of x, from L2.
    columns = tl.full((), channels, INDEX) * (H.taps * W.taps)
    filter_tiles = cdiv(filters, BLOCK_M)
    column_tiles = cdiv(columns, BLOCK_N)
    program = tl.program_id(0)
    filter_tile, program = program % filter_tiles, program // filter_tiles
    column_tile, program = program % column_tiles, program // column_tiles
    split, group = (program % splits).to(INDEX), (program // splits).to(INDEX)

    # Channels and taps share the N axis, so that few channels fill a tile too. Both are fixed here, pixels vary in the loop.
    k = filter_tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    tap, c = column // channels, column % channels
    r, s = tap // W.taps, tap % W.taps
    x += group * channels * x_c
    dy += group * filters * dy_k
    down, right = r * H.dilation, s * W.dilation
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, ACCUMULATOR)
    # Pixels are the summed axis. The split has a fixed range of them, for a fixed order of the sum.
    first = split * pixels_per_split
    last = tl.minimum(first + pixels_per_split, pixels)
    for start in range(first, last, BLOCK_K):
        pixel = start + tl.arange(0, BLOCK_K).to(INDEX)
        n, p, q = split_pixel(pixel, out_height, out_width)
        at = (n * dy_n + p * dy_p + q * dy_q)[None, :] + (k * dy_k)[:, None]
        a = tl.load(dy + at, mask=(k < filters)[:, None] & (pixel < last)[None, :], other=0.0)  # (BLOCK_M, BLOCK_K)
        top, left = big_from_small(p, 0, H), big_from_small(q, 0, W)
        hit = inside(top[:, None] + down[None, :], height) & inside(left[:, None] + right[None, :], width)
        hit &= (pixel < last)[:, None] & (column < columns)[None, :]
        at = tl.where(hit, (n * x_n + top * x_h + left * x_w)[:, None] + (down * x_h + right * x_w)[None, :], 0)
        b = tl.load(x + at + (c * x_c)[None, :], mask=hit, other=0.0)  # (BLOCK_K, BLOCK_N)
        acc = dot(a, b, acc, PRECISION)

    # Each split has a partial result of its own: no atomics.
    at = ((group * filters + k) * dw_k)[:, None] + (c * dw_c + r * dw_r + s * dw_s)[None, :]
    owned = (k < filters)[:, None] & (column < columns)[None, :]
    tl.store(partials + split * dw_split + at, acc.to(partials.dtype.element_ty), mask=owned)


class PointerGather(NamedTuple):
    """The plan of an fprop or a dgrad by pointers."""

    pixels: int  # of the result or, in dgrad, of its largest phase
    tile: GemmTile

    @property
    def partials(self) -> int:
        """The number of pixel tiles with partial statistics."""
        return triton.cdiv(self.pixels, self.tile.m)


def plan_pointer_gather(source: Tensor, weight: Tensor, shape: Ints, stride: Ints, groups: int, adjoint: bool) -> PointerGather:
    """Plan fprop or dgrad for a result of this shape."""
    channels_in, channels_out = source.shape[1] // groups, shape[1] // groups
    steps = stride if adjoint else (1, 1)
    pixels = shape[0] * triton.cdiv(shape[2], steps[0]) * triton.cdiv(shape[3], steps[1])
    taps = weight.shape[2] * weight.shape[3] // (steps[0] * steps[1]) or 1
    precision, scattered = conv_precision(source.dtype, source.device), _scattered(source, channels_in)
    tile = gemm_tile(
        Gemm("conv2d", pixels, channels_out, taps * channels_in, source.dtype, precision, scattered), source.device
    )
    # 64-bit addresses take twice the registers.
    return PointerGather(pixels, tile._replace(m=min(tile.m, 64)) if exceeds_int32(source) else tile)


def run_pointer_gather(
    plan: PointerGather, source: Tensor, weight: Tensor, epilogue: Epilogue, result: Tensor,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool,
    partials: PartialStatistics | None, codes: Tensor | None, window: PoolWindow,
) -> None:  # fmt: skip
    """Fill the result by its plan. The other arguments are those of run_gather in passes.py."""
    images, channels_in, channels_out = source.shape[0], source.shape[1] // groups, result.shape[1] // groups
    height, width = result.shape[2:]
    w_k, w_c, w_r, w_s = weight.stride()
    if adjoint:
        phase_height, phase_width = triton.cdiv(height, stride[0]), triton.cdiv(width, stride[1])
        phases_h, phases_w = min(stride[0], height), min(stride[1], width)
        weight_strides, filters_per_group = (w_c, w_k, w_r, w_s), channels_in
    else:
        phase_height, phase_width, phases_h, phases_w = height, width, 1, 1
        height, width = height * window.height, width * window.width
        weight_strides, filters_per_group = (w_k, w_c, w_r, w_s), channels_out
    pixels = images * phase_height * phase_width * window.taps
    phases = phases_h * phases_w
    tile = plan.tile
    H, W = axes_of(weight.shape[2:], stride, padding, dilation)
    means, variances, counts = partials if partials is not None else (None, None, None)
    launch(
        _conv2d_gather_kernel, triton.cdiv(pixels, tile.m) * triton.cdiv(channels_out, tile.n) * phases * groups,
        source, weight, *epilogue.operands, epilogue.residual, result, epilogue.kept, codes, means, variances, counts,
        source.stride(), weight_strides, result.stride(), filters_per_group * w_k,
        pixels, channels_in, channels_out, source.shape[2], source.shape[3], height, width, phase_height, phase_width,
        phases_h, phases_w,
        H=H, W=W, ADJOINT=adjoint, ACTIVATION=epilogue.constant, WINDOW=window,
        ACCUMULATOR=accumulator(source.dtype), PRECISION=conv_precision(source.dtype, source.device),
        INDEX=index_type(source, weight, result),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=source.device,
    )  # fmt: skip


def run_pointer_wgrad(x: Tensor, dy: Tensor, dw: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """Fill and return the result of conv2d_wgrad."""
    pixels, (out_height, out_width), size = dy.numel() // dy.shape[1], dy.shape[2:], dw.shape[2:]
    filters, channels = dw.shape[0] // groups, dw.shape[1]
    columns = channels * size[0] * size[1]
    scattered = _scattered(x, channels) or _scattered(dy, filters)
    precision = conv_precision(x.dtype, x.device)
    tile = gemm_tile(Gemm("wgrad", filters, columns, pixels, x.dtype, precision, scattered), x.device)
    tiles = triton.cdiv(filters, tile.m) * triton.cdiv(columns, tile.n) * groups
    splits = count_splits(tiles, pixels, tile.k)
    pixels_per_split = triton.cdiv(triton.cdiv(pixels, splits), tile.k) * tile.k
    partials, (H, W) = partials_of(dw, splits), axes_of(size, stride, padding, dilation)
    launch(
        _conv2d_wgrad_kernel, tiles * splits, x, dy, partials,
        x.stride(), dy.stride(), dw.stride(), dw.numel(),
        pixels, channels, filters, x.shape[2], x.shape[3], out_height, out_width, splits, pixels_per_split,
        H=H, W=W, ACCUMULATOR=accumulator(x.dtype), PRECISION=precision, INDEX=index_type(x, dy, partials),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=x.device,
    )  # fmt: skip
    return sum_partials(partials, dw)


def _scattered(image: Tensor, channels: int) -> bool:
    """Whether loads take one element at a time: channels are strided or no multiple of 8, or offsets need int64."""
    return image.stride(1) != 1 or channels % 8 != 0 or exceeds_int32(image)
