"""ReLU: layouts, dtypes, special values, in place, errors. hard_inputs/relu.py has more inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradgradcheck

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, on_a_cpu, raises_like, randn

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


@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case) -> None:  # type: ignore[no-untyped-def]
    check(tnn.relu, F.relu, case())


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    check(tnn.relu, F.relu, randn(3, 40, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8])
def test_integers(dtype: torch.dtype) -> None:
    x = torch.arange(-8, 8, device=DEVICE).to(dtype)
    assert torch.equal(tnn.relu(x), F.relu(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: torch.dtype) -> None:
    """NaN stays, -inf becomes 0, -0. keeps its sign. The gradient is 0 at both zeros, dy at NaN, and 0 at x < 0 for any dy."""
    x = torch.tensor([NAN, -INF, INF, -0.0, 0.0, 1e-40, -1.0], dtype=dtype, device=DEVICE, requires_grad=True)
    dy = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, NAN], dtype=dtype, device=DEVICE)
    results = []
    for relu in (tnn.relu, F.relu):
        y = relu(x)
        results.append((y, *torch.autograd.grad(y, x, dy)))
    (y, dx), (torchs_y, torchs_dx) = results
    torch.testing.assert_close(y, torchs_y, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dx, torchs_dx, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y.signbit(), on_a_cpu(F.relu)(x).signbit())  # CUDA's relu may return 0. for -0.


def test_second_derivative() -> None:
    assert gradgradcheck(tnn.relu, [randn(3, 4, dtype=torch.float64).requires_grad_()])


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[:, 1::2], lambda x: x.T], ids=["whole", "strided", "transposed"])
def test_in_place(view) -> None:  # type: ignore[no-untyped-def]
    """It writes through a view, increments the version, and has the gradient of relu."""
    x, torchs = randn(4, 6), randn(4, 6)
    version = x._version
    assert tnn.relu(view(x), inplace=True) is not None and x._version > version
    F.relu(view(torchs), inplace=True)
    assert torch.equal(x, torchs)
    leaves = [randn(4, 6).requires_grad_() for _ in range(2)]
    for relu, leaf in zip((tnn.relu, F.relu), leaves, strict=True):
        base = leaf * 2
        relu(view(base), inplace=True)
        (base * base).sum().backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_in_place_returns_its_input() -> None:
    x = randn(3)
    assert tnn.relu_(x) is x
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


def test_errors() -> None:
    raises_like(F.relu, tnn.relu, randn(3) > 0)
    leaf = randn(3).requires_grad_()
    before = leaf.detach().clone()
    raises_like(F.relu, tnn.relu, leaf, inplace=True)
    assert torch.equal(leaf, before)
    raises_like(F.relu, tnn.relu, randn(3, 1).expand(3, 4), inplace=True)
