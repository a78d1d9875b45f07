"""torch.compile(model, backend="trinn"): what of a graph is computed by trinn, what is joined, and that all is as it was."""

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
from tests.check import DEVICE, randn
from tests.networks import passes
from tests.processes import needs_processes, together
from tests.test_convert import ARCHITECTURES, WHOLE
from tests.test_lenet import OnlyOurs
from tests.test_toolchain import a_compiler
from trinn.kernels import tuning
from trinn.layers import backend

CONV, BN, ADD, RELU = "conv2d", "batch_norm", "add", "relu"


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch, small_tiles: None) -> None:
    """One program a launch: the seams of tiles are tested with the operators."""
    monkeypatch.setattr(tuning, "interpreted_block", 16384)
    monkeypatch.setattr(tuning, "wanted_programs", 1)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled yet, and what is not trinn's is not for Inductor, which takes its time."""
    torch._dynamo.reset()
    backend._summaries.clear()
    monkeypatch.setattr(backend, "_no_inductor", lambda: "kernels are interpreted")
    monkeypatch.setattr(backend, "_said", {"kernels are interpreted"})
    yield
    torch._dynamo.reset()


no_inductor = backend._no_inductor


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend=trinn.compile_backend, **options)


def joined() -> Counter[str]:
    """What was joined in all graphs since the test began."""
    return sum((summary.joined for summary in backend._summaries), Counter())


def left() -> set[str]:
    return {name for summary in backend._summaries for name, _ in summary.left}


def step(call: Callable[..., Any], model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, all gradients, and the buffers."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = call(x)
    y.square().sum().backward()
    parameters = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [y.detach().clone(), x.grad, *parameters, *(buffer.clone() for buffer in model.buffers())]  # type: ignore[list-item]


def same_step(model: nn.Module, x: Tensor, **options: Any) -> None:
    """Compiled, a model does in training and evaluation what a copy of it does eagerly, in float64, also without gradients."""
    model = model.to(DEVICE, torch.float64)
    twin, call, x = copy.deepcopy(model), compiled(model, **options), x.double()
    for training in (True, False):
        model.train(training), twin.train(training)
        torch.testing.assert_close(step(call, model, x), step(twin, twin, x), rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(call(x), twin(x), rtol=1e-9, atol=1e-11)


# Whole networks.

NETWORKS = ARCHITECTURES | {"VGG-11 with batch norm": WHOLE["VGG-11 with batch norm"]}
# Of one graph, in training.
JOINED: dict[str, dict[str, int]] = {
    "LeNet": {"conv2d + relu + max_pool2d": 2, "linear + relu": 2},
    "AlexNet": {"conv2d + relu + max_pool2d": 3, "conv2d + relu": 2, "linear + relu": 2},
    "VGG-11": {"conv2d + relu + max_pool2d": 5, "conv2d + relu": 3, "linear + relu": 2},
    "VGG-11 with batch norm": {"conv2d + batch_norm + relu": 8, "linear + relu": 2},
    "ResNet-18": {"conv2d + batch_norm + relu": 9, "conv2d + batch_norm + add + relu": 8, "conv2d + batch_norm": 3},
    "ResNet-50": {"conv2d + batch_norm + relu": 11, "conv2d + batch_norm + add + relu": 5, "conv2d + batch_norm": 4},
    "MobileNetV2": {"conv2d + batch_norm": 16},
    "U-Net": {"conv2d + batch_norm + relu": 10},
    "U-Net, bilinear": {"conv2d + batch_norm + relu": 10},
    "DCGAN's generator": {"batch_norm + relu": 4},
    "DCGAN's discriminator": {"conv2d + batch_norm": 3},
    "DeepLab's head": {"conv2d + batch_norm + relu": 7},
}


class OnlyOursInGraphs(OnlyOurs):
    """Also for what a graph has in place of an operator that writes over an argument; LeakyReLU is torch's."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            assert args[0].namespace == "trinn"
        elif "leaky_relu" not in func._opname:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs or {})


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> OnlyOurs:
    """Runs the forward and backward graphs that AOTAutograd makes of what the backend made, operator by operator."""
    mode = OnlyOursInGraphs()

    def watched(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            with mode:
                return graph(*args)

        return make_boxed_func(run)

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: aot_autograd(fw_compiler=watched))
    return mode


@pytest.mark.parametrize("converted", [False, pytest.param(True, marks=pytest.mark.long)], ids=["torch's", "converted"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, converted: bool, only_ours: OnlyOurs) -> None:
    """Outputs, gradients and running statistics in float64, in training and evaluation; no operator of ATen that trinn has runs
    forward or backward; and what is joined.
    """
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().to(DEVICE, torch.float64)
    twin, images = copy.deepcopy(model), randn(*shape, dtype=torch.float64)
    call = compiled(trinn.convert(model) if converted else model, fullgraph=True)
    for training in (True, False):
        model.train(training), twin.train(training)
        got = {name.removeprefix("_orig_mod."): value for name, value in passes(call, images).items()}
        for results in (got, passes(twin, images)), (model.state_dict(), twin.state_dict()):
            for key, expected in results[1].items():
                torch.testing.assert_close(results[0][key], expected, rtol=1e-8, atol=1e-11)
    assert len(backend._summaries) == 2 and backend._summaries[0].joined == JOINED[name]
    assert any(operator.startswith("trinn::") for operator in only_ours.seen)


# How networks are written: in each the calls are in a row in Dynamo's graph.


class Flags(nn.Module):
    """What is called depends on attributes."""

    def __init__(self, norm: bool = True, activation: bool = True, *, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=not norm)
        self.bn, self.relu = (nn.BatchNorm2d(4) if norm else None), relu or nn.ReLU(inplace=True)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.activation:
            x = self.relu(x)
        return x


class NormAct(nn.BatchNorm2d):
    """A norm that ends in an activation, and drops in between where it trains."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )
        return self.act(self.drop(x))


class Convolves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Apart(nn.Module):
    """A convolution in one module, its norm in another, and the activation in neither."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = Convolves(), nn.ModuleDict({"bn": nn.BatchNorm2d(4)})

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm["bn"](self.inner(x)))


class Helped(nn.Module):
    """By methods of its own, a loop and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(2)])

    def normalized(self, x: Tensor, i: int) -> Tensor:
        return self.bns[i](x)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = self.normalized(conv(x), i).relu_()
        return x


