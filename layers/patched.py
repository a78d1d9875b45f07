"""Calls of torch's functions on trinn's kernels: `patched`."""

import inspect
from collections.abc import Callable
from contextlib import ContextDecorator
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._contextlib import _wrap_generator

from trinn import layers


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


def _seen_through(function: Any) -> Callable[..., Any]:
    """A function of torch.nn.functional that does not ask whether a mode takes its place, so that a mode sees what it calls."""
    code = function.__code__
    # What asks is a name of the module; `callable` in its place says that tensors, and tuples of them, are not.
    names = tuple("callable" if name.startswith("has_torch_function") else name for name in code.co_names)
    twin = FunctionType(code.replace(co_names=names), function.__globals__, function.__name__, function.__defaults__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


# Functions of torch.nn.functional that call some of FUNCTIONS, where a mode would see them alone.
COMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    function: _seen_through(function)
    for function in (F.local_response_norm, F.lp_pool1d, F.lp_pool2d, F.lp_pool3d, F.multi_head_attention_forward)
}


class patched(TorchFunctionMode, ContextDecorator):
    """Within, what trinn has of torch.nn.functional runs on trinn's kernels: for a forward that calls functions.

        with trinn.patched():
            loss = model(images).sum()

        @trinn.patched()
        def forward(self, input): ...

    It covers F.relu, torch.relu and Tensor.relu, F.max_pool2d and torch.max_pool2d, F.conv2d, F.linear, F.interpolate and so
    on, whoever calls them, layers of torch.nn too, and functions of torch's that are written in Python: F.lp_pool2d,
    nn.MultiheadAttention and nn.TransformerEncoderLayer, say. What torch computes as one operator stays torch's, even where it
    has such a step within: nn.LSTM and its kin, F.instance_norm, F.linear_cross_entropy. A call of a function above that trinn
    cannot compute, such as F.interpolate in a mode that it does not have, raises NotImplementedError; all other functions are
    torch's, as before. It may be entered within itself and under torch.compile, holds for the thread that enters it, and ends
    with the block, also by an exception. It holds while a generator that it decorates runs, not while that one's caller does.

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
        if func in COMPOSED and all(kind is Tensor for kind in types):
            with self:
                return COMPOSED[func](*args, **kwargs or {})
        if func is Tensor.unflatten:
            return args[0].unflatten(*args[1:], **kwargs or {})  # torch.compile follows the method, not the function
        return FUNCTIONS.get(func, func)(*args, **kwargs or {})
