"""Fused operators as functions of tensors, and the table of fusions.

    conv2d_relu               relu(conv2d(x))                          one kernel
    conv2d_relu_max_pool2d    max_pool2d(relu(conv2d(x)))              one kernel, or two: kernels/conv2d/fused.py has the rule
    conv2d_batch_norm         batch_norm(conv2d(x))                    training: the convolution's kernel computes partial sums
                                                                       of the statistics; evaluation without gradients:
                                                                       one kernel
    conv2d_batch_norm_relu    relu(batch_norm(conv2d(x)) + residual)   the same; with a residual, in evaluation, two kernels
    batch_norm_relu           relu(batch_norm(x) + residual)           forward: one kernel after the statistics;
                                                                       backward: the kernel of the sums also computes
                                                                       the gradient of ReLU
    linear_relu               relu(linear(x))                          one kernel

The arguments are the input, then a tuple of the other arguments of each operator except ReLU:
`conv2d_relu(x, (weight, bias, stride, padding, dilation, groups))`. The residual may be None.

The operators run one by one under forward-mode differentiation, and for a convolution of an image without a batch axis.

backend.py (torch.compile) calls these functions for consecutive operators, fused.py for consecutive layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trinn.kernels import ops

from .batchnorm2d import BatchNormAddRelu, BatchNormForward, apply_batch_norm, batch_norm, check_vectors
from .conv2d import conv2d, conv2d_gradients, conv2d_operands
from .function import Function, is_forward_mode_active
from .linear import apply_linear, linear, linear_gradients
from .pool2d import MaxPool2dBackward, max_pool2d, max_pool2d_windows
from .public import functional
from .relu import ReluBackward, relu
from .window import Pair

Arguments = tuple[Any, ...]  # the arguments of an operator after its input


class Conv2dRelu(Function):
    """y = relu(x * w + b)."""

    kept = "x", "w", 0

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        return ops.conv2d_affine(x, w, None, b, True, size, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w, y = ctx.saved_tensors
        return conv2d_gradients(ctx, ReluBackward.call(dy, y), x, w)


class Conv2dReluMaxPool2d(Function):
    """The maxima of relu(x * w + b) in windows, and their codes: the position of each maximum within its window."""

    kept = "x", "w", 0, 1
    with_gradient = 1

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int,
        pooled: Pair, window: Pair, window_stride: Pair, window_padding: Pair, window_dilation: Pair,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return ops.conv2d_relu_max_pool2d(
            x, w, b, size, stride, padding, dilation, groups,
            pooled, window, window_stride, window_padding, window_dilation,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
        x, w, y, codes = ctx.saved_tensors
        size, _, _, _, _, _, *window = ctx.constants
        dz = MaxPool2dBackward.call(ReluBackward.call(dy, y), codes, size, *window)
        return conv2d_gradients(ctx, dz, x, w)


class Conv2dStatistics(Function):
    """y = x * w + b, and the mean and the variance of its channels. Only y has a gradient."""

    kept = "x", "w"
    with_gradient = 1

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.conv2d_statistics(x, w, b, size, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _mean: Any, _var: Any) -> tuple[Any, ...]:
        return conv2d_gradients(ctx, dy, *ctx.saved_tensors)


class LinearRelu(Function):
    """y = relu(x @ w^T + b)."""

    kept = "x", "w", 0

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return ops.linear_fprop(x, w, b, True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w, y = ctx.saved_tensors
        return linear_gradients(ctx, ReluBackward.call(dy, y), x, w)


@functional
def conv2d_relu(input: Tensor, conv: Arguments) -> Tensor:
    """relu(conv2d(input, *conv))."""
    if input.dim() != 4 or is_forward_mode_active():
        return relu(conv2d(input, *conv))
    return Conv2dRelu.call(*conv2d_operands(input, *conv))


@functional
def conv2d_relu_max_pool2d(input: Tensor, conv: Arguments, pool: Arguments) -> Tensor:
    """max_pool2d(relu(conv2d(input, *conv)), *pool), without indices."""
    if input.dim() != 4 or is_forward_mode_active():
        return max_pool2d(relu(conv2d(input, *conv)), *pool)  # type: ignore[return-value]
    x, w, b, size, *geometry = conv2d_operands(input, *conv)
    window = max_pool2d_windows((x.shape[0], w.shape[0], *size), *pool)
    return Conv2dReluMaxPool2d.call(x, w, b, size, *geometry, *window)[0]


@functional
def conv2d_batch_norm(input: Tensor, conv: Arguments, norm: Arguments) -> Tensor:
    """batch_norm(conv2d(input, *conv), *norm)."""
    return _conv2d_batch_norm(input, conv, norm, False, None)


@functional
def conv2d_batch_norm_relu(input: Tensor, conv: Arguments, norm: Arguments, residual: Tensor | None = None) -> Tensor:
    """relu(batch_norm(conv2d(input, *conv), *norm) + residual)."""
    return _conv2d_batch_norm(input, conv, norm, True, residual)


def _conv2d_batch_norm(input: Tensor, conv: Arguments, norm: Arguments, rectified: bool, residual: Tensor | None) -> Tensor:
    """batch_norm(conv2d(input)) + residual, followed by a ReLU if `rectified`."""
    if input.dim() != 4 or is_forward_mode_active():
        return _normalized(conv2d(input, *conv), norm, rectified, residual)
    x, w, b, *geometry = conv2d_operands(input, *conv)
    *vectors, training, _, eps = norm
    if training:
        y, *statistics = Conv2dStatistics.call(x, w, b, *geometry)
        return _normalized(y, norm, rectified, residual, statistics)
    wanted = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, w, b, *vectors))
    if wanted or residual is not None:
        return _normalized(conv2d(input, *conv), norm, rectified, residual)
    if any(statistic is None for statistic in vectors[:2]):
        raise RuntimeError("running_mean and running_var must be defined in evaluation mode")
    check_vectors(x, w.shape[0], *vectors)
    # In evaluation a batch norm is a scale and a shift per channel: the convolution's epilogue applies them.
    scale, shift = ops.batchnorm2d_fold(*vectors, b, eps)
    return ops.conv2d_affine(x, w, scale, shift, rectified, *geometry)


@functional
def batch_norm_relu(input: Tensor, norm: Arguments, residual: Tensor | None = None) -> Tensor:
    """relu(batch_norm(input, *norm) + residual), in one pass if the residual is None or has the input's shape and dtype."""
    return _normalized(input, norm, True, residual)


