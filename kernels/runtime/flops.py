"""Formulas for torch.utils.flop_counter.FlopCounterMode: an operator counts as many FLOPs as its equivalent in torch.

torch counts only the multiplications and additions of matrix products. For the filter gradient of a convolution with several
groups it counts as many as with one group, and so does this file.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Count = Callable[..., int]


def _convolution(x: Any, w: Any, size: Any, **_: Any) -> int:
    return 2 * x[0] * prod(size) * prod(w)


# FLOPs of the operators counted by torch, from their arguments by name, with shapes in place of tensors.
FLOPS: dict[str, Count] = {
    "conv2d_affine": _convolution,
    "conv2d_dgrad": lambda dy, w, **_: 2 * dy[0] * prod(dy[2:]) * prod(w),
    "conv2d_fprop": _convolution,
    "conv2d_relu_max_pool2d": _convolution,
    "conv2d_statistics": _convolution,
    "conv2d_wgrad": lambda x, dy, size, **_: 2 * x[1] * prod(size) * prod(dy),
    "linear_dgrad": lambda dy, w, **_: 2 * dy[0] * prod(w),
    "linear_fprop": lambda x, w, **_: 2 * x[0] * prod(w),
    "linear_wgrad": lambda x, dy, **_: 2 * prod(x) * dy[1],
}


def register_flops() -> None:
    """Register the formulas of the table with torch."""
    for name, count in FLOPS.items():
        register_flop_formula(getattr(torch.ops.trinn, name))(_formula(name, count))


def _formula(name: str, count: Count) -> Count:
    names = [argument.name for argument in getattr(torch.ops.trinn, name).default._schema.arguments]

    def formula(*args: Any, out_shape: Any, **options: Any) -> int:
        return count(**dict(zip(names, args, strict=False)), **options)

    return formula
