"""Run calls of torch's functions on trinn's kernels: `patched`."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._contextlib import _wrap_generator

from trinn import layers

from . import activation
from .pad2d import pad2d


def _with_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs | {"return_indices": True})


# The activations that are functions of torch too, and some of them methods of tensors.
_ACTIVATIONS = "relu", "relu_", "celu", "celu_", "selu", "selu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "prelu"
# trinn's function for each function of torch.nn.functional, and for torch's other names of the same function.
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(F, name): ours for name, ours in vars(layers).items() if inspect.isfunction(ours) and hasattr(F, name)
} | {
    **{getattr(torch, name): getattr(activation, name) for name in _ACTIVATIONS},
    **{getattr(Tensor, name): getattr(activation, name) for name in _ACTIVATIONS if hasattr(Tensor, name)},
    torch.max_pool2d: layers.max_pool2d,
    F.max_pool2d_with_indices: _with_indices(layers.max_pool2d),
    F.adaptive_max_pool2d_with_indices: _with_indices(layers.adaptive_max_pool2d),
}


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """torch.nn.functional.pad in trinn's modes; raises NotImplementedError for other modes."""
    return pad2d(input, pad, mode)


class patched(TorchFunctionMode, ContextDecorator):
    """A context manager and decorator: inside it, functions of torch.nn.functional run on trinn's kernels.

        with trinn.patched():
            loss = model(images).sum()

        @trinn.patched()
        def forward(self, input): ...

    It replaces every function of torch.nn.functional that trinn has, such as F.conv2d, and its other names, such as torch.relu
    and Tensor.relu. It does so in user code and in layers of torch.nn. The functions raise NotImplementedError for arguments
    that trinn does not support, such as another mode of F.interpolate. Only F.pad falls back to torch for its other modes.

    All other functions are torch's, and internally call torch's functions: F.lp_pool2d and its variants,
    F.local_response_norm, nn.MultiheadAttention, nn.LSTM and its variants.

    `patched` may be nested and may run under torch.compile. It affects only the thread that enters it, and ends with the block,
    also after an exception. If it decorates a generator, it is active only while the generator runs, not while its caller does.

    A backward pass needs no `patched`, since it uses the Functions of the forward pass. But torch.utils.checkpoint runs the
    forward again during the backward pass, so there `patched` must be entered inside the checkpointed function.
    """

    def __call__(self, func: Any) -> Any:
        """Decorate `func`: `patched` is active during each call.

        Raises:
            TypeError: an async function: `patched` would affect other tasks while that function waits.
        """
        if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError("trinn.patched cannot decorate an async function: enter it inside, around code without await")
        return _wrap_generator(type(self), func) if inspect.isgeneratorfunction(func) else super().__call__(func)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.unflatten:
            return args[0].unflatten(*args[1:], **kwargs or {})  # torch.compile traces a method call, but not `func` itself
        if func in (F.pad, torch._C._nn.pad):
            with contextlib.suppress(NotImplementedError):
                return pad(*args, **kwargs or {})
        return FUNCTIONS.get(func, func)(*args, **kwargs or {})
