"""Which layers of a model run on trinn's kernels, and why the others do not: `report`."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

from torch import nn
from torch.nn.parameter import is_lazy

import trinn
from trinn.kernels.depthwise2d import is_depthwise
from trinn.kernels.launch import INTERPRETED
from trinn.layers import Conv2d
from trinn.layers.convert import OURS, TORCHS, layer_class, obstacle
from trinn.layers.joining import joins_of


class Row(NamedTuple):
    """A layer: its name in the model, its class, whose code runs, and which or why."""

    layer: str
    kind: str
    runs: str
    why: str


def report(model: nn.Module, file: TextIO | None = None) -> None:
    """Print which layers of a model run on trinn's kernels, and why the others do not, as a table.

    A layer is a module without children, with parameters of its own, or of a class that trinn has. Functions that a forward
    calls are not listed: they are torch's, unless under `patched`.

    Args:
        file: where to print; sys.stdout, if None.

    Raises:
        TypeError: a model that is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, but got {type(model).__name__}")
    found = list(rows(model))
    ours = sum(row.runs == "trinn" for row in found)
    print(f"{type(model).__name__}: {ours} of {len(found)} layers on trinn {trinn.__version__}, {_where(model)}", file=file)
    table = [Row("layer", "class", "runs", "why"), *found]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    print("\n".join((lines[0], "-" * max(map(len, lines)), *lines[1:])), file=file)


def rows(model: nn.Module) -> Iterator[Row]:
    """A row for each layer of a model."""
    joined = dict(_joined(model))
    for name, module in model.named_modules():
        kind, name = layer_class(module), name or "(model)"
        base = next((c for c in kind.__mro__ if c in TORCHS or c in OURS), None)
        if base in TORCHS and kind.forward is base.forward:
            yield Row(name, type(module).__name__, "trinn", _kernels(module, base) + joined.get(name, ""))
        elif base is not None or not _is_container(module):
            whose = "torch" if getattr(kind.forward, "__module__", "").startswith("torch.") else "its forward"
            yield Row(name, type(module).__name__, whose, obstacle(module) or "trinn has it: not converted")


def _joined(model: nn.Module) -> Iterator[tuple[str, str]]:
    """What `convert(..., fuse=True)` has joined to layers, by their names."""
    for name, module in model.named_modules():
        for first, *others in joins_of(module):
            yield f"{name}.{first}".removeprefix("."), f", joined with {', '.join(others)}"


def _is_container(module: nn.Module) -> bool:
    """Whether a module is there for its children alone."""
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return True
    return len(module._modules) > 0 and not module._parameters


def _kernels(module: Any, base: type[nn.Module]) -> str:
    """The file of the kernels of a layer of trinn."""
    operator = base.__module__.rpartition(".")[2]
    if isinstance(module, Conv2d) and not is_lazy(module.weight) and is_depthwise(module.weight, module.groups):
        operator = "depthwise2d"
    return f"kernels/{operator}.py"


def _where(model: nn.Module) -> str:
    """On which devices a model is, and what that means for kernels."""
    devices = sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())})
    if not devices:
        return "without parameters"
    interpreter = " (in Triton's interpreter)" if INTERPRETED else " (where kernels need TRITON_INTERPRET=1)"
    return "on " + " and ".join(device + interpreter if device == "cpu" else device for device in devices)
