"""Addition of two tensors, and scaling of channels: `add`, `channel_scale` and `ChannelScale`.

In all Functions z = x * s[n, c] + residual, s is (N, C), or (1, C) for one scale for all images, and `axis` is that of the
channels in x, 1 or 3.
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
    def forward(x: Tensor, s: Tensor, residual: Tensor | None, axis: int) -> Tensor:
        return ops.channel_scale_forward(x, _of_images(s, x), residual, "", axis)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        return *ChannelScaleBackward.call(dz, *ctx.saved_tensors, *ctx.constants), dz if ctx.needs_input_grad[2] else None

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (x, s, _, axis), (tx, ts, residual, *_) = inputs, tangents
        by_x = cls.call(tx, s, None, axis) if tx is not None else None
        return sum_of_tangents(by_x, cls.call(x, ts, None, axis) if ts is not None else None, residual)


class ChannelScaleBackward(Function):
    """The gradients of ChannelScaleForward: dx = dz * s, and ds = sum over the pixels of dz * x."""

    kept = "dz", "x", "s"

    @staticmethod
    def forward(dz: Tensor, x: Tensor, s: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        dx, ds = ops.channel_scale_backward(x, dz, _of_images(s, x), axis)
        return dx, _of_scale(ds, s)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor, dds: Tensor) -> tuple[Any, ...]:
        """Of torch's operators, so that autograd can differentiate it any number of times."""
        (axis,), kept = ctx.constants, ctx.saved_tensors
        dtype = torch.promote_types(torch.promote_types(ddx.dtype, dds.dtype), torch.float32)
        dz, x, s, ddx, dds = (v.to(dtype) for v in (*kept, ddx, dds))
        s, dds = (v[:, :, None, None].movedim(1, axis) for v in (s, dds))
        to_s = (ddx * dz).sum_to_size(s.shape).movedim(axis, 1).flatten(1)
        gradients = ddx * s + dds * x, dds * dz, to_s
        return tuple(v.to(tensor.dtype) for v, tensor in zip(gradients, kept, strict=True))

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (dz, x, s, axis), (tdz, tx, ts, *_) = inputs, tangents
        to_x, to_s = cls.call(tdz, x, s, axis) if tdz is not None else (None, None)
        if ts is not None:
            to_x = sum_of_tangents(to_x, ChannelScaleForward.call(dz, ts, None, axis))
        if tx is not None:
            to_s = sum_of_tangents(to_s, cls.call(dz, tx, s, axis)[1])
        return to_x, to_s


def _of_images(s: Tensor, x: Tensor) -> Tensor:
    """The scales of each image, (N, C)."""
    return s.expand(x.shape[0], -1)


def _of_scale(ds: Tensor, s: Tensor) -> Tensor:
    """The gradient of s, given that of each channel of each image: itself, or its sum over the images, in a fixed order."""
    ds = ds if s.shape == ds.shape else ops.channel_sum(ds[:, :, None, None])[None]
    return ds.to(s.dtype)


class ChannelScaleActivation(Function):
    """y = f(z), with an activation f; backward computes z again."""

    kept = "x", "s", "residual"

    @staticmethod
    def forward(x: Tensor, s: Tensor, residual: Tensor | None, activation: str, axis: int) -> Tensor:
        return ops.channel_scale_forward(x, _of_images(s, x), residual, activation, axis)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (x, s, residual), (activation, axis) = ctx.saved_tensors, ctx.constants
        if torch.is_grad_enabled():  # the kernel for all gradients is no Function
            z = ChannelScaleForward.call(x, s, residual, axis)
            dz = ActivationBackward.call(dy, activated(z, activation) if keeps_output(activation) else z, activation)
            dx, ds = ChannelScaleBackward.call(dz, x, s, axis)
        else:
            dx, ds, dz = ops.channel_scale_activation_backward(x, dy, _of_images(s, x), residual, activation, axis)
            ds = _of_scale(ds, s)
        return dx, ds, dz if ctx.needs_input_grad[2] else None


@functional
def add(input: Tensor, other: Tensor) -> Tensor:
    """input + other, as `torch.add` of two tensors of one shape.

    Args:
        input, other: of one shape and device, any strides; of floating dtypes, or of one integer dtype.

    Raises:
        NotImplementedError: other shapes, dtypes or devices.
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
            f"{function}: expected one shape and device, and floating dtypes or one integer dtype, but got "
            f"{tuple(input.shape)}, {input.dtype}, {input.device} and {tuple(other.shape)}, {other.dtype}, {other.device}"
        )


def is_addable(x: Tensor, other: Tensor) -> bool:
    """Whether a kernel can add the two tensors: of one shape and device; of floating dtypes, or of one integer dtype."""
    if x.shape != other.shape or x.device != other.device:
        return False
    if x.is_floating_point():
        return x.dtype in FLOATS and other.dtype in FLOATS
    return x.dtype == other.dtype and not (x.is_complex() or x.is_quantized or x.dtype == torch.bool)


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
        scale: (N, C, 1, 1), (1, C, 1, 1) or (C, 1, 1); or (C) for an input (N, H, W, C). Any of these dtypes.
        residual: of the shape of `input`, any strides and any of these dtypes; None is 0.

    Returns:
        Of the shape of `input`, in torch's memory order and dtype for these operands.

    Raises:
        NotImplementedError: other shapes, dtypes or devices.
    """
    if residual is not None and not is_addable(input, residual):
        raise NotImplementedError(
            f"channel_scale: expected a residual of the shape of the input, {tuple(input.shape)}, and a floating dtype, but "
            f"got {tuple(residual.shape)} and {residual.dtype}"
        )
    return apply_channel_scale(input, scale, residual)


def apply_channel_scale(input: Tensor, scale: Tensor, residual: Tensor | None = None, activation: str = "") -> Tensor:
    """An activation of input * scale + residual. The residual has the shape and device of the input, and a floating dtype."""
    if not is_channel_scale(input, scale):
        raise NotImplementedError(
            "channel_scale: expected (N, C, H, W) and (N, C, 1, 1), (1, C, 1, 1) or (C, 1, 1), or (N, H, W, C) and (C), of "
            f"floating dtypes on one device, but got {tuple(input.shape)}, {input.dtype}, {input.device} and "
            f"{tuple(scale.shape)}, {scale.dtype}, {scale.device}"
        )
    axis = 3 if scale.dim() == 1 else 1
    s = scale.reshape(scale.shape[0] if scale.dim() == 4 else 1, input.shape[axis])
    if activation:
        return ChannelScaleActivation.call(input, s, residual, activation, axis)
    return ChannelScaleForward.call(input, s, residual, axis)


def is_channel_scale(x: Tensor, scale: Tensor) -> bool:
    """Whether `channel_scale` takes these arguments."""
    if x.dim() != 4 or x.device != scale.device or not (x.dtype in FLOATS and scale.dtype in FLOATS):
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
