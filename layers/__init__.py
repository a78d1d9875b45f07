"""What torch sees: autograd Functions, functionals with torch.nn.functional's signatures, modules that subclass torch.nn's."""

from trinn.layers.conv2d import Conv2d, conv2d
from trinn.layers.conv_transpose2d import ConvTranspose2d, conv_transpose2d
from trinn.layers.linear import Linear, linear
from trinn.layers.relu import ReLU, relu, relu_

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "ReLU",
    "conv2d",
    "conv_transpose2d",
    "linear",
    "relu",
    "relu_",
]
