"""Resizing: `interpolate`, `Upsample`, `UpsamplingBilinear2d` and `UpsamplingNearest2d`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops

from .adaptive_pool2d import adaptive_avg_pool2d
from .function import FLOATS, Function, autocast_to_float32
from .public import functional, layer
from .window import Pair, check_flag, integer, real

__all__ = ["Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d", "interpolate"]


class ResizeForward(Function):
    """y of a resizing, (N, C, *size); linear in x. `option`: align_corners if bilinear or antialiased; exact if nearest."""

    @staticmethod
    def forward(x: Tensor, kind: str, size: Pair, factors: tuple[float, ...], option: bool) -> Tensor:
        return KINDS[kind][0](x, size, factors, option)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        kind, _, *how = ctx.constants
        return ResizeBackward.call(dy, kind, ctx.shape[2:], *how)


class ResizeBackward(Function):
    """dx of a resizing, (N, C, *size): the adjoint of ResizeForward."""

    @staticmethod
    def forward(dy: Tensor, kind: str, size: Pair, factors: tuple[float, ...], option: bool) -> Tensor:
        return KINDS[kind][1](dy, size, factors, option)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Tensor:
        kind, _, *how = ctx.constants
        return ResizeForward.call(ddx, kind, ctx.shape[2:], *how)


# The forward and the backward operator of each kind of resizing, called with (image, size of the result, factors, option).
KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "bilinear": (ops.bilinear2d_forward, ops.bilinear2d_backward),
    "antialiased": (ops.antialias2d_forward, ops.antialias2d_backward),
    "nearest": (ops.nearest2d_forward, ops.nearest2d_backward),
}
MODES = ("nearest", "nearest-exact", "bilinear", "area")


@functional
def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize 2-D images, as `torch.nn.functional.interpolate`.

    Args:
        input: (N, C, H, W); float16, bfloat16, float32 or float64, or uint8, with rounded results.
        size: (P, Q), or one number for both.
        scale_factor: given instead of a size. P = floor(H * scale_factor), and the scale is 1 / scale_factor input pixels per
            output pixel.
        mode: "nearest", "nearest-exact", "bilinear" or "area" (the same as `adaptive_avg_pool2d`).
        align_corners: only for bilinear: align the centres of the corner pixels instead of their outer edges.
        recompute_scale_factor: compute the size from `scale_factor`, but use the scale H / P.
        antialias: only for bilinear: when shrinking, average all input pixels covered by an output pixel.

    Returns:
        (N, C, P, Q), in the memory format of `input`.

    Raises:
        ValueError: both or neither of size and scale_factor, a wrong number of them, or an option of another mode.
        RuntimeError: an input or output without pixels or channels.
        NotImplementedError: another mode, dtype or number of axes.
    """
    if mode not in MODES:
        raise NotImplementedError(f"interpolate: mode must be one of {', '.join(MODES)}, but got {mode!r}")
    if mode != "bilinear" and align_corners is not None:
        raise ValueError(f"align_corners option can only be set with the interpolating modes: bilinear, but got mode={mode!r}")
    if size is not None and scale_factor is not None:
        raise ValueError("only one of size or scale_factor should be defined")
    if align_corners is not None:
        check_flag(align_corners, "align_corners", "interpolate")
    if size is None and scale_factor is None:
        raise ValueError("either size or scale_factor should be defined")
    sizes, factors = _of_each_axis(size, "output size", input), _of_each_axis(scale_factor, "scale_factor", input)
    if recompute_scale_factor and size is not None:
        raise ValueError("recompute_scale_factor is not meaningful with an explicit size.")
    if antialias and (mode != "bilinear" or input.dim() != 4):
        raise ValueError(
            "Anti-alias option is restricted to bilinear modes and requires a 4-D tensor as input, but got "
            f"mode={mode!r} and {input.dim()} axes"
        )
    if input.dim() != 4:
        raise NotImplementedError(f"Got {input.dim()}D input, but interpolate needs 4D input (N, C, H, W)")
    if factors and torch.compiler.is_compiling():
        # A Function does not accept a size computed from a symbolic factor: specialise the graph on these factors, like torch.
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        factors = guard_scalar(factors[0]), guard_scalar(factors[1])
    by_factor = bool(factors) and not recompute_scale_factor and mode != "area"
    if by_factor:
        factors = tuple(_factor(factor) for factor in factors)
    if factors:  # floats, or, if only the size depends on them, values of any type that can be multiplied
        sizes = tuple(torch.sym_int(n * factor) for n, factor in zip(input.shape[2:], factors, strict=True))
    out = tuple(integer(n, "expected size to be one of int or Tuple[int, int]") for n in sizes)
    if mode == "area":
        return adaptive_avg_pool2d(input, out)
    if input.dtype not in (*FLOATS, torch.uint8):
        raise NotImplementedError(f"interpolate: expected float16, bfloat16, float32, float64 or uint8, but got {input.dtype}")
    if 0 in input.shape[2:] or out[0] <= 0 or out[1] <= 0:
        raise RuntimeError(
            f"Input and output sizes should be greater than 0, but got input (H: {input.shape[2]}, W: {input.shape[3]}) output "
            f"(H: {out[0]}, W: {out[1]})"
        )
    if input.shape[1] == 0:
        raise RuntimeError(f"Non-empty 4D data tensor expected but got a tensor with sizes {list(input.shape)}")
    kind = "antialiased" if antialias else mode.removesuffix("-exact")
    option = bool(align_corners) if mode == "bilinear" else mode == "nearest-exact"
    return ResizeForward.call(autocast_to_float32(input, "interpolate"), kind, out, factors if by_factor else (), option)


def _factor(value: Any) -> float:
    """A scale factor as a float."""
    expected = "expected scale_factor to be one of float or Tuple[float, float]"
    if isinstance(value, Tensor):
        raise TypeError(f"{expected}, but got {value!r}")
    factor = real(value, expected)
    if not abs(factor) < 2**63:
        raise RuntimeError(f"interpolate: scale_factor must be finite, and smaller than 2^63, but got {factor}")
    return factor


def _of_each_axis(value: Any, name: str, input: Tensor) -> tuple[Any, ...]:
    """One value for each image axis; empty for None."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        return (value,) * (input.dim() - 2)
    if len(value) != input.dim() - 2:
        raise ValueError(
            f"Input and {name} must have the same number of spatial dimensions, but got input with spatial dimensions of "
            f"{list(input.shape[2:])} and {name} of {value}"
        )
    return tuple(value)


@layer
class Upsample(nn.Upsample):
    """torch.nn.Upsample on `interpolate`."""

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor)


@layer
class UpsamplingBilinear2d(nn.UpsamplingBilinear2d):
    """torch.nn.UpsamplingBilinear2d on `interpolate`."""

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(input, self.size, self.scale_factor, self.mode, self.align_corners)


@layer
class UpsamplingNearest2d(nn.UpsamplingNearest2d):
    """torch.nn.UpsamplingNearest2d on `interpolate`."""

    def forward(self, input: Tensor) -> Tensor:
        return interpolate(input, self.size, self.scale_factor, self.mode)
