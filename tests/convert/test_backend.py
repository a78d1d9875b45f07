"""torch.compile(model, backend="trinn"): the calls on trinn, the fused calls, and equality with the eager model."""

import copy
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._ops import HigherOrderOperator
from torch.utils.checkpoint import checkpoint

import trinn
from tests.convert.test_convert import ARCHITECTURES, LESS_EXACT, WHOLE
from tests.models.test_lenet import OnlyOurs
from tests.support.check import DEVICE, randn
from tests.support.networks import passes, step
from tests.support.processes import ROOT, needs_processes, together
from tests.torch.test_toolchain import a_compiler
from trinn.layers import backend

pytestmark = pytest.mark.usefixtures("large_tiles")

no_inductor = backend._no_inductor


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty the compiler cache, and replace Inductor by aot_eager: Inductor is slow."""
    torch._dynamo.reset()
    backend._summaries.clear()
    monkeypatch.setattr(backend, "_no_inductor", lambda: "kernels are interpreted")
    monkeypatch.setattr(backend, "_said", {"kernels are interpreted"})
    yield
    torch._dynamo.reset()


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend=trinn.compile_backend, **options)


def same(got: Any, expected: Any, rtol: float = 1e-8, atol: float = 1e-11) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def same_step(model: nn.Module, x: Tensor, **options: Any) -> list[Counter[str]]:
    """Assert that the compiled model equals an eager copy in training, in evaluation and without gradients.

    Returns the fusions of each graph.
    """
    model = model.to(DEVICE, torch.float64)
    twin, call, x = copy.deepcopy(model), compiled(model, **options), x.double()
    for training in (True, False):
        model.train(training), twin.train(training)
        same(step(call, model, x), step(twin, twin, x))
    with torch.no_grad():
        same(call(x), twin(x))
    return [summary.fused for summary in backend._summaries]


# Whole networks.

NETWORKS = ARCHITECTURES | {"VGG-11 with batch norm": WHOLE["VGG-11 with batch norm"]}
CONV_BN_SILU = "conv2d + batch_norm + silu"
CONV_BN, CONV_BN_RELU, TAIL = "conv2d + batch_norm", "conv2d + batch_norm + relu", "conv2d + batch_norm + add + relu"
CONV_RELU, CONV_RELU_POOL, BN_RELU, LINEAR = "conv2d + relu", "conv2d + relu + max_pool2d", "batch_norm + relu", "linear + relu"
FUSED: dict[str, dict[str, int]] = {
    "LeNet": {CONV_RELU_POOL: 2, LINEAR: 2},
    "AlexNet": {CONV_RELU_POOL: 3, CONV_RELU: 2, LINEAR: 2},
    "VGG-11": {CONV_RELU_POOL: 5, CONV_RELU: 3, LINEAR: 2},
    "VGG-11 with batch norm": {CONV_BN_RELU: 8, LINEAR: 2},
    "ResNet-18": {CONV_BN_RELU: 9, TAIL: 8, CONV_BN: 3},
    "ResNet-50": {CONV_BN_RELU: 11, TAIL: 5, CONV_BN: 4},
    "MobileNetV2": {"conv2d + batch_norm + hardtanh": 11, "conv2d + batch_norm + add": 1, CONV_BN: 4},
    "U-Net": {CONV_BN_RELU: 10},
    "U-Net, bilinear": {CONV_BN_RELU: 10},
    "DCGAN's generator": {BN_RELU: 4, "conv_transpose2d + tanh": 1},
    "DCGAN's discriminator": {"conv2d + leaky_relu": 1, "conv2d + batch_norm + leaky_relu": 3, "conv2d + sigmoid": 1},
    "DeepLab's head": {CONV_BN_RELU: 7},
    "MobileNetV3": {
        "conv2d + batch_norm + hardswish": 6, CONV_BN_RELU: 5, CONV_RELU: 3, "conv2d + hardsigmoid": 3, CONV_BN: 3,
        "conv2d + batch_norm + add": 2, "linear + hardswish": 1,
    },
    "EfficientNet-B0": {
        CONV_BN_SILU: 13, "conv2d + silu": 6, "conv2d + sigmoid": 6, CONV_BN: 5, "conv2d + batch_norm + add": 1,
    },
    "YOLO": {CONV_BN_SILU: 22, "conv2d + batch_norm + silu + add": 5},
    "ConvNeXt": {"linear + gelu": 2},
    "RegNetY": {CONV_BN_RELU: 5, CONV_RELU: 2, "conv2d + sigmoid": 2, CONV_BN: 1, TAIL: 2},
    "DenseNet": {CONV_BN_RELU: 5, BN_RELU: 7},
    "SqueezeNet": {CONV_RELU_POOL: 1, CONV_RELU: 10},
    "ShuffleNetV2": {CONV_BN_RELU: 6, CONV_BN: 3},
    "GoogLeNet": {CONV_BN_RELU: 7},
    "U-Net with PReLU": {"conv2d + batch_norm + prelu": 3, "batch_norm + prelu": 2},
}  # fmt: skip


class OnlyOursInGraphs(OnlyOurs):
    """OnlyOurs for compiled graphs.

    A graph calls an operator that writes through a higher-order operator: this must call an operator of trinn.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            assert args[0].namespace == "trinn"
        else:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs or {})


