"""2-D max and average pooling: `max_pool2d`, `avg_pool2d`, `MaxPool2d` and `AvgPool2d`.

`size` is the (height, width) of a Function's result; in MaxPool2dPick, of x.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.kernels.runtime.layout import is_channels_last

from .function import FLOATS, Function
from .public import functional, layer
from .window import IntOrPair, Pair, batched, cached_sizes, check_flag, integer, pair, windows

__all__ = ["AvgPool2d", "MaxPool2d", "avg_pool2d", "max_pool2d"]

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class MaxPool2dForward(Function):
    """The maxima of a max pooling, and their codes: the position of each maximum within its window."""

    kept = (1,)
    with_gradient = 1

    @staticmethod
    def forward(x: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Tensor, Tensor]:
        return ops.max_pool2d_forward(x, size, kernel, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> Tensor:
        (codes,), (_, *window) = ctx.saved_tensors, ctx.constants
        return MaxPool2dBackward.call(dy, codes, ctx.shape[2:], *window)

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        tx: Any = tangents[0]
        _, _, *window = inputs
        return MaxPool2dPick.call(tx, output[1], tx.shape[2:], *window), None


class MaxPool2dBackward(Function):
    """dx of a max pooling; linear in dy."""

    kept = ("codes",)

    @staticmethod
    def forward(dy: Tensor, codes: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        return ops.max_pool2d_backward(dy, codes, size, kernel, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Tensor:
        (codes,) = ctx.saved_tensors
        return MaxPool2dPick.call(ddx, codes, *ctx.constants)


class MaxPool2dPick(Function):
    """The adjoint of MaxPool2dBackward: the values of x at the maxima of a max pooling."""

    kept = ("codes",)

    @staticmethod
    def forward(x: Tensor, codes: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        return ops.max_pool2d_pick(x, codes, size, kernel, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (codes,) = ctx.saved_tensors
        return MaxPool2dBackward.call(dy, codes, *ctx.constants)


class AvgPool2dForward(Function):
    """y of an average pooling; linear in x. Saves no tensor: its gradient needs only the size and the memory format of x."""

    @staticmethod
    def forward(
        x: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool, divisor: int | None
    ) -> Tensor:
        return ops.avg_pool2d_forward(x, size, kernel, stride, padding, count_include_pad, divisor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, *window = inputs
        ctx.size, ctx.window, ctx.channels_last = x.shape[2:], tuple(window), is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return AvgPool2dBackward.call(dy, ctx.size, *ctx.window, ctx.channels_last)


class AvgPool2dBackward(Function):
    """dx of an average pooling, the adjoint of AvgPool2dForward."""

    @staticmethod
    def forward(
        dy: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool, divisor: int | None,
        channels_last: bool,
    ) -> Tensor:  # fmt: skip
        return ops.avg_pool2d_backward(dy, size, kernel, stride, padding, count_include_pad, divisor, channels_last)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Tensor:
        _, *window, _ = ctx.constants
        return AvgPool2dForward.call(ddx, ctx.shape[2:], *window)


@functional
def max_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each window, as `torch.nn.functional.max_pool2d`.

    If a window contains NaN, its result is NaN. If its maximum occurs several times, the first position is returned and gets
    the gradient. If all dilated taps of a window are outside the image, its result is the lowest value of the dtype, and no
    pixel gets its gradient.

    Args:
        input: (N, C, H, W) or (C, H, W); integers too.
        kernel_size: (R, S).
        stride: in pixels; None means `kernel_size`.
        padding: in pixels, at most half of `kernel_size`; a padding pixel is never the maximum.
        ceil_mode: keep a last window that extends beyond the far edge, if it starts inside the image or the near padding.
        return_indices: also return the position of each maximum in its flattened (H, W) plane, int64.

    Returns:
        (N, C, P, Q) with (P, Q) from `conv_output_size`; with `ceil_mode`, the quotient in its formula is rounded up.

    Raises:
        RuntimeError: an invalid window, as in torch.
        NotImplementedError: another dtype.
    """
    if input.dtype not in (*FLOATS, *INTEGERS):
        raise NotImplementedError(f"max_pool2d is not implemented for {input.dtype}")
    x, unbatched = _image(input, "max_pool2d")
    size, *window = max_pool2d_windows(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y, codes = MaxPool2dForward.call(x, size, *window)
    y = y.squeeze(0) if unbatched else y
    if not return_indices:
        return y
    indices = ops.max_pool2d_pick(None, codes, x.shape[2:], *window)  # without an image it returns indices
    return y, indices.squeeze(0) if unbatched else indices


@functional
def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, as `torch.nn.functional.avg_pool2d`.

    Args:
        input: (N, C, H, W) or (C, H, W); floating-point, or int64, whose means are truncated.
        kernel_size: (R, S).
        stride: in pixels; None means `kernel_size`.
        padding: in pixels, at most half of `kernel_size`.
        ceil_mode: keep a last window that extends beyond the far edge, if it starts inside the image or the near padding.
        count_include_pad: divide by the number of window pixels inside the image or its padding; if False, inside the image.
            Window pixels beyond the far padding never count.
        divisor_override: divide by this number instead.

    Returns:
        (N, C, P, Q) with (P, Q) from `conv_output_size`; with `ceil_mode`, the quotient in its formula is rounded up.

    Raises:
        RuntimeError: an invalid window, as in torch, or a divisor of 0.
        NotImplementedError: another dtype.
    """
    if input.dtype not in (*FLOATS, torch.int64):
        raise NotImplementedError(f"avg_pool2d is not implemented for {input.dtype}")
    x, unbatched = _image(input, "avg_pool2d")
    kernel, stride, padding = _window(kernel_size, stride, padding, "avg_pool2d")
    check_flag(ceil_mode, "ceil_mode", "avg_pool2d")
    check_flag(count_include_pad, "count_include_pad", "avg_pool2d")
    if divisor_override is not None:
        divisor_override = integer(divisor_override, "avg_pool2d: divisor_override must be an int", scalar=True)
    if divisor_override == 0:
        raise RuntimeError("avg_pool2d: divisor must be not zero")
    size = _output_size(x.shape, kernel, stride, padding, (1, 1), ceil_mode, "avg_pool2d")
    y = AvgPool2dForward.call(x, size, kernel, stride, padding, count_include_pad, divisor_override)
    return y.squeeze(0) if unbatched else y


def max_pool2d_windows(
    shape: Sequence[int],
    kernel_size: IntOrPair,
    stride: IntOrPair | None,
    padding: IntOrPair,
    dilation: IntOrPair,
    ceil_mode: bool,
) -> tuple[Pair, Pair, Pair, Pair, Pair]:
    """(P, Q), kernel, stride, padding and dilation of a max pooling of (N, C, H, W), with the exceptions of `max_pool2d`."""
    kernel, stride, padding = _window(kernel_size, stride, padding, "max_pool2d")
    dilation = pair(dilation, "dilation", "max_pool2d")
    check_flag(ceil_mode, "ceil_mode", "max_pool2d")
    if min(dilation) <= 0:
        raise RuntimeError(f"max_pool2d: dilation must be greater than zero, but got {dilation}")
    size = _output_size(shape, kernel, stride, padding, dilation, ceil_mode, "max_pool2d")
    return size, kernel, stride, padding, dilation


def _image(input: Tensor, operator: str) -> tuple[Tensor, bool]:
    """`input` with a batch axis, and whether the axis was added."""
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"{operator}: non-empty 3D or 4D (batch mode) tensor expected for input, but got size {list(input.shape)}"
        )
    return batched(input, operator)


def _window(kernel_size: Any, stride: Any, padding: Any, operator: str) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding as pairs; raises torch's exceptions."""
    kernel = pair(kernel_size, "kernel_size", operator)
    stride = kernel if stride is None or isinstance(stride, (list, tuple)) and not stride else pair(stride, "stride", operator)
    padding = pair(padding, "padding", operator)
    if any(n <= 0 for n in kernel):  # not min(): in torch.compile these may be symbols, such as the size of an image
        raise RuntimeError(f"{operator}: kernel size should be greater than zero, but got {kernel}")
    if any(n <= 0 for n in stride):
        raise RuntimeError(f"{operator}: stride should not be zero, but got {stride}")
    for p, k in zip(padding, kernel, strict=True):
        if p < 0:
            raise RuntimeError(f"{operator}: pad must be non-negative, but got pad: {p}")
        if p > k // 2:  # the kernel without its dilation
            raise RuntimeError(
                f"{operator}: pad should be at most half of effective kernel size, but got pad={p} and kernel_size={k}"
            )
    return kernel, stride, padding


@cached_sizes
def _output_size(
    shape: Sequence[int], kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool, operator: str
) -> Pair:
    """(P, Q); raises torch's exceptions."""
    if 0 in shape[1:]:
        raise RuntimeError(
            f"Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input to {operator}, but got: "
            f"{list(shape)}"
        )
    size = []
    for n, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True):
        count = windows(n + 2 * p, k, s, d, ceil_mode)
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        if count < 1:
            raise RuntimeError(
                f"Given input size: ({'x'.join(map(str, shape[1:]))}). {operator} with kernel size {kernel}, "
                f"stride {stride}, padding {padding} and dilation {dilation}: Output size is too small"
            )
        size.append(count)
    return size[0], size[1]


@layer
class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d on `max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


@layer
class AvgPool2d(nn.AvgPool2d):
    """torch.nn.AvgPool2d on `avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return avg_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override
        )
