"""Fused operators as functions of tensors, and the table of fusions. `f` is any activation of layers/activation.py.

    conv2d_activation              f(conv2d(x) + residual)               one kernel
    conv_transpose2d_activation    f(conv_transpose2d(x) + residual)     one kernel
    conv2d_activation_max_pool2d   max_pool2d(f(conv2d(x)))              one kernel, or two: kernels/conv2d/fused.py has the
                                                                         rule; if the gradient of f needs its input, two
    conv2d_batch_norm              f(batch_norm(conv2d(x)) + residual)   training: the convolution's kernel computes partial
                                                                         sums of the statistics; evaluation without gradients:
                                                                         one kernel
    batch_norm_activation          f(batch_norm(x) + residual)           forward: one kernel after the statistics;
                                                                         backward: the kernel of the sums also computes
                                                                         the gradient of f
    linear_activation              f(linear(x))                          one kernel
    add_activation                 f(x + residual)                       one kernel, unless the gradient of f needs its input
    channel_scale_activation       f(x * scale + residual)               one kernel; backward: one kernel

Behind a batch norm with an activation, a residual may also be added last: f(batch_norm(x)) + addend.

The arguments are the input, then a tuple of the other arguments of each operator:
`conv2d_activation(x, (weight, bias, stride, padding, dilation, groups), ("relu", None))`. Those of an activation are its text,
such as "leaky_relu 0.01", and PReLU's weight; that of an addition is the residual. f and the residual may be missing, except f
before a pooling and after `linear`. A residual of another shape or dtype than the result is added alone.

The operators run one by one under forward-mode differentiation, and for a convolution of an image without a batch axis.

backend.py (torch.compile) calls these functions for consecutive operators, fused.py for consecutive layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trinn.kernels import ops
from trinn.kernels.device.activations import keeps_output

from .activation import activated, activation_gradients, expanded, prelu
from .batchnorm2d import apply_batch_norm, batch_norm, check_vectors
from .conv2d import Conv2dDgrad, Conv2dFprop, conv2d, conv2d_gradients, conv2d_operands, transposed_gradients
from .conv_transpose2d import conv_transpose2d, transposed_operands
from .function import Function, autocast, is_forward_mode_active, is_transform_active
from .linear import apply_linear, linear, linear_gradients
from .pool2d import MaxPool2dBackward, max_pool2d, max_pool2d_windows
from .public import functional
from .scale_add import AddActivation, apply_channel_scale, channel_scale, is_addable, total
from .window import Pair

Arguments = tuple[Any, ...]  # the arguments of an operator after its input


class Conv2dActivation(Function):
    """(y, z): y = f(z), whose gradient needs z = x * w + b + residual; if `adjoint`, x * w is the transposed convolution."""

    kept: tuple[str | int, ...] = "x", "w", "slopes", 1
    with_gradient = 2

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, residual: Tensor | None, size: Pair, stride: Pair,
        padding: Pair, dilation: Pair, groups: int, adjoint: bool, activation: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        slopes = expanded(slopes, _channels(w, groups, adjoint))
        return ops.conv2d_activation(x, w, b, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Any, ...]:
        x, w, slopes, z = ctx.saved_tensors
        return _conv2d_gradients(ctx, dy, dz, z, x, w, slopes)


class Conv2dActivationOfOutput(Function):
    """y = f(z) with z as above, if the gradient of f needs y."""

    kept: tuple[str | int, ...] = "x", "w", 0

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, residual: Tensor | None, size: Pair, stride: Pair,
        padding: Pair, dilation: Pair, groups: int, adjoint: bool, activation: str,
    ) -> Tensor:  # fmt: skip
        return ops.conv2d_affine(x, w, None, b, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w, y = ctx.saved_tensors
        return _conv2d_gradients(ctx, dy, None, y, x, w, None)


class Conv2dAddition(Conv2dActivationOfOutput):
    """z, as above."""

    kept = "x", "w"

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        x, w = ctx.saved_tensors
        return _conv2d_gradients(ctx, None, dz, None, x, w, None)


def _conv2d_gradients(
    ctx: Any, dy: Tensor | None, dz: Tensor | None, kept: Tensor | None, x: Tensor, w: Tensor, slopes: Tensor | None
) -> tuple[Any, ...]:
    """The gradients of x, w, b, slopes and residual, from those of y and z; a second derivative has a gradient of z."""
    *_, adjoint, activation = ctx.constants
    dz, dslopes = _through(dy, dz, kept, slopes, activation)
    gradients = (transposed_gradients if adjoint else conv2d_gradients)(ctx, dz, x, w)
    return *gradients, dslopes, dz if ctx.needs_input_grad[4] else None


def _through(
    dy: Tensor | None, dz: Tensor | None, kept: Tensor | None, slopes: Tensor | None, activation: str
) -> tuple[Any, Tensor | None]:
    """The whole gradient of z, given that of y = f(z) and the direct one of z; and the gradient of PReLU's weight."""
    if dy is None or kept is None:
        return dz, None
    by_y, dslopes = activation_gradients(dy, kept, slopes, activation)
    return by_y if dz is None else by_y + dz, dslopes


