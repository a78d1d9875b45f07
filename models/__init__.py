"""Networks on trinn's layers."""

from trinn.models.lenet import LeNet

__all__ = [
    "LeNet",
]
