"""The decorators of public functions and modules: `functional` and `layer`.

With them a call can be overridden like a call of torch: by tensor subclasses, by a TorchFunctionMode, and by torch.fx, whose
Proxy takes the place of a tensor. An argument that must be a tensor is checked, and refused with torch's message.
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
        TypeError: by the decorated function, for an argument that should be a tensor and is not.
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
    """Decorate a class: torch.fx makes its modules leaves, one node of the graph, wherever torch's class is a leaf.

    By default only classes defined in torch.nn are leaves. Without this decorator torch.fx would call the hooks of trinn's
    layers and trace their forward.
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
    """Whether a tracer would treat torch's layer, in place of this one, as a leaf."""
    torchs = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn."))
    twin: Any = object.__new__(torchs if torchs is not nn.Sequential else nn.Module)  # a fused sequence is one layer
    vars(twin).update(vars(module))
    return bool(tracer.is_leaf_module(twin, tracer.path_of_module(module)))


def refuse_script(*_: Any) -> None:
    """Called by torch.jit.script in place of compiling a module or a function."""
    raise RuntimeError("torch.jit.script cannot compile trinn's layers; torch.export and torch.compile can")
