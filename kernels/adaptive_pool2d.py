"""2-D adaptive average and max pooling: an image of (H, W) pixels cut into (P, Q) bins, however the two divide.

    adaptive_avg_pool2d   y[n, c, p, q] = mean of x[n, c, h, w]    dx[n, c, h, w] = sum of dy[n, c, p, q] / pixels of (p, q)
    adaptive_max_pool2d   y[n, c, p, q] = max of x[n, c, h, w]     dx[n, c, h, w] = sum of dy[n, c, p, q] whose winner is (h, w)

    over the pixels (h, w) of bin (p, q), and over the bins (p, q) that hold pixel (h, w)

A bin holds the pixels that it touches, so bins overlap where sizes do not divide. Which bins hold a pixel is the same formula
with pixels and bins exchanged: both gradients are gathers, without atomics. A max remembers its winner as the number of the
pixel in its bin, one byte as a rule. Kernels are elementwise over what they fill, in its memory order.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import bin_end, bin_start, elements_of, most_in_bin
from trinn.kernels.launch import empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.pool2d import beats
from trinn.kernels.precision import accumulator, divided
from trinn.kernels.tuning import element_tiles


@triton.jit
def _avg_kernel(
    x, y,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, most_h, most_w,
    CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    top, bottom = bin_start(p, height, out_height), bin_end(p, height, out_height)
    left, right = bin_start(q, width, out_width), bin_end(q, width, out_width)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(most_h):
        for j in range(most_w):
            h, w = top + i, left + j
            hit = exists & (h < bottom) & (w < right)
            acc += tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=hit, other=0.0).to(ACCUMULATOR)
    mean = divided(acc, ((bottom - top) * (right - left)).to(ACCUMULATOR))
    tl.store(y + n * y_n + c * y_c + p * y_h + q * y_w, mean.to(y.dtype.element_ty), mask=exists)


@triton.jit
def _avg_backward_kernel(
    dy, dx,
    dy_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, most_p, most_q,
    CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    first_p, last_p = bin_start(h, out_height, height), bin_end(h, out_height, height)
    first_q, last_q = bin_start(w, out_width, width), bin_end(w, out_width, width)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(most_p):
        p = first_p + i
        rows = bin_end(p, height, out_height) - bin_start(p, height, out_height)
        for j in range(most_q):
            q = first_q + j
            columns = bin_end(q, width, out_width) - bin_start(q, width, out_width)
            hit = exists & (p < last_p) & (q < last_q)
            upstream = tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=hit, other=0.0).to(ACCUMULATOR)
            acc += divided(upstream, (rows * columns).to(ACCUMULATOR))
    tl.store(dx + n * dx_n + c * dx_c + h * dx_h + w * dx_w, acc.to(dx.dtype.element_ty), mask=exists)


@triton.jit
def _max_kernel(
    x, y, codes,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, most_h, most_w,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y, and which pixels of their bins they came from, counted in rows of `most_w`."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    top, bottom = bin_start(p, height, out_height), bin_end(p, height, out_height)
    left, right = bin_start(q, width, out_width), bin_end(q, width, out_width)
    x += n * x_n + c * x_c
    best = tl.load(x + top * x_h + left * x_w, mask=exists, other=0)
    code = tl.full((TILE.rows, TILE.lanes), 0, tl.int32)
    for i in range(most_h):
        for j in range(most_w):
            h, w = top + i, left + j
            hit = exists & (h < bottom) & (w < right)
            value = tl.load(x + h * x_h + w * x_w, mask=hit, other=0)
            wins = hit & beats(value, best)
            best = tl.where(wins, value, best)
            code = tl.where(wins, i * most_w + j, code)
    at = n * y_n + c * y_c + p * y_h + q * y_w
    tl.store(y + at, best, mask=exists)
    tl.store(codes + at, code.to(codes.dtype.element_ty), mask=exists)


@triton.jit
def _max_pick_kernel(
    x, codes, y,
    x_strides, codes_strides, y_strides,
    elements, channels, height, width, out_height, out_width, most_w,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y: the values of x at the winners or, without x, their places h * width + w."""
    codes_n, codes_c, codes_p, codes_q = codes_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    at = n * y_n + c * y_c + p * y_h + q * y_w
    code = tl.load(codes + n * codes_n + c * codes_c + p * codes_p + q * codes_q, mask=exists, other=0).to(INDEX)
    h = bin_start(p, height, out_height) + code // most_w
    w = bin_start(q, width, out_width) + code % most_w
    if x is not None:
        x_n, x_c, x_h, x_w = x_strides
        value = tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=exists, other=0)
        tl.store(y + at, value, mask=exists)
    else:
        tl.store(y + at, h.to(tl.int64) * width + w, mask=exists)


