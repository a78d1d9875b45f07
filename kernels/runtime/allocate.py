"""Allocation of uninitialised tensors. A launcher allocates with these functions only, so that its plan has all of them."""

from typing import Any

import torch
from torch import Tensor

from .layout import Ints, is_channels_last
from .plan import current_plan


def empty(like: Tensor, shape: Ints, channels_last: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor, in channels_last or contiguous order."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return _in_plan(torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format))


def empty_like(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor with the shape and, if `like` is dense, the strides of `like`."""
    return _in_plan(torch.empty_like(like, dtype=dtype))


def empty_elementwise(*operands: Tensor) -> Tensor:
    """An uninitialised tensor like the result of torch's elementwise operators: dense, in the memory order of the operands.

    Args:
        operands: of one shape; any floating dtypes, or one integer dtype.
    """
    first, dtypes = operands[0], {operand.dtype for operand in operands}
    dtype = torch.float32 if len(dtypes) == 2 and max(t.itemsize for t in dtypes) == 2 else widest(*operands)
    if all(operand.is_contiguous() for operand in operands):  # for any strides of axes of one element
        return empty(first, first.shape, dtype=dtype)
    if all(operand.dim() == 4 and operand.is_contiguous(memory_format=torch.channels_last) for operand in operands):
        return empty(first, first.shape, channels_last=True, dtype=dtype)
    strides = torch._prims_common.compute_elementwise_output_strides(*operands)
    return _in_plan(torch.empty_strided(first.shape, strides, dtype=dtype, device=first.device))


def widest(*tensors: Tensor) -> torch.dtype:
    """The dtype with the most bits."""
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)


def empty_resized(image: Tensor, size: Ints, *_: Any) -> Tensor:
    """An uninitialised image with the height and width `size`, channels_last if `image` (N, C, H, W) is.

    As a fake twin (op.py) it takes the other arguments of its operator, and ignores them.
    """
    return empty(image, (*image.shape[:2], *size), is_channels_last(image))


def _in_plan(tensor: Tensor) -> Tensor:
    """Add a tensor to the current plan, if there is one."""
    plan = current_plan()
    if plan is not None:
        plan.allocations.append(tensor)
    return tensor
