"""2-D convolution: the autograd Functions of its three passes, `conv2d` and `Conv2d`.

Each pass is linear in its two operands, and each gradient of a pass is another of the three passes. So every pass can be
differentiated any number of times. In every Function, `size` is the (height, width) of the result. In docstrings x * w is the
convolution (cross-correlation) of x with the filters w.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops

from .function import FLOATS, Bilinear, autocast
from .pad2d import pad2d
from .public import functional, layer
from .reduce import ChannelSum
from .window import IntOrPair, Pair, batched, cached_sizes, check_window, conv_padding, conv_windows, integer, pair

__all__ = ["Conv2d", "LazyConv2d", "conv2d"]


class Conv2dFprop(Bilinear):
    """y = x * w + b."""

    kept = "x", "w"

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        return ops.conv2d_fprop(x, w, b, size, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return conv2d_gradients(ctx, dy, *ctx.saved_tensors)


def conv2d_gradients(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dw and db of y = x * w + b, each None unless autograd needs it.

    `ctx` is from Conv2dFprop, or from a Function with the same first inputs.
    """
    (need_x, need_w, need_b, *_), (_, *geometry) = ctx.needs_input_grad, ctx.constants[:5]
    dx = Conv2dDgrad.call(dy, w, None, x.shape[2:], *geometry) if need_x else None
    dw = Conv2dWgrad.call(x, dy, w.shape[2:], *geometry) if need_w else None
    return dx, dw, ChannelSum.call(dy) if need_b else None


