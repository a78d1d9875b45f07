"""`trinn.convert(model, fuse=...)` fuses runs of layers in nn.Sequential and named runs, and skips no hook or user code."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import trinn
import trinn.layers as tnn
from tests.operators.test_fused import launches
from tests.support.architectures import BasicBlock
from tests.support.check import DEVICE, randn
from trinn.layers.classes import forward_of
from trinn.layers.report import rows
from trinn.models import LeNet

pytestmark = pytest.mark.usefixtures("full_float32", "large_tiles")


def compared(ours: nn.Module, theirs: nn.Module, *shape: int) -> None:
    """Compare outputs, gradients and buffers of two modules, in training and in evaluation."""
    for training in (True, False):
        results = []
        for module in (ours, theirs):
            x = randn(*shape).requires_grad_()
            y = module.train(training)(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()]), *module.buffers()])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def launched(module: nn.Module, *shape: int) -> list[str]:
    return launches(lambda: module(randn(*shape)))[0]


class Tower(nn.Sequential):
    """A subclass with nn.Sequential's forward."""


class Backwards(nn.Sequential):
    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(self._modules.values()))  # type: ignore[arg-type]


def tower(cls: type[nn.Sequential] = Tower) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(2)
    return cls(*convolutions, nn.Flatten(), nn.Linear(4, 3), nn.ReLU()).to(DEVICE)


# The convolution also computes the first step of the batch norm's statistics; the batch norm also applies the ReLU.
FUSED = ["conv2d_statistics", "batchnorm2d_forward", "conv2d_activation_max_pool2d", "linear_fprop"]
UNFUSED = [
    "conv2d_fprop", "batchnorm2d_statistics", "batchnorm2d_forward", "activation_forward", "conv2d_fprop",
    "activation_forward", "max_pool2d_forward", "linear_fprop", "activation_forward",
]  # fmt: skip
SHAPE = (3, 2, 4, 4)


def test_layers_of_a_sequential() -> None:
    """Fusing keeps classes, names and children; `revert` restores everything."""
    model, torchs = trinn.convert(tower(), fuse=True), tower()
    assert type(model) is Tower and repr(model) == repr(torchs) and list(model.state_dict()) == list(torchs.state_dict())
    assert not Tower.__subclasses__()
    compared(model, torchs, *SHAPE)
    assert launched(model.train(), *SHAPE) == FUSED
    assert launched(model[:3], *SHAPE) == UNFUSED[:4] and launched(model[0], *SHAPE) == ["conv2d_fprop"]
    assert launched(trinn.convert(model), *SHAPE) == FUSED
    trinn.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in torchs.modules()] and launched(model, *SHAPE) == []
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in torchs.modules()]


def test_sequentials_that_cannot_be_fused() -> None:
    """Subclasses with another order or forward, and a Sequential without a fusable run."""
    own = type("Own", (nn.Sequential,), {"forward": lambda self, x: nn.Sequential.forward(self, x)})
    for model in (Backwards(nn.ReLU(), nn.Conv2d(2, 2, 1)), tower(own), nn.Sequential(nn.Linear(4, 4), nn.Softsign())):
        twin = copy.deepcopy(model.to(DEVICE))
        trinn.convert(model, fuse=True)
        assert forward_of(model) is None and launched(model, *SHAPE)
        torch.testing.assert_close(model(randn(*SHAPE)), twin(randn(*SHAPE)))
    assert not own.__subclasses__() and not Backwards.__subclasses__()


def test_children_that_change() -> None:
    """Fusion includes converted layers only, and each call uses the children of that moment."""
    model, torchs = trinn.convert(tower(), filter_fn=lambda name, _: name != "1", fuse=True), tower()
    assert launched(copy.deepcopy(model), *SHAPE) == ["conv2d_fprop", "activation_forward", *FUSED[2:]]
    for net in (model, torchs):
        net[2] = nn.Tanh()
        net.insert(0, nn.Identity())
    compared(model, torchs, *SHAPE)


# Named runs.


def test_runs_of_lenet() -> None:
    """Several runs share one ReLU and one pooling."""
    torch.manual_seed(0)
    model = LeNet(nn=nn).to(DEVICE)
    torchs = copy.deepcopy(model)
    trinn.convert(model, fuse=LeNet.RUNS)
    assert type(model) is LeNet and list(model.state_dict()) == list(torchs.state_dict()) and repr(model) == repr(torchs)
    compared(model, torchs, 2, 1, 32, 32)
    assert launched(model, 2, 1, 32, 32) == ["conv2d_activation_max_pool2d"] * 2 + ["linear_fprop"] * 3
    x = randn(2, 6, 4, 4)
    assert torch.equal(model.relu(x), x.relu()) and torch.equal(model.pool(x), nn.functional.max_pool2d(x, 2))
    trinn.revert(model)
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in torchs.modules()]


