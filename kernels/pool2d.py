"""2-D max and average pooling, with windows or, in adaptive pooling, with bins.

    max   y[n, c, p, q]  = max x[n, c, h, w]          dx[n, c, h, w] = sum dy[n, c, p, q]
    avg   y[n, c, p, q]  = sum x[n, c, h, w] / d      dx[n, c, h, w] = sum dy[n, c, p, q] / d

    y: over the pixels (h, w) inside the image of window (p, q), h = p * stride - padding + r * dilation,
       or of bin (p, q), floor(p * H / P) <= h < ceil((p + 1) * H / P); w follows from q in the same way
    dx: over the windows or bins (p, q) with pixel (h, w); in max, only those with their maximum at this pixel

Max pooling stores the position of each maximum as a code: the number r * S + s of its tap in the window, usually one byte.
Codes are converted to torch's int64 indices only if the caller requests these. The last NaN wins; among equal values, the
first. With dilation, all taps of a window may miss a small image; such a window has the lowest value of the dtype and no
gradient. Both gradients are gathers, without atomics: each pixel reads the few windows that may contain it. Windows with few
taps have unrolled kernels in this file; gather2d.py computes all others.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device.columns import TapRange, full_tile, plan_columns, plane_at, program_columns, taps_always_inside
from .device.function import device_function
from .device.indexing import Axis, axes_of, big_from_small, empty_tuple, inside
from .device.precision import accumulator, beats, lowest, widen
from .device.windows2d import windows_of
from .gather2d import gather2d, pick2d
from .reduce import plane_mean
from .runtime.allocate import empty, empty_like, empty_resized
from .runtime.launch import launch
from .runtime.layout import Ints, index_type, is_channels_last
from .runtime.op import op
from .runtime.vmap import FIRST_AXIS

MOST_TAPS = 25  # largest number of taps in a window, and of pixels in a cell, for the unrolled kernels of this file


@device_function
def _best_of_row(
    x, x_w, row_inside, taps_inside, first_tap,
    INSIDE: tl.constexpr, LEAST: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """(maximum, column of its tap) over one row of taps, for a tile of windows. Taps in `INSIDE` need no mask."""
    for s in tl.static_range(len(taps_inside)):
        if row_inside is None and INSIDE.low <= s and s < INSIDE.high:
            value = tl.load(x + s * x_w)
        elif row_inside is None:
            value = tl.load(x + s * x_w, mask=taps_inside[s], other=LEAST)
        else:
            value = tl.load(x + s * x_w, mask=taps_inside[s] & row_inside, other=LEAST)
        value = widen(value).to(ACCUMULATOR)
        if s == 0:
            best, tap = value, first_tap
        else:
            wins = beats(value, best)
            best, tap = tl.where(wins, value, best), tl.where(wins, s, tap)
    return best, tap


@triton.jit
def _max_pool2d_kernel(
    x, y, codes,
    x_strides, y_strides,
    height, width, out_height, out_width, grid,
    H: tl.constexpr, W: tl.constexpr, ROWS_INSIDE: tl.constexpr, COLUMNS_INSIDE: tl.constexpr, LEAST: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y and its codes. Windows share rows of x with the windows below them, so the kernel keeps the row maxima."""
    R: tl.constexpr = H.taps
    S: tl.constexpr = W.taps
    KEPT: tl.constexpr = max(H.taps - H.stride, 0)
    # Indices: all column arithmetic is here, because the loop changes only the row.
    n, c, q, first, steps = program_columns(grid, out_height, out_width, INDEX, TILE)
    left = big_from_small(q, 0, W)
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    x_w = tl.full((), 1, INDEX) * x_w
    at = n * y_n + c * y_c + q * y_w
    x, y, codes = x + (n * x_n + c * x_c + left * x_w), y + at, codes + at
    taps_inside = empty_tuple()
    for s in tl.static_range(S):
        taps_inside += (inside(left + s, width),)
    # In a window of equal values, the first tap inside the image wins.
    first_s = full_tile(0, TILE, tl.int32)
    if COLUMNS_INSIDE.low > 0:
        first_s += tl.maximum(-left, 0).to(tl.int32)

    # Load the first rows before the loop: each iteration reuses the last KEPT rows of the iteration before.
    bests, taps = empty_tuple(), empty_tuple()
    for r in tl.static_range(KEPT):
        h = big_from_small(first, r, H)
        best, tap = _best_of_row(x + h * x_h, x_w, inside(h, height), taps_inside, first_s, COLUMNS_INSIDE, LEAST, ACCUMULATOR)
        bests, taps = bests + (best,), taps + (tap,)
    # Loop: load only the new rows, because the others are in `bests`.
    for step in range(steps):
        p = first + step
        for r in tl.static_range(KEPT, R):
            h = big_from_small(p, r, H)
            row_inside = None if ROWS_INSIDE.low <= r and r < ROWS_INSIDE.high else inside(h, height)
            best, tap = _best_of_row(x + h * x_h, x_w, row_inside, taps_inside, first_s, COLUMNS_INSIDE, LEAST, ACCUMULATOR)
            bests, taps = bests + (best,), taps + (tap,)
        # Maximum over the rows: the code must name the first tap inside the image, also if all values are equal.
        best, code = bests[0], taps[0]
        if ROWS_INSIDE.low > 0:
            code += tl.maximum(-big_from_small(p, 0, H), 0).to(tl.int32) * S
        for r in tl.static_range(1, R):
            wins = beats(bests[r], best)
            best, code = tl.where(wins, bests[r], best), tl.where(wins, taps[r] + r * S, code)
        # Store: no mask, because lanes past the end repeat the last window. codes have the strides of y.
        tl.store(y + p * y_h, best.to(y.dtype.element_ty))
        tl.store(codes + p * y_h, code.to(codes.dtype.element_ty))
        bests, taps = bests[R - KEPT :], taps[R - KEPT :]


