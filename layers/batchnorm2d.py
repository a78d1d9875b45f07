"""Batch normalisation: `batch_norm`, `BatchNorm1d` and `BatchNorm2d`.

In all Functions z = (x - mean) / sqrt(var + eps) and y = w * z + b. If `batch`, mean and var are functions of x, as in
training; else they are constants.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.kernels.device.activations import keeps_output

from .activation import activated, activation_gradients, expanded, total_of
from .function import FLOATS, Function, in_shape, is_forward_mode_active, sum_of_tangents
from .public import functional, layer
from .window import check_flag, real

__all__ = ["BatchNorm1d", "BatchNorm2d", "LazyBatchNorm1d", "LazyBatchNorm2d", "batch_norm"]

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm


class BatchNormForward(Function):
    """y = w * z + b + residual."""

    kept = "x", "mean", "var", "w"

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, residual: Tensor | None, eps: float,
        batch: bool,
    ) -> Tensor:  # fmt: skip
        return ops.batchnorm2d_forward(x, mean, var, w, b, residual, None, "", eps, False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        need_x, _, _, need_w, need_b, need_residual, *_ = ctx.needs_input_grad
        dx, dw, db = BatchNormBackward.call(dy, *ctx.saved_tensors, *ctx.constants, need_x, need_w or need_b)
        return dx, None, None, dw if need_w else None, db if need_b else None, dy if need_residual else None

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        """The Jacobian of y with respect to x is symmetric, so the backward pass also computes its product with tx."""
        x, mean, var, w, b, _, eps, batch = inputs
        tx, _, _, tw, tb, residual, *_ = tangents
        by_x = BatchNormBackward.call(tx, x, mean, var, w, eps, batch, True, False)[0] if tx is not None else None
        by_w = cls.call(x, mean, var, tw, None, None, eps, batch) if tw is not None else None
        by_b = tb.to(x.dtype)[:, None, None].expand(x.shape) if tb is not None else None
        return sum_of_tangents(by_x, by_w, by_b, residual)


class BatchNormActivation(Function):
    """y = f(w * z + b + residual); backward computes the activation's input again."""

    kept: tuple[str | int, ...] = "x", "mean", "var", "w", "b", "residual", "slopes"

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, residual: Tensor | None,
        slopes: Tensor | None, eps: float, batch: bool, activation: str,
    ) -> Tensor:  # fmt: skip
        return ops.batchnorm2d_forward(x, mean, var, w, b, residual, expanded(slopes, x.shape[1]), activation, eps, False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return _activation_backward(ctx, dy, None, *ctx.saved_tensors)


class BatchNormActivationOfOutput(BatchNormActivation):
    """y = f(w * z + b + residual), with an activation f whose gradient needs its output; the residual is not kept."""

    kept = "x", "mean", "var", "w", 0

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, mean, var, w, y = ctx.saved_tensors
        return _activation_backward(ctx, dy, y, x, mean, var, w, None, None, None)


class BatchNormActivationAdd(BatchNormActivation):
    """y = f(w * z + b) + residual, with any activation f; backward computes its input again."""

    kept = "x", "mean", "var", "w", "b", "slopes"

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, residual: Tensor | None,
        slopes: Tensor | None, eps: float, batch: bool, activation: str,
    ) -> Tensor:  # fmt: skip
        return ops.batchnorm2d_forward(x, mean, var, w, b, residual, expanded(slopes, x.shape[1]), activation, eps, True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, mean, var, w, b, slopes = ctx.saved_tensors
        gradients = _activation_backward(ctx, dy, None, x, mean, var, w, b, None, slopes)
        return *gradients[:5], dy if ctx.needs_input_grad[5] else None, gradients[6]


def _activation_backward(
    ctx: Any, dy: Tensor, y: Tensor | None, x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None,
    residual: Tensor | None, slopes: Tensor | None,
) -> tuple[Any, ...]:  # fmt: skip
    """The gradients of BatchNormActivation, from y or from the activation's input. One kernel computes dz = dy * f', dw, db."""
    eps, batch, activation = ctx.constants
    need_x, _, _, need_w, need_b, need_residual, need_slopes, *_ = ctx.needs_input_grad
    want_w, dslopes = need_w or need_b, None
    # The kernel for dz and its sums is no Function: use it only if sums are needed and no second derivative is.
    if torch.is_grad_enabled() or not (batch or want_w or need_slopes):
        kept = y
        if kept is None:
            z = BatchNormForward.call(x, mean, var, w, b, residual, eps, batch)
            kept = activated(z, activation) if keeps_output(activation) else z
        dz, dslopes = activation_gradients(dy, kept, slopes, activation)
        dx, dw, db = BatchNormBackward.call(dz, x, mean, var, w, eps, batch, need_x, want_w)
    else:
        sums, dz = ops.batchnorm2d_activation_sums(
            x, dy, y, residual, mean, var, w, b, expanded(slopes, x.shape[1]), activation, eps
        )  # fmt: skip
        dw, db, *more = sums
        dslopes = total_of(more[0], slopes) if slopes is not None and need_slopes else None
        dx = ops.batchnorm2d_backward(x, dz, mean, var, w, sums if batch else None, eps) if need_x else None
    gradients = dw if need_w else None, db if need_b else None, dz if need_residual else None
    return dx, None, None, *gradients, dslopes if need_slopes else None


class BatchNormBackward(Function):
    """The gradients dx, dw = sum dy * z and db = sum dy. dx is None unless `want_x`; dw and db are None unless `want_w`."""

    kept = "dy", "x", "mean", "var", "w"

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, eps: float, batch: bool, want_x: bool, want_w: bool
    ) -> tuple[Tensor | None, ...]:
        sums = ops.batchnorm2d_sums(x, dy, mean, var, eps) if batch or want_w else None
        dx = ops.batchnorm2d_backward(x, dy, mean, var, w, sums if batch else None, eps) if want_x else None
        if sums is None or not want_w:
            return dx, None, None
        if is_forward_mode_active():  # views of one tensor cannot have separate tangents
            return dx, sums[0].clone(), sums[1].clone()
        dw, db = sums
        return dx, dw, db

    @staticmethod
    def backward(ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None) -> tuple[Any, ...]:
        (dy, x, mean, var, w), (eps, batch, _, _) = ctx.saved_tensors, ctx.constants
        to_dy, to_x, to_w = _second_derivative(dy, x, mean, var, w, eps, batch, ddx, ddw, ddb)
        return to_dy, to_x, None, None, to_w

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        """The outputs are gradients of the scalar sum dy * y; its Hessian is symmetric, so `_second_derivative` applies."""
        dy, x, mean, var, w, eps, batch, want_x, want_w = inputs
        tdy, tx, _, _, tw, *_ = tangents
        found = cls.call(tdy, *inputs[1:]) if tdy is not None else (None, None, None)
        by_x = by_w = None
        if tx is not None or tw is not None:
            _, by_x, by_w = _second_derivative(dy, x, mean, var, w, eps, batch, tx, tw, None)
            by_x = by_x.to(x.dtype)
        dx = sum_of_tangents(found[0], by_x) if want_x else None
        return dx, *((sum_of_tangents(found[1], by_w), found[2]) if want_w else (None, None))


