"""LeNet, the network that recognised handwritten digits on cheques.

Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, Proceedings of
the IEEE 86 (11), 1998, figure 2. This is today's form: ReLU instead of the scaled tanh, max pooling instead of the trainable
subsampling, all feature maps connected, and logits instead of the radial basis functions.
"""

from typing import Any

import torch
from torch import Tensor

import trinn.layers

__all__ = ["LeNet"]


class LeNet(torch.nn.Module):
    """Two convolutions and three linear layers; 61,706 parameters for ten classes and one channel.

        input     (N, in_channels, 32, 32)
        conv1     (N, 6, 28, 28)      pooled  (N, 6, 14, 14)
        conv2     (N, 16, 10, 10)     pooled  (N, 16, 5, 5)
        linear1   (N, 120)            from 400 flattened values
        linear2   (N, 84)
        linear3   (N, num_classes)    logits

    Args:
        dropout: the dropout probability before each of the last two layers, in training; the original has no dropout.
        nn: the source of the layers. `LeNet(nn=torch.nn)` is the same network in plain torch; each can load the
            other's `state_dict`.

    Raises:
        RuntimeError: images of another size or another number of channels.
    """

    # Runs of layers for `trinn.convert(network, fuse=LeNet.RUNS)`.
    RUNS = ("conv1", "relu", "pool"), ("conv2", "relu", "pool"), ("linear1", "relu"), ("linear2", "relu")

    def __init__(self, num_classes: int = 10, dropout: float = 0.0, in_channels: int = 1, nn: Any = trinn.layers) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.linear1 = nn.Linear(16 * 5 * 5, 120)
        self.linear2 = nn.Linear(120, 84)
        self.linear3 = nn.Linear(84, num_classes)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(input)))
        x = self.pool(self.relu(self.conv2(x)))
        x = x.flatten(-3)
        x = self.dropout(self.relu(self.linear1(x)))
        x = self.dropout(self.relu(self.linear2(x)))
        return self.linear3(x)
