"""2-D max unpooling: `max_unpool2d` and `MaxUnpool2d`.

The gradient of x has the memory format of x. Two Functions save this format instead of x, in their own `setup_context`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.kernels.runtime.layout import is_channels_last

from .function import FLOATS, Function, autocast_to_float32
from .public import functional, layer
from .window import IntOrPair, Pair, batched, pair, reach

__all__ = ["MaxUnpool2d", "max_unpool2d"]


class MaxUnpool2dForward(Function):
    """y of a max unpooling: each value of x at its index, zeros elsewhere."""

    @staticmethod
    def forward(x: Tensor, indices: Tensor, size: Pair) -> Tensor:
        return ops.max_unpool2d_forward(x, indices, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, indices, _ = inputs
        ctx.save_for_backward(indices)
        ctx.channels_last = is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (indices,) = ctx.saved_tensors
        return MaxUnpool2dBackward.call(dy, indices, ctx.channels_last)


class MaxUnpool2dBackward(Function):
    """dx of a max unpooling: dy at the indices. As in torch, values of x overwritten by a later value get this gradient too."""

    kept = ("indices",)

    @staticmethod
    def forward(dy: Tensor, indices: Tensor, channels_last: bool) -> Tensor:
        return ops.max_unpool2d_backward(dy, indices, channels_last)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Tensor:
        (indices,) = ctx.saved_tensors
        return MaxUnpool2dAdd.call(ddx, indices, ctx.shape[2:])


class MaxUnpool2dAdd(Function):
    """The adjoint of MaxUnpool2dBackward: like MaxUnpool2dForward, but values with the same index are added."""

    @staticmethod
    def forward(x: Tensor, indices: Tensor, size: Pair) -> Tensor:
        return ops.max_unpool2d_add(x, indices, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, indices, _ = inputs
        ctx.save_for_backward(indices)
        ctx.channels_last = is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (indices,) = ctx.saved_tensors
        return MaxUnpool2dBackward.call(dy, indices, ctx.channels_last)


@functional
def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """A partial inverse of max pooling, as `torch.nn.functional.max_unpool2d`: the maxima at their positions, zeros elsewhere.

    If the windows overlapped, several values may have the same index. The last one, in row-major order of (P, Q), is used on
    every run; torch's choice is not deterministic.

    Args:
        input: (N, C, P, Q) or (C, P, Q), the output of a max pooling.
        indices: the indices returned by the pooling; the shape of `input`, int64.
        kernel_size, stride, padding: the same as in the pooling.
        output_size: (H, W) or (N, C, H, W), the size of the pooling's input. It must differ from the default by less than one
            stride.

    Returns:
        (N, C, H, W). (H, W) is `output_size`; by default H = (P - 1) * stride - 2 * padding + kernel_size, W likewise.

    Raises:
        ValueError: an impossible output_size.
        RuntimeError: indices of another shape, dtype or device, or outside the output.
        NotImplementedError: an input that is not floating-point.
    """
    kernel, padding = pair(kernel_size, "kernel_size", "max_unpool2d"), pair(padding, "padding", "max_unpool2d")
    stride = kernel if stride is None else pair(stride, "stride", "max_unpool2d")
    size = _output_size(input, kernel, stride, padding, output_size)
    if indices.dtype != torch.int64:
        raise RuntimeError(f"max_unpool2d: elements in indices should be type int64 but got: {indices.dtype}")
    if input.shape != indices.shape:
        raise RuntimeError(
            f"Expected shape of indices to be same as that of the input tensor ({list(input.shape)}) but got indices tensor "
            f"with shape: {list(indices.shape)}"
        )
    if input.device != indices.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got input on {input.device} and indices on {indices.device}"
        )
    if input.dtype not in FLOATS:
        raise NotImplementedError(f"max_unpool2d is not implemented for {input.dtype}")
    if 0 in input.shape[1:]:
        raise RuntimeError(
            f"max_unpool2d: expected input to have non-zero size for non-batch dimensions, but got {list(input.shape)}"
        )
    x, unbatched = batched(autocast_to_float32(input, "max_unpool2d"), "max_unpool2d")
    indices, _ = batched(indices, "max_unpool2d")
    y = MaxUnpool2dForward.call(x, indices, size)
    return y.squeeze(0) if unbatched else y


def _output_size(input: Tensor, kernel: Pair, stride: Pair, padding: Pair, requested: Sequence[int] | None) -> Pair:
    """(H, W); raises torch's exceptions."""
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"Input to max_unpooling2d should be a 3d or 4d Tensor, but got a tensor with {input.dim()} dimensions."
        )
    default = [reach(n, k, s, 1) - 2 * p for n, k, s, p in zip(input.shape[-2:], kernel, stride, padding, strict=True)]
    size = list(default if requested is None else requested)
    if requested is not None:
        size = size[2:] if len(size) == 4 else size
        if len(size) != 2:
            raise ValueError(
                f"output_size should be a sequence containing 2 or 4 elements, but it has a length of '{len(requested)}'"
            )
        for axis in range(2):
            least, most = default[axis] - stride[axis], default[axis] + stride[axis]
            if not least < size[axis] < most:
                raise ValueError(f'invalid output_size "{requested}" (dim {axis} must be between {least} and {most})')
    if size[0] < 0 or size[1] < 0:
        raise ValueError(f"max_unpooling: output_size must contain non-negative spatial dimensions, but got {size}")
    return size[0], size[1]


@layer
class MaxUnpool2d(nn.MaxUnpool2d):
    """torch.nn.MaxUnpool2d on `max_unpool2d`."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)
