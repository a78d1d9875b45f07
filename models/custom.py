"""Examples of custom layers: without parameters, with a ParameterList, with a ParameterDict. examples/notes.py uses them."""

from typing import Any

import torch
from torch import Tensor, nn

from trinn.layers import linear
from trinn.layers.function import FLOATS, Function
from trinn.layers.reduce import ChannelSum

__all__ = ["MyDictDense", "MyLayer", "MyListDense"]


class Centring(Function):
    """y = x - mean(x). The map is linear and symmetric, so its backward is the same map."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = ChannelSum.call(wide.reshape(1, 1, 1, -1)).view(())
        return x - (total / x.numel()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return Centring.call(dy)


class MyLayer(nn.Module):
    """The input minus its mean over all elements; no parameters.

    Args:
        kwargs: passed on to torch.nn.Module, which accepts none.

    Raises:
        RuntimeError: integer input; torch has no mean of integers either. Use [1.0, 2.0, 3.0] instead of [1, 2, 3].
        NotImplementedError: complex input or 8-bit floats.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def forward(self, input: Tensor) -> Tensor:
        if not (input.is_floating_point() or input.is_complex()):
            raise RuntimeError(
                "mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype. "
                f"Got: {input.dtype}"
            )
        if input.dtype not in FLOATS:
            raise NotImplementedError(f"MyLayer: expected float16, bfloat16, float32 or float64, but got {input.dtype}")
        return Centring.call(input)


class MyListDense(nn.Module):
    """Four linear maps without biases; their weights are in a ParameterList.

        input     (*, 4)
        output    (*, 1)

    Raises:
        RuntimeError: a last axis of another size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(3)])
        self.params.append(nn.Parameter(torch.randn(4, 1)))

    def forward(self, input: Tensor) -> Tensor:
        for weight in self.params:
            input = linear(input, weight.t())
        return input


class MyDictDense(nn.Module):
    """One of three linear maps without biases; each call chooses a weight in a ParameterDict.

        input       (*, 4)
        'linear1'   (*, 4)
        'linear2'   (*, 1)
        'linear3'   (*, 2)

    Raises:
        AttributeError: another choice, as in torch.nn.ParameterDict.
        RuntimeError: a last axis of another size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.ParameterDict({"linear1": nn.Parameter(torch.randn(4, 4)), "linear2": nn.Parameter(torch.randn(4, 1))})
        self.params.update({"linear3": nn.Parameter(torch.randn(4, 2))})

    def forward(self, input: Tensor, choice: str = "linear1") -> Tensor:
        return linear(input, self.params[choice].t())
