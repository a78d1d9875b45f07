"""What torch sees: autograd Functions, functionals with torch.nn.functional's signatures, modules that subclass torch.nn's."""

from trinn.layers.conv2d import Conv2d, conv2d

__all__ = [
    "Conv2d",
    "conv2d",
]
