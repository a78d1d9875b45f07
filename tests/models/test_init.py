"""`init_weights` has all of torch.nn.init, selects by type and by name, is reproducible by a seed, and is all or nothing."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import trinn.layers as tnn
from tests.support.check import DEVICE
from trinn.models import MLP, AlexNet, LeNet, MyDictDense, MyListDense, init_weights
from trinn.models.init import SCHEMES, Report

init = nn.init


def network() -> nn.Sequential:
    """A layer of each kind with special treatment."""
    return nn.Sequential(
        tnn.Conv2d(2, 4, 3), tnn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Sequential(tnn.Linear(4, 6), nn.LayerNorm(6))
    ).to(DEVICE)  # fmt: skip


def schemes(report: Report) -> dict[str, str]:
    return {record.name: record.scheme for record in report}


def unchanged(model: nn.Module, *arguments: Any, raises: type[Exception], match: str) -> None:
    """Assert that `init_weights` refuses, and leaves the model and torch's generator as they were."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(raises, match=match):
        init_weights(model, *arguments, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


FOUR = (8, 4, 3, 3)
TWO = (60, 80)
# Each function of torch.nn.init: shapes, arguments, and a property of the values.
PROPERTIES: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any], Callable[[Tensor], Any]]] = {
    "uniform": ((TWO, FOUR), {"a": 1.0, "b": 2.0}, lambda w: 1 <= w.min() < 1.1 and 1.9 < w.max() <= 2),
    "normal": ((TWO,), {"mean": 3.0, "std": 0.5}, lambda w: abs(w.mean() - 3) < 0.05 and abs(w.std() - 0.5) < 0.05),
    "trunc_normal": ((TWO,), {"a": -1.0, "b": 1.0}, lambda w: -1 <= w.min() < -0.9 and 0.9 < w.max() <= 1),
    "constant": ((TWO, FOUR), {"val": 0.3}, lambda w: (w == 0.3).all()),
    "ones": ((TWO, FOUR), {}, lambda w: (w == 1).all()),
    "zeros": ((TWO, FOUR), {}, lambda w: (w == 0).all()),
    "eye": ((TWO,), {}, lambda w: torch.equal(w, torch.eye(*w.shape))),
    "dirac": ((FOUR,), {}, lambda w: w.sum() == 4 and all(w[i, i, 1, 1] == 1 for i in range(4))),
    "xavier_uniform": ((TWO, FOUR), {}, lambda w: 0.95 < w.abs().max() / math.sqrt(6 / sum(fans(w))) <= 1),
    "xavier_normal": ((TWO, FOUR), {}, lambda w: abs(w.std() / math.sqrt(2 / sum(fans(w))) - 1) < 0.15),
    "kaiming_uniform": ((TWO, FOUR), {}, lambda w: 0.95 < w.abs().max() / math.sqrt(6 / fans(w)[0]) <= 1),
    "kaiming_normal": ((TWO, FOUR), {}, lambda w: abs(w.std() / math.sqrt(2 / fans(w)[0]) - 1) < 0.15),
    "orthogonal": ((TWO, FOUR), {}, lambda w: torch.allclose(rows(w) @ rows(w).T, torch.eye(len(w)), atol=1e-5)),
    "sparse": ((TWO,), {"sparsity": 0.25}, lambda w: ((w == 0).sum(0) == 15).all()),
}  # fmt: skip


def fans(w: Tensor) -> tuple[int, int]:
    return w[0].numel(), w.shape[0] * w[0, 0].numel()


def rows(w: Tensor) -> Tensor:
    return w.flatten(1)


def test_has_all_of_torchs() -> None:
    assert set(SCHEMES) == set(PROPERTIES)


@pytest.mark.parametrize("name", PROPERTIES)
def test_scheme(name: str) -> None:
    """A scheme is given as its name, as its function, or as torch's name."""
    shapes, arguments, holds = PROPERTIES[name]
    for shape in shapes:
        model = nn.ParameterList([nn.Parameter(torch.full(shape, 7.0, device=DEVICE))])
        report = init_weights(model, partial(SCHEMES[name], **arguments), seed=0)
        assert holds(model[0].detach().cpu())
        values = model[0].detach().double()
        assert report[0].shape == shape and report[0].scheme.startswith(name)
        assert math.isclose(report[0].mean, float(values.mean())) and report[0].std == float(values.std(correction=0))
        if not arguments:
            expected = model[0].detach().clone()
            for spelling in (name, f"{name}_", getattr(init, f"{name}_")):
                init_weights(model, spelling, seed=0)
                assert torch.equal(model[0], expected)


