"""Representative shapes of networks, and functions that launch every operator's passes on them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trinn.kernels import launchers
from trinn.kernels.conv2d import relayout

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
Passes = Callable[[New], object]  # launches the passes of an operator
Case = tuple[str, str, bool, Passes]  # the name, the key of ARITHMETIC, whether channels_last


def conv(x: Shape, w: Shape, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Passes:
    """The passes of a convolution. A transposed convolution has the same passes."""
    size, geometry = _geometry(x, w, stride, padding, dilation, groups)

    def passes(new: New) -> None:
        gather(x, w, stride, padding, dilation, groups)(new)
        wgrad(x, w, stride, padding, dilation, groups)(new)
        launchers.channel_sum(new(x[0], w[0], *size))

    return passes


def gather(x: Shape, w: Shape, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Passes:
    """fprop and dgrad of a convolution, the two passes of the gather kernels."""
    size, geometry = _geometry(x, w, stride, padding, dilation, groups)

    def passes(new: New) -> None:
        launchers.conv2d_fprop(new(*x), new(*w), new(w[0]), size, *geometry)
        launchers.conv2d_dgrad(new(x[0], w[0], *size), new(*w), None, x[2:], *geometry)

    return passes


def wgrad(x: Shape, w: Shape, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> Passes:
    """The gradient of a convolution's filters."""
    size, geometry = _geometry(x, w, stride, padding, dilation, groups)
    return lambda new: launchers.conv2d_wgrad(new(*x), new(x[0], w[0], *size), w[2:], *geometry)


