"""A model of torch.nn's layers on trinn's kernels and back, by their classes alone: `convert` and `revert`.

A layer of trinn is a subclass of torch's with the same name and another forward. So `module.__class__ = trinn.layers.Conv2d`
is all there is to do: parameters, buffers, hooks, training flags, devices and what an optimizer refers to stay as they are.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.parametrize import type_before_parametrizations

from trinn import layers
from trinn.layers import joining
from trinn.layers.function import FLOATS
from trinn.layers.upsample2d import MODES

Layer = type[nn.Module]
Model = TypeVar("Model", bound=nn.Module)

# Each class of torch.nn that trinn has too.
OURS: dict[Layer, Layer] = {
    getattr(nn, name): ours
    for name, ours in vars(layers).items()
    if isinstance(ours, type) and name in layers.__all__ and hasattr(nn, name)
}
TORCHS: dict[Layer, Layer] = {ours: torchs for torchs, ours in OURS.items()}


def convert(
    model: Model,
    *,
    include: Layer | str | Iterable[Layer | str] | None = None,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    fuse: bool = False,
) -> Model:
    """Put the layers of a model on trinn's kernels, in place; `report` says which.

    A layer is converted if its class is exactly one of torch.nn's that trinn has too, also if it has parametrizations or is
    yet to get its sizes. What stays torch's: subclasses, which may do more than their base; layers whose `forward` was
    replaced; quantised, scripted, sharded (DTensor) and complex ones; Upsample in a mode that trinn does not have.

    Args:
        include: classes to convert, or their names, such as `(nn.Conv2d, "Linear")`; all, if None.
        filter_fn: of a layer's name in the model and the layer: whether to convert it.
        fuse: also join layers of trinn that are called in a row, such as a convolution, a batch norm and a ReLU, or a batch
            norm, an addition and a ReLU. The modules that call them get subclasses of their classes; children and names stay as
            they are. layers/joining.py says what is found.

    Returns:
        `model`, which may itself be a layer. A converted layer stays as it is.

    Raises:
        TypeError: a model that is no module, or a ScriptModule.
        ValueError: a class or a name that trinn does not have.
    """
    _check(model)
    wanted = _included(include)
    plan = [
        (module, _with_base(type(module), OURS[layer_class(module)]))
        for name, module in model.named_modules()
        if layer_class(module) in wanted and obstacle(module) is None and (filter_fn is None or filter_fn(name, module))
    ]
    for module, ours in plan:
        joining.become(module, ours)
    if fuse:
        joining.fuse(model)
    return model


def revert(model: Model) -> Model:
    """Make every layer of trinn in a model torch's again, in place: the inverse of `convert`.

    Layers that were trinn's from the start become torch's too, of the same class name. Returns `model`.

    Raises:
        TypeError: a model that is no module, or a ScriptModule.
    """
    _check(model)
    joining.unfuse(model)
    for module in model.modules():
        if layer_class(module) in TORCHS:
            joining.become(module, _with_base(type(module), TORCHS[layer_class(module)]))
    return model


def layer_class(module: nn.Module) -> Layer:
    """A module's class, without the one that torch puts over it for parametrizations."""
    return type_before_parametrizations(module)


def obstacle(module: nn.Module) -> str | None:
    """Why a layer has to stay as it is, in a few words; None where `convert` can take it."""
    kind = layer_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "a ScriptModule, which is compiled"
    if kind not in OURS:
        base = next((c for c in kind.__mro__ if c in OURS), None)
        if base is not None:
            return f"a subclass of {base.__name__}" + (" with a forward of its own" if kind.forward is not base.forward else "")
        return f"trinn has no {kind.__name__}" if kind.__module__.startswith("torch.") else "a forward of its own"
    if replaced := {"forward", "_conv_forward"} & module.__dict__.keys():
        return f"its {min(replaced)} was replaced"
    for name, parameter in module.named_parameters():
        if what := _foreign(parameter):
            return f"{name} is {what}"
    if isinstance(module, nn.Upsample) and module.mode not in MODES:
        return f"trinn has no mode {module.mode!r}"
    return None


def _foreign(tensor: Tensor) -> str | None:
    """What a parameter is that kernels cannot read."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not isinstance(tensor, FakeTensor):
        return f"a {type(tensor).__name__}"
    if tensor.dtype not in FLOATS:
        return str(tensor.dtype).removeprefix("torch.")
    return str(tensor.layout).removeprefix("torch.") if tensor.layout != torch.strided else None


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, but got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"a {type(model).__name__} is compiled: convert the module that it was made from")


def _included(include: Layer | str | Iterable[Layer | str] | None) -> set[Layer]:
    """The classes of torch.nn that are meant."""
    if include is None:
        return set(OURS)
    names = {torchs.__name__: torchs for torchs in OURS}
    wanted = set()
    for each in (include,) if isinstance(include, (str, type)) else include:
        torchs = names.get(each) if isinstance(each, str) else TORCHS.get(each, each)
        if torchs not in OURS:
            raise ValueError(f"include: trinn has no {each!r}, but {', '.join(names)}")
        wanted.add(torchs)
    return wanted


def _with_base(cls: Layer, base: Layer) -> Layer:
    """`base` itself, or where `cls` is what torch made for parametrizations, the same over `base`."""
    if cls in OURS or cls in TORCHS:
        return base
    was = vars(cls).get("_was")
    if was is not None and was.__bases__ == (base,) and _computed(was) == _computed(cls):
        return was
    members = {name: member for name, member in vars(cls).items() if name not in ("__dict__", "__weakref__", "__slotnames__")}
    return type(cls.__name__, (base,), members | {"_was": cls})


def _computed(cls: Layer) -> set[str]:
    """What parametrizations compute."""
    return {name for name, member in vars(cls).items() if isinstance(member, property)}
