"""Activations: layouts, dtypes, special values, in place, derivatives, errors. hard_inputs/activation.py has more inputs."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.operators.activation import CALLS, IN_PLACE
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, on_a_cpu, raises_like, randn
from tests.support.operator_cases import Torchs
from trinn.kernels.device.activations import ACTIVATIONS, keeps_output
from trinn.layers.activation import MODULES, TEXTS, described, description

INF, NAN = float("inf"), float("nan")
CASES = {
    "one element past a block": lambda: randn(257),
    "no axis": lambda: randn(),
    "empty": lambda: randn(2, 0, 3),
    "channels_last": lambda: randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "transposed, dense": lambda: randn(3, 4, 5).permute(2, 0, 1),
    "every second column": lambda: randn(4, 9)[:, ::2],
    "sliced and transposed": lambda: randn(3, 4, 5)[1:, ::2].transpose(0, 2),
    "expanded": lambda: randn(3, 1, 4).expand(3, 5, 4),
    "storage offset off the alignment": lambda: randn(33)[1:],
}
PRELU = {
    "a weight per channel": lambda: (randn(2, 5, 3, 4), randn(5)),
    "one weight": lambda: (randn(4, 5, 8, 7), randn(1)),
    "a weight without axis": lambda: (randn(4, 5, 8, 7), randn()),
    "no channels": lambda: (randn(7), randn(1)),
    "no axis": lambda: (randn(), randn(1)),
    "features": lambda: (randn(9, 5), randn(5)),
    "a sequence": lambda: (randn(2, 5, 7), randn(5)),
    "a volume": lambda: (randn(2, 3, 4, 2, 3), randn(3)),
    "channels_last": lambda: (randn(2, 5, 3, 4).to(memory_format=torch.channels_last), randn(5)),
    "sliced": lambda: (randn(4, 9, 3, 8)[::2, ::2, :, 1::3], randn(9)[::2]),
    "more pixels than a tile": lambda: (randn(2, 3, 70, 50), randn(3)),
    "5-d": lambda: (randn(2, 3, 4, 2, 3), randn(3)),
    "5-d, last axes transposed": lambda: (randn(2, 3, 4, 2, 3).transpose(3, 4), randn(3)),
    "5-d, channels last": lambda: (randn(2, 4, 2, 3, 5).permute(0, 4, 1, 2, 3), randn(5)),
    "5-d, images innermost": lambda: (randn(4, 3, 2, 3, 2).permute(4, 1, 0, 2, 3), randn(1)),
    "empty": lambda: (randn(0, 5, 3, 4), randn(5)),
}
activations = pytest.mark.parametrize("name", CALLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def functions(name: str) -> tuple[Any, Any, dict[str, Any]]:
    function, options = CALLS[name]
    return getattr(tnn, function), getattr(F, function), options


def exactly(name: str, dtype: torch.dtype) -> Any:
    """torch's function, exact in float64."""
    return getattr(Torchs() if dtype == torch.float64 else F, CALLS[name][0])


@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case) -> None:  # type: ignore[no-untyped-def]
    check(tnn.relu, F.relu, case())
    check(tnn.silu, F.silu, case())


@pytest.mark.parametrize("case", named(PRELU))
def test_prelu(case) -> None:  # type: ignore[no-untyped-def]
    check(tnn.prelu, F.prelu, *case())


