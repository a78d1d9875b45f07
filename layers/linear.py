"""Linear layer: the autograd Functions of its three passes, `linear` and `Linear`.

As in a convolution, each gradient of a pass is another of the three passes.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from trinn.kernels import ops

from .function import FLOATS, Bilinear, autocast, in_shape
from .public import functional, layer
from .reduce import ChannelSum

__all__ = ["LazyLinear", "Linear", "linear"]


class LinearFprop(Bilinear):
    """y = x @ w^T + b."""

    kept = "x", "w"

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return ops.linear_fprop(x, w, b, None, "")

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return linear_gradients(ctx, dy, *ctx.saved_tensors)


def linear_gradients(ctx: Any, dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dw and db of y = x @ w^T + b, each None unless autograd needs it."""
    need_x, need_w, need_b, *_ = ctx.needs_input_grad
    dx = LinearDgrad.call(dy, w) if need_x else None
    dw = LinearWgrad.call(x, dy) if need_w else None
    return dx, dw, ChannelSum.call(dy[:, :, None, None]) if need_b else None


class LinearDgrad(Bilinear):
    """dx = dy @ w."""

    kept = "dy", "w"

    @staticmethod
    def forward(dy: Tensor, w: Tensor) -> Tensor:
        return ops.linear_dgrad(dy, w)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
        dy, w = ctx.saved_tensors
        need_dy, need_w = ctx.needs_input_grad
        ddy = LinearFprop.call(ddx, w, None) if need_dy else None
        dw = LinearWgrad.call(ddx, dy) if need_w else None
        return ddy, dw


class LinearWgrad(Bilinear):
    """dw = dy^T @ x."""

    kept = "x", "dy"

    @staticmethod
    def forward(x: Tensor, dy: Tensor) -> Tensor:
        return ops.linear_wgrad(x, dy)

    @staticmethod
    def backward(ctx: Any, ddw: Tensor) -> tuple[Any, ...]:
        x, dy = ctx.saved_tensors
        need_x, need_dy = ctx.needs_input_grad
        dx = LinearDgrad.call(dy, ddw) if need_x else None
        ddy = LinearFprop.call(x, ddw, None) if need_dy else None
        return dx, ddy


@functional
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight^T + bias, as `torch.nn.functional.linear`.

    Args:
        input: (*, in_features), any number of leading axes; float16, bfloat16, float32 or float64.
        weight: (out_features, in_features), or (in_features) for one output feature without an axis; same dtype.
        bias: (out_features), or a single value for all outputs; same dtype.

    Returns:
        (*, out_features), or (*) if `weight` has one axis.

    Raises:
        RuntimeError: incompatible shapes, dtypes or devices.
        NotImplementedError: another dtype.
    """
    return apply_linear(LinearFprop.call, input, weight, bias)


def apply_linear(function: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Check the arguments of `linear`, and call a function with the arguments of LinearFprop."""
    input, weight, bias = autocast(input, weight, bias)
    if input.dim() == 0 or weight.dim() not in (1, 2):
        raise RuntimeError(f"linear: both arguments need to be at least 1D, but they are {input.dim()}D and {weight.dim()}D")
    if input.dtype not in FLOATS:
        raise NotImplementedError(f"linear: expected float16, bfloat16, float32 or float64, but got {input.dtype}")
    for tensor, name in ((weight, "weight"), (bias, "bias")):
        if tensor is not None and tensor.dtype != input.dtype:
            raise RuntimeError(f"expected input and {name} to have the same dtype, but got {input.dtype} and {tensor.dtype}")
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got input on {input.device} and {name} on {tensor.device}"
            )
    w = weight if weight.dim() == 2 else weight[None]
    if input.shape[-1] != w.shape[1]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({input.numel() // max(input.shape[-1], 1)}x{input.shape[-1]} and "
            f"{w.shape[1]}x{w.shape[0]})"
        )
    if bias is not None and bias.shape not in ((), (1,), w.shape[:1]):
        raise RuntimeError(f"linear: expected bias of size {[w.shape[0]]}, but got {list(bias.shape)}")
    b = bias.expand(w.shape[0]) if bias is not None and bias.shape != w.shape[:1] else bias
    if input.dim() == weight.dim() == 2:
        return function(input, w, b)
    rows = input.shape[:-1]
    y = function(input.reshape(math.prod(rows), w.shape[1]), w, b)
    return in_shape(y, (*rows, w.shape[0]) if weight.dim() == 2 else rows)


@layer
class Linear(nn.Linear):
    """torch.nn.Linear on `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


@layer
class LazyLinear(nn.LazyLinear):
    """torch.nn.LazyLinear; its first call turns it into trinn's Linear."""

    cls_to_become = Linear
    forward = Linear.forward
