"""Multilayer perceptron, the first network of many a course: two linear layers with a ReLU between them."""

from typing import Any

import torch
from torch import Tensor

import trinn.layers


class MLP(torch.nn.Module):
    """Two linear layers; 203,530 parameters.

        input     (*, 784), such as a flattened image of 28 by 28
        hidden    (*, 256)
        output    (*, 10), logits

    Args:
        nn: where the layers come from. `MLP(nn=torch.nn)` is the same network without trinn; the two load each other's
            `state_dict`.
        kwargs: what torch.nn.Module takes, which is nothing.

    Raises:
        RuntimeError: inputs of another length.
    """

    def __init__(self, *, nn: Any = trinn.layers, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = nn.Linear(784, 256)
        self.act = nn.ReLU()
        self.output = nn.Linear(256, 10)

    def forward(self, input: Tensor) -> Tensor:
        return self.output(self.act(self.hidden(input)))
