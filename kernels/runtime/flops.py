"""Formulas for torch.utils.flop_counter.FlopCounterMode: an operator counts as many FLOPs as its equivalent in torch.

torch counts only the multiplications and additions of matrix products. For the filter gradient of a convolution with several
groups it counts as many as with one group, and so do the operators of trinn.
"""

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import register_flop_formula

Count = Callable[..., int]  # the arguments of an operator by name, with shapes in place of tensors -> FLOPs


def register_flops(operator: Any, count: Count) -> None:
    """Register the formula of an operator with torch."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def formula(*args: Any, out_shape: Any, **options: Any) -> int:
        return count(**dict(zip(names, args, strict=False)), **options)

    register_flop_formula(operator)(formula)
