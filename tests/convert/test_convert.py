"""`trinn.convert` moves torch.nn networks to trinn's kernels, and `trinn.revert` moves them back."""

import copy
import io
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import is_parametrized
from torch.testing._internal.two_tensor import TwoTensor

import trinn
import trinn.layers as tnn
from tests.models.test_lenet import OnlyOurs
from tests.support.architectures import (
    VGG11,
    BasicBlock,
    Bottleneck,
    DeepLabHead,
    DenseNet,
    EfficientNet,
    MobileNetV2,
    MobileNetV3,
    Narrow,
    PReLUUNet,
    ResNet,
    UNet,
    Yolo,
    convnext,
    dcgan_discriminator,
    dcgan_generator,
    googlenet,
    regnet,
    shufflenet,
    squeezenet,
)
from tests.support.check import DEVICE, randn
from tests.support.networks import check_deep_network, passes
from trinn.kernels.runtime.settings import settings
from trinn.layers.report import COVERED, OWN, rows
from trinn.models import AlexNet, LeNet

pytestmark = pytest.mark.usefixtures("large_tiles")

Shape = tuple[int, ...]

# Small networks for the interpreter, with fewer repetitions of their blocks.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "LeNet": (lambda: LeNet(nn=nn), (2, 1, 32, 32)),
    "AlexNet": (lambda: AlexNet(10, 0.0, nn=Narrow(nn)), (2, 3, 63, 63)),
    "VGG-11": (lambda: VGG11(2), (2, 3, 32, 32)),
    "ResNet-18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), 2), (2, 3, 33, 33)),
    "ResNet-50": (lambda: ResNet(Bottleneck, (2, 1, 1, 1), 1), (2, 3, 33, 33)),
    "MobileNetV2": (lambda: MobileNetV2(1, (1, 2, 1, 1, 0, 0, 0)), (2, 3, 33, 33)),
    "U-Net": (lambda: UNet(2, 2), (1, 3, 16, 16)),
    "U-Net, bilinear": (lambda: UNet(2, 2, bilinear=True), (1, 3, 16, 16)),
    "DCGAN's generator": (lambda: dcgan_generator(1, 4), (2, 4, 1, 1)),
    "DCGAN's discriminator": (lambda: dcgan_discriminator(1), (2, 3, 64, 64)),
    "DeepLab's head": (lambda: DeepLabHead(2, 2, (1, 2, 3)), (2, 2, 8, 8)),
    "MobileNetV3": (lambda: MobileNetV3(1), (2, 3, 33, 33)),
    "EfficientNet-B0": (lambda: EfficientNet(1), (2, 3, 33, 33)),
    "YOLO": (lambda: Yolo(2), (2, 3, 32, 32)),
    "ConvNeXt": (lambda: convnext(4), (2, 3, 16, 16)),
    "RegNetY": (lambda: regnet(4, 2), (2, 3, 16, 16)),
    "DenseNet": (lambda: DenseNet(2, (2, 2)), (2, 3, 32, 32)),
    "SqueezeNet": (lambda: squeezenet(1), (2, 3, 32, 32)),
    "ShuffleNetV2": (lambda: shufflenet(4), (2, 3, 32, 32)),
    "GoogLeNet": (lambda: googlenet(1), (2, 3, 32, 32)),
    "U-Net with PReLU": (lambda: PReLUUNet(2), (2, 3, 16, 16)),
}
LATER = list(ARCHITECTURES)[list(ARCHITECTURES).index("MobileNetV3") :]
# Hardsigmoid: in float64, torch's gradient has the error of a 1/6 in float32.
LESS_EXACT = {"MobileNetV3"}
# The same networks with all their layers.
WHOLE: dict[str, tuple[Callable[[], nn.Module], Shape]] = ARCHITECTURES | {
    "VGG-11": (lambda: VGG11(4), (2, 3, 64, 64)),
    "VGG-11 with batch norm": (lambda: VGG11(4, batch_norm=True), (2, 3, 64, 64)),
    "ResNet-18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2), 4), (4, 3, 64, 64)),
    "ResNet-50": (lambda: ResNet(Bottleneck, (3, 4, 6, 3), 2), (4, 3, 64, 64)),
    "MobileNetV2": (lambda: MobileNetV2(1), (4, 3, 64, 64)),
    "U-Net": (lambda: UNet(4), (2, 3, 32, 32)),
    "U-Net, bilinear": (lambda: UNet(4, bilinear=True), (2, 3, 32, 32)),
    "DCGAN's generator": (lambda: dcgan_generator(2, 8), (4, 8, 1, 1)),
    "DCGAN's discriminator": (lambda: dcgan_discriminator(2), (4, 3, 64, 64)),
    "DeepLab's head": (lambda: DeepLabHead(4, 4), (2, 4, 26, 26)),
    "MobileNetV3": (lambda: MobileNetV3(2), (4, 3, 64, 64)),
    "EfficientNet-B0": (lambda: EfficientNet(2), (4, 3, 64, 64)),
    "YOLO": (lambda: Yolo(4), (4, 3, 64, 64)),
    "GoogLeNet": (lambda: googlenet(1), (4, 3, 64, 64)),
}
whole = pytest.mark.parametrize("name", WHOLE)
fused = pytest.mark.parametrize("fuse", [False, True], ids=["unfused", "fused"])