class SamePadded(nn.Conv2d):
    """TensorFlow's padding, which depends on the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        extra = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        x = F.pad(x, [extra[1] // 2, extra[1] - extra[1] // 2, extra[0] // 2, extra[0] - extra[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    """Weights that are standardised by each call."""

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, w.reshape_as(self.weight), self.bias)


class Pooled(nn.Module):
    """The mean over an image in several ways."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.mean(x, dim=[-1, -2]) + x.mean((3, 2), keepdim=True).flatten(1) + x.relu().mean((-2, -1))


class Residual(nn.Module):
    """The ways to write a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.bns[0](self.convs[0](x))
        y += x
        y = F.relu(y, inplace=True)
        z = torch.relu(y + self.bns[1](self.convs[1](y)))
        z = self.bns[2](self.convs[2](z)).add_(z).relu()
        gated = z * z.sigmoid()
        gated += self.bns[3](self.convs[3](x))
        return F.relu(gated)


IDIOMS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "flags": (Flags, {"conv2d + batch_norm + relu": 1}),
    "flags, no norm": (lambda: Flags(False), {"conv2d + relu": 1}),
    "flags, no activation": (lambda: Flags(activation=False), {"conv2d + batch_norm": 1}),
    "flags, another activation": (lambda: Flags(relu=nn.SiLU()), {"conv2d + batch_norm": 1}),
    "norm and activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4)), {"conv2d + batch_norm + relu": 1}),
    "in several modules": (Apart, {"conv2d + batch_norm + relu": 1}),
    "nothing between": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4), nn.Dropout2d(0.0), nn.ReLU()),
        {"conv2d + batch_norm + relu": 1},
    ),
    "methods": (Helped, {"conv2d + batch_norm + relu": 2}),
    "a convolution that pads": (
        lambda: nn.Sequential(SamePadded(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()), {"conv2d + batch_norm + relu": 1}
    ),
    "standardised weights": (lambda: nn.Sequential(Standardized(3, 4, 3), nn.ReLU()), {"conv2d + relu": 1}),
    "pooled": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Pooled()), {}),
    "sums": (Residual, {"conv2d + batch_norm + add + relu": 4}),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), {"batch_norm + relu": 1}),
    "pooled convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), {"conv2d + relu + max_pool2d": 1}
    ),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()),
               {"batch_norm + relu": 1, "linear + relu": 1}),
    "reflected": (
        lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        {"conv2d + relu": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IDIOMS)
def test_idioms(name: str) -> None:
    """All that can be joined is, every convolution, norm, ReLU, pooling and linear layer is trinn's, and nothing changes."""
    build, expected = IDIOMS[name]
    torch.manual_seed(0)
    same_step(build(), randn(2, 3, 6, 6), fullgraph=True)
    assert backend._summaries and all(summary.joined == expected for summary in backend._summaries)
    assert left() <= {"silu", "sigmoid", "mul", "add", "pad"}
    assert ("pad" in left()) == (name == "a convolution that pads")


