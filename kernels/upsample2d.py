"""Bilinear and nearest-pixel resizing, up or down, without antialiasing.

    bilinear   y[n, c, p, q]  = sum_{i, j in 0, 1} a_i(p) * b_j(q) * x[n, c, h_i(p), w_j(q)]
    nearest    y[n, c, p, q]  = x[n, c, h(p), w(q)]
    backward   dx[n, c, h, w] = sum of weight * dy[n, c, p, q] over all (p, q) that read pixel (h, w), with the forward's weight

A bilinear output row p is between the input rows h_0 and h_1, with weights a_0 + a_1 = 1; columns likewise. Each backward is a
gather: for an input pixel, a program loops over the outputs near it and computes their source pixels and weights as the forward
does. So there are no atomics, and 16-bit gradients are summed in float32. Bilinear coordinates are float64 for float64 tensors,
else float32. Nearest coordinates are always float32, as in torch.
"""

import functools
import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .device.columns import TapRange, all_rows, any_row, full_tile, plan_columns, plane_at, program_columns
from .device.function import device_function
from .device.indexing import READER_SLACK, bilinear_source, empty_tuple, first_reader, max_readers, nearest_source, scales_of
from .device.precision import accumulator, round_to, widen
from .gather2d import MAX_UNROLLED, gather2d
from .runtime.allocate import empty_resized
from .runtime.launch import launch
from .runtime.layout import Ints, index_type
from .runtime.op import op
from .runtime.vmap import FIRST_AXIS


@device_function
def _between(left, right, across, ACCUMULATOR: tl.constexpr):
    """Interpolation between two columns of pixels, in the dtype of the accumulator."""
    return (1 - across) * widen(tl.load(left)).to(ACCUMULATOR) + across * widen(tl.load(right)).to(ACCUMULATOR)