class Conv2dActivationMaxPool2d(Function):
    """The maxima of f(x * w + b) in windows, and their codes: the position of each maximum within its window."""

    kept = "x", "w", 0, 1
    with_gradient = 1

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int,
        pooled: Pair, window: Pair, window_stride: Pair, window_padding: Pair, window_dilation: Pair, activation: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return ops.conv2d_activation_max_pool2d(
            x, w, b, activation, size, stride, padding, dilation, groups,
            pooled, window, window_stride, window_padding, window_dilation,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
        x, w, y, codes = ctx.saved_tensors
        size, _, _, _, _, _, *window, activation = ctx.constants
        by_y, _ = activation_gradients(dy, y, None, activation)
        return conv2d_gradients(ctx, MaxPool2dBackward.call(by_y, codes, size, *window), x, w)


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


class LinearActivation(Function):
    """(y, z): z = x @ w^T + b and y = f(z), whose gradient needs z."""

    kept: tuple[str | int, ...] = "x", "w", "slopes", 1
    with_gradient = 2

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
        return ops.linear_activation(x, w, b, expanded(slopes, w.shape[0]), activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Any, ...]:
        (x, w, slopes, z), (activation,) = ctx.saved_tensors, ctx.constants
        if slopes is not None:  # PReLU's kernel takes images
            dy, dz, z = (v[:, :, None, None] if v is not None else None for v in (dy, dz, z))
        dz, dslopes = _through(dy, dz, z, slopes, activation)  # type: ignore[arg-type]
        return *linear_gradients(ctx, dz.flatten(1), x, w), dslopes


class LinearActivationOfOutput(Function):
    """y = f(x @ w^T + b), if the gradient of f needs y."""

    kept = "x", "w", 0

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, activation: str) -> Tensor:
        return ops.linear_fprop(x, w, b, slopes, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x, w, y), (activation,) = ctx.saved_tensors, ctx.constants
        return linear_gradients(ctx, activation_gradients(dy, y, None, activation)[0], x, w)


@functional
def conv2d_activation(
    input: Tensor, conv: Arguments, activation: Arguments | None = None, residual: Tensor | None = None
) -> Tensor:
    """f(conv2d(input, *conv) + residual)."""
    if input.dim() != 4 or is_forward_mode_active():
        return _alone(conv2d(input, *conv), activation, residual)
    return _convolved(False, activation, residual, *conv2d_operands(input, *conv))


@functional
def conv_transpose2d_activation(
    input: Tensor, conv: Arguments, activation: Arguments | None = None, residual: Tensor | None = None
) -> Tensor:
    """f(conv_transpose2d(input, *conv) + residual)."""
    if input.dim() != 4 or is_forward_mode_active():
        return _alone(conv_transpose2d(input, *conv), activation, residual)
    return _convolved(True, activation, residual, *transposed_operands(input, *conv))


def _convolved(
    adjoint: bool, activation: Arguments | None, residual: Tensor | None,
    x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int,
) -> Tensor:  # fmt: skip
    """f(z + residual) for the convolution z or, if `adjoint`, the transposed convolution."""
    text, slopes = activation or ("", None)
    geometry, channels = (size, stride, padding, dilation, groups), _channels(w, groups, adjoint)
    if not (_fits(slopes, channels, x) and _is_alike(residual, x, (x.shape[0], channels, *size))):
        return _alone((Conv2dDgrad if adjoint else Conv2dFprop).call(x, w, b, *geometry), activation, residual)
    if activation is None:
        return Conv2dAddition.call(x, w, b, None, residual, *geometry, adjoint, text)
    if keeps_output(text):
        return Conv2dActivationOfOutput.call(x, w, b, None, residual, *geometry, adjoint, text)
    if not _has_gradient(x, w, b, slopes, residual):
        return ops.conv2d_affine(x, w, None, b, expanded(slopes, channels), residual, text, *geometry, adjoint)
    return Conv2dActivation.call(x, w, b, slopes, residual, *geometry, adjoint, text)[0]


