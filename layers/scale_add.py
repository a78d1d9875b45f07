"""Addition of two tensors, and scaling of channels: `add`, `channel_scale` and `ChannelScale`.

In all Functions s is (N, C), or (1, C) for one scale for all images, and z = x * s[n, c] + residual.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.kernels.device.activations import keeps_output

from .activation import ActivationBackward, activated, can_write
from .function import FLOATS, Function, sum_of_tangents
from .public import functional, layer

__all__ = ["ChannelScale", "add", "add_", "channel_scale"]


class Add(Function):
    """y = x + other."""

    @staticmethod
    def forward(x: Tensor, other: Tensor) -> Tensor:
        return ops.add_forward(x, other, "")

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return dy, dy

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        return sum_of_tangents(*tangents)


class AddInPlace(Add):
    """x += other."""

    @staticmethod
    def forward(x: Tensor, other: Tensor) -> Tensor:
        ops.add_(x, other)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(output)


class AddActivation(Function):
    """y = f(x + other), with an activation f whose gradient needs its output."""

    kept = (0,)

    @staticmethod
    def forward(x: Tensor, other: Tensor, activation: str) -> Tensor:
        return ops.add_forward(x, other, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        dz = ActivationBackward.call(dy, *ctx.saved_tensors, *ctx.constants)
        return dz, dz


class ChannelScaleForward(Function):
    """z = x * s + residual."""

    kept = "x", "s"

    @staticmethod
    def forward(x: Tensor, s: Tensor, residual: Tensor | None) -> Tensor:
        return ops.channel_scale_forward(x, s.expand(x.shape[:2]), residual, "")

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        return *ChannelScaleBackward.call(dz, *ctx.saved_tensors), dz if ctx.needs_input_grad[2] else None

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (x, s, _), (tx, ts, residual) = inputs, tangents
        by_x = cls.call(tx, s, None) if tx is not None else None
        return sum_of_tangents(by_x, cls.call(x, ts, None) if ts is not None else None, residual)


class ChannelScaleBackward(Function):
    """The gradients of ChannelScaleForward: dx = dz * s, and ds = sum over the pixels of dz * x."""

    kept = "dz", "x", "s"

    @staticmethod
    def forward(dz: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        dx, ds = ops.channel_scale_backward(x, dz, s.expand(x.shape[:2]))
        return dx, _of_scale(ds, s)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor, dds: Tensor) -> tuple[Any, ...]:
        """Of torch's operators, so that autograd can differentiate it any number of times."""
        dtype = torch.promote_types(ddx.dtype, torch.float32)
        dz, x, s, ddx, dds = (v.to(dtype) for v in (*ctx.saved_tensors, ddx, dds))
        s, dds = s[:, :, None, None], dds[:, :, None, None]
        gradients = ddx * s + dds * x, dds * dz, (ddx * dz).sum((2, 3)).sum_to_size(s.shape[:2])
        return tuple(v.to(kept.dtype) for v, kept in zip(gradients, ctx.saved_tensors, strict=True))

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (dz, x, s), (tdz, tx, ts) = inputs, tangents
        to_x, to_s = cls.call(tdz, x, s) if tdz is not None else (None, None)
        if ts is not None:
            to_x = sum_of_tangents(to_x, ChannelScaleForward.call(dz, ts, None))
        if tx is not None:
            to_s = sum_of_tangents(to_s, cls.call(dz, tx, s)[1])
        return to_x, to_s


def _of_scale(ds: Tensor, s: Tensor) -> Tensor:
    """The gradient of s, given that of each channel of each image: itself, or its sum over the images, in a fixed order."""
    ds = ds if s.shape == ds.shape else ops.channel_sum(ds[:, :, None, None])[None]
    return ds.to(s.dtype)


