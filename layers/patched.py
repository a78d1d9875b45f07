"""Calls of torch's functions on trinn's kernels: `patched`."""

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

from .pad2d import pad2d


def _with_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs | {"return_indices": True})


# Each function of torch.nn.functional that trinn has too, and the other names under which torch has the same.
FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(F, name): getattr(layers, name) for name in layers.__all__ if name.islower() and hasattr(F, name)
} | {
    torch.relu: layers.relu,
    torch.relu_: layers.relu_,
    Tensor.relu: layers.relu,
    Tensor.relu_: layers.relu_,
    torch.max_pool2d: layers.max_pool2d,
    F.max_pool2d_with_indices: _with_indices(layers.max_pool2d),
    F.adaptive_max_pool2d_with_indices: _with_indices(layers.adaptive_max_pool2d),
}


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """torch.nn.functional.pad in the modes that trinn has; NotImplementedError in others."""
    return pad2d(input, pad, mode)


class patched(TorchFunctionMode, ContextDecorator):
    """Within, what trinn has of torch.nn.functional runs on trinn's kernels: for a forward that calls functions.

        with trinn.patched():
            loss = model(images).sum()

        @trinn.patched()
        def forward(self, input): ...

    It covers F.relu, torch.relu and Tensor.relu, F.max_pool2d and torch.max_pool2d, F.conv2d, F.linear, F.interpolate and so
    on, whoever calls them, layers of torch.nn too. A call of one of them that trinn cannot compute, such as F.interpolate in a
    mode that it does not have, raises NotImplementedError; F.pad is torch's in the modes that trinn does not have. All other
    functions are torch's, as before, with all that they call: F.lp_pool2d and its kin, F.local_response_norm,
    nn.MultiheadAttention, nn.LSTM and its kin.

    It may be entered within itself and under torch.compile, holds for the thread that enters it, and ends with the block, also
    by an exception. If it decorates a generator, it holds while that runs, and not while the caller does.

    A backward pass needs no `patched`: it goes by what ran forward. But where a forward runs anew in the backward pass, under
    torch.utils.checkpoint, `patched` has to be entered inside of what is checkpointed.
    """

    def __call__(self, func: Any) -> Any:
        """`func` as a function within.

        Raises:
            TypeError: an async function, since it would hold for other tasks while that one waits.
        """
        if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError("trinn.patched cannot decorate an async function: enter it there, around what does not await")
        return _wrap_generator(type(self), func) if inspect.isgeneratorfunction(func) else super().__call__(func)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.unflatten:
            return args[0].unflatten(*args[1:], **kwargs or {})  # torch.compile follows the method, not the function
        if func in (F.pad, torch._C._nn.pad):
            with contextlib.suppress(NotImplementedError):
                return pad(*args, **kwargs or {})
        return FUNCTIONS.get(func, func)(*args, **kwargs or {})
