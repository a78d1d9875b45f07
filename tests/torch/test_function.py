"""torch.func transforms and forward-mode differentiation of every operator."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES, results
from tests.support.record import OperatorCase
from trinn.kernels import ops

pytestmark = pytest.mark.usefixtures("large_tiles")

each_operator = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


def first_output(case: OperatorCase, others: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    def function(*tensors: Tensor) -> Tensor:
        result = case.function(*tensors, *others)
        return result[0] if isinstance(result, tuple) else result

    return function


def doubles(case: OperatorCase) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The case's tensors and its other operands in float64."""
    return case.tensors(torch.float64), tuple(o.double() if o.is_floating_point() else o for o in case.others())


def random_like(*tensors: Tensor, seed: int) -> tuple[Tensor, ...]:
    return tuple(randn(*t.shape, dtype=t.dtype, seed=seed + i) for i, t in enumerate(tensors))


def dot(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


@each_operator
def test_vjp(case: OperatorCase) -> None:
    """torch.func.vjp gives autograd's outputs and gradients, bit for bit."""
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    got, pullback = torch.func.vjp(first_output(case, others), *tensors)[:2]
    gradients = pullback(torch.empty_like(got).copy_(randn(*got.shape, seed=1)))
    assert torch.equal(got, expected["output 0"])
    assert all(torch.equal(g, expected[f"gradient {i}"]) for i, g in enumerate(gradients))


@each_operator
def test_jvp(case: OperatorCase) -> None:
    """jvp is the adjoint of vjp, for the operator and for its gradient; float64."""
    tensors, others = doubles(case)
    function = first_output(case, others)
    steps = random_like(*tensors, seed=5)
    y, step = torch.func.jvp(function, tuple(tensors), steps)[:2]
    torch.testing.assert_close(y, function(*tensors))
    if not case.differentiable:
        pytest.skip("with overlapping windows the gradient is no derivative, also in torch")
    upstream = random_like(y, seed=1)
    torch.testing.assert_close(dot((step,), upstream), dot(steps, torch.func.vjp(function, *tensors)[1](*upstream)))

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *i: dot((function(*i).square(),), upstream), tuple(range(len(inputs))))(*inputs)

    forward = torch.func.jvp(gradient, tuple(tensors), steps)[1]
    backward = torch.func.grad(lambda *i: dot(gradient(*i), steps), tuple(range(len(tensors))))(*tensors)
    torch.testing.assert_close(forward, backward)


@each_operator
def test_a_tangent_for_one_input(case: OperatorCase) -> None:
    """With torch.autograd.forward_ad, the tangents of the other inputs are absent, not zero."""
    tensors, others = doubles(case)
    function = first_output(case, others)
    steps = random_like(*tensors, seed=5)
    alone = []
    for number, step in enumerate(steps):
        with torch.autograd.forward_ad.dual_level():
            inputs = [torch.autograd.forward_ad.make_dual(t, step) if i == number else t for i, t in enumerate(tensors)]
            alone.append(torch.autograd.forward_ad.unpack_dual(function(*inputs)).tangent)
    torch.testing.assert_close(sum(alone), torch.func.jvp(function, tuple(tensors), steps)[1])


@each_operator
def test_gradients_of_gradients(case: OperatorCase) -> None:
    """Finite differences of the gradients in float64; test_calls.py compares the gradients with torch."""
    if not case.differentiable:
        pytest.skip("with overlapping windows the gradient is no derivative, also in torch")
    tensors, others = doubles(case)
    inputs = [t.requires_grad_() for t in tensors]
    assert gradgradcheck(first_output(case, others), inputs, fast_mode=True)


@pytest.mark.long
@each_operator
def test_forward_gradcheck(case: OperatorCase) -> None:
    """Forward mode against finite differences, for the operator and for its gradients."""
    if not case.differentiable:
        pytest.skip("with overlapping windows the gradient is no derivative, also in torch")
    tensors, others = doubles(case)
    inputs = [t.requires_grad_() for t in tensors]
    function = first_output(case, others)
    assert gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(
        function, inputs, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False, fast_mode=True
    )


