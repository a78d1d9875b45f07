"""2-D max and average pooling.

    max_pool2d   y[n, c, p, q]  = max_{r, s} x[n, c, h, w]       dx[n, c, h, w] = sum of dy[n, c, p, q] whose winner is (h, w)
    avg_pool2d   y[n, c, p, q]  = sum_{r, s} x[n, c, h, w] / d    dx[n, c, h, w] = sum_{r, s} dy[n, c, p, q] / d

    each with h = p * stride - padding + r * dilation, w from q and s likewise, over the taps that lie inside the image

A max remembers its winner as the number of the tap, one byte; torch's int64 places are made from it only for those who ask.
NaN wins, the last one; of equal values the first. Dilated taps may all miss a small image: such a window has the least
value of its dtype and no winner. Both gradients are gathers: an input pixel looks at the few windows that
can cover it, so there are no atomics. Kernels are elementwise over what they fill, in its memory order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import Axis, big_from_small, elements_of, inside, small_from_big
from trinn.kernels.launch import device_function, empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator, divided, widened
from trinn.kernels.tuning import element_tiles


@device_function
def beats(value, best):
    """Whether a later value of a window wins over the best so far: it is larger, or NaN."""
    value = widened(value)
    return (value > widened(best)) | (value != value)


@triton.jit
def _max_pool2d_kernel(
    x, y, codes,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width,
    H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr, LEAST: tl.constexpr, INDEX: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y and the taps they came from."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    plane = n * x_n + c * x_c
    code = tl.full((TILE.rows, TILE.lanes), -1, tl.int32)
    # NumPy, under the interpreter, has no bfloat16 to fill a block with.
    best = tl.full((TILE.rows, TILE.lanes), LEAST, tl.float32 if x.dtype.element_ty == tl.bfloat16 else x.dtype.element_ty)
    best = best.to(x.dtype.element_ty)
    for tap in range(H.taps * W.taps):
        h, w = big_from_small(p, tap // W.taps, H), big_from_small(q, tap % W.taps, W)
        hit = exists & inside(h, height) & inside(w, width)
        value = tl.load(x + plane + h * x_h + w * x_w, mask=hit, other=0)
        wins = hit & ((code < 0) | beats(value, best))
        best = tl.where(wins, value, best)
        code = tl.where(wins, tap, code)
    at = n * y_n + c * y_c + p * y_h + q * y_w
    tl.store(y + at, best, mask=exists)
    tl.store(codes + at, tl.maximum(code, 0).to(codes.dtype.element_ty), mask=exists)


@triton.jit
def _max_pool2d_pick_kernel(
    x, codes, y,
    x_strides, codes_strides, y_strides,
    elements, channels, height, width, out_height, out_width,
    H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y: the values of x at the winners or, without x, their places h * width + w.

    Where nothing won, the value is 0 and the place that of some pixel.
    """
    codes_n, codes_c, codes_p, codes_q = codes_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    at = n * codes_n + c * codes_c + p * codes_p + q * codes_q
    code = tl.load(codes + at, mask=exists, other=0).to(INDEX)
    at = n * y_n + c * y_c + p * y_h + q * y_w
    h, w = big_from_small(p, code // W.taps, H), big_from_small(q, code % W.taps, W)
    if x is not None:
        x_n, x_c, x_h, x_w = x_strides
        hit = exists & inside(h, height) & inside(w, width)
        value = tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=hit, other=0)
        tl.store(y + at, value, mask=exists)
    else:
        h = tl.minimum(tl.maximum(h, 0), height - 1).to(tl.int64)
        w = tl.minimum(tl.maximum(w, 0), width - 1)
        tl.store(y + at, h * width + w, mask=exists)


@triton.jit
def _max_pool2d_backward_kernel(
    dy, codes, dx,
    dy_strides, codes_strides, dx_strides,
    elements, channels, height, width, out_height, out_width,
    H: tl.constexpr, W: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    codes_n, codes_c, codes_p, codes_q = codes_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    last_p, first_r, hits_h = small_from_big(h, H)
    last_q, first_s, hits_w = small_from_big(w, W)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(H.most_hits):
        for j in range(W.most_hits):
            p, q = last_p - i * H.tap_back, last_q - j * W.tap_back
            tap = (first_r + i * H.tap_step) * W.taps + first_s + j * W.tap_step
            hit = exists & (i < hits_h) & (j < hits_w) & inside(p, out_height) & inside(q, out_width)
            code = tl.load(codes + n * codes_n + c * codes_c + p * codes_p + q * codes_q, mask=hit, other=0)
            upstream = tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=hit, other=0.0).to(ACCUMULATOR)
            acc += tl.where(code.to(INDEX) == tap, upstream, 0.0)
    at = n * dx_n + c * dx_c + h * dx_h + w * dx_w
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=exists)


