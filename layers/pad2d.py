"""Padding an image with itself, for a convolution's `padding_mode`."""

from typing import Any

from torch import Tensor

from trinn.kernels import ops
from trinn.layers.function import Function
from trinn.layers.window import batched

Padding = tuple[int, int, int, int]  # left, right, top, bottom


class PadForward(Function):
    """y with its border; linear in x."""

    @staticmethod
    def forward(x: Tensor, padding: Padding, mode: str) -> Tensor:
        return ops.pad2d_forward(x, padding, mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.padding, ctx.mode = inputs

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return PadBackward.call(dy, ctx.padding, ctx.mode), None, None


class PadBackward(Function):
    """The adjoint of PadForward."""

    @staticmethod
    def forward(dy: Tensor, padding: Padding, mode: str) -> Tensor:
        return ops.pad2d_backward(dy, padding, mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.padding, ctx.mode = inputs

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
        return PadForward.call(ddx, ctx.padding, ctx.mode), None, None


def pad2d(input: Tensor, pad: Padding, mode: str) -> Tensor:
    """A border made of the image itself, as `torch.nn.functional.pad` on its last two axes.

    Args:
        input: (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64.
        pad: (left, right, top, bottom), in pixels.
        mode: 'reflect', 'replicate' or 'circular'.

    Returns:
        (N, C, H + top + bottom, W + left + right), in the memory format of `input`.

    Raises:
        RuntimeError: padding that the image is too small for, or negative.
        NotImplementedError: another mode or dtype.
    """
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"pad2d: expected mode 'reflect', 'replicate' or 'circular', but got {mode!r}")
    if not input.is_floating_point():
        raise NotImplementedError(f"pad2d: expected float16, bfloat16, float32 or float64, but got {input.dtype}")
    x, unbatched = batched(input, "pad2d")
    if min(pad) < 0:
        raise RuntimeError(f"negative padding is not supported, but got {pad}")
    if 0 in x.shape[1:]:
        raise RuntimeError(f"pad2d: expected input with non-zero size for all but the batch axis, but got {list(x.shape)}")
    for axis, widths in ((3, pad[:2]), (2, pad[2:])):
        if mode == "reflect" and max(widths) >= x.shape[axis]:
            raise RuntimeError(
                f"Padding size should be less than the corresponding input dimension, but got: padding {tuple(widths)} at "
                f"dimension {axis} of input {list(x.shape)}"
            )
        if mode == "circular" and max(widths) > x.shape[axis]:
            raise RuntimeError(
                f"Padding value causes wrapping around more than once: {tuple(widths)} at dimension {axis} of {list(x.shape)}"
            )
    y = PadForward.call(x, tuple(pad), mode)
    return y.squeeze(0) if unbatched else y
