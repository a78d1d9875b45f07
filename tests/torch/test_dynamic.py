"""Dynamic shapes: one graph serves all sizes of an operator if one graph of torch's operator does.

torch.export, with all axes dynamic, finds the dynamic axes of torch's operator and their relations. The sizes for our operators
come from these symbols.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from tests.support.check import randn
from tests.support.operator_cases import CASES, TORCH_CASES, Ours, Torchs, like
from tests.support.record import OperatorCase, table
from trinn.kernels.runtime.launch import intercepted

# Ignore warnings about specialised exports and nondeterministic kernels.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("large_tiles")]

# The number of sizes, and the indices of two sizes whose results are computed. The other sizes are only compiled.
SIZES, COMPUTED = 10, (0, 3)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


OURS: dict[str, OperatorCase] = CASES | table("dynamic", Ours())
THEIRS: dict[str, OperatorCase] = TORCH_CASES | table("dynamic", Torchs())


class Called(nn.Module):
    """A function as a module, for torch.export."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def exported(function: Callable[..., Any], tensors: list[Tensor], strict: bool = False) -> torch.export.ExportedProgram:
    """The function exported with all axes dynamic."""
    any_size = tuple({axis: torch.export.Dim.AUTO for axis in range(t.dim())} for t in tensors)
    return torch.export.export(Called(function), tuple(tensors), dynamic_shapes=(any_size,), strict=strict)


def shapes_of(program: torch.export.ExportedProgram) -> list[Any]:
    """The shapes of a program's inputs, with symbols for dynamic axes."""
    names = program.graph_signature.user_inputs
    return [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


@cache
def torchs_shapes_and_inputs(name: str) -> tuple[list[Any], list[list[Tensor]]]:
    """The input shapes of torch's exported program, and inputs of many sizes accepted by torch's operator."""
    case = THEIRS[name]
    inputs = [*case.tensors(), *case.others()]
    shapes = shapes_of(exported(case.function, inputs))

    def resized(sizes: dict[Any, int]) -> list[Tensor]:
        resized = []
        for tensor, shape in zip(inputs, shapes, strict=True):
            size = [int(n.node.expr.subs(sizes)) if isinstance(n, torch.SymInt) else n for n in shape]
            resized.append(randn(*size).abs() if tensor.is_floating_point() else tensor.new_zeros(size))
        return resized

    def is_accepted(sizes: dict[Any, int]) -> bool:
        try:
            case.function(*resized(sizes))
        except (RuntimeError, ValueError):
            return False
        return True

    now = {n.node.expr: n.node.hint for shape in shapes for n in shape if isinstance(n, torch.SymInt) and n.node.expr.is_symbol}
    known = {s: [n for n in range(now[s], now[s] + 25) if is_accepted(now | {s: n})] for s in sorted(now, key=str)}
    numbers = [{s: of[(i + number) % len(of)] for number, (s, of) in enumerate(known.items())} for i in range(SIZES)]
    return shapes, [resized(sizes) for sizes in numbers]


def step(function: Callable[..., Any], name: str, tensors: list[Tensor]) -> list[Tensor]:
    """The outputs and the gradients of a call."""
    wanted = len(OURS[name].shapes)
    leaves = [t.detach().requires_grad_() for t in tensors[:wanted]]
    result = function(*leaves, *tensors[wanted:])
    outputs = result if isinstance(result, tuple) else (result,)
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs[0], leaves, like(outputs[0]))]


def graphs(function: Callable[..., Any], name: str, dynamic: bool | None, expected: Callable[..., Any] | None = None) -> int:
    """The number of graphs for a call with all sizes, forward and backward. Results are compared with `expected`."""
    used: set[Any] = set()

    def backend(module: Any, examples: Any) -> Any:
        compiled = lookup_backend("aot_eager")(module, examples)

        def called(*inputs: Any) -> Any:
            used.add(compiled)  # torch.compile may discard a graph if a symbol turns out to be a constant
            return compiled(*inputs)

        return called

    torch._dynamo.reset()
    call = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)
    for number, tensors in enumerate(torchs_shapes_and_inputs(name)[1]):
        if expected is not None and number in COMPUTED:
            got, wanted = (step(f, name, tensors) for f in (call, expected))
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        else:
            with intercepted(lambda *_: None, "interpreter"):
                step(call, name, tensors)
    return len(used)


# `make test` compiles each operator and some of the resizings.
names = pytest.mark.parametrize(
    "name", [n if n in CASES or "fraction" in n else pytest.param(n, marks=pytest.mark.long) for n in OURS]
)


@pytest.mark.parametrize("dynamic", [True, pytest.param(None, marks=pytest.mark.long)])
@names
def test_one_graph_serves_all_sizes(name: str, dynamic: bool | None) -> None:
    """torch recompiles some of its operators for some sizes. Then trinn may have as many graphs as torch."""
    function = OURS[name].function
    ours = graphs(function, name, dynamic, expected=function)
    if ours > 1:
        assert ours <= graphs(THEIRS[name].function, name, dynamic)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.long)])
@names
def test_export(name: str, strict: bool) -> None:
    """OperatorCase dynamic axis of torch's exported operator is dynamic in ours, and the program works for other sizes."""
    function, (torchs_shapes, inputs) = OURS[name].function, torchs_shapes_and_inputs(name)
    program = exported(function, inputs[0], strict)
    for ours, theirs in zip(shapes_of(program), torchs_shapes, strict=True):
        fixed = [isinstance(t, torch.SymInt) and not isinstance(n, torch.SymInt) for n, t in zip(ours, theirs, strict=True)]
        assert not any(fixed), (ours, theirs)
    call = program.module()
    for number in COMPUTED:
        torch.testing.assert_close(call(*inputs[number]), function(*inputs[number]), rtol=0, atol=0)
