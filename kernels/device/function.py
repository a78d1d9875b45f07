"""Functions that kernels call, and how a kernel takes one as an argument."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import triton

from ..runtime.interpreter import INTERPRETED

# What a kernel calls. The interpreter would prepare each call anew, for some milliseconds, where a plain call does the same.
device_function: Callable[..., Any] = (lambda function: function) if INTERPRETED else triton.jit


class FunctionName(str):
    """A device function as a constant of a kernel: a text, since Triton 3.6 writes constants down for its hooks."""

    function: Any


@functools.cache
def name_of(function: Callable[..., Any]) -> FunctionName:
    """A device function by its name and, where it is compiled, its key: a kernel's key follows from that."""
    name = FunctionName(f"{function.__module__}.{function.__name__} {getattr(function, 'cache_key', '')}")
    name.function = function
    return name


@triton.constexpr_function
def function_of(name: FunctionName) -> Any:
    """The function."""
    return name.function


def hash_device_functions(modules: Iterable[Any]) -> None:
    """Hash what kernels call before any kernel: Triton's key of a kernel depends on whether that was hashed before."""
    for module in modules:
        for value in list(vars(module).values()):
            if isinstance(value, triton.JITFunction) and not value.__name__.endswith("_kernel"):
                value.cache_key  # noqa: B018