@device_function
def _pixels(small, size, AXIS: tl.constexpr, COUNT_PADDING: tl.constexpr):
    """How many pixels of an axis a window averages: those inside the image or, counting padding, inside that too."""
    first = small * AXIS.stride - AXIS.padding
    if COUNT_PADDING:
        return tl.minimum(first + AXIS.taps - AXIS.padding, size) + AXIS.padding - first
    return tl.minimum(first + AXIS.taps, size) - tl.maximum(first, 0)


@device_function
def _divisor(
    p, q, height, width, divisor, H: tl.constexpr, W: tl.constexpr, COUNT_PADDING: tl.constexpr, ACCUMULATOR: tl.constexpr
):
    """What the sum over the window of (p, q) is divided by."""
    if divisor is not None:
        count = p * 0 + divisor
    else:
        count = _pixels(p, height, H, COUNT_PADDING) * _pixels(q, width, W, COUNT_PADDING)
    return count.to(ACCUMULATOR)


@triton.jit
def _avg_pool2d_kernel(
    x, y,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, divisor,
    H: tl.constexpr, W: tl.constexpr, COUNT_PADDING: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    acc = tl.full((TILE.rows, TILE.lanes), 0, ACCUMULATOR)
    for tap in range(H.taps * W.taps):
        h, w = big_from_small(p, tap // W.taps, H), big_from_small(q, tap % W.taps, W)
        hit = exists & inside(h, height) & inside(w, width)
        acc += tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=hit, other=0).to(ACCUMULATOR)
    count = _divisor(p, q, height, width, divisor, H, W, COUNT_PADDING, ACCUMULATOR)
    if ACCUMULATOR == tl.int64:
        acc = acc // count  # towards zero, as torch
    else:
        acc = divided(acc, count)
    at = n * y_n + c * y_c + p * y_h + q * y_w
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=exists)


@triton.jit
def _avg_pool2d_backward_kernel(
    dy, dx,
    dy_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, divisor,
    H: tl.constexpr, W: tl.constexpr, COUNT_PADDING: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    last_p, _, hits_h = small_from_big(h, H)
    last_q, _, hits_w = small_from_big(w, W)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(H.most_hits):
        for j in range(W.most_hits):
            p, q = last_p - i * H.tap_back, last_q - j * W.tap_back
            hit = exists & (i < hits_h) & (j < hits_w) & inside(p, out_height) & inside(q, out_width)
            upstream = tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=hit, other=0.0).to(ACCUMULATOR)
            count = _divisor(p, q, height, width, divisor, H, W, COUNT_PADDING, ACCUMULATOR)
            acc += divided(upstream, tl.where(hit, count, 1.0))
    at = n * dx_n + c * dx_c + h * dx_h + w * dx_w
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=exists)


