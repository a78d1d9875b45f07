"""What the arguments of windowed operators may be, in torch's words where it refuses them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]

# Sums of a few numbers below this fit the kernels' 32 bits.
LARGEST = 2**29


def pair(value: Any, name: str, operator: str) -> Pair:
    """A number for both axes, or one for each.

    Raises:
        RuntimeError: a sequence of another length, or a number that no image has as many pixels as.
        TypeError: not of integers.
    """
    values = tuple(value) if isinstance(value, Sequence) or isinstance(value, torch.Size) else (value,)
    if not all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in values):
        raise TypeError(f"{operator}: {name} must be an int or a tuple of 2 ints, but got {value!r}")
    if any(v >= LARGEST for v in values):
        raise RuntimeError(f"{operator}: {name} must be less than 2^29, but got {value!r}")
    if len(values) == 1:
        return values[0], values[0]
    if len(values) != 2:
        raise RuntimeError(f"{operator}: {name} must be an int or a tuple of 2 ints, but got {value!r}")
    return values[0], values[1]


def batched(input: Tensor, operator: str) -> tuple[Tensor, bool]:
    """`input` as (N, C, H, W), and whether it had no batch axis.

    Raises:
        RuntimeError: neither 3 nor 4 axes.
    """
    if input.dim() == 4:
        return input, False
    if input.dim() == 3:
        return input.unsqueeze(0), True
    raise RuntimeError(
        f"Expected 3D (unbatched) or 4D (batched) input to {operator}, but got input of size: {list(input.shape)}"
    )
