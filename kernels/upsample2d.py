"""Upsampling (and downsampling, without antialiasing), bilinear and to the nearest pixel.

    bilinear   y[n, c, p, q]  = sum_{i, j in 0, 1} a_i(p) * b_j(q) * x[n, c, h_i(p), w_j(q)]
    nearest    y[n, c, p, q]  = x[n, c, h(p), w(q)]
    backward   dx[n, c, h, w] = sum over the (p, q) that read pixel (h, w) of the same weights times dy[n, c, p, q]

where a bilinear output row p lies between the input rows h_0 and h_1, with weights a_0 + a_1 = 1; columns likewise. Each
backward is a gather: an input pixel walks the outputs that may read it and asks the function of the forward whether they do
and with what weight, so there are no atomics, and 16-bit gradients are summed in float32. Bilinear coordinates are float32,
or float64 for float64; nearest ones are always float32, as torch's.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import bilinear_source, elements_of, first_reader, most_readers, nearest_source
from trinn.kernels.launch import empty, index_type, is_channels_last, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator, rounded
from trinn.kernels.tuning import element_tiles


@triton.jit
def _bilinear_kernel(
    x, y,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, scale_h: tl.float64, scale_w: tl.float64,
    ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    scale_h, scale_w = tl.full((), scale_h, ACCUMULATOR), tl.full((), scale_w, ACCUMULATOR)
    top, bottom, down = bilinear_source(p, height, out_height, scale_h, ALIGN_CORNERS)
    left, right, across = bilinear_source(q, width, out_width, scale_w, ALIGN_CORNERS)
    x += n * x_n + c * x_c
    top_left = tl.load(x + top * x_h + left * x_w, mask=exists, other=0.0).to(ACCUMULATOR)
    top_right = tl.load(x + top * x_h + right * x_w, mask=exists, other=0.0).to(ACCUMULATOR)
    bottom_left = tl.load(x + bottom * x_h + left * x_w, mask=exists, other=0.0).to(ACCUMULATOR)
    bottom_right = tl.load(x + bottom * x_h + right * x_w, mask=exists, other=0.0).to(ACCUMULATOR)
    value = (1 - down) * ((1 - across) * top_left + across * top_right)
    value += down * ((1 - across) * bottom_left + across * bottom_right)
    tl.store(y + n * y_n + c * y_c + p * y_h + q * y_w, rounded(value, y.dtype.element_ty), mask=exists)


@triton.jit
def _bilinear_backward_kernel(
    dy, dx,
    dy_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, scale_h: tl.float64, scale_w: tl.float64, readers_h, readers_w,
    ALIGN_CORNERS: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx; `readers`, from most_readers, is how many outputs of an axis each pixel looks at."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    scale_h, scale_w = tl.full((), scale_h, ACCUMULATOR), tl.full((), scale_w, ACCUMULATOR)
    shift: tl.constexpr = 0.0 if ALIGN_CORNERS else 0.5
    first_p = first_reader(h, out_height, scale_h, shift - 1, shift)
    first_q = first_reader(w, out_width, scale_w, shift - 1, shift)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(readers_h):
        p = first_p + i
        top, bottom, down = bilinear_source(p, height, out_height, scale_h, ALIGN_CORNERS)
        weight_h = tl.where(top == h, 1 - down, 0.0) + tl.where(bottom == h, down, 0.0)
        reads_h = (p < out_height) & ((top == h) | (bottom == h))
        for j in range(readers_w):
            q = first_q + j
            left, right, across = bilinear_source(q, width, out_width, scale_w, ALIGN_CORNERS)
            weight_w = tl.where(left == w, 1 - across, 0.0) + tl.where(right == w, across, 0.0)
            reads = exists & reads_h & (q < out_width) & ((left == w) | (right == w))
            upstream = tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=reads, other=0.0).to(ACCUMULATOR)
            acc += weight_h * weight_w * upstream
    tl.store(dx + n * dx_n + c * dx_c + h * dx_h + w * dx_w, acc.to(dx.dtype.element_ty), mask=exists)


@triton.jit
def _nearest_kernel(
    x, y,
    x_strides, y_strides,
    elements, channels, height, width, out_height, out_width, scale_h: tl.float64, scale_w: tl.float64,
    SHIFT: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of y."""
    x_n, x_c, x_h, x_w = x_strides
    y_n, y_c, y_h, y_w = y_strides
    n, c, p, q, exists = elements_of(tl.program_id(0), elements, channels, out_height, out_width, CHANNELS_LAST, INDEX, TILE)
    h = nearest_source(p, height, tl.full((), scale_h, tl.float32), SHIFT)
    w = nearest_source(q, width, tl.full((), scale_w, tl.float32), SHIFT)
    value = tl.load(x + n * x_n + c * x_c + h * x_h + w * x_w, mask=exists, other=0)
    tl.store(y + n * y_n + c * y_c + p * y_h + q * y_w, value, mask=exists)