def _geometry(x: Shape, w: Shape, stride: int, padding: int, dilation: int, groups: int) -> tuple[list[int], Any]:
    """The size of the result, and the launchers' stride, padding, dilation and groups."""
    size = [(n + 2 * padding - dilation * (taps - 1) - 1) // stride + 1 for n, taps in zip(x[2:], w[2:], strict=True)]
    return size, ((stride, stride), (padding, padding), (dilation, dilation), groups)


def conv_fused(x: Shape, w: Shape, stride: int = 1, padding: int = 0, groups: int = 1) -> Passes:
    """Convolutions fused with the operators after them."""
    size = [(n + 2 * padding - taps) // stride + 1 for n, taps in zip(x[2:], w[2:], strict=True)]
    geometry = size, (stride, stride), (padding, padding), (1, 1), groups
    window = [n // 2 for n in size], (2, 2), (2, 2), (0, 0), (1, 1)

    def passes(new: New) -> None:
        image, filters, scale, shift = new(*x), new(*w), new(w[0]), new(w[0])
        launchers.conv2d_affine(image, filters, scale, shift, True, *geometry)
        launchers.conv2d_relu_max_pool2d(image, filters, shift, *geometry, *window)
        launchers.conv2d_statistics(image, filters, None, *geometry)

    return passes


def linear(rows: int, inputs: int, outputs: int) -> Passes:
    def passes(new: New) -> None:
        x, w, dy = new(rows, inputs), new(outputs, inputs), new(rows, outputs)
        launchers.linear_fprop(x, w, new(outputs), False)
        launchers.linear_fprop(x, w, new(outputs), True)
        launchers.linear_dgrad(dy, w)
        launchers.linear_wgrad(x, dy)

    return passes


def product(m: int, n: int, k: int) -> Passes:
    """(m, k) @ (k, n), with contiguous rows of length k."""
    return lambda new: launchers.linear_fprop(new(m, k), new(n, k), None, False)


def scattered_product(m: int, n: int, k: int) -> Passes:
    """A product of about this size with strided operands: the wgrad of a convolution that only the pointer kernel supports."""
    return wgrad((1, n - 1, 4, k // 4), (m - 1, n - 1, 1, 1))


def relu(*shape: int) -> Passes:
    return lambda new: launchers.relu_backward(new(*shape), launchers.relu_forward(new(*shape)))


def batchnorm(*shape: int) -> Passes:
    def passes(new: New) -> None:
        x, dy, w, b = new(*shape), new(*shape), new(shape[1]), new(shape[1])
        mean, var = launchers.batchnorm2d_statistics(x)
        launchers.batchnorm2d_merge(mean[None], var[None], mean[:1])
        launchers.batchnorm2d_update(w, b, mean, var, 0.1, x.numel() // shape[1])
        launchers.batchnorm2d_forward(x, mean, var, w, b, None, False, 1e-5)
        sums = launchers.batchnorm2d_sums(x, dy, mean, var, 1e-5)
        launchers.batchnorm2d_backward(x, dy, mean, var, w, sums, 1e-5)
        launchers.batchnorm2d_backward(x, dy, mean, var, w, None, 1e-5)
        launchers.batchnorm2d_update(w, b, mean, var, 0.1, 0, mean[:1])
        launchers.batchnorm2d_backward(x, dy, mean, var, w, sums, 1e-5, mean[:1])
        launchers.batchnorm2d_fold(mean, var, w, b, None, 1e-5)
        y = launchers.batchnorm2d_forward(x, mean, var, w, b, new(*shape), True, 1e-5)
        launchers.batchnorm2d_relu_sums(x, dy, y, mean, var, 1e-5)

    return passes


def pool(x: Shape, taps: int, stride: int, padding: int = 0) -> Passes:
    size = [(n + 2 * padding - taps) // stride + 1 for n in x[2:]]
    window = (taps, taps), (stride, stride), (padding, padding)

    def passes(new: New) -> None:
        image, dy = new(*x), new(*x[:2], *size)
        _, codes = launchers.max_pool2d_forward(image, size, *window, (1, 1))
        launchers.max_pool2d_backward(dy, codes, x[2:], *window, (1, 1))
        launchers.max_pool2d_pick(image, codes, x[2:], *window, (1, 1))
        launchers.max_pool2d_pick(None, codes, x[2:], *window, (1, 1))
        launchers.avg_pool2d_forward(image, size, *window, True, None)
        launchers.avg_pool2d_backward(dy, x[2:], *window, True, None, image.stride(1) == 1)

    return passes


def adaptive_pool(x: Shape, size: Shape) -> Passes:
    def passes(new: New) -> None:
        image, dy, bins = new(*x), new(*x[:2], *size), ((),) * 4
        _, codes = launchers.max_pool2d_forward(image, size, *bins)
        launchers.max_pool2d_backward(dy, codes, x[2:], *bins)
        launchers.max_pool2d_pick(image, codes, x[2:], *bins)
        launchers.max_pool2d_pick(None, codes, x[2:], *bins)
        launchers.avg_pool2d_forward(image, size, *bins[:3], True, None)
        launchers.avg_pool2d_backward(dy, x[2:], *bins[:3], True, None, image.stride(1) == 1)

    return passes


def unpool(x: Shape, size: Shape) -> Passes:
    def passes(new: New) -> None:
        values, dy, indices = new(*x), new(*x[:2], *size), new(*x, dtype=torch.int64)
        launchers.max_unpool2d_forward(values, indices, size)
        launchers.max_unpool2d_backward(dy, indices, values.stride(1) == 1)
        launchers.max_unpool2d_add(values, indices, size)

    return passes


def resize(x: Shape, size: Shape) -> Passes:
    def passes(new: New) -> None:
        image, dy = new(*x), new(*x[:2], *size)
        launchers.bilinear2d_forward(image, size, (), False)
        launchers.bilinear2d_backward(dy, x[2:], (), False)
        launchers.bilinear2d_forward(image, size, (), True)
        launchers.bilinear2d_backward(dy, x[2:], (), True)
        for exact in (False, True):
            launchers.nearest2d_forward(image, size, (), exact)
            launchers.nearest2d_backward(dy, x[2:], (), exact)
        launchers.antialias2d_forward(image, size, (), False)
        launchers.antialias2d_backward(dy, x[2:], (), False)

    return passes


def pad(x: Shape, border: int) -> Passes:
    def passes(new: New) -> None:
        for mode in ("reflect", "replicate", "circular"):
            launchers.pad2d_forward(new(*x), [border] * 4, mode)
            launchers.pad2d_backward(new(*x[:2], *(n + 2 * border for n in x[2:])), [border] * 4, mode)

    return passes


def shuffle(x: Shape, factor: int) -> Passes:
    return lambda new: launchers.pixel_unshuffle(launchers.pixel_shuffle(new(*x), factor), factor)


def relayouts(*shape: int, channels: int | None = None) -> Passes:
    """Every copy of relayout.py, from both memory formats."""
    n, c, *size = shape

    def passes(new: New) -> None:
        for order in (False, True):
            relayout.to_channels_last(new(*shape, channels_last=order), channels)
            relayout.to_images_last(new(*shape, channels_last=order))
            relayout.to_bf16_terms(new(n, channels or c, *size, channels_last=order, dtype=torch.float32))

    return passes


# In every dtype, precision and memory format.
EVERYWHERE: dict[str, Passes] = {
    "ResNet 3x3": conv((32, 128, 28, 28), (128, 128, 3, 3), padding=1),
    "ResNet 3x3 fused": conv_fused((32, 128, 28, 28), (128, 128, 3, 3), padding=1),
    "depthwise 3x3": conv((32, 144, 28, 28), (144, 1, 3, 3), padding=1, groups=144),
    "ResNet batch norm": batchnorm(32, 128, 28, 28),
    "ResNet ReLU": relu(32, 128, 28, 28),
    "ResNet pool": pool((32, 64, 112, 112), 3, 2, 1),
    "upsample by 2": resize((32, 64, 28, 28), (56, 56)),
    "AlexNet linear": linear(128, 9216, 4096),
    "overlapping bins": adaptive_pool((32, 64, 13, 13), (6, 6)),
    "SegNet unpooling": unpool((8, 64, 56, 56), (112, 112)),
}
# In fp16 channels_last and in TF32 contiguous.
USUALLY: dict[str, Passes] = {
    "LeNet conv1": conv((64, 1, 32, 32), (6, 1, 5, 5)),
    "LeNet conv2": conv((64, 6, 14, 14), (16, 6, 5, 5)),
    "LeNet conv2 fused": conv_fused((64, 6, 14, 14), (16, 6, 5, 5)),
    "LeNet linear3": linear(64, 84, 10),
    "LeNet pool": pool((64, 6, 28, 28), 2, 2),
    "AlexNet conv1": conv((128, 3, 224, 224), (64, 3, 11, 11), stride=4, padding=2),
    "ResNet conv1": conv((32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    "ResNet 1x1": conv((32, 64, 56, 56), (256, 64, 1, 1)),
    "ResNet 3x3 stride 2": conv((32, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    "ResNeXt 3x3": conv((32, 128, 56, 56), (128, 4, 3, 3), padding=1, groups=32),
    "dilated 3x3": conv((8, 256, 64, 64), (256, 256, 3, 3), padding=2, dilation=2),
    "U-Net up-convolution": conv((8, 64, 128, 128), (128, 64, 2, 2), stride=2),
    "depthwise 3x3 fused": conv_fused((32, 144, 28, 28), (144, 1, 3, 3), padding=1, groups=144),
    "depthwise 7x7": conv((32, 96, 56, 56), (96, 1, 7, 7), padding=3, groups=96),
    "depthwise, two filters": conv((32, 64, 56, 56), (128, 1, 3, 3), stride=2, padding=1, groups=64),
    "downsample by 2": resize((32, 64, 56, 56), (28, 28)),
    "one bin": adaptive_pool((32, 512, 7, 7), (1, 1)),
    "padding by 1": pad((32, 64, 56, 56), 1),
    "ESPCN pixel shuffle": shuffle((16, 36, 128, 128), 3),
    "ResNet 3x3 relayout": relayouts(32, 128, 28, 28),
    "ResNet 7 x 7 relayout": relayouts(64, 512, 7, 7),
    "AlexNet conv1 relayout": relayouts(128, 3, 224, 224, channels=8),
    "filters relayout": relayouts(512, 512, 3, 3),
    "one image": conv((1, 512, 7, 7), (512, 512, 3, 3), padding=1),
    # Triton specialises a kernel for a size of one.
    "one element, conv": conv((1, 1, 1, 1), (1, 1, 1, 1)),
    "one channel, many pixels": conv((64, 1, 512, 512), (1, 1, 1, 1)),
    "one element, conv fused": conv_fused((1, 1, 2, 2), (1, 1, 1, 1)),
    "one element, depthwise": conv((1, 2, 1, 1), (2, 1, 1, 1), groups=2),
    "one element, linear": linear(1, 1, 1),
    "one element, pool": pool((1, 1, 1, 1), 1, 1),
    "one channel, batch norm": batchnorm(64, 1, 56, 56),
    "one column, resize": resize((1, 1, 2, 1), (3, 2)),
    "one element, bins": adaptive_pool((1, 1, 1, 1), (1, 1)),
    "one element, relayout": relayouts(1, 1, 1, 1, channels=8),
    "one element, unpooling": unpool((1, 1, 1, 1), (1, 1)),
    "one column, padding": pad((1, 1, 2, 2), 1),
    "past int32, conv": conv((2**14, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "past int32, conv fused": conv_fused((2**14, 64, 56, 56), (64, 64, 3, 3), padding=1),
    "past int32, linear": linear(2**21, 1024, 1024),
    "past int32, batch norm": batchnorm(2**14, 64, 56, 56),
    "past int32, bins": adaptive_pool((2**14, 64, 56, 56), (7, 7)),
    "past int32, resize": resize((2**14, 64, 28, 28), (56, 56)),
    "past int32, unpooling": unpool((2**14, 64, 28, 28), (56, 56)),
    "past int32, relayout": relayouts(2**14, 64, 56, 56),
    "past int32, pixel shuffle": shuffle((2**15, 64, 32, 32), 2),
    "past int32, ReLU": relu(2**31),
}
# The names of the cases with rows in bench/compiled/: the shapes of networks.
HELD = {name for name in EVERYWHERE | USUALLY if not name.startswith(("one ", "past "))} | {"one bin", "one image"}
# A case for each tile of tuning.py.
POWERS = [2**i for i in range(4, 8)]
TILES = {f"{m} x {n}, sum of {k}": product(m, n, k) for m, n, k in itertools.product(POWERS, POWERS, POWERS[:3])}
TILES |= {
    f"{m} x {n}, scattered sum of {k}": scattered_product(m, n, k)
    for m, n, k in itertools.product(POWERS, POWERS[:3], POWERS[:2])
}
BLOCKS = {f"ReLU of {2**i}": relu(2**i) for i in range(4, 11)}

# Convolutions that use the pointer kernels on Hopper too, not TMA.
NOT_TMA = {
    "odd 3 x 3": conv((32, 127, 28, 28), (127, 127, 3, 3), padding=1),
    "odd 3 x 3 fused": conv_fused((32, 127, 28, 28), (127, 127, 3, 3), padding=1),
    "dilated, few channels in": conv((32, 16, 28, 28), (128, 16, 3, 3), padding=2, dilation=2),
    "dilated, few channels out": conv((32, 128, 28, 28), (16, 128, 3, 3), padding=2, dilation=2),
    "past int32, odd": conv((2**14, 63, 56, 56), (63, 63, 3, 3), padding=1),
    "past int32, odd fused": conv_fused((2**14, 63, 56, 56), (63, 63, 3, 3), padding=1),
    "one odd image": conv((1, 511, 7, 7), (511, 511, 3, 3), padding=1),
}


def convolutions() -> Iterator[Case]:
    """Convolutions that use all TMA tiles of tuning.py, with all kinds of operand loads.

    Most of them compile to the same code: compile_report.py skips a convolution if earlier ones cover its tile and loads.
    """
    for name, passes in _convolutions():
        yield name, "fp16", True, passes
        if " short" not in name:  # short sums have fewer stages
            yield name, "tf32", False, passes
            yield name, "fp32", True, passes
        if "1 x 1" in name or "fused" in name:  # these read contiguous images without a copy
            yield name, "fp16", False, passes
        if "fused" in name:  # statistics need more registers
            yield name, "bf16", False, passes


def _convolutions() -> Iterator[tuple[str, Passes]]:
    # Number of images, and their rows and columns: enough pixels for tiles of 256, 128 and 64 pixels.
    images: Sequence[Shape] = (
        (11, 56),
        (96, 14),
        (704, 7),
        (6, 56),
        (2, 56),
        (1, 56),
    )
    for c, taps, (n, size) in itertools.product((64, 128), (3, 1), images):
        x, w, name = (n, c, size, size), (c, c, taps, taps), f"{c} channels, {taps} x {taps}, {n} of {size} x {size}"
        yield name, gather(x, w, padding=taps // 2)
        yield f"{name}, fused", conv_fused(x, w, padding=taps // 2)
    for c, stride, size in itertools.product((40, 48, 64, 80, 96), (1, 2, 3), (28, 33)):
        yield f"{c} channels, stride {stride}, {size} x {size}", conv((32, c, size, size), (c, c, 3, 3), stride, padding=1)
    for c, groups in ((64, 2), (128, 4), (8, 8)):
        x, w = (32, c * groups, 28, 28), (c * groups, c, 3, 3)
        yield f"{groups} groups of {c}", conv(x, w, padding=1, groups=groups)
    # wgrad programs with each number of taps: taps of one filter row, then, for few channels, taps of one filter column.
    channels = 32, 64, 128, 256, 512, 40, 48, 56, 80, 88, 160, 176, 264
    for pixels, m, c, taps in itertools.product((24, 8), (64, 128), channels, range(1, 12)):
        name = f"{c} channels to {m}, taps of a row of {taps}, {'long' if pixels == 24 else 'short'} sums"
        yield name, wgrad((64, c, 1, pixels + taps - 1), (m, c, 1, taps))
    images, few = ((32, 112), (8, 64), (8, 32)), (1, 2, 3, 4, 6, 12, 24)
    for m, c, taps, stride, (n, size) in itertools.product((64, 128), few, (2, 3, 5, 7, 11), (1, 2, 4), images):
        x, w = (n, c, size, size), (m, c, taps, taps)
        yield (
            f"{c} channels to {m}, {taps} x {taps}, stride {stride}, {n} of {size} x {size}",
            conv(x, w, stride, padding=taps // 2),
        )
    # Runs of consecutive images and of consecutive columns, of each length.
    images = (64, 7), (32, 7), (16, 14), (1, 64), (1, 32), (1, 16)
    for m, (n, size), stride, taps in itertools.product((64, 128), images, (1, 2), (1, 3)):
        x, w = (n, 64, size, size), (m, 64, taps, taps)
        yield (
            f"64 channels to {m}, {taps} x {taps}, stride {stride}, {n} of {size} x {size}",
            wgrad(x, w, stride, padding=taps // 2),
        )


def tma_shapes(kernel: str, m: int, n: int) -> dict[str, Passes]:
    """Convolutions for a fixed tile of m by n, chosen by the caller for every product.

    For the kernel "conv2d", n is the number of pixels in a TMA box. For "wgrad", n is channels times taps of a program.
    """
    if kernel == "conv2d":
        return {f"tile of {m} x {n}": gather((11, 128, 56, 56), (128, 128, 3, 3), padding=1)}
    at_once = {c: n // c for c in (32, 64, 1 << n.bit_length() - 1) if n // c}
    return {
        f"{m} x {c} channels, 1 x {taps}, by {m} x {n}": wgrad((64, c, 1, 24), (m, c, 1, taps)) for c, taps in at_once.items()
    }


def cases(architecture: str) -> Iterator[Case]:
    for name, passes in EVERYWHERE.items():
        for arithmetic, channels_last in itertools.product(ARITHMETIC, (True, False)):
            yield name, arithmetic, channels_last, passes
    for name, passes in USUALLY.items():
        yield name, "fp16", True, passes
        yield name, "tf32", False, passes
    for name, passes in TILES.items():
        for arithmetic in ("fp16", "fp32", "fp64"):  # bf16 and tf32 have the same tiles and need no more registers
            yield name, arithmetic, False, passes
    for name, passes in BLOCKS.items():
        yield name, "fp16", False, passes
    for name, passes in NOT_TMA.items() if architecture == "sm_90" else ():
        yield name, "fp16", True, passes
        yield name, "tf32", False, passes
        yield name, "fp32", True, passes
