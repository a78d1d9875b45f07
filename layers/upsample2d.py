"""Bilinear upsampling: `interpolate`, `Upsample` and `UpsamplingBilinear2d`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.layers.function import Function
from trinn.layers.window import Pair


class BilinearForward(Function):
    """y of a bilinear interpolation; linear in x."""

    @staticmethod
    def forward(x: Tensor, size: Pair, scales: tuple[float, float], align_corners: bool) -> Tensor:
        return ops.bilinear2d_forward(x, size, scales, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.scales, ctx.align_corners = inputs
        ctx.size = x.shape[2:]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return BilinearBackward.call(dy, ctx.size, ctx.scales, ctx.align_corners), None, None, None


class BilinearBackward(Function):
    """dx of a bilinear interpolation, the adjoint of BilinearForward."""

    @staticmethod
    def forward(dy: Tensor, size: Pair, scales: tuple[float, float], align_corners: bool) -> Tensor:
        return ops.bilinear2d_backward(dy, size, scales, align_corners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, _, ctx.scales, ctx.align_corners = inputs
        ctx.size = dy.shape[2:]

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
        return BilinearForward.call(ddx, ctx.size, ctx.scales, ctx.align_corners), None, None, None


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """An image resized, as `torch.nn.functional.interpolate`; of the modes, bilinear.

    Args:
        input: (N, C, H, W); float16, bfloat16, float32 or float64.
        size: (P, Q), or one number for both.
        scale_factor: instead of a size: P = floor(H * scale_factor), and coordinates advance by 1 / scale_factor.
        align_corners: the centres of the corner pixels coincide, not their outer edges.
        recompute_scale_factor: take the size from the factor, but advance by H / P.

    Returns:
        (N, C, P, Q), in the memory format of `input`.

    Raises:
        ValueError: both or neither of size and scale_factor, or of the wrong length.
        RuntimeError: an image of no pixels, before or after.
        NotImplementedError: another mode, antialiasing, or another dtype or number of axes.
    """
    if mode != "bilinear" or antialias:
        raise NotImplementedError(f"interpolate: only mode='bilinear' without antialias is there, but got mode={mode!r}")
    if size is not None and scale_factor is not None:
        raise ValueError("only one of size or scale_factor should be defined")
    if recompute_scale_factor and size is not None:
        raise ValueError("recompute_scale_factor is not meaningful with an explicit size.")
    if input.dim() != 4:
        raise NotImplementedError(f"Got {input.dim()}D input, but bilinear mode needs 4D input")
    factors = None
    if size is not None:
        out = _both(size, "output size", input)
    elif scale_factor is not None:
        factors = _both(scale_factor, "scale_factor", input)
        if torch.compiler.is_compiling():
            # torch.compile cannot hand sizes made of symbolic floats to a Function: compile for these factors.
            from torch.fx.experimental.symbolic_shapes import guard_scalar

            factors = guard_scalar(factors[0]), guard_scalar(factors[1])
        out = tuple(math.floor(n * factor) for n, factor in zip(input.shape[2:], factors, strict=True))
    else:
        raise ValueError("either size or scale_factor should be defined")
    if not input.is_floating_point():
        raise NotImplementedError(f"interpolate: expected float16, bfloat16, float32 or float64, but got {input.dtype}")
    if min(*input.shape[2:], *out) <= 0:
        raise RuntimeError(
            f"Input and output sizes should be greater than 0, but got input (H: {input.shape[2]}, W: {input.shape[3]}) output "
            f"(H: {out[0]}, W: {out[1]})"
        )
    if input.shape[1] == 0:
        raise RuntimeError(f"Non-empty 4D data tensor expected but got a tensor with sizes {list(input.shape)}")
    given = factors if factors is not None and not recompute_scale_factor else (None, None)
    scales = tuple(_scale(n, p, f, bool(align_corners)) for n, p, f in zip(input.shape[2:], out, given, strict=True))
    return BilinearForward.call(input, out, scales, bool(align_corners))


def _both(value: Any, name: str, input: Tensor) -> tuple[Any, Any]:
    """A value for each of the two axes."""
    values = tuple(value) if isinstance(value, (Sequence, torch.Size)) else (value, value)
    if len(values) != 2:
        raise ValueError(
            f"Input and {name} must have the same number of spatial dimensions, but got input with spatial dimensions of "
            f"{list(input.shape[2:])} and {name} of {value}"
        )
    if name == "output size" and not all(isinstance(v, (int, torch.SymInt)) for v in values):
        raise TypeError(
            f"expected size to be one of int or Tuple[int, int], but got size with types {[type(v) for v in values]}"
        )
    return values[0], values[1]


def _scale(size: int, out: int, factor: float | None, align_corners: bool) -> float:
    """Input pixels an output pixel."""
    if align_corners:
        return (size - 1) / (out - 1) if out > 1 else 0.0
    return 1 / factor if factor is not None else size / out


class Upsample(nn.Upsample):
    """torch.nn.Upsample on `interpolate`."""

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor)


class UpsamplingBilinear2d(nn.UpsamplingBilinear2d):
    """torch.nn.UpsamplingBilinear2d on `interpolate`."""

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners)