def test_runs_of_a_block() -> None:
    """The block calls its ReLU after the addition too, outside of any run. Results of separate calls stay correct."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"block": BasicBlock(2, 4, 2)}).to(DEVICE)
    torchs = copy.deepcopy(model)
    trinn.convert(model, fuse=[("block.conv1", "block.bn1", "block.relu"), ("block.conv2", "block.bn2")])
    compared(model["block"], torchs["block"], 3, 2, 5, 5)
    names = launched(model["block"].train(), 3, 2, 5, 5)
    assert names[:4] == ["conv2d_statistics", "batchnorm2d_forward"] * 2 and names[-1] in ("activation_", "activation_forward")
    block: Any = model["block"]
    y = block.bn1(block.conv1(randn(3, 2, 5, 5)))
    assert torch.equal(block.relu(y), y) and torch.equal(block.relu(-y), (-y).relu())
    assert not hasattr(y, "_trinn_fused")
    z = block.conv1(randn(3, 2, 5, 5))
    assert not torch.equal(block.bn2(z), z), "bn2 belongs to another run than conv1"


def test_a_single_run() -> None:
    model = trinn.convert(tower(), fuse=["0", "1", "2"])  # type: ignore[arg-type]
    assert launched(model, *SHAPE) == FUSED[:2] + UNFUSED[4:]


INVALID: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown name": ([("0", "norm")], AttributeError, "norm"),
    "a name in another module": ([("0", "1", "2.relu")], AttributeError, "relu"),
    "wrong layers": ([("0", "7")], NotImplementedError, "cannot fuse 0, 7, of the classes trinn.layers.conv2d.Conv2d, trinn"),
    "a wrong order": ([("1", "0")], NotImplementedError, "cannot fuse 1, 0"),
    "a run too long": ([("0", "1", "2", "5")], NotImplementedError, "cannot fuse 0, 1, 2, 5"),
    "one layer": ([("0",)], NotImplementedError, "cannot fuse 0"),
    "an empty run": ([()], NotImplementedError, "cannot fuse"),
    "torch layers": ([("7", "8"), ("0", "6")], NotImplementedError, "torch.nn.modules.flatten.Flatten"),
    "two runs with the same first layer": (
        [("0", "1", "2"), ("0", "1")],
        ValueError,
        "begins with the same layer as another run",
    ),
}


@pytest.mark.parametrize("runs", INVALID)
def test_invalid_runs(runs: str) -> None:
    """They raise, and the model is unchanged."""
    fuse, exception, words = INVALID[runs]
    model = tower()
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    with pytest.raises(exception, match=words):
        trinn.convert(model, fuse=fuse)
    assert [(type(m), dict(vars(m))) for m in model.modules()] == before


# User code that a naive fusion would skip.


def named_runs(model: nn.Sequential) -> nn.Sequential:
    return trinn.convert(model, fuse=[("0", "1", "2"), ("3", "4", "5"), ("7", "8")])


def sequential(model: nn.Sequential) -> nn.Sequential:
    return trinn.convert(model, fuse=True)


class Doubled(tnn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Called(tnn.ReLU):
    def __call__(self, input: Tensor) -> Tensor:
        return 2 * super().__call__(input)


class Scaled(nn.Module):
    """A parametrization that records its calls and draws random numbers."""

    def forward(self, weight: Tensor) -> Tensor:
        recorded.append("weight")
        return weight * torch.rand(1, device=weight.device)


recorded: list[Any] = []


def record(value: Any) -> Any:
    recorded.append(round(value.mean().item(), 3) if isinstance(value, Tensor) else value)
    return value


def patched_class(model: Any) -> Any:
    written = tnn.BatchNorm2d.forward

    def forward(self: Any, input: Tensor) -> Tensor:
        recorded.append("patched")
        return written(self, input) + 1

    tnn.BatchNorm2d.forward = forward  # type: ignore[method-assign]
    return lambda: setattr(tnn.BatchNorm2d, "forward", written)


def of_all(register: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda model: register(lambda module, *_: record(type(module).__name__) and None).remove


# Changes to a model. A change returns a function to undo it, or None.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "a forward hook": lambda m: m[1].register_forward_hook(lambda module, inputs, y: record(y) * 2) and None,
    "a forward pre-hook": lambda m: m[2].register_forward_pre_hook(lambda module, inputs: (record(inputs[0]) + 1,)) and None,
    "a backward hook": lambda m: m[0].register_full_backward_hook(lambda *_: record("backward") and None) and None,
    "a backward pre-hook": lambda m: m[1].register_full_backward_pre_hook(lambda *_: record("backward") and None) and None,
    "a global forward hook": of_all(nn.modules.module.register_module_forward_hook),
    "a global forward pre-hook": of_all(nn.modules.module.register_module_forward_pre_hook),
    "a replaced forward": lambda m: setattr(m[7], "forward", lambda x: record(x)),
    "a replaced _conv_forward": lambda m: setattr(m[3], "_conv_forward", lambda x, w, b: record(x) * 2),
    "a class with a forward": lambda m: setattr(m[2], "__class__", Doubled),
    "a class with a __call__": lambda m: setattr(m[4], "__class__", Called),
    "a patched class": patched_class,
    "a parametrization": lambda m: nn.utils.parametrize.register_parametrization(m[0], "weight", Scaled()) and None,
    "a parametrized norm": lambda m: nn.utils.parametrize.register_parametrization(m[1], "weight", Scaled()) and None,
    "weight norm": lambda m: parametrizations.weight_norm(m[7]) and None,
    "nn.utils.weight_norm": lambda m: nn.utils.weight_norm(m[3]) and None,
    "spectral norm": lambda m: parametrizations.spectral_norm(m[3]) and None,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("fuse", [named_runs, sequential])
@pytest.mark.parametrize("change", CHANGES)
def test_no_user_code_is_skipped(change: str, fuse: Callable[[Any], Any]) -> None:
    """Each hook and replaced method runs once, with the same values and results as without fusion."""
    found = []
    for convert in (trinn.convert, fuse):
        model: Any = convert(tower())
        undo = CHANGES[change](model)
        recorded.clear()
        torch.manual_seed(1)
        y = model(randn(*SHAPE).requires_grad_())
        y.sum().backward()
        if undo:
            undo()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((list(recorded), [y, *model.state_dict().values(), *gradients]))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)


def test_removed_hooks() -> None:
    for model in (named_runs(tower()), sequential(tower())):
        handle = model[1].register_forward_hook(lambda *_: None)
        assert launched(model, *SHAPE)[:2] == UNFUSED[:2]
        handle.remove()
        assert launched(model, *SHAPE) == FUSED


def test_forward_mode_and_errors() -> None:
    """A call that raises does not count as a batch."""
    for fuse in (named_runs, sequential):
        model, torchs = fuse(tower()).double().eval(), tower().double().eval()
        x, v = randn(*SHAPE, dtype=torch.float64), randn(*SHAPE, dtype=torch.float64, seed=1)
        torch.testing.assert_close(torch.func.jvp(model, (x,), (v,)), torch.func.jvp(torchs, (x,), (v,)))
        with pytest.raises(RuntimeError, match="to have 2 channels, but got 3"):
            model.train()(randn(2, 3, 4, 4).double())
        assert model[1].num_batches_tracked == 0


# Other tools.


@pytest.mark.parametrize("fuse", [named_runs, sequential])
def test_copies_and_pickles(fuse: Callable[[Any], Any]) -> None:
    """Copies fuse their own layers, and `revert` works on them."""
    model, file = nn.ModuleDict({"tower": fuse(tower())}), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = model["tower"].eval()(randn(*SHAPE))
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(other["tower"].eval()(randn(*SHAPE)), expected)
        assert launched(other["tower"].train(), *SHAPE) == FUSED
        nn.init.zeros_(other.get_parameter("tower.7.weight"))
        assert torch.equal(model["tower"](randn(*SHAPE)), expected)
    torch.save(expected, io.BytesIO())
    assert type(trinn.revert(loaded)["tower"][0]) is nn.Conv2d


@pytest.mark.parametrize("fuse", [named_runs, sequential])
def test_compile_export_and_trace(fuse: Callable[[Any], Any]) -> None:
    """torch.compile makes one graph, torch.export works, and torch.fx records each layer as its own node."""
    model, x = fuse(tower()).eval(), randn(*SHAPE)
    expected = model(x)
    torch._dynamo.reset()
    for backend in ("aot_eager", trinn.compile_backend):
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend=backend)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,), strict=False).module()(x), expected)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [str(i) for i in range(9)]
    torch.testing.assert_close(traced(x), expected)


def test_report() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), BasicBlock(2, 4, 2))
    trinn.convert(model, fuse=True)
    trinn.convert(model, fuse=[("2.conv1", "2.bn1", "2.relu")])
    fused = {row.layer: row.fused for row in rows(model)}
    assert (fused["0"], fused["1"]) == ("1", "0")
    assert (fused["2.conv1"], fused["2.bn1"], fused["2.conv2"]) == ("bn1, relu", "conv1, relu", "")
    assert fused["2.downsample.0"] == "1"
