"""A model of torch.nn's layers on trinn's kernels and back, by their classes alone: `convert` and `revert`.

A layer of trinn is a subclass of torch's with the same name and another forward. So `module.__class__ = trinn.layers.Conv2d`
is all there is to do: parameters, buffers, hooks, training flags, devices and what an optimizer refers to stay as they are.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from trinn import layers
from trinn.kernels.runtime import interpreter

from .classes import Layer, all_or_nothing, become, forward_of, user_class, with_base_replaced
from .function import FLOATS
from .fused import fusion_of, patched_forward, run_forward, sequence_forward
from .upsample2d import MODES

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
    fuse: bool | Sequence[Sequence[str]] = False,
) -> Model:
    """Put the layers of a model on trinn's kernels, in place; `report` says which.

    A layer is converted if its class is one of torch.nn's that trinn has too, also if it has parametrizations or is yet to get
    its sizes. A layer of a user's subclass of one keeps its class and its forward, which runs with trinn's functions in the
    place of torch's, as under `patched`. What stays torch's: layers whose `forward` was replaced; quantised, scripted, sharded
    (DTensor) and complex ones, so convert before FSDP2's `fully_shard`; Upsample in a mode that trinn does not have.

    `isinstance(layer, nn.Conv2d)` stays true; `type(layer) is nn.Conv2d` does not.

    Warns if the model is on the CPU and kernels can run nowhere: no GPU, and TRITON_INTERPRET=0.

    Args:
        include: classes of torch.nn to convert, or their names, such as `(nn.Conv2d, "Linear")`; all, if None.
        filter_fn: of a layer's name in the model and the layer: whether to convert it.
        fuse: True: also join layers in a row in each nn.Sequential, or subclass with its `forward` and `__iter__`, such as a
            convolution, a batch norm and a ReLU. Or runs of layers by their names in the model, such as
            `[("conv1", "bn1", "relu")]`: each layer is called with the result of the one before, which nothing else may use,
            as for torch.ao.quantization.fuse_modules. Modules and names stay as they are. Layers with hooks,
            parametrizations and the like run one by one. layers/fused_functional.py says what is fused.

    Returns:
        `model`, which may itself be a layer. A converted layer stays as it is.

    Raises:
        TypeError: a model that is no module, or a ScriptModule.
        ValueError: a class or a name that trinn does not have; a layer that begins two runs, or is in one twice.
        AttributeError: a run with a name that the model does not have.
        NotImplementedError: a run of layers that trinn does not join.

    With these exceptions, and with any that `filter_fn` or a user's class raises, the model is as it was.
    """
    _check(model)
    wanted = _included(include)
    runs = _runs(model, fuse)
    plan = [
        module
        for name, module in model.named_modules()
        if layer_of(module) in wanted and obstacle(module) is None and (filter_fn is None or filter_fn(name, module))
    ]
    if interpreter.NOWHERE and any(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers())):
        warnings.warn(interpreter.NOWHERE, stacklevel=2)
    with all_or_nothing(model):
        for module in plan:
            if user_class(type(module)) in OURS:
                become(module, with_base_replaced(type(module), OURS))
                if getattr(forward_of(module), "func", None) is patched_forward:  # a lazy subclass, which has got its sizes
                    del module.forward
            elif forward_of(module) is None:
                vars(module)["forward"] = functools.partial(patched_forward, module)
        if fuse is True:
            _fuse_sequences(model)
        _fuse_runs(runs)
    return model


def _runs(model: nn.Module, fuse: bool | Sequence[Sequence[str]]) -> dict[tuple[str, ...], tuple[nn.Module, ...]]:
    """Runs by the names of their layers."""
    if isinstance(fuse, bool):
        return {}
    if fuse and all(isinstance(name, str) for name in fuse):
        fuse = [fuse]  # type: ignore[list-item]
    return {tuple(run): tuple(model.get_submodule(name) for name in run) for run in fuse}


def _fuse_sequences(model: nn.Module) -> None:
    """Join layers in a row in what is called as an nn.Sequential is."""
    for module in model.modules():
        kind, children = cast(Any, type(module)), tuple(module._modules.values())
        if isinstance(module, nn.Sequential) and "forward" not in vars(module):
            if kind.forward is nn.Sequential.forward and kind.__iter__ is nn.Sequential.__iter__:
                if any(fusion_of(children[place:])[1] for place in range(len(children))):
                    vars(module)["forward"] = functools.partial(sequence_forward, module)


def _fuse_runs(runs: dict[tuple[str, ...], tuple[nn.Module, ...]]) -> None:
    """Join the layers of each run."""
    begun: dict[nn.Module, tuple[nn.Module, ...]] = {}
    for names, run in runs.items():
        if fusion_of(run)[0] < max(len(run), 2):
            kinds = ", ".join(f"{type(layer).__module__}.{type(layer).__name__}" for layer in run)
            raise NotImplementedError(f"fuse: cannot fuse {', '.join(names)}, which are {kinds}")
        if len(set(run)) < len(run) or run[0] in begun:
            raise ValueError(f"fuse: {', '.join(names)} has a layer twice, or begins with one that another run begins with")
        begun[run[0]] = run
    for run in runs.values():
        for layer in run:
            if layer in begun or getattr(forward_of(layer), "func", None) is not run_forward:
                vars(layer)["forward"] = functools.partial(run_forward, layer, begun.get(layer, ()))


def revert(model: Model) -> Model:
    """Make every layer of trinn in a model torch's again, in place: the inverse of `convert`.

    A layer that was trinn's from the start becomes torch's layer of the same name. A layer that was sharded by FSDP2's
    `fully_shard`, replicated or parametrized after `convert` becomes torch's too, and stays sharded and so on. If a `forward`
    was wrapped after `convert`, as in `layer.forward = wrapper(layer.forward)`, the wrapper still calls what it wraps.

    Returns:
        `model`. It is as it was where an exception is raised.

    Raises:
        TypeError: a model that is no module, or a ScriptModule.
    """
    _check(model)
    with all_or_nothing(model):
        for module in model.modules():
            become(module, with_base_replaced(type(module), TORCHS))
            if forward_of(module) is not None:
                del module.forward
    return model


def layer_of(module: nn.Module) -> Layer | None:
    """The class in OURS or TORCHS that a module is an instance of; None if there is none."""
    return next((cls for cls in user_class(type(module)).__mro__ if cls in OURS or cls in TORCHS), None)


def obstacle(module: nn.Module) -> str | None:
    """Why a layer has to stay as it is, in a few words; None where `convert` can take it."""
    kind: Any = user_class(type(module))
    base: Any = layer_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "a ScriptModule, which is compiled"
    if base not in OURS:
        return f"trinn has no {kind.__name__}" if kind.__module__.startswith("torch.") else "a forward of its own"
    if kind is not base and kind.__module__.startswith("torch."):
        return f"torch's own subclass of {base.__name__}"
    if kind is not base and base is nn.SyncBatchNorm:
        return "a subclass of SyncBatchNorm, whose forward calls torch's kernels"
    return replacement(module) or unreadable(module)


def replacement(module: nn.Module) -> str | None:
    """What a user has put in place of a layer's method, in a few words."""
    names = {"forward", "_conv_forward"} & module.__dict__.keys()
    names -= {"forward"} if forward_of(module) is not None else set()
    return f"its {min(names)} was replaced" if names else None


def unreadable(module: nn.Module) -> str | None:
    """What of a layer trinn cannot compute with, in a few words."""
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