@pytest.mark.parametrize("dynamic", [False, True])
def test_prelu_of_a_volume_in_a_graph(dynamic: bool) -> None:
    x, w = randn(2, 3, 4, 2, 3).transpose(3, 4), randn(3)
    compiled = torch.compile(tnn.prelu, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert torch.equal(compiled(x, w), tnn.prelu(x, w)) and compiled(x, w).stride() == tnn.prelu(x, w).stride()


def test_the_gradient_of_a_single_weight_is_rounded_once() -> None:
    """The gradients of its channels are not rounded to 16 bits before their sum."""
    x, dy = (randn(2, 50, 2, 3, dtype=torch.float16, seed=seed) for seed in range(2))
    w = randn(1, dtype=torch.float16).requires_grad_()
    got = torch.autograd.grad(tnn.prelu(x, w), w, dy)[0]
    assert torch.equal(got, (dy.double() * x.double().clamp(max=0)).sum().half()[None])


@activations
@dtypes
def test_dtypes(dtype: torch.dtype, name: str) -> None:
    """Also for arguments so large that exp overflows or rounds to 0."""
    ours, _, options = functions(name)
    torchs = exactly(name, dtype)
    check(ours, torchs, randn(3, 40, dtype=dtype), **options)
    check(ours, torchs, torch.linspace(-120, 120, 97, dtype=torch.float64).to(DEVICE, dtype), **options)


@dtypes
@pytest.mark.parametrize("weights", [1, 5])
def test_dtypes_of_prelu(dtype: torch.dtype, weights: int) -> None:
    check(tnn.prelu, F.prelu, randn(3, 5, 6, 7, dtype=dtype), randn(weights, dtype=dtype))


@activations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_arguments(dtype: torch.dtype, name: str) -> None:
    """Near 0 the relative error is small too: no difference of two large numbers."""
    ours, torchs, options = functions(name)
    x = torch.tensor([s * 10.0**-e for e in range(2, 30) for s in (1, -1)], dtype=dtype, device=DEVICE)
    torch.testing.assert_close(ours(x, **options), torchs(x, **options), rtol=4 * torch.finfo(dtype).eps, atol=0)


VALUES = (NAN, -INF, INF, -0.0, 0.0, 1e-40, -1.0, 1.0, -3.0, 3.0, 6.0, -0.7, 0.3, 2.0, -2.0, -1.0)
UPSTREAM = (*[1.0] * 15, NAN)


@activations
@dtypes
def test_special_values(dtype: torch.dtype, name: str) -> None:
    """NaN, infinities, both zeros, subnormals, the ends of the pieces; a NaN upstream.

    For some NaN, torch's result on a CPU depends on the number of elements; then ours is one of the two.
    """
    ours, _, options = functions(name)
    torchs = exactly(name, dtype)
    exact = {"rtol": 0.0, "atol": 0.0} if name == "relu" else dict.fromkeys(("rtol", "atol"), 4 * torch.finfo(dtype).eps)

    def results(function: Any, *places: int) -> Any:
        x = torch.tensor([VALUES[i] for i in places], dtype=dtype, device=DEVICE, requires_grad=True)
        y = function(x, **options)
        return y.detach(), torch.autograd.grad(y, x, y.new_tensor([UPSTREAM[i] for i in places]))[0]

    def equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
        return torch.allclose(got, expected, equal_nan=True, **exact)

    places = range(len(VALUES))
    for got, together, alone in zip(
        results(ours, *places), results(torchs, *places), zip(*[results(torchs, i) for i in places], strict=True), strict=True
    ):
        for i in places:
            at_infinity = name == "gelu" and VALUES[i] == INF  # torch has NaN on a CPU, inf on a GPU
            assert at_infinity or equal(got[i], together[i]) or equal(got[i], alone[i][0]), VALUES[i]
    if name == "relu":  # CUDA's relu may return 0. for -0.
        x = torch.tensor(VALUES, dtype=dtype, device=DEVICE)
        assert torch.equal(ours(x).signbit(), on_a_cpu(F.relu)(x).signbit())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_integers(dtype: torch.dtype) -> None:
    x = torch.arange(-8, 8, device=DEVICE).to(dtype)
    torch.testing.assert_close((tnn.sigmoid(x), tnn.tanh(x)), (F.sigmoid(x), F.tanh(x)))
    if dtype == torch.bool:
        return
    assert torch.equal(tnn.relu(x), F.relu(x)) and torch.equal(tnn.relu6(x), F.relu6(x))
    if dtype.is_signed:
        assert torch.equal(tnn.hardtanh(x, -1.5, 2.5), F.hardtanh(x, -1.5, 2.5))


@activations
def test_derivatives(name: str) -> None:
    """First, second and third derivatives, and forward mode, against differences."""
    ours, _, options = functions(name)
    torchs = exactly(name, torch.float64)
    x = (randn(5, dtype=torch.float64) * 2).requires_grad_()
    assert gradcheck(lambda x: ours(x, **options), x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(lambda x: ours(x, **options), x, check_fwd_over_rev=True)
    derivatives = []
    for function in (ours, torchs):
        y = function(x, **options)
        for _ in range(3):
            if y.requires_grad:
                (y,) = torch.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True)
        derivatives.append(y.detach())
    torch.testing.assert_close(*derivatives)


@pytest.mark.parametrize("weights", [1, 3])
def test_derivatives_of_prelu(weights: int) -> None:
    x, w = randn(2, 3, dtype=torch.float64).requires_grad_(), randn(weights, dtype=torch.float64).requires_grad_()
    assert gradcheck(tnn.prelu, (x, w), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(tnn.prelu, (x, w), check_fwd_over_rev=True)


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:, 1::2], lambda x: x.T], ids=["whole", "strided", "transposed"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name: str, view) -> None:  # type: ignore[no-untyped-def]
    """It writes through a view, increments the version, and has the gradient of the activation."""
    ours, torchs = getattr(tnn, name), getattr(F, name)
    x, expected = randn(4, 6), randn(4, 6)
    version = x._version
    assert ours(view(x), inplace=True) is not None and x._version > version
    torchs(view(expected), inplace=True)
    torch.testing.assert_close(x, expected)
    leaves = [randn(4, 6).requires_grad_() for _ in range(2)]
    for function, leaf in zip((ours, torchs), leaves, strict=True):
        base = leaf * 2
        function(view(base), inplace=True)
        (base * base).sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    leaf = randn(3, dtype=torch.float64).requires_grad_()
    assert gradgradcheck(lambda x: ours(x * 2, inplace=True), leaf)


