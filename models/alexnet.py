"""AlexNet, the network that won the ImageNet challenge of 2012.

Source: A. Krizhevsky, I. Sutskever, G. E. Hinton, ImageNet classification with deep convolutional neural networks, NIPS 2012,
in the form of A. Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997, 2014: a single
sequence of layers (in 2012 there were two, one per GPU), without local response normalisation. Names and shapes are the same as
in torchvision, so its checkpoints can be loaded.
"""

from typing import Any

import torch
from torch import Tensor

import trinn.layers

__all__ = ["AlexNet"]


class AlexNet(torch.nn.Module):
    """Five convolutions and three linear layers; 61,100,840 parameters for 1000 classes and three channels.

        input        (N, in_channels, 224, 224), or any size of at least 63
        features     (N, 256, 6, 6), after convolutions of kernel size 11, 5, 3, 3 and 3 and three poolings
        avgpool      (N, 256, 6, 6), for any image size
        classifier   (N, num_classes), logits, after two hidden layers of 4096 values each

    Args:
        dropout: the dropout probability in the classifier, in training.
        nn: the source of the layers. `AlexNet(nn=torch.nn)` is the same network in plain torch; each can load the
            other's `state_dict`.

    Raises:
        RuntimeError: images that are too small, or with another number of channels.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5, in_channels: int = 3, nn: Any = trinn.layers) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = torch.nn.Sequential(
            torch.nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            torch.nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(input)).flatten(1))
