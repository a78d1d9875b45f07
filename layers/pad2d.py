"""Padding of an image with its own pixels, for the `padding_mode` of a convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trinn.kernels import ops

from .function import Function, autocast_to_float32
from .public import functional
from .window import batched

Padding = tuple[int, int, int, int]  # left, right, top, bottom


class PadForward(Function):
    """y, the padded image; linear in x."""

    @staticmethod
    def forward(x: Tensor, padding: Padding, mode: str) -> Tensor:
        return ops.pad2d_forward(x, padding, mode)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return PadBackward.call(dy, *ctx.constants)


class PadBackward(Function):
    """The adjoint of PadForward."""

    @staticmethod
    def forward(dy: Tensor, padding: Padding, mode: str) -> Tensor:
        return ops.pad2d_backward(dy, padding, mode)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Tensor:
        return PadForward.call(ddx, *ctx.constants)


@functional
def pad2d(input: Tensor, pad: Sequence[int], mode: str) -> Tensor:
    """Pad the last two axes of an image with its own pixels, as `torch.nn.functional.pad` does.

    Args:
        input: (N, C, H, W) or (C, H, W); integers too.
        pad: (left, right, top, bottom), in pixels; a negative number crops.
        mode: 'reflect', 'replicate' or 'circular'.

    Returns:
        (N, C, H + top + bottom, W + left + right), in the memory format of `input`; contiguous if circular.

    Raises:
        RuntimeError: padding too large for the image.
        NotImplementedError: another mode or number of axes, or bool or complex input.
        TypeError: padding that is no integer.
    """
    if len(pad) % 2:
        raise RuntimeError(f"Padding length must be divisible by 2, but got {len(pad)}")
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(f"pad2d: expected mode 'reflect', 'replicate' or 'circular', but got {mode!r}")
    if len(pad) != 4 or input.dim() not in (3, 4):
        raise NotImplementedError(f"pad2d: expected 4 widths and 3D or 4D input, but got {len(pad)} and {input.dim()}D")
    if input.dtype == torch.bool or input.is_complex():
        raise NotImplementedError(f"pad2d is not implemented for {input.dtype}")
    if not all(isinstance(width, (int, torch.SymInt)) for width in pad):
        raise TypeError(f"pad2d: pad must be a tuple of ints, but got {pad!r}")
    x, unbatched = batched(input, "pad2d")
    left, right, top, bottom = pad
    if x.shape[2] + top + bottom < 0 or x.shape[3] + left + right < 0:
        raise RuntimeError(f"Padding {tuple(pad)} crops more pixels than the input {list(x.shape)} has")
    if mode == "circular":
        # Circular padding wraps the cropped image around. Reflection reads pixels of the whole image.
        x = x[:, :, max(-top, 0) : max(x.shape[2] + min(bottom, 0), 0), max(-left, 0) : max(x.shape[3] + min(right, 0), 0)]
        left, right, top, bottom = (max(width, 0) for width in pad)
    elif 0 in x.shape[1:]:
        raise RuntimeError(f"pad2d: expected input with non-zero size for all but the batch axis, but got {list(x.shape)}")
    for axis, widths in ((3, (left, right)), (2, (top, bottom))):
        if mode == "reflect" and max(widths) >= x.shape[axis]:
            raise RuntimeError(
                f"Padding size should be less than the corresponding input dimension, but got: padding {widths} at "
                f"dimension {axis} of input {list(x.shape)}"
            )
        if mode == "circular" and max(widths) > x.shape[axis]:
            raise RuntimeError(
                f"Padding value causes wrapping around more than once: {widths} at dimension {axis} of {list(x.shape)}"
            )
    x = x if mode == "circular" else autocast_to_float32(x, "pad2d")
    y = PadForward.call(x, (left, right, top, bottom), mode)
    return y.squeeze(0) if unbatched else y
