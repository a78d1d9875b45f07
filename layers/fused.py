"""Layers joined to what follows them: `conv_relu` and the like call modules, `ConvReLU2d` and the like hold them.

    conv_relu             relu(conv(x))                   one kernel
    conv_relu_max_pool    pool(relu(conv(x)))             one kernel where windows lie side by side, else two
    conv_bn_relu          relu(bn(conv(x)))               training: the convolution's kernel begins the statistics;
                                                          evaluation without gradients: one kernel
    bn_relu               relu(bn(x))                     one pass forward, and one less backward
    bn_add_relu           relu(bn(x) + residual)          the same
    linear_relu           relu(linear(x))                 one kernel

Everywhere `relu` may be None, for one that is not a module; in conv_bn_relu None is no ReLU at all. Where joining would skip
something, a hook or a forward that is not ours, and under forward-mode differentiation, the modules run one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.layers.batchnorm2d import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNormAddRelu,
    BatchNormForward,
    check_vectors,
    normalized_by,
    takes_batch_statistics,
)
from trinn.layers.conv2d import Conv2d, conv2d_gradients, conv2d_operands, padded
from trinn.layers.function import Function, differentiated_forward
from trinn.layers.linear import Linear, linear_gradients, product
from trinn.layers.pool2d import MaxPool2d, MaxPool2dBackward, max_pool2d_windows
from trinn.layers.public import functional, layer
from trinn.layers.relu import ReLU, ReluBackward, relu
from trinn.layers.window import Pair


class Conv2dRelu(Function):
    """y = relu(x * w + b)."""

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> Tensor:
        return ops.conv2d_affine(x, w, None, b, True, size, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, _, *geometry = inputs
        ctx.save_for_backward(x, w, output)
        ctx.geometry = tuple(geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w, y = ctx.saved_tensors
        return *conv2d_gradients(ctx, ReluBackward.call(dy, y), x, w), None, None, None, None, None


class Conv2dReluMaxPool2d(Function):
    """The largest values of relu(x * w + b) in windows, and the codes of the winners."""

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
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, w, _, ctx.size, *geometry = inputs
        y, codes = output
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, y, codes)
        ctx.geometry, ctx.window = tuple(geometry[:4]), tuple(geometry[5:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:
        x, w, y, codes = ctx.saved_tensors
        dz = MaxPool2dBackward.call(ReluBackward.call(dy, y), codes, ctx.size, *ctx.window)
        return *conv2d_gradients(ctx, dz, x, w), None, None, None, None, None, None, None, None, None, None


class Conv2dStatistics(Function):
    """y = x * w + b, and the mean and the variance of its channels, which move no gradient."""

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return ops.conv2d_statistics(x, w, b, size, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, _, _, *geometry = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w)
        ctx.geometry = tuple(geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _mean: Any, _var: Any) -> tuple[Any, ...]:
        return *conv2d_gradients(ctx, dy, *ctx.saved_tensors), None, None, None, None, None


class LinearRelu(Function):
    """y = relu(x @ w^T + b)."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return ops.linear_fprop(x, w, b, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, w, y = ctx.saved_tensors
        return linear_gradients(ctx, ReluBackward.call(dy, y), x, w)


@functional
def conv_relu(conv: Conv2d, relu: ReLU | None, input: Tensor) -> Tensor:
    """relu(conv(input))."""
    if not (is_just(conv, Conv2d) and is_just(relu, ReLU, None) and input.dim() == 4) or differentiated_forward():
        return _rectified(relu, conv(input))
    return Conv2dRelu.call(*_operands(conv, input))


@functional
def conv_relu_max_pool(conv: Conv2d, relu: ReLU | None, pool: MaxPool2d, input: Tensor) -> Tensor:
    """pool(relu(conv(input)))."""
    ours = is_just(conv, Conv2d) and is_just(relu, ReLU, None) and is_just(pool, MaxPool2d) and not pool.return_indices
    if not (ours and input.dim() == 4) or differentiated_forward():
        return pool(_rectified(relu, conv(input)))
    x, w, b, size, *geometry = _operands(conv, input)
    shape = (x.shape[0], w.shape[0], *size)
    window = max_pool2d_windows(shape, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    return Conv2dReluMaxPool2d.call(x, w, b, size, *geometry, *window)[0]


@functional
def conv_bn_relu(conv: Conv2d, bn: BatchNorm2d, relu: ReLU | None, input: Tensor) -> Tensor:
    """relu(bn(conv(input))); where `relu` is None, bn(conv(input))."""
    if (
        not (is_just(conv, Conv2d) and is_just(bn, BatchNorm2d) and is_just(relu, ReLU, None) and input.dim() == 4)
        or differentiated_forward()
    ):
        y = bn(conv(input))
        return relu(y) if relu is not None else y
    function, residual = (BatchNormForward, ()) if relu is None else (BatchNormAddRelu, (None,))
    x, w, b, *geometry = _operands(conv, input)
    if takes_batch_statistics(bn):
        y, *statistics = Conv2dStatistics.call(x, w, b, *geometry)
        return normalized_by(bn, y, function, *residual, statistics=statistics)
    vectors = bn.running_mean, bn.running_var, bn.weight, bn.bias
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, w, b, *vectors)):
        return normalized_by(bn, conv(input), function, *residual)
    check_vectors(x, w.shape[0], *vectors)
    scale, shift = ops.batchnorm2d_fold(*vectors, b, bn.eps)
    return ops.conv2d_affine(x, w, scale, shift, relu is not None, *geometry)


