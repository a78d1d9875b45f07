"""Print which layers of a model run on trinn's kernels, and why the others do not: `report`."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

import trinn
from trinn.kernels.conv2d.depthwise import is_depthwise
from trinn.kernels.runtime.interpreter import INTERPRETED

from .classes import Layer, forward_of, user_class
from .convert import OURS, TORCHS, layer_of, reason_not_converted, replaced_method, unsupported_part
from .fused import fusion_of, run_forward, sequence_forward

# The file with the kernels of an operator, if it has another name than the operator.
KERNELS = {"adaptive_pool2d": "pool2d", "sync_batchnorm": "batchnorm2d"}
NOTHING = "nothing"  # a layer that computes nothing
COVERED = ": trinn.patched() covers the functions it calls"
OWN = "its own forward, with trinn's functions in place of torch's"
NOT_LISTED = "Not listed: functions called by a forward, such as F.relu. They are torch's, except under trinn.patched()."


class Line(NamedTuple):
    """One layer: its name in the model, its class, the code that runs, the layers fused with it, and a remark."""

    layer: str
    kind: str
    runs: str  # the file of trinn's kernels, or "torch", "its forward", "raises", NOTHING
    fused: str
    why: str

    @property
    def on_trinn(self) -> bool:
        return self.runs.startswith("kernels/")


def report(model: nn.Module, file: TextIO | None = None, *, layers: bool = False) -> None:
    """Print how many layers of a model run on trinn's kernels, and why the others do not: for each class, or for each layer.

    A layer is a module without children, a module with its own parameters, or a module whose class trinn has. Layers without
    computation do not count, such as Identity, Flatten, and Dropout in evaluation.

    The report describes a call of the model at this moment. It includes replaced forwards, hooks (they may change results) and
    the fusions of `convert(..., fuse=...)`. It does not list the functions called by a forward: they are torch's, except under
    `patched`.

    For a model compiled by torch.compile(backend="trinn"), it lists operators instead, summed over all graphs: on trinn's
    kernels, fused, and left to Inductor, with the reason. Above them are the shares of the elements of all results.

    Args:
        file: the output file; None means sys.stdout.
        layers: print a line for each layer instead of each class.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, but got {type(model).__name__}")
    graphs, is_compiled = _graphs(model), hasattr(model, "_orig_mod")
    if graphs or is_compiled:
        _report_graphs(getattr(model, "_orig_mod", model), graphs, file)
    if is_compiled:
        return
    found = list(rows(model))
    counted = [row for row in found if row.runs != NOTHING]
    ours, fused = sum(row.on_trinn for row in counted), sum(bool(row.fused) for row in counted)
    title = f"{type(model).__name__}: {ours} of {len(counted)} layers on trinn {trinn.__version__}, {_where(model)}"
    print(title + (f", {fused} fused" if fused else ""), file=file)
    table = [("layer", "class", "runs", "fused with", "remarks"), *found] if layers else list(_by_class(counted))
    _print(table, file)
    if not layers:
        idle = Counter(row.kind for row in found if row.runs == NOTHING)
        if idle:
            print(f"Not counted, as they compute nothing: {', '.join(f'{n} {kind}' for kind, n in idle.items())}.", file=file)
        print(NOT_LISTED, "trinn.report(model, layers=True) lists the layers.", sep="\n", file=file)


def _print(table: Sequence[Sequence[str]], file: TextIO | None) -> None:
    """Print a table with a header."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    print("\n".join((lines[0], "-" * max(map(len, lines)), *lines[1:])), file=file)


def _graphs(model: nn.Module) -> list[Any]:
    """The summaries of a model's graphs, recorded by the backend of torch.compile."""
    backend: Any = sys.modules.get("trinn.layers.backend")  # not imported here: it imports torch's compiler
    return backend.summaries_of(model) if backend else []


def _report_graphs(model: nn.Module, graphs: Sequence[Any], file: TextIO | None) -> None:
    taken, fused, left = (sum((getattr(g, name) for g in graphs), Counter[Any]()) for name in ("taken", "fused", "left"))
    rest = " and ".join(sorted({graph.rest for graph in graphs})) or "nothing"
    title = f"{type(model).__name__}: {len(graphs)} graphs compiled by trinn {trinn.__version__} and {rest}, "
    print(f"{title}{taken.total() + fused.total()} operators on trinn, {fused.total()} fused", file=file)
    if not graphs:
        print('torch.compile(model, backend="trinn") compiles the graphs when the model is first called.', file=file)
        return
    elements = sum((graph.elements for graph in graphs), Counter[str]())
    whose = {"trinn": "on trinn", "concatenation": "concatenated", "torch": f"by other operators of {rest}"}
    shares = (f"{elements[key] / (elements.total() or 1):.1%} {words}" for key, words in whose.items())
    print(f"elements computed: {', '.join(shares)}", file=file)
    ours = [(name, str(count), "trinn", "") for name, count in (*fused.most_common(), *taken.most_common())]
    others = [(name, str(count), rest, why) for (name, why), count in left.most_common()]
    _print([("operator", "calls", "runs on", "why not trinn"), *ours, *others], file)


