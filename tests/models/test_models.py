"""The networks and custom layers of a course equal the course's own code on torch.nn.

The course is the one of examples/notes.py; "the notes" are its lecture notes.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_lenet import OnlyOurs
from tests.support.check import DEVICE, DTYPES, check, raises_like, randn
from tests.support.networks import OPTIMIZERS, check_network, check_training
from trinn import models

# Code from the notes.


class MLP(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = nn.Linear(784, 256)
        self.act = nn.ReLU()
        self.output = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        o = self.act(self.hidden(x))
        return self.output(o)


class MyLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class MyListDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.params = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for i in range(3)])
        self.params.append(nn.Parameter(torch.randn(4, 1)))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.params)):
            x = torch.mm(x, self.params[i])
        return x


class MyDictDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.params = nn.ParameterDict({"linear1": nn.Parameter(torch.randn(4, 4)), "linear2": nn.Parameter(torch.randn(4, 1))})
        self.params.update({"linear3": nn.Parameter(torch.randn(4, 2))})

    def forward(self, x: Tensor, choice: str = "linear1") -> Tensor:
        return torch.mm(x, self.params[choice])


TORCHS = {"MLP": MLP, "MyLayer": MyLayer, "MyListDense": MyListDense, "MyDictDense": MyDictDense}


def twins(name: str) -> tuple[nn.Module, nn.Module]:
    """trinn's and torch's network with the same random parameters."""
    torch.manual_seed(0)
    ours = getattr(models, name)().to(DEVICE)
    torch.manual_seed(0)
    return ours, TORCHS[name]().to(DEVICE)


@pytest.mark.parametrize("name", TORCHS)
def test_names_shapes_and_repr(name: str) -> None:
    """The same random parameters; strict loading works in both directions."""
    ours, torchs = twins(name)
    assert repr(ours) == repr(torchs)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), torchs.parameters(), strict=True))
    ours.load_state_dict(torchs.state_dict(), strict=True)
    torchs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("name", TORCHS)
def test_unknown_arguments(name: str) -> None:
    raises_like(TORCHS[name], getattr(models, name), width=3)


def test_mlp_equals_torch(large_tiles: None, full_float32: None) -> None:
    check_network(*twins("MLP"), randn(2, 784))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_mlp_trains_like_torch(optimizer: str, large_tiles: None, full_float32: None) -> None:
    check_training(*twins("MLP"), [randn(4, 784, seed=step) for step in range(5)], OPTIMIZERS[optimizer])


def test_mlp_on_torchs_layers() -> None:
    assert {type(module).__module__.split(".")[0] for module in models.MLP(nn=nn).children()} == {"torch"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (), (2, 3), (2, 3, 4, 5), (3000,), (1,)])
def test_centring_equals_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(models.MyLayer(), MyLayer(), randn(*shape, dtype=dtype) + 3)


def test_centring_of_other_tensors() -> None:
    """Strided, expanded, empty and infinite tensors, and a sum beyond float16's range."""
    layer, torchs = models.MyLayer(), MyLayer()
    check(layer, torchs, randn(4, 6)[:, ::2].t())
    check(layer, torchs, randn(4, 1).expand(4, 3))
    check(layer, torchs, randn(0, 3))
    check(layer, torchs, torch.tensor([1.0, float("inf"), 2.0], device=DEVICE))
    check(layer, torchs, torch.full((40,), 6e4, dtype=torch.float16, device=DEVICE))


def test_centring_matches_the_notes() -> None:
    expected = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], device=DEVICE)
    assert torch.equal(models.MyLayer()(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], device=DEVICE)), expected)


def test_integers_have_no_mean() -> None:
    """The notes' own call raises in torch."""
    integers = torch.tensor([1, 2, 3, 4, 5], device=DEVICE)
    raises_like(MyLayer(), models.MyLayer(), integers)
    with pytest.raises(RuntimeError, match="could not infer output dtype.*torch.int64"):
        models.MyLayer()(integers)
    with pytest.raises(NotImplementedError, match="complex64"):
        models.MyLayer()(integers.to(torch.complex64))


def test_centring_is_differentiable_twice() -> None:
    x = randn(7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(models.MyLayer(), x) and torch.autograd.gradgradcheck(models.MyLayer(), x)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_lists_of_parameters(dtype: torch.dtype, full_float32: None) -> None:
    ours, torchs = twins("MyListDense")
    weights = [weight.to(dtype) for weight in ours.parameters()]
    check(called(ours), called(torchs), randn(3, 4, dtype=dtype), *weights)


@pytest.mark.parametrize("options", [{}, {"choice": "linear2"}, {"choice": "linear3"}])
def test_dictionaries_of_parameters(options: dict[str, str], full_float32: None) -> None:
    ours, torchs = twins("MyDictDense")
    weight = dict(ours.named_parameters())[f"params.{options.get('choice', 'linear1')}"]
    check(chosen(ours), chosen(torchs), randn(3, 4), weight, **options)
    raises_like(torchs, ours, randn(3, 4), choice="linear4")
    raises_like(torchs, ours, randn(3, 5), **options)


def called(network: nn.Module) -> Any:
    """A network as a function of its input and its parameters."""
    names = list(dict(network.named_parameters()))
    return lambda x, *weights: torch.func.functional_call(network, dict(zip(names, weights, strict=True)), x)


def chosen(network: nn.Module) -> Any:
    """A network as a function of its input and the chosen parameter."""

    def call(x: Tensor, weight: Tensor, **options: str) -> Tensor:
        return torch.func.functional_call(network, {f"params.{options.get('choice', 'linear1')}": weight}, x, options)

    return call


@pytest.mark.parametrize("name", TORCHS)
def test_no_torch_kernel_runs(name: str, large_tiles: None) -> None:
    """Neither forward nor backward, `mean` and `sum` included."""
    ours, _ = twins(name)
    with OnlyOurs() as mode:
        output = ours(randn(2, 784 if name == "MLP" else 4).requires_grad_())
        output.backward(randn(*output.shape))
    assert any(operator.startswith("trinn::") for operator in mode.seen)
    assert not {"aten::mean", "aten::sum"} & mode.seen