def built(build: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return build().to(DEVICE, dtype)


def classes(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("name", "fuse"),
    [(name, True) for name in ARCHITECTURES]
    + [pytest.param(name, False, marks=pytest.mark.long if name in LATER else ()) for name in ARCHITECTURES],
)
def test_same_results(name: str, fuse: bool) -> None:
    """float64 outputs, gradients and running statistics stay the same; a reverted model has torch's exact bits."""
    build, shape = ARCHITECTURES[name]
    model, torchs = built(build, torch.float64), built(build, torch.float64)
    parameters, initial = list(model.parameters()), state(model)
    assert trinn.convert(model, fuse=fuse) is model and repr(model) == repr(torchs)
    left = {type(m).__name__ for m in model.modules() if type(m) in CONVERTIBLE}
    assert not left, f"{left} were not converted"
    assert same_bits(state(model), initial) and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    images = randn(*shape, dtype=torch.float64)
    got, expected = passes(model, images), passes(torchs, images)
    # Batch norms amplify rounding, so a tighter tolerance fails in float64.
    rtol, atol = (1e-6, 1e-8) if name in LESS_EXACT else (1e-9, 1e-12)
    for results in (got, expected), (state(model), state(torchs)):
        for name in results[1]:
            torch.testing.assert_close(results[0][name], results[1][name], rtol=rtol, atol=atol)
    trinn.revert(model)
    assert classes(model) == classes(torchs)
    model.load_state_dict(initial), torchs.load_state_dict(initial)
    assert same_bits(passes(model, images), passes(torchs, images))
    assert same_bits(state(model), state(torchs))


CONVERTIBLE = tuple(getattr(nn, name) for name in vars(tnn)["__all__"] if hasattr(nn, name))


@pytest.mark.long
@fused
@whole
def test_same_results_in_float32(name: str, fuse: bool, full_float32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and gradients obey the rule of check.py with tiles of 256, as long as a GPU's sums."""
    monkeypatch.setattr(settings, "interpreted_block", 256)
    build, shape = WHOLE[name]
    model, torchs = built(build), built(build)
    trinn.convert(model, fuse=fuse)
    check_deep_network(model, torchs, [randn(*shape, seed=seed) for seed in range(3)])


def test_the_rule_for_deep_networks_finds_a_wrong_layer(full_float32: None) -> None:
    """An error of a hundred units in the last place in one layer fails the check."""
    model, torchs = built(lambda: VGG11(2)), built(lambda: VGG11(2))
    trinn.convert(model)
    batches = [randn(2, 3, 32, 32, seed=seed) for seed in range(3)]
    check_deep_network(model, torchs, batches)
    model.features[8].register_forward_hook(lambda _, inputs, output: output * (1 + 1e-5))
    with pytest.raises(AssertionError, match="error .*, torch's .*; .*error"):
        check_deep_network(model, torchs, batches)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )  # fmt: skip


def test_hooks_and_attributes_survive() -> None:
    """Hooks, flags, buffer names and the optimizer's references to parameters stay valid."""
    model = built(small)
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[0].extra = "mine"
    called: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: called.append("before"))
    model[0].register_forward_hook(lambda *_: called.append("after"))
    model[5].register_full_backward_hook(lambda *_: called.append("backward"))
    model[1].register_state_dict_pre_hook(lambda *_: called.append("state"))
    model[0].weight.register_hook(lambda gradient: called.append("weight"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [dict(vars(module)) for module in model.modules()]
    trinn.convert(model)
    assert [vars(module) for module in model.modules()] == before
    assert not model[1].training and model[2].training and model[0].extra == "mine"
    weights = model[0].weight.clone()
    model(randn(2, 2, 6, 6)).sum().backward()
    optimizer.step()
    model.state_dict()
    assert called == ["before", "after", "backward", "weight", "state"]
    assert model[0].bias.grad is None and not torch.equal(model[0].weight, weights)
    trinn.revert(model)
    assert [type(module) for module in model] == [type(module) for module in small()]


WEIGHT_RULES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": lambda module: parametrizations.spectral_norm(module.eval()),
    "nn.utils.weight_norm": torch.nn.utils.weight_norm,
    "nn.utils.spectral_norm": lambda module: torch.nn.utils.spectral_norm(module.eval()),
    "pruning": lambda module: prune.l1_unstructured(module, "weight", amount=0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("layer", ["Conv2d", "ConvTranspose2d", "Linear"])
@pytest.mark.parametrize("rule", WEIGHT_RULES)
def test_computed_weights(rule: str, layer: str, full_float32: None) -> None:
    """Weights computed at each call, by a parametrization or a hook, work after `convert`; `revert` restores the same class."""
    sizes, shape = ((3, 4), (2, 3)) if layer == "Linear" else ((3, 4, 3), (2, 3, 5, 5))
    torchs, inner = (WEIGHT_RULES[rule](built(lambda: getattr(nn, layer)(*sizes))) for _ in range(2))
    model = nn.ModuleDict({"layer": inner})
    was, names = classes(model), list(model.state_dict())
    trinn.convert(model)
    converted: Any = model["layer"]
    assert isinstance(converted, getattr(tnn, layer)) and list(model.state_dict()) == names
    assert repr(converted) == repr(torchs)
    x = randn(*shape)
    for module in (converted, copy.deepcopy(converted) if is_parametrized(converted) else converted):
        y, expected = module(x), torchs(x)
        torch.testing.assert_close(y, expected)
        parameters = list(module.parameters()), list(torchs.parameters())
        gradients = (torch.autograd.grad(o.square().sum(), p) for o, p in zip((y, expected), parameters, strict=True))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    trinn.convert(model)
    trinn.revert(model)
    assert all(a is b for a, b in zip(classes(model), was, strict=True))
    assert torch.equal(model["layer"](x), torchs(x))


def test_parametrizations_that_change_while_converted() -> None:
    layer: Any = parametrizations.weight_norm(nn.Conv2d(2, 3, 3, device=DEVICE))
    trinn.convert(layer)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Tanh())
    assert layer.bias.abs().max() < 1
    trinn.revert(layer)
    assert not isinstance(layer, tnn.Conv2d) and torch.equal(layer.bias, layer.parametrizations.bias.original.tanh())
    trinn.convert(layer)
    nn.utils.parametrize.remove_parametrizations(layer, "bias")
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is tnn.Conv2d
    trinn.revert(layer)
    nn.utils.parametrize.register_parametrization(trinn.convert(layer), "bias", nn.Tanh())
    assert type(trinn.revert(layer)).__bases__ == (nn.Conv2d,)


def test_lazy_layers() -> None:
    model = trinn.convert(nn.Sequential(nn.LazyConv2d(3, 2), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)).to(DEVICE))
    assert [type(module) for module in model[::3]] == [tnn.LazyConv2d, tnn.LazyLinear]
    model(randn(2, 2, 4, 4))
    assert [type(module) for module in (model[0], model[1], model[3])] == [tnn.Conv2d, tnn.BatchNorm2d, tnn.Linear]
    trinn.revert(model)
    assert [type(module) for module in (model[0], model[1], model[3])] == [nn.Conv2d, nn.BatchNorm2d, nn.Linear]


def test_a_single_layer_and_a_shared_layer() -> None:
    layer = nn.Conv2d(1, 1, 1)
    assert trinn.convert(layer) is layer and type(layer) is tnn.Conv2d
    relu = nn.ReLU()
    visited: list[str] = []
    model = nn.Sequential(nn.Conv2d(1, 1, 1), relu, nn.Conv2d(1, 1, 1), relu)
    trinn.convert(model, filter_fn=lambda name, module: not visited.append(name))  # type: ignore[func-returns-value]
    assert visited == ["0", "1", "2"] and model[1] is model[3] is relu and type(relu) is tnn.ReLU


CHOICES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "all": ({}, [0, 1, 2, 3, 5]),
    "classes and names": ({"include": (nn.Conv2d, "Linear")}, [0, 5]),
    "trinn's class": ({"include": [tnn.MaxPool2d]}, [3]),
    "one class": ({"include": nn.ReLU}, [2]),
    "one name": ({"include": "BatchNorm2d"}, [1]),
    "none": ({"include": ()}, []),
    "filter_fn": ({"filter_fn": lambda name, module: name != "0" and not isinstance(module, nn.Linear)}, [1, 2, 3]),
    "include and filter_fn": ({"include": ("Linear", "ReLU"), "filter_fn": lambda name, _: name == "5"}, [5]),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_include_and_filter_fn(choice: str) -> None:
    options, expected = CHOICES[choice]
    model = trinn.convert(small(), **options)
    assert [i for i, module in enumerate(model) if type(module).__module__.startswith("trinn.")] == expected
    assert not model[4]._forward_hooks and type(model[4]) is nn.Flatten


def test_invalid_arguments() -> None:
    """They raise before any module changes."""
    with pytest.raises(ValueError, match="trinn has no .*Conv1d'>; it has .*Conv2d, "):
        trinn.convert(small(), include=(nn.Conv2d, nn.Conv1d))
    with pytest.raises(ValueError, match="trinn has no 'conv2d'; it has "):
        trinn.convert(small(), include="conv2d")
    for function in (trinn.convert, trinn.revert, trinn.report):
        with pytest.raises(TypeError, match="expected a torch.nn.Module, but got function"):
            function(small)
    model = small()

    def failing(name: str, module: nn.Module) -> bool:
        if name == "5":
            raise KeyError(name)
        return True

    with pytest.raises(KeyError):
        trinn.convert(model, filter_fn=failing)
    assert classes(model) == classes(small())


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Standardized(nn.Conv2d):
    """Weight standardization, common in public networks."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Called(nn.Linear):
    def __call__(self, input: Tensor) -> Tensor:
        return 2 * super().__call__(input)


class Strided(nn.AvgPool2d):
    stride = property(lambda self: 2, lambda self, _: None)


class Watching:
    """A mixin with a `__getattr__`."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)  # type: ignore[misc]


class Watched(Watching, nn.ReLU):
    pass


class Swish(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * input.sigmoid()


def left_alone() -> dict[str, tuple[nn.Module, str]]:
    """Modules that `convert` must not change. Keys: the `why` of `report`; values: the module and its `runs`."""
    replaced, inner, sharded = nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.Linear(1, 1)
    replaced.forward = lambda input: input  # type: ignore[method-assign]
    inner._conv_forward = lambda *_: None  # type: ignore
    sharded.weight = nn.Parameter(TwoTensor(torch.ones(1, 1), torch.ones(1, 1)))
    return {
        f"a forward of its own{COVERED}": (Swish(), "its forward"),
        f"its forward was replaced{COVERED}": (replaced, "its forward"),
        f"its _conv_forward was replaced{COVERED}": (inner, "its forward"),
        "torch's own subclass of Linear": (nn.MultiheadAttention(1, 1).out_proj, "torch"),
        "weight is a TwoTensor": (sharded, "torch"),
        "weight is complex64": (nn.Conv2d(1, 1, 1, dtype=torch.complex64), "torch"),
        "trinn has no mode 'linear'": (nn.Upsample(scale_factor=2, mode="linear"), "torch"),
        "trinn has no Conv3d": (nn.Conv3d(1, 1, 1), "torch"),
    }


# Subclasses with a changed call, and the shape of an input.
OWN_FORWARDS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "forward": (lambda: Doubled(2, 3, 2), (2, 2, 4, 4)),
    "_conv_forward": (lambda: Standardized(2, 3, 2), (2, 2, 4, 4)),
    "__call__": (lambda: Called(4, 3), (2, 4)),
    "stride property": (lambda: Strided(1), (1, 2, 4, 4)),
    "__getattr__": (Watched, (2, 3)),
    "parametrized": (lambda: parametrizations.weight_norm(Doubled(2, 3, 2)), (2, 2, 4, 4)),
}


@pytest.mark.parametrize("own", OWN_FORWARDS)
def test_subclasses_with_their_own_call(own: str, full_float32: None) -> None:
    """Their code runs with trinn's functions in place of torch's, if they are converted."""
    build, shape = OWN_FORWARDS[own]
    model, torchs, x = nn.Sequential(built(build)), nn.Sequential(built(build)), randn(*shape)
    cls, state = type(model[0]), list(vars(model[0]))
    expected = torchs(x)
    trinn.convert(model, filter_fn=lambda name, _: name != "0")
    assert list(vars(model[0])) == state
    trinn.convert(trinn.convert(model))
    (row, *_) = rows(model)
    assert row.on_trinn and row.why == OWN and type(model[0]) is cls and not cls.__subclasses__()
    for module in (model, copy.deepcopy(model) if own != "parametrized" else model, torch.compile(model, backend="aot_eager")):
        with OnlyOurs() if module is model else nullcontext() as mode:
            torch.testing.assert_close(module(x), expected)
        assert mode is None or any(name.startswith("trinn::") for name in mode.seen)
    trinn.revert(model)
    assert list(vars(model[0])) == state and torch.equal(model(x), torchs(x))


@pytest.mark.parametrize("reason", left_alone())
def test_modules_left_unchanged(reason: str) -> None:
    module, runs = left_alone()[reason]
    cls = type(module)
    model = trinn.convert(nn.Sequential(module))
    assert type(module) is cls
    (row,) = rows(model)
    assert (row.runs, row.fused, row.why) == (runs, "", reason)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match="RecursiveScriptModule is compiled: convert the module"):
        trinn.convert(scripted)
    model = trinn.convert(nn.Sequential(scripted, nn.ReLU()))
    assert type(model[1]) is tnn.ReLU and model(-torch.ones(2, device=DEVICE)).eq(0).all()