@triton.jit
def _nearest_backward_kernel(
    dy, dx,
    dy_strides, dx_strides,
    elements, channels, height, width, out_height, out_width, scale_h: tl.float64, scale_w: tl.float64, readers_h, readers_w,
    SHIFT: tl.constexpr, CHANNELS_LAST: tl.constexpr, ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of dx; `readers`, from most_readers, is how many outputs of an axis each pixel looks at."""
    dy_n, dy_c, dy_p, dy_q = dy_strides
    dx_n, dx_c, dx_h, dx_w = dx_strides
    n, c, h, w, exists = elements_of(tl.program_id(0), elements, channels, height, width, CHANNELS_LAST, INDEX, TILE)
    scale_h, scale_w = tl.full((), scale_h, tl.float32), tl.full((), scale_w, tl.float32)
    first_p = first_reader(h, out_height, scale_h, 0.0, SHIFT)
    first_q = first_reader(w, out_width, scale_w, 0.0, SHIFT)
    acc = tl.full((TILE.rows, TILE.lanes), 0.0, ACCUMULATOR)
    for i in range(readers_h):
        p = first_p + i
        reads_h = exists & (p < out_height) & (nearest_source(p, height, scale_h, SHIFT) == h)
        for j in range(readers_w):
            q = first_q + j
            reads = reads_h & (q < out_width) & (nearest_source(q, width, scale_w, SHIFT) == w)
            acc += tl.load(dy + n * dy_n + c * dy_c + p * dy_p + q * dy_q, mask=reads, other=0.0).to(ACCUMULATOR)
    tl.store(dx + n * dx_n + c * dx_c + h * dx_h + w * dx_w, acc.to(dx.dtype.element_ty), mask=exists)


def _empty(x: Tensor, size: Sequence[int]) -> Tensor:
    return empty(x, (*x.shape[:2], *size), is_channels_last(x))


def _empty_bilinear(x: Tensor, size: Sequence[int], scales: Sequence[float], align_corners: bool) -> Tensor:
    return _empty(x, size)


@op(fake=_empty_bilinear)
def bilinear2d_forward(x: Tensor, size: Sequence[int], scales: Sequence[float], align_corners: bool) -> Tensor:
    """An image resized by bilinear interpolation.

    Args:
        x: (N, C, H, W), any strides; uint8 is rounded to the nearest.
        size: (P, Q).
        scales: input pixels an output pixel, for height and width; H / P unless the user fixed it. With align_corners the
            distance of two outputs in input pixels, (H - 1) / (P - 1), or 0 for a single one. An axis that keeps its size
            is copied.
        align_corners: the centres of the corner pixels coincide, not their outer edges.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = _empty(x, size)
    programs, order = element_tiles(y)
    launch(
        _bilinear_kernel, programs, x, y,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size, *map(float, scales),
        ALIGN_CORNERS=align_corners, **order, ACCUMULATOR=accumulator(x.dtype),
        INDEX=index_type(x, y), device=x.device,
    )  # fmt: skip
    return y


@op(fake=_empty_bilinear)
def bilinear2d_backward(dy: Tensor, size: Sequence[int], scales: Sequence[float], align_corners: bool) -> Tensor:
    """Gradient of bilinear interpolation: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    `scales` and `align_corners` are those of the forward.
    """
    dx = _empty(dy, size)
    shift = 0.0 if align_corners else 0.5
    # The copy of an axis, in the words of its readers.
    scales = [1.0 if n == m else float(scale) for n, m, scale in zip(size, dy.shape[2:], scales, strict=True)]
    programs, order = element_tiles(dx)
    launch(
        _bilinear_backward_kernel, programs, dy, dx,
        dy.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], *scales, *_readers(size, dy, scales, shift - 1, shift + 1, shift),
        ALIGN_CORNERS=align_corners, **order, ACCUMULATOR=accumulator(dy.dtype),
        INDEX=index_type(dy, dx), device=dy.device,
    )  # fmt: skip
    return dx


def _empty_nearest(x: Tensor, size: Sequence[int], scales: Sequence[float], exact: bool) -> Tensor:
    return _empty(x, size)


@op(fake=_empty_nearest)
def nearest2d_forward(x: Tensor, size: Sequence[int], scales: Sequence[float], exact: bool) -> Tensor:
    """An image resized by copying pixels.

    Args:
        x: (N, C, H, W), any strides and dtype.
        size: (P, Q).
        scales: input pixels an output pixel, for height and width; H / P unless the user fixed it.
        exact: copy the pixel under the centre of an output, not under its edge.

    Returns:
        (N, C, P, Q), channels_last if `x` is.
    """
    y = _empty(x, size)
    programs, order = element_tiles(y)
    launch(
        _nearest_kernel, programs, x, y,
        x.stride(), y.stride(),
        y.numel(), *x.shape[1:], *size, *map(float, scales),
        SHIFT=0.5 if exact else 0.0, **order, INDEX=index_type(x, y), device=x.device,
    )  # fmt: skip
    return y


@op(fake=_empty_nearest)
def nearest2d_backward(dy: Tensor, size: Sequence[int], scales: Sequence[float], exact: bool) -> Tensor:
    """Gradient of copying the nearest pixel: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    `scales` and `exact` are those of the forward.
    """
    dx = _empty(dy, size)
    shift = 0.5 if exact else 0.0
    programs, order = element_tiles(dx)
    launch(
        _nearest_backward_kernel, programs, dy, dx,
        dy.stride(), dx.stride(),
        dx.numel(), *dx.shape[1:], *dy.shape[2:], *map(float, scales), *_readers(size, dy, scales, 0.0, 1.0, shift),
        SHIFT=shift, **order, ACCUMULATOR=accumulator(dy.dtype), INDEX=index_type(dy, dx), device=dy.device,
    )  # fmt: skip
    return dx


def _readers(size: Sequence[int], dy: Tensor, scales: Sequence[float], low: float, high: float, shift: float) -> list[int]:
    """How many outputs of each axis a pixel looks at."""
    return [most_readers(n, m, float(s), low, high, shift) for n, m, s in zip(size, dy.shape[2:], scales, strict=True)]
