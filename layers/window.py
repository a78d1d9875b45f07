"""The geometry of sliding windows: output sizes, and the checks of arguments, with torch's messages.

The near edges of an image are the top and the left one, the far edges the bottom and the right one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["conv_output_size", "conv_transpose_output_size"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Pair = tuple[int, int]
IntOrPair = int | Sequence[int]

# Arguments must be less than this, so that sums of a few of them fit the kernels' int32.
LARGEST = 2**29


def cached_sizes(function: Decorated) -> Decorated:
    """Decorate a function of sizes and options: cache its results."""
    cached = functools.lru_cache(maxsize=4096, typed=True)(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args)
        try:
            return cached(*args)
        except TypeError:  # symbolic sizes have no hash
            return function(*args)

    return cast(Decorated, call)


def real_scalar(value: Any, expected: str) -> float:
    """`real` for a parameter that torch calls a Number: also a complex number on the real axis, no integer of over 64 bits.

    Raises:
        TypeError: another value.
        RuntimeError: a complex number off the real axis.
        OverflowError: an integer of more than 64 bits.
    """
    if isinstance(value, complex):
        if value.imag:
            raise RuntimeError(f"value cannot be converted to type float without overflow: {expected}, but got {value}")
        return value.real
    if isinstance(value, int) and abs(value) >= 2**64:
        raise OverflowError(f"int too big to convert: {expected}, but got {value}")
    value = real(value, expected)
    # A float that TorchDynamo treats as symbolic becomes a constant by `hex`.
    return float.fromhex(value.hex()) if torch.compiler.is_compiling() else value


def integer(value: Any, expected: str, scalar: bool = False) -> int:
    """Convert an integer of Python, NumPy or torch to int.

    Args:
        expected: the start of the exception's message.
        scalar: also refuse arrays, tensors with axes and bool tensors, as torch does for some arguments.

    Raises:
        TypeError: any other value, or a bool.
        ValueError: a number of more than 64 bits.
    """
    if isinstance(value, torch.SymInt) or type(value) is int and -(2**63) <= value < 2**63:  # keep torch.compile's symbols
        return cast(int, value)
    if isinstance(value, Tensor):
        valid = value.numel() == 1 and not (value.is_floating_point() or value.is_complex())
        valid = valid and not (scalar and (value.dim() > 0 or value.dtype == torch.bool))
    else:  # a NumPy array without axes has __len__ too, though calling it raises
        valid = hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0
        valid = valid and not (scalar and hasattr(value, "__len__"))
    if not valid:
        raise TypeError(f"{expected}, but got {value!r}")
    if not -(2**63) <= index(value) < 2**63:
        raise ValueError(f"{expected}, of 64 bits, but got {value!r}")
    return index(value)


def real(value: Any, expected: str) -> float:
    """Convert a real number of Python, NumPy or torch (a tensor without axes) to float.

    Args:
        expected: the start of the exception's message.

    Raises:
        TypeError: any other value, or a tensor that requires a gradient.
    """
    if type(value) is float or isinstance(value, (torch.SymFloat, torch.SymInt)):
        return cast(float, value)
    if isinstance(value, Tensor):
        valid = value.dim() == 0 and not (value.requires_grad or value.is_complex())
    else:
        valid = isinstance(value, (int, float)) or _is_numpy_scalar(value)
    if not valid:
        raise TypeError(f"{expected}, but got {value!r}")
    return float(value)


def _is_numpy_scalar(value: Any) -> bool:
    """Whether a value is a NumPy scalar: a real number or a bool."""
    return type(value).__module__ == "numpy" and not hasattr(value, "__len__") and value.dtype.kind in "biuf"


def check_flag(value: Any, name: str, operator: str) -> None:
    """Raise torch's exception for an option that is not a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{operator}(): argument '{name}' must be bool, not {type(value).__name__}")


def pair(value: Any, name: str, operator: str, limit: float = LARGEST) -> Pair:
    """One value for each image axis, from a pair or from one number for both.

    Raises:
        RuntimeError: a sequence of another length, or a number of `limit` or more.
        TypeError: a value that is not an integer.
    """
    if type(value) is int and value < limit:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and max(value) < limit:
        return value
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    values = tuple(integer(v, f"{operator}: {name} must be an int or a tuple of 2 ints") for v in values)
    if any(v >= limit for v in values):
        raise RuntimeError(f"{operator}: {name} must be less than 2^29, but got {value!r}")
    if len(values) == 1:
        return values[0], values[0]
    if len(values) != 2:
        raise RuntimeError(f"{operator}: {name} must be an int or a tuple of 2 ints, but got {value!r}")
    return values[0], values[1]


def batched(input: Tensor, operator: str) -> tuple[Tensor, bool]:
    """`input` as (N, C, H, W), and whether it was unbatched, so that the batch axis was added.

    Raises:
        RuntimeError: an input of neither 3 nor 4 axes.
    """
    if input.dim() == 4:
        return input, False
    if input.dim() == 3:
        return input.unsqueeze(0), True
    raise RuntimeError(
        f"Expected 3D (unbatched) or 4D (batched) input to {operator}, but got input of size: {list(input.shape)}"
    )