def test_a_model_with_trinn_layers() -> None:
    """`convert` keeps trinn's layers; `revert` turns them into torch's with the others."""
    model = nn.Sequential(tnn.Linear(2, 2), nn.Linear(2, 2), type("Mine", (tnn.Linear,), {})(2, 2))
    assert [type(m).__name__ for m in trinn.convert(model)] == ["Linear", "Linear", "Mine"]
    assert [m.__class__ for m in trinn.revert(model)][:2] == [nn.Linear, nn.Linear] and isinstance(model[2], tnn.Linear)


def test_a_compiled_model_recompiles(full_float32: None) -> None:
    """A compiled model recompiles after `convert`; after `revert` the first compilation is used again."""
    model = built(small).eval()
    x = randn(2, 2, 6, 6)
    expected = model(x)
    targets: list[set[str]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        targets.append(
            {node.name for node in graph.graph.nodes if "trinn" in f"{node.target} {getattr(node.target, '__module__', '')}"}
        )
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for change in (lambda model: None, trinn.convert, trinn.revert):
            change(model)
            torch.testing.assert_close(compiled(x), expected)
        assert [len(names) > 3 for names in targets] == [False, True] and torch.equal(compiled(x), expected)


def several() -> nn.Sequential:
    """Layers of many kinds: converted, left on torch, users' own, fused, and without computation."""
    return nn.Sequential(
        nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, groups=2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2), nn.Dropout2d().eval()),
        nn.Linear(2, 2), nn.LazyConv2d(2, 3), nn.Sequential(tnn.Conv2d(2, 2, 1), tnn.ReLU()),
        type("Mine", (tnn.Linear,), {})(2, 2), nn.MultiheadAttention(2, 1), nn.Sequential(), LeNet().conv1,
        parametrizations.weight_norm(nn.Linear(1, 1)),
        type("Own", (tnn.ReLU,), {"forward": lambda self, input: input})(), nn.Identity(), nn.Flatten(), Doubled(1, 1, 1),
    )  # fmt: skip


