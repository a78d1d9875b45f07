"""A multilayer perceptron: two linear layers with a ReLU between them."""

from typing import Any

import torch
from torch import Tensor

import trinn.layers

__all__ = ["MLP"]


class MLP(torch.nn.Module):
    """Two linear layers; 203,530 parameters.

        input     (*, 784), such as a flattened 28 x 28 image
        hidden    (*, 256)
        output    (*, 10), logits

    Args:
        nn: the source of the layers. `MLP(nn=torch.nn)` is the same network in plain torch; each can load the
            other's `state_dict`.
        kwargs: passed on to torch.nn.Module, which accepts none.

    Raises:
        RuntimeError: a last axis of another size.
    """

    def __init__(self, *, nn: Any = trinn.layers, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = nn.Linear(784, 256)
        self.act = nn.ReLU()
        self.output = nn.Linear(256, 10)

    def forward(self, input: Tensor) -> Tensor:
        return self.output(self.act(self.hidden(input)))
