"""The error of TF32 if a matrix unit truncates float32 to 10 bits of mantissa instead of rounding it.

PTX leaves the last 13 bits of a TF32 operand undefined, and NVIDIA's matrix units ignore them, so they truncate. A library may
round beforehand, with half the largest error. Triton rounds only the loads of tensor descriptors, since version 3.7. So an
error explained by truncation is no fault if torch allows TF32.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (F.conv2d, F.conv_transpose2d)
MASK = ~0x1FFF  # mask of TF32's bits in float32


def is_allowed() -> bool:
    """Whether torch's flags allow TF32 in any product."""
    return "tf32" in (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)


def truncated(x: Tensor) -> Tensor:
    """x truncated to TF32, in the dtype of x."""
    return (x.float().view(torch.int32) & MASK).view(torch.float32).to(x.dtype)


class _Truncated(torch.autograd.Function):
    """Truncation of a tensor; its gradient is not truncated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return truncated(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return dy


class Truncating(TorchFunctionMode):
    """A mode in which torch's convolutions and linear layers truncate their operands, forward and backward, if TF32 is allowed.

    In float64 this gives the result of a truncating matrix unit without the rounding of its sums. A bias is not truncated.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        backend = torch.backends.cudnn.conv if func in CONVOLUTIONS else torch.backends.cuda.matmul
        if func not in (*CONVOLUTIONS, F.linear) or backend.fp32_precision != "tf32":
            return func(*args, **kwargs)
        x, w, *others = args
        bias = others.pop(0) if others else kwargs.pop("bias", None)
        y = func(_Truncated.apply(x), _Truncated.apply(w), None, *others, **kwargs)
        if y.requires_grad:
            y.register_hook(truncated)  # the upstream gradient is an operand of the gradients' products
        if bias is None:
            return y
        return y + (bias if func is F.linear else bias[:, None, None])
