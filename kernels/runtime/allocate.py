"""Allocation of uninitialised results."""

from typing import Any

import torch
from torch import Tensor

from .layout import Ints, is_channels_last


def empty(like: Tensor, shape: Ints, channels_last: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor, in channels_last or contiguous order."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def empty_resized(image: Tensor, size: Ints, *_: Any) -> Tensor:
    """An uninitialised image with the height and width `size`, channels_last if `image` (N, C, H, W) is.

    As a fake twin (op.py) it takes the other arguments of its operator, and ignores them.
    """
    return empty(image, (*image.shape[:2], *size), is_channels_last(image))
