"""Rows 1-25 and 108: max, average and adaptive pooling, and unpooling."""

from typing import Any

import torch

import trinn.layers as tnn
from tests.operators.hard_inputs import FLOATS, INF, NAN, grads, holds, integers, like_torch, outcome, plane, refusal


@like_torch(1, "NaN wins its window, with its index and its gradient")
def _(nn: Any) -> Any:
    return [grads(nn.max_pool2d, plane([[5, NAN], [3, 4]], dtype), 2, return_indices=True) for dtype in FLOATS]


@like_torch(2, "the index of the last of two NaNs")
def _(nn: Any) -> Any:
    return [grads(nn.max_pool2d, plane([[NAN, 1], [2, NAN]], dtype), 2, return_indices=True) for dtype in FLOATS]


@like_torch(3, "a window of -inf has a valid index")
def _(nn: Any) -> Any:
    return grads(nn.max_pool2d, plane([[-INF] * 4] * 2), 2, return_indices=True)


@like_torch(4, "a window of -inf and padding has an index inside the image")
def _(nn: Any) -> Any:
    return grads(nn.max_pool2d, plane([[-INF] * 4] * 4), 3, 2, 1, return_indices=True)


@like_torch(5, "the index of the first of equal values")
def _(nn: Any) -> Any:
    return grads(nn.max_pool2d, torch.ones(1, 2, 4, 5), 3, 1, 1, return_indices=True)


@like_torch(6, "the first of -0. and 0., in both orders")
def _(nn: Any) -> Any:
    results = [nn.max_pool2d(plane([row]), (1, 2), return_indices=True) for row in ([-0.0, 0.0], [0.0, -0.0])]
    return [(y.signbit(), index) for y, index in results]


@like_torch(7, "ceil_mode: the last window must start inside the image or the near padding")
def _(nn: Any) -> Any:
    return [
        grads(pool, integers(1, 2, n, n, most=60), 2, 2, p, ceil_mode=True)
        for pool in (nn.max_pool2d, nn.avg_pool2d)
        for n, p in ((5, 1), (5, 0), (4, 1))
    ]


@like_torch(8, "ceil_mode and a kernel larger than the image")
def _(nn: Any) -> Any:
    x = torch.ones(1, 1, 2, 2)
    return [
        refusal(pool, x, kernel, stride, ceil_mode=True, words="Output size is too small")
        for pool in (nn.max_pool2d, nn.avg_pool2d)
        for kernel, stride in ((5, 1), (4, 1), ((2, 7), 2))
    ] + [nn.max_pool2d(x, 3, 2, ceil_mode=True)]


@like_torch(9, "a kernel larger than the image")
def _(nn: Any) -> Any:
    x = torch.ones(1, 1, 2, 5)
    return [refusal(pool, x, 3, words="Output size is too small") for pool in (nn.max_pool2d, nn.avg_pool2d)]


@like_torch(10, "padding of more than half the kernel")
def _(nn: Any) -> Any:
    x = integers(1, 1, 8, 8)
    words = "pad should be at most half of"
    return [
        refusal(nn.max_pool2d, x, 3, 1, 2, words=words),
        refusal(nn.avg_pool2d, x, 3, 1, 2, words=words),
        refusal(nn.max_pool2d, x, 2, 1, 2, words=words),
        refusal(nn.max_pool2d, x, (2, 3), 1, (1, 2), words=words),
        refusal(nn.max_pool2d, x, 3, 1, -1, words="pad must be non-negative"),
    ]


@like_torch(10, "padding of a dilated kernel")
def _(nn: Any) -> Any:
    x = integers(1, 1, 8, 8, most=60)
    return nn.max_pool2d(x, 3, 1, 1, 3), outcome(nn.max_pool2d, x, 3, 1, 2, 3), outcome(nn.max_pool2d, x, 2, 1, 2, 5)


@like_torch(11, "stride 0, and no stride at all")
def _(nn: Any) -> Any:
    x = integers(1, 1, 6, 7)
    return [
        (
            refusal(pool, x, 2, 0, words="stride should not be zero"),
            pool(x, (2, 3)),
            pool(x, (2, 3), None),
            pool(x, (2, 3), []),
            pool(x, (2, 3), ()),
        )
        for pool in (nn.max_pool2d, nn.avg_pool2d)
    ]


