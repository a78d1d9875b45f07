"""The rows of the compile report: layers of networks, each run forward and backward on tensors without data.

A row is a case of the benchmark (bench/registry.py) or a line of the tables below, for variants of kernels that no such case
launches. `layer` turns a module into *passes*: it runs the module with trinn's layers, and every launch may be intercepted. So
an operator gets a row by one line: `"name": layer(lambda nn: nn.ReLU(), (32, 128, 28, 28))`. The report compiles each distinct
launch once.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from bench.registry import CASES, SIDES
from trinn.kernels import launchers
from trinn.kernels.conv2d import relayout
from trinn.layers import fused_functional
from trinn.layers.activation import MODULES
from trinn.layers.pad2d import pad2d

# name: the dtype, and torch's fp32_precision
ARITHMETIC = {
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
    "fp64": (torch.float64, "ieee"),
}

Shape = Sequence[int]
New = Callable[..., Tensor]  # creates an empty tensor of a shape, in the dtype and memory format under test
Passes = Callable[[New], object]  # launches the passes of a layer
Row = tuple[str, str, bool, Passes]  # the name, the key of ARITHMETIC, whether channels_last


class Launchers(TorchDispatchMode):
    """Call launchers in place of trinn's operators, on any device, including meta."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace != "trinn":
            return function(*args, **(kwargs or {}))
        return getattr(launchers, function._schema.name.removeprefix("trinn::"))(*args, **(kwargs or {}))


def layer(make: Callable[[Any], Any], *inputs: Shape, gradients: int = 1) -> Passes:
    """The passes of a layer: forward and all gradients; of a batch norm also both in evaluation, and without gradients.

    Args:
        make: takes the namespace of trinn's layers (registry.Ours) and returns a module or a function, or a list of them with
            the same inputs.
        gradients: 0 for the forward pass alone, 2 to differentiate also the gradients with respect to the upstream gradient.
    """

    def passes(new: New) -> None:
        with torch.device("meta"):
            made = make(SIDES["ours"])
        for module in made if isinstance(made, list) else [made]:
            images = [new(*shape).requires_grad_() for shape in inputs]
            parts = list(module.modules()) if isinstance(module, nn.Module) else []
            wanted = images + [tensor for part in parts for tensor in _replaced(part, images[0].dtype, new)]
            with Launchers():
                _differentiate(module(*images), wanted, new, gradients)
                if any(isinstance(part, _BatchNorm) for part in parts):
                    module.eval()
                    if gradients:
                        _differentiate(module(*images), wanted, new, gradients)
                    with torch.no_grad():
                        module(*images)

    return passes


def _replaced(module: nn.Module, dtype: torch.dtype, new: New) -> list[Tensor]:
    """Replace the parameters and floating-point buffers of a module. Return those with a gradient.

    Batch norms keep float32 if the dtype has 16 bits, as is usual.
    """
    dtype = torch.promote_types(dtype, torch.float32) if isinstance(module, _BatchNorm) else dtype
    wanted = []
    for name, old in [*module._parameters.items(), *module._buffers.items()]:
        if old is not None and old.is_floating_point():
            module._parameters.pop(name, None)
            module._buffers[name] = tensor = new(*old.shape, dtype=dtype).requires_grad_(old.requires_grad)
            wanted += [tensor] if old.requires_grad else []
    return wanted


def _differentiate(outputs: Any, wanted: Sequence[Tensor], new: New, times: int) -> None:
    y = outputs if isinstance(outputs, Tensor) else outputs[0]  # the second output of max pooling has the indices
    if times:
        dy = new(*y.shape).requires_grad_(times == 2)
        gradients = torch.autograd.grad(y, wanted, dy, create_graph=times == 2)
    if times == 2:
        torch.autograd.grad(gradients, dy, [new(*gradient.shape) for gradient in gradients])


def timed(name: str) -> Passes:
    """The passes of a case of the benchmark."""
    return layer(CASES[name].make, *CASES[name].inputs)