def _second_derivative(
    dy: Tensor, x: Tensor, mean: Any, var: Any, w: Tensor | None, eps: float, batch: bool,
    ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Propagate the gradients ddx, ddw and ddb of dx, dw and db to dy, x and w.

    This function consists of torch operators, and recomputes mean and var from x if `batch`. So autograd can differentiate it
    any number of times.

    Let avg be the average over images and pixels, s = 1 / sqrt(var + eps), and P(v) = v - avg(v) - z * avg(v * z), or P(v) = v
    if the statistics are constants. Then dx = w * s * P(dy). P is symmetric. The derivative of z in the direction v is
    s * P(v), and the derivative of s is -s^2 * avg(z * v).
    """
    dy, x = dy.to(mean.dtype), x.to(mean.dtype)
    ddx = ddx.to(mean.dtype) if ddx is not None else torch.zeros_like(x)
    mean, var, w, ddw, ddb = (v[:, None, None] if v is not None else None for v in (mean, var, w, ddw, ddb))
    if batch:
        mean = _average(x)
        var = _average((x - mean).square())
    s = (var + eps).rsqrt()
    z = (x - mean) * s

    def projected(v: Tensor) -> Tensor:
        return v - _average(v) - z * _average(v * z) if batch else v

    p_dy, p_ddx = projected(dy), projected(ddx)
    scale = w * s if w is not None else s
    to_dy, to_x = scale * p_ddx, torch.zeros_like(x)
    if ddw is not None:
        to_dy, to_x = to_dy + ddw * z, ddw * s * p_dy
    if ddb is not None:
        to_dy = to_dy + ddb
    if batch:
        # The derivative of s, then the derivatives of the two factors z in P.
        moved = z * _average(ddx * p_dy) + p_ddx * _average(dy * z) + p_dy * _average(ddx * z)
        to_x = to_x - scale * s * moved
    return to_dy, to_x, (ddx * s * p_dy).sum((0, 2, 3)) if w is not None else None


def _average(v: Tensor) -> Tensor:
    """The average over images and pixels, (C, 1, 1)."""
    return v.mean((0, 2, 3))[:, None, None]


@functional
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-05,
) -> Tensor:
    """(input - mean) / sqrt(var + eps) * weight + bias for each channel, as `torch.nn.functional.batch_norm`.

    Args:
        input: (N, C, *); float16, bfloat16, float32 or float64.
        running_mean, running_var: (C). In training they are updated in place: they move by the fraction `momentum` towards the
            mean and the unbiased variance of the input; both may be None. In evaluation they are used as mean and variance.
        weight, bias: (C); if None, 1 and 0. All four have the dtype of the input; for a 16-bit input, all may be float32.

    Returns:
        The shape, dtype and memory format of `input`. An empty batch does not change the running statistics.

    Raises:
        ValueError: training with one value per channel, with eps <= 0, or with only one of the running statistics; a negative
            eps.
        RuntimeError: incompatible sizes, dtypes or devices; running statistics that are missing or require a gradient.
        NotImplementedError: another dtype.
    """
    return apply_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def apply_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    residual: Tensor | None = None,
    after: bool = False,
    slopes: Tensor | None = None,
    activation: str = "",
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Check the arguments of `batch_norm`, update the running statistics, and compute an activation of batch_norm + residual.

    Args:
        residual: None, or of the shape and dtype of the input, (N, C, H, W).
        after: add the residual to the result of the activation, in place of its input.
        slopes: PReLU's weight, (C) or (1).
        activation: one of ACTIVATIONS with its parameters; empty for none.
        statistics: the mean and variance of the input, if known; else they are computed.
    """
    check_flag(training, "training", "batch_norm")
    momentum, eps = real(momentum, "batch_norm: momentum must be a float"), real(eps, "batch_norm: eps must be a float")
    _check_options(input, running_mean, running_var, training, eps)
    if input.shape == (0,):  # torch accepts this as an empty batch
        return input.clone()
    if input.dim() < 2:
        raise RuntimeError(f"batch_norm: expected input of at least 2 axes, (N, C, *), but got size {list(input.shape)}")
    check_vectors(input, input.shape[1], running_mean, running_var, weight, bias)
    weight, bias = (v.flatten() if v is not None else None for v in (weight, bias))
    x = input
    if input.dim() != 4:
        x = input.flatten(3) if input.dim() > 4 else input[(...,) + (None,) * (4 - input.dim())]
    if training:
        mean, var = statistics if statistics is not None else ops.batchnorm2d_statistics(x.detach())
        if running_mean is not None and x.numel() > 0:
            ops.batchnorm2d_update(running_mean, running_var, mean, var, momentum, x.numel() // x.shape[1])
    elif running_mean is None or running_var is None:
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"{missing} must be defined in evaluation mode")
    elif torch.is_grad_enabled():
        # A later training step updates the running statistics in place, but the backward pass needs the present values.
        mean, var = running_mean.clone(), running_var.clone()
    else:
        mean, var = running_mean, running_var
    if not activation:
        y = BatchNormForward.call(x, mean, var, weight, bias, residual, eps, training)
    else:
        # Without a residual, the kernel of the sums computes f's input from x. To read y too would cost a pass.
        of_output = keeps_output(activation) and (residual is not None or not training)
        function = BatchNormActivationOfOutput if of_output else BatchNormActivation
        if after and residual is not None:
            function = BatchNormActivationAdd
        y = function.call(x, mean, var, weight, bias, residual, slopes, eps, training, activation)
    return y if x is input else in_shape(y, input.shape)


def _check_options(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float) -> None:
    if training:
        if input.shape[0] * math.prod(input.shape[2:]) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        if eps <= 0.0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
        if (running_mean is None) != (running_var is None):
            raise ValueError("running_mean and running_var must either both be None or neither be None")
    elif eps < 0.0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")


def check_vectors(
    input: Tensor,
    channels: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise torch's exception for statistics or parameters of the wrong size, dtype or device."""
    if input.dtype not in FLOATS:
        raise NotImplementedError(f"batch_norm: expected float16, bfloat16, float32 or float64, but got {input.dtype}")
    dtype = input.dtype if input.dtype.itemsize > 2 else None  # for a 16-bit input, the dtype of the first vector
    named = ("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)
    for name, tensor in named:
        if tensor is None:
            continue
        dtype = dtype or tensor.dtype
        if tensor.device != input.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got input on {input.device} and {name} on {tensor.device}"
            )
        if tensor.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {tensor.numel()}")
        if tensor.dtype != dtype or dtype not in (input.dtype, torch.float32):
            raise RuntimeError(
                f"batch_norm: {name} has dtype {tensor.dtype}, which does not match the other vectors and {input.dtype} input"
            )
        if name.startswith("running") and (tensor.dim() != 1 or tensor.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(f"batch_norm: {name} must have one axis and not require a gradient")


def norm_arguments(module: BatchNorm, uncounted: int = 0) -> tuple[Any, ...]:
    """The arguments of `batch_norm` after the input, for a call of `module`.

    Args:
        uncounted: 1 if `module.num_batches_tracked` does not include this batch yet, else 0.
    """
    tracked = module.track_running_stats or not module.training
    mean, var = (module.running_mean, module.running_var) if tracked else (None, None)
    training = module.training or (module.running_mean is None and module.running_var is None)
    momentum = module.momentum if module.momentum is not None else 0.0
    if module.momentum is None and _counts(module):
        momentum = 1.0 / (float(module.num_batches_tracked) + uncounted)  # type: ignore[arg-type]
    return mean, var, module.weight, module.bias, training, momentum, module.eps


def count_batch(module: BatchNorm) -> None:
    """Add 1 to `num_batches_tracked`, if the module is training and tracks statistics."""
    if _counts(module):
        module.num_batches_tracked.add_(1)  # type: ignore[union-attr]


def _counts(module: BatchNorm) -> bool:
    return module.training and module.track_running_stats and module.num_batches_tracked is not None


def _forward(module: BatchNorm, input: Tensor) -> Tensor:
    module._check_input_dim(input)
    count_batch(module)
    return batch_norm(input, *norm_arguments(module))


@layer
class BatchNorm1d(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d on `batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return _forward(self, input)


@layer
class BatchNorm2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d on `batch_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return _forward(self, input)


@layer
class LazyBatchNorm1d(nn.LazyBatchNorm1d):
    """torch.nn.LazyBatchNorm1d; its first call turns it into trinn's BatchNorm1d."""

    cls_to_become = BatchNorm1d
    forward = BatchNorm1d.forward


@layer
class LazyBatchNorm2d(nn.LazyBatchNorm2d):
    """torch.nn.LazyBatchNorm2d; its first call turns it into trinn's BatchNorm2d."""

    cls_to_become = BatchNorm2d
    forward = BatchNorm2d.forward