def test_report_of_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """One row per layer: the kernels, or the reason without kernels."""
    trinn.report(trinn.convert(several(), filter_fn=lambda name, _: name != "3", fuse=True), layers=True)
    title, head, line, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith(f"Sequential: 10 of 16 layers on trinn {trinn.__version__}, on cpu (")
    assert re.split("  +", head) == ["layer", "class", "runs", "fused with", "remarks"]
    assert set(line) == {"-"} and len(line) == max(map(len, lines))
    assert [re.split("  +", row) for row in lines] == [
        ["0", "Conv2d", "kernels/conv2d/passes.py"],
        ["1", "Conv2d", "kernels/conv2d/depthwise.py"],
        ["2.0", "Dropout", "torch", "trinn has no Dropout"],
        ["2.1", "Linear", "kernels/linear.py"],
        ["2.2", "Dropout2d", "nothing"],
        ["3", "Linear", "torch", "not converted"],
        ["4", "LazyConv2d", "kernels/conv2d/passes.py"],
        ["5.0", "Conv2d", "kernels/conv2d/passes.py", "1"],
        ["5.1", "ReLU", "kernels/activation.py", "0"],
        ["6", "Mine", "kernels/linear.py"],
        ["7", "MultiheadAttention", "torch", "trinn has no MultiheadAttention"],
        ["7.out_proj", "NonDynamicallyQuantizableLinear", "torch", "torch's own subclass of Linear"],
        ["9", "Conv2d", "kernels/conv2d/passes.py"],
        ["10", "ParametrizedLinear", "kernels/linear.py"],
        ["10.parametrizations.weight.0", "_WeightNorm", "torch", "trinn has no _WeightNorm"],
        ["11", "Own", "its forward", "a subclass of trinn's ReLU with a forward of its own"],
        ["12", "Identity", "nothing"],
        ["13", "Flatten", "nothing"],
        ["14", "Doubled", "kernels/conv2d/passes.py", OWN],
    ]


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    """One row per class and reason; modules without computation are not counted."""
    trinn.report(trinn.convert(several(), filter_fn=lambda name, _: name != "3", fuse=True))
    title, head, line, *lines = capsys.readouterr().out.splitlines()
    *lines, idle, functions, more = lines
    assert title.startswith(f"Sequential: 10 of 16 layers on trinn {trinn.__version__}, on cpu (") and ", 2 fused" in title
    assert re.split("  +", head) == ["class", "layers", "trinn", "fused", "remarks"] and set(line) == {"-"}
    assert [re.split("  +", row) for row in lines][:3] == [
        ["Conv2d", "4", "4", "1"],
        ["Linear", "2", "1", "0", "1: not converted"],
        ["Dropout", "1", "0", "0", "1: trinn has no Dropout"],
    ]
    assert idle == "Not counted, as they compute nothing: 1 Dropout2d, 1 Identity, 1 Flatten."
    assert "F.relu" in functions and "patched()" in functions and "layers=True" in more


