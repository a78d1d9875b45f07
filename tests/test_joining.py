"""`trinn.convert(model, fuse=True)`: what is joined in a forward, and that everything else is as before."""

import copy
import io
import linecache
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trinn
import trinn.layers as tnn
from tests.architectures import BasicBlock, Bottleneck
from tests.check import DEVICE, randn
from tests.test_fused import launches
from trinn.layers.joining import joins_of
from trinn.layers.report import rows
from trinn.models import LeNet

# Layers that note their calls and compute next to nothing, of the classes that are joined: joined or not, each is called.


class Noted:
    log: list[str] = []
    name: str

    def note(self, y: Tensor) -> Tensor:
        self.log.append(self.name)
        return y


class Conv(Noted, tnn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.note(input * 1.5 + 0.1)


class Norm(Noted, tnn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.note(input * 0.7 - 0.05)


class Rectifier(Noted, tnn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return self.note(input.clamp_(min=0) if self.inplace else input.clamp(min=0))


class Noise(Noted, nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return self.note(input - torch.rand(()).to(input))


class InPlace(Noted, nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return self.note(input.add_(0.25))


def named(**layers: Any) -> nn.ModuleDict:
    for name, layer in layers.items():
        layer.name = name
    return nn.ModuleDict(layers)


CHILDREN: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: Conv(1, 1, 1),
    "conv2": lambda: Conv(1, 1, 1),
    "bn": lambda: Norm(1),
    "bn2": lambda: Norm(1),
    "relu": lambda: Rectifier(),
    "relu2": lambda: Rectifier(inplace=True),
    "noise": lambda: Noise(),
    "bump": lambda: InPlace(),
}


def from_source(body: str) -> nn.Module:
    """A module with that body of its forward, and CHILDREN."""
    source = "class Net(nn.Module):\n    def forward(self, x):\n" + "".join(f"        {line}\n" for line in body.splitlines())
    file = f"<forward {random.random()}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    namespace: dict[str, Any] = {"nn": nn, "F": F, "torch": torch, "__name__": "nets"}
    exec(compile(source, file, "exec", dont_inherit=True), namespace)
    net = namespace["Net"]()
    for name, child in CHILDREN.items():
        net.add_module(name, child())
        getattr(net, name).name = name
    net.spare = None
    return net


def outcome(net: nn.Module) -> tuple[Any, list[str]]:
    """What a forward returns or raises, and the calls that it makes."""
    Noted.log.clear()
    torch.manual_seed(0)
    try:
        result = net(torch.linspace(-1, 1, 4, device=DEVICE).view(1, 1, 2, 2))
    except Exception as error:
        result = type(error)
    return result, [*Noted.log]


def assert_same(body: str) -> nn.Module:
    """Joined and as written: the same bits, and the same calls in the same order but for the batch norms of tails."""
    net = from_source(body)
    expected, calls = outcome(net)
    trinn.convert(net, fuse=True)
    got, joined_calls = outcome(net)
    tails = {run[0] for run in joins_of(net) if "+" in run}
    torch.testing.assert_close(got, expected, rtol=0, atol=0) if not isinstance(expected, type) else None
    assert isinstance(got, type) == isinstance(expected, type), f"{got}, as written {expected}, in\n{body}"
    assert [c for c in calls if c not in tails] == [c for c in joined_calls if c not in tails], body
    assert sorted(calls) == sorted(joined_calls), body
    trinn.revert(net)
    assert outcome(net)[1] == calls
    return trinn.convert(net, fuse=True)


FORWARDS: dict[str, list[tuple[str, ...]]] = {
    # Within one expression.
    "return self.relu(self.bn(self.conv(x)))": [("conv", "bn", "relu")],
    "return F.relu(self.bn(x))": [("bn", "F.relu")],
    "return torch.relu(input=self.bn(x))": [],
    "return nn.functional.relu(self.conv(x), inplace=True)": [("conv", "nn.functional.relu")],
    "return F.relu(self.conv(x), True)": [("conv", "F.relu")],
    "return F.relu(self.conv(x), x.sum() > 0)": [],
    "return self.noise(self.relu(self.conv(self.noise(x))))": [("conv", "relu")],
    "return self.conv2(self.bn2(self.conv(x)))": [("conv", "bn2")],
    "return self.relu(self.conv(x)) + self.relu(self.conv2(x))": [("conv", "relu"), ("conv2", "relu")],
    "return torch.cat([self.relu(self.conv(v)) for v in (x, 2 * x)])": [("conv", "relu")],
    "return F.relu(self.bn(self.conv(x)) + x)": [("bn", "+", "F.relu")],
    "return self.relu(x + self.bn(self.conv(x)))": [("bn", "+", "relu")],
    "return self.relu(self.noise(x) + self.bn(self.conv(self.noise(x))))": [("conv", "bn")],
    "return self.relu(self.bn(self.conv(self.noise(x))) + self.noise(x))": [("bn", "+", "relu")],
    "return self.relu(self.bn(x) + self.bump(x))": [],
    "return self.relu(self.bn(self.conv(x)) + self.bn(x))": [("conv", "bn")],
    "return self.relu(self.bn(self.conv(x)) + 1.0)": [("bn", "+", "relu")],
    "return self.relu(self.bn(self.conv(x)) - x)": [("conv", "bn")],
    # Statements in a row.
    "x = self.conv(x)\nx = self.bn(x)\nx = self.relu(x)\nreturn x": [("conv", "bn", "relu")],
    "x = self.conv(x)\nreturn self.relu2(x)": [("conv", "relu2")],
    "y = self.conv(x)\nz = self.bn(y)\nreturn F.relu(z)": [("conv", "bn", "F.relu")],
    "y = self.conv(x)\nz = self.relu(y)\nreturn z + y": [],
    "y = self.conv(x)\nz = self.relu(y)\nreturn z, y": [],
    "y = self.conv(x)\nself.kept = y\nreturn self.relu(y)": [],
    "y = self.conv(x)\nz = self.relu2(y)\nreturn z + y": [],
    "y = x\nz = self.bn(y)\nz = self.relu2(z)\nreturn z + x": [("bn", "relu2")],
    "y = self.conv(x)\ny = self.relu(self.conv2(y) + y)\nreturn y": [],
    "y = self.conv(x)\nif self.training:\n    y = self.relu(y)\nreturn y": [],
    "if self.training:\n    x = self.conv(x)\n    x = self.relu(x)\nreturn x": [("conv", "relu")],
    "for _ in range(2):\n    x = self.conv(x)\n    x = self.relu(x)\nreturn x": [("conv", "relu")],
    "for i in range(2):\n    y = self.conv(x)\n    x = self.relu(y)\nreturn x": [("conv", "relu")],
    "y = x\nfor i in range(2):\n    x = self.relu(y)\n    y = self.conv(x)\nreturn self.bn(y)": [],
    "with torch.no_grad():\n    y = self.conv(x)\n    y = self.bn(y)\nreturn self.relu(y)": [("conv", "bn")],
    "y = self.conv(x)\nprint(end='')\nreturn self.relu(y)": [],
    "return self.relu(self.spare(x)) if self.spare else self.relu(self.conv(x))": [("conv", "relu")],
    # Tails of blocks.
    "y = self.conv(x)\ny = self.bn(y)\ny += x\ny = self.relu(y)\nreturn y": [("bn", "+", "relu")],
    "y = self.bn(self.conv(x))\ny = y + self.noise(x)\nreturn self.relu(y)": [("bn", "+", "relu")],
    "y = self.bn(self.conv(x))\ny = x + y\nreturn self.relu2(y)": [("bn", "+", "relu2")],
    "y = self.bn(self.conv(x))\nx = self.conv2(x)\nreturn F.relu(x + y)": [("bn", "+", "F.relu")],
    "y = self.bn(self.conv(x))\nz = self.bump(x)\ny += z\nreturn self.relu(y)": [("bn", "+", "relu")],
    "y = self.bn(x)\nz = self.bump(x)\ny += z\nreturn self.relu(y)": [],
    "y = self.bn(x)\ny += x\nreturn self.relu(y)": [("bn", "+", "relu")],
    "y = self.bn(self.conv(x))\ny += y\nreturn self.relu(y)": [("conv", "bn")],
    "y = self.bn(self.conv(x))\nz = self.bn(x)\ny += z\nreturn self.relu(y)": [("conv", "bn")],
    "y = self.bn(self.conv(x))\nz = y * 2\ny += z\nreturn self.relu(y)": [("conv", "bn")],
    "y = self.bn(self.conv(x))\nif x.sum() > 9:\n    return x\ny += x\nreturn self.relu(y)": [("conv", "bn")],
    "y = self.bn(self.conv(x))\nif self.training:\n    x = self.noise(x)\ny += x\nreturn self.relu(y)": [("bn", "+", "relu")],
    "y = self.bn(self.conv(x))\ny += x[..., :1]\nreturn self.relu(y)": [("bn", "+", "relu")],
    "y = self.bn(self.conv(x[..., :1]))\ny += x\nreturn self.relu(y)": [("bn", "+", "relu")],
    "y = self.bn(self.conv(x))\nz = y\ny += x\nreturn self.relu(y), z": [("conv", "bn")],
    "y = self.bn(self.conv(x))\nz = y + x\nreturn self.relu(z) * y": [("conv", "bn")],
    "y = self.bn(self.conv(x))\nz = y + x\nreturn self.relu(z)": [("bn", "+", "relu")],
    # What is not to be touched.
    "return self.relu(super().forward(self.conv(x)))": [],
    "f = lambda: y\ny = self.conv(x)\ny = self.relu(y)\nreturn f()": [],
    "try:\n    y = self.conv(x)\n    y = self.relu(y)\nfinally:\n    pass\nreturn y": [],
    "F = self\nreturn F.relu(self.conv(x))": [],
    "return self.relu(y := self.conv(x)) + y": [],
    "y = self.conv(x)\nz = self.relu(y)\nreturn z + locals()['y']": [],
    "x = self.relu(self.conv(x))\nself.__kept = x\nreturn self._Net__kept": [],
    "return self.relu(*[self.conv(x)])": [],
    "return self.relu(self._modules['conv'](x))": [],
}


@pytest.mark.parametrize("body", FORWARDS)
def test_forwards(body: str) -> None:
    """What is joined of each, and that it does what was written."""
    assert sorted(joins_of(assert_same(body))) == sorted(FORWARDS[body])


def test_a_traceback_leads_to_the_source() -> None:
    """To the last of the calls that are joined, in the file that they stand in."""
    net = trinn.convert(from_source("x = self.conv(x)\nx = self.bn(x)\nreturn self.relu(x)"), fuse=True)
    file = type(net).forward.__code__.co_filename
    net.register_module("bn", None)
    with pytest.raises(TypeError) as raised:
        net(torch.ones(1, 1, 1, 1, device=DEVICE))
    assert [entry.lineno for entry in raised.traceback if str(entry.path).endswith(file)] == [4]  # counted from 0


def drawn(random: random.Random) -> str:
    """A forward of statements such as blocks of networks have, in any order, over three variables that may be the same."""

    def variable() -> str:
        return random.choice("abc")

    def layer() -> str:
        return "self." + random.choice([*CHILDREN, "conv", "bn", "relu"])

    def relu(of: str) -> str:
        return random.choice([f"self.relu({of})", f"self.relu2({of})", f"F.relu({of})", f"F.relu({of}, inplace=True)"])

    def value(depth: int = 0) -> str:
        kind = random.randrange(6 if depth < 2 else 1)
        if kind == 0:
            return variable()
        if kind == 5:
            return f"({value(depth + 1)} + {value(depth + 1)})"
        return relu(value(depth + 1)) if kind == 1 else f"{layer()}({value(depth + 1)})"

    def statements(depth: int) -> list[str]:
        found = []
        for _ in range(random.randrange(1, 5)):
            v, w = variable(), variable()
            kind = random.randrange(10)
            if kind < 3:
                found += [f"{v} = {layer()}({random.choice([v, v, w])})"]
            elif kind == 3:
                found += [f"{v} = {value()}"]
            elif kind == 4:
                between = random.choice([[], [f"{w} = {value()}"], [f"if self.training: {w} = {layer()}({w})"]])
                add = random.choice([f"{v} += {w}", f"{v} = {v} + {w}", f"{v} = {w} + {v}", f"{v} = {v} + {value()}"])
                found += [f"{v} = self.bn2({random.choice([v, f'self.conv2({value()})'])})", *between, add, f"{v} = {relu(v)}"]
            elif kind == 5:
                found += [random.choice([f"{v} += {w}", f"{v}.mul_(0.5)", f"{v} = {w}", f"{v} = {v} * 1"])]
            elif kind == 6:
                found += [f"{v} = {relu(random.choice([v, f'{v} + {w}']))}"]
            elif depth == 0 and kind < 9:
                head = random.choice(
                    ["if self.training:", "for _ in range(2):", "if self.spare is None:", "with torch.no_grad():"]
                )
                found += [head, *("    " + line for line in [*statements(1), "pass"])]
            elif depth == 0:
                found += [f"if x.sum() > {random.choice('09')}:", f"    return {value()}"]
        return found

    lines = ["a, b, c = x * 1, x * 2, x * 3", *statements(0), *statements(0)]
    return "\n".join([*lines, random.choice(["return a", "return a, b, c", f"return {value()}", f"return {relu('a + b')}"])])


def drawn_forwards(first: int, count: int) -> int:
    """Try forwards by their seeds; how many calls were joined."""
    return sum(len(joins_of(assert_same(drawn(random.Random(seed))))) for seed in range(first, first + count))


def test_drawn_forwards() -> None:
    assert drawn_forwards(0, 400) > 300


@pytest.mark.long
def test_more_drawn_forwards() -> None:
    drawn_forwards(400, 10000)


# With the kernels.


def block() -> BasicBlock:
    torch.manual_seed(0)
    return BasicBlock(2, 4, 2).to(DEVICE)


def compared(ours: nn.Module, theirs: nn.Module) -> None:
    """Two blocks in training and in evaluation: outputs, running statistics, and gradients."""
    for training in (True, False):
        results = []
        for module in (ours, theirs):
            x = randn(3, 2, 5, 5).requires_grad_()
            y = module.train(training)(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()]), *module.buffers()])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def launched(module: nn.Module, training: bool = True) -> list[str]:
    forward, _ = launches(lambda: module.train(training)(randn(3, 2, 5, 5)))
    return forward


TRAINING = [
    "conv2d_statistics", "batchnorm2d_forward", "conv2d_fprop", "conv2d_statistics", "batchnorm2d_forward",
    "batchnorm2d_statistics", "batchnorm2d_forward",
]  # fmt: skip


def test_launches_of_a_block(full_float32: None) -> None:
    """Each of its convolutions begins its statistics, but where the sum goes before; evaluation without gradients is folded."""
    module, torchs = block(), block()
    names = list(module.state_dict())
    was = [type(m) for m in module.modules()]
    trinn.convert(module, fuse=True)
    assert type(module).__name__ == "BasicBlock" and isinstance(module, BasicBlock) and repr(module) == repr(torchs)
    assert list(module.state_dict()) == names
    compared(module, torchs)
    assert launched(module) == TRAINING
    with torch.no_grad():
        assert launched(module, training=False) == [
            "batchnorm2d_fold", "conv2d_affine", "conv2d_fprop", "batchnorm2d_fold", "conv2d_affine", "batchnorm2d_forward"
        ]  # fmt: skip
    trinn.convert(module)
    trinn.convert(module, fuse=True)
    assert launched(module) == TRAINING
    trinn.revert(module)
    assert [type(m) for m in module.modules()] == was and launched(module) == []


def test_converted_first_and_fused_then() -> None:
    module = trinn.convert(block())
    assert "conv2d_statistics" not in launched(module)
    assert launched(trinn.convert(module, fuse=True)) == TRAINING


def test_what_is_not_converted_is_not_joined(full_float32: None) -> None:
    module = trinn.convert(block(), filter_fn=lambda name, _: name != "bn2", fuse=True)
    assert joins_of(module) == (("conv1", "bn1", "relu"),)
    module = trinn.convert(block(), include="Conv2d", fuse=True)
    assert type(module) is BasicBlock
    compared(trinn.convert(module, fuse=True), block())
    assert launched(module) == TRAINING


def test_changes_afterwards(full_float32: None) -> None:
    """Hooks are called, other layers are called in place of the old ones, and a layer alone does what it did."""
    module, torchs = trinn.convert(block(), fuse=True), block()
    seen: list[tuple[str, Tensor]] = []
    for net in (module, torchs):
        net.bn1.register_forward_hook(lambda _, inputs, output: seen.append(("bn1", output.detach())))
        net.bn2.register_forward_pre_hook(lambda _, inputs: seen.append(("bn2", inputs[0].detach())))
        net(randn(3, 2, 5, 5))
    for (name, ours), (theirs_name, theirs) in zip(seen[:2], seen[2:], strict=True):
        assert name == theirs_name
        torch.testing.assert_close(ours, theirs)
    for net in (module, torchs):
        net.bn2 = nn.Identity()
        net.relu = nn.Tanh()
    x = randn(3, 2, 5, 5)
    torch.testing.assert_close(module(x), torchs(x))
    torch.testing.assert_close(module.conv1(x), torchs.conv1(x))


def test_copies_and_pickles() -> None:
    """They are joined too, and are reverted to the same class."""
    module = trinn.convert(nn.Sequential(block()), fuse=True)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    expected = module[0].eval()(randn(3, 2, 5, 5))
    loaded = torch.load(file, weights_only=False)
    for other in (
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        pickle.loads(pickle.dumps(module, 0)),
        loaded,
    ):
        assert torch.equal(other[0].eval()(randn(3, 2, 5, 5)), expected)
        assert type(other[0]) is type(module[0]) and launched(other[0]) == TRAINING
    parameter = copy.deepcopy(module)[0].conv1.weight
    assert torch.equal(parameter, module[0].conv1.weight) and parameter is not module[0].conv1.weight
    assert type(trinn.revert(loaded)[0]) is BasicBlock


class Tower(nn.Sequential):
    """A subclass with nn.Sequential's forward."""


def test_sequential(full_float32: None) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3), nn.ReLU()
    module = Tower(*layers).to(DEVICE)
    x = randn(2, 2, 4, 4)
    expected = module(x)
    trinn.convert(module, fuse=True)
    assert joins_of(module) == (("0", "1", "2"), ("4", "5")) and type(module).__name__ == "Tower"
    torch.testing.assert_close(module(x), expected)
    assert launches(lambda: module(x))[0] == ["conv2d_relu_max_pool2d", "linear_fprop"]
    del module[2]
    assert launches(lambda: module[:2](x))[0] == ["conv2d_affine"] and module(x[:, :, :3, :3]).shape == (2, 3)
    assert type(trinn.revert(module)) is Tower and type(module[:2]) is Tower
    assert type(trinn.convert(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), fuse=True)) is nn.Sequential