LONG = {
    "AlexNet",
    "VGG-11",
    "ResNet-50",
    "MobileNetV2",
    "U-Net, bilinear",
    "MobileNetV3",
    "EfficientNet-B0",
    "YOLO",
    "DenseNet",
    "RegNetY",
    "ShuffleNetV2",
    "GoogLeNet",
}  # slow; test_what_is_fused and the other networks have the same fusions


@pytest.mark.parametrize("converted", [False, pytest.param(True, marks=pytest.mark.long)], ids=["torch's", "converted"])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in NETWORKS])
def test_networks(name: str, converted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and running statistics in float64 equal the original's, in training and evaluation.

    AOTAutograd's graphs, forward and backward, call no operator of ATen for trinn's work. FUSED has the expected fusions.
    """
    mode = OnlyOursInGraphs()

    def watched(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            with mode:
                return graph(*args)

        return make_boxed_func(run)

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: aot_autograd(fw_compiler=watched))
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().to(DEVICE, torch.float64)
    twin, images = copy.deepcopy(model), randn(*shape, dtype=torch.float64)
    call = compiled(trinn.convert(model) if converted else model, fullgraph=True)
    for training in (True, False):
        model.train(training), twin.train(training)
        got = {key.removeprefix("_orig_mod."): value for key, value in passes(call, images).items()}
        same(got, passes(twin, images), *((1e-6, 1e-8) if name in LESS_EXACT else ()))
        same(dict(model.state_dict()), dict(twin.state_dict()))
    graphs = 1 if name == "ConvNeXt" else 2  # no layer of ConvNeXt depends on the mode
    assert len(backend._summaries) == graphs and backend._summaries[0].fused == FUSED[name]
    assert any(operator.startswith("trinn::") for operator in mode.seen)


# Ways to write a network.


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation."""

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.running_mean, self.running_var, self.weight, self.bias
        return F.relu(nn.Identity()(F.batch_norm(x, *vectors, self.training, 0.1, self.eps)))


class SamePadded(nn.Conv2d):
    """TensorFlow's padding: it depends on the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = (
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        )
        return self._conv_forward(F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2]), self.weight, self.bias)


class Standardized(nn.Conv2d):
    """Weights standardised at each call."""

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0)
        return self._conv_forward(x, w.reshape_as(self.weight), self.bias)


class Layers(nn.Module):
    """Layers with inputs and outputs of equal size, and a forward from the caller."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.conv2, self.inner = (
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(3, 3, 1),
            nn.ModuleDict({"bn": nn.BatchNorm2d(3)}),
        )
        self.bn, self.bn2, self.norm_act, self.none = nn.BatchNorm2d(3), nn.BatchNorm2d(3), NormAct(3), None
        self.same, self.standard = SamePadded(3, 3, 3, stride=2), Standardized(3, 3, 3)
        self.circular = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose2d(3, 3, 3, padding=1)
        self.fc, self.bn1d = nn.Linear(108, 4), nn.BatchNorm1d(4)
        self.relu, self.drop, self.identity, self.body = nn.ReLU(inplace=True), nn.Dropout2d(0.0), nn.Identity(), forward

    def block(self, x: Tensor, norm: nn.Module | None, activation: bool = True) -> Tensor:
        x = self.conv(x)
        if norm is not None:
            x = norm(x)
        return self.relu(x) if activation else x

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x * 1)


