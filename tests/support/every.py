"""Calls of every operator of trinn.layers, and the same calls in torch: the table for tests of all operators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trinn.layers as tnn
from bench import registry
from tests.support.check import DEVICE, on_a_cpu, randn
from trinn.layers.pad2d import pad2d

Shape = tuple[int, ...]


class Every(NamedTuple):
    """A function of float tensors with these shapes. `others` returns the tensors of its further arguments."""

    function: Callable[..., Any]
    shapes: tuple[Shape, ...]
    others: Callable[[], tuple[Tensor, ...]] = tuple
    per_image: bool = True  # the output of an image depends on no other image
    deterministic: bool = True  # torch has a deterministic implementation on a GPU

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(self.shapes)]


def _statistics() -> tuple[Tensor, Tensor]:
    return randn(5), randn(5).abs() + 0.5


def _places() -> tuple[Tensor]:
    """Indices of an unpooling. Two values have index 3, and two have index 7."""
    return (torch.tensor([0, 3, 3, 7, 9, 20, 7, 24, 23], device=DEVICE).reshape(1, 1, 3, 3).expand(2, 5, 3, 3).contiguous(),)


def called(module: nn.Module) -> Callable[..., Any]:
    """A module as a function of its inputs and, after them, its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def function(*tensors: Tensor) -> Any:
        inputs = len(tensors) - len(names)
        return torch.func.functional_call(module, dict(zip(names, tensors[inputs:], strict=True)), tensors[:inputs])

    return function


IMAGE = (2, 5, 7, 6)
FILTERS = ((3, 5, 3, 3), (3,))


def operators(nn: Any) -> dict[str, Every]:
    """The calls, in a namespace with the names of torch.nn and torch.nn.functional."""

    def conv() -> torch.nn.Conv2d:
        return nn.Conv2d(5, 3, 3, padding=1)

    def batch_norm(training: bool) -> Callable[..., Tensor]:
        return lambda x, w, b, mean, var: nn.batch_norm(x, mean.clone(), var.clone(), w, b, training)

    def interpolate(**options: Any) -> Callable[..., Tensor]:
        return lambda x: nn.interpolate(x, **options)

    return {
        "conv2d": Every(lambda x, w, b: nn.conv2d(x, w, b, stride=2, padding=1), (IMAGE, (3, 5, 3, 3), (3,))),
        "conv2d, groups": Every(
            lambda x, w, b: nn.conv2d(x, w, b, padding=2, dilation=2, groups=2), ((2, 6, 7, 6), (4, 3, 3, 2), (4,))
        ),
        "conv2d, depthwise": Every(
            lambda x, w, b: nn.conv2d(x, w, b, stride=2, padding=1, groups=5), (IMAGE, (10, 1, 3, 3), (10,))
        ),
        "conv_transpose2d": Every(
            lambda x, w, b: nn.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1), (IMAGE, (5, 3, 3, 3), (3,))
        ),
        "conv_transpose2d, depthwise": Every(
            lambda x, w, b: nn.conv_transpose2d(x, w, b, stride=3, groups=5), (IMAGE, (5, 1, 2, 2), (5,))
        ),
        "conv2d, ReLU": Every(called(nn.ConvReLU2d(conv(), nn.ReLU())), (IMAGE, *FILTERS)),
        "conv2d, ReLU, max pool": Every(called(nn.ConvReLUMaxPool2d(conv(), nn.ReLU(), nn.MaxPool2d(2))), (IMAGE, *FILTERS)),
        "conv2d, batch norm, ReLU": Every(
            called(nn.ConvBNReLU2d(conv(), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU())),
            (IMAGE, *FILTERS, (3,), (3,)),
            per_image=False,
        ),  # fmt: skip
        "batch norm, addition, ReLU": Every(
            called(nn.BNAddReLU2d(nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU())),
            (IMAGE, IMAGE, (5,), (5,)),
            per_image=False,
        ),  # fmt: skip
        "linear, ReLU": Every(called(nn.LinearReLU(nn.Linear(37, 19), nn.ReLU())), ((3, 37), (19, 37), (19,))),
        "linear": Every(nn.linear, ((3, 37), (19, 37), (19,))),
        "relu": Every(nn.relu, (IMAGE,)),
        "relu, in place": Every(lambda x: nn.relu_(x * 1), (IMAGE,)),
        "max_pool2d": Every(lambda x: nn.max_pool2d(x, 3, 2, 1), (IMAGE,)),
        "max_pool2d, indices": Every(lambda x: nn.max_pool2d(x, 2, 1, 1, 2, True, True), (IMAGE,)),
        "avg_pool2d": Every(lambda x: nn.avg_pool2d(x, 3, 2, 1, True, False), (IMAGE,)),
        "adaptive_avg_pool2d": Every(lambda x: nn.adaptive_avg_pool2d(x, (3, 4)), (IMAGE,), deterministic=False),
        "adaptive_max_pool2d": Every(lambda x: nn.adaptive_max_pool2d(x, (3, 8), True), (IMAGE,), deterministic=False),
        "max_unpool2d": Every(
            lambda x, i: nn.max_unpool2d(x, i, 2, output_size=(5, 5)), ((2, 5, 3, 3),), _places, deterministic=False
        ),
        "batch_norm, training": Every(batch_norm(True), (IMAGE, (5,), (5,)), _statistics, per_image=False),
        "batch_norm": Every(batch_norm(False), (IMAGE, (5,), (5,)), _statistics),
        "interpolate, bilinear": Every(interpolate(size=(11, 4), mode="bilinear"), (IMAGE,), deterministic=False),
        "interpolate, bilinear, corners": Every(
            interpolate(scale_factor=1.7, mode="bilinear", align_corners=True), (IMAGE,), deterministic=False
        ),
        "interpolate, antialias": Every(
            interpolate(size=(3, 4), mode="bilinear", antialias=True), (IMAGE,), deterministic=False
        ),
        "interpolate, nearest": Every(interpolate(scale_factor=2.5, mode="nearest"), (IMAGE,), deterministic=False),
        "interpolate, nearest-exact": Every(interpolate(size=(4, 9), mode="nearest-exact"), (IMAGE,), deterministic=False),
        "pad2d, reflect": Every(lambda x: nn.pad(x, (2, 1, 3, 0), "reflect"), (IMAGE,), deterministic=False),
        "pad2d, replicate": Every(lambda x: nn.pad(x, (2, 1, -1, 4), "replicate"), (IMAGE,), deterministic=False),
        "pad2d, circular": Every(lambda x: nn.pad(x, (2, 1, 3, 0), "circular"), (IMAGE,)),
    }


