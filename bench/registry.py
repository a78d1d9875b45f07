"""The benchmark's cases: layer shapes of well-known networks, and the minimum work of each pass.

A case builds its module from a namespace, so `trinn.layers` and `torch.nn` run the same code. The passes are:

    forward      forward pass of a training step
    backward     all gradients of a training step; the first layer of a network has no input gradient
    dgrad        input gradient only
    wgrad        parameter gradients only
    training     forward and backward
    inference    evaluation mode, no gradients

The work of a pass is a lower bound for any implementation: each operand is read once, each result is written once, and all taps
are multiplied, padding included. Data needed twice is read twice if the chip cannot hold it. So a batch norm in training reads
its input twice, because the statistics must be complete before the first output; a small tensor in cache can beat this bound.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import trinn.layers
from trinn.layers.batchnorm2d import norm_arguments
from trinn.layers.fused_functional import batch_norm_activation, channel_scale_activation

Shape = tuple[int, ...]

# An arithmetic is a dtype with a precision: ARITHMETIC in bench/shapes.py. TF32 changes only matrix products.
PRODUCTS = ("bf16", "fp16", "tf32", "fp32")  # arithmetics of operators with matrix products
ELEMENTWISE = ("bf16", "fp16", "fp32")  # arithmetics of other operators
CONVS = ("conv2d", "depthwise conv2d", "conv_transpose2d")
SPLIT = ("dgrad", "wgrad")  # halves of the backward pass; --quick skips them


class Work(NamedTuple):
    """Minimum work of a pass."""

    elements: int  # elements of the case's dtype read and written
    flops: int = 0
    codes: int = 0  # additional bytes: argmax positions of max pooling

    def bytes(self, itemsize: int) -> int:
        return self.elements * itemsize + self.codes


@dataclass(frozen=True)
class Case:
    """One benchmarked shape.

    `make` takes a namespace with the classes of torch.nn and the fused layers (see SIDES). `small` returns a shrunk version of
    the case for the interpreter.
    """

    name: str
    op: str
    make: Callable[[Any], nn.Module]
    inputs: tuple[Shape, ...]
    works: Mapping[str, Work]
    small: Callable[[], "Case"]
    largest: int  # number of elements of the largest tensor
    first: bool = False  # first layer of a network: the input needs no gradient
    fused: bool = False  # also compare with torch.compile
    arithmetics: tuple[str, ...] = PRODUCTS


class _BNAddActivation2d(nn.Sequential):
    """The unfused layers of trinn.layers.BNAddActivation2d."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return self[1](self[0](input) + residual)


class _ChannelScale(nn.Module):
    """torch's twin of trinn.layers.ChannelScale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return _channel_scale(input, self.weight, residual)


def _channel_scale(input: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
    return input * scale if residual is None else input * scale + residual


class _Function(nn.Module):
    """A function of tensors as a layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class _BNSiLUAdd2d(nn.Sequential):
    """Batch norm, SiLU and residual addition, as in a CSP bottleneck."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return self[1](self[0](input)) + residual


class _FusedBNSiLUAdd2d(nn.Sequential):
    """_BNSiLUAdd2d in one pass after the statistics."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        norm = norm_arguments(self[0])  # type: ignore[arg-type]
        return batch_norm_activation(input, norm, ("silu", None), addend=residual)


