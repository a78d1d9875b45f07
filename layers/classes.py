"""Classes and forwards that modules get and give back: what `convert` and `revert` do to a module.

torch too makes classes on the fly and puts them over a module's: parametrizations, FSDP2's `fully_shard`, `replicate`. A change
goes to the class below those.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Layer = type[nn.Module]


def forward_of(module: nn.Module) -> Any:
    """What `convert` has put in the place of a module's forward, as an attribute; None where there is nothing.

    It is a functools.partial of one of our functions and the module, which torch.export knows and which can be pickled.
    """
    forward = module.__dict__.get("forward")
    return forward if getattr(getattr(forward, "func", None), "__module__", "").startswith("trinn.layers.") else None


def become(module: nn.Module, cls: Layer) -> None:
    """Change a module's class, so that a model that torch.compile compiled is compiled anew at its next call."""
    if type(module) is not cls:
        object.__setattr__(module, "__class__", cls)
        # Up to torch 2.11 a guard on the class is skipped as long as the module's __dict__ was not written to.
        vars(module)["trinn's class"] = cls
        del vars(module)["trinn's class"]


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Within, classes and forwards may change: an exception gives all modules back those that they had."""
    before = [(module, type(module), {k: v for k, v in vars(module).items() if k == "forward"}) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, cls, forward in before:
            become(module, cls)
            vars(module).pop("forward", None)
            vars(module).update(forward)
        raise


def wrapped_class(cls: Layer) -> Layer | None:
    """The class that torch put another over on the fly; None where `cls` is no such class."""
    if not cls.__module__.startswith("torch.") or getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls:
        return None
    modules = (base for base in cls.__bases__ if issubclass(base, nn.Module) and base is not nn.Module)
    return next((base for base in modules if cls.__name__.endswith(base.__name__)), None)


def user_class(cls: Layer) -> Layer:
    """A class without those that torch put over it."""
    while (base := wrapped_class(cls)) is not None:
        cls = base
    return cls


def with_base_replaced(cls: Layer, others: dict[Layer, Layer]) -> Layer:
    """A class with another in the place of the one that torch's are put over, if there is another for that."""
    old = wrapped_class(cls)
    if old is None:
        return others.get(cls, cls)
    new = with_base_replaced(old, others)
    if new is old:
        return cls
    bases = tuple(new if base is old else base for base in cls.__bases__)
    computed = _computed(cls)
    # A parametrized module has a class of its own, and gets back its very one; others may share it.
    for other in [vars(cls).get("_was")] if computed else type.__subclasses__(new):
        if other and other.__name__ == cls.__name__ and other.__bases__ == bases and _computed(other) == computed:
            return other
    members = {name: member for name, member in vars(cls).items() if name not in ("__dict__", "__weakref__", "__slotnames__")}
    metaclass: Any = type(cls)
    return metaclass(cls.__name__, bases, members | {"_was": cls})


def _computed(cls: Layer) -> set[str]:
    """What parametrizations compute."""
    return {name for name, member in vars(cls).items() if isinstance(member, property)}
