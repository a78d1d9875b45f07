"""Networks and layers of one's own on trinn's layers, and how to initialise them."""

from .alexnet import AlexNet
from .custom import MyDictDense, MyLayer, MyListDense
from .init import init_weights
from .lenet import LeNet
from .mlp import MLP

__all__ = [
    "MLP",
    "AlexNet",
    "LeNet",
    "MyDictDense",
    "MyLayer",
    "MyListDense",
    "init_weights",
]
