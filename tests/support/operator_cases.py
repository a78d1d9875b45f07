"""Calls of every operator of trinn.layers, and the same calls in torch, collected from the records in tests/operators/."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import registry
from tests.operators.activation import exact_hardsigmoid
from tests.support.check import on_a_cpu, randn
from tests.support.record import OperatorCase, Shape, table
from trinn.layers.pad2d import pad2d


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
    def avg_pool2d(x: Tensor, **options: Any) -> Tensor:
        if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last):  # its gradient ignores padding: pytorch#188344
            return F.avg_pool2d(x.contiguous(), **options).contiguous(memory_format=torch.channels_last)
        return F.avg_pool2d(x, **options)

    hardsigmoid = staticmethod(exact_hardsigmoid)

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name, None) or super().__getattr__(name)


CASES: dict[str, OperatorCase] = table("calls", Ours())
TORCH_CASES: dict[str, OperatorCase] = table("calls", Torchs())
TMA_CASES: dict[str, OperatorCase] = table("tma", Ours())  # tests/support/tma.py runs them on the TMA kernels


def like(tensor: Tensor) -> Tensor:
    """Values for the gradient of a tensor, in the memory format of the tensor."""
    return torch.empty_like(tensor).copy_(randn(*tensor.shape, dtype=tensor.dtype, seed=1))


def results(
    case: OperatorCase,
    tensors: list[Tensor],
    others: tuple[Tensor, ...] = (),
    laid_out: Callable[[Tensor], Tensor] = lambda upstream: upstream,
) -> dict[str, Tensor]:
    """Outputs, gradients and second gradients, by name. `laid_out` copies each upstream gradient, e.g. to other strides."""
    inputs = [t.detach().requires_grad_() for t in tensors]
    result = case.function(*inputs, *others)
    outputs = result if isinstance(result, tuple) else (result,)
    found = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    dy = laid_out(like(outputs[0])).requires_grad_()
    first = torch.autograd.grad(outputs[0], inputs, dy, create_graph=True)
    found |= {f"gradient {i}": g.detach() for i, g in enumerate(first)}
    second = torch.autograd.grad(first, [dy, *inputs], [laid_out(like(g)) for g in first], allow_unused=True)
    return found | {f"second gradient {i}": g.detach() for i, g in enumerate(second) if g is not None}
