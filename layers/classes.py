"""How `convert` and `revert` exchange the class and the forward of a module.

Some torch tools also replace a module's class at run time, by a new subclass of it: parametrizations, FSDP2's `fully_shard`,
`replicate`. This file calls these subclasses wrapper classes. For a module with one, `convert` and `revert` replace the base of
the wrapper class.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Layer = type[nn.Module]


def forward_of(module: nn.Module) -> Any:
    """The forward that `convert` has set as an attribute of a module, or None.

    It is a functools.partial of a function of trinn and the module, because torch.export and pickle support a partial.
    """
    forward = module.__dict__.get("forward")
    return forward if getattr(getattr(forward, "func", None), "__module__", "").startswith("trinn.layers.") else None


def set_class(module: nn.Module, cls: Layer) -> None:
    """Change the class of a module, and make torch.compile recompile a compiled model at its next call."""
    if type(module) is not cls:
        object.__setattr__(module, "__class__", cls)
        # Up to torch 2.11, torch.compile checks its guard on the class only after a write to the module's __dict__.
        vars(module)["trinn's class"] = cls
        del vars(module)["trinn's class"]


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """A context in which classes and forwards may change; an exception restores all of them."""
    before = [(module, type(module), {k: v for k, v in vars(module).items() if k == "forward"}) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, cls, forward in before:
            set_class(module, cls)
            vars(module).pop("forward", None)
            vars(module).update(forward)
        raise


def wrapped_class(cls: Layer) -> Layer | None:
    """The base of a wrapper class; None if `cls` is no wrapper class.

    A wrapper class belongs to a module of torch, but is no attribute of it, since a tool created it at run time. Its name ends
    with the name of its base, such as ParametrizedConv2d or FSDPConv2d.
    """
    if not cls.__module__.startswith("torch.") or getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls:
        return None
    modules = (base for base in cls.__bases__ if issubclass(base, nn.Module) and base is not nn.Module)
    return next((base for base in modules if cls.__name__.endswith(base.__name__)), None)


def user_class(cls: Layer) -> Layer:
    """The nearest base of `cls` that is no wrapper class; `cls` itself if it is none."""
    while (base := wrapped_class(cls)) is not None:
        cls = base
    return cls


def with_base_replaced(cls: Layer, others: dict[Layer, Layer]) -> Layer:
    """Replace the user class of `cls` by its entry in `others`, and rebuild the wrapper classes on top of it.

    Args:
        others: maps a class to its replacement. `cls` is returned if its user class has no entry.
    """
    old = wrapped_class(cls)
    if old is None:
        return others.get(cls, cls)
    new = with_base_replaced(old, others)
    if new is old:
        return cls
    bases = tuple(new if base is old else base for base in cls.__bases__)
    computed = _computed(cls)
    # Use an existing wrapper class if there is one. Modules share their wrapper classes, with one exception: each parametrized
    # module has its own class. So it gets back only the class from which its present class was made.
    for other in [vars(cls).get("_was")] if computed else type.__subclasses__(new):
        if other and other.__name__ == cls.__name__ and other.__bases__ == bases and _computed(other) == computed:
            return other
    members = {name: member for name, member in vars(cls).items() if name not in ("__dict__", "__weakref__", "__slotnames__")}
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, bases, members | {"_was": cls})  # `_was`: the class that the new class replaces


def _computed(cls: Layer) -> set[str]:
    """The attributes computed by parametrizations."""
    return {name for name, member in vars(cls).items() if isinstance(member, property)}