def _normalized(
    x: Tensor, norm: Arguments, rectified: bool, residual: Tensor | None, statistics: Any = None
) -> Tensor:  # fmt: skip
    """batch_norm(x) + residual, followed by a ReLU if `rectified`.

    Args:
        statistics: the mean and variance of x, if known; else they are computed.
    """
    one_pass = residual is None or (
        x.dim() == 4 and residual.shape == x.shape and (residual.dtype, residual.device) == (x.dtype, x.device)
    )
    if rectified and one_pass and not is_forward_mode_active():
        return apply_batch_norm(BatchNormAddRelu, x, *norm, residual, statistics=statistics)
    y = apply_batch_norm(BatchNormForward, x, *norm, statistics=statistics)
    y = y + residual if residual is not None else y
    return relu(y) if rectified else y


@functional
def linear_relu(input: Tensor, arguments: Arguments) -> Tensor:
    """relu(linear(input, *arguments))."""
    if is_forward_mode_active():
        return relu(linear(input, *arguments))
    return apply_linear(LinearRelu, input, *arguments)


# Sequences of operators, and the function that fuses each. The first match is used. torch.add stands for adding the residual.
FUSIONS: dict[tuple[Callable[..., Any], ...], Callable[..., Tensor]] = {
    (conv2d, batch_norm, torch.add, relu): conv2d_batch_norm_relu,
    (conv2d, batch_norm, relu): conv2d_batch_norm_relu,
    (conv2d, batch_norm): conv2d_batch_norm,
    (conv2d, relu, max_pool2d): conv2d_relu_max_pool2d,
    (conv2d, relu): conv2d_relu,
    (batch_norm, torch.add, relu): batch_norm_relu,
    (batch_norm, relu): batch_norm_relu,
    (linear, relu): linear_relu,
}
