"""Layers of one's own: without parameters, with a list of parameters, with a dictionary of them."""

from typing import Any

import torch
from torch import Tensor, nn

from trinn.layers import linear
from trinn.layers.function import FLOATS, Function
from trinn.layers.reduce import ChannelSum


class Centring(Function):
    """y = x - mean(x). Linear and symmetric, so that its gradient is itself."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = ChannelSum.call(wide.reshape(1, 1, 1, -1)).view(())
        return x - (total / x.numel()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return Centring.call(dy)


class MyLayer(nn.Module):
    """The input less the mean of all of it; without parameters.

    Args:
        kwargs: what torch.nn.Module takes, which is nothing.

    Raises:
        RuntimeError: integers, whose mean torch refuses too: [1, 2, 3] has to be [1.0, 2.0, 3.0].
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
    """Four matrix products, without biases, by the parameters of a ParameterList.

        input     (*, 4)
        output    (*, 1)

    Raises:
        RuntimeError: inputs of another length.
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
    """One matrix product, without a bias, by a parameter of a ParameterDict that each call chooses.

        input       (*, 4)
        'linear1'   (*, 4)
        'linear2'   (*, 1)
        'linear3'   (*, 2)

    Raises:
        AttributeError: another choice, as torch.nn.ParameterDict.
        RuntimeError: inputs of another length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.params = nn.ParameterDict({"linear1": nn.Parameter(torch.randn(4, 4)), "linear2": nn.Parameter(torch.randn(4, 1))})
        self.params.update({"linear3": nn.Parameter(torch.randn(4, 2))})

    def forward(self, input: Tensor, choice: str = "linear1") -> Tensor:
        return linear(input, self.params[choice].t())