def conv(x: Shape, w: Shape, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Passes:
    """A convolution with a bias. A transposed convolution has the same passes."""
    return layer(lambda nn: nn.Conv2d(x[1], w[0], w[2:], stride, padding, dilation, groups), x)


def conv_fused(x: Shape, w: Shape, stride: int = 1, padding: int = 0, groups: int = 1) -> Passes:
    """Forward passes of convolutions fused with the layers after them. Their gradients are those of these layers."""

    def make(nn: Any) -> list[Any]:
        convs = [nn.Conv2d(x[1], w[0], w[2:], stride, padding, groups=groups, bias=bias) for bias in (True, False)]
        pooled = nn.ConvActivationMaxPool2d(convs[0], nn.ReLU(), nn.MaxPool2d(2))
        return [pooled, nn.ConvBNActivation2d(convs[1], nn.BatchNorm2d(w[0]), nn.ReLU())]

    return layer(make, x, gradients=0)


def conv_activations(x: Shape, filters: int, groups: int = 1) -> Passes:
    """Forward passes of a 3 x 3 convolution with SiLU, and of a transposed one with PReLU.

    The gradients of these activations need the result of the convolution, so the kernel stores both tensors.
    """
    options: Any = {"kernel_size": 3, "padding": 1, "groups": groups}

    def make(nn: Any) -> list[Any]:
        convs = nn.Conv2d(x[1], filters, **options), nn.ConvTranspose2d(x[1], filters, **options)
        return [nn.ConvActivation2d(convs[0], nn.SiLU()), nn.ConvTransposeActivation2d(convs[1], nn.PReLU(filters))]

    return layer(make, x, gradients=0)


def epilogues(x: Shape, w: Shape) -> Passes:
    """The launches of `conv_fused` that convolve, with filters of 3 x 3 and a padding of 1."""
    geometry = x[2:], (1, 1), (1, 1), (1, 1), 1
    window = [n // 2 for n in x[2:]], (2, 2), (2, 2), (0, 0), (1, 1)

    def passes(new: New) -> None:
        image, filters, scale, shift = new(*x), new(*w), new(w[0]), new(w[0])
        launchers.conv2d_affine(image, filters, scale, shift, None, None, "relu", *geometry, False)
        launchers.conv2d_activation_max_pool2d(image, filters, shift, "relu", *geometry, *window)
        launchers.conv2d_statistics(image, filters, None, *geometry)

    return passes


def residuals(x: Shape, filters: int, taps: int = 3, groups: int = 1) -> Passes:
    """Forward passes with a residual: a convolution, a folded batch norm and ReLU; a transposed convolution and SiLU."""
    geometry = x[2:], (1, 1), (taps // 2, taps // 2), (1, 1), groups

    def passes(new: New) -> None:
        image, scale, shift, residual = new(*x), new(filters), new(filters), new(x[0], filters, *x[2:])
        w, transposed = new(filters, x[1] // groups, taps, taps), new(x[1], filters // groups, taps, taps)
        launchers.conv2d_affine(image, w, scale, shift, None, residual, "relu", *geometry, False)
        launchers.conv2d_activation(image, transposed, shift, None, residual, "silu", *geometry, True)

    return passes


def linear(rows: int, inputs: int, outputs: int) -> Passes:
    return layer(
        lambda nn: [nn.Linear(inputs, outputs), nn.LinearActivation(nn.Linear(inputs, outputs), nn.ReLU())], (rows, inputs)
    )


def linear_activations(rows: int, inputs: int, outputs: int) -> Passes:
    def make(nn: Any) -> list[Any]:
        return [nn.LinearActivation(nn.Linear(inputs, outputs), f) for f in (nn.GELU(), nn.PReLU(outputs))]

    return layer(make, (rows, inputs), gradients=0)


def batchnorm_activations(*shape: int) -> Passes:
    """Batch norms with an activation whose gradient needs its input, and with an addition behind it."""

    def passes(new: New) -> None:
        layer(lambda nn: nn.BNActivation2d(nn.BatchNorm2d(shape[1]), nn.SiLU()), shape)(new)
        layer(lambda nn: nn.BNAddActivation2d(nn.BatchNorm2d(shape[1]), nn.PReLU(shape[1])), shape, shape)(new)
        layer(lambda nn: nn.BNSiLUAdd2d(nn.BatchNorm2d(shape[1]), nn.SiLU()), shape, shape)(new)

    return passes


def activations(*shape: int) -> Passes:
    """Every activation alone."""
    return layer(lambda nn: [*(getattr(nn, module.__name__)() for module in MODULES), nn.GELU("tanh"), nn.ELU(-0.5)], shape)


def additions(*shape: int) -> Passes:
    """An addition, and one with ReLU."""

    def make(nn: Any) -> list[Any]:
        return [nn.add, lambda x, other: fused_functional.add_activation(x, ("relu", None), other)]

    return layer(make, shape, shape)


def channel_scales(*shape: int) -> Passes:
    """A channel scale, alone and with a residual, ReLU or both; and layer scale with SiLU, whose gradient needs its input."""
    gate, join = (*shape[:2], 1, 1), fused_functional.channel_scale_activation

    def passes(new: New) -> None:
        layer(lambda nn: [nn.channel_scale, lambda x, s: join(x, (s,), ("relu", None))], shape, gate)(new)
        layer(lambda nn: [lambda x, s, r: join(x, (s,), None, r), nn.scale_add_relu], shape, gate, shape)(new)
        layer(lambda nn: lambda x, s: join(x, (s,), ("silu", None)), shape, (1, *gate[1:]))(new)

    return passes


def batchnorm(*shape: int) -> Passes:
    """A batch norm, one fused with an addition and ReLU, and a SyncBatchNorm."""

    def passes(new: New) -> None:
        layer(lambda nn: nn.BatchNorm2d(shape[1]), shape)(new)
        layer(lambda nn: nn.BNAddActivation2d(nn.BatchNorm2d(shape[1]), nn.ReLU()), shape, shape)(new)
        sync_batchnorm(*shape)(new)

    return passes


def sync_batchnorm(*shape: int) -> Passes:
    """The launches of a SyncBatchNorm over several processes, with parameters in the dtype of the images."""

    def passes(new: New) -> None:
        x, dy, w, b = new(*shape), new(*shape), new(shape[1]), new(shape[1])
        mean, var = launchers.batchnorm2d_statistics(x)
        launchers.batchnorm2d_merge(mean[None], var[None], mean[:1])
        launchers.batchnorm2d_update(w, b, mean, var, 0.1, 0, mean[:1])
        launchers.batchnorm2d_forward(x, mean, var, w, b, None, None, "", 1e-5, False)
        sums = launchers.batchnorm2d_sums(x, dy, mean, var, 1e-5)
        launchers.batchnorm2d_backward(x, dy, mean, var, w, sums, 1e-5, mean[:1])

    return passes


def pool(x: Shape, taps: int, stride: int, padding: int = 0) -> Passes:
    window = taps, stride, padding
    return layer(lambda nn: [nn.MaxPool2d(*window, return_indices=True), nn.AvgPool2d(*window)], x, gradients=2)


def adaptive_pool(x: Shape, size: Shape) -> Passes:
    return layer(lambda nn: [nn.AdaptiveMaxPool2d(size, return_indices=True), nn.AdaptiveAvgPool2d(size)], x, gradients=2)


def unpool(x: Shape, size: Shape) -> Passes:
    def make(nn: Any) -> Any:
        return lambda x: nn.max_unpool2d(x, torch.empty_like(x, dtype=torch.int64), 2, output_size=size)

    return layer(make, x, gradients=2)


def resize(x: Shape, size: Shape) -> Passes:
    """Resizing in every mode."""
    corners, smooth = {"align_corners": True}, {"antialias": True}
    modes: Any = ("bilinear", {}), ("bilinear", corners), ("nearest", {}), ("nearest-exact", {}), ("bilinear", smooth)
    return layer(lambda nn: [partial(nn.interpolate, size=size, mode=mode, **options) for mode, options in modes], x)


def pad(x: Shape, border: int) -> Passes:
    modes = "reflect", "replicate", "circular"
    return layer(lambda nn: [partial(pad2d, pad=[border] * 4, mode=mode) for mode in modes], x)


def relayouts(*shape: int, channels: int | None = None) -> Passes:
    """Every copy of relayout.py, from both memory formats: operands of the kernels with TMA."""
    n, c, *size = shape

    def passes(new: New) -> None:
        for order in (False, True):
            relayout.to_channels_last(new(*shape, channels_last=order), channels)
            relayout.to_images_last(new(*shape, channels_last=order))
            relayout.to_bf16_terms(new(n, channels or c, *size, channels_last=order, dtype=torch.float32))

    return passes


# In every dtype, precision and memory format.
EVERYWHERE: dict[str, Passes] = {
    name: timed(name)
    for name in (
        "depthwise 3x3 128x56", "ResNet batch norm, add, ReLU 256x56", "ResNet ReLU 256x56", "Add 128x56", "Scale 672x14",
        "ResNet stem pool", "AlexNet linear1 b128", "AlexNet linear2, ReLU b128",
    )
}  # fmt: skip
EVERYWHERE |= {
    "ResNet 3x3": conv((32, 128, 28, 28), (128, 128, 3, 3), padding=1),
    "3x3 fused": conv_fused((32, 128, 28, 28), (128, 128, 3, 3), padding=1),
    "conv residuals": residuals((32, 128, 28, 28), 128),
    "SyncBatchNorm": sync_batchnorm(32, 128, 28, 28),
    "pooling": pool((32, 64, 112, 112), 3, 2, 1),
    "upsample by 2": resize((32, 64, 28, 28), (56, 56)),
    "bins of 6 x 6": adaptive_pool((32, 64, 13, 13), (6, 6)),
    "SegNet unpooling": unpool((8, 64, 56, 56), (112, 112)),
}
# In fp16 channels_last and in TF32 contiguous.
USUALLY: dict[str, Passes] = {
    name: timed(name)
    for name in (
        "LeNet conv1 b128", "LeNet conv2 b128", "AlexNet conv1 b128", "ResNet stem", "ResNet stage 1 1x1 64-256",
        "ResNet stage 2 3x3 stride 2", "ResNet batch norm 128x28", "ResNeXt 3x3, 32 groups", "DeepLab 3x3 dilation 12",
        "DCGAN 512-256", "LeNet conv2, ReLU, pool b128",
    )
}  # fmt: skip
USUALLY |= {
    "84 to 10 features": linear(64, 84, 10),
    "activations": activations(32, 128, 28, 28),
    "additions": additions(32, 128, 28, 28),
    "channel scales": channel_scales(32, 128, 28, 28),
    "channel scales, small planes": channel_scales(32, 672, 14, 14),
    "conv activations": conv_activations((32, 128, 28, 28), 128),
    "depthwise activations": conv_activations((32, 144, 28, 28), 144, groups=144),
    "conv 1x1 residuals": residuals((32, 64, 56, 56), 256, taps=1),
    "depthwise residuals": residuals((32, 144, 28, 28), 144, groups=144),
    "batch norm activations": batchnorm_activations(32, 128, 28, 28),
    "linear activations": linear_activations(128, 4096, 4096),
    "LeNet pooling": pool((64, 6, 28, 28), 2, 2),
    "depthwise fused": conv_fused((32, 144, 28, 28), (144, 1, 3, 3), padding=1, groups=144),
    "depthwise 7x7": conv((32, 96, 56, 56), (96, 1, 7, 7), padding=3, groups=96),
    "depthwise, two filters": conv((32, 64, 56, 56), (128, 1, 3, 3), stride=2, padding=1, groups=64),
    "downsample by 2": resize((32, 64, 56, 56), (28, 28)),
    "global pooling": adaptive_pool((32, 512, 7, 7), (1, 1)),
    "padding by 1": pad((32, 64, 56, 56), 1),
    "ESPCN pixel shuffle": layer(lambda nn: nn.PixelShuffle(3), (16, 36, 128, 128)),
    "one image": conv((1, 512, 7, 7), (512, 512, 3, 3), padding=1),
    # Triton specialises a kernel for a size of one.
    "one element, conv": conv((1, 1, 1, 1), (1, 1, 1, 1)),
    "one channel, many pixels": conv((64, 1, 512, 512), (1, 1, 1, 1)),
    "one element, conv fused": conv_fused((1, 1, 2, 2), (1, 1, 1, 1)),
    "one element, depthwise": conv((1, 2, 1, 1), (2, 1, 1, 1), groups=2),
    "one element, linear": linear(1, 1, 1),
    "one element, pool": pool((1, 1, 1, 1), 1, 1),
    "one channel, batch norm": batchnorm(64, 1, 56, 56),
    "one element, channel scales": channel_scales(1, 1, 1, 1),
    "one column, resize": resize((1, 1, 2, 1), (3, 2)),
    "one element, bins": adaptive_pool((1, 1, 1, 1), (1, 1)),
    "one element, unpooling": unpool((1, 1, 1, 1), (1, 1)),
    "one column, padding": pad((1, 1, 2, 2), 1),
    "past int32, conv": conv((2**14, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "past int32, conv fused": conv_fused((2**14, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "past int32, linear": linear(2**21, 1024, 1024),
    "past int32, batch norm": batchnorm(2**14, 64, 56, 56),
    "past int32, addition": additions(2**31),
    "past int32, channel scales": channel_scales(2**14, 64, 56, 56),
    "past int32, bins": adaptive_pool((2**14, 64, 56, 56), (7, 7)),
    "past int32, resize": resize((2**14, 64, 28, 28), (56, 56)),
    "past int32, unpooling": unpool((2**14, 64, 28, 28), (56, 56)),
    "past int32, pixel shuffle": layer(lambda nn: nn.PixelShuffle(2), (2**15, 64, 32, 32)),
    "past int32, ReLU": layer(lambda nn: nn.ReLU(), (2**31,)),
    "past int32, PReLU": layer(lambda nn: nn.PReLU(64), (2**14, 64, 56, 56)),
}
# The names with rows in bench/compile/recorded/: the shapes of networks.
HELD = {name for name in EVERYWHERE | USUALLY if not name.startswith(("one ", "past "))} | {"one image"}
# On Hopper: copies for the kernels with TMA, and convolutions that use the pointer kernels.
FOR_TMA = {
    "one element, relayout": relayouts(1, 1, 1, 1, channels=8),
    "past int32, relayout": relayouts(2**14, 64, 56, 56),
}
NOT_TMA = {
    "odd 3 x 3": conv((32, 127, 28, 28), (127, 127, 3, 3), padding=1),
    "odd 3 x 3 activations": conv_activations((32, 127, 28, 28), 127),
    "odd 3 x 3 residuals": residuals((32, 127, 28, 28), 127),
    "odd 3 x 3 fused": epilogues((32, 127, 28, 28), (127, 127, 3, 3)),
    "dilated, few channels in": conv((32, 16, 28, 28), (128, 16, 3, 3), padding=2, dilation=2),
    "dilated, few channels out": conv((32, 128, 28, 28), (16, 128, 3, 3), padding=2, dilation=2),
    "past int32, odd": conv((2**14, 63, 56, 56), (63, 63, 3, 3), padding=1),
    "past int32, odd fused": epilogues((2**14, 63, 56, 56), (63, 63, 3, 3)),
    "one odd image": conv((1, 511, 7, 7), (511, 511, 3, 3), padding=1),
}


def rows(architecture: str) -> Iterator[Row]:
    for name, passes in EVERYWHERE.items():
        for arithmetic, channels_last in itertools.product(ARITHMETIC, (True, False)):
            yield name, arithmetic, channels_last, passes
    for name, passes in (USUALLY | (FOR_TMA | NOT_TMA if architecture == "sm_90" else {})).items():
        yield name, "fp16", True, passes
        yield name, "tf32", False, passes
        if name in NOT_TMA:
            yield name, "fp32", True, passes