@like_torch(12, "no images, no channels, no rows")
def _(nn: Any) -> Any:
    return [
        (
            grads(pool, torch.ones(0, 2, 4, 4), 2),
            refusal(pool, torch.ones(2, 0, 4, 4), 2),
            refusal(pool, torch.ones(2, 2, 0, 4), 2),
            refusal(pool, torch.ones(0, 4, 4), 2),
        )
        for pool in (nn.max_pool2d, nn.avg_pool2d)
    ]


@like_torch(13, "three axes, and two")
def _(nn: Any) -> Any:
    return [
        grads(nn.max_pool2d, integers(2, 4, 6), 2),
        grads(nn.avg_pool2d, integers(2, 4, 6), 2),
        refusal(nn.max_pool2d, torch.ones(4, 4), 2),
        refusal(nn.max_pool2d, torch.ones(1, 1, 1, 4, 4), 2),
        refusal(nn.avg_pool2d, torch.ones(1, 1, 1, 4, 4), 2),
    ]


@holds(13, "two axes: avg_pool2d raises the error of max_pool2d")
def _() -> None:
    assert refusal(tnn.avg_pool2d, torch.ones(4, 4), 2, words="3D or 4D (batch mode) tensor expected") == "RuntimeError"


@like_torch(14, "integers, bool and complex numbers")
def _(nn: Any) -> Any:
    taken = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    x = torch.arange(-18, 18).reshape(1, 1, 6, 6)
    return [nn.max_pool2d(x.to(dtype), 3, 2, 1, return_indices=True) for dtype in taken] + [
        refusal(pool, x.to(dtype), 2) for dtype in (torch.bool, torch.complex64) for pool in (nn.max_pool2d, nn.avg_pool2d)
    ]


@like_torch(15, "indices are int64, into the plane, whatever the strides")
def _(nn: Any) -> Any:
    x = integers(2, 3, 5, 7, most=60)
    views = (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[:, ::2, 1:, ::2])
    return [nn.max_pool2d(view, 3, 2, 1, return_indices=True) for view in views]


@like_torch(16, "gradients of overlapping windows are summed")
def _(nn: Any) -> Any:
    return [grads(pool, integers(2, 2, 6, 7), 3, 1, 1) for pool in (nn.max_pool2d,)] + [
        grads(nn.avg_pool2d, integers(2, 2, 6, 7) * 4, (2, 4), 1, (1, 2))
    ]


@like_torch(17, "dilation, with and without a stride that shares a factor")
def _(nn: Any) -> Any:
    x = integers(2, 2, 9, 11, most=60)
    return [
        grads(nn.max_pool2d, x, 3, s, 1, d, return_indices=True) for s, d in ((1, 2), (2, 2), (2, 3), (4, 2), ((3, 1), (1, 4)))
    ]


@like_torch(18, "channels_last is kept, with more than 256 channels")
def _(nn: Any) -> Any:
    x = integers(2, 300, 3, 3).to(memory_format=torch.channels_last)
    return [(y, y.stride()) for pool in (nn.max_pool2d, nn.avg_pool2d) for y in [pool(x, 2, 1)]]


@like_torch(19, "the mean of an overhanging window divides by its pixels inside the image")
def _(nn: Any) -> Any:
    x = torch.ones(1, 1, 5, 6)
    return nn.avg_pool2d(x, 4, 4, ceil_mode=True), nn.avg_pool2d(x, 2, 2, ceil_mode=True)


@like_torch(20, "the divisor counts padding, and not the overhang", ulps=1)
def _(nn: Any) -> Any:
    return grads(nn.avg_pool2d, torch.ones(1, 1, 6, 6), 3, 2, 1, ceil_mode=True)


@like_torch(21, "count_include_pad=False", ulps=1)
def _(nn: Any) -> Any:
    return [grads(nn.avg_pool2d, integers(2, 2, 6, 7), 3, 2, 1, ceil, False) for ceil in (False, True)]


@like_torch(22, "divisor_override")
def _(nn: Any) -> Any:
    x = integers(1, 2, 6, 6)
    return [grads(nn.avg_pool2d, x, 3, 2, 1, divisor_override=divisor) for divisor in (1, -2)] + [
        refusal(nn.avg_pool2d, x, 3, divisor_override=0, words="divisor must be not zero")
    ]