# What is not joined, or not taken.


class Layers(nn.Module):
    """A forward that is given, with layers for it."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.bn, self.bn2, self.fc = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(6, 6)
        self.body = forward

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x * 1)


def input_written_over(net: Layers, x: Tensor) -> Tensor:
    """The convolution's input changes before its norm is computed."""
    given = x.detach() * 1
    y = F.conv2d(given, net.conv.weight.detach())
    given.add_(1)
    return F.relu(net.bn(y)) + x[:, :, 1:-1, 1:-1] * given.sum()


def weight_written_over(net: Layers, x: Tensor) -> Tensor:
    """Through a view of it."""
    w, given = net.conv.weight.detach() * 1, x.detach()
    y = F.conv2d(given, w, padding=1)
    w.view(-1)[:5].zero_()
    return F.relu(y) + x * w.sum()


def shared_norm(net: Layers, x: Tensor) -> Tensor:
    """The running statistics move in order."""
    return F.relu(net.bn(net.conv(x)) + net.bn(x * 3))


def autocast_between(net: Layers, x: Tensor) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=False):
        y = net.conv(x)
    return F.relu(y)


def no_grad_between(net: Layers, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.conv(x)
    return F.relu(y) * x


def added_to_the_other(net: Layers, x: Tensor) -> Tensor:
    """The sum stands where the residual stood, which is used again."""
    y = x * 2
    y += net.bn(net.conv(x))
    return F.relu(y) + y


def added_to(alias: Callable[[Tensor], Tensor]) -> tuple[Callable[[Any, Tensor], Tensor], dict[str, int]]:
    """To what is the same memory as a value that is used again."""

    def body(net: Layers, x: Tensor) -> Tensor:
        y = x.detach() * 2
        z = alias(y)
        z += net.bn(net.conv(x)).detach()
        return F.relu(z) + x * y

    return body, {"conv2d + batch_norm": 1}


UNJOINED: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, int]]] = {
    "used twice": (lambda net, x: (lambda y: F.relu(y) + y)(net.conv(x)), {}),
    "returned too": (lambda net, x: (lambda y: F.relu(net.bn(y)) + 0 * y.sum())(net.conv(x)), {"batch_norm + relu": 1}),
    "added to itself": (lambda net, x: (lambda y: F.relu(y + y))(net.bn(net.conv(x))), {"conv2d + batch_norm": 1}),
    "input written over": (input_written_over, {"batch_norm + relu": 1}),
    "weight written over": (weight_written_over, {}),
    "shared norm": (shared_norm, {"conv2d + batch_norm": 1, "batch_norm + add + relu": 1}),
    "autocast ends": (autocast_between, {}),
    "gradients begin": (no_grad_between, {}),
    "added to the other": (added_to_the_other, {"conv2d + batch_norm": 1}),
    "in another memory format": (
        lambda net, x: F.relu(x + net.bn(net.conv(x.to(memory_format=torch.channels_last)))).view(2, -1),
        {"conv2d + batch_norm": 1},
    ),
    "added to a view": added_to(lambda y: y.view(y.shape)),
    "added to itself, contiguous": added_to(lambda y: y.contiguous()),
    "added to itself, as a part": added_to(lambda y: y.chunk(1)[0]),
    "added to itself, by an identity": added_to(lambda y: +y),
    "broadcast": (lambda net, x: F.relu(net.bn(net.conv(x)) + x[:, :, :1, :1]), {"conv2d + batch_norm": 1}),
    "another dtype": (lambda net, x: F.relu(net.bn(net.conv(x)) + x.float()), {"conv2d + batch_norm": 1}),
    "scaled": (lambda net, x: F.relu(torch.add(net.bn(net.conv(x)), x, alpha=2)), {"conv2d + batch_norm": 1}),
    "a number": (lambda net, x: F.relu(net.bn(net.conv(x)) + 1.0), {"conv2d + batch_norm": 1}),
    "indices": (lambda net, x: F.max_pool2d(F.relu(net.conv(x)), 2, return_indices=True)[0], {"conv2d + relu": 1}),
    "the filters": (lambda net, x: net.conv2(x) + F.conv2d(x, net.bn.weight.view(1, 3, 1, 1) * net.conv2.weight), {}),
    "of one image": (lambda net, x: F.relu(net.conv(x[0])), {"conv2d + relu": 1}),
    "of one row": (lambda net, x: F.relu(F.batch_norm(x[:, :, 0], None, None, training=True) + x[:, :, 1]), {}),
    "written between two": (lambda net, x: net.bn(net.conv(x).mul_(2)).relu(), {"batch_norm + relu": 1}),
    "both norms": (
        lambda net, x: F.relu(net.bn(net.conv(x)) + net.bn2(net.conv2(x))),
        {"conv2d + batch_norm + add + relu": 1, "conv2d + batch_norm": 1},
    ),
    "other modes": (lambda net, x: F.interpolate(net.conv(x), scale_factor=2, mode="bicubic").mean(1), {}),
}