class Conv2dDgrad(Bilinear):
    """The gradient of Conv2dFprop with respect to x; with a bias, the transposed convolution."""

    kept = "dy", "w"

    @staticmethod
    def forward(
        dy: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        return ops.conv2d_dgrad(dy, w, b, size, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
        return transposed_gradients(ctx, ddx, *ctx.saved_tensors)


def transposed_gradients(ctx: Any, ddx: Tensor, dy: Tensor, w: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of Conv2dDgrad: those of dy, w and b, each None unless autograd needs it. `ctx` as in conv2d_gradients."""
    (need_dy, need_w, need_b, *_), (_, *geometry) = ctx.needs_input_grad, ctx.constants[:5]
    ddy = Conv2dFprop.call(ddx, w, None, dy.shape[2:], *geometry) if need_dy else None
    dw = Conv2dWgrad.call(ddx, dy, w.shape[2:], *geometry) if need_w else None
    return ddy, dw, ChannelSum.call(ddx) if need_b else None


class Conv2dWgrad(Bilinear):
    """The gradient of Conv2dFprop with respect to w."""

    kept = "x", "dy"

    @staticmethod
    def forward(x: Tensor, dy: Tensor, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
        return ops.conv2d_wgrad(x, dy, size, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
        x, dy = ctx.saved_tensors
        (need_x, need_dy, *_), (_, *geometry) = ctx.needs_input_grad, ctx.constants
        dx = Conv2dDgrad.call(dy, ddw, None, x.shape[2:], *geometry) if need_x else None
        ddy = Conv2dFprop.call(x, ddw, None, dy.shape[2:], *geometry) if need_dy else None
        return dx, ddy


@functional
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation), as `torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64.
        weight: (K, C / groups, R, S), same dtype.
        bias: (K), same dtype.
        padding: in pixels. 'valid' is no padding. 'same' keeps H and W; if the total padding of an axis is odd, the bottom or
            right edge gets the extra pixel.

    Returns:
        (N, K, P, Q) with (P, Q) from `conv_output_size`.

    Raises:
        RuntimeError: incompatible shapes, dtypes or devices.
        NotImplementedError: another dtype.
        TypeError: a stride, padding or dilation that is no integer.
    """
    x, unbatched = batched(input, "conv2d")
    y = Conv2dFprop.call(*conv2d_operands(x, weight, bias, stride, padding, dilation, groups))
    return y.squeeze(0) if unbatched else y


def conv2d_operands(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    groups: int,
) -> tuple[Any, ...]:
    """Turn the arguments of `conv2d` into those of Conv2dFprop, and raise its exceptions. x has a batch axis."""
    x, weight, bias = autocast(x, weight, bias)
    stride, dilation = pair(stride, "stride", "conv2d"), pair(dilation, "dilation", "conv2d")
    padding = padding if isinstance(padding, str) else pair(padding, "padding", "conv2d")
    groups = integer(groups, "conv2d: groups must be an int")
    check_operands(x, weight, bias, "conv2d")
    shape = bias.shape if bias is not None else None
    size, near = _sizes(x.shape, weight.shape, shape, stride, padding, dilation, groups)
    return x, weight, bias, size, stride, near, dilation, groups


@cached_sizes
def _sizes(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, stride: Pair, padding: str | Pair, dilation: Pair, groups: int
) -> tuple[Pair, Pair]:
    """(P, Q), and the padding at the top and left edges; raises torch's exceptions."""
    check_geometry(stride, dilation, groups, weight, "conv2d")
    near, far = conv_padding(padding, weight[2:], stride, dilation)
    if x[1] != weight[1] * groups:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(weight)}, expected input{list(x)} to have {weight[1] * groups} "
            f"channels, but got {x[1]} channels instead"
        )
    if bias is not None and bias != weight[:1]:
        raise RuntimeError(
            f"Given weight of size {list(weight)}, expected bias to be 1-dimensional with {weight[0]} elements, "
            f"but got bias of size {list(bias)} instead"
        )
    if x[1] == 0:
        raise RuntimeError(f"conv2d: input{list(x)} has no channels")
    return conv_windows(x[2:], weight[2:], stride, near, far, dilation), near


def check_operands(x: Tensor, w: Tensor, b: Tensor | None, operator: str) -> None:
    """Raise torch's exception for a wrong number of axes, or for operands of different dtypes or devices."""
    if w.dim() != 4:
        raise RuntimeError(
            f"{operator}: Expected {w.dim()}-dimensional input for {w.dim()}-dimensional weight {list(w.shape)}, but got "
            f"{x.dim()}-dimensional input of size {list(x.shape)} instead"
        )
    for tensor, name in ((w, "weight"), (b, "bias")):
        if tensor is not None and tensor.dtype != x.dtype:
            raise RuntimeError(f"Input type ({x.dtype}) and {name} type ({tensor.dtype}) should be the same")
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got input on {x.device} and {name} on {tensor.device}"
            )
    if x.dtype not in FLOATS:
        raise NotImplementedError(f"{operator}: expected float16, bfloat16, float32 or float64, but got {x.dtype}")


def check_geometry(stride: Pair, dilation: Pair, groups: int, weight: torch.Size, operator: str) -> None:
    """Raise torch's exception for a stride, dilation or number of groups impossible with this weight."""
    if groups <= 0:
        raise RuntimeError(f"{operator}: non-positive groups is not supported, but got {groups}")
    check_window(weight[2:], stride, dilation, operator)
    if weight[0] == 0:
        raise RuntimeError(f"{operator}: weight of size {list(weight)} has no filters")
    if weight[0] < groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0, but got weight of size "
            f"{list(weight)} instead"
        )
    if weight[0] % groups:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be divisible by {groups} at dimension 0, but got weight of size "
            f"{list(weight)} instead"
        )


def padded(module: nn.Conv2d, input: Tensor) -> tuple[Tensor, str | IntOrPair]:
    """The input and the `padding` argument of a module's convolution. Padding other than zeros is applied to the input here."""
    if module.padding_mode == "zeros":
        return input, module.padding
    return pad2d(input, module._reversed_padding_repeated_twice, module.padding_mode), 0


@layer
class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d on `conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = padded(self, input)
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


@layer
class LazyConv2d(nn.LazyConv2d):
    """torch.nn.LazyConv2d; its first call turns it into trinn's Conv2d."""

    cls_to_become = Conv2d
    forward = Conv2d.forward
