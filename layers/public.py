"""The decorators of public functions and modules: `functional` and `layer`.

Tensor subclasses, a TorchFunctionMode and torch.fx (with its Proxy in place of a tensor) can override decorated functions, as
they override torch's. torch.fx treats decorated modules like torch's. A decorated function also checks its tensor arguments,
and raises with torch's message.
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
    """Decorate a function: tensor subclasses, modes and torch.fx can override it, and it checks its tensor arguments.

    The tensor arguments are the ones annotated `Tensor` or `Tensor | None`.

    Raises:
        TypeError: raised by the decorated function, if a tensor argument is no tensor.
    """
    parameters = enumerate(inspect.signature(function).parameters.values())
    tensors = [(i, p.name, p.annotation != Tensor) for i, p in parameters if p.annotation in (Tensor, Tensor | None)]

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        # torch.compile handles overrides itself.
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
    """Decorate a class: torch.fx treats its modules as leaves (one node in the graph) if it treats torch's class as a leaf.

    By default, torch.fx treats only classes defined in torch.nn as leaves. It would call the hooks of trinn's layers and trace
    their forward.
    """
    original: Any = cls._call_impl

    def call(self: Any, *args: Any, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        if has_torch_function(given) and type(self) is cls:
            tracer: Any = next((arg.tracer for arg in given if isinstance(arg, Proxy)), None)
            if tracer is not None and _is_leaf(self, tracer):
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, options)
        return original(self, *args, **options)

    cls._call_impl = call  # type: ignore[method-assign]
    cls.__prepare_scriptable__ = refuse_script  # type: ignore[attr-defined]
    return cls


def _is_leaf(module: nn.Module, tracer: Any) -> bool:
    """Whether a tracer would treat a layer of torch's class, with this layer's attributes, as a leaf."""
    torchs = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn."))
    twin: Any = object.__new__(torchs if torchs is not nn.Sequential else nn.Module)  # a fused sequence is one layer
    vars(twin).update(vars(module))
    return bool(tracer.is_leaf_module(twin, tracer.path_of_module(module)))


def refuse_script(*_: Any) -> None:
    """Called by torch.jit.script in place of compiling a module or a function."""
    raise RuntimeError("torch.jit.script cannot compile trinn's layers; torch.export and torch.compile can")
