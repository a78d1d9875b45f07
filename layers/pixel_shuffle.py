"""Pixel shuffle and its inverse: `pixel_shuffle`, `pixel_unshuffle`, `PixelShuffle` and `PixelUnshuffle`."""

from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops

from .function import FLOATS, Function
from .public import functional, layer
from .window import integer

__all__ = ["PixelShuffle", "PixelUnshuffle", "pixel_shuffle", "pixel_unshuffle"]

_DTYPES = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Shuffle(Function):
    """y, with r^2 channels of x as r x r pixels; linear in x."""

    @staticmethod
    def forward(x: Tensor, factor: int) -> Tensor:
        return ops.pixel_shuffle(x, factor)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return Unshuffle.call(dy, *ctx.constants)


class Unshuffle(Function):
    """The inverse and adjoint of Shuffle."""

    @staticmethod
    def forward(x: Tensor, factor: int) -> Tensor:
        return ops.pixel_unshuffle(x, factor)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return Shuffle.call(dy, *ctx.constants)


@functional
def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """Rearrange r^2 channels as r x r pixels, as `torch.nn.functional.pixel_shuffle`, for r = upscale_factor.

    Args:
        input: (*, C r^2, H, W), any number of leading axes; integers and bool too.

    Returns:
        (*, C, H r, W r), channels_last if `input` is: y[.., c, h r + i, w r + j] = input[.., c r^2 + i r + j, h, w].

    Raises:
        RuntimeError: fewer than three axes, a factor below 1, or channels not divisible by its square.
        ValueError: the square of the factor exceeds 64 bits.
        TypeError: a factor that is no integer.
        NotImplementedError: complex input, unsigned integers of more than 8 bits, or 8-bit floats.
    """
    factor = _factor(input, upscale_factor, "pixel_shuffle", "upscale_factor")
    if factor**2 >= 2**63:
        raise ValueError(f"upscale factor is too large, (upscale_factor)^2 overflowed: upscale_factor={factor}")
    if input.shape[-3] % factor**2:
        raise RuntimeError(
            "pixel_shuffle expects its input's 'channel' dimension to be divisible by the square of upscale_factor, but "
            f"input.size(-3)={input.shape[-3]} is not divisible by {factor**2}"
        )
    return Shuffle.call(input, factor)


@functional
def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """Rearrange r x r pixels as r^2 channels, as `torch.nn.functional.pixel_unshuffle`, for r = downscale_factor.

    Args:
        input: (*, C, H r, W r), any number of leading axes; integers and bool too.

    Returns:
        (*, C r^2, H, W), channels_last if `input` is: the inverse of `pixel_shuffle`.

    Raises:
        RuntimeError: fewer than three axes, a factor below 1, or a height or width not divisible by it.
        TypeError, ValueError, NotImplementedError: as in `pixel_shuffle`.
    """
    factor = _factor(input, downscale_factor, "pixel_unshuffle", "downscale_factor")
    for name, axis in (("height", -2), ("width", -1)):
        if input.shape[axis] % factor:
            raise RuntimeError(
                f"pixel_unshuffle expects {name} to be divisible by downscale_factor, but input.size({axis})="
                f"{input.shape[axis]} is not divisible by {factor}"
            )
    return Unshuffle.call(input, factor)


def _factor(input: Tensor, value: int, operator: str, name: str) -> int:
    """The factor as an int; raises the exceptions of both functions."""
    factor = integer(value, f"{operator}(): argument '{name}' (position 2) must be int", scalar=True)
    if input.dim() < 3:
        raise RuntimeError(
            f"{operator} expects input to have at least 3 dimensions, but got input with {input.dim()} dimension(s)"
        )
    if factor <= 0:
        raise RuntimeError(f"{operator} expects a positive {name}, but got {factor}")
    if input.dtype not in _DTYPES:
        raise NotImplementedError(f"{operator} is not implemented for {input.dtype}")
    return factor


@layer
class PixelShuffle(nn.PixelShuffle):
    """torch.nn.PixelShuffle on `pixel_shuffle`."""

    def forward(self, input: Tensor) -> Tensor:
        return pixel_shuffle(input, self.upscale_factor)


@layer
class PixelUnshuffle(nn.PixelUnshuffle):
    """torch.nn.PixelUnshuffle on `pixel_unshuffle`."""

    def forward(self, input: Tensor) -> Tensor:
        return pixel_unshuffle(input, self.downscale_factor)