class Reach(NamedTuple):
    """The windows that contain pixels of cell k of an axis are k + low to k + high. A cell is `stride` pixels."""

    low: int
    high: int


def _reach_of(axis: Axis, padding: int) -> Reach:
    """The Reach of an axis. Window k begins `padding` pixels before cell k: none along rows, axis.padding along columns."""
    return Reach(-((axis.taps - 1 - padding) // axis.stride), (axis.stride - 1 + padding) // axis.stride)


@triton.constexpr_function
def _tap_of(pixel: int, window: int, axis: Axis, padding: int) -> int:
    """Tap of window k + `window` at pixel number `pixel` of cell k; -1 if this window does not contain the pixel.

    `padding` is the same as in _reach_of.
    """
    taps, stride, *_ = axis  # Triton 3.6 passes a plain tuple
    tap = pixel + padding - window * stride
    return tap if 0 <= tap < taps else -1


@device_function
def _add_row(cells, p, dys, codes, missing, dy_p, codes_p, out_height, LOW: tl.constexpr, H: tl.constexpr, W: tl.constexpr):
    """Add the gradients of row p of windows to the sums of cells: row p of the cells, then the rows below it."""
    ROWS: tl.constexpr = H.stride
    COLUMNS: tl.constexpr = W.stride
    CELLS: tl.constexpr = len(cells)
    WINDOWS: tl.constexpr = len(dys)
    row_missing = tl.where(inside(p, out_height), 0, -1)
    p = tl.minimum(tl.maximum(p, 0), out_height - 1)
    loaded, gradients, found = empty_tuple(), empty_tuple(), empty_tuple()
    for d in tl.static_range(WINDOWS):
        loaded += (tl.load(dys[d] + p * dy_p),)
    for d in tl.static_range(WINDOWS):
        found += (tl.load(codes[d] + p * codes_p).to(tl.int32) | missing[d] | row_missing,)  # -1 matches no tap
        gradients += (widen(loaded[d]).to(cells[0].dtype),)
    sums = empty_tuple()
    for k in tl.static_range(CELLS):
        acc = cells[k]
        for d in tl.static_range(WINDOWS):
            r, s = _tap_of(k // COLUMNS % ROWS, -(k // (ROWS * COLUMNS)), H, 0), _tap_of(k % COLUMNS, d + LOW, W, W.padding)
            if r >= 0 and s >= 0:
                acc = tl.where(found[d] == r * W.taps + s, acc + gradients[d], acc)
        sums += (acc,)
    return sums


@triton.jit
def _max_pool2d_backward_kernel(
    dy, codes, dx,
    dy_strides, codes_strides, dx_strides,
    height, width, out_height, out_width, cells_h, cells_w, grid,
    H: tl.constexpr, W: tl.constexpr, BELOW: tl.constexpr, REACH: tl.constexpr, INSIDE: tl.constexpr, PAIRS: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx, in cells of stride by stride pixels.

    A pixel has the same windows and taps in every cell, so its taps are compile-time constants. The columns of a cell begin at
    a multiple of the stride, its rows at the first row of a window. So row p of the windows completes row p of the cells. It
    also contributes to the `BELOW` rows of cells below, whose sums stay in registers.
    """
    # Indices: all column arithmetic is here, because the loop changes only the row.
    n, c, col, first, steps = program_columns(grid, cells_h, cells_w, INDEX, TILE)  # `col` and `row` count cells
    LOW: tl.constexpr = REACH.low
    WINDOWS: tl.constexpr = REACH.high - REACH.low + 1
    ROWS: tl.constexpr = H.stride
    COLUMNS: tl.constexpr = W.stride
    CELL: tl.constexpr = ROWS * COLUMNS
    dy, dy_p, dy_q = plane_at(dy, dy_strides, n, c)
    codes, codes_p, codes_q = plane_at(codes, codes_strides, n, c)
    dx_n, dx_c, dx_h, dx_w = dx_strides
    dys, all_codes, missing = empty_tuple(), empty_tuple(), empty_tuple()
    for d in tl.static_range(LOW, LOW + WINDOWS):
        q = col + d
        if INSIDE.low <= d and d < INSIDE.high:
            missing += (0,)
        else:
            missing += (tl.where(inside(q, out_width), 0, -1),)
            q = tl.minimum(tl.maximum(q, 0), out_width - 1)
        dys, all_codes = dys + (dy + q * dy_q,), all_codes + (codes + q * codes_q,)
    at = n * dx_n + c * dx_c + col * W.stride * dx_w
    if PAIRS:  # two adjacent columns in rows with even offsets: one vector store instead of two strided ones
        at = at[:, :, None] + (tl.arange(0, 2) * dx_w)[None, None, :]
        at = tl.max_contiguous(tl.multiple_of(at, [1, 1, 2]), [1, 1, 2])
    dx += at

    # Windows above the split: its first cells also need their contributions.
    cells = (full_tile(0, TILE, ACCUMULATOR),) * (BELOW * CELL)
    for a in tl.static_range(BELOW):
        new = (full_tile(0, TILE, ACCUMULATOR),) * CELL
        cells = _add_row(cells + new, first - BELOW + a, dys, all_codes, missing, dy_p, codes_p, out_height, LOW, H, W)[CELL:]
    # Loop: each row of windows is loaded once, because sums of later cells stay in registers.
    for step in range(steps):
        row = first + step
        new = (full_tile(0, TILE, ACCUMULATOR),) * CELL
        cells = _add_row(cells + new, row, dys, all_codes, missing, dy_p, codes_p, out_height, LOW, H, W)
        # Store: only this row of cells is complete. Cells may cross the edges of the image, so mask their pixels.
        for i in tl.static_range(ROWS):
            h = big_from_small(row, 0, H) + i
            if PAIRS:
                pair = tl.join(cells[i * 2], cells[i * 2 + 1]).to(dx.dtype.element_ty)
                tl.store(dx + h * dx_h, pair, mask=inside(h, height))
            else:
                for j in tl.static_range(COLUMNS):
                    mask = inside(h, height) & (col * COLUMNS + j < width)
                    tl.store(dx + h * dx_h + j * dx_w, cells[i * COLUMNS + j].to(dx.dtype.element_ty), mask=mask)
        cells = cells[CELL:]


def code_type(kernel: Ints) -> torch.dtype:
    """dtype of codes: uint8 for up to 256 taps, otherwise int32. The taps of bins depend on sizes, but the dtype must not."""
    return torch.uint8 if kernel and kernel[0] * kernel[1] <= 256 else torch.int32


def _empty_max_forward(x: Tensor, size: Ints, *window: Any) -> tuple[Tensor, Tensor]:
    shape, channels_last = (*x.shape[:2], *size), is_channels_last(x)
    return empty(x, shape, channels_last), empty(x, shape, channels_last, code_type(window[0]))


def _empty_max_backward(dy: Tensor, codes: Tensor, size: Ints, *_: Any) -> Tensor:
    return empty(dy, (*codes.shape[:2], *size), is_channels_last(codes))


def _empty_max_pick(x: Tensor | None, codes: Tensor, *_: Any) -> Tensor:
    return empty_like(codes, x.dtype if x is not None else torch.int64)


def _empty_avg_backward(dy: Tensor, size: Ints, *more: Any) -> Tensor:
    return empty(dy, (*dy.shape[:2], *size), channels_last=more[-1])


@op(fake=_empty_max_forward, vmap=FIRST_AXIS)
def max_pool2d_forward(
    x: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> tuple[Tensor, Tensor]:
    """The largest value of each window.

    Args:
        x: (N, C, H, W), any strides and real dtype.
        size: (P, Q).
        kernel: (R, S), the taps of a window; () for bins, and then the other three are () too.
        stride, padding, dilation: in pixels, for height and width.

    Returns:
        y and codes, (N, C, P, Q), channels_last if `x` is. y has the values. codes has the number r * S + s of the tap with the
        maximum, or 0 if all taps are outside the image; for bins, S is the width of the widest bin. It is uint8 for kernels of
        at most 256 taps, else int32.
    """
    y, codes = _empty_max_forward(x, size, kernel, stride, padding, dilation)
    if not _is_small(kernel, stride, dilation):
        windows = windows_of(x.shape[2:], size, kernel, stride, padding, dilation)
        gather2d(x, y, windows.axes, windows.taps, windows.pixel, mode="max", codes=codes, code_width=windows.taps[1])
        return y, codes
    H, W = axes_of(kernel, stride, padding, dilation)
    programs, grid, tile, strides = plan_columns(y, (x, y))
    launch(
        _max_pool2d_kernel, programs, x, y, codes,
        *strides,
        *x.shape[2:], *size, grid,
        H=H, W=W,
        ROWS_INSIDE=taps_always_inside(H, x.shape[2], size[0]), COLUMNS_INSIDE=taps_always_inside(W, x.shape[3], size[1]),
        LEAST=lowest(x.dtype), ACCUMULATOR=accumulator(x.dtype, whole=True), INDEX=index_type(x, y), TILE=tile, device=x.device,
    )  # fmt: skip
    return y, codes


@op(fake=_empty_max_backward, vmap=FIRST_AXIS)
def max_pool2d_backward(
    dy: Tensor, codes: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """Gradient of max pooling: each input pixel gets the sum over the windows with their maximum at this pixel.

    Args:
        dy: (N, C, P, Q), any strides.
        codes: from max_pool2d_forward.
        size: (H, W).

    Returns:
        (N, C, H, W), channels_last if `codes` is.
    """
    dx = _empty_max_backward(dy, codes, size)
    if not _is_small(kernel, stride, dilation):
        windows = windows_of(size, dy.shape[2:], kernel, stride, padding, dilation)
        axes, width = windows.axes, windows.taps[1]
        gather2d(dy, dx, axes, windows.most_readers, windows.reader, mode="won", codes=codes, code_width=width)
        return dx
    H, W = axes_of(kernel, stride, padding, dilation)
    cells = triton.cdiv(size[0] + H.padding, H.stride), triton.cdiv(size[1], W.stride)
    programs, grid, tile, strides = plan_columns(dx, (dy, codes, dx), size=cells)
    in_pairs = tile.order == "contiguous" and W.stride == 2 and size[1] % 2 == 0 and tile.splits == 1
    launch(
        _max_pool2d_backward_kernel, programs, dy, codes, dx,
        *strides,
        *size, *dy.shape[2:], *cells, grid,
        H=H, W=W, BELOW=-_reach_of(H, 0).low, REACH=_reach_of(W, W.padding), INSIDE=TapRange(0, dy.shape[3] - cells[1] + 1),
        PAIRS=in_pairs, ACCUMULATOR=accumulator(dy.dtype),
        INDEX=index_type(dy, codes, dx), TILE=tile, device=dy.device,
    )  # fmt: skip
    return dx


def _is_small(kernel: Ints, stride: Ints, dilation: Ints) -> bool:
    """Whether the kernels of this file compute these windows: they are unrolled, and keep shared rows in registers."""
    return len(kernel) > 0 and max(kernel[0] * kernel[1], stride[0] * stride[1]) <= MOST_TAPS and max(dilation) == 1


@op(fake=_empty_max_pick, vmap=FIRST_AXIS)
def max_pool2d_pick(
    x: Tensor | None, codes: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    """The value of `x` at each code, the adjoint of max_pool2d_backward; or, without `x`, the index h * W + w of each code.

    Args:
        x: (N, C, H, W), any strides.
        codes: from max_pool2d_forward.
        size: (H, W).

    Returns:
        Like `codes`, with the dtype of `x`, or int64. For windows outside the image: 0, or any index of the image.
    """
    y = _empty_max_pick(x, codes)
    windows = windows_of(size, y.shape[2:], kernel, stride, padding, dilation)
    pick2d(x, codes, y, windows.axes, size, windows.pixel, windows.taps[1])
    return y


@op(fake=empty_resized, vmap=FIRST_AXIS)
def avg_pool2d_forward(
    x: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, count_include_pad: bool, divisor_override: int | None
) -> Tensor:
    """The mean of each window.

    Args:
        x: (N, C, H, W), any strides; int64 is averaged towards zero.
        size: (P, Q).
        kernel: (R, S), the taps of a window; () for bins, and then the next two are () too.
        stride, padding: in pixels, for height and width.
        count_include_pad: divide by the number of window pixels in the image and its padding, not only in the image.
        divisor_override: divide by this instead.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    if not kernel and list(size) == [1, 1]:
        return plane_mean(x)
    y = empty_resized(x, size)
    windows = windows_of(x.shape[2:], size, kernel, stride, padding, (1, 1), count_include_pad, divisor_override)
    gather2d(x, y, windows.axes, windows.taps, windows.pixel, windows.count, "add in order")
    return y


@op(fake=_empty_avg_backward, vmap=FIRST_AXIS)
def avg_pool2d_backward(
    dy: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints,
    count_include_pad: bool, divisor_override: int | None, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Gradient of average pooling: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    `channels_last` is the memory order of x and dx. The strides of `dy` do not show it if `dy` has one pixel per channel.
    """
    dx = _empty_avg_backward(dy, size, channels_last)
    windows = windows_of(size, dy.shape[2:], kernel, stride, padding, (1, 1), count_include_pad, divisor_override)
    if not kernel and list(dy.shape[2:]) == [1, 1]:  # one value for a whole (H, W) plane: divide once, then copy
        shares = empty(dy, dy.shape)
        gather2d(dy, shares, windows.axes, (1, 1), windows.pixel, windows.count, "add in order")
        gather2d(shares, dx, windows.axes, (1, 1), windows.reader, mode="copy", channels_last=channels_last)
        return dx
    gather2d(dy, dx, windows.axes, windows.most_readers, windows.weighted_reader, channels_last=channels_last)
    return dx