@pytest.mark.parametrize("name", UNJOINED)
def test_not_joined(name: str) -> None:
    """What is joined all the same, and that everything is as it was."""
    forward, expected = UNJOINED[name]
    torch.manual_seed(0)
    same_step(Layers(forward), randn(2, 3, 6, 6), fullgraph=True)
    assert backend._summaries[0].joined == expected


# With torch's other tools.


class Small(nn.Module):
    """Of each kind of join one, and a function that trinn does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.last, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.bn(self.conv(x)) + x)
        x = F.max_pool2d(self.last(F.silu(x)).relu_(), 2)
        return F.relu(self.fc(x.mean((2, 3))))


JOINED_IN_SMALL = {
    "conv2d + batch_norm + relu": 1, "conv2d + batch_norm + add + relu": 1, "conv2d + relu + max_pool2d": 1, "linear + relu": 1
}  # fmt: skip


def small(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return Small().to(DEVICE, dtype)


def test_one_graph_for_many_sizes() -> None:
    model, twin = small(), small()
    call, graphs = compiled(model, fullgraph=True, dynamic=True), set()
    for shape in (
        (3, 2, 6, 8),
        (5, 2, 10, 6),
        (4, 2, 12, 4),
    ):  # torch asks whether there are 2 images, and whether sizes are odd
        x = randn(*shape, dtype=torch.float64)
        torch.testing.assert_close(step(call, model, x), step(twin, twin, x), rtol=1e-9, atol=1e-11)
        graphs.add(len(backend._summaries))
    assert len(graphs) == 1 and backend._summaries[-1].joined == JOINED_IN_SMALL


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    """What is computed anew in the backward pass is joined too."""
    model = small().eval()
    twin = copy.deepcopy(model)
    x = randn(2, 2, 6, 6, dtype=torch.float64)
    call = compiled(lambda x: checkpoint(model, x, use_reentrant=reentrant) * 1, fullgraph=not reentrant)
    torch.testing.assert_close(step(call, model, x), step(twin, twin, x), rtol=1e-9, atol=1e-11)
    assert joined() == JOINED_IN_SMALL


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_autocast(where: str, full_float32: None) -> None:
    """The dtypes of what is joined are those of one operator after the other."""
    model = small(torch.float32).eval()
    twin = trinn.convert(copy.deepcopy(model))
    x = randn(2, 2, 6, 6)

    def cast(net: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return net(x)

        return call

    call = cast(compiled(model, fullgraph=True)) if where == "outside" else compiled(cast(model), fullgraph=True)
    got, expected = step(call, model, x), step(cast(twin), twin, x)
    assert got[0].dtype == torch.bfloat16 and not torch.is_autocast_enabled(DEVICE)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    assert joined() == JOINED_IN_SMALL


def test_in_place(full_float32: None) -> None:
    """What is written over is written over, also an input and a view of one."""

    def body(x: Tensor) -> Tensor:
        x.relu_()
        F.relu(x[:, :1], inplace=True)
        torch.relu_(x)
        return x.view(-1).relu_() * 2

    x, y = randn(2, 3, 4, 4), randn(2, 3, 4, 4)
    torch.testing.assert_close(compiled(body, fullgraph=True)(x), body(y))
    torch.testing.assert_close(x, y)


def test_a_sum_over_an_input(full_float32: None) -> None:
    conv, bn = nn.Conv2d(3, 3, 1).to(DEVICE).eval(), nn.BatchNorm2d(3).to(DEVICE).eval()

    @torch.no_grad()
    def body(x: Tensor, y: Tensor) -> Tensor:
        x += bn(conv(y))
        return F.relu(x)

    y, (x, twin) = randn(2, 3, 4, 4), (randn(2, 3, 4, 4, seed=1) for _ in range(2))
    torch.testing.assert_close(compiled(body, fullgraph=True)(x, y), body(twin, y))
    torch.testing.assert_close(x, twin)


def test_transforms() -> None:
    """Under forward-mode differentiation, vmap and grad it is what it was."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()).to(DEVICE, torch.float64)
    x, v = randn(2, 2, 6, 6, dtype=torch.float64), randn(2, 2, 6, 6, dtype=torch.float64, seed=1)
    functions: list[Callable[[Tensor], Any]] = [
        lambda x: torch.func.jvp(conv, (x,), (v,)),
        torch.func.vmap(lambda x: conv(x[None])),
        torch.func.grad(lambda x: conv(x).square().sum()),
    ]
    for f in functions:
        torch._dynamo.reset()
        torch.testing.assert_close(compiled(f)(x), f(x), rtol=1e-9, atol=1e-11)