def test_draws_are_torchs() -> None:
    """Given the seed of a parameter, torch draws the same values."""
    model = nn.Linear(5, 7, bias=False)
    seeds: list[int] = []

    def scheme(weight: Tensor) -> None:
        seeds.append(torch.initial_seed())
        init.xavier_uniform_(weight)

    init_weights(model, scheme, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])
        assert torch.equal(model.weight, init.xavier_uniform_(torch.empty(7, 5)))


def test_each_kind_of_layer() -> None:
    """Weights follow the scheme, biases are 0, norms are reset, and other parameters are unchanged."""
    model = network()
    norm: Any = model[1]
    norm(torch.randn(3, 4, 5, 5, device=DEVICE))
    norm.weight.data.fill_(5)
    report = init_weights(model, "xavier_uniform")
    assert schemes(report) == {
        "0.weight": "xavier_uniform", "0.bias": "zeros", "1.weight": "ones", "1.bias": "zeros", "2.weight": "kept",
        "4.0.weight": "xavier_uniform", "4.0.bias": "zeros", "4.1.weight": "ones", "4.1.bias": "zeros",
    }  # fmt: skip
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all() and model.state_dict()["2.weight"].eq(0.25).all()
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0


def test_by_type_and_by_name() -> None:
    """A name has precedence over a class, an inner name over an outer one, a derived class over its base."""
    model = network()
    normal = partial(init.normal_, mean=1.0, std=0.02)
    report = init_weights(model, {nn.Conv2d: "orthogonal", nn.BatchNorm2d: normal, "4": "eye", "2.weight": "zeros"})
    assert schemes(report) == {
        "0.weight": "orthogonal", "0.bias": "zeros", "1.weight": "normal(mean=1.0, std=0.02)", "1.bias": "zeros",
        "2.weight": "zeros", "4.0.weight": "eye", "4.0.bias": "zeros", "4.1.weight": "ones", "4.1.bias": "zeros",
    }  # fmt: skip
    mapping: dict[Any, str] = {
        nn.Module: "ones",
        tnn.Conv2d: "dirac",
        "4.0": "eye",
        "4": "zeros",
        "0.bias": "ones",
        nn.PReLU: "zeros",
    }
    assert schemes(init_weights(model, mapping)) == {
        "0.weight": "dirac", "0.bias": "ones", "1.weight": "ones", "1.bias": "zeros", "2.weight": "zeros",
        "4.0.weight": "eye", "4.0.bias": "zeros", "4.1.weight": "ones", "4.1.bias": "zeros",
    }  # fmt: skip


