"""Epilogues of a matrix product: they process a tile of the result while it is in registers.

scale_and_shift     z = scale * acc + bias, per channel; batch normalisation with fixed statistics is a scale and a bias
add_residual        z += residual, of the shape of the result
activate_channels   activation of z; kernels store z first, if its gradient needs it
store_statistics    mean and variance of each channel of the tile; statistics2d.py merges the tiles
max_of_windows      max pooling with windows that do not overlap; a tile consists of whole windows
"""

from typing import Any, NamedTuple

import triton.language as tl
from torch import Tensor

from .activations import ActivationName, activate, constant_of, load_slopes, stride_of
from .function import device_function
from .precision import widen


class Epilogue(NamedTuple):
    """What a launcher wants from these functions. Vectors have an element per channel; they are dense."""

    scale: Tensor | None = None
    bias: Tensor | None = None
    slopes: Tensor | None = None  # PReLU's, of stride 1 or 0
    activation: str = ""
    kept: Tensor | None = None  # to be filled with z; it has the strides of the result
    residual: Tensor | None = None  # added to z; it has the shape, the dtype and the strides of the result

    @property
    def operands(self) -> tuple[Any, ...]:
        """The arguments of a kernel before its tensors of the result's shape."""
        return self.scale, self.bias, self.slopes, stride_of(self.slopes)

    @property
    def constant(self) -> ActivationName | None:
        return constant_of(self.activation)


NO_EPILOGUE = Epilogue()


@device_function
def _load(pointers, exists):
    """The values at some pointers; 0 for those that do not exist."""
    if exists is None:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=exists, other=0.0)
    return values


@device_function
def scale_and_shift(acc, scale, bias, channel, exists):
    """scale * acc + bias; both are optional. `channel` and `exists` have the axes of acc; `exists` may be None."""
    if scale is not None:
        acc *= _load(scale + channel, exists).to(acc.dtype)
    if bias is not None:
        acc += _load(bias + channel, exists).to(acc.dtype)
    return acc


@device_function
def add_residual(z, residual):
    """z + residual, in the dtype of z."""
    return z + widen(residual).to(z.dtype)


@device_function
def activate_channels(z, slopes, slope_stride, channel, exists, ACTIVATION: tl.constexpr):
    """The activation of z, if there is one. `slopes` is PReLU's weight; `channel` and `exists` as in scale_and_shift."""
    return activate(z, load_slopes(slopes, slope_stride, channel, exists, z.dtype), ACTIVATION)


@device_function
def store_statistics(value, in_result, exists, means, variances):
    """Store mean and variance of each channel of a (rows, channels) tile, over the rows in `in_result`; 0 without any row."""
    value = tl.where(in_result[:, None], widen(value).to(means.dtype.element_ty), 0.0)
    count = tl.maximum(tl.sum(in_result.to(tl.int32), axis=0), 1)
    # This division is off by at most two units in the last place. For precision.py's `divide`, the accumulators would spill.
    mean = tl.sum(value, axis=0) / count
    deviation = tl.where(in_result[:, None], value - mean[None, :], 0.0)
    tl.store(means, mean, mask=exists)
    tl.store(variances, tl.sum(deviation * deviation, axis=0) / count, mask=exists)


@device_function
def max_of_windows(value, ROWS: tl.constexpr):
    """(maximum, its row) of each group of ROWS consecutive rows. The last NaN wins; among equal values, the first."""
    value = tl.reshape(value, (value.shape[0] // ROWS, ROWS, value.shape[1]))
    row = tl.arange(0, ROWS)[None, :, None]
    last_nan = tl.max(tl.where(value != value, row, -1), axis=1)
    best = tl.max(tl.where(value != value, float("-inf"), value), axis=1)
    first_best = tl.min(tl.where(value == best[:, None, :], row, ROWS), axis=1)
    return tl.where(last_nan < 0, best, float("nan")), tl.where(last_nan < 0, first_best, last_nan)
