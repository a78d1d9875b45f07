"""Move the layers of a torch.nn model to trinn's kernels and back: `convert` and `revert`.

A layer of trinn is a subclass of torch's layer with the same name and another forward. So converting is only
`module.__class__ = trinn.layers.Conv2d`: parameters, buffers, hooks, training flags, devices and optimizers are unaffected.
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

from .classes import Layer, all_or_nothing, forward_of, set_class, user_class, with_base_replaced
from .function import FLOATS
from .fused import fusion_of, patched_forward, run_forward, sequence_forward
from .upsample2d import MODES

Model = TypeVar("Model", bound=nn.Module)

# trinn's class for each class of torch.nn.
OURS: dict[Layer, Layer] = {
    getattr(nn, name): ours for name, ours in vars(layers).items() if isinstance(ours, type) and hasattr(nn, name)
}
TORCHS: dict[Layer, Layer] = {ours: torchs for torchs, ours in OURS.items()}


def convert(
    model: Model,
    *,
    include: Layer | str | Iterable[Layer | str] | None = None,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    fuse: bool | Sequence[Sequence[str]] = False,
) -> Model:
    """Run the layers of a model on trinn's kernels, in place. `report` lists the result.

    `convert` handles every layer whose class exists in trinn, including lazy and parametrized layers. A layer of a user's
    subclass keeps its class and its forward; the forward runs with trinn's functions in place of torch's, as under `patched`.

    These layers are not converted: quantised, scripted, complex and sharded (DTensor) layers, layers with a replaced `forward`,
    and Upsample in a mode missing from trinn. So call `convert` before FSDP2's `fully_shard`.

    After conversion `isinstance(layer, nn.Conv2d)` is still true, but `type(layer) is nn.Conv2d` is false.

    `convert` warns if the model is on the CPU and kernels can run nowhere: no GPU, and TRITON_INTERPRET=0.

    Args:
        model: a network, or a single layer. Layers already converted are left unchanged.
        include: the classes of torch.nn to convert, or their names, such as `(nn.Conv2d, "Linear")`; None means all.
        filter_fn: called with the name of a layer in the model and the layer; returns whether to convert it.
        fuse: whether to fuse consecutive layers, such as a convolution, a batch norm and a ReLU. layers/fused_functional.py
            lists the fusable sequences. True fuses in each nn.Sequential, and in each subclass that inherits its `forward`
            and `__iter__`. A list of *named runs*, such as `[("conv1", "bn1", "relu")]`, fuses the layers of each run, as
            torch.ao.quantization.fuse_modules does; a single run needs no list. The input of each layer in a run must be the
            output of the previous one, and nothing else may use this output. Modules and names do not change. Layers with
            hooks or parametrizations run one by one.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a module, or is a ScriptModule.
        ValueError: a class or a name unknown to trinn; two runs that begin with the same layer, or a layer twice in a run.
        AttributeError: a run with a name missing from the model.
        NotImplementedError: a run of layers that trinn cannot fuse.

    After any exception, also one raised by `filter_fn` or a user's class, the model is unchanged.
    """
    _check(model)
    wanted = _included(include)
    runs = _runs(model, fuse)
    plan = [
        module
        for name, module in model.named_modules()
        if layer_of(module) in wanted
        and reason_not_converted(module) is None
        and (filter_fn is None or filter_fn(name, module))
    ]
    if interpreter.NO_DEVICE and any(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers())):
        warnings.warn(interpreter.NO_DEVICE, stacklevel=2)
    with all_or_nothing(model):
        for module in plan:
            if user_class(type(module)) in OURS:
                set_class(module, with_base_replaced(type(module), OURS))
                # A user's lazy layer gets `patched_forward`. Its first call turns it into torch's layer, which needs none.
                if getattr(forward_of(module), "func", None) is patched_forward:
                    del module.forward
            elif forward_of(module) is None:
                vars(module)["forward"] = functools.partial(patched_forward, module)
        if fuse is True:
            _fuse_sequences(model)
        _fuse_runs(runs)
    return model


def _runs(model: nn.Module, fuse: bool | Sequence[Sequence[str]]) -> dict[tuple[str, ...], tuple[nn.Module, ...]]:
    """The layers of each run, by their names."""
    if isinstance(fuse, bool):
        return {}
    if fuse and all(isinstance(name, str) for name in fuse):
        fuse = [fuse]  # type: ignore[list-item]
    return {tuple(run): tuple(model.get_submodule(name) for name in run) for run in fuse}


def _fuse_sequences(model: nn.Module) -> None:
    """Fuse consecutive layers in every module with the forward of nn.Sequential."""
    for module in model.modules():
        kind, children = cast(Any, type(module)), tuple(module._modules.values())
        if isinstance(module, nn.Sequential) and "forward" not in vars(module):
            if kind.forward is nn.Sequential.forward and kind.__iter__ is nn.Sequential.__iter__:
                if any(fusion_of(children[place:])[1] for place in range(len(children))):
                    vars(module)["forward"] = functools.partial(sequence_forward, module)


def _fuse_runs(runs: dict[tuple[str, ...], tuple[nn.Module, ...]]) -> None:
    """Fuse the layers of each run."""
    begun: dict[nn.Module, tuple[nn.Module, ...]] = {}
    for names, run in runs.items():
        if fusion_of(run)[0] < max(len(run), 2):
            kinds = ", ".join(f"{type(layer).__module__}.{type(layer).__name__}" for layer in run)
            raise NotImplementedError(f"fuse: cannot fuse {', '.join(names)}, of the classes {kinds}")
        if len(set(run)) < len(run) or run[0] in begun:
            raise ValueError(f"fuse: {', '.join(names)} contains a layer twice, or begins with the same layer as another run")
        begun[run[0]] = run
    for run in runs.values():
        for layer in run:
            if layer in begun or getattr(forward_of(layer), "func", None) is not run_forward:
                vars(layer)["forward"] = functools.partial(run_forward, layer, begun.get(layer, ()))


def revert(model: Model) -> Model:
    """Turn every layer of trinn in a model into torch's layer of the same name, in place: the inverse of `convert`.

    This includes layers created as trinn's layers, and layers sharded by FSDP2's `fully_shard`, replicated or parametrized
    after `convert`; they stay sharded, replicated or parametrized. If a `forward` was wrapped after `convert`, as in
    `layer.forward = wrapper(layer.forward)`, the wrapper still calls the forward that it wrapped.

    Returns:
        `model`. After an exception it is unchanged.

    Raises:
        TypeError: `model` is not a module, or is a ScriptModule.
    """
    _check(model)
    with all_or_nothing(model):
        for module in model.modules():
            set_class(module, with_base_replaced(type(module), TORCHS))
            if forward_of(module) is not None:
                del module.forward
    return model


def layer_of(module: nn.Module) -> Layer | None:
    """The class of a module, or its nearest base class, that is in OURS or TORCHS; None if there is none."""
    return next((cls for cls in user_class(type(module)).__mro__ if cls in OURS or cls in TORCHS), None)


def reason_not_converted(module: nn.Module) -> str | None:
    """The reason why a layer cannot be converted, in a few words; None if it can be converted."""
    kind: Any = user_class(type(module))
    base: Any = layer_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "a ScriptModule"
    if base not in OURS:
        return f"trinn has no {kind.__name__}" if kind.__module__.startswith("torch.") else "a forward of its own"
    if kind is not base and kind.__module__.startswith("torch."):
        return f"torch's own subclass of {base.__name__}"
    if kind is not base and base is nn.SyncBatchNorm:
        return "a subclass of SyncBatchNorm, whose forward calls torch's kernels"
    return replaced_method(module) or unsupported_part(module)


def replaced_method(module: nn.Module) -> str | None:
    """The method of a layer replaced by the user, in a few words; None if there is none."""
    names = {"forward", "_conv_forward"} & module.__dict__.keys()
    names -= {"forward"} if forward_of(module) is not None else set()
    return f"its {min(names)} was replaced" if names else None


def unsupported_part(module: nn.Module) -> str | None:
    """The parameter or option of a layer unsupported by trinn, in a few words; None if there is none."""
    for name, parameter in module.named_parameters():
        if what := _unsupported(parameter):
            return f"{name} is {what}"
    if isinstance(module, nn.Upsample) and module.mode not in MODES:
        return f"trinn has no mode {module.mode!r}"
    return None


def _unsupported(tensor: Tensor) -> str | None:
    """The unsupported class, dtype or layout of a tensor; None if kernels can read the tensor."""
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not isinstance(tensor, FakeTensor):
        return f"a {type(tensor).__name__}"
    if tensor.dtype not in FLOATS:
        return str(tensor.dtype).removeprefix("torch.")
    return str(tensor.layout).removeprefix("torch.") if tensor.layout != torch.strided else None


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, but got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"a {type(model).__name__} is compiled: convert the module before scripting or tracing it")


def _included(include: Layer | str | Iterable[Layer | str] | None) -> set[Layer]:
    """The classes of torch.nn to convert."""
    if include is None:
        return set(OURS)
    names = {torchs.__name__: torchs for torchs in OURS}
    wanted = set()
    for each in (include,) if isinstance(include, (str, type)) else include:
        torchs = names.get(each) if isinstance(each, str) else TORCHS.get(each, each)
        if torchs not in OURS:
            raise ValueError(f"include: trinn has no {each!r}; it has {', '.join(names)}")
        wanted.add(torchs)
    return wanted
