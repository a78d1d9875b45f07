"""Named shapes of convolutions, each with the reason why it is hard.

A tap is one position of a filter. The near edges of an image are its top and left, the far edges its bottom and right. With a
stride, input pixels with the same row and column modulo the stride form a phase: the gradient of each phase uses other taps.

The sliding depthwise kernel reads each row of the image once. Its sums in progress belong to the output rows that still lack
input rows: with R rows of taps, R - 1 of them.
"""

from typing import Any, NamedTuple

import pytest


class Conv(NamedTuple):
    """x (N, C, H, W), w (K, C / groups, R, S) and the arguments of conv2d."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    options: dict[str, Any] = {}
    bias: bool = True


CONV = {
    "plain": Conv((2, 3, 9, 8), (5, 3, 3, 3)),
    "lenet conv1: 1 channel": Conv((2, 1, 12, 12), (6, 1, 5, 5)),
    "alexnet conv1 scaled down: 3 channels, stride 4": Conv((2, 3, 19, 19), (4, 3, 11, 11), {"stride": 4, "padding": 2}),
    "stride larger than the kernel: rows never read": Conv((2, 3, 11, 10), (4, 3, 2, 2), {"stride": (3, 4)}),
    "even kernel": Conv((2, 3, 8, 7), (4, 3, 4, 2), {"padding": (2, 1)}),
    "1x1 stride 2: three phases without taps": Conv((2, 5, 7, 8), (6, 5, 1, 1), {"stride": 2}),
    "1x1: a matrix product": Conv((2, 20, 5, 5), (18, 20, 1, 1)),
    "dilation 3": Conv((2, 3, 11, 10), (4, 3, 3, 3), {"dilation": 3, "padding": 3}),
    "stride and dilation share a factor: taps hit every other phase": Conv(
        (2, 3, 13, 14), (4, 3, 3, 2), {"stride": (2, 4), "dilation": (2, 6), "padding": (2, 3)}
    ),
    "stride and dilation coprime": Conv((2, 3, 12, 13), (4, 3, 3, 3), {"stride": (3, 2), "dilation": (2, 3), "padding": 1}),
    "padding wider than the kernel": Conv((1, 2, 4, 4), (3, 2, 2, 3), {"padding": (4, 5), "stride": 2}),
    "groups": Conv((2, 6, 7, 6), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": Conv((2, 5, 7, 6), (5, 1, 3, 3), {"groups": 5, "padding": 1, "stride": 2}),
    "depthwise, two filters per channel": Conv((2, 3, 6, 6), (6, 1, 3, 3), {"groups": 3}),
    "depthwise, stride and dilation share a factor": Conv(
        (2, 3, 9, 10), (3, 1, 3, 2), {"groups": 3, "stride": (2, 4), "dilation": (2, 6), "padding": 3}
    ),
    "depthwise, more taps than a block, more channels than one": Conv(
        (1, 40, 6, 6), (40, 1, 5, 5), {"groups": 40, "padding": 2}
    ),
    "depthwise, more rows than one program processes, a width no tile divides": Conv(
        (2, 5, 29, 21), (5, 1, 3, 3), {"groups": 5, "padding": 1}
    ),
    "depthwise, channels past one tile": Conv((3, 40, 5, 6), (40, 1, 3, 3), {"groups": 40, "padding": 1}),
    "depthwise, a 7x7 filter: six rows of sums in progress": Conv((1, 3, 15, 13), (3, 1, 7, 7), {"groups": 3, "padding": 3}),
    "depthwise, one row of taps: no sums in progress": Conv((1, 3, 9, 20), (3, 1, 1, 5), {"groups": 3, "padding": (0, 2)}),
    "depthwise, one column of taps": Conv((1, 3, 20, 9), (3, 1, 5, 1), {"groups": 3, "padding": (2, 0)}),
    "depthwise, dilated along the row alone": Conv(
        (2, 4, 9, 12), (4, 1, 3, 3), {"groups": 4, "padding": (1, 3), "dilation": (1, 2)}
    ),
    "depthwise, dilated along the column": Conv((2, 4, 9, 8), (4, 1, 3, 3), {"groups": 4, "padding": 2, "dilation": (2, 1)}),
    "depthwise, a stride larger than the kernel: rows outside every window": Conv(
        (2, 4, 13, 11), (4, 1, 2, 2), {"groups": 4, "padding": 1, "stride": (3, 2)}
    ),
    "depthwise, padding wider than the kernel: windows in the padding": Conv(
        (1, 2, 4, 4), (2, 1, 2, 3), {"groups": 2, "padding": (4, 5)}
    ),
    "depthwise, same, even kernel": Conv((2, 3, 6, 7), (3, 1, 4, 2), {"groups": 3, "padding": "same"}),
    "depthwise, one-pixel image": Conv((3, 4, 1, 1), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "depthwise, more taps than fit in registers": Conv((1, 2, 9, 8), (2, 1, 8, 8), {"groups": 2, "padding": 4}),
    "depthwise, empty batch": Conv((0, 3, 6, 6), (3, 1, 3, 3), {"groups": 3}),
    "one channel per group, many filters: a matrix product": Conv((1, 2, 5, 5), (20, 1, 3, 3), {"groups": 2}),
    "channels past one tile, no multiple of 16": Conv((1, 19, 5, 5), (21, 19, 3, 3), {"padding": 1}),
    "one-pixel image": Conv((3, 4, 1, 1), (5, 4, 3, 3), {"padding": 1}),
    "one output pixel": Conv((2, 3, 5, 4), (4, 3, 5, 4)),
    "same, even kernel: one more row at the far edge": Conv((2, 3, 6, 7), (4, 3, 4, 2), {"padding": "same"}),
    "same, dilated": Conv((2, 3, 7, 7), (4, 3, 2, 3), {"padding": "same", "dilation": (3, 2)}),
    "valid": Conv((2, 3, 6, 7), (4, 3, 3, 3), {"padding": "valid", "stride": 2}),
    "no bias": Conv((2, 3, 6, 6), (4, 3, 3, 3), bias=False),
    "unbatched": Conv((3, 6, 6), (4, 3, 3, 3), {"padding": 1}),
    "empty batch: the weight's gradient is zero, not absent": Conv((0, 3, 6, 6), (4, 3, 3, 3)),
}

CONV_TRANSPOSE = {
    "plain": Conv((2, 3, 5, 4), (3, 4, 3, 3)),
    "dcgan": Conv((2, 5, 4, 4), (5, 3, 4, 4), {"stride": 2, "padding": 1}),
    "unet: kernel as large as the stride, no overlap": Conv((2, 6, 4, 5), (6, 3, 2, 2), {"stride": 2}),
    "stride larger than the kernel: gaps of bias": Conv((2, 3, 4, 4), (3, 4, 2, 1), {"stride": 3, "output_padding": (2, 1)}),
    "groups, all arguments": Conv(
        (2, 4, 5, 4), (4, 3, 3, 2), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2, "dilation": (1, 2)}
    ),
    "depthwise": Conv((2, 3, 5, 5), (3, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 3}),
    "stride 1, output padding below the dilation": Conv((2, 3, 4, 4), (3, 2, 3, 3), {"dilation": 3, "output_padding": 2}),
    "one-pixel image": Conv((2, 3, 1, 1), (3, 4, 4, 4)),
    "no bias, unbatched": Conv((3, 4, 4), (3, 4, 3, 3), {"stride": 2}, bias=False),
    "empty batch": Conv((0, 3, 4, 4), (3, 4, 3, 3), {"stride": 2}),
}


def named(cases: dict[str, Any]) -> Any:
    """The cases as pytest parameters with their names."""
    return [pytest.param(case, id=name) for name, case in cases.items()]