def _alone(x: Tensor, activation: Arguments | None, residual: Tensor | None = None) -> Tensor:
    """f(x + residual); f and the residual may be missing."""
    x = total(x, residual)
    if activation is None:
        return x
    text, slopes = activation
    return activated(x, text) if slopes is None else prelu(x, slopes)


def _channels(w: Tensor, groups: int, adjoint: bool) -> int:
    """The channels of a convolution's result."""
    return w.shape[1] * groups if adjoint else w.shape[0]


def _fits(slopes: Tensor | None, channels: int, x: Tensor) -> bool:
    """Whether a fused kernel can read PReLU's weight; if not, `prelu` raises torch's exception, or casts under autocast."""
    return slopes is None or (
        slopes.shape in ((1,), (channels,)) and (slopes.dtype, slopes.device) == (x.dtype, x.device)
        and autocast(slopes)[0] is slopes
    )  # fmt: skip


def _is_alike(residual: Tensor | None, x: Tensor, shape: Sequence[int]) -> bool:
    """Whether a fused kernel can add the residual to its result, of the dtype of `x` and of this shape."""
    return residual is None or (
        residual.shape == tuple(shape) and (residual.dtype, residual.device) == (x.dtype, x.device)
    )  # fmt: skip


def _has_gradient(*tensors: Tensor | None) -> bool:
    """Whether a function of these tensors may need a backward pass."""
    return is_transform_active() or (
        torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    )


@functional
def conv2d_activation_max_pool2d(input: Tensor, conv: Arguments, activation: Arguments, pool: Arguments) -> Tensor:
    """max_pool2d(f(conv2d(input, *conv)), *pool), without indices."""
    text, _ = activation
    if input.dim() != 4 or is_forward_mode_active() or not keeps_output(text):
        return max_pool2d(conv2d_activation(input, conv, activation), *pool)  # type: ignore[return-value]
    x, w, b, size, *geometry = conv2d_operands(input, *conv)
    window = max_pool2d_windows((x.shape[0], w.shape[0], *size), *pool)
    return Conv2dActivationMaxPool2d.call(x, w, b, size, *geometry, *window, text)[0]


