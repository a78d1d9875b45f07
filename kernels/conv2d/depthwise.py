"""2-D convolution of groups with one channel, too narrow for tensor cores: conv2d's three passes as plain sums.

    fprop   y[n, k, p, q]  = sum_{r, s} x[n, c, h, w] * w[k, 0, r, s] (+ b[k])
    dgrad   dx[n, c, h, w] = sum_{k of c} sum_{r, s} dy[n, k, p, q] * w[k, 0, r, s] (+ b[c])
    wgrad   dw[k, 0, r, s] = sum_{n, p, q} dy[n, k, p, q] * x[n, c, h, w]

    each with row h = p * stride - padding + r * dilation, column w from q and s likewise, and c = k // (filters per channel),
    the channel of filter k

passes.py selects this file through is_depthwise. Most convolutions with one filter per channel continue in
depthwise_sliding.py, which reads memory less often. For the others, fprop and dgrad share one kernel. wgrad keeps all taps of
a block of filters in registers, so it reads x and dy once. Its pixels are divided into *splits*, enough to fill the GPU;
reduce.py adds the sums of the splits.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..device.columns import full_tile, plan_columns, program_columns
from ..device.epilogue import Epilogue, activate_channels, add_residual, scale_and_shift
from ..device.indexing import axes_of, big_from_small, inside, small_from_big, split_pixel
from ..device.precision import accumulator
from ..reduce import partials_of, sum_partials
from ..runtime.launch import launch
from ..runtime.layout import Ints, index_type, is_channels_last
from ..runtime.tuning import count_splits
from .depthwise_sliding import can_slide, run_sliding_gather, run_sliding_wgrad


@triton.jit
def _depthwise2d_gather_kernel(
    source, weight, scale, bias, slopes, slope_stride, residual, result, kept,
    source_strides, weight_strides, result_strides,
    source_height, source_width, result_height, result_width, grid,
    H: tl.constexpr, W: tl.constexpr, FILTERS: tl.constexpr, ADJOINT: tl.constexpr, ACTIVATION: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of the result. FILTERS is the number of filters per channel. ADJOINT selects dgrad."""
    x_n, x_c, x_h, x_w = source_strides
    w_k, w_r, w_s = weight_strides
    y_n, y_c, y_h, y_w = result_strides

    # A program owns columns and steps through their rows: it divides for the column indices once, not once per row.
    n, channel, col, first, steps = program_columns(grid, result_height, result_width, INDEX, TILE)
    source += n * x_n
    offset = n * y_n + channel * y_c + col * y_w
    result += offset
    if residual is not None:
        residual += offset
    if kept is not None:
        kept += offset
    for step in range(steps):
        row = first + step
        acc = full_tile(0, TILE, ACCUMULATOR)
        # dgrad gathers through the taps that hit a pixel, so it needs no atomics.
        if ADJOINT:
            top, first_r, hits_h = small_from_big(row, H)
            left, first_s, hits_w = small_from_big(col, W)
            for i in range(H.max_hits):
                for j in range(W.max_hits):
                    h, w = top - i * H.tap_back, left - j * W.tap_back
                    at_tap = (first_r + i * H.tap_step) * w_r + (first_s + j * W.tap_step) * w_s
                    hit = (i < hits_h) & (j < hits_w) & inside(h, source_height) & inside(w, source_width)
                    for f in range(FILTERS):
                        k = channel * FILTERS + f
                        value = tl.load(source + k * x_c + h * x_h + w * x_w, mask=hit, other=0.0).to(ACCUMULATOR)
                        acc += value * tl.load(weight + k * w_k + at_tap, mask=hit, other=0.0).to(ACCUMULATOR)
        else:
            for r in range(H.taps):
                for s in range(W.taps):
                    h, w = big_from_small(row, r, H), big_from_small(col, s, W)
                    hit = inside(h, source_height) & inside(w, source_width)
                    at = (channel // FILTERS) * x_c + h * x_h + w * x_w
                    value = tl.load(source + at, mask=hit, other=0.0).to(ACCUMULATOR)
                    at = channel * w_k + tl.full((), r, INDEX) * w_r + tl.full((), s, INDEX) * w_s
                    acc += value * tl.load(weight + at).to(ACCUMULATOR)
        # Epilogue and stores.
        acc = scale_and_shift(acc, scale, bias, channel, None)
        if residual is not None:
            acc = add_residual(acc, tl.load(residual + row * y_h))
        if kept is not None:
            tl.store(kept + row * y_h, acc.to(kept.dtype.element_ty))
        acc = activate_channels(acc, slopes, slope_stride, channel, None, ACTIVATION)
        tl.store(result + row * y_h, acc.to(result.dtype.element_ty))


@triton.jit
def _depthwise2d_wgrad_kernel(
    x, dy, partials,
    x_strides, dy_strides,
    pixels, filters, height, width, out_height, out_width, splits, pixels_per_split,
    H: tl.constexpr, W: tl.constexpr, FILTERS: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_FILTERS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """All taps of BLOCK_FILTERS filters, summed over one split of the pixels.

    FILTERS is the number of filters per channel. TAPS is the number of taps, rounded up to a power of two.
    """
    x_n, x_c, x_h, x_w = x_strides
    dy_n, dy_k, dy_p, dy_q = dy_strides
    program = tl.program_id(0)
    split = (program % splits).to(INDEX)
    k = (program // splits).to(INDEX) * BLOCK_FILTERS + tl.arange(0, BLOCK_FILTERS)
    tap = tl.arange(0, TAPS).to(INDEX)
    r, s = tap // W.taps, tap % W.taps
    acc = tl.full((BLOCK_PIXELS, BLOCK_FILTERS, TAPS), 0.0, ACCUMULATOR)
    first = split * pixels_per_split
    last = tl.minimum(first + pixels_per_split, pixels)
    for start in range(first, last, BLOCK_PIXELS):
        pixel = start + tl.arange(0, BLOCK_PIXELS).to(INDEX)
        n, p, q = split_pixel(pixel, out_height, out_width)
        at = (n * dy_n + p * dy_p + q * dy_q)[:, None] + (k * dy_k)[None, :]
        # (BLOCK_PIXELS, BLOCK_FILTERS)
        upstream = tl.load(dy + at, mask=(pixel < last)[:, None] & (k < filters)[None, :], other=0.0)
        h, w = big_from_small(p[:, None], r[None, :], H), big_from_small(q[:, None], s[None, :], W)
        hit = inside(h, height) & inside(w, width) & (pixel < last)[:, None] & (tap < H.taps * W.taps)[None, :]
        at = tl.where(hit, n[:, None] * x_n + h * x_h + w * x_w, 0)  # (BLOCK_PIXELS, TAPS)
        at = at[:, None, :] + ((k // FILTERS) * x_c)[None, :, None]
        value = tl.load(x + at, mask=hit[:, None, :] & (k < filters)[None, :, None], other=0.0)
        acc += upstream.to(ACCUMULATOR)[:, :, None] * value.to(ACCUMULATOR)
    total = tl.sum(acc, axis=0)  # (BLOCK_FILTERS, TAPS)
    at = (split * filters + k)[:, None] * (H.taps * W.taps) + tap[None, :]
    owned = (k < filters)[:, None] & (tap < H.taps * W.taps)[None, :]
    tl.store(partials + at, total.to(partials.dtype.element_ty), mask=owned)


def is_depthwise(w: Tensor, groups: int) -> bool:
    """Whether this file computes a convolution with these filters: its groups have one channel and at most 8 filters."""
    return groups > 1 and w.shape[1] == 1 and w.shape[0] <= 8 * groups


def depthwise2d_gather(
    source: Tensor, weight: Tensor, epilogue: Epilogue, result: Tensor, stride: Ints, padding: Ints, dilation: Ints,
    adjoint: bool,
) -> None:  # fmt: skip
    """Fill the result of conv2d_fprop or, if `adjoint`, of conv2d_dgrad."""
    if can_slide(source, result, weight, stride, dilation, adjoint):
        return run_sliding_gather(source, weight, epilogue, result, stride, padding, dilation, adjoint)
    w_k, _, w_r, w_s = weight.stride()
    programs, grid, tile, _ = plan_columns(result, ())
    H, W = axes_of(weight.shape[2:], stride, padding, dilation)
    launch(
        _depthwise2d_gather_kernel, programs, source, weight, *epilogue.operands, epilogue.residual, result, epilogue.kept,
        source.stride(), (w_k, w_r, w_s), result.stride(),
        *source.shape[2:], *result.shape[2:], grid,
        H=H, W=W, FILTERS=weight.shape[0] // (result.shape[1] if adjoint else source.shape[1]),
        ADJOINT=adjoint, ACTIVATION=epilogue.constant, ACCUMULATOR=accumulator(source.dtype),
        INDEX=index_type(source, weight, result), TILE=tile, device=source.device,
    )  # fmt: skip


def depthwise2d_wgrad(x: Tensor, dy: Tensor, dw: Tensor, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Fill and return the result of conv2d_wgrad."""
    if can_slide(x, dy, dw, stride, dilation):
        return run_sliding_wgrad(x, dy, dw, stride, padding, dilation)
    images, filters, out_height, out_width = dy.shape
    pixels = images * out_height * out_width
    taps = triton.next_power_of_2(dw.shape[2] * dw.shape[3])
    block_filters, block_pixels = (32, 4) if is_channels_last(dy) else (4, 32)
    while block_filters * block_pixels * taps > 8192 and block_filters > 1:
        block_filters //= 2
    tiles = triton.cdiv(filters, block_filters)
    splits = count_splits(tiles, pixels, block_pixels)
    partials, (H, W) = partials_of(dw, splits), axes_of(dw.shape[2:], stride, padding, dilation)
    launch(
        _depthwise2d_wgrad_kernel, tiles * splits, x, dy, partials,
        x.stride(), dy.stride(),
        pixels, filters, x.shape[2], x.shape[3], out_height, out_width, splits, triton.cdiv(pixels, splits),
        H=H, W=W, FILTERS=filters // x.shape[1], ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, dy, partials),
        BLOCK_FILTERS=block_filters, BLOCK_PIXELS=block_pixels, TAPS=taps, device=x.device,
    )  # fmt: skip
    return sum_partials(partials, dw)
