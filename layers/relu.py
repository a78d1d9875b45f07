"""Rectified linear unit: `relu` and `ReLU`."""

from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops

from .function import FLOATS, Function, is_transform_active
from .public import functional, layer

__all__ = ["ReLU", "relu", "relu_"]


class ReluForward(Function):
    """y = max(x, 0)."""

    kept = (0,)

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ops.relu_forward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return ReluBackward.call(dy, y)

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        return ReluBackward.call(tangents[0], output)


class ReluInPlace(ReluForward):
    """y = max(x, 0), in place."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        ops.relu_(x)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(output)
        ctx.save_for_backward(output)


class ReluBackward(Function):
    """dx = dy where y > 0; linear in dy, constant almost everywhere in y."""

    kept = ("y",)

    @staticmethod
    def forward(dy: Tensor, y: Tensor) -> Tensor:
        return ops.relu_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return ReluBackward.call(ddx, y)


@functional
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), elementwise, as `torch.nn.functional.relu`. NaN stays NaN; the gradient at 0 is 0.

    Args:
        input: any shape and strides; integers too.
        inplace: write the result over `input` and return it.

    Raises:
        NotImplementedError: complex or quantised input, or 8-bit floats.
        RuntimeError: bool input; or in place on a leaf with requires_grad, on an inference tensor outside inference mode,
            or on a tensor whose elements share memory.
    """
    if input.dtype == torch.bool:
        raise RuntimeError("Boolean inputs not supported for relu")
    if input.dtype not in FLOATS and (input.is_floating_point() or input.is_complex() or input.is_quantized):
        raise NotImplementedError(f"relu is not implemented for {input.dtype}")
    if not inplace:
        return ReluForward.call(input)
    if input.is_leaf and input.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    traced = torch.compiler.is_compiling()  # torch.compile reads only sizes, strides and dtypes of tensors
    if not traced and input.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed; clone() makes a normal one."
        )
    if input.numel() > 0 and any(stride == 0 and size > 1 for size, stride in zip(input.shape, input.stride(), strict=True)):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )
    if is_transform_active() or (not traced and input.is_neg()):
        # Transforms support copy_, but not a Function that modifies its input. The kernel cannot write a lazily negated tensor.
        return input.copy_(ReluForward.call(input))
    return ReluInPlace.call(input)


@functional
def relu_(input: Tensor) -> Tensor:
    """`relu(input, inplace=True)`."""
    return relu(input, inplace=True)


@layer
class ReLU(nn.ReLU):
    """torch.nn.ReLU on `relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return relu(input, self.inplace)