class Inherited(LeNet):
    """Whose forward is its base's, with a method of its own that is rewritten."""

    def __init__(self) -> None:
        super().__init__(nn=nn)
        self.stem = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))

    def features(self, x: Tensor, scale: float = 2.0, *, shift: float = 1.0) -> Tensor:
        x = self.conv1(scale * x + shift)
        return self.relu(x)

    @torch.no_grad()
    def decorated(self, x: Tensor) -> Tensor:
        return self.relu(self.conv1(x))


def test_methods() -> None:
    """Of the class and of its bases, with their defaults; those that are decorated stay as they are."""
    module: Any = trinn.convert(Inherited().to(DEVICE), fuse=True)
    assert ("linear2", "relu") in joins_of(module) and ("conv2", "relu", "pool") in joins_of(module)
    assert [name for name in ("features", "decorated", "forward") if name in vars(type(module))] == ["features", "forward"]
    x = randn(1, 1, 6, 6)
    assert torch.equal(module.features(x), Inherited.features(module, x))
    assert torch.equal(module.features(x, 3.0, shift=0.0), Inherited.features(module, x, 3.0, shift=0.0))
    assert launches(lambda: module.features(x))[0] == ["conv2d_affine"]
    assert joins_of(module.stem) == (("0", "1"),)