@like_torch(23, "inf - inf is NaN in its own windows only")
def _(nn: Any) -> Any:
    x = plane([[1, INF, 2, 3, 4, 5, 6], [1, -INF, 2, 3, NAN, 5, 6], [1, 2, 3, 4, 5, 6, 7]])
    return [grads(pool, x, 2, 1) for pool in (nn.avg_pool2d,)] + [nn.adaptive_avg_pool2d(x, (1, 4))]


@like_torch(24, "the mean of integers is truncated towards zero")
def _(nn: Any) -> Any:
    x = torch.arange(-20, 22).reshape(1, 1, 6, 7)
    others = (torch.int32, torch.int8, torch.uint8)
    return [nn.avg_pool2d(x, 2, 2), nn.avg_pool2d(x, 3, 2, 1, True, False), nn.avg_pool2d(x, 2, divisor_override=-3)] + [
        refusal(nn.avg_pool2d, x.to(dtype), 2) for dtype in others
    ]


@like_torch(25, "adaptive: more bins than pixels, overlapping bins, sizes of None", ulps=1)
def _(nn: Any) -> Any:
    x = integers(2, 2, 5, 7)
    sizes = ((8, 9), (3, 4), (None, 3), (4, None), 1, (5, 7))
    return [grads(nn.adaptive_avg_pool2d, x, size) for size in sizes] + [
        grads(nn.adaptive_max_pool2d, x, size, return_indices=True) for size in sizes
    ]


@like_torch(25, "adaptive: empty inputs and outputs")
def _(nn: Any) -> Any:
    return [
        (
            nn.adaptive_avg_pool2d(torch.ones(2, 2, 5, 7), (0, 3)),
            outcome(pool, torch.ones(2, 2, 5, 7), 0),
            outcome(pool, torch.ones(0, 2, 5, 7), 3),
            outcome(pool, torch.ones(2, 0, 5, 7), 3),
            outcome(pool, torch.ones(2, 2, 0, 7), 3),
            outcome(pool, torch.ones(2, 2, 0, 7), (0, 3)),
            outcome(pool, torch.ones(2, 5, 7), 3),
            outcome(pool, torch.ones(5, 7), 3),
            outcome(pool, torch.ones(2, 2, 5, 7), -1),
            outcome(pool, torch.ones(2, 2, 5, 7), (1, 2, 3)),
            outcome(pool, torch.ones(2, 2, 5, 7, dtype=torch.int64), 3),
        )
        for pool in (nn.adaptive_avg_pool2d, nn.adaptive_max_pool2d)
    ]


@like_torch(25, "adaptive: NaN, -inf and equal values")
def _(nn: Any) -> Any:
    x = plane([[NAN, 1, 2, -INF, -INF], [NAN, 1, 1, -INF, -INF], [0, 0, 0, 0, 0]])
    return grads(nn.adaptive_max_pool2d, x, (2, 3), return_indices=True)


@like_torch(108, "unpooling: repeated indices, other output sizes, NaN, mismatched dtypes and shapes")
def _(nn: Any) -> Any:
    x, index = plane([[5, 7], [6, 8]]), torch.tensor([[[[0, 3], [8, 10]]]])
    return (
        [grads(nn.max_unpool2d, x.to(dtype), index, 2) for dtype in FLOATS],
        grads(nn.max_unpool2d, x, index, 2, output_size=(5, 5)),
        grads(nn.max_unpool2d, x, index * 0, 2),
        grads(nn.max_unpool2d, x * NAN, index, 2),
        grads(nn.max_unpool2d, x[0], index[0], 2),
        grads(nn.max_unpool2d, x[:0], index[:0], 2),
        refusal(nn.max_unpool2d, x, index, 2, output_size=(9, 9), words="must be between 2 and 6"),
        refusal(nn.max_unpool2d, x, index.int(), 2, words="should be type int64"),
        refusal(nn.max_unpool2d, x, index[..., :1], 2, words="Expected shape of indices to be same"),
        refusal(nn.max_unpool2d, x[:, :0], index[:, :0], 2),
        refusal(nn.max_unpool2d, x.long(), index, 2),
    )