@functional
def conv2d_batch_norm(
    input: Tensor, conv: Arguments, norm: Arguments, activation: Arguments | None = None, residual: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """f(batch_norm(conv2d(input, *conv), *norm) + residual) + addend; at most one of residual and addend is given."""
    if input.dim() != 4 or is_forward_mode_active():
        return batch_norm_activation(conv2d(input, *conv), norm, activation, residual, addend)
    x, w, b, *geometry = conv2d_operands(input, *conv)
    *vectors, training, _, eps = norm
    if training:
        y, *statistics = Conv2dStatistics.call(x, w, b, *geometry)
        return _normalized(y, norm, activation, residual, addend, statistics)
    text, slopes = activation or ("", None)
    fits = _fits(slopes, w.shape[0], x) and _is_alike(residual, x, (x.shape[0], w.shape[0], *geometry[0]))
    if not fits or _has_gradient(x, w, b, slopes, residual, *vectors):
        return _normalized(Conv2dFprop.call(x, w, b, *geometry), norm, activation, residual, addend)
    if any(statistic is None for statistic in vectors[:2]):
        raise RuntimeError("running_mean and running_var must be defined in evaluation mode")
    check_vectors(x, w.shape[0], *vectors)
    # In evaluation a batch norm is a scale and a shift per channel: the convolution's epilogue applies them.
    scale, shift = ops.batchnorm2d_fold(*vectors, b, eps)
    y = ops.conv2d_affine(x, w, scale, shift, expanded(slopes, w.shape[0]), residual, text, *geometry, False)
    return total(y, addend)


@functional
def batch_norm_activation(
    input: Tensor, norm: Arguments, activation: Arguments | None = None, residual: Tensor | None = None,
    addend: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """f(batch_norm(input, *norm) + residual) + addend; at most one of residual and addend is given.

    In one pass if the added tensor has the input's shape and dtype. Not in one pass with an inference tensor as bias or
    residual: it cannot be kept for backward.
    """
    return _normalized(input, norm, activation, residual, addend)


def _normalized(
    x: Tensor, norm: Arguments, activation: Arguments | None, residual: Tensor | None, addend: Tensor | None,
    statistics: Any = None,
) -> Tensor:  # fmt: skip
    """f(batch_norm(x) + residual) + addend.

    Args:
        statistics: the mean and variance of x, if known; else they are computed.
    """
    text, slopes = activation or ("", None)
    added = residual if residual is not None else addend
    one_pass = (added is None or x.dim() == 4) and _is_alike(added, x, x.shape) and _can_keep(norm[3], residual)
    if one_pass and not is_forward_mode_active() and x.dim() > 1 and _fits(slopes, x.shape[1], x):
        return apply_batch_norm(
            x, *norm, residual=added, after=addend is not None, slopes=slopes, activation=text, statistics=statistics
        )  # fmt: skip
    y = apply_batch_norm(x, *norm, statistics=statistics)
    return total(_alone(y, activation, residual), addend)


@functional
def add_activation(input: Tensor, activation: Arguments, residual: Tensor) -> Tensor:
    """f(input + residual), as `torch.add`; in one pass if the gradient of f needs its output, or none is needed."""
    text, slopes = activation
    alone = slopes is not None or not is_addable(input, residual) or is_forward_mode_active()
    if alone or not (keeps_output(text) or not _has_gradient(input, residual)):
        return _alone(input, activation, residual)
    return AddActivation.call(input, residual, text)


@functional
def channel_scale_activation(
    input: Tensor, scale: Arguments, activation: Arguments | None = None, residual: Tensor | None = None
) -> Tensor:
    """f(channel_scale(input, *scale) + residual), in one pass if the only residual has the input's shape and dtype."""
    text, slopes = activation or ("", None)
    factor, inner = (*scale, None)[:2]
    added = inner if residual is None else residual
    one_pass = (inner is None or residual is None) and (added is None or is_addable(input, added)) and _can_keep(added)
    if one_pass and slopes is None and not is_forward_mode_active():
        return apply_channel_scale(input, factor, added, text)
    return _alone(channel_scale(input, *scale), activation, residual)


def _can_keep(*tensors: Tensor | None) -> bool:
    """Whether autograd can save these tensors: it refuses inference tensors."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return True
    return not any(tensor is not None and tensor.is_inference() for tensor in tensors)


@functional
def linear_activation(input: Tensor, arguments: Arguments, activation: Arguments) -> Tensor:
    """f(linear(input, *arguments))."""
    text, slopes = activation
    weight, bias = arguments
    # The channels of PReLU are axis 1: the features only of a matrix.
    matrices = input.dim() == weight.dim() == 2 and _fits(slopes, weight.shape[0], weight)
    if is_forward_mode_active() or slopes is not None and not matrices:
        return _alone(linear(input, *arguments), activation)
    if keeps_output(text):
        return apply_linear(lambda x, w, b: LinearActivationOfOutput.call(x, w, b, None, text), input, weight, bias)
    if _has_gradient(input, weight, bias, slopes):
        return apply_linear(lambda x, w, b: LinearActivation.call(x, w, b, slopes, text)[0], input, weight, bias)
    return apply_linear(
        lambda x, w, b: ops.linear_fprop(x, w, b, expanded(slopes, w.shape[0]), text), input, weight, bias
    )  # fmt: skip


# Sequences of operators, and the function that fuses each. The first match is used. `activated` stands for any activation,
# torch.add for adding the residual or, behind an activation, the addend.
FUSIONS: dict[tuple[Callable[..., Any], ...], Callable[..., Tensor]] = {
    (conv2d, batch_norm, torch.add, activated): conv2d_batch_norm,
    (conv2d, batch_norm, torch.add): conv2d_batch_norm,
    (conv2d, batch_norm, activated, torch.add): conv2d_batch_norm,
    (conv2d, batch_norm, activated): conv2d_batch_norm,
    (conv2d, batch_norm): conv2d_batch_norm,
    (conv2d, activated, max_pool2d): conv2d_activation_max_pool2d,
    (conv2d, torch.add, activated): conv2d_activation,
    (conv2d, torch.add): conv2d_activation,
    (conv2d, activated): conv2d_activation,
    (conv_transpose2d, torch.add, activated): conv_transpose2d_activation,
    (conv_transpose2d, torch.add): conv_transpose2d_activation,
    (conv_transpose2d, activated): conv_transpose2d_activation,
    (batch_norm, torch.add, activated): batch_norm_activation,
    (batch_norm, torch.add): batch_norm_activation,
    (batch_norm, activated, torch.add): batch_norm_activation,
    (batch_norm, activated): batch_norm_activation,
    (linear, activated): linear_activation,
    (channel_scale, torch.add, activated): channel_scale_activation,
    (channel_scale, torch.add): channel_scale_activation,
    (channel_scale, activated): channel_scale_activation,
    (torch.add, activated): add_activation,
}