@triton.jit
def _bilinear2d_forward_kernel(
    x, y,
    x_strides, y_strides,
    height, width, out_height, out_width, grid,
    scale_h: tl.float64, scale_w: tl.float64, shift,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y. The two interpolated rows of x are kept for the next row of y, which often needs them again."""
    # Columns: source columns and weights, the same for every row.
    scale_h, scale_w = tl.full((), scale_h, ACCUMULATOR), tl.full((), scale_w, ACCUMULATOR)
    n, c, q, first, steps = program_columns(grid, out_height, out_width, INDEX, TILE)
    left, right, across = bilinear_source(q, width, out_width, scale_w, shift)
    x, x_h, x_w = plane_at(x, x_strides, n, c)
    y, y_h, y_w = plane_at(y, y_strides, n, c)
    left, right, y = x + left * x_w, x + right * x_w, y + q * y_w
    # Loop: load a row of x only if it is not one of the two kept rows.
    upper = full_tile(0, TILE, ACCUMULATOR)
    lower = upper
    at_upper = tl.full((), -1, INDEX)
    at_lower = at_upper
    for step in range(steps):
        p = first + step
        top, bottom, down = bilinear_source(p, height, out_height, scale_h, shift)
        if any_row(top != at_upper, TILE):
            if all_rows(top == at_lower, TILE):
                upper = lower
            else:
                upper = _between(left + top * x_h, right + top * x_h, across, ACCUMULATOR)
        if any_row(bottom != at_lower, TILE):
            lower = _between(left + bottom * x_h, right + bottom * x_h, across, ACCUMULATOR)
        at_upper, at_lower = top, bottom
        tl.store(y + p * y_h, round_to((1 - down) * upper + down * lower, y.dtype.element_ty))


@triton.jit
def _bilinear2d_backward_kernel(
    dy, dx,
    dy_strides, dx_strides,
    height, width, out_height, out_width, grid,
    scale_h: tl.float64, scale_w: tl.float64, shift, readers_h,
    READERS: tl.constexpr, INSIDE: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx. Each row of dy adds to two adjacent rows of dx, whose sums are kept in registers."""
    # Columns: the outputs that read a column, and their weights, the same for every row.
    n, c, w, first, steps = program_columns(grid, height, width, INDEX, TILE)
    scale_h, axis_w = tl.full((), scale_h, ACCUMULATOR), (width, out_width, shift, tl.full((), scale_w, ACCUMULATOR))
    dy, dy_p, dy_q = plane_at(dy, dy_strides, n, c)
    dx, dx_h, dx_w = plane_at(dx, dx_strides, n, c)
    dx += w * dx_w
    dys, reads, weights = empty_tuple(), empty_tuple(), empty_tuple()
    for j in tl.static_range(READERS):
        q, reads_w, weight = _bilinear_reader(j, w, axis_w, ACCUMULATOR)
        dys, reads, weights = dys + (dy + q * dy_q,), reads + (reads_w,), weights + (weight,)
    # Rows: only these rows of dy can add to this split of dx.
    last = first + steps
    start = first_reader(first, out_height, scale_h, shift - 1, shift)
    end = tl.minimum(first_reader(last - 1, out_height, scale_h, shift - 1, shift) + readers_h, out_height)
    # Loop: `acc` is the sum of `row`, `below` the sum of the next row. Both grow until dy has passed them.
    row = first - 1
    acc = full_tile(0, TILE, ACCUMULATOR)
    below = acc
    for p in range(start, end):
        top, bottom, down = bilinear_source(tl.full((), p, INDEX), height, out_height, scale_h, shift)
        if row < top:  # this row is complete
            if row >= first:
                tl.store(dx + row * dx_h, acc.to(dx.dtype.element_ty), mask=row < last)
            acc, below = below, full_tile(0, TILE, ACCUMULATOR)
            row += 1
            while row < top:  # rows without readers, in an image that shrinks
                if row >= first:
                    tl.store(dx + row * dx_h, acc.to(dx.dtype.element_ty), mask=row < last)
                acc = below
                row += 1
        if row == top:
            line = full_tile(0, TILE, ACCUMULATOR)
            for j in tl.static_range(READERS):
                if INSIDE.low <= j and j < INSIDE.high:
                    value = tl.load(dys[j] + p * dy_p)
                else:
                    value = tl.load(dys[j] + p * dy_p, mask=reads[j], other=0.0)
                line += weights[j] * widen(value).to(ACCUMULATOR)
            acc += (tl.where(bottom == top, down, 0.0) + (1 - down)) * line
            if bottom != top:  # else a weight of 0 times an infinity would put NaN into a row that dy does not read
                below += down * line
    # Epilogue: store the last sums, and zeros below them.
    while row < last:
        if row >= first:
            tl.store(dx + row * dx_h, acc.to(dx.dtype.element_ty))
        acc, below = below, full_tile(0, TILE, ACCUMULATOR)
        row += 1


@device_function
def _bilinear_reader(i, position, axis, DTYPE: tl.constexpr):
    """TAP of gather2d: output i near a pixel, whether it reads the pixel, and the weight."""
    size, out_size, shift, scale = axis
    reader = first_reader(position, out_size, scale.to(DTYPE), shift - 1, shift) + i
    first, second, weight = bilinear_source(reader, size, out_size, scale.to(DTYPE), shift)
    share = tl.where(first == position, 1 - weight, 0.0) + tl.where(second == position, weight, 0.0)
    return reader, (reader < out_size) & ((first == position) | (second == position)), share


@device_function
def _nearest(i, position, axis, DTYPE: tl.constexpr):
    """TAP of gather2d: the pixel that an output copies."""
    size, _out_size, shift, scale = axis
    return nearest_source(position, size, scale.to(tl.float32), shift), True, 1


@device_function
def _nearest_reader(i, position, axis, DTYPE: tl.constexpr):
    """TAP of gather2d: output i near a pixel, and whether it copies the pixel."""
    size, out_size, shift, scale = axis
    reader = first_reader(position, out_size, scale.to(tl.float32), 0.0, shift) + i
    return reader, (reader < out_size) & (nearest_source(reader, size, scale.to(tl.float32), shift) == position), 1


@functools.lru_cache(maxsize=1024)
def always_read(size: int, out_size: int, scale: float, shift: float, readers: int) -> TapRange:
    """The range of i in which output first_reader + i reads its pixel, for every pixel of an axis. These loads need no mask."""
    always = [True] * readers
    for pixel in range(size if size <= 2**12 else 0):
        first = math.ceil((pixel + shift - 1) / scale - shift - out_size * READER_SLACK.value) if scale and pixel else 0
        for j in range(readers):
            source = max((max(first, 0) + j + shift) * scale - shift, 0.0)
            # 0.999 instead of 1, because the kernel rounds its coordinates.
            always[j] &= max(first, 0) + j < out_size and (abs(source - pixel) < 0.999 or (source > pixel == size - 1))
    low = always.index(True) if any(always) and size <= 2**12 else readers
    return TapRange(low, (always + [False]).index(False, low))


@op(fake=empty_resized, vmap=FIRST_AXIS)
def bilinear2d_forward(x: Tensor, size: Ints, factors: Sequence[float], align_corners: bool) -> Tensor:
    """Resize an image by bilinear interpolation.

    Args:
        x: (N, C, H, W), any strides. uint8 results are rounded to nearest.
        size: (P, Q).
        factors: of height and width, or empty. From an output to the next, coordinates advance by 1 / factor; without factors
            by H / P; with align_corners always by (H - 1) / (P - 1). An axis of equal size is copied.
        align_corners: align the centres of the corner pixels instead of their outer edges.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = empty_resized(x, size)
    shift = 0.0 if align_corners else 0.5
    programs, grid, tile, strides = plan_columns(y, (x, y), room=2048, lanes=1024)
    launch(
        _bilinear2d_forward_kernel, programs, x, y,
        *strides,
        *x.shape[2:], *size, grid,
        *scales_of(x.shape[2:], size, factors, align_corners), shift,
        ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x, y), TILE=tile, device=x.device,
    )  # fmt: skip
    return y


@op(fake=empty_resized, vmap=FIRST_AXIS)
def bilinear2d_backward(dy: Tensor, size: Ints, factors: Sequence[float], align_corners: bool) -> Tensor:
    """Gradient of bilinear interpolation: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    `factors` and `align_corners` have the values of the forward.
    """
    dx = empty_resized(dy, size)
    shift = 0.0 if align_corners else 0.5
    # An axis of equal size is copied, whatever its factor. Its readers follow from a scale of 1.
    scales = scales_of(size, dy.shape[2:], factors, align_corners)
    scales = [1.0 if n == m else scale for n, m, scale in zip(size, dy.shape[2:], scales, strict=True)]
    readers = _readers(size, dy, scales, shift - 1, shift + 1, shift)
    programs, grid, tile, strides = plan_columns(dx, (dy, dx), room=2048, lanes=512)
    # The kernel below needs scalar rows, and registers for each reader of a column.
    if tile.splits > 1 or readers[1] > MAX_UNROLLED:
        gather2d(dy, dx, _axes(size, dy.shape[2:], shift), readers, _bilinear_reader, scales=scales)
        return dx
    launch(
        _bilinear2d_backward_kernel, programs, dy, dx,
        *strides,
        *size, *dy.shape[2:], grid,
        *scales, shift, readers[0],
        READERS=readers[1], INSIDE=always_read(size[1], dy.shape[3], scales[1], shift, readers[1]),
        ACCUMULATOR=accumulator(dy.dtype), INDEX=index_type(dy, dx), TILE=tile, device=dy.device,
    )  # fmt: skip
    return dx


@op(fake=empty_resized, vmap=FIRST_AXIS)
def nearest2d_forward(x: Tensor, size: Ints, factors: Sequence[float], exact: bool) -> Tensor:
    """Resize an image by copying pixels.

    Args:
        x: (N, C, H, W), any strides and dtype.
        size: (P, Q).
        factors: of height and width, or empty. From an output to the next, coordinates advance by 1 / factor; without factors
            by H / P. If not `exact`, an axis of equal or doubled size always advances by H / P, as in torch.
        exact: copy the pixel under the centre of an output instead of its edge.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = empty_resized(x, size)
    scales = _nearest_scales(x.shape[2:], size, factors, exact)
    shift = 0.5 if exact else 0.0
    gather2d(x, y, _axes(x.shape[2:], size, shift), (1, 1), _nearest, mode="copy", scales=scales)
    return y


@op(fake=empty_resized, vmap=FIRST_AXIS)
def nearest2d_backward(dy: Tensor, size: Ints, factors: Sequence[float], exact: bool) -> Tensor:
    """Gradient of copying the nearest pixel: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    `factors` and `exact` have the values of the forward.
    """
    dx = empty_resized(dy, size)
    scales = _nearest_scales(size, dy.shape[2:], factors, exact)
    shift = 0.5 if exact else 0.0
    readers = _readers(size, dy, scales, 0.0, 1.0, shift)
    gather2d(dy, dx, _axes(size, dy.shape[2:], shift), readers, _nearest_reader, scales=scales)
    return dx


def _nearest_scales(size: Ints, out_size: Ints, factors: Sequence[float], exact: bool) -> list[float]:
    """Input pixels per output pixel, for height and width."""
    scales = scales_of(size, out_size, factors)
    if exact:
        return scales
    return [even if even in (1.0, 0.5) else s for even, s in zip(scales_of(size, out_size, ()), scales, strict=True)]


def _axes(size: Ints, out_size: Ints, shift: float) -> list[tuple[int, int, float]]:
    """The argument `axes` of gather2d."""
    return [(n, m, shift) for n, m in zip(size, out_size, strict=True)]


def _readers(size: Ints, dy: Tensor, scales: Sequence[float], low: float, high: float, shift: float) -> list[int]:
    """The largest number of outputs near a pixel, for height and width."""
    return [max_readers(n, m, s, low, high, shift) for n, m, s in zip(size, dy.shape[2:], scales, strict=True)]
