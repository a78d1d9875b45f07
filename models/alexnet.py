"""AlexNet, the network that won the ImageNet challenge of 2012.

Source: A. Krizhevsky, I. Sutskever, G. E. Hinton, ImageNet classification with deep convolutional neural networks, NIPS 2012,
in the form of A. Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997, 2014: one
column, no local response normalisation. Names and shapes are torchvision's, so that its checkpoints load.
"""

from typing import Any

import torch
from torch import Tensor

import trinn.layers


class AlexNet(torch.nn.Module):
    """Five convolutions and three linear layers; 61,100,840 parameters for 1000 classes and three channels.

        input        (N, in_channels, 224, 224), or any size from 63
        features     (N, 256, 6, 6), by convolutions of 11, 5, 3, 3 and 3 and three poolings
        avgpool      (N, 256, 6, 6), whatever the size of the image was
        classifier   (N, num_classes), logits, by way of 4096 and 4096

    Args:
        dropout: the probability that one of the classifier's inputs is zeroed in training.
        nn: where the layers come from. `AlexNet(nn=torch.nn)` is the same network without trinn; the two load each other's
            `state_dict`.

    Raises:
        RuntimeError: images that are too small or have another number of channels.
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
