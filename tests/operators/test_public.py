"""trinn behaves like torch.nn under torch.fx, with tensor subclasses and modes, and for arguments of other types."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import trinn
import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import Ours
from tests.support.record import Arguments, records, table
from trinn.layers.convert import OURS

FUNCTIONS: dict[str, Arguments] = table("functions")
MODULES: dict[str, Arguments] = table("modules")
FUSED: dict[str, Callable[[], nn.Module]] = table("fused_modules")
NON_TENSORS: dict[str, Any] = {
    "array": np.ones((1, 2, 10, 5), np.float32),
    "list": [[1.0, 2.0]],
    "False": False,
    "number": 1.5,
    "text": "x",
    "None": None,
}


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> type[Exception] | None:
    try:
        function(*args, **options)
    except Exception as error:
        return type(error)
    return None


def test_tables_are_complete() -> None:
    functions = {name for name in vars(tnn)["__all__"] if name.islower()}
    assert FUNCTIONS.keys() == {name for name in functions if hasattr(F, name)}
    assert MODULES.keys() == {cls.__name__ for cls in OURS}
    assert MODULES.keys() | FUSED.keys() == set(vars(tnn)["__all__"]) - functions


@pytest.mark.parametrize("operator", records())
def test_records_are_complete(operator: str) -> None:
    """An operator with public functions has entries for every table of functions."""
    record = records()[operator]
    required = ["calls", "precision", "programs", "draws", "patched", "last_image"] if record.functions else []
    required += ["many_passes", "mutants"] if record.passes else []
    values = {field: getattr(record, field) for field in required}
    missing = [field for field, value in values.items() if not (value(Ours()) if callable(value) else value)]
    assert not missing, f"tests/operators/{operator}.py needs {', '.join(missing)}"


@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:max_unpooling2d")
@pytest.mark.parametrize("name", MODULES)
def test_modules_match_torch(name: str, full_float32: None) -> None:
    """The same random parameters, state_dict, repr and outputs; torch's own `__init__` builds them."""
    modules, outputs = [], []
    for library in (tnn, nn):
        torch.manual_seed(0)
        modules.append(getattr(library, name)(**MODULES[name].options).to(DEVICE))
        outputs.append(modules[-1](*MODULES[name].inputs().values()))
    ours, theirs = modules
    assert repr(ours) == repr(theirs) and "__init__" not in vars(getattr(tnn, name))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(*outputs)


@pytest.mark.filterwarnings("ignore:max_unpooling2d")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_non_tensor_arguments(name: str) -> None:
    """torch's TypeError for each tensor argument, by position and by name; TypeError too for torch's AttributeError."""
    given, options = FUNCTIONS[name].inputs(), FUNCTIONS[name].options
    getattr(tnn, name)(**given, **options)
    for argument in given:
        for kind, value in NON_TENSORS.items():
            changed = given | {argument: value}
            expected = outcome(getattr(F, name), **changed, **options)
            expected = TypeError if expected is AttributeError else expected
            assert outcome(getattr(tnn, name), **changed, **options) is expected, f"{name}({argument}={kind})"
            assert outcome(getattr(tnn, name), *changed.values(), **options) is expected, f"{name}({argument}={kind})"


def test_message_for_a_non_tensor() -> None:
    with pytest.raises(TypeError, match=r"conv2d\(\): argument 'bias' \(position 3\) must be Tensor, not bool"):
        tnn.conv2d(randn(1, 2, 3, 3), randn(2, 2, 1, 1), False)  # type: ignore[arg-type]


class Labelled(Tensor):
    """A tensor subclass that records each function called with it."""

    called: list[Any] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.called.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(func)
        return func(*args, **kwargs or {})


@pytest.mark.filterwarnings("ignore:max_unpooling2d")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_overrides(name: str) -> None:
    """As in torch, `__torch_function__` of subclasses and modes receives the call, and subclasses propagate to the result."""
    function, arguments = getattr(tnn, name), FUNCTIONS[name]
    expected = function(**arguments.inputs(), **arguments.options)
    for argument in arguments.inputs():
        given = arguments.inputs()
        given[argument] = given[argument].as_subclass(Labelled)
        Labelled.called.clear()
        got = function(**given, **arguments.options)
        assert function in Labelled.called and type(got) is Labelled
        assert torch.equal(got.as_subclass(Tensor), expected)
    with Recorder() as mode:
        assert torch.equal(function(**arguments.inputs(), **arguments.options), expected)
    assert function in mode.called