class Ours:
    """trinn.layers, plus what only the backend of torch.compile fuses."""

    BNSiLUAdd2d = _FusedBNSiLUAdd2d

    @staticmethod
    def scale_add_relu(x: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
        return channel_scale_activation(x, (scale,), ("relu", None), residual)

    def __getattr__(self, name: str) -> Any:
        return getattr(trinn.layers, name)


class Unfused:
    """torch.nn, plus the names of the fused layers, which run the same layers unfused."""

    BNAddActivation2d, BNSiLUAdd2d, ChannelScale = _BNAddActivation2d, _BNSiLUAdd2d, _ChannelScale
    ConvActivation2d = ConvTransposeActivation2d = ConvActivationMaxPool2d = ConvBNActivation2d = nn.Sequential
    BNActivation2d = LinearActivation = nn.Sequential
    add, channel_scale = staticmethod(torch.add), staticmethod(_channel_scale)

    @staticmethod
    def scale_add_relu(x: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(x * scale + residual)

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)


SIDES: dict[str, Any] = {"ours": Ours(), "torch": Unfused()}


def _product(x: int, w: int, b: int, y: int, macs: int, first: bool = False) -> dict[str, Work]:
    """Return the work of the passes of y = x * w + b, from the element counts of x, w, b, y and the multiply-adds."""
    forward, dgrad = Work(x + w + b + y, 2 * macs), Work(y + w + x, 2 * macs)
    wgrad = Work(x + y + w + b, 2 * macs)
    if first:
        return {"forward": forward, "backward": wgrad, "wgrad": wgrad}
    return {"forward": forward, "backward": Work(y + 2 * x + 2 * w + b, 4 * macs), "dgrad": dgrad, "wgrad": wgrad}


def conv(
    name: str, x: Shape, filters: int, taps: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1,
    bias: bool = False, first: bool = False,
) -> Case:  # fmt: skip
    """A convolution with windows of `taps` x `taps`."""
    n, c, *size = x
    y = n * filters * prod(_windows(length, taps, stride, padding, dilation) for length in size)
    weight = filters * (c // groups) * taps**2

    def small() -> Case:
        g = min(groups, 2)
        ours, theirs = g * min(c // groups, 3), g * min(filters // groups, 4)
        d, pad = min(dilation, 2), 2 if dilation > 1 else padding
        size = max(d * (taps - 1) + 1 + stride - 2 * pad, 2)
        return conv(name, (2, ours, size, size + 1), theirs, taps, stride, pad, d, g, bias, first)

    return Case(
        name, "depthwise conv2d" if groups == c > 1 else "conv2d",
        lambda nn: nn.Conv2d(c, filters, taps, stride, padding, dilation, groups, bias), (x,),
        _product(prod(x), weight, filters * bias, y, y * (c // groups) * taps**2, first), small, max(prod(x), weight, y), first,
    )  # fmt: skip


def conv_transpose(name: str, x: Shape, filters: int, taps: int, stride: int, padding: int = 0, bias: bool = False) -> Case:
    n, c, *size = x
    y = n * filters * prod((length - 1) * stride - 2 * padding + taps for length in size)
    weight = c * filters * taps**2
    return Case(
        name, "conv_transpose2d", lambda nn: nn.ConvTranspose2d(c, filters, taps, stride, padding, bias=bias), (x,),
        _product(prod(x), weight, filters * bias, y, prod(x) * filters * taps**2),
        lambda: conv_transpose(name, (2, min(c, 3), 2, 3), min(filters, 4), taps, stride, padding, bias),
        max(prod(x), weight, y),
    )  # fmt: skip


def linear(name: str, rows: int, inputs: int, outputs: int) -> Case:
    x, w, y = rows * inputs, inputs * outputs, rows * outputs
    return Case(
        name, "linear", lambda nn: nn.Linear(inputs, outputs), ((rows, inputs),),
        _product(x, w, outputs, y, rows * inputs * outputs),
        lambda: linear(name, 3, min(inputs, 20), min(outputs, 9)), max(x, w, y),
    )  # fmt: skip


def linear_relu(name: str, rows: int, inputs: int, outputs: int) -> Case:
    x, w, y, flops = rows * inputs, inputs * outputs, rows * outputs, 2 * rows * inputs * outputs
    once = x + w + outputs + y
    return Case(
        name, "linear_relu", lambda nn: nn.LinearActivation(nn.Linear(inputs, outputs), nn.ReLU()), ((rows, inputs),),
        {"forward": Work(once, flops), "training": Work(2 * once, 3 * flops), "inference": Work(once, flops)},
        lambda: linear_relu(name, 3, min(inputs, 20), min(outputs, 9)), max(x, w, y), fused=True,
    )  # fmt: skip


def fused_conv(
    name: str, op: str, x: Shape, filters: int, taps: int, stride: int = 1, padding: int = 0, bias: bool = True,
    first: bool = False, window: int = 2,
) -> Case:  # fmt: skip
    """A convolution and the layers after it. `op` is conv_relu, conv_relu_max_pool or conv_bn_relu.

    The work counts the inputs and outputs of the whole chain, and the second read of a batch norm.
    """
    n, c, h, w = x
    size = [_windows(s, taps, stride, padding) for s in (h, w)]
    weight, conv_y = filters * c * taps**2, n * filters * prod(size)
    y = n * filters * prod(_windows(s, window, 2, 0) for s in size) if op == "conv_relu_max_pool" else conv_y
    flops = 2 * conv_y * c * taps**2

    def make(nn: Any) -> nn.Module:
        conv = nn.Conv2d(c, filters, taps, stride, padding, bias=bias)
        if op == "conv_relu":
            return nn.ConvActivation2d(conv, nn.ReLU())
        if op == "conv_relu_max_pool":
            return nn.ConvActivationMaxPool2d(conv, nn.ReLU(), nn.MaxPool2d(window, 2))
        return nn.ConvBNActivation2d(conv, nn.BatchNorm2d(filters), nn.ReLU())

    def small() -> Case:
        size = max(taps + stride * window - 2 * padding, 2)
        x = (2, min(c, 3), size, size + 1)
        return fused_conv(name, op, x, min(filters, 4), taps, stride, padding, bias, first, window)

    once, again = prod(x) + weight + filters * bias + y, 2 * conv_y if op == "conv_bn_relu" else 0
    gradients = weight + filters * bias + (0 if first else prod(x))
    training = Work(once + y + gradients + 2 * again, flops * (2 if first else 3))
    works = {"forward": Work(once + again, flops), "training": training, "inference": Work(once, flops)}
    return Case(name, op, make, (x,), works, small, max(prod(x), weight, conv_y), first, fused=True)


def max_pool(name: str, x: Shape, taps: int, stride: int, padding: int = 0) -> Case:
    y = prod(x[:2]) * prod(_windows(n, taps, stride, padding) for n in x[2:])
    work = Work(prod(x) + y, codes=y)  # the argmax tap fits in a byte
    return Case(
        name, "max_pool2d", lambda nn: nn.MaxPool2d(taps, stride, padding), (x,), {"forward": work, "backward": work},
        lambda: max_pool(name, (2, 3, 2 * taps, 2 * taps + 1), taps, stride, padding), prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def global_average(name: str, x: Shape) -> Case:
    work = Work(prod(x) + prod(x[:2]))
    return Case(
        name, "adaptive_avg_pool2d", lambda nn: nn.AdaptiveAvgPool2d(1), (x,), {"forward": work, "backward": work},
        lambda: global_average(name, (2, 3, 3, 4)), prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def upsample(name: str, x: Shape) -> Case:
    """Upsample to twice the size. The first word of `name` is the mode."""
    work, mode = Work(prod(x) + 4 * prod(x)), name.split()[0]
    return Case(
        name, mode, lambda nn: nn.Upsample(scale_factor=2, mode=mode), (x,), {"forward": work, "backward": work},
        lambda: upsample(name, (2, 2, 3, 4)), 4 * prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def activation(name: str, module: str, x: Shape, **options: Any) -> Case:
    return Case(
        name, "activation", lambda nn: getattr(nn, module)(**options), (x,),
        {"forward": Work(2 * prod(x)), "backward": Work(3 * prod(x))},
        lambda: activation(name, module, (2, 3, 4, 5), **options), prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def add(name: str, x: Shape) -> Case:
    """An addition. Its gradients are that of its result: no work."""
    return Case(
        name, "add", lambda nn: _Function(nn.add), (x, x), {"forward": Work(3 * prod(x))},
        lambda: add(name, (2, 3, 4, 5)), prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def channel_scale(name: str, x: Shape) -> Case:
    """A scale for each channel of each image, as in squeeze-and-excitation."""
    scale = (*x[:2], 1, 1)
    return Case(
        name, "channel_scale", lambda nn: _Function(nn.channel_scale), (x, scale),
        {"forward": Work(2 * prod(x) + prod(scale)), "backward": Work(3 * prod(x) + 2 * prod(scale))},
        lambda: channel_scale(name, (2, 3, 4, 5)), prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def scale_add_relu(name: str, x: Shape) -> Case:
    """A channel scale, residual addition and ReLU. Backward reads x, y and dy, and writes both gradients."""
    scale = (*x[:2], 1, 1)
    forward = Work(3 * prod(x) + prod(scale))
    return Case(
        name, "scale_add_relu", lambda nn: _Function(nn.scale_add_relu), (x, scale, x),
        {"forward": forward, "training": Work(8 * prod(x) + 3 * prod(scale)), "inference": forward},
        lambda: scale_add_relu(name, (2, 3, 4, 5)), prod(x), fused=True, arithmetics=ELEMENTWISE,
    )  # fmt: skip


def layer_scale(name: str, x: Shape) -> Case:
    """A scale for each channel and residual addition, as in ConvNeXt. Backward reads x and dy, and writes the gradient of x."""
    forward = Work(3 * prod(x) + x[1])
    return Case(
        name, "layer_scale", lambda nn: nn.ChannelScale(x[1]), (x, x),
        {"forward": forward, "training": Work(6 * prod(x) + 3 * x[1]), "inference": forward},
        lambda: layer_scale(name, (2, 3, 4, 5)), prod(x), fused=True, arithmetics=ELEMENTWISE,
    )  # fmt: skip


def batch_norm(name: str, x: Shape) -> Case:
    return Case(
        name, "batch_norm", lambda nn: nn.BatchNorm2d(x[1]), (x,),
        {"forward": Work(3 * prod(x)), "backward": Work(5 * prod(x)), "training": Work(8 * prod(x))},
        lambda: batch_norm(name, (3, 4, 3, 4)), prod(x), arithmetics=ELEMENTWISE,
    )  # fmt: skip


def bn_relu(name: str, x: Shape) -> Case:
    return Case(
        name, "bn_relu", lambda nn: nn.BNActivation2d(nn.BatchNorm2d(x[1]), nn.ReLU()), (x,),
        {"forward": Work(3 * prod(x)), "training": Work(8 * prod(x)), "inference": Work(2 * prod(x))},
        lambda: bn_relu(name, (3, 4, 3, 4)), prod(x), fused=True, arithmetics=ELEMENTWISE,
    )  # fmt: skip


def bn_add_relu(name: str, x: Shape) -> Case:
    """Batch norm, residual addition and ReLU.

    Backward reads x, y and dy and writes the residual gradient, then computes the input gradient from that and x.
    """
    return Case(
        name, "bn_add_relu", lambda nn: nn.BNAddActivation2d(nn.BatchNorm2d(x[1]), nn.ReLU()), (x, x),
        {"forward": Work(4 * prod(x)), "training": Work(11 * prod(x)), "inference": Work(3 * prod(x))},
        lambda: bn_add_relu(name, (3, 4, 3, 4)), prod(x), fused=True, arithmetics=ELEMENTWISE,
    )  # fmt: skip


def bn_silu_add(name: str, x: Shape) -> Case:
    """Batch norm, SiLU and residual addition. Backward reads x and dy twice, and writes the gradient of x."""
    return Case(
        name, "bn_silu_add", lambda nn: nn.BNSiLUAdd2d(nn.BatchNorm2d(x[1]), nn.SiLU()), (x, x),
        {"forward": Work(4 * prod(x)), "training": Work(9 * prod(x)), "inference": Work(3 * prod(x))},
        lambda: bn_silu_add(name, (3, 4, 3, 4)), prod(x), fused=True, arithmetics=ELEMENTWISE,
    )  # fmt: skip


def _windows(size: int, taps: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def _lenet(n: int) -> Sequence[Case]:
    return (
        conv(f"LeNet conv1 b{n}", (n, 1, 32, 32), 6, 5, bias=True, first=True),
        max_pool(f"LeNet pool1 b{n}", (n, 6, 28, 28), 2, 2),
        conv(f"LeNet conv2 b{n}", (n, 6, 14, 14), 16, 5, bias=True),
        linear(f"LeNet linear1 b{n}", n, 400, 120),
        fused_conv(f"LeNet conv2, ReLU, pool b{n}", "conv_relu_max_pool", (n, 6, 14, 14), 16, 5),
    )


def _alexnet(n: int) -> Sequence[Case]:
    return (
        conv(f"AlexNet conv1 b{n}", (n, 3, 224, 224), 64, 11, 4, 2, bias=True, first=True),
        max_pool(f"AlexNet pool1 b{n}", (n, 64, 55, 55), 3, 2),
        conv(f"AlexNet conv2 b{n}", (n, 64, 27, 27), 192, 5, padding=2, bias=True),
        max_pool(f"AlexNet pool2 b{n}", (n, 192, 27, 27), 3, 2),
        conv(f"AlexNet conv3 b{n}", (n, 192, 13, 13), 384, 3, padding=1, bias=True),
        conv(f"AlexNet conv4 b{n}", (n, 384, 13, 13), 256, 3, padding=1, bias=True),
        conv(f"AlexNet conv5 b{n}", (n, 256, 13, 13), 256, 3, padding=1, bias=True),
        max_pool(f"AlexNet pool5 b{n}", (n, 256, 13, 13), 3, 2),
        linear(f"AlexNet linear1 b{n}", n, 9216, 4096),
        linear(f"AlexNet linear2 b{n}", n, 4096, 4096),
        fused_conv(f"AlexNet conv3, ReLU b{n}", "conv_relu", (n, 192, 13, 13), 384, 3, padding=1),
        fused_conv(
            f"AlexNet conv1, ReLU, pool b{n}", "conv_relu_max_pool", (n, 3, 224, 224), 64, 11, 4, 2, first=True, window=3
        ),
        linear_relu(f"AlexNet linear2, ReLU b{n}", n, 4096, 4096),
    )  # fmt: skip


def _resnet(n: int) -> Sequence[Case]:
    def block(stage: int, c: int, filters: int, taps: int, size: int, stride: int = 1, what: str = "") -> Case:
        what = what or f"{taps}x{taps} {c}-{filters}"
        return conv(f"ResNet stage {stage} {what}", (n, c, size, size), filters, taps, stride, taps // 2)

    norms = ((64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7))
    return (
        conv("ResNet stem", (n, 3, 224, 224), 64, 7, 2, 3, first=True),
        max_pool("ResNet stem pool", (n, 64, 112, 112), 3, 2, 1),
        block(1, 64, 64, 1, 56), block(1, 64, 64, 3, 56), block(1, 64, 256, 1, 56), block(1, 256, 64, 1, 56),
        block(2, 256, 128, 1, 56), block(2, 128, 128, 3, 56, 2, "3x3 stride 2"), block(2, 256, 512, 1, 56, 2, "downsample"),
        block(2, 128, 128, 3, 28), block(2, 128, 512, 1, 28), block(2, 512, 128, 1, 28),
        block(3, 256, 256, 3, 28, 2, "3x3 stride 2"), block(3, 512, 1024, 1, 28, 2, "downsample"),
        block(3, 256, 256, 3, 14), block(3, 256, 1024, 1, 14), block(3, 1024, 256, 1, 14),
        block(4, 512, 512, 3, 14, 2, "3x3 stride 2"), block(4, 1024, 2048, 1, 14, 2, "downsample"),
        block(4, 512, 512, 3, 7), block(4, 512, 2048, 1, 7), block(4, 2048, 512, 1, 7),
        global_average("ResNet average", (n, 2048, 7, 7)),
        linear("ResNet linear", n, 2048, 1000),
        activation("ResNet ReLU 64x112", "ReLU", (n, 64, 112, 112)),
        activation("ResNet ReLU 256x56", "ReLU", (n, 256, 56, 56)),
        *(batch_norm(f"ResNet batch norm {c}x{size}", (n, c, size, size)) for c, size in norms),
        bn_relu("ResNet batch norm, ReLU 64x112", (n, 64, 112, 112)),
        bn_relu("ResNet batch norm, ReLU 128x28", (n, 128, 28, 28)),
        bn_add_relu("ResNet batch norm, add, ReLU 256x56", (n, 256, 56, 56)),
        bn_add_relu("ResNet batch norm, add, ReLU 1024x14", (n, 1024, 14, 14)),
        fused_conv("ResNet conv, batch norm, ReLU 128x28", "conv_bn_relu", (n, 128, 28, 28), 128, 3, padding=1, bias=False),
        fused_conv("ResNet conv, batch norm, ReLU 256x14", "conv_bn_relu", (n, 256, 14, 14), 256, 3, padding=1, bias=False),
    )  # fmt: skip


ACTIVATIONS = (
    "ReLU6", "Hardtanh", "LeakyReLU", "ELU", "CELU", "SELU", "SiLU", "Mish", "GELU", "Softplus", "Sigmoid", "Tanh",
    "Hardsigmoid", "Hardswish", "PReLU",
)  # fmt: skip
_TABLE = (
    *_lenet(128),
    *_lenet(1024),
    *_alexnet(128),
    *_alexnet(256),
    *_resnet(64),
    conv("depthwise 3x3 128x56", (64, 128, 56, 56), 128, 3, padding=1, groups=128),
    conv("depthwise 3x3 512x14", (64, 512, 14, 14), 512, 3, padding=1, groups=512),
    conv("depthwise 3x3 144x56 stride 2", (64, 144, 56, 56), 144, 3, 2, 1, groups=144),
    conv("ResNeXt 3x3, 32 groups", (64, 128, 56, 56), 128, 3, padding=1, groups=32),
    conv("DeepLab 3x3 dilation 12", (8, 2048, 33, 33), 256, 3, padding=12, dilation=12),
    conv("DeepLab 3x3 dilation 24", (8, 2048, 33, 33), 256, 3, padding=24, dilation=24),
    conv("DeepLab 1x1", (8, 2048, 33, 33), 256, 1),
    conv_transpose("DCGAN 1024-512", (128, 1024, 4, 4), 512, 4, 2, 1),
    conv_transpose("DCGAN 512-256", (128, 512, 8, 8), 256, 4, 2, 1),
    conv_transpose("DCGAN 256-128", (128, 256, 16, 16), 128, 4, 2, 1),
    conv_transpose("DCGAN 128-3", (128, 128, 32, 32), 3, 4, 2, 1),
    conv_transpose("U-Net up-convolution", (8, 128, 128, 128), 64, 2, 2, bias=True),
    upsample("bilinear 128x64", (16, 128, 64, 64)),
    upsample("bilinear 64x128", (16, 64, 128, 128)),
    upsample("bilinear 128x128", (8, 128, 128, 128)),
    upsample("bilinear 64x256", (8, 64, 256, 256)),
    upsample("nearest 64x128", (16, 64, 128, 128)),
    *(activation(f"{module} 128x56", module, (64, 128, 56, 56)) for module in ACTIVATIONS),
    activation("GELU by tanh 128x56", "GELU", (64, 128, 56, 56), approximate="tanh"),
    add("Add 128x56", (64, 128, 56, 56)),
    channel_scale("Scale 128x56", (64, 128, 56, 56)),
    channel_scale("Scale 672x14", (64, 672, 14, 14)),
    channel_scale("Scale 1152x7", (64, 1152, 7, 7)),
    scale_add_relu("Scale, add, ReLU 256x56", (64, 256, 56, 56)),
    layer_scale("Layer scale 96x56", (64, 96, 56, 56)),
    bn_silu_add("Batch norm, SiLU, add 128x28", (64, 128, 28, 28)),
)
CASES: dict[str, Case] = {case.name: case for case in _TABLE}


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Return whether the name matches one of the regular expressions, or there are none."""
    return not patterns or any(re.search(pattern, name) for pattern in patterns)


# Cases of --quick, the most informative first: in all arithmetics, in bf16 and float32, or in bf16 only.
_EVERY = ("AlexNet conv2 b128", "ResNet stage 2 3x3 128-128", "ResNet stage 1 1x1 64-256")
_BOTH = (
    "ResNet batch norm 256x56", "ResNet stem pool", "bilinear 64x128", "ResNet ReLU 256x56", "SiLU 128x56", "LeNet conv2 b128",
    "AlexNet linear1 b128", "depthwise 3x3 128x56", "DCGAN 512-256",
)  # fmt: skip
_ONE = (
    "ResNet batch norm, add, ReLU 256x56", "ResNet batch norm, ReLU 64x112", "ResNet conv, batch norm, ReLU 128x28",
    "AlexNet conv1 b128", "AlexNet conv1, ReLU, pool b128", "AlexNet conv3, ReLU b128", "AlexNet conv4 b128",
    "AlexNet pool1 b128", "ResNet stem", "ResNet stage 2 3x3 stride 2", "ResNet stage 4 3x3 512-512",
    "DeepLab 3x3 dilation 12", "ResNeXt 3x3, 32 groups", "U-Net up-convolution", "LeNet conv1 b128", "LeNet pool1 b128",
    "GELU 128x56", "PReLU 128x56", "LeNet linear1 b128", "ResNet batch norm 128x28", "ResNet batch norm 64x112",
    "bilinear 128x64", "ResNet average", "Add 128x56", "Scale 672x14", "Layer scale 96x56",
)  # fmt: skip
QUICK = {name: PRODUCTS for name in _EVERY} | {name: ("bf16", "fp32") for name in _BOTH} | {name: ("bf16",) for name in _ONE}
