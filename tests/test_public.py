"""Functions and classes as torch.nn's are to what looks at them: torch.fx, tensor subclasses, modes, and what is no tensor."""

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
from tests.check import DEVICE, randn
from trinn.layers.convert import OURS

# Tensors for each function that torch.nn.functional has too, by the names of its arguments, and what else it needs.
TENSORS: dict[str, dict[str, Callable[[], Tensor]]] = {
    "adaptive_avg_pool2d": {},
    "adaptive_max_pool2d": {},
    "avg_pool2d": {},
    "batch_norm": {name: lambda: torch.ones(2, device=DEVICE) for name in ("running_mean", "running_var", "weight", "bias")},
    "conv2d": {"weight": lambda: randn(3, 2, 2, 2), "bias": lambda: randn(3)},
    "conv_transpose2d": {"weight": lambda: randn(2, 3, 2, 2), "bias": lambda: randn(3)},
    "interpolate": {},
    "linear": {"weight": lambda: randn(3, 5), "bias": lambda: randn(3)},
    "max_pool2d": {},
    "max_unpool2d": {"indices": lambda: torch.arange(50, device=DEVICE).view(10, 5).expand(1, 2, 10, 5)},
    "relu": {},
    "relu_": {},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "adaptive_avg_pool2d": {"output_size": 2},
    "adaptive_max_pool2d": {"output_size": 2},
    "avg_pool2d": {"kernel_size": 2},
    "interpolate": {"scale_factor": 2},
    "max_pool2d": {"kernel_size": 2},
    "max_unpool2d": {"kernel_size": 2},
}
NO_TENSORS: dict[str, Any] = {
    "array": np.ones((1, 2, 10, 5), np.float32),
    "list": [[1.0, 2.0]],
    "False": False,
    "number": 1.5,
    "text": "x",
    "None": None,
}
# For each class of modules that torch.nn has too, what it needs.
MODULES: dict[str, dict[str, Any]] = {
    "AdaptiveAvgPool2d": {"output_size": 2},
    "AdaptiveMaxPool2d": {"output_size": 2},
    "AvgPool2d": {"kernel_size": 2},
    "BatchNorm1d": {"num_features": 2},
    "BatchNorm2d": {"num_features": 2},
    "Conv2d": {"in_channels": 2, "out_channels": 3, "kernel_size": 2},
    "ConvTranspose2d": {"in_channels": 2, "out_channels": 3, "kernel_size": 2},
    "LazyBatchNorm1d": {},
    "LazyBatchNorm2d": {},
    "LazyConv2d": {"out_channels": 3, "kernel_size": 2},
    "LazyConvTranspose2d": {"out_channels": 3, "kernel_size": 2},
    "LazyLinear": {"out_features": 3},
    "Linear": {"in_features": 5, "out_features": 3},
    "MaxPool2d": {"kernel_size": 2},
    "MaxUnpool2d": {"kernel_size": 2},
    "ReLU": {},
    "SyncBatchNorm": {"num_features": 2},
    "Upsample": {"scale_factor": 2},
    "UpsamplingBilinear2d": {"scale_factor": 2},
    "UpsamplingNearest2d": {"scale_factor": 2},
}
FUSED: dict[str, Callable[..., nn.Module]] = {
    "BNAddReLU2d": lambda: tnn.BNAddReLU2d(tnn.BatchNorm2d(4), tnn.ReLU()),
    "BNReLU2d": lambda: tnn.BNReLU2d(tnn.BatchNorm2d(4), tnn.ReLU()),
    "ConvBNReLU2d": lambda: tnn.ConvBNReLU2d(tnn.Conv2d(4, 4, 1), tnn.BatchNorm2d(4), tnn.ReLU()),
    "ConvReLU2d": lambda: tnn.ConvReLU2d(tnn.Conv2d(4, 4, 1), tnn.ReLU()),
    "ConvReLUMaxPool2d": lambda: tnn.ConvReLUMaxPool2d(tnn.Conv2d(4, 4, 1), tnn.ReLU(), tnn.MaxPool2d(2)),
    "LinearReLU": lambda: tnn.LinearReLU(tnn.Linear(6, 6), tnn.ReLU()),
}


def tensors(name: str) -> dict[str, Tensor]:
    return {"input": randn(1, 2, 10, 5)} | {argument: make() for argument, make in TENSORS[name].items()}


def inputs(name: str) -> list[Tensor]:
    """Of a class of MODULES."""
    x, *places = tensors("max_unpool2d" if name == "MaxUnpool2d" else "relu").values()
    return [x[..., 0] if name.endswith("BatchNorm1d") else x, *places]


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> type[Exception] | None:
    try:
        function(*args, **options)
    except Exception as error:
        return type(error)
    return None


def test_tables_have_every_name() -> None:
    functions = {name for name in tnn.__all__ if name.islower()}
    assert TENSORS.keys() == {name for name in functions if hasattr(F, name)}
    assert MODULES.keys() == {cls.__name__ for cls in OURS}
    assert MODULES.keys() | FUSED.keys() == set(tnn.__all__) - functions


@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:max_unpooling2d")
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_torchs(name: str, full_float32: None) -> None:
    """The same parameters by the same draws, state_dict, repr and outputs, by torch's own `__init__`."""
    modules, outputs = [], []
    for library in (tnn, nn):
        torch.manual_seed(0)
        modules.append(getattr(library, name)(**MODULES[name]).to(DEVICE))
        outputs.append(modules[-1](*inputs(name)))
    ours, theirs = modules
    assert repr(ours) == repr(theirs) and "__init__" not in vars(getattr(tnn, name))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(*outputs)