def rows(model: nn.Module) -> Iterator[Line]:
    """One Line for each layer of a model."""
    fused = _fused_with(model)
    sharded = {module for fsdp in model.modules() if _is_fsdp(fsdp) for module in fsdp.modules()}
    for name, module in model.named_modules():
        if layer_of(module) is not None or not _is_container(module):
            runs, why = _what_runs(module, module in sharded)
            yield Line(name or "(model)", type(module).__name__, runs, fused.get(module, ""), why)


def _what_runs(module: nn.Module, sharded: bool) -> tuple[str, str]:
    """Line.runs and Line.why of a layer."""
    kind, base, changed = user_class(type(module)), layer_of(module), replaced_method(module)
    if not changed and _computes_nothing(module, kind):
        return NOTHING, ""
    own = changed or _is_own(kind, base or nn.Module)
    if base in OURS and forward_of(module) is not None:
        return _kernels(module, OURS[base]), OWN  # type: ignore[index]
    if base not in TORCHS:
        written_by_user = changed or not kind.__module__.startswith("torch.")
        why = (reason_not_converted(module) or "not converted") + (COVERED if written_by_user else "")
        return "its forward" if own and written_by_user else "torch", why
    if own:
        return "its forward", changed or f"a subclass of trinn's {base.__name__} with a forward of its own"
    missing = unsupported_part(module)
    if missing and not sharded:
        return "raises", missing
    hooks = len(module._forward_pre_hooks) + len(module._forward_hooks) - hasattr(module, "_initialize_hook")
    remarks = ("sharded by FSDP2, gathered when it runs" if missing else "", "has hooks" if hooks else "")
    return _kernels(module, base), "; ".join(filter(None, remarks))


def _by_class(counted: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    """The summary table: for each class the numbers of layers, and the remarks with their counts."""
    head = "class", "layers", "trinn", "fused", "remarks"
    yield head
    classes: dict[str, list[Line]] = defaultdict(list)
    for row in counted:
        classes[row.kind].append(row)
    for kind, lines in sorted(classes.items(), key=lambda item: -len(item[1])):
        numbers = len(lines), sum(row.on_trinn for row in lines), sum(bool(row.fused) for row in lines)
        first, *others = [f"{n}: {why}" for why, n in Counter(row.why for row in lines if row.why).most_common()] or [""]
        yield kind, *(f"{number:{len(name)}}" for number, name in zip(numbers, head[1:], strict=False)), first
        yield from (("", "", "", "", other) for other in others)


def _fused_with(model: nn.Module) -> dict[nn.Module, str]:
    """For each layer, the names of the layers that `convert(..., fuse=...)` fuses with it in a call of the model."""
    fused: dict[nn.Module, list[str]] = defaultdict(list)
    names = {module: name for name, module in model.named_modules()}
    for module in model.modules():
        for run in _fused_sequences(module):
            for layer in run:
                inside = names[layer].rpartition(".")[0]
                others = (names[other].removeprefix(f"{inside}.") for other in run if other is not layer)
                fused[layer].append(", ".join(others))
    return {layer: "; ".join(others) for layer, others in fused.items()}


def _fused_sequences(module: nn.Module) -> Iterator[tuple[nn.Module, ...]]:
    """The sequences of layers fused by a module's forward."""
    function, *arguments = (forward.func, *forward.args[1:]) if (forward := forward_of(module)) else (None,)
    layers: tuple[Any, ...] = ()
    if function is sequence_forward:
        layers = tuple(module._modules.values())
    elif function is run_forward and fusion_of(arguments[0])[0] == len(arguments[0]):
        layers = arguments[0]
    while layers:
        count = fusion_of(layers)[0]
        if count > 1:
            yield layers[:count]
        layers = layers[count:]


def _is_own(kind: Layer, base: Any) -> bool:
    """Whether a subclass overrides `forward`, `_conv_forward` or `__call__`."""
    return any(getattr(kind, name, None) is not getattr(base, name, None) for name in ("forward", "_conv_forward", "__call__"))


def _is_fsdp(module: nn.Module) -> bool:
    """Whether FSDP2's fully_shard was applied to a module. Does not import FSDP2: that takes a second."""
    return any(cls.__name__ == "FSDPModule" and cls.__module__.startswith("torch.") for cls in type(module).__mro__)


def _computes_nothing(module: nn.Module, kind: Layer) -> bool:
    return kind in (nn.Identity, nn.Flatten, nn.Unflatten) or (
        issubclass(kind, _DropoutNd) and kind.__module__.startswith("torch.") and not module.training
    )


def _is_container(module: nn.Module) -> bool:
    """Whether a module only contains other modules."""
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return True
    return len(module._modules) > 0 and not module._parameters


def _kernels(module: Any, base: Layer) -> str:
    """The file with the kernels of a layer."""
    operator = base.__module__.rpartition(".")[2]
    if operator == "conv2d":
        depthwise = not is_lazy(module.weight) and is_depthwise(module.weight, module.groups)
        operator = "conv2d/depthwise" if depthwise else "conv2d/passes"
    return f"kernels/{KERNELS.get(operator, operator)}.py"


def _where(model: nn.Module) -> str:
    """The devices of a model; for the CPU, whether kernels run there."""
    devices = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    if not devices:
        return "without parameters"
    interpreter = " (in Triton's interpreter)" if INTERPRETED else " (where kernels need TRITON_INTERPRET=1)"
    return "on " + " and ".join(device + interpreter if device == "cpu" else device for device in devices)
