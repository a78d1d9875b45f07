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

import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import bilinear_source, first_reader, most_readers, nearest_source
from trinn.kernels.launch import device_function, empty, is_channels_last
from trinn.kernels.op import op
from trinn.kernels.separable2d import copy2d, gather2d


@device_function
def _bilinear(i, position, axis, DTYPE: tl.constexpr):
    """The i-th pixel that an output reads, of two."""
    size, out_size, shift, scale, _table = axis
    first, second, weight = bilinear_source(position, size, out_size, scale.to(DTYPE), shift)
    return tl.where(i == 0, first, second), True, tl.where(i == 0, 1 - weight, weight)


@device_function
def _bilinear_reader(i, position, axis, DTYPE: tl.constexpr):
    """The i-th output that may read a pixel."""
    size, out_size, shift, scale, _table = axis
    reader = first_reader(position, out_size, scale.to(DTYPE), shift - 1, shift) + i
    first, second, weight = bilinear_source(reader, size, out_size, scale.to(DTYPE), shift)
    share = tl.where(first == position, 1 - weight, 0.0) + tl.where(second == position, weight, 0.0)
    return reader, (reader < out_size) & ((first == position) | (second == position)), share


@device_function
def _nearest(i, position, axis, DTYPE: tl.constexpr):
    """The pixel that an output copies."""
    size, shift, scale, _table = axis
    return nearest_source(position, size, scale.to(tl.float32), shift), True, 1


@device_function
def _nearest_reader(i, position, axis, DTYPE: tl.constexpr):
    """The i-th output that may copy a pixel."""
    size, out_size, shift, scale, _table = axis
    reader = first_reader(position, out_size, scale.to(tl.float32), 0.0, shift) + i
    return reader, (reader < out_size) & (nearest_source(reader, size, scale.to(tl.float32), shift) == position), 1


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
    shift = 0.0 if align_corners else 0.5
    gather2d(x, y, _axes(x.shape[2:], size, shift), scales, (2, 2), _bilinear)
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
    readers = _readers(size, dy, scales, shift - 1, shift + 1, shift)
    gather2d(dy, dx, _axes(size, dy.shape[2:], shift), scales, readers, _bilinear_reader)
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
    shift = 0.5 if exact else 0.0
    copy2d(x, y, [(n, shift) for n in x.shape[2:]], scales, _nearest)
    return y


@op(fake=_empty_nearest)
def nearest2d_backward(dy: Tensor, size: Sequence[int], scales: Sequence[float], exact: bool) -> Tensor:
    """Gradient of copying the nearest pixel: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    `scales` and `exact` are those of the forward.
    """
    dx = _empty(dy, size)
    shift = 0.5 if exact else 0.0
    readers = _readers(size, dy, scales, 0.0, 1.0, shift)
    gather2d(dy, dx, _axes(size, dy.shape[2:], shift), scales, readers, _nearest_reader)
    return dx


def _axes(size: Sequence[int], out_size: Sequence[int], shift: float) -> list[tuple[int, int, float]]:
    return [(n, m, shift) for n, m in zip(size, out_size, strict=True)]


def _readers(size: Sequence[int], dy: Tensor, scales: Sequence[float], low: float, high: float, shift: float) -> list[int]:
    """How many outputs of each axis a pixel looks at."""
    return [most_readers(n, m, float(s), low, high, shift) for n, m, s in zip(size, dy.shape[2:], scales, strict=True)]
