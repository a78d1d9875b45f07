"""2-D transposed convolution: `conv_transpose2d` and `ConvTranspose2d`.

A transposed convolution is the input gradient of a convolution, so it uses the Function `Conv2dDgrad`. Its input gradient is
`Conv2dFprop`; its weight gradient is `Conv2dWgrad` with the operands swapped.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .conv2d import Conv2dDgrad, check_geometry, check_operands
from .function import autocast
from .public import functional, layer
from .window import IntOrPair, Pair, batched, cached_sizes, integer, pair, transposed_windows

__all__ = ["ConvTranspose2d", "LazyConvTranspose2d", "conv_transpose2d"]


@functional
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
) -> Tensor:
    """2-D transposed convolution, as `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64.
        weight: (C, K / groups, R, S), same dtype.
        bias: (K), same dtype.
        output_padding: rows added at the bottom of the output, and columns at its right; less than the larger of stride and
            dilation.

    Returns:
        (N, K, P, Q) with (P, Q) from `conv_transpose_output_size`.

    Raises:
        RuntimeError: incompatible shapes, dtypes or devices.
        NotImplementedError: another dtype.
        TypeError: a stride, padding or dilation that is no integer.
    """
    x, unbatched = batched(input, "conv_transpose2d")
    y = Conv2dDgrad.call(*transposed_operands(x, weight, bias, stride, padding, output_padding, groups, dilation))
    return y.squeeze(0) if unbatched else y


def transposed_operands(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: IntOrPair,
    output_padding: IntOrPair,
    groups: int,
    dilation: IntOrPair,
) -> tuple[Any, ...]:
    """Turn the arguments of `conv_transpose2d` into those of Conv2dDgrad, and raise its exceptions. x has a batch axis."""
    x, weight, bias = autocast(x, weight, bias)
    stride, dilation = pair(stride, "stride", "conv_transpose2d"), pair(dilation, "dilation", "conv_transpose2d")
    near, extra = pair(padding, "padding", "conv_transpose2d"), pair(output_padding, "output_padding", "conv_transpose2d")
    groups = integer(groups, "conv_transpose2d: groups must be an int")
    check_operands(x, weight, bias, "conv_transpose2d")
    shape = bias.shape if bias is not None else None
    size = _size(x.shape, weight.shape, shape, stride, near, extra, dilation, groups)
    return x, weight, bias, size, stride, near, dilation, groups


@cached_sizes
def _size(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, stride: Pair, padding: Pair, output_padding: Pair,
    dilation: Pair, groups: int,
) -> Pair:  # fmt: skip
    """(P, Q); raises torch's exceptions."""
    check_geometry(stride, dilation, groups, weight, "conv_transpose2d")
    if x[1] != weight[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight)}, expected input{list(x)} to have {weight[0]} channels, but got "
            f"{x[1]} channels instead"
        )
    if bias is not None and bias != (weight[1] * groups,):
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight)}, expected bias to be 1-dimensional with {weight[1] * groups} "
            f"elements, but got bias of size {list(bias)} instead"
        )
    if x[1] == 0 or weight[1] == 0:
        raise RuntimeError(f"conv_transpose2d: expected channels, but got input{list(x)} and weight of size {list(weight)}")
    return transposed_windows(x[2:], weight[2:], stride, padding, output_padding, dilation, images=x[0] > 0)


def transposed_arguments(module: Any, input: Tensor, output_size: list[int] | None = None) -> tuple[Any, ...]:
    """The arguments of `conv_transpose2d` after the input, for a call of a module."""
    stride, padding, dilation = module.stride, module.padding, module.dilation
    output_padding = module._output_padding(input, output_size, stride, padding, module.kernel_size, 2, dilation)
    return module.weight, module.bias, stride, padding, output_padding, module.groups, dilation


@layer
class ConvTranspose2d(nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d on `conv_transpose2d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return conv_transpose2d(input, *transposed_arguments(self, input, output_size))


@layer
class LazyConvTranspose2d(nn.LazyConvTranspose2d):
    """torch.nn.LazyConvTranspose2d; its first call turns it into trinn's ConvTranspose2d."""

    cls_to_become = ConvTranspose2d
    forward = ConvTranspose2d.forward