def test_a_source_that_changed() -> None:
    """A file that no longer says what runs is not believed."""
    net = from_source("return self.relu(self.conv(x))")
    lines = linecache.cache[type(net).forward.__code__.co_filename][2]  # type: ignore[misc]
    lines[-1] = lines[-1].replace("relu", "relu2")
    was = type(net)
    assert type(trinn.convert(net, fuse=True)) is was


def test_compiles_whole(full_float32: None) -> None:
    """One graph, with the same kernels."""
    for module in (trinn.convert(block(), fuse=True), trinn.convert(Bottleneck(4, 1, 1).to(DEVICE), fuse=True)):
        x = randn(3, module.conv1.in_channels, 5, 5)
        codes: list[str] = []

        def backend(graph: Any, inputs: Any, codes: list[str] = codes) -> Any:
            codes.append(graph.code)
            return graph

        torch._dynamo.reset()
        with torch.no_grad():
            expected = module.eval()(x)
            torch.testing.assert_close(torch.compile(module, fullgraph=True, backend=backend)(x), expected)
        assert "conv2d_affine" in codes[0] and "batchnorm2d_forward" in codes[0] and "relu_forward" not in codes[0]


def test_traces() -> None:
    """torch.fx sees the layers one by one."""
    module = trinn.convert(block(), fuse=True).eval()
    graph = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(graph(randn(3, 2, 5, 5)), module(randn(3, 2, 5, 5)))


def test_report() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), block())
    joined = {row.layer: row.joined for row in rows(trinn.convert(model, fuse=True))}
    assert (joined["0"], joined["1"]) == ("1", "0")
    assert (joined["2.conv1"], joined["2.bn1"], joined["2.conv2"]) == ("bn1, relu", "conv1, relu", "")
    assert (joined["2.bn2"], joined["2.relu"], joined["2.downsample.0"]) == ("+, relu", "bn2, +; conv1, bn1", "1")
