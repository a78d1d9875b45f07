"""What makes a function and a class of this library public, as torch.nn.functional's and torch.nn's are: two decorators.

`functional` and `layer` hand a call over to what overrides torch's functions: tensor subclasses, a TorchFunctionMode, and
torch.fx, whose Proxy stands for a tensor. What is no tensor is refused in torch's words.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function

Functional = TypeVar("Functional", bound=Callable[..., Any])
Layer = TypeVar("Layer", bound=type[nn.Module])
_MISSING = object()


def functional(function: Functional) -> Functional:
    """Decorate a function so that tensor subclasses, modes and torch.fx can override it, and a wrong argument is refused.

    The annotations of the function say which of its arguments are tensors.

    Raises:
        TypeError: the decorated function got something else in place of a tensor.
    """
    parameters = enumerate(inspect.signature(function).parameters.values())
    tensors = [(i, p.name, p.annotation != Tensor) for i, p in parameters if p.annotation in (Tensor, Tensor | None)]

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        # torch.compile knows what overrides functions by itself.
        if has_torch_function(given) and not torch.compiler.is_compiling():
            return handle_torch_function(call, given, *args, **options)
        count = len(args)
        for place, name, optional in tensors:
            value = args[place] if place < count else options.get(name, _MISSING)
            if not (isinstance(value, Tensor) or value is _MISSING or optional and value is None):
                what = f"{function.__name__}(): argument '{name}' (position {place + 1})"
                raise TypeError(f"{what} must be Tensor, not {type(value).__name__}")
        return function(*args, **options)

    call.__prepare_scriptable__ = refuse_script  # type: ignore[attr-defined]
    return cast(Functional, call)


def layer(cls: Layer) -> Layer:
    """Decorate a class so that torch.fx makes its modules leaves, one node of the graph, wherever torch's class is a leaf.

    torch.fx decides by the module that defines a class. Without this it would call hooks of our layers and trace their forward.
    """
    called: Any = cls._call_impl

    def call(self: Any, *args: Any, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        if has_torch_function(given) and type(self) is cls:
            tracer: Any = next((arg.tracer for arg in given if isinstance(arg, Proxy)), None)
            if tracer is not None and _is_leaf(self, tracer):
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, options)
        return called(self, *args, **options)

    cls._call_impl = call  # type: ignore[method-assign]
    cls.__prepare_scriptable__ = refuse_script  # type: ignore[attr-defined]
    return cls


def _is_leaf(module: nn.Module, tracer: Any) -> bool:
    """Whether a tracer would take torch's layer, in the place of ours, for a leaf."""
    torchs = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn."))
    twin: Any = object.__new__(torchs if torchs is not nn.Sequential else nn.Module)  # fused layers are one layer
    vars(twin).update(vars(module))
    return bool(tracer.is_leaf_module(twin, tracer.path_of_module(module)))


def refuse_script(*_: Any) -> None:
    """What torch.jit.script meets in place of a module or a function."""
    raise RuntimeError("torch.jit.script cannot compile trinn's layers; torch.export and torch.compile can")
