"""Memory layout of tensors: the width of their offsets, their memory format, the order of their axes."""

from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

from .settings import settings

Ints = Sequence[int]  # sizes, strides and the like; (height, width) where two are expected


def index_type(*tensors: Tensor) -> tl.dtype:
    """Integer type of a kernel's offsets: int32, or int64 if a tensor requires it and in the interpreter."""
    return tl.int64 if settings.int64_offsets or exceeds_int32(*tensors) else tl.int32


def exceeds_int32(*tensors: Tensor) -> bool:
    """Whether an offset or the number of elements in one of these tensors may not fit in int32."""
    # Kernels compute offsets before they mask them: masked lanes exceed the last element by up to one block.
    return max(map(_reach, tensors)) >= 2**31 - 2**20


def _reach(tensor: Tensor) -> int:
    """The largest index a kernel computes: the offset of the last element, or the number of elements in an expanded tensor."""
    offset = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return max(offset, tensor.numel())


def is_channels_last(*tensors: Tensor) -> bool:
    """Whether torch's operators return channels_last for these 4-d inputs: one has strides in that order, dense or not."""
    return any(_has_channels_last_strides(t) for t in tensors)


def _has_channels_last_strides(tensor: Tensor) -> bool:
    """Whether strides grow from channels over columns and rows to images. Axes of one element alone do not decide it."""
    if tensor.stride(1) == 0 or 0 in tensor.shape:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        # As in torch, (N, 1, 1, 1) with equal strides of its last three axes counts as contiguous.
        if tensor.stride(axis) < least or (axis == 0 and least == tensor.stride(1)):
            return False
        least = tensor.stride(axis) * tensor.shape[axis]
    return True


def has_one_order(shape: Ints) -> bool:
    """Whether contiguous and channels_last are the same order: the shape (N, C, H, W) has one channel or one pixel."""
    return shape[1] == 1 or (shape[2] == 1 and shape[3] == 1)


def memory_order(*tensors: Tensor, axes: Ints | None = None) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Order and merge the axes of tensors of the same shape, so that a kernel can traverse them with few divisions.

    Two axes become one if, in all tensors, the stride of the outer axis is the size times the stride of the inner axis.

    Args:
        axes: the order of the axes, innermost first; by default the order of the first tensor's strides.

    Returns:
        The sizes of the merged axes, innermost first, and their strides in each tensor.
    """
    first = tensors[0]
    axes = sorted(range(first.dim()), key=first.stride) if axes is None else axes
    merged: list[tuple[int, list[int]]] = []
    for axis in (a for a in axes if first.shape[a] != 1):
        strides = [t.stride(axis) for t in tensors]
        if merged and strides == [merged[-1][0] * stride for stride in merged[-1][1]]:
            merged[-1] = (merged[-1][0] * first.shape[axis], merged[-1][1])
        else:
            merged.append((first.shape[axis], strides))
    merged = merged or [(1, [0] * len(tensors))]
    return tuple(size for size, _ in merged), [tuple(s[i] for _, s in merged) for i in range(len(tensors))]
