"""What torch sees: autograd Functions, functionals with torch.nn.functional's signatures, modules that subclass torch.nn's."""

from .adaptive_pool2d import AdaptiveAvgPool2d, AdaptiveMaxPool2d, adaptive_avg_pool2d, adaptive_max_pool2d
from .batchnorm2d import BatchNorm1d, BatchNorm2d, LazyBatchNorm1d, LazyBatchNorm2d, batch_norm
from .conv2d import Conv2d, LazyConv2d, conv2d
from .conv_transpose2d import ConvTranspose2d, LazyConvTranspose2d, conv_transpose2d
from .fused import BNAddReLU2d, BNReLU2d, ConvBNReLU2d, ConvReLU2d, ConvReLUMaxPool2d, LinearReLU
from .linear import LazyLinear, Linear, linear
from .max_unpool2d import MaxUnpool2d, max_unpool2d
from .pool2d import AvgPool2d, MaxPool2d, avg_pool2d, max_pool2d
from .relu import ReLU, relu, relu_
from .sync_batchnorm import SyncBatchNorm
from .upsample2d import Upsample, UpsamplingBilinear2d, UpsamplingNearest2d, interpolate
from .window import conv_output_size, conv_transpose_output_size

__all__ = [
    "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "AvgPool2d", "BNAddReLU2d", "BNReLU2d", "BatchNorm1d", "BatchNorm2d", "Conv2d",
    "ConvBNReLU2d", "ConvReLU2d", "ConvReLUMaxPool2d", "ConvTranspose2d", "LazyBatchNorm1d", "LazyBatchNorm2d", "LazyConv2d",
    "LazyConvTranspose2d", "LazyLinear", "Linear", "LinearReLU", "MaxPool2d", "MaxUnpool2d", "ReLU", "SyncBatchNorm",
    "Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d",
    "batch_norm", "conv2d", "conv_output_size", "conv_transpose2d", "conv_transpose_output_size", "interpolate", "linear",
    "max_pool2d", "max_unpool2d", "relu", "relu_",
]  # fmt: skip
