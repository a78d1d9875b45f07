"""Module classes after `convert` and `revert`: users' subclasses, classes added by tools such as FSDP, interrupted changes."""

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrizations, parametrize

import trinn
import trinn.layers as tnn
from tests.operators.test_fused import Launched
from tests.operators.test_public import MODULES
from tests.support.check import DEVICE, randn
from trinn.layers import classes, convert
from trinn.layers.report import rows

# Subclasses from public networks. None of them changes the call.


class Depthwise(nn.Conv2d):
    """`__init__` takes other arguments."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels, padding="same", bias=False)


class MeanShift(nn.Conv2d):
    """`__init__` sets and freezes the weights."""

    def __init__(self, mean: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7)) -> None:
        super().__init__(len(mean), len(mean), kernel_size=1)
        self.weight.data = torch.eye(len(mean)).view(len(mean), len(mean), 1, 1)
        self.bias.data = -torch.tensor(mean)  # type: ignore[union-attr]
        self.requires_grad_(False)


class Dirac(Depthwise):
    """A subclass of a subclass, with another initialisation."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.dirac_(self.weight, groups=self.groups)


class Pool(nn.MaxPool2d):
    """A property and a class attribute, both absent from torch's layer."""

    label = "pool"

    def __init__(self, kernel_size: int, image: int = 6) -> None:
        super().__init__(kernel_size)
        self.image = image

    @property
    def output_size(self) -> int:
        return tnn.conv_output_size(self.image, self.kernel_size, self.stride, self.padding, self.dilation)[0]  # type: ignore

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, {self.output_size}"


class Registered:
    known: dict[str, type] = {}

    def __init_subclass__(cls, *, task: str) -> None:
        if task in Registered.known:
            raise ValueError(f"{task} is known")
        Registered.known[task] = cls


class Norm(Registered, nn.BatchNorm2d, task="norm"):
    """The base's `__init_subclass__` registers subclasses and requires an argument."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4, eps=1e-3)


class Lazy(nn.LazyConv2d):
    """The first call turns it into torch's class."""

    def __init__(self) -> None:
        super().__init__(3, 2)


SUBCLASSES: dict[str, Callable[[], nn.Module]] = {
    "Depthwise": lambda: Depthwise(4),
    "MeanShift": MeanShift,
    "Dirac": lambda: Dirac(4),
    "Pool": lambda: Pool(2),
    "Norm": lambda: Norm(4),
    "Lazy": Lazy,
}
subclasses = pytest.mark.parametrize("name", SUBCLASSES)


def built(name: str) -> Any:
    torch.manual_seed(0)
    return SUBCLASSES[name]().to(DEVICE)


def tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from (*module.parameters(), *module.buffers())


@subclasses
def test_subclasses(name: str, full_float32: None) -> None:
    """Subclasses keep their class and run trinn's kernels, copies and pickles too; `revert` restores them."""
    ours, torchs, x = built(name), built(name), randn(2, 4, 6, 6)
    known = dict(Registered.known)
    trinn.convert(nn.Sequential(ours))
    assert type(ours) is type(torchs) and repr(ours) == repr(torchs) and Registered.known == known
    for each in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), ours) if name != "Lazy" else (ours,):
        layer = copy.deepcopy(torchs)
        torch.manual_seed(0)
        expected = layer(x)
        torch.manual_seed(0)
        with Launched() as names:
            torch.testing.assert_close(each(x), expected)
        assert names
        for pair in zip(tensors(each), tensors(layer), strict=True):
            torch.testing.assert_close(*pair)
        trinn.revert(each)
        assert type(each) is type(layer) and vars(each).keys() == vars(layer).keys()


def chain() -> nn.Sequential:
    return nn.Sequential(built("Depthwise"), built("Norm"), nn.ReLU(), built("Pool"))


@pytest.mark.parametrize("fuse", [True, [("0", "1", "2")]], ids=["sequential", "named run"])
def test_subclasses_are_fused_and_compiled(fuse: Any, full_float32: None) -> None:
    model, torchs, x = trinn.convert(chain(), fuse=fuse), chain(), randn(2, 4, 6, 6)
    assert [row.fused for row in rows(model)] == ["1, 2", "0, 2", "0, 1", ""]
    torch._dynamo.reset()
    for each in (model, torch.compile(model, fullgraph=True, backend="eager")):
        torch.testing.assert_close(each(x), torchs(x))
    classes = [type(layer) for layer in trinn.revert(model)]
    assert classes == [type(layer) for layer in chain()]


# Exceptions in the middle of a change.


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.extra = [1]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def mixed() -> nn.Sequential:
    """Layers, subclasses, a parametrized layer and fusable runs."""
    return nn.Sequential(Branch(), *chain(), parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.ReLU())


def snapshot(model: nn.Module) -> list[tuple[Any, ...]]:
    """The class and attributes of each module; dicts are copied to find changes inside them."""
    return [
        (module, type(module), *((k, dict(v) if isinstance(v, dict) else v) for k, v in vars(module).items()))
        for module in model.modules()
    ]


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raise at class change number `step`, counted from 0. Undoing uses `classes.set_class`, still unpatched."""
    left = iter(range(step, -1, -1))

    def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt
        classes.set_class(module, cls)

    monkeypatch.setattr(convert, "set_class", set_class)


CHANGES: dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], Any]]] = {
    "convert": (lambda model: model, trinn.convert),
    "convert and fuse": (lambda model: model, partial(trinn.convert, fuse=True)),
    "fuse": (trinn.convert, partial(trinn.convert, fuse=True)),
    "revert": (trinn.convert, trinn.revert),
    "revert a fused model": (partial(trinn.convert, fuse=True), trinn.revert),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_exception_at_any_step(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is unchanged, and a repeated call succeeds."""
    before, function = CHANGES[change]
    model = mixed()
    before(model)
    unchanged = snapshot(model)
    for step in range(100):
        with monkeypatch.context() as patch:
            interrupted(patch, step)
            try:
                function(model)
            except KeyboardInterrupt:
                assert snapshot(model) == unchanged
                continue
        break
    assert (3 < step < 99 or change == "fuse") and snapshot(model) != unchanged


