"""The error of TF32 where a matrix unit cuts float32 to 10 bits instead of rounding it.

NVIDIA's units do not say which of the two they do to float32 in registers or shared memory: PTX leaves the last 13 bits
undefined, and they are ignored. A library may round beforehand, with half the largest error. Triton rounds only what a tensor
descriptor loads, from version 3.7 on. So where torch allows TF32, an error that cutting explains is no fault.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (F.conv2d, F.conv_transpose2d)
CUT = ~0x1FFF  # the bits of float32 that TF32 has


def is_allowed() -> bool:
    """Whether torch's flags allow TF32 in any product."""
    return "tf32" in (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)


def cut(x: Tensor) -> Tensor:
    """x with its last 13 bits of float32 zero, in the dtype of x."""
    return (x.float().view(torch.int32) & CUT).view(torch.float32).to(x.dtype)


class _Cut(torch.autograd.Function):
    """A tensor that is cut, and whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return cut(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return dy


class _CutGradient(torch.autograd.Function):
    """A tensor as it is, whose gradient is cut."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return cut(dy)


class Cutting(TorchFunctionMode):
    """Within, torch's convolutions and linear layers multiply cut numbers, forward and backward, where TF32 is allowed.

    In float64 this is the result of a matrix unit that cuts, without the rounding of its sums. A bias is not cut.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        backend = torch.backends.cudnn.conv if func in CONVOLUTIONS else torch.backends.cuda.matmul
        if func not in (*CONVOLUTIONS, F.linear) or backend.fp32_precision != "tf32":
            return func(*args, **kwargs)
        x, w, *others = args
        bias = others.pop(0) if others else kwargs.pop("bias", None)
        y = _CutGradient.apply(func(_Cut.apply(x), _Cut.apply(w), None, *others, **kwargs))
        if bias is None:
            return y
        return y + (bias if func is F.linear else bias[:, None, None])