@triton.jit
def _max_backward_kernel(
    dy, codes, dx,
    dy_strides, codes_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, most_p, most_q, most_w,
    CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    codes_n, codes_c, codes_p, codes_q = codes_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    first_p, last_p = bin_start(h, out_height, height), bin_end(h, out_height, height)
    first_q, last_q = bin_start(w, out_width, width), bin_end(w, out_width, width)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(most_p):
        p = first_p + i
        for j in range(most_q):
            q = first_q + j
            hit = exists & (p < last_p) & (q < last_q)
            code = tl.load(codes + n * codes_n + c * codes_c + p * codes_p + q * codes_q, mask=hit, other=0).to(INDEX)
            upstream = tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=hit, other=0.0).to(ACCUMULATOR)
            own = (h - bin_start(p, height, out_height)) * most_w + w - bin_start(q, width, out_width)
            acc += tl.where(code == own, upstream, 0.0)
    tl.store(dx + n * dx_n + c * dx_c + h * dx_h + w * dx_w, acc.to(dx.dtype.element_ty), mask=exists)


def _empty_avg_forward(x: Tensor, size: Sequence[int]) -> Tensor:
    return empty(x, (*x.shape[:2], *size), is_channels_last(x))


def _empty_avg_backward(dy: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    return empty(dy, (*dy.shape[:2], *size), channels_last)


def _empty_max_forward(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    shape, channels_last = (*x.shape[:2], *size), is_channels_last(x)
    pixels = most_in_bin(x.shape[2], size[0]) * most_in_bin(x.shape[3], size[1])
    return empty(x, shape, channels_last), empty(x, shape, channels_last, torch.uint8 if pixels <= 256 else torch.int32)


def _empty_max_backward(dy: Tensor, codes: Tensor, size: Sequence[int]) -> Tensor:
    return empty(dy, (*codes.shape[:2], *size), is_channels_last(codes))


def _empty_max_pick(x: Tensor, codes: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=x.dtype)


def _empty_max_indices(codes: Tensor, size: Sequence[int]) -> Tensor:
    return torch.empty_like(codes, dtype=torch.int64)


@op(fake=_empty_avg_forward)
def adaptive_avg_pool2d_forward(x: Tensor, size: Sequence[int]) -> Tensor:
    """The mean of each bin: x (N, C, H, W), any strides, to (N, C, P, Q) with (P, Q) = `size`, channels_last if `x` is."""
    y = _empty_avg_forward(x, size)
    programs, order = element_tiles(y)
    launch(
        _avg_kernel, programs, x, y,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size, *_most(x.shape[2:], size),
        **order, ACCUMULATOR=accumulator(x.dtype), INDEX=_index_type(x.shape[2:], y, x),
        device=x.device,
    )  # fmt: skip
    return y


@op(fake=_empty_avg_backward)
def adaptive_avg_pool2d_backward(dy: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """Gradient of adaptive average pooling: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    In the order that `channels_last` says, which is that of x: `dy` loses it where one pixel is left of each channel.
    """
    dx = _empty_avg_backward(dy, size, channels_last)
    programs, order = element_tiles(dx, channels_last)
    launch(
        _avg_backward_kernel, programs, dy, dx,
        dy.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], *_most(dy.shape[2:], size),
        **order, ACCUMULATOR=accumulator(dy.dtype), INDEX=_index_type(size, dy, dx),
        device=dy.device,
    )  # fmt: skip
    return dx


@op(fake=_empty_max_forward)
def adaptive_max_pool2d_forward(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The largest value of each bin.

    Args:
        x: (N, C, H, W), any strides.
        size: (P, Q).

    Returns:
        y and codes, (N, C, P, Q), channels_last if `x` is: the values, and which pixel of its bin won, counted row by row of
        the widest bin; uint8 where no bin has more than 256 such pixels, else int32.
    """
    y, codes = _empty_max_forward(x, size)
    programs, order = element_tiles(y)
    launch(
        _max_kernel, programs, x, y, codes,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size, *_most(x.shape[2:], size),
        **order, INDEX=_index_type(x.shape[2:], y, x), device=x.device,
    )  # fmt: skip
    return y, codes


@op(fake=_empty_max_backward)
def adaptive_max_pool2d_backward(dy: Tensor, codes: Tensor, size: Sequence[int]) -> Tensor:
    """Gradient of adaptive max pooling: each input pixel gets the sum over the bins it won.

    Args:
        dy: (N, C, P, Q), any strides.
        codes: from adaptive_max_pool2d_forward.
        size: (H, W).

    Returns:
        (N, C, H, W), channels_last if `codes` is.
    """
    dx = _empty_max_backward(dy, codes, size)
    programs, order = element_tiles(dx)
    launch(
        _max_backward_kernel, programs, dy, codes, dx,
        dy.stride(), codes.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], *_most(dy.shape[2:], size), most_in_bin(size[1], dy.shape[3]),
        **order, ACCUMULATOR=accumulator(dy.dtype), INDEX=_index_type(size, dy, dx, codes), device=dy.device,
    )  # fmt: skip
    return dx


@op(fake=_empty_max_pick)
def adaptive_max_pool2d_pick(x: Tensor, codes: Tensor) -> Tensor:
    """The value of `x` (N, C, H, W) at the winner of each bin, like `codes`: the adjoint of adaptive_max_pool2d_backward."""
    y = _empty_max_pick(x, codes)
    _pick(x, codes, y, x.shape[2:])
    return y


@op(fake=_empty_max_indices)
def adaptive_max_pool2d_indices(codes: Tensor, size: Sequence[int]) -> Tensor:
    """The place h * W + w of the winner of each bin, int64, like `codes`, in an image of (H, W) = `size`."""
    indices = _empty_max_indices(codes, size)
    _pick(None, codes, indices, size)
    return indices


def _pick(x: Tensor | None, codes: Tensor, y: Tensor, size: Sequence[int]) -> None:
    programs, order = element_tiles(y)
    launch(
        _max_pick_kernel, programs, x, codes, y,
        x.stride() if x is not None else None, codes.stride(), y.stride(),
        y.numel(), y.shape[1], *size, *y.shape[2:], most_in_bin(size[1], y.shape[3]),
        **order, INDEX=_index_type(size, y, *(t for t in (codes, x) if t is not None)), device=y.device,
    )  # fmt: skip


def _most(size: Sequence[int], bins: Sequence[int]) -> tuple[int, int]:
    return most_in_bin(size[0], bins[0]), most_in_bin(size[1], bins[1])


def _index_type(size: Sequence[int], y: Tensor, *tensors: Tensor) -> tl.dtype:
    """Wide enough for offsets, and for a pixel's number times a bin's."""
    products = max((pixels + 1) * (bins + 1) for pixels, bins in zip(size, y.shape[2:], strict=True))
    return tl.int64 if products >= 2**31 else index_type(y, *tensors)
