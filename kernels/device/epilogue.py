"""Epilogues of a matrix product: they process a tile of the result while it is in registers.

apply_epilogue      relu(scale * acc + bias), per channel; batch normalisation with fixed statistics is a scale and a bias
store_statistics    mean and variance of each channel of the tile; statistics2d.py merges the tiles
max_of_windows      max pooling with windows that do not overlap; a tile consists of whole windows
"""

import triton.language as tl

from .function import device_function
from .precision import widen


@device_function
def apply_epilogue(acc, scale, bias, channel, exists, RELU: tl.constexpr):
    """relu(scale * acc + bias) of a (rows, channels) tile; scale, bias and RELU are optional, and NaN stays NaN."""
    if scale is not None:
        acc *= tl.load(scale + channel, mask=exists, other=0.0).to(acc.dtype)[None, :]
    if bias is not None:
        acc += tl.load(bias + channel, mask=exists, other=0.0).to(acc.dtype)[None, :]
    return rectify(acc) if RELU else acc


@device_function
def rectify(value):
    """max(value, 0); NaN stays NaN."""
    return tl.where(value < 0, 0.0, value)


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
