"""Networks and layers of one's own on trinn's layers, and how to initialise them."""

from trinn.models.alexnet import AlexNet
from trinn.models.custom import MyDictDense, MyLayer, MyListDense
from trinn.models.init import init_weights
from trinn.models.lenet import LeNet
from trinn.models.mlp import MLP

__all__ = [
    "MLP",
    "AlexNet",
    "LeNet",
    "MyDictDense",
    "MyLayer",
    "MyListDense",
    "init_weights",
]