def sums(net: Layers, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    y += x
    y = F.relu(y, inplace=True)
    z = torch.relu(y + net.bn2(net.conv2(y)))
    z = net.inner["bn"](net.conv(z)).add_(z).relu()
    gated = z * z.sigmoid()
    gated += net.bn(net.conv2(x))
    return F.relu_(gated)


def features(net: Layers, x: Tensor) -> Tensor:
    """ConvNeXt's order of axes."""
    x = F.avg_pool2d(x.to(memory_format=torch.channels_last), 3, 1, 1)
    y = F.linear(x.permute(0, 2, 3, 1), net.conv2.weight[:, :, 0, 0], net.conv2.bias)
    return x + (net.bn.weight * y).permute(0, 3, 1, 2)


def sums_of_convolutions(net: Layers, x: Tensor) -> Tensor:
    y = F.relu(net.conv(x) + x)
    y = y + net.conv2(y)
    z = net.up(y)
    z += y
    return F.silu(net.up(z).add_(y)) + 1


IDIOMS: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, int]]] = {
    "flags": (lambda net, x: net.block(x, net.bn), {CONV_BN_RELU: 1}),
    "flags, no norm": (lambda net, x: net.block(x, net.none), {CONV_RELU: 1}),
    "flags, no activation": (lambda net, x: net.block(x, net.bn, False), {CONV_BN: 1}),
    "another activation": (lambda net, x: F.silu(net.bn(net.conv(x))), {"conv2d + batch_norm + silu": 1}),
    "norm and activation": (lambda net, x: net.norm_act(net.conv(x)), {CONV_BN_RELU: 1}),
    "in several modules": (lambda net, x: F.relu(net.inner["bn"](net.conv(x))), {CONV_BN_RELU: 1}),
    "inactive dropout": (
        lambda net, x: net.relu(F.dropout(input=net.drop(net.bn(net.identity(net.conv(x)))), p=0.0)), {CONV_BN_RELU: 1}
    ),
    "layers constructed in forward": (lambda net, x: nn.ReLU()(nn.Identity()(net.conv(x))), {CONV_RELU: 1}),
    "methods": (lambda net, x: net.bn2(net.conv(net.bn(net.conv(x)).relu_())).relu(), {CONV_BN_RELU: 2}),
    "a convolution that pads": (lambda net, x: F.relu(net.bn(net.same(x))), {CONV_BN_RELU: 1}),
    "standardised weights": (lambda net, x: F.relu(net.standard(x)), {CONV_RELU: 1}),
    "reflected": (lambda net, x: F.relu(net.circular(F.pad(x, (1, 1, 1, 1), mode="reflect"))), {CONV_RELU: 1}),
    "norm first": (lambda net, x: net.conv(F.relu(net.bn(x))), {BN_RELU: 1}),
    "pooled": (lambda net, x: F.max_pool2d(net.relu(net.conv(x)), 2), {CONV_RELU_POOL: 1}),
    "linear": (lambda net, x: F.relu(net.bn1d(net.fc(x.flatten(1)))) + F.relu(net.fc(x.flatten(1))), {BN_RELU: 1, LINEAR: 1}),
    "means": (
        lambda net, x: x.mean((2, 3)) + torch.mean(net.conv(x), dim=[-1, -2]) + x.mean((3, 2), keepdim=True).flatten(1), {},
    ),
    "resized": (lambda net, x: F.interpolate(F.upsample(net.conv(x), scale_factor=2.0), (5, 4), mode="bilinear"), {}),
    "sums": (sums, {TAIL: 4}),
    "excitation": (
        lambda net, x: F.relu(net.conv(x) * net.conv2(x.mean((2, 3), keepdim=True)).sigmoid() + net.bn(x)),
        {"channel_scale + add + relu": 1, "conv2d + sigmoid": 1},
    ),
    "excitation, in place": (
        lambda net, x: net.bn(net.conv(x)).mul_(F.avg_pool2d(x, 6)).relu_(), {"channel_scale + relu": 1, CONV_BN: 1}
    ),
    "layer scale": (features, {"channel_scale + add": 1}),
    "a sum": (lambda net, x: F.relu(F.avg_pool2d(x, 3, 1, 1) + x.relu()), {"add + relu": 1}),
    "a sum in place": (lambda net, x: F.avg_pool2d(x, 3, 1, 1).add_(x.relu()).relu_(), {"add + relu": 1}),
    "added behind the activation": (lambda net, x: x + F.silu(net.bn(net.conv(x))), {"conv2d + batch_norm + silu + add": 1}),
    "sums of convolutions": (
        sums_of_convolutions,
        {"conv2d + add + relu": 1, "conv2d + add": 1, "conv_transpose2d + add": 1, "conv_transpose2d + add + silu": 1},
    ),
    "both norms": (lambda net, x: F.relu(net.bn(net.conv(x)) + net.bn2(net.conv2(x))), {TAIL: 1, CONV_BN: 1}),
}  # fmt: skip


