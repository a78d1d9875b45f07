"""Device functions, called by kernels, and their use as kernel arguments."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import triton

from ..runtime.interpreter import INTERPRETED
from ..runtime.triton_internals import cache_key

# Decorator of a device function. The interpreter would spend milliseconds per call on a triton.jit function; a plain Python
# function computes the same.
device_function: Callable[..., Any] = (lambda function: function) if INTERPRETED else triton.jit


class FunctionName(str):
    """A device function as a constexpr argument. It is a str because Triton 3.6 serialises constants for its hooks."""

    function: Any


@functools.cache
def name_of(function: Callable[..., Any]) -> FunctionName:
    """The FunctionName of a device function.

    On a GPU it contains Triton's cache key of the function: if the function changes, its callers are compiled again.
    """
    name = FunctionName(f"{function.__module__}.{function.__name__} {cache_key(function)}")
    name.function = function
    return name


@triton.constexpr_function
def function_of(name: FunctionName) -> Any:
    """The device function of a FunctionName."""
    return name.function


def hash_device_functions(modules: Iterable[Any]) -> None:
    """Compute Triton's cache keys of all device functions now, before those of the kernels.

    Otherwise the keys of two kernels with the same callee would depend on the order of their first launches, and a process with
    another order would miss both in the cache.
    """
    for module in modules:
        for value in list(vars(module).values()):
            if isinstance(value, triton.JITFunction) and not value.__name__.endswith("_kernel"):
                cache_key(value)