class Network(nn.Module):
    """One layer, registered under two names and called twice."""

    def __init__(self, layer: nn.Module, inputs: int = 1) -> None:
        super().__init__()
        self.inputs = inputs
        self.block = nn.Sequential(layer)
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        inputs = (x, y)[: self.inputs]
        return self.block[0](*inputs) + self.layer(*inputs)


def nodes(network: nn.Module, tracer: torch.fx.Tracer | None = None) -> list[tuple[str, str, str]]:
    """(op, name, target) of the call nodes in a trace."""
    graph = (tracer or torch.fx.Tracer()).trace(network)
    return [(n.op, n.name, str(n.target)) for n in graph.nodes if n.op.startswith("call")]


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", MODULES)
def test_layers_are_leaves(name: str) -> None:
    """Converted layers and trinn's own classes trace to the same nodes, names and targets as torch's layers."""
    options, inputs = MODULES[name].options, len(MODULES[name].inputs())
    theirs = nodes(Network(getattr(nn, name)(**options), inputs))
    assert [op for op, *_ in theirs].count("call_module") == 2
    assert nodes(trinn.convert(Network(getattr(nn, name)(**options), inputs))) == theirs
    assert nodes(Network(getattr(tnn, name)(**options), inputs)) == theirs


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_are_leaves(name: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused = FUSED[name]()

        def forward(self, x: Tensor) -> Tensor:
            return self.fused(x, x) if name == "BNAddActivation2d" else self.fused(x)

    assert nodes(Twice()) == [("call_module", "fused", "fused")]
    if "BN" not in name:  # a batch norm's forward, torch's too, branches on the number of axes
        assert all(kind != "call_module" for kind, *_ in nodes(Twice(), NoLeaves())), (
            "a tracer without leaves records functions"
        )


class NoLeaves(torch.fx.Tracer):
    """No module is a leaf."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class ConvolutionLeaves(torch.fx.Tracer):
    """Only convolutions are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d)


@pytest.mark.parametrize("tracer", [NoLeaves, ConvolutionLeaves])
def test_tracers_with_other_leaves(tracer: type[torch.fx.Tracer]) -> None:
    """A layer outside the leaves is traced into: trinn's functions appear in place of torch's."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    theirs = nodes(Network(network), tracer())
    ours = nodes(Network(trinn.convert(network)), tracer())
    assert [op for op, *_ in ours] == [op for op, *_ in theirs]
    targets = [n.target for n in tracer().trace(network).nodes if n.op == "call_function"]
    assert tnn.relu in targets and (tnn.conv2d in targets) == (tracer is NoLeaves)


def test_a_layer_as_root_is_traced_into() -> None:
    traced = torch.fx.symbolic_trace(tnn.ReLU())
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [tnn.relu]
    assert torch.equal(traced(randn(3)), tnn.relu(randn(3)))


def test_hooks_run_with_the_graph() -> None:
    network, counted = nn.Sequential(tnn.ReLU(), tnn.Linear(3, 3)).to(DEVICE), []
    network[0].register_forward_hook(lambda module, args, output: output + 1)
    network[1].register_forward_pre_hook(lambda module, args: counted.append(args[0]))  # type: ignore[func-returns-value]
    traced = torch.fx.symbolic_trace(network)
    assert not counted
    assert torch.equal(traced(randn(2, 3)), network(randn(2, 3))) and len(counted) == 2


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(F.interpolate(x, scale_factor=2), 2)) + torch.relu(x)


def test_functions_are_nodes() -> None:
    """A trace inside `patched` records trinn's functions; the graph runs trinn's kernels outside `patched` too."""
    with trinn.patched():
        traced = torch.fx.symbolic_trace(Functional())
    targets = [n.target for n in traced.graph.nodes if n.op.startswith("call")]
    assert [t for t in targets if getattr(t, "__module__", "").startswith("trinn.")] == [
        tnn.interpolate, tnn.max_pool2d, tnn.relu, tnn.relu,
    ]  # fmt: skip
    assert torch.equal(traced(randn(1, 2, 4, 4)), Functional()(randn(1, 2, 4, 4)))