# Other tools, applied before `convert` or between `convert` and `revert`.


def weight_normed(model: Any) -> Any:
    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d) and not parametrize.is_parametrized(layer):
            parametrizations.weight_norm(layer)
    return model


def identity_parametrized(model: Any) -> Any:
    parametrize.register_parametrization(model[0].conv, "bias", nn.Identity())
    return model


def sharded(model: Any, root: bool = True) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(DEVICE, (1,))
    for module in (*model, *([model] if root else [])):
        if any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
    return model


def replicated(model: Any) -> Any:
    from torch.distributed._composable.replicate import replicate

    return replicate(model)


def replicated_by_fsdp(model: Any) -> Any:
    from torch.distributed._composable.replicate_with_fsdp import replicate
    from torch.distributed.device_mesh import init_device_mesh

    return replicate(model, mesh=init_device_mesh(DEVICE, (1,), mesh_dim_names=("replicate",)))


def plain() -> nn.Sequential:
    return nn.Sequential(Branch(), built("Dirac"), nn.BatchNorm2d(4), nn.ReLU(), built("Pool"), nn.Conv2d(4, 4, 1), nn.ReLU())


TOOLS: dict[str, Callable[[Any], Any]] = {
    "weight_norm": weight_normed,
    "an identity parametrization": identity_parametrized,
    "nn.utils.weight_norm": lambda model: model.apply(lambda m: nn.utils.weight_norm(m) if isinstance(m, Depthwise) else m),
    "fully_shard": sharded,
    "fully_shard of layers": partial(sharded, root=False),
    "fully_shard of parametrized layers": lambda model: sharded(identity_parametrized(model)),
    "replicate": replicated,
    "replicate by FSDP": replicated_by_fsdp,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "torch.compile": partial(torch.compile, backend="eager"),
}


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fuse", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_in_between(tool: str, fuse: bool, one_process: None, full_float32: None) -> None:
    """`convert`, the tool and `revert` give the same model as the tool alone."""
    torch.manual_seed(0)
    torchs = plain().to(DEVICE).eval()
    model, x = copy.deepcopy(torchs), randn(2, 4, 6, 6)
    expected = torchs(x)
    model = TOOLS[tool](trinn.convert(model, fuse=fuse))
    torch.testing.assert_close(model(x), expected)
    trinn.revert(model)
    torchs = TOOLS[tool](torchs)
    for ours, theirs in zip(model.modules(), torchs.modules(), strict=True):
        bases = ([c.__name__ if classes.wrapped_class(c) else c for c in type(module).__mro__] for module in (ours, theirs))
        assert next(bases) == next(bases)
    torch.testing.assert_close(model(x), torchs(x))


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
def test_the_class_below_fsdp(one_process: None) -> None:
    """FSDP's classes find the original class at a fixed index of the MRO; `revert` keeps it there."""
    model: Any = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), built("Dirac")).to(DEVICE)
    sharded(trinn.convert(model, fuse=True))
    assert [type(module).__mro__[2] for module in trinn.revert(model)] == [nn.Sequential, Dirac]
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
def test_report_of_sharded_layers(one_process: None) -> None:
    """Only FSDP2 gathers weights for a call. `convert` skips layers that are already sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    def layers() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).to(DEVICE)

    def reasons(model: nn.Module) -> list[tuple[str, str]]:
        return [(row.runs, row.why) for row in rows(model)]

    conv = "kernels/conv2d/passes.py", "sharded by FSDP2, gathered when it runs; has hooks"
    assert reasons(sharded(trinn.convert(layers()))) == [conv, ("kernels/activation.py", "")]
    assert reasons(trinn.convert(sharded(layers()))) == [("torch", "weight is a DTensor"), ("kernels/activation.py", "")]
    model: Any = trinn.convert(layers())
    mesh = init_device_mesh(DEVICE, (1,))
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Replicate()]))
    assert reasons(model) == [("raises", "weight is a DTensor"), ("kernels/activation.py", "")]


@pytest.mark.parametrize("name", MODULES)
def test_a_forward_wrapped_after_convert(name: str) -> None:
    """The wrapper still runs after `revert`."""
    layer = getattr(nn, name)(**MODULES[name].options).to(DEVICE)
    trinn.convert(layer)
    wrapped: Any = torch.no_grad()(layer.forward)
    layer.forward = wrapped  # type: ignore[method-assign]
    trinn.revert(layer)
    assert type(layer) is getattr(nn, name)
    layer(*MODULES[name].inputs().values())


def test_a_wrapped_fused_forward() -> None:
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).to(DEVICE), randn(2, 4, 3, 3)
    expected = model(x)
    trinn.convert(model, fuse=True)
    wrapped: Any = torch.no_grad()(model.forward)
    model.forward = wrapped  # type: ignore[method-assign]
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(trinn.revert(model)(x), expected)