def test_parametrizations_are_computed_once() -> None:
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    same_step(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()), randn(2, 3, 6, 6))
    assert joined()["conv2d + batch_norm + relu"] > 0


def test_hooks_and_replaced_forwards_are_called() -> None:
    """Dynamo sees what they do; what stands between is not skipped."""
    model, seen = small(), []
    model.stem[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model.stem[1].forward = lambda x: x + 1
    model.last.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 1,))
    model.fc._forward_hooks[0] = lambda module, inputs, output: seen.append(output.shape)
    same_step(model, randn(2, 2, 6, 6))
    assert seen and joined()["conv2d + batch_norm + relu"] == 0


def ddp(rank: int) -> tuple[list[Tensor], list[Tensor], dict[str, int], int]:
    """A step of a replicated network, compiled in two buckets and as it is."""
    backend._said.add("kernels are interpreted")
    found: list[list[Tensor]] = []
    for call in (compiled, lambda model: model):
        torch.manual_seed(0)
        model = nn.Sequential(small(), nn.Linear(3, 70000, dtype=torch.float64, device=DEVICE), nn.ReLU())
        replicated = nn.parallel.DistributedDataParallel(Held(model), bucket_cap_mb=2)
        found.append(step(call(replicated), model, randn(2, 2, 6, 6, dtype=torch.float64, seed=rank)))
        if call is compiled:
            graphs = backend.summaries_of(replicated)
    return *found, dict(joined()), len(graphs)  # type: ignore[return-value]


