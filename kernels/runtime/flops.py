"""What torch.utils.flop_counter.FlopCounterMode counts for our operators: as many as for torch's that do the same.

torch counts the multiplications and additions of products alone, and the gradient of filters as if there were one group.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Count = Callable[..., int]


def _convolution(x: Any, w: Any, size: Any, **_: Any) -> int:
    return 2 * x[0] * prod(size) * prod(w)


# Of the operators that torch counts: the number, from the arguments by name, where a tensor is its shape.
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
    """Give torch the formulas of the table."""
    for name, count in FLOPS.items():
        register_flop_formula(getattr(torch.ops.trinn, name))(_formula(name, count))


def _formula(name: str, count: Count) -> Count:
    names = [argument.name for argument in getattr(torch.ops.trinn, name).default._schema.arguments]

    def formula(*args: Any, out_shape: Any, **options: Any) -> int:
        return count(**dict(zip(names, args, strict=False)), **options)

    return formula