def test_report_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    trinn.report(trinn.convert(ResNet(Bottleneck, (3, 4, 6, 3), 1), fuse=True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 128
    assert lines[0].startswith("ResNet: 110 of 110 layers on trinn")


def run_of_three() -> Any:
    return trinn.convert(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()), fuse=True)


# Changes to a converted model, and the report of each layer afterwards: (runs, fused, why).
CONV, NORM, RELU = ("kernels/conv2d/passes.py", "", ""), ("kernels/batchnorm2d.py", "", ""), ("kernels/activation.py", "", "")
NORM_RELU = [("kernels/batchnorm2d.py", "2", ""), ("kernels/activation.py", "1", "")]
AFTERWARDS: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str, str]]]] = {
    "no change": (
        lambda model: None,
        [
            ("kernels/conv2d/passes.py", "1, 2", ""),
            ("kernels/batchnorm2d.py", "0, 2", ""),
            ("kernels/activation.py", "0, 1", ""),
        ],
    ),
    "a forward hook": (
        lambda model: model[1].register_forward_hook(lambda *_: None) and None,
        [CONV, ("kernels/batchnorm2d.py", "", "has hooks"), RELU],
    ),
    "a backward hook": (lambda model: model[0].register_full_backward_hook(lambda *_: None) and None, [CONV, *NORM_RELU]),
    "a replaced forward": (
        lambda model: setattr(model[0], "forward", lambda input: input),
        [("its forward", "", "its forward was replaced"), *NORM_RELU],
    ),
    "a replaced _conv_forward": (
        lambda model: setattr(model[0], "_conv_forward", lambda *_: None),
        [("its forward", "", "its _conv_forward was replaced"), *NORM_RELU],
    ),
    "a replaced forward of the model": (lambda model: setattr(model, "forward", lambda input: input), [CONV, NORM, RELU]),
    "a parametrization": (
        lambda model: parametrizations.weight_norm(model[0]) and None,
        [CONV, ("torch", "", "trinn has no _WeightNorm"), *NORM_RELU],
    ),
    "a slice": (lambda model: model[:2], [CONV, NORM]),
    "a torch layer": (
        lambda model: model.__setitem__(1, nn.BatchNorm2d(2)), [CONV, ("torch", "", "not converted"), RELU]
    ),
    "a deleted layer": (
        lambda model: model.__delitem__(1), [("kernels/conv2d/passes.py", "1", ""), ("kernels/activation.py", "0", "")]
    ),
    "complex weights": (lambda model: model[:1].to(torch.complex64), [("raises", "", "weight is complex64")]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("change", AFTERWARDS)
def test_report_after_a_change(change: str) -> None:
    """The report describes the code of the next call."""
    function, expected = AFTERWARDS[change]
    model = run_of_three()
    assert [row[2:] for row in rows(function(model) or model)] == expected


def test_report_names_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def title(model: nn.Module) -> str:
        file = io.StringIO()
        trinn.report(model, file)
        return file.getvalue().splitlines()[0]

    assert title(nn.ReLU()) == f"ReLU: 0 of 1 layers on trinn {trinn.__version__}, without parameters"
    assert title(nn.Linear(1, 1, device="meta")).endswith(", on meta")
    monkeypatch.setattr("trinn.layers.report.INTERPRETED", False)
    assert title(nn.Linear(1, 1)).endswith(", on cpu (where kernels need TRITON_INTERPRET=1)")