class Held(nn.Module):
    """A model that is not nn.Sequential, whose forward Dynamo passes over where DDP calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@needs_processes
def test_ddp(tmp_path: Path) -> None:
    for got, expected, what, graphs in together(ddp, tmp_path):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
        assert what == JOINED_IN_SMALL | {"linear + relu": 2} and graphs == 2


# What compiles the rest.


def test_inductor_gets_mode_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def compile_fx(graph: Any, inputs: Any, config_patches: dict[str, Any]) -> Any:
        given.append(config_patches)
        return graph

    monkeypatch.setattr(backend, "_no_inductor", lambda: None)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    for options in ({}, {"mode": "max-autotune"}, {"options": {"max_autotune": True}}, {"mode": "default"}):
        torch._dynamo.reset()
        compiled(small(), **options)(randn(2, 2, 6, 6, dtype=torch.float64))
    tuned = torch._inductor.list_mode_options("max-autotune")  # type: ignore[attr-defined]
    assert given == [{}, tuned, {"max_autotune": True}, {}] and backend._summaries[0].rest == "Inductor"
    torch._dynamo.reset()
    with pytest.raises(Exception, match="Unrecognized mode=fast"):
        compiled(small(), mode="fast")(randn(2, 2, 6, 6, dtype=torch.float64))


@pytest.mark.long
@a_compiler
def test_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_no_inductor", lambda: None)
    same_step(small(), randn(2, 2, 6, 6), fullgraph=True)
    assert {summary.rest for summary in backend._summaries} == {"Inductor"}


def test_without_a_compiler_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_said", set())
    monkeypatch.setattr(backend, "_no_inductor", no_inductor)
    monkeypatch.setattr(backend.interpreter, "INTERPRETED", False)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    model = nn.Sequential(nn.Flatten(), nn.Tanh())
    with pytest.warns(UserWarning, match="Inductor finds no C.. compiler, so that what is not trinn's runs by aot_eager"):
        same_step(model, randn(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch._dynamo.reset()
        same_step(model, randn(2, 3))


def test_where_kernels_do_not_run_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with kernels that are not interpreted."""
    monkeypatch.setattr(backend.interpreter, "INTERPRETED", False)
    same_step(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).cpu(), torch.randn(2, 3, 6, 6))
    assert not joined() and left() == {"conv2d", "relu"}


def test_it_is_listed() -> None:
    """Where trinn is installed, by its entry point and without an import."""
    program = "import torch; assert 'trinn' in torch.compiler.list_backends(); torch.compile(torch.nn.ReLU(), backend='trinn')"
    (entry,) = metadata.entry_points(group="torch_dynamo_backends", name="trinn")
    assert entry.load() is trinn.compile_backend
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


# What it tells.

REPORT = """\
Small: 2 graphs compiled by trinn VERSION and aot_eager, 10 operators on trinn, 8 joined
operator                          calls  by         why not trinn
------------------------------------------------------------------
conv2d + batch_norm + relu        2      trinn
conv2d + batch_norm + add + relu  2      trinn
conv2d + relu + max_pool2d        2      trinn
linear + relu                     2      trinn
mean                              2      trinn
silu                              2      aot_eager  trinn has none
"""


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    call = compiled(model)
    trinn.report(call)
    assert "0 graphs compiled" in capsys.readouterr().out
    for training in (True, False):
        model.train(training)
        call(randn(2, 2, 6, 6, dtype=torch.float64))
    trinn.report(call)
    assert capsys.readouterr().out == REPORT.replace("VERSION", trinn.__version__)
    model.compile(backend=trinn.compile_backend)
    trinn.report(model)
    assert capsys.readouterr().out.startswith(REPORT.replace("VERSION", trinn.__version__) + "Small: 0 of ")
    other = small()
    assert len(backend.summaries_of(compiled(other))) == 2, "which share their compiled code"
    other.extra = nn.Linear(3, 3)
    other.forward = lambda x: other.extra(x)
    compiled(other)(randn(2, 3))
    assert len(backend.summaries_of(other)) == 1
    torch._dynamo.reset()
    assert not backend.summaries_of(model)


REASONS: dict[str, Callable[[Tensor], Tensor]] = {
    "interpolate: mode must be one of": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "expected mode 'reflect', 'replicate' or 'circular', but got 'constant'": lambda x: F.pad(x, (1, 1)),
    "trinn has that over the pixels": lambda x: x.mean(1),
    "Got 3D input": lambda x: F.interpolate(x[0], scale_factor=2.0),
    "trinn has none": lambda x: F.gelu(x),
}


@pytest.mark.parametrize("why", REASONS)
def test_why_not(why: str) -> None:
    x = randn(2, 3, 4, 4)
    torch.testing.assert_close(compiled(REASONS[why])(x), REASONS[why](x))
    ((_, reason),) = backend._summaries[0].left
    assert why in reason
