"""Networks on trinn's layers."""

from trinn.models.alexnet import AlexNet
from trinn.models.lenet import LeNet

__all__ = [
    "AlexNet",
    "LeNet",
]