def input_written_over(net: Layers, x: Tensor) -> Tensor:
    """A write to the convolution's input, before the norm."""
    given = x.detach() * 1
    y = F.conv2d(given, net.conv.weight.detach(), padding=1)
    given.add_(1)
    return F.relu(net.bn(y)) + x * given.sum()


def weight_written_over(net: Layers, x: Tensor) -> Tensor:
    """A write to the weight, through a view."""
    w, given = net.conv.weight.detach() * 1, x.detach()
    y = F.conv2d(given, w, padding=1)
    w.view(-1)[:5].zero_()
    return F.relu(y) + x * w.sum()


def autocast_between(net: Layers, x: Tensor) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=False):
        y = net.conv(x)
    return F.relu(y)


def no_grad_between(net: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.conv(x)
    return F.relu(y) * x


def added_to(alias: Callable[[Tensor], Tensor]) -> tuple[Callable[[Any, Tensor], Tensor], dict[str, int]]:
    """An in-place addition to `alias(y)`. The value `y` has another user, so the addition must not be fused."""

    def body(net: Layers, x: Tensor) -> Tensor:
        y = x.detach() * 2
        z = alias(y)
        z += net.bn(net.conv(x))
        return F.relu(z) + x * y

    return body, {CONV_BN: 1}


UNFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, int]]] = {
    "used twice": (lambda net, x: (lambda y: F.relu(y) + y)(net.conv(x)), {}),
    "used by two": (lambda net, x: (lambda y: F.relu(y) + net.bn(y))(net.conv(x)), {"batch_norm + add": 1}),
    "added to itself": (lambda net, x: (lambda y: F.relu(y + y))(net.bn(net.conv(x))), {CONV_BN: 1, "add + relu": 1}),
    "input written over": (input_written_over, {"batch_norm + relu + add": 1}),
    "a scale beside a call left to torch": (lambda net, x: F.relu(net.bn(x) * (x * 2)[:, :, :1, :1]), {}),
    "weight written over": (weight_written_over, {}),
    "shared norm": (
        lambda net, x: F.relu(net.bn(net.conv(x)) + net.bn(x * 3)), {CONV_BN: 1, "batch_norm + add + relu": 1}
    ),
    "written between two": (lambda net, x: net.bn(net.conv(x).mul_(2)).relu(), {BN_RELU: 1}),
    "autocast ends": (autocast_between, {}),
    "gradients begin": (no_grad_between, {}),
    "added to a value": added_to(lambda y: y),
    "added to a view": added_to(lambda y: y.view(y.shape)),
    "added to the same tensor, by contiguous()": added_to(lambda y: y.contiguous()),
    "added to the same tensor, by an identity": added_to(lambda y: torch.atleast_1d(y)),  # type: ignore[arg-type, return-value]
    "broadcast": (lambda net, x: F.relu(net.bn(net.conv(x)) + x[:, :, :1, :1]), {CONV_BN: 1}),
    "another dtype": (lambda net, x: F.relu(net.bn(net.conv(x)) + x.float()), {CONV_BN: 1}),
    "another memory format": (
        lambda net, x: F.relu(x + net.bn(net.conv(x.to(memory_format=torch.channels_last)))).view(2, -1), {CONV_BN: 1}
    ),
    "a convolution, broadcast": (lambda net, x: F.relu(net.conv(x) + x[:, :, :1, :1]), {}),
    "scaled": (lambda net, x: F.relu(torch.add(net.bn(net.conv(x)), x, alpha=2)), {CONV_BN: 1}),
    "indices": (lambda net, x: F.max_pool2d(F.relu(net.conv(x)), 2, return_indices=True)[0], {CONV_RELU: 1}),
    "computed filters": (
        lambda net, x: F.conv2d(x, F.conv2d(x[:1, :, :3, :3], net.conv2.weight.detach()).expand(3, 3, 3, 3)), {}
    ),
    "batch norm of three axes": (lambda net, x: F.relu(F.batch_norm(x[:, :, 0], None, None, training=True) + x[:, :, 1]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*IDIOMS, *UNFUSED])
def test_what_is_fused(name: str) -> None:
    """The expected calls are fused, trinn runs every operator it has, and results equal the eager model's."""
    forward, expected = (IDIOMS | UNFUSED)[name]
    torch.manual_seed(0)
    found = same_step(Layers(forward), randn(2, 3, 6, 6), fullgraph=True)
    assert found[0] == expected and (name in UNFUSED or all(fused == expected for fused in found))
    left = {operator for summary in backend._summaries for operator, _ in summary.left}
    assert left <= {"mul", "mul_", "add", "add_", "iadd", "sum", "zero_", "float", "to", "pad"} and (
        "pad" not in left or "pads" in name
    )


def test_a_product_in_place_keeps_its_dtype() -> None:
    def scaled(x: Tensor, scale: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1).mul_(scale).relu_()

    x, scale = randn(2, 3, 6, 6), randn(3, 1, 1, dtype=torch.float64, seed=1)
    torch.testing.assert_close(compiled(scaled)(x, scale), scaled(x, scale))
    assert not backend._summaries[0].fused


@pytest.mark.parametrize("of_input", [False, True])
def test_sums_in_place(of_input: bool) -> None:
    """trinn's addition writes to an intermediate value, or to the caller's tensor."""

    def summed(x: Tensor) -> Tensor:
        y = x if of_input else F.avg_pool2d(x, 3, 1, 1)
        y.add_(F.max_pool2d(x, 3, 1, 1))
        return F.max_pool2d(y, 2)

    x = randn(2, 3, 6, 6)
    twin = x.clone()
    torch.testing.assert_close(compiled(summed)(x), summed(twin))
    assert torch.equal(x, twin) and backend._summaries[0].taken["add"] == 1 and not backend._summaries[0].left


def test_memory_format_of_torchs_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, torch's float64 convolutions return contiguous tensors for any input; trinn's keep channels_last."""
    name = "another memory format"
    forward, expected = UNFUSED[name]
    monkeypatch.setattr(torch._C, "_conv_determine_backend_memory_format", lambda *_: torch.contiguous_format)
    torch._subclasses.FakeTensorMode.cache_clear()  # fake tensors remember the strides of earlier tests
    assert same_step(Layers(forward), randn(2, 3, 6, 6), fullgraph=True)[0] == expected


REASONS: dict[str, Callable[[Tensor], Tensor]] = {
    "interpolate: mode must be one of": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "expected mode 'reflect', 'replicate' or 'circular', but got 'constant'": lambda x: F.pad(x, (1, 1)),
    "trinn computes it over the pixels": lambda x: x.mean(1),
    "not in trinn": lambda x: F.hardshrink(x),
}


@pytest.mark.parametrize("why", REASONS)
def test_what_is_left(why: str) -> None:
    x = randn(2, 3, 4, 4)
    torch.testing.assert_close(compiled(REASONS[why])(x), REASONS[why](x))
    ((_, reason),) = backend._summaries[0].left
    assert why in reason


@pytest.mark.parametrize("dynamic", [False, True])
def test_elements(dynamic: bool) -> None:
    """Those of all floating-point results are counted before fusion; views, and calls without such results, are not."""

    def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y, indices = F.max_pool2d(F.relu(F.conv2d(x, weight)), 2, return_indices=True)
        left, _ = torch.cat((y, F.hardshrink(y)), 1).chunk(2, 1)
        return torch.sin(left.flatten(1)), indices + 1

    call = compiled(forward, fullgraph=True, dynamic=dynamic)
    call(randn(3, 2, 6, 6), randn(4, 2, 3, 3))
    (summary,) = backend._summaries
    assert summary.fused == {CONV_RELU: 1} and summary.taken == {"max_pool2d": 1}
    convolved, pooled = 3 * 4 * 4 * 4, 3 * 4 * 2 * 2
    assert summary.elements == {"trinn": 2 * convolved + pooled, "concatenation": 2 * pooled, "torch": 2 * pooled}


def test_nothing_is_taken_where_kernels_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without the interpreter."""
    monkeypatch.setattr(backend.interpreter, "INTERPRETED", False)
    x, conv = torch.randn(2, 3, 6, 6), nn.Conv2d(3, 4, 3)
    torch.testing.assert_close(compiled(conv)(x), conv(x))
    assert not backend._summaries[0].taken and {name for name, _ in backend._summaries[0].left} == {"conv2d"}


def test_writes_to_inputs(full_float32: None) -> None:
    """The compiled function writes to an input, to a view of an input, and to an input by an addition that could be fused."""
    conv, bn = nn.Conv2d(3, 3, 1).to(DEVICE).eval(), nn.BatchNorm2d(3).to(DEVICE).eval()

    @torch.no_grad()
    def body(x: Tensor, y: Tensor) -> Tensor:
        F.relu(x[:, :1], inplace=True)
        y.view(-1).relu_()
        x += bn(conv(y))
        return F.relu(x)

    results = []
    for call in (body, compiled(body, fullgraph=True)):
        x, y = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
        results.append([call(x, y), x, y])
    torch.testing.assert_close(*results)


# With torch's other tools.


class Small(nn.Module):
    """One fusion of each kind, and one function without a counterpart in trinn."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.last, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.bn(self.conv(x)) + x)
        x = F.max_pool2d(self.last(F.hardshrink(x)).relu_(), 2)
        return F.relu(self.fc(x.mean((2, 3))))


FUSED_IN_SMALL = {CONV_BN_RELU: 1, TAIL: 1, CONV_RELU_POOL: 1, LINEAR: 1}


def small(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return Small().to(DEVICE, dtype)


def images(*shape: int) -> Tensor:
    return randn(*(shape or (2, 2, 6, 6)), dtype=torch.float64)


def test_one_graph_for_many_sizes() -> None:
    """Batch sizes other than 2, and even image sizes: torch's own functions specialise on others."""
    model, twin, graphs = small(), small(), set()
    call = compiled(model, fullgraph=True, dynamic=True)
    for x in (images(3, 2, 6, 8), images(5, 2, 10, 6), images(4, 2, 12, 4)):
        same(step(call, model, x), step(twin, twin, x))
        graphs.add(len(backend._summaries))
    assert graphs == {1} and backend._summaries[0].fused == FUSED_IN_SMALL


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    """The recomputation in the backward pass is fused too."""
    model = small().eval()
    twin = copy.deepcopy(model)
    call = compiled(lambda x: checkpoint(model, x, use_reentrant=reentrant) * 1, fullgraph=not reentrant)
    same(step(call, model, images()), step(twin, twin, images()))
    assert sum((summary.fused for summary in backend._summaries), Counter()) == FUSED_IN_SMALL


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_autocast(where: str, full_float32: None) -> None:
    """Fused calls have the dtypes of the operators called one by one."""
    model = small(torch.float32).eval()
    twin = trinn.convert(copy.deepcopy(model))
    cast = torch.autocast(DEVICE, torch.bfloat16)
    call = cast(compiled(model, fullgraph=True)) if where == "outside" else compiled(cast(model.forward), fullgraph=True)
    got, expected = step(call, model, images().float()), step(cast(twin), twin, images().float())
    assert got[0].dtype == torch.bfloat16 and not torch.is_autocast_enabled(DEVICE)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    assert backend._summaries[0].fused == FUSED_IN_SMALL


def test_transforms() -> None:
    """Forward-mode differentiation, vmap and grad give the eager results."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()).to(DEVICE, torch.float64)
    functions: list[Callable[[Tensor], Any]] = [
        lambda x: torch.func.jvp(conv, (x,), (x.flip(0),)),
        torch.func.vmap(lambda x: conv(x[None])),
        torch.func.grad(lambda x: conv(x).square().sum()),
    ]
    for f in functions:
        torch._dynamo.reset()
        same(compiled(f)(images()), f(images()))


def test_hooks_and_replaced_forwards() -> None:
    """They are called. spectral_norm does one power iteration per call."""
    model, seen = small(), []
    nn.utils.parametrizations.spectral_norm(model.conv)
    model.stem[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model.stem[1].forward = lambda x: x + 1
    model.last.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 1,))
    model.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    found = same_step(model, images())
    assert seen and sum(found, Counter()).keys() == {TAIL, CONV_RELU_POOL, LINEAR}


def ddp(rank: int) -> list[Any]:
    """A step of a replicated network: compiled, in two buckets, and eager."""
    found: list[Any] = []
    for call in (compiled, lambda model: model):
        torch.manual_seed(0)
        model = nn.Sequential(small(), nn.Linear(3, 70000, dtype=torch.float64, device=DEVICE), nn.ReLU())
        holder = Layers(lambda net, x: net.model(x)).to(DEVICE)  # Dynamo skips an nn.Sequential called by DDP
        for name in [name for name, _ in holder.named_children()]:
            delattr(holder, name)
        holder.model = model
        replicated = nn.parallel.DistributedDataParallel(holder, bucket_cap_mb=2)
        found.append(step(call(replicated), model, images()))
        found.append(dict(sum((graph.fused for graph in backend.summaries_of(replicated)), Counter())))
    return found


@pytest.mark.long
@needs_processes
def test_ddp(tmp_path: Path) -> None:
    for got, fused, expected, _ in together(ddp, tmp_path):
        same(got, expected)
        assert fused == FUSED_IN_SMALL | {LINEAR: 2}


# The compiler of the calls left to torch.


def test_inductor_gets_mode_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def compile_fx(graph: Any, inputs: Any, config_patches: dict[str, Any]) -> Any:
        given.append(config_patches)
        return graph

    monkeypatch.setattr(backend, "_no_inductor", lambda: None)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    for options in ({}, {"mode": "max-autotune"}, {"options": {"max_autotune": True}}, {"mode": "default"}):
        torch._dynamo.reset()
        compiled(small(), **options)(images())
    tuned = torch._inductor.list_mode_options("max-autotune")  # type: ignore[attr-defined]
    assert given == [{}, tuned, {"max_autotune": True}, {}] and backend._summaries[0].rest == "Inductor"
    torch._dynamo.reset()
    with pytest.raises(Exception, match="Unrecognized mode=fast"):
        compiled(small(), mode="fast")(images())


@pytest.mark.long
@a_compiler
def test_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_no_inductor", lambda: None)
    same_step(small(), images(), fullgraph=True)
    assert {summary.rest for summary in backend._summaries} == {"Inductor"}


@pytest.mark.long
def test_without_the_backend() -> None:
    """Without the backend loaded, torch's other backends trace into trinn's functions. This process has loaded it."""
    tests = "tests/torch/test_dynamic.py", "tests/torch/test_toolchain.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_one_warning_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_said", set())
    monkeypatch.setattr(backend, "_no_inductor", no_inductor)
    monkeypatch.setattr(backend.interpreter, "INTERPRETED", False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.warns(UserWarning, match="Inductor finds no C.. compiler, so the operators left to torch run on aot_eager"):
        compiled(torch.tanh)(randn(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.sin)(randn(2))


def test_it_is_listed() -> None:
    """If trinn is installed, torch finds the backend by its entry point, without an import of trinn."""
    program = "import torch; assert 'trinn' in torch.compiler.list_backends(); torch.compile(torch.nn.ReLU(), backend='trinn')"
    entry = next(iter(metadata.entry_points(group="torch_dynamo_backends", name="trinn")), None)
    if entry is None:
        pytest.skip("trinn is not installed")
    assert entry.load() is trinn.compile_backend
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


REPORT = """\
Small: 2 graphs compiled by trinn VERSION and aot_eager, 10 operators on trinn, 8 fused
elements computed: 90.3% on trinn, 0.0% concatenated, 9.7% by other operators of aot_eager
operator                          calls  runs on    why not trinn
-----------------------------------------------------------------
conv2d + batch_norm + relu        2      trinn
conv2d + batch_norm + add + relu  2      trinn
conv2d + relu + max_pool2d        2      trinn
linear + relu                     2      trinn
mean                              2      trinn
hardshrink                        2      aot_eager  not in trinn
"""


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    model, expected = small(), REPORT.replace("VERSION", trinn.__version__)
    call = compiled(model)
    trinn.report(call)
    assert "0 graphs compiled" in capsys.readouterr().out
    for training in (True, False):
        model.train(training)
        call(images())
    trinn.report(call)
    assert capsys.readouterr().out == expected
    model.compile(backend=trinn.compile_backend)
    trinn.report(model)
    assert capsys.readouterr().out.startswith(expected + "Small: 0 of ")
    trinn.report(compiled(small()))
    assert capsys.readouterr().out == expected, "models of one class share their compiled code"
    torch._dynamo.reset()
    assert not backend.summaries_of(model)