def test_parameters_without_a_scheme_are_kept() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = init_weights(model, {nn.Linear: "ones"})
    assert [record.name for record in report if record.scheme != "kept"] == ["4.0.weight", "4.0.bias"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["4.0.weight", "4.0.bias"]


def test_a_seed_is_enough() -> None:
    """Values depend on the seed, not on earlier draws, other layers, the dtype or the memory format."""
    first, again, longer, half = MLP(), MLP(), nn.Module(), MLP().half()
    state = torch.get_rng_state()
    init_weights(first, "kaiming_normal", seed=3)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(10)
    init_weights(again, "kaiming_normal", seed=3)
    longer.before, longer.hidden = nn.Linear(3, 3), nn.Linear(784, 256)
    init_weights(longer, "kaiming_normal", seed=3)
    init_weights(half, "kaiming_normal", seed=3)
    assert torch.equal(first.hidden.weight, again.hidden.weight) and torch.equal(first.hidden.weight, longer.hidden.weight)
    assert torch.equal(first.hidden.weight.half(), half.hidden.weight)
    init_weights(again, "kaiming_normal", seed=4)
    assert not torch.equal(first.hidden.weight, again.hidden.weight)
    plain, last = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    init_weights(plain, "normal", seed=1)
    init_weights(last, "normal", seed=1)
    assert torch.equal(plain.weight, last.weight) and last.weight.is_contiguous(memory_format=torch.channels_last)


def test_parameters_of_one_shape_differ() -> None:
    model = MyListDense()
    init_weights(model, "normal", seed=0)
    first, second, *_ = model.parameters()
    assert not torch.equal(first, second)


def test_without_a_seed() -> None:
    """Without a seed, torch's generator draws one, and the report has it."""
    model, other = MyListDense(), MyListDense()
    torch.manual_seed(0)
    report = init_weights(model, "normal")
    weights = [parameter.clone() for parameter in model.parameters()]
    assert init_weights(model, "normal").seed != report.seed
    torch.manual_seed(0)
    init_weights(other, "normal")
    assert all(torch.equal(a, b) for a, b in zip(weights, other.parameters(), strict=True))
    init_weights(model, "normal", seed=report.seed)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_tied_parameters_are_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert [record.name for record in init_weights(model, "orthogonal")] == ["0.weight", "0.bias", "1.bias"]


def test_a_custom_function_gets_the_current_values() -> None:
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    init_weights(model, lambda weight: weight.mul_(2))
    assert torch.equal(model.weight, before * 2)


def test_an_optimizer_keeps_its_parameters() -> None:
    model = MyDictDense().to(DEVICE)
    parameters = list(model.parameters())
    init_weights(model, "xavier_normal")
    assert all(a is b and a.is_leaf and a.requires_grad for a, b in zip(parameters, model.parameters(), strict=True))


def test_report_is_a_table() -> None:
    model = nn.Sequential(tnn.Conv2d(1, 2, 3), tnn.Linear(4, 4))
    init_weights(model, {nn.Linear: "eye"})
    report = init_weights(model, {nn.Conv2d: partial(init.constant_, val=0.5), "1.bias": "ones"})
    assert str(report) == (
        "parameter  shape          scheme               mean     std\n"
        "-----------------------------------------------------------\n"
        "0.weight   2 x 1 x 3 x 3  constant(val=0.5)  0.5000  0.0000\n"
        "0.bias     2              zeros              0.0000  0.0000\n"
        "1.weight   4 x 4          kept               0.2500  0.4330\n"
        "1.bias     4              ones               1.0000  0.0000"
    )


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown": ("xavier", ValueError, "unknown scheme 'xavier'; torch.nn.init has constant, dirac, "),
    "dirac of a linear layer": ("dirac", ValueError, r"dirac does not fit 4.0.weight of shape \[6, 4\]: Only tensors with 3"),
    "eye of a convolution": ("eye", ValueError, r"eye does not fit 0.weight of shape \[4, 2, 3, 3\]: Only tensors with 2"),
    "xavier of a norm": ({nn.Conv2d: "ones", nn.BatchNorm2d: "xavier_normal"}, ValueError, "does not fit 1.weight"),
    "arguments missing": ("constant", TypeError, "val"),
    "a name of another model": ({nn.Conv2d: "ones", "conv1": "ones"}, ValueError, "Sequential has no layer.* 'conv1'"),
    "a class that is no module": ({Tensor: "ones"}, TypeError, "a name or a class of modules"),
    "a number": (0.5, TypeError, "a function of torch.nn.init or its name, but got 0.5"),
    "a number in a mapping": ({nn.Conv2d: "ones", nn.Linear: 0.5}, TypeError, "but got 0.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_changes(name: str) -> None:
    scheme, raises, match = REFUSED[name]
    unchanged(network(), scheme, raises=raises, match=match)


def test_parameters_that_cannot_be_filled() -> None:
    """Lazy parameters, parameters on the meta device, and parametrized ones are refused."""
    first = tnn.Linear(2, 3)
    with pytest.raises(ValueError, match="1.weight has no shape yet"):
        init_weights(nn.Sequential(first, tnn.LazyLinear(3)), "zeros")
    assert not first.weight.eq(0).all()
    with pytest.raises(ValueError, match="conv1.weight is on the meta device"), torch.device("meta"):
        init_weights(LeNet(), "zeros")
    unchanged(nn.Sequential(first, weight_norm(tnn.Linear(3, 3))), "zeros", raises=ValueError, match="'1' has parametrizations")


def test_alexnet() -> None:
    """The ten parameters of AlexNet's convolutions. Its linear layers are removed, because they are large."""
    with torch.device("meta"):
        model = AlexNet(10)
    model.classifier = nn.Sequential()
    model.to_empty(device=DEVICE)
    report = init_weights(model, {nn.Conv2d: partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu")}, seed=0)
    assert len(report) == 10 and all(parameter.isfinite().all() for parameter in model.parameters())
    assert report[0].scheme == "kaiming_normal(mode=fan_out, nonlinearity=relu)"
    assert math.isclose(report[0].std, math.sqrt(2 / (64 * 11 * 11)), rel_tol=0.02)
