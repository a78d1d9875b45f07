"""2-D adaptive average and max pooling: `adaptive_avg_pool2d`, `adaptive_max_pool2d` and their modules.

Adaptive pooling is pooling over bins instead of windows. Its autograd Functions are in pool2d.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops

from .function import FLOATS
from .pool2d import AvgPool2dForward, MaxPool2dForward
from .public import functional, layer
from .window import Pair, batched, integer

__all__ = ["AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"]

OutputSize = int | None | Sequence[int | None]

# The kernel size, stride and padding of adaptive pooling. Given empty tuples, the kernels of pooling compute bins instead.
BINS: tuple[Pair, Pair, Pair] = (), (), ()  # type: ignore[assignment]


@functional
def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize) -> Tensor:
    """The mean of each of P x Q bins, as `torch.nn.functional.adaptive_avg_pool2d`.

    Bin p covers the rows from floor(p * H / P) to ceil((p + 1) * H / P); columns likewise.

    Args:
        input: (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64.
        output_size: (P, Q), or one number for both; None keeps the size of that axis.

    Returns:
        (N, C, P, Q), in the memory format of `input`.

    Raises:
        RuntimeError: not two sizes, a negative size, or an image without pixels.
        ValueError: an input with too few axes for `output_size`.
        NotImplementedError: another dtype.
    """
    x, size, unbatched = _checked(input, output_size, "adaptive_avg_pool2d")
    if 0 in x.shape[2:]:
        raise RuntimeError(_empty_image(input, "adaptive_avg_pool2d"))
    y = AvgPool2dForward.call(x, size, *BINS, True, None)
    return y.squeeze(0) if unbatched else y


@functional
def adaptive_max_pool2d(input: Tensor, output_size: OutputSize, return_indices: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each of P x Q bins, as `torch.nn.functional.adaptive_max_pool2d`.

    The bins are the same as in `adaptive_avg_pool2d`. If a bin contains NaN, its result is NaN. If its maximum occurs several
    times, the first position is returned and gets the gradient.

    Args:
        input: (N, C, H, W) or (C, H, W); float16, bfloat16, float32 or float64.
        output_size: (P, Q), or one number for both; None keeps the size of that axis.
        return_indices: also return the position of each maximum in its flattened (H, W) plane, int64.

    Returns:
        (N, C, P, Q), in the memory format of `input`.

    Raises:
        RuntimeError: not two sizes, a negative size, no channels, or an image without pixels.
        ValueError: an input with too few axes for `output_size`.
        NotImplementedError: another dtype.
    """
    x, size, unbatched = _checked(input, output_size, "adaptive_max_pool2d")
    if 0 in input.shape[1:]:
        raise RuntimeError(_empty_image(input, "adaptive_max_pool2d"))
    y, codes = MaxPool2dForward.call(x, size, *BINS, ())
    y = y.squeeze(0) if unbatched else y
    if not return_indices:
        return y
    indices = ops.max_pool2d_pick(None, codes, x.shape[2:], *BINS, ())  # without an image it returns indices
    return y, indices.squeeze(0) if unbatched else indices


def _checked(input: Tensor, output_size: OutputSize, operator: str) -> tuple[Tensor, Pair, bool]:
    """`input` with a batch axis, the output size (P, Q), and whether the batch axis was added."""
    one = isinstance(output_size, (int, torch.SymInt))
    given: Any = (output_size, output_size) if one else output_size
    if not one and input.dim() <= len(given):
        raise ValueError(f"{operator}: Input dimension should be at least {len(given) + 1}, but got size {list(input.shape)}")
    expected = f"{operator}: output_size must be an int or 2 of int or None"
    sizes = tuple(s if s is None else integer(s, expected) for s in given)
    if len(sizes) != 2:
        raise RuntimeError(f"{operator}: output_size must be 2, but got {output_size!r}")
    if input.dim() not in (3, 4):
        raise RuntimeError(f"{operator}(): Expected 3D or 4D tensor, but got: {list(input.shape)}")
    if input.dtype not in FLOATS:
        raise NotImplementedError(f"{operator}: not implemented for {input.dtype}; float16, bfloat16, float32 and float64 are")
    x, unbatched = batched(input, operator)
    size = tuple(n if s is None else s for s, n in zip(sizes, x.shape[2:], strict=True))
    if size[0] < 0 or size[1] < 0:
        raise RuntimeError(f"{operator}: elements of output_size must be greater than or equal to 0 but received {size}")
    return x, (size[0], size[1]), unbatched


def _empty_image(input: Tensor, operator: str) -> str:
    axis = next(axis for axis in range(1, input.dim()) if input.shape[axis] == 0)
    return (
        f"{operator}(): Expected input to have non-zero size for non-batch dimensions, but input has sizes "
        f"{list(input.shape)} with dimension {axis} being empty"
    )


@layer
class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d on `adaptive_avg_pool2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return adaptive_avg_pool2d(input, self.output_size)


@layer
class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """torch.nn.AdaptiveMaxPool2d on `adaptive_max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return adaptive_max_pool2d(input, self.output_size, self.return_indices)