class ChannelScaleActivation(Function):
    """y = f(z), with an activation f; backward computes z again."""

    kept = "x", "s", "residual"

    @staticmethod
    def forward(x: Tensor, s: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        return ops.channel_scale_forward(x, s.expand(x.shape[:2]), residual, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x, s, residual), (activation,) = ctx.saved_tensors, ctx.constants
        if torch.is_grad_enabled():  # the kernel for all gradients is no Function
            z = ChannelScaleForward.call(x, s, residual)
            dz = ActivationBackward.call(dy, activated(z, activation) if keeps_output(activation) else z, activation)
            dx, ds = ChannelScaleBackward.call(dz, x, s)
        else:
            dx, ds, dz = ops.channel_scale_activation_backward(x, dy, s.expand(x.shape[:2]), residual, activation)
            ds = _of_scale(ds, s)
        return dx, ds, dz if ctx.needs_input_grad[2] else None


@functional
def add(input: Tensor, other: Tensor) -> Tensor:
    """input + other, as `torch.add` of two tensors of one shape.

    Args:
        input, other: any shape and strides; one shape, dtype and device. Integers too.

    Raises:
        NotImplementedError: another shape, dtype or device of `other`; bool or complex numbers.
    """
    _check_addable("add", input, other)
    return Add.call(input, other)


@functional
def add_(input: Tensor, other: Tensor) -> Tensor:
    """`add`, written over `input`.

    Raises:
        NotImplementedError: as in `add`.
        RuntimeError: `input` is a leaf with requires_grad, an inference tensor outside inference mode, or its elements share
            memory.
    """
    _check_addable("add_", input, other)
    if not can_write(input) or _overlaps(input, other):
        return input.copy_(Add.call(input, other))
    return AddInPlace.call(input, other)


def _overlaps(x: Tensor, other: Tensor) -> bool:
    """Whether two tensors may share memory at different positions: a kernel cannot write one while it reads the other."""
    if x.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    return (x.storage_offset(), x.stride()) != (other.storage_offset(), other.stride())


def _check_addable(function: str, input: Tensor, other: Tensor) -> None:
    if not is_addable(input, other):
        raise NotImplementedError(
            f"{function}: expected numbers of one shape, dtype and device, but got {tuple(input.shape)}, {input.dtype}, "
            f"{input.device} and {tuple(other.shape)}, {other.dtype}, {other.device}"
        )


def is_addable(x: Tensor, other: Tensor) -> bool:
    """Whether a kernel can add the two tensors."""
    whole = not (x.is_floating_point() or x.is_complex() or x.is_quantized or x.dtype == torch.bool)
    return x.shape == other.shape and (x.dtype, x.device) == (other.dtype, other.device) and (x.dtype in FLOATS or whole)


def total(x: Tensor, other: Tensor | None) -> Tensor:
    """x + other, on trinn's kernel if it can; x without `other`."""
    if other is None:
        return x
    return Add.call(x, other) if is_addable(x, other) else x + other


@functional
def channel_scale(input: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
    """input * scale + residual, with one number for each channel: of each image, as in squeeze-and-excitation, or of all.

    Args:
        input: (N, C, H, W), any strides; float16, bfloat16, float32 or float64.
        scale: (N, C, 1, 1), (1, C, 1, 1) or (C, 1, 1); or (C) for an input (N, H, W, C). Of the dtype of the input.
        residual: like `input`; None is 0.

    Returns:
        Like `input`, in its memory order.

    Raises:
        NotImplementedError: other shapes, dtypes or devices.
    """
    if residual is not None and (residual.shape != input.shape or not is_addable(input, residual)):
        raise NotImplementedError(
            f"channel_scale: expected a residual like the input, {tuple(input.shape)}, but got {tuple(residual.shape)}"
        )
    return apply_channel_scale(input, scale, residual)


def apply_channel_scale(input: Tensor, scale: Tensor, residual: Tensor | None = None, activation: str = "") -> Tensor:
    """An activation of input * scale + residual. The residual has the shape, dtype and device of the input."""
    if not is_channel_scale(input, scale):
        raise NotImplementedError(
            "channel_scale: expected (N, C, H, W) and (N, C, 1, 1), (1, C, 1, 1) or (C, 1, 1), or (N, H, W, C) and (C), of one "
            f"floating dtype and device, but got {tuple(input.shape)}, {input.dtype}, {input.device} and "
            f"{tuple(scale.shape)}, {scale.dtype}, {scale.device}"
        )
    features_last = scale.dim() == 1
    if features_last:
        input, residual = (v.permute(0, 3, 1, 2) if v is not None else None for v in (input, residual))  # type: ignore[assignment]
    s = scale.reshape(scale.shape[0] if scale.dim() == 4 else 1, input.shape[1])
    if activation:
        y = ChannelScaleActivation.call(input, s, residual, activation)
    else:
        y = ChannelScaleForward.call(input, s, residual)
    return y.permute(0, 2, 3, 1) if features_last else y


def is_channel_scale(x: Tensor, scale: Tensor) -> bool:
    """Whether `channel_scale` takes these arguments."""
    if x.dim() != 4 or (x.dtype, x.device) != (scale.dtype, scale.device) or x.dtype not in FLOATS:
        return False
    n, c, *_, last = x.shape
    return scale.shape in ((n, c, 1, 1), (1, c, 1, 1), (c, 1, 1), (last,))


@layer
class ChannelScale(nn.Module):
    """Layer scale: input * weight + residual, with one learnable number for each channel (arXiv:2103.17239).

    Args:
        channels: C, of the input (N, C, H, W).
        value: the initial value of the weight.

    The weight is (C, 1, 1), as in torchvision's ConvNeXt. The residual is optional.
    """

    def __init__(self, channels: int, value: float = 1.0, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.channels, self.value = channels, value
        self.weight = nn.Parameter(torch.empty(channels, 1, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.value)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return channel_scale(input, self.weight, residual)

    def extra_repr(self) -> str:
        return f"{self.channels}, value={self.value}"