def _empty_max_pool2d_forward(
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    shape, channels_last = (x.shape[0], x.shape[1], *size), is_channels_last(x)
    return empty(x, shape, channels_last), empty(x, shape, channels_last, code_type(kernel))


def code_type(kernel: Sequence[int]) -> torch.dtype:
    """The dtype of the numbers of a window's taps."""
    return torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32


def _empty_max_pool2d_backward(
    dy: Tensor, codes: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    return empty(dy, (*codes.shape[:2], *size), is_channels_last(codes))


def _empty_max_pool2d_pick(
    x: Tensor, codes: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    return torch.empty_like(codes, dtype=x.dtype)


def _empty_max_pool2d_indices(
    codes: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    return torch.empty_like(codes, dtype=torch.int64)


def _empty_avg_pool2d_forward(
    x: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    return empty(x, (*x.shape[:2], *size), is_channels_last(x))


def _empty_avg_pool2d_backward(
    dy: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    count_include_pad: bool, divisor_override: int | None, channels_last: bool,
) -> Tensor:  # fmt: skip
    return empty(dy, (*dy.shape[:2], *size), channels_last)


@op(fake=_empty_max_pool2d_forward)
def max_pool2d_forward(
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The largest value of each window.

    Args:
        x: (N, C, H, W), any strides and real dtype.
        size: (P, Q).
        kernel: (R, S), the taps of a window.
        stride, padding, dilation: in pixels, for height and width.

    Returns:
        y and codes, (N, C, P, Q), channels_last if `x` is: the values, and the number r * S + s of the tap that won, uint8
        for windows of at most 256 taps, else int32; 0 where none did.
    """
    y, codes = _empty_max_pool2d_forward(x, size, kernel, stride, padding, dilation)
    programs, order = element_tiles(y)
    launch(
        _max_pool2d_kernel, programs, x, y, codes,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size,
        **_axes(kernel, stride, padding, dilation), **order,
        LEAST=float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min,
        INDEX=index_type(x, y), device=x.device,
    )  # fmt: skip
    return y, codes


@op(fake=_empty_max_pool2d_backward)
def max_pool2d_backward(
    dy: Tensor, codes: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """Gradient of max pooling: each input pixel gets the sum over the windows it won.

    Args:
        dy: (N, C, P, Q), any strides.
        codes: from max_pool2d_forward.
        size: (H, W).

    Returns:
        (N, C, H, W), channels_last if `codes` is.
    """
    dx = _empty_max_pool2d_backward(dy, codes, size, kernel, stride, padding, dilation)
    programs, order = element_tiles(dx)
    launch(
        _max_pool2d_backward_kernel, programs, dy, codes, dx,
        dy.stride(), codes.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:],
        **_axes(kernel, stride, padding, dilation), **order,
        ACCUMULATOR=accumulator(dy.dtype), INDEX=index_type(dy, codes, dx), device=dy.device,
    )  # fmt: skip
    return dx


@op(fake=_empty_max_pool2d_pick)
def max_pool2d_pick(
    x: Tensor, codes: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The value of `x` (N, C, H, W) at the winner of each window, like `codes`: the adjoint of max_pool2d_backward.

    0 where nothing won.
    """
    y = _empty_max_pool2d_pick(x, codes, kernel, stride, padding, dilation)
    _pick(x, codes, y, x.shape[2:], kernel, stride, padding, dilation)
    return y


@op(fake=_empty_max_pool2d_indices)
def max_pool2d_indices(
    codes: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """The place h * W + w of the winner of each window, int64, like `codes`, in an image of (H, W) = `size`.

    Some place in the image where nothing won.
    """
    indices = _empty_max_pool2d_indices(codes, size, kernel, stride, padding, dilation)
    _pick(None, codes, indices, size, kernel, stride, padding, dilation)
    return indices


@op(fake=_empty_avg_pool2d_forward)
def avg_pool2d_forward(
    x: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    """The mean of each window.

    Args:
        x: (N, C, H, W), any strides; int64 is averaged towards zero.
        size: (P, Q).
        kernel: (R, S), the taps of a window.
        stride, padding: in pixels, for height and width.
        count_include_pad: divide by the window's pixels in the image and its padding, not in the image alone.
        divisor_override: divide by this instead.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = _empty_avg_pool2d_forward(x, size, kernel, stride, padding, count_include_pad, divisor_override)
    programs, order = element_tiles(y)
    launch(
        _avg_pool2d_kernel, programs, x, y,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size, divisor_override,
        **_axes(kernel, stride, padding, (1, 1)), COUNT_PADDING=count_include_pad, **order,
        ACCUMULATOR=tl.int64 if x.dtype == torch.int64 else accumulator(x.dtype), INDEX=index_type(x, y),
        device=x.device,
    )  # fmt: skip
    return y


@op(fake=_empty_avg_pool2d_backward)
def avg_pool2d_backward(
    dy: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    count_include_pad: bool, divisor_override: int | None, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Gradient of average pooling: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    In the order that `channels_last` says, which is that of x: `dy` loses it where one pixel is left of each channel.
    """
    dx = _empty_avg_pool2d_backward(dy, size, kernel, stride, padding, count_include_pad, divisor_override, channels_last)
    programs, order = element_tiles(dx, channels_last)
    launch(
        _avg_pool2d_backward_kernel, programs, dy, dx,
        dy.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], divisor_override,
        **_axes(kernel, stride, padding, (1, 1)), COUNT_PADDING=count_include_pad, **order,
        ACCUMULATOR=accumulator(dy.dtype), INDEX=index_type(dy, dx), device=dy.device,
    )  # fmt: skip
    return dx


def _pick(
    x: Tensor | None, codes: Tensor, y: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
) -> None:  # fmt: skip
    programs, order = element_tiles(y)
    launch(
        _max_pool2d_pick_kernel, programs, x, codes, y,
        x.stride() if x is not None else None, codes.stride(), y.stride(),
        y.numel(), y.shape[1], *size, *y.shape[2:],
        **_axes(kernel, stride, padding, dilation), **order,
        INDEX=index_type(*(t for t in (x, codes, y) if t is not None)), device=y.device,
    )  # fmt: skip


def _axes(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> dict[str, Any]:
    return {
        "H": Axis(kernel[0], stride[0], padding[0], dilation[0]),
        "W": Axis(kernel[1], stride[1], padding[1], dilation[1]),
    }