def test_in_place_returns_its_input() -> None:
    x = randn(3)
    assert tnn.relu_(x) is x and tnn.silu(x, inplace=True) is x
    y = randn(3).requires_grad_() * 1
    assert tnn.relu(y, inplace=True) is y


def test_autograd_detects_in_place_writes() -> None:
    """backward raises if a tensor saved by an earlier operation was overwritten."""
    x = randn(3).requires_grad_()
    y = x * 1
    z = y * y
    tnn.relu(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("name", [*CALLS, "prelu"])
def test_what_backward_keeps(name: str) -> None:
    """One tensor: the output where it determines the gradient. ReLU's output, for example, is kept by the next layer anyway."""
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = randn(2, 5, 3, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        if name == "prelu":
            tnn.prelu(x, randn(5))
            assert saved[0].data_ptr() == x.data_ptr() and len(saved) == 2
            return
        ours, _, options = functions(name)
        y = ours(x, **options)
    bound = inspect.signature(ours).bind(x, **options)
    bound.apply_defaults()
    text, _ = description(ours, bound.args[1:])
    kept = y if keeps_output(text) else x
    assert [t.data_ptr() for t in saved] == [kept.data_ptr()]
    assert keeps_output(text) == (name in (
        "relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "sigmoid", "tanh"
    ))  # fmt: skip


def test_tables() -> None:
    """Each activation has a module, a function and a pair of formulas."""
    assert {type(m()).__name__: described(m())[0].split()[0] for m in MODULES}.keys() == {m.__name__ for m in MODULES}
    assert {described(m())[0].split()[0] for m in MODULES} | {"gelu_tanh"} == set(ACTIVATIONS)
    assert set(TEXTS) | {tnn.prelu, tnn.relu6} == set(MODULES.values()) | {tnn.relu6}
    for module in MODULES:
        assert getattr(tnn, module.__name__).__mro__[1] is module


def test_errors() -> None:
    raises_like(F.relu, tnn.relu, randn(3) > 0)
    raises_like(F.relu6, tnn.relu6, randn(3) > 0)
    for name in ("leaky_relu", "elu", "silu", "gelu", "softplus", "hardswish"):
        raises_like(getattr(F, name), getattr(tnn, name), torch.arange(3, device=DEVICE))
    leaf = randn(3).requires_grad_()
    before = leaf.detach().clone()
    for name in ("relu", "silu"):
        raises_like(getattr(F, name), getattr(tnn, name), leaf, inplace=True)
        raises_like(getattr(F, name), getattr(tnn, name), randn(3, 1).expand(3, 4), inplace=True)
    assert torch.equal(leaf, before)
    raises_like(F.hardtanh, tnn.hardtanh, randn(3), 2.0, 1.0)
    raises_like(F.hardtanh, tnn.hardtanh, torch.ones(3, dtype=torch.uint8, device=DEVICE))
    raises_like(F.celu, tnn.celu, randn(3), 0.0)
    raises_like(F.gelu, tnn.gelu, randn(3), approximate="erf")
    raises_like(F.leaky_relu, tnn.leaky_relu, randn(3), "0.1")
    for weight in (randn(3), randn(5, 1), randn(5).double()):
        raises_like(F.prelu, tnn.prelu, randn(2, 5, 3), weight)
    raises_like(F.prelu, tnn.prelu, torch.ones(2, 5, dtype=torch.int64, device=DEVICE), randn(5))