class Ours:
    """trinn's layers and functions, and the padding of its convolutions."""

    pad = staticmethod(pad2d)

    def __getattr__(self, name: str) -> Any:
        return getattr(tnn, name)


class Torchs(registry.Unfused):
    """torch's layers and functions. The names of the fused layers give the same layers one by one.

    On a GPU, functions whose CUDA kernels differ from the CPU's are computed on the CPU.
    """

    @staticmethod
    def interpolate(x: Tensor, **options: Any) -> Tensor:
        if options.get("antialias"):
            if x.dtype.itemsize == 2 and x.device.type == "cpu":  # torch has 16 bits on CUDA only
                return F.interpolate(x.float(), **options).to(x.dtype)
        elif x.is_cuda and options["mode"] == "bilinear" and torch.are_deterministic_algorithms_enabled():
            # In deterministic mode, torch runs a decomposition on a GPU.
            return on_a_cpu(F.interpolate)(x, **options)
        return F.interpolate(x, **options)

    @staticmethod
    def pad(x: Tensor, pad: Shape, mode: str) -> Tensor:
        return (on_a_cpu(F.pad) if x.is_cuda and mode != "circular" else F.pad)(x, pad, mode)

    @staticmethod
    def max_unpool2d(x: Tensor, *options: Any, **more: Any) -> Tensor:  # of several values for a position, CUDA keeps any one
        return (on_a_cpu(F.max_unpool2d) if x.is_cuda else F.max_unpool2d)(x, *options, **more)

    @staticmethod
    def avg_pool2d(x: Tensor, *options: Any) -> Tensor:
        if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last):  # its gradient ignores padding: pytorch#188344
            return F.avg_pool2d(x.contiguous(), *options).contiguous(memory_format=torch.channels_last)
        return F.avg_pool2d(x, *options)

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name, None) or super().__getattr__(name)


EVERY, TORCHS = operators(Ours()), operators(Torchs())

# Convolutions that tests/support/tma.py runs on the TMA kernels.
TMA_OPERATORS = {
    "conv2d": Every(lambda x, w, b: tnn.conv2d(x, w, b, padding=1), ((17, 16, 2, 3), (16, 16, 2, 3), (16,))),
    "conv2d, stride 2": Every(
        lambda x, w, b: tnn.conv2d(x, w, b, stride=2, padding=1), ((1, 16, 3, 18), (16, 16, 2, 3), (16,))
    ),
    "conv2d, 1x1": Every(tnn.conv2d, ((3, 16, 4, 8), (24, 16, 1, 1), (24,))),
    "conv2d, narrow groups": Every(
        lambda x, w, b: tnn.conv2d(x, w, b, padding=1, groups=4), ((2, 16, 2, 5), (32, 4, 2, 3), (32,))
    ),
    "conv2d, few channels": Every(
        lambda x, w, b: tnn.conv2d(x, w, b, stride=2, padding=3), ((2, 3, 5, 12), (16, 3, 7, 7), (16,))
    ),
    "conv_transpose2d": Every(
        lambda x, w, b: tnn.conv_transpose2d(x, w, b, stride=2, padding=1), ((2, 16, 2, 3), (16, 16, 4, 4), (16,))
    ),
}  # fmt: skip


def like(tensor: Tensor) -> Tensor:
    """Values for the gradient of a tensor, in the memory format of the tensor."""
    return torch.empty_like(tensor).copy_(randn(*tensor.shape, dtype=tensor.dtype, seed=1))


def results(
    case: Every,
    tensors: list[Tensor],
    others: tuple[Tensor, ...] = (),
    placed: Callable[[Tensor], Tensor] = lambda upstream: upstream,
) -> dict[str, Tensor]:
    """Outputs, gradients and second gradients, by name. `placed` moves each upstream gradient, for example to other strides."""
    inputs = [t.detach().requires_grad_() for t in tensors]
    result = case.function(*inputs, *others)
    outputs = result if isinstance(result, tuple) else (result,)
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    dy = placed(like(outputs[0])).requires_grad_()
    first = torch.autograd.grad(outputs[0], inputs, dy, create_graph=True)
    found |= {f"gradient {i}": g.detach() for i, g in enumerate(first)}
    second = torch.autograd.grad(first, [dy, *inputs], [placed(like(g)) for g in first], allow_unused=True)
    return found | {f"second gradient {i}": g.detach() for i, g in enumerate(second) if g is not None}
