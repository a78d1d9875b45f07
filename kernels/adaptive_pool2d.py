"""2-D adaptive average and max pooling: an image of (H, W) pixels cut into (P, Q) bins, however the two divide.

    adaptive_avg_pool2d   y[n, c, p, q] = mean of x[n, c, h, w]    dx[n, c, h, w] = sum of dy[n, c, p, q] / pixels of (p, q)
    adaptive_max_pool2d   y[n, c, p, q] = max of x[n, c, h, w]     dx[n, c, h, w] = sum of dy[n, c, p, q] whose winner is (h, w)

    over the pixels (h, w) of bin (p, q), and over the bins (p, q) that hold pixel (h, w)

A bin holds the pixels that it touches, so bins overlap where sizes do not divide. Which bins hold a pixel is the same formula
with pixels and bins exchanged: both gradients are gathers, without atomics. A max remembers its winner as the number of the
pixel in its bin, one byte as a rule.
"""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from trinn.kernels.indexing import most_in_bin
from trinn.kernels.launch import device_function, empty, is_channels_last
from trinn.kernels.op import op
from trinn.kernels.precision import divided
from trinn.kernels.reduce import plane_mean
from trinn.kernels.separable2d import gather2d
from trinn.kernels.windows2d import Windows, bin_of, bins_of, max_backward, max_forward, pick


@device_function
def _tap(i, position, axis, DTYPE: tl.constexpr):
    """The i-th pixel of a bin."""
    first, end, _step = bin_of(position, axis)
    return first + i, first + i < end, 1


@device_function
def _pixels(position, axis, DTYPE: tl.constexpr):
    """How many pixels of an axis a bin holds."""
    first, end, _step = bin_of(position, axis)
    return end - first


@device_function
def _holder(i, pixel, axis, DTYPE: tl.constexpr):
    """The i-th bin that holds a pixel, and the share of each of its pixels."""
    first, end = bins_of(pixel, axis)
    holds = first + i < end
    count = tl.where(holds, _pixels(first + i, axis, DTYPE), 1).to(DTYPE)
    return first + i, holds, divided(tl.full(count.shape, 1, DTYPE), count)


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
    if list(size) == [1, 1]:
        return plane_mean(x)
    y = _empty_avg_forward(x, size)
    bins = _bins(x.shape[2:], size)
    gather2d(x, y, bins.axes, (0.0, 0.0), bins.taps, _tap, _pixels, in_order=True)
    return y


@op(fake=_empty_avg_backward)
def adaptive_avg_pool2d_backward(dy: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """Gradient of adaptive average pooling: dy (N, C, P, Q), any strides, to (N, C, H, W) with (H, W) = `size`.

    In the order that `channels_last` says, which is that of x: `dy` loses it where one pixel is left of each channel.
    """
    dx = _empty_avg_backward(dy, size, channels_last)
    bins = _bins(size, dy.shape[2:])
    if list(dy.shape[2:]) == [1, 1]:  # all pixels of a plane get the same: it is divided once, and copied
        shares = empty(dy, dy.shape)
        gather2d(dy, shares, bins.axes, (0.0, 0.0), (1, 1), _tap, _pixels, in_order=True)
        gather2d(shares, dx, bins.axes, (0.0, 0.0), (), _holder, channels_last=channels_last)
        return dx
    gather2d(dy, dx, bins.axes, (0.0, 0.0), bins.most, _holder, channels_last=channels_last)
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
    max_forward(x, y, codes, _bins(x.shape[2:], size))
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
    max_backward(dy, codes, dx, _bins(size, dy.shape[2:]))
    return dx


@op(fake=_empty_max_pick)
def adaptive_max_pool2d_pick(x: Tensor, codes: Tensor) -> Tensor:
    """The value of `x` (N, C, H, W) at the winner of each bin, like `codes`: the adjoint of adaptive_max_pool2d_backward."""
    y = _empty_max_pick(x, codes)
    pick(x, codes, y, _bins(x.shape[2:], y.shape[2:]))
    return y


@op(fake=_empty_max_indices)
def adaptive_max_pool2d_indices(codes: Tensor, size: Sequence[int]) -> Tensor:
    """The place h * W + w of the winner of each bin, int64, like `codes`, in an image of (H, W) = `size`."""
    indices = _empty_max_indices(codes, size)
    pick(None, codes, indices, _bins(size, codes.shape[2:]))
    return indices


def _bins(size: Sequence[int], bins: Sequence[int]) -> Windows:
    axes = list(zip(size, bins, strict=True))
    taps, most = [most_in_bin(n, m) for n, m in axes], [most_in_bin(m, n) for n, m in axes]
    return Windows(axes, taps, most, bin_of, bins_of)
