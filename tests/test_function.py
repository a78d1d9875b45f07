"""What torch.func and forward-mode differentiation see of every operator."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.check import DEVICE, randn
from tests.every import EVERY, Every, results
from trinn.kernels import ops
from trinn.kernels.runtime import vmap

pytestmark = pytest.mark.usefixtures("large_tiles")

# Where windows overlap, values for one place replace each other and all of them get its gradient: no derivative, in torch too.
NO_DERIVATIVE = {"max_unpool2d"}
# What writes over running statistics refuses to have others than those mapped, as torch.
WRITES = {"batch_norm, training"}


each_operator = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in EVERY.items()])


def first_output(case: Every, others: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    def function(*tensors: Tensor) -> Tensor:
        result = case.function(*tensors, *others)
        return result[0] if isinstance(result, tuple) else result

    return function


def doubles(case: Every) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The case's tensors in float64, and the others."""
    return case.tensors(torch.float64), tuple(o.double() if o.is_floating_point() else o for o in case.others())


def alike(*tensors: Tensor, seed: int) -> tuple[Tensor, ...]:
    return tuple(randn(*t.shape, dtype=t.dtype, seed=seed + i) for i, t in enumerate(tensors))


def dot(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


@each_operator
def test_vjp(case: Every) -> None:
    """Function transforms take the same output and gradients, to the bit."""
    tensors, others = case.tensors(), case.others()
    expected = results(case, tensors, others)
    got, pullback = torch.func.vjp(first_output(case, others), *tensors)[:2]
    gradients = pullback(torch.empty_like(got).copy_(randn(*got.shape, seed=1)))
    assert torch.equal(got, expected["output 0"])
    assert all(torch.equal(g, expected[f"gradient {i}"]) for i, g in enumerate(gradients))


@each_operator
def test_jvp(case: Every, request: pytest.FixtureRequest) -> None:
    """A step forward is the adjoint of a gradient, and the step of a gradient that of a second one; float64."""
    tensors, others = doubles(case)
    function = first_output(case, others)
    steps = alike(*tensors, seed=5)
    y, step = torch.func.jvp(function, tuple(tensors), steps)[:2]
    torch.testing.assert_close(y, function(*tensors))
    if request.node.callspec.id in NO_DERIVATIVE:
        pytest.skip("no derivative where windows overlap, in torch too")
    upstream = alike(y, seed=1)
    torch.testing.assert_close(dot((step,), upstream), dot(steps, torch.func.vjp(function, *tensors)[1](*upstream)))

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(lambda *i: dot((function(*i).square(),), upstream), tuple(range(len(inputs))))(*inputs)

    forward = torch.func.jvp(gradient, tuple(tensors), steps)[1]
    backward = torch.func.grad(lambda *i: dot(gradient(*i), steps), tuple(range(len(tensors))))(*tensors)
    torch.testing.assert_close(forward, backward)


@each_operator
def test_each_step_alone(case: Every) -> None:
    """With a tangent for one input only, by the older interface: those of the others are absent, not zero."""
    tensors, others = doubles(case)
    function = first_output(case, others)
    steps = alike(*tensors, seed=5)
    alone = []
    for place, step in enumerate(steps):
        with torch.autograd.forward_ad.dual_level():
            inputs = [torch.autograd.forward_ad.make_dual(t, step) if i == place else t for i, t in enumerate(tensors)]
            alone.append(torch.autograd.forward_ad.unpack_dual(function(*inputs)).tangent)
    torch.testing.assert_close(sum(alone), torch.func.jvp(function, tuple(tensors), steps)[1])


@each_operator
def test_gradients_of_gradients(case: Every, request: pytest.FixtureRequest) -> None:
    """Against finite differences of the gradients, which are torch's in test_every.py; float64."""
    if request.node.callspec.id in NO_DERIVATIVE:
        pytest.skip("no derivative where windows overlap, in torch too")
    tensors, others = doubles(case)
    inputs = [t.requires_grad_() for t in tensors]
    assert gradgradcheck(first_output(case, others), inputs, fast_mode=True)


@pytest.mark.long
@each_operator
def test_forward_gradcheck(case: Every, request: pytest.FixtureRequest) -> None:
    """Forward steps against finite differences, of the operator and of its gradients."""
    if request.node.callspec.id in NO_DERIVATIVE:
        pytest.skip("no derivative where windows overlap, in torch too")
    tensors, others = doubles(case)
    inputs = [t.requires_grad_() for t in tensors]
    function = first_output(case, others)
    assert gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(
        function, inputs, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False, fast_mode=True
    )


@pytest.fixture
def no_fallback() -> Iterator[None]:
    """torch warns where it maps an operator without a rule of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*performance drop.*")
        warnings.filterwarnings("error", ".*batching rule.*")
        yield


def mapped_and_looped(function: Callable[..., Any], tensors: list[Tensor], dims: tuple[int | None, ...], out: int = 0) -> None:
    """vmap equals a loop over the mapped axes."""
    got = torch.vmap(function, in_dims=dims, out_dims=out)(*tensors)
    pairs = list(zip(tensors, dims, strict=True))
    each = [function(*(t if d is None else t.select(d, i) for t, d in pairs)) for i in range(2)]
    several = isinstance(got, tuple)
    for y, parts in zip(got if several else (got,), zip(*each, strict=True) if several else (each,), strict=True):
        torch.testing.assert_close(y, torch.stack(list(parts), out), rtol=1e-4, atol=1e-5)


def stacked(tensor: Tensor, axis: int) -> Tensor:
    """Two of it that differ."""
    return torch.stack([tensor, tensor.flip(0)], axis)


@each_operator
def test_vmap(case: Every, no_fallback: None, full_float32: None, request: pytest.FixtureRequest) -> None:
    """Over each operand alone, over all together, other axes in and out, twice, and of the gradients."""
    tensors = [*case.tensors(), *case.others()]
    count = len(tensors)
    everything = [stacked(t, 0) for t in tensors]
    if request.node.callspec.id not in WRITES:
        for place in range(count):
            chosen = [stacked(t, t.dim() if i == place else 0) if i == place else t for i, t in enumerate(tensors)]
            dims = tuple(t.dim() if i == place else None for i, t in enumerate(tensors))
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
def test_derivatives_of_what_is_mapped(case: Every) -> None:
    """Either step of a mapped operator is that of each of the two; float64."""
    tensors, others = ([stacked(t, 0) for t in group] for group in doubles(case))
    steps = alike(*tensors, seed=5)

    def mapped(*inputs: Tensor) -> Tensor:
        return torch.vmap(first_output(case, ()))(*inputs, *others)

    def looped(*inputs: Tensor) -> Tensor:
        return torch.stack([first_output(case, ())(*operands) for operands in zip(*inputs, *others, strict=True)])

    found, expected = ([*torch.func.jvp(f, tuple(tensors), steps), torch.func.vjp(f, *tensors)] for f in (mapped, looped))
    upstream = alike(found[0], seed=1)
    pulled = [result.pop()[1](*upstream) for result in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*pulled)


@pytest.mark.parametrize("name", ["conv2d", "linear", "batch_norm", "avg_pool2d", "max_pool2d"])
def test_writing_over_what_is_mapped(name: str) -> None:
    """As torch, per-sample gradients allow an in-place ReLU after a layer, also for parameters that autograd records."""
    case = EVERY[name]
    tensors, others = case.tensors(), case.others()
    function = first_output(case, others)
    found = []
    for inplace in (True, False):

        def loss(*inputs: Tensor, inplace: bool = inplace) -> Tensor:
            return tnn.relu(function(*inputs), inplace=inplace).square().sum()

        found.append(torch.vmap(torch.func.grad(loss))(*(stacked(t, 0).requires_grad_() for t in tensors)))
    torch.testing.assert_close(*found)


def test_every_operator_has_a_rule() -> None:
    """Also those that no case above reaches."""
    assert {*vmap.FIRST_AXIS, *vmap.ELEMENTWISE, *vmap.FOLDS} == {name.split("::")[1] for name in registered()}


def registered() -> list[str]:
    return [s for s in torch._C._dispatch_get_all_op_names() if s.startswith("trinn::")]


@pytest.mark.parametrize(
    "operator, tensors",
    [
        (ops.batchnorm2d_merge, ((3, 4), (3, 4), (3,))),
        (ops.batchnorm2d_fold, ((4,), (4,), (4,), (4,), (4,))),
        (ops.conv2d_affine, ((2, 3, 4, 4), (4, 3, 1, 1), (4,), (4,))),
    ],
)
def test_vmap_of_what_no_gradient_passes(operator: Any, tensors: Any, no_fallback: None, full_float32: None) -> None:
    """By each operand alone."""
    rest = {"batchnorm2d_merge": (), "batchnorm2d_fold": (1e-5,)}.get(
        operator.__name__, (True, (4, 4), (1, 1), (0, 0), (1, 1), 1)
    )
    whole = [randn(*shape, seed=i).abs() + 0.5 for i, shape in enumerate(tensors)]
    for place in range(len(whole)):
        chosen = [torch.stack([t, t + 1]) if i == place else t for i, t in enumerate(whole)]
        dims = tuple(0 if i == place else None for i in range(len(whole)))
        mapped_and_looped(lambda *t: operator(*t, *rest), chosen, dims)


def test_statistics_that_are_not_mapped() -> None:
    """What torch refuses; its way out takes our modules."""
    x, layer = randn(3, 2, 4, 5, 5), tnn.BatchNorm2d(4, device=DEVICE)
    for module in (torch.nn.BatchNorm2d(4, device=DEVICE), layer):
        with pytest.raises(RuntimeError, match="running_mean"):
            torch.vmap(module, randomness="same")(x)
    torch.func.replace_all_batch_norm_modules_(layer)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(i) for i in x]), rtol=1e-4, atol=1e-5)


def test_running_statistics_of_several_models(no_fallback: None) -> None:
    """Mapped running statistics move, each towards its own batch."""
    x, mean, var = randn(3, 2, 4, 5, 5), randn(4, 3), randn(4, 3).abs()
    looped = mean.clone(), var.clone()

    def norm(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return tnn.batch_norm(x, mean, var, training=True)

    got = torch.vmap(norm, in_dims=(0, 1, 1))(x, mean, var)
    each = [norm(x[i], looped[0][:, i], looped[1][:, i]) for i in range(3)]
    torch.testing.assert_close([got, mean, var], [torch.stack(each), *looped], rtol=1e-5, atol=1e-5)
