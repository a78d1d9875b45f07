"""What a matrix product does with a tile of its result while that is still in registers.

finished            relu(scale * acc + bias), per channel; a batch normalisation by given statistics is a scale and a bias
store_statistics    the mean and the variance of the tile's channels, of which statistics2d.py makes those of all pixels
largest             a max pooling by windows that do not overlap, of which a tile holds whole ones
"""

import triton.language as tl

from .function import device_function
from .precision import widen


@device_function
def apply_epilogue(acc, scale, bias, channel, exists, RELU: tl.constexpr):
    """relu(scale * acc + bias) of a (rows, channels) tile, each part where it is asked for; NaN stays NaN."""
    if scale is not None:
        acc *= tl.load(scale + channel, mask=exists, other=0.0).to(acc.dtype)[None, :]
    if bias is not None:
        acc += tl.load(bias + channel, mask=exists, other=0.0).to(acc.dtype)[None, :]
    return rectify(acc) if RELU else acc


@device_function
def rectify(value):
    """value, but 0 where it is negative; NaN stays NaN."""
    return tl.where(value < 0, 0.0, value)


@device_function
def store_statistics(value, in_result, exists, means, variances):
    """The mean and the variance of each channel of a (rows, channels) tile over the rows that are `drawn`; of none, 0."""
    value = tl.where(in_result[:, None], widen(value).to(means.dtype.element_ty), 0.0)
    count = tl.maximum(tl.sum(in_result.to(tl.int32), axis=0), 1)
    # Off by two units at most. precision.py's `divided` calls a function, for which the accumulators would spill.
    mean = tl.sum(value, axis=0) / count
    deviation = tl.where(in_result[:, None], value - mean[None, :], 0.0)
    tl.store(means, mean, mask=exists)
    tl.store(variances, tl.sum(deviation * deviation, axis=0) / count, mask=exists)


@device_function
def max_of_windows(value, ROWS: tl.constexpr):
    """The largest of each ROWS rows, and its number among them: NaN wins, the last one; of equal values the first."""
    value = tl.reshape(value, (value.shape[0] // ROWS, ROWS, value.shape[1]))
    row = tl.arange(0, ROWS)[None, :, None]
    last_nan = tl.max(tl.where(value != value, row, -1), axis=1)
    best = tl.max(tl.where(value != value, float("-inf"), value), axis=1)
    first_best = tl.min(tl.where(value == best[:, None, :], row, ROWS), axis=1)
    return tl.where(last_nan < 0, best, float("nan")), tl.where(last_nan < 0, first_best, last_nan)