@pytest.mark.filterwarnings("ignore:max_unpooling2d")
@pytest.mark.parametrize("name", TENSORS)
def test_what_is_no_tensor(name: str) -> None:
    """torch's TypeError, in place of each tensor, by position and by name; also where torch trips over an attribute."""
    given, options = tensors(name), OPTIONS.get(name, {})
    getattr(tnn, name)(**given, **options)
    for argument in given:
        for kind, value in NO_TENSORS.items():
            changed = given | {argument: value}
            expected = outcome(getattr(F, name), **changed, **options)
            expected = TypeError if expected is AttributeError else expected
            assert outcome(getattr(tnn, name), **changed, **options) is expected, f"{name}({argument}={kind})"
            assert outcome(getattr(tnn, name), *changed.values(), **options) is expected, f"{name}({argument}={kind})"


def test_words_for_what_is_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"conv2d\(\): argument 'bias' \(position 3\) must be Tensor, not bool"):
        tnn.conv2d(randn(1, 2, 3, 3), randn(2, 2, 1, 1), False)  # type: ignore[arg-type]


class Labelled(Tensor):
    """A tensor that notes what is called with it."""

    called: list[Any] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.called.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Noted(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(func)
        return func(*args, **kwargs or {})


@pytest.mark.filterwarnings("ignore:max_unpooling2d")
@pytest.mark.parametrize("name", TENSORS)
def test_overrides(name: str) -> None:
    """A subclass sees the call and gets one of its own back, as from torch; a mode sees it too; results stay the same."""
    function, options = getattr(tnn, name), OPTIONS.get(name, {})
    expected = function(**tensors(name), **options)
    for argument in ("input", *TENSORS[name]):
        given = tensors(name)
        given[argument] = given[argument].as_subclass(Labelled)
        Labelled.called.clear()
        got = function(**given, **options)
        assert function in Labelled.called and type(got) is Labelled
        assert torch.equal(got.as_subclass(Tensor), expected)
    with Noted() as mode:
        assert torch.equal(function(**tensors(name), **options), expected)
    assert function in mode.called


class Network(nn.Module):
    """A layer under two names, called twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(layer)
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        inputs = (x, y) if isinstance(self.layer, nn.MaxUnpool2d) else (x,)
        return self.block[0](*inputs) + self.layer(*inputs)


def nodes(network: nn.Module, tracer: torch.fx.Tracer | None = None) -> list[tuple[str, str, str]]:
    """The calls in a trace."""
    graph = (tracer or torch.fx.Tracer()).trace(network)
    return [(n.op, n.name, str(n.target)) for n in graph.nodes if n.op.startswith("call")]


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", MODULES)
def test_leaves(name: str) -> None:
    """A converted layer gives the nodes that torch's layer gives, names and targets, as its class itself does."""
    theirs = nodes(Network(getattr(nn, name)(**MODULES[name])))
    assert [op for op, *_ in theirs].count("call_module") == 2
    assert nodes(trinn.convert(Network(getattr(nn, name)(**MODULES[name])))) == theirs
    assert nodes(Network(getattr(tnn, name)(**MODULES[name]))) == theirs


@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_are_leaves(name: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused = FUSED[name]()

        def forward(self, x: Tensor) -> Tensor:
            return self.fused(x, x) if name == "BNAddReLU2d" else self.fused(x)

    assert nodes(Twice()) == [("call_module", "fused", "fused")]
    if "BN" not in name:  # whose forward, torch's too, asks for its input's axes
        assert len(nodes(Twice(), Nothing())) > 1, "a tracer without leaves sees the operators"


class Nothing(torch.fx.Tracer):
    """Without leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


class Convolutions(torch.fx.Tracer):
    """Convolutions alone are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d)


@pytest.mark.parametrize("tracer", [Nothing, Convolutions])
def test_a_tracer_with_leaves_of_its_own(tracer: type[torch.fx.Tracer]) -> None:
    """Where torch's layer is none, ours is traced: a function of ours stands where torch's does."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
    theirs = nodes(Network(network), tracer())
    ours = nodes(Network(trinn.convert(network)), tracer())
    assert [op for op, *_ in ours] == [op for op, *_ in theirs]
    targets = [n.target for n in tracer().trace(network).nodes if n.op == "call_function"]
    assert tnn.relu in targets and (tnn.conv2d in targets) == (tracer is Nothing)


def test_a_layer_itself_is_traced() -> None:
    traced = torch.fx.symbolic_trace(tnn.ReLU())
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [tnn.relu]
    assert torch.equal(traced(randn(3)), tnn.relu(randn(3)))


def test_hooks_act_when_the_graph_runs() -> None:
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
    """Of trinn's, called as such or inside `patched`; the graph runs our kernels without it."""
    with trinn.patched():
        traced = torch.fx.symbolic_trace(Functional())
    targets = [n.target for n in traced.graph.nodes if n.op.startswith("call")]
    assert [t for t in targets if getattr(t, "__module__", "").startswith("trinn.")] == [
        tnn.interpolate, tnn.max_pool2d, tnn.relu, tnn.relu,
    ]  # fmt: skip
    assert torch.equal(traced(randn(1, 2, 4, 4)), Functional()(randn(1, 2, 4, 4)))