@functional
def bn_relu(bn: BatchNorm1d | BatchNorm2d, relu: ReLU | None, input: Tensor) -> Tensor:
    """relu(bn(input))."""
    if not (is_just(bn, BatchNorm1d, BatchNorm2d) and is_just(relu, ReLU, None)) or differentiated_forward():
        return _rectified(relu, bn(input))
    return normalized_by(bn, input, BatchNormAddRelu, None)


@functional
def bn_add_relu(bn: BatchNorm2d, relu: ReLU | None, input: Tensor, residual: Tensor) -> Tensor:
    """relu(bn(input) + residual), in one pass for a residual of the input's shape and dtype."""
    alike = residual.shape == input.shape and (residual.dtype, residual.device) == (input.dtype, input.device)
    if not (is_just(bn, BatchNorm2d) and is_just(relu, ReLU, None) and alike) or differentiated_forward():
        return _rectified(relu, bn(input) + residual)
    return normalized_by(bn, input, BatchNormAddRelu, residual)


@functional
def linear_relu(linear: Linear, relu: ReLU | None, input: Tensor) -> Tensor:
    """relu(linear(input))."""
    if not (is_just(linear, Linear) and is_just(relu, ReLU, None)) or differentiated_forward():
        return _rectified(relu, linear(input))
    return product(LinearRelu, input, linear.weight, linear.bias)


def is_just(module: Any, *classes: type[nn.Module] | None) -> bool:
    """Whether calling a module is the forward of one of these classes and nothing else; None is no module."""
    if module is None:
        return None in classes
    kind = type(module)
    return (
        any(c is not None and issubclass(kind, c) and kind.forward is c.forward for c in classes)
        and getattr(kind, "_conv_forward", None) in (None, Conv2d._conv_forward)
        and "forward" not in module.__dict__ and "_conv_forward" not in module.__dict__
        and "parametrizations" not in module._modules
        and not module._forward_pre_hooks and not module._forward_hooks
        and not module._backward_pre_hooks and not module._backward_hooks
        and not nn.modules.module._has_any_global_hook()
    )  # fmt: skip


def _operands(conv: Any, input: Tensor) -> tuple[Any, ...]:
    """What Conv2dFprop takes for a module and its input."""
    x, padding = padded(conv, input)
    return conv2d_operands(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


def _rectified(module: nn.Module | None, x: Tensor) -> Tensor:
    return module(x) if module is not None else relu(x)


class _Joined(nn.Sequential):
    """Modules of given classes that are called as one; as in nn.Sequential, their names are their numbers."""

    classes: tuple[type[nn.Module], ...]
    joined: Callable[..., Tensor]

    def __init__(self, *modules: nn.Module) -> None:
        if len(modules) != len(self.classes) or not all(map(isinstance, modules, self.classes)):
            wanted = ", ".join(c.__name__ for c in self.classes)
            got = ", ".join(f"{type(m).__module__}.{type(m).__name__}" for m in modules)
            raise TypeError(f"{type(self).__name__}: expected trinn's {wanted}, but got {got or 'nothing'}")
        super().__init__(*modules)

    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return type(self).joined(*self, *inputs)


@layer
class ConvReLU2d(_Joined):
    """relu(conv(x)) of a Conv2d and a ReLU."""

    classes = Conv2d, ReLU
    joined = staticmethod(conv_relu)


@layer
class ConvReLUMaxPool2d(_Joined):
    """pool(relu(conv(x))) of a Conv2d, a ReLU and a MaxPool2d."""

    classes = Conv2d, ReLU, MaxPool2d
    joined = staticmethod(conv_relu_max_pool)


@layer
class ConvBNReLU2d(_Joined):
    """relu(bn(conv(x))) of a Conv2d, a BatchNorm2d and a ReLU."""

    classes = Conv2d, BatchNorm2d, ReLU
    joined = staticmethod(conv_bn_relu)


@layer
class BNReLU2d(_Joined):
    """relu(bn(x)) of a BatchNorm2d and a ReLU."""

    classes = BatchNorm2d, ReLU
    joined = staticmethod(bn_relu)


@layer
class BNAddReLU2d(_Joined):
    """relu(bn(x) + residual) of a BatchNorm2d and a ReLU: the tail of a ResNet's block."""

    classes = BatchNorm2d, ReLU
    joined = staticmethod(bn_add_relu)


@layer
class LinearReLU(_Joined):
    """relu(linear(x)) of a Linear and a ReLU."""

    classes = Linear, ReLU
    joined = staticmethod(linear_relu)
