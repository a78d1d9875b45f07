"""The one place that knows eager calls, compiled calls and function transforms apart.

An operator's autograd Function is written once, in the form that torch.compile and torch.func need: `forward` without a
context, `setup_context`, `backward`. Plain eager mode would pay 10 us a call for that form, so a twin in the older form is
derived from it here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# The floating dtypes that the kernels compute in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Function(torch.autograd.Function):
    """Base of every Function of this library: write `forward`, `setup_context` and `backward`, then `call` it.

    `forward` names its inputs one by one; torch.compile takes a `*inputs` for a context.
    """

    generate_vmap_rule = True
    _eager: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward), "__module__": cls.__module__}
        cls._eager = type(cls.__name__, (torch.autograd.Function,), members)

    @classmethod
    def call(cls, *inputs: Any) -> Any:
        """`apply`, by the cheapest way that is right here; no Function at all when nobody asks for a gradient."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or differentiated_forward():
            return cls.apply(*inputs)
        if torch.is_grad_enabled() and any(isinstance(i, Tensor) and i.requires_grad for i in inputs):
            return cls._eager.apply(*inputs)
        return cls.forward(*inputs)


def differentiated_forward() -> bool:
    """Whether forward-mode differentiation is at work."""
    return forward_ad._current_level >= 0


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The operands of a convolution or a linear layer, in autocast's dtype where it is on; float64 stays."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)