def conv_output_size(
    size: IntOrPair,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
) -> Pair:
    """The output size (P, Q) of a convolution of an (H, W) image, or of a pooling without `ceil_mode`.

        P = floor((H + 2 * padding - R) / stride) + 1                             without dilation
        P = floor((H + 2 * padding - dilation * (R - 1) - 1) / stride) + 1        with dilation; Q likewise

    Each argument is a pair, or one number for both axes.

    Args:
        size: (H, W).
        kernel_size: (R, S).
        padding: in pixels, at each edge. 'valid' is no padding; 'same' keeps H and W.

    Raises:
        RuntimeError: an image smaller than the window, or invalid arguments, as in torch.
        TypeError: arguments other than integers.
    """
    name = "conv_output_size"
    image, taps = pair(size, "size", name, math.inf), pair(kernel_size, "kernel_size", name)
    stride, dilation = pair(stride, "stride", name), pair(dilation, "dilation", name)
    check_window(taps, stride, dilation, name)
    return conv_windows(image, taps, stride, *conv_padding(padding, taps, stride, dilation), dilation)


def conv_transpose_output_size(
    size: IntOrPair,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
) -> Pair:
    """The output size (P, Q) of a transposed convolution of an (H, W) image.

        P = (H - 1) * stride - 2 * padding + dilation * (R - 1) + output_padding + 1        Q likewise

    Each argument is a pair, or one number for both axes.

    Args:
        size: (H, W).
        kernel_size: (R, S).
        padding: in pixels, removed at each edge.
        output_padding: rows added at the bottom, and columns at the right; less than the larger of stride and dilation.

    Raises:
        RuntimeError: an output without pixels, or invalid arguments, as in torch.
        TypeError: arguments other than integers.
    """
    name = "conv_transpose_output_size"
    image, taps = pair(size, "size", name, math.inf), pair(kernel_size, "kernel_size", name)
    stride, dilation = pair(stride, "stride", name), pair(dilation, "dilation", name)
    padding, extra = pair(padding, "padding", name), pair(output_padding, "output_padding", name)
    check_window(taps, stride, dilation, name)
    return transposed_windows(image, taps, stride, padding, extra, dilation)


def windows(pixels: int, taps: int, stride: int, dilation: int, ceil_mode: bool = False) -> int:
    """The number of windows along an axis of `pixels` pixels, padding included."""
    return (pixels - dilation * (taps - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1


def reach(count: int, taps: int, stride: int, dilation: int) -> int:
    """The number of pixels covered by `count` windows along an axis, padding included; the inverse of `windows`."""
    return (count - 1) * stride + dilation * (taps - 1) + 1


def conv_windows(size: Sequence[int], taps: Sequence[int], stride: Pair, near: Pair, far: Pair, dilation: Pair) -> Pair:
    """(P, Q) of a convolution with padding `near` and `far` at the near and far edges; raises torch's exceptions."""
    (height, width), (rows, columns) = size, taps
    padded = near[0] + height + far[0], near[1] + width + far[1]
    extent = reach(1, rows, 1, dilation[0]), reach(1, columns, 1, dilation[1])
    if padded[0] < extent[0] or padded[1] < extent[1] or height <= 0 or width <= 0:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: ({extent[0]} x {extent[1]}). "
            "Kernel size can't be greater than actual input size"
        )
    return windows(padded[0], rows, stride[0], dilation[0]), windows(padded[1], columns, stride[1], dilation[1])


def transposed_windows(
    size: Sequence[int],
    taps: Sequence[int],
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    images: bool = True,
) -> Pair:
    """(P, Q) of a transposed convolution; raises torch's exceptions.

    Args:
        images: whether the batch has images. If not, torch accepts an output without pixels and any output padding.
    """
    if min(padding) < 0 or min(output_padding) < 0:
        raise RuntimeError(f"negative padding is not supported, but got padding {padding} and output_padding {output_padding}")
    axes = list(zip(size, taps, stride, padding, output_padding, dilation, strict=True))
    if images and any(extra >= max(s, d) for _, _, s, _, extra, d in axes):
        raise RuntimeError(
            f"output padding must be smaller than either stride or dilation, but got output_padding {output_padding}, stride "
            f"{stride}, dilation {dilation}"
        )
    height, width = (reach(n, r, s, d) - 2 * p + extra for n, r, s, p, extra, d in axes)
    least = 1 if images else 0
    if height < least or width < least or size[0] <= 0 or size[1] <= 0:
        raise RuntimeError(
            f"Given input size per channel: ({size[0]} x {size[1]}). Calculated output size per channel: ({height} x {width}). "
            "Output size is too small"
        )
    return height, width


def conv_padding(padding: str | IntOrPair, taps: Sequence[int], stride: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """A convolution's padding at the near and at the far edges. For 'same', the far edges get the pixel of an odd total."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise RuntimeError(f"Invalid padding string: '{padding}', should be one of 'valid', 'same'")
        if stride != (1, 1):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        total = dilation[0] * (taps[0] - 1), dilation[1] * (taps[1] - 1)
        return (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)
    near = pair(padding, "padding", "conv2d")
    if min(near) < 0:
        raise RuntimeError(f"negative padding is not supported, but got {near}")
    return near, near


def check_window(taps: Sequence[int], stride: Pair, dilation: Pair, operator: str) -> None:
    """Raise torch's exception for a kernel size, stride or dilation that is not positive."""
    if min(stride) <= 0:
        raise RuntimeError(f"{operator}: non-positive stride is not supported, but got {stride}")
    if min(dilation) <= 0:
        raise RuntimeError(f"{operator}: dilation should be greater than zero, but got {dilation}")
    if any(n <= 0 for n in taps):  # not min(): the sizes of a weight may be symbols
        raise RuntimeError(f"{operator}: kernel size should be greater than zero, but got {taps}")