@pytest.fixture
def no_fallback() -> Iterator[None]:
    """Turn torch's warning about an operator without a vmap rule into an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*performance drop.*")
        warnings.filterwarnings("error", ".*batching rule.*")
        yield


def mapped_and_looped(function: Callable[..., Any], tensors: list[Tensor], dims: tuple[int | None, ...], out: int = 0) -> None:
    """Assert vmap equal to a loop over the mapped axes."""
    got = torch.vmap(function, in_dims=dims, out_dims=out)(*tensors)
    pairs = list(zip(tensors, dims, strict=True))
    each = [function(*(t if d is None else t.select(d, i) for t, d in pairs)) for i in range(2)]
    several = isinstance(got, tuple)
    for y, parts in zip(got if several else (got,), zip(*each, strict=True) if several else (each,), strict=True):
        torch.testing.assert_close(y, torch.stack(list(parts), out), rtol=1e-4, atol=1e-5)


def stacked(tensor: Tensor, axis: int) -> Tensor:
    """Stack the tensor and its flipped copy."""
    return torch.stack([tensor, tensor.flip(0)], axis)


@each_operator
def test_vmap(case: OperatorCase, no_fallback: None, full_float32: None) -> None:
    """Map each operand alone, all of them, other axes in and out, gradients, and a vmap inside a vmap."""
    tensors = [*case.tensors(), *case.others()]
    count = len(tensors)
    everything = [stacked(t, 0) for t in tensors]
    if not case.writes:  # as in torch, statistics that are updated must be mapped
        for mapped in range(count):
            chosen = [stacked(t, t.dim()) if i == mapped else t for i, t in enumerate(tensors)]
            dims = tuple(t.dim() if i == mapped else None for i, t in enumerate(tensors))
            mapped_and_looped(case.function, chosen, dims, out=1)
    mapped_and_looped(case.function, everything, (0,) * count)

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        floats = len(case.shapes)
        function = first_output(case, inputs[floats:])
        return torch.func.grad(lambda *i: function(*i).square().sum(), tuple(range(floats)))(*inputs[:floats])

    mapped_and_looped(gradients, everything, (0,) * count)
    nested = torch.vmap(first_output(case, ()), in_dims=0)
    mapped_and_looped(nested, [stacked(t, 1) for t in everything], (1,) * count)


@each_operator
def test_derivatives_of_vmap(case: OperatorCase) -> None:
    """A mapped operator has the same jvp and vjp as a loop; float64."""
    tensors, others = ([stacked(t, 0) for t in group] for group in doubles(case))
    steps = random_like(*tensors, seed=5)

    def mapped(*inputs: Tensor) -> Tensor:
        return torch.vmap(first_output(case, ()))(*inputs, *others)

    def looped(*inputs: Tensor) -> Tensor:
        return torch.stack([first_output(case, ())(*operands) for operands in zip(*inputs, *others, strict=True)])

    found, expected = ([*torch.func.jvp(f, tuple(tensors), steps), torch.func.vjp(f, *tensors)] for f in (mapped, looped))
    upstream = random_like(found[0], seed=1)
    pulled = [result.pop()[1](*upstream) for result in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*pulled)


@pytest.mark.parametrize("name", ["conv2d", "linear", "batch_norm", "avg_pool2d", "max_pool2d"])
def test_in_place_relu_under_vmap(name: str) -> None:
    """As in torch, per-sample gradients allow an in-place ReLU after a layer, also for parameters with requires_grad."""
    case = CASES[name]
    tensors, others = case.tensors(), case.others()
    function = first_output(case, others)
    found = []
    for inplace in (True, False):

        def loss(*inputs: Tensor, inplace: bool = inplace) -> Tensor:
            return tnn.relu(function(*inputs), inplace=inplace).square().sum()

        found.append(torch.vmap(torch.func.grad(loss))(*(stacked(t, 0).requires_grad_() for t in tensors)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "operator, tensors",
    [
        (ops.batchnorm2d_merge, ((3, 4), (3, 4), (3,))),
        (ops.batchnorm2d_fold, ((4,), (4,), (4,), (4,), (4,))),
        (ops.conv2d_affine, ((2, 3, 4, 4), (4, 3, 1, 1), (4,), (4,), (4,), (2, 4, 4, 4))),
    ],
)
def test_vmap_of_operators_without_a_gradient(operator: Any, tensors: Any, no_fallback: None, full_float32: None) -> None:
    """Map each operand alone."""
    rest = {"batchnorm2d_merge": (), "batchnorm2d_fold": (1e-5,)}.get(
        operator.__name__, ("prelu", (4, 4), (1, 1), (0, 0), (1, 1), 1, False)
    )
    whole = [randn(*shape, seed=i).abs() + 0.5 for i, shape in enumerate(tensors)]
    for mapped in range(len(whole)):
        chosen = [torch.stack([t, t + 1]) if i == mapped else t for i, t in enumerate(whole)]
        dims = tuple(0 if i == mapped else None for i in range(len(whole)))
        mapped_and_looped(lambda *t: operator(*t, *rest), chosen, dims)


def test_running_statistics_outside_vmap() -> None:
    """torch raises, and so does trinn; torch's workaround, replace_all_batch_norm_modules_, works on trinn's modules."""
    x, layer = randn(3, 2, 4, 5, 5), tnn.BatchNorm2d(4, device=DEVICE)
    for module in (torch.nn.BatchNorm2d(4, device=DEVICE), layer):
        with pytest.raises(RuntimeError, match="running_mean"):
            torch.vmap(module, randomness="same")(x)
    torch.func.replace_all_batch_norm_modules_(layer)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(i) for i in x]), rtol=1e-4, atol=1e-5)


def test_running_statistics_of_several_models(no_fallback: None) -> None:
    """Each mapped set of running statistics is updated from its own batch."""
    x, mean, var = randn(3, 2, 4, 5, 5), randn(4, 3), randn(4, 3).abs()
    looped = mean.clone(), var.clone()

    def norm(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return tnn.batch_norm(x, mean, var, training=True)

    got = torch.vmap(norm, in_dims=(0, 1, 1))(x, mean, var)
    each = [norm(x[i], looped[0][:, i], looped[1][:, i]) for i in range(3)]
    torch.testing.assert_close([got, mean, var], [torch.stack(each), *looped], rtol=1e-5, atol=1e-5)
