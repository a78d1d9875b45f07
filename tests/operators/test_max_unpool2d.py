"""Max unpooling: geometries, layouts, repeated indices, gradients and errors."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, on_a_cpu, raises_like, randn
from trinn.kernels import ops

pytestmark = pytest.mark.filterwarnings("ignore:max_unpooling2d.* does not have a deterministic implementation")


class Unpool(NamedTuple):
    """Shape of the image to pool, arguments of the pooling and unpooling, output size of the unpooling."""

    x: tuple[int, ...]
    options: dict[str, Any]
    size: tuple[int, ...] | None = None


CASES = {
    "lenet": Unpool((2, 3, 8, 6), {"kernel_size": 2}),
    "a row outside every window": Unpool((2, 3, 9, 7), {"kernel_size": 2}, (9, 7)),
    "all four sizes": Unpool((2, 3, 9, 7), {"kernel_size": 2}, (2, 3, 9, 7)),
    "padding": Unpool((2, 3, 8, 6), {"kernel_size": 2, "padding": 1}),
    "stride larger than the kernel": Unpool((1, 2, 9, 11), {"kernel_size": 2, "stride": (3, 4)}, (9, 11)),
    "more values than a block": Unpool((1, 2, 22, 20), {"kernel_size": 2}),
    "more channels than a block": Unpool((1, 37, 4, 4), {"kernel_size": 2}),
    "unbatched": Unpool((3, 6, 6), {"kernel_size": 2}),
    "empty batch": Unpool((0, 3, 6, 6), {"kernel_size": 2}),
}


def pooled(case: Unpool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Values and indices of a max pooling. The indices are distinct, because the windows do not overlap."""
    return F.max_pool2d(randn(*case.x, dtype=dtype), **case.options, return_indices=True)


@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: Unpool) -> None:
    x, indices = pooled(case)
    check(tnn.max_unpool2d, on_a_cpu(F.max_unpool2d), x, indices, **case.options, output_size=case.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    check(tnn.max_unpool2d, on_a_cpu(F.max_unpool2d), *pooled(CASES["lenet"], dtype), kernel_size=2)


@pytest.mark.parametrize("values", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("positions", [torch.contiguous_format, torch.channels_last])
def test_layouts(values: torch.memory_format, positions: torch.memory_format) -> None:
    """The result has the memory format of `values`, as torch's on a CPU. On a GPU, torch's is contiguous."""
    x, indices = pooled(CASES["lenet"])
    x, indices = x.contiguous(memory_format=values), indices.contiguous(memory_format=positions)
    check(tnn.max_unpool2d, on_a_cpu(F.max_unpool2d), x, indices, kernel_size=2)


def test_strided() -> None:
    """For these strides, torch's gradient raises: it takes a view of the values."""
    x, indices = pooled(CASES["lenet"])
    x, indices = x[:, :, ::2].requires_grad_(), indices[:, :, ::2]
    y, expected = (tnn.max_unpool2d(*pair, 2, (4, 2)) for pair in ((x, indices), (x.contiguous(), indices.contiguous())))
    dx, expected_dx = (torch.autograd.grad(result.square().sum(), x)[0] for result in (y, expected))
    assert torch.equal(y, expected) and torch.equal(dx, expected_dx)


@pytest.mark.parametrize("block", [16, 64])
def test_the_last_value_of_an_index_wins(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a block of values, and across blocks. All values of an index get its gradient."""
    monkeypatch.setattr("trinn.kernels.max_unpool2d.VALUES", block)
    x = randn(2, 3, 10, 9).requires_grad_()
    indices = torch.randint(40, (2, 3, 10, 9), device=DEVICE)
    expected = torch.zeros(2, 3, 360, device=DEVICE)
    for pixel in range(90):
        expected.scatter_(2, indices.flatten(2)[..., pixel : pixel + 1], x.detach().flatten(2)[..., pixel : pixel + 1])
    y = tnn.max_unpool2d(x, indices, 2)
    assert torch.equal(y.flatten(2), expected)
    dy = randn(*y.shape, seed=1)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx.flatten(2), dy.flatten(2).gather(2, indices.flatten(2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_adjoint_of_the_gradient_adds_up(dtype: torch.dtype) -> None:
    x, indices = randn(2, 3, 10, 9, dtype=dtype), torch.randint(40, (2, 3, 10, 9), device=DEVICE)
    total = ops.max_unpool2d_add(x, indices, (8, 8))
    expected = torch.zeros(2, 3, 64, dtype=torch.float64, device=DEVICE).scatter_add_(
        2, indices.flatten(2), x.flatten(2).double()
    )
    torch.testing.assert_close(total.flatten(2), expected.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(total, ops.max_unpool2d_add(x, indices, (8, 8)))


def test_second_gradient_adds_up() -> None:
    """All values have one index. The gradient of the gradient there is the sum over all of them."""
    x, indices = randn(1, 1, 2, 2).requires_grad_(), torch.full((1, 1, 2, 2), 5, device=DEVICE)
    y = tnn.max_unpool2d(x, indices, 2)
    dy = torch.ones_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (ddy,) = torch.autograd.grad(dx, dy, torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=DEVICE))
    assert ddy.flatten().tolist() == [0.0] * 5 + [10.0] + [0.0] * 10


def test_undoes_the_pooling() -> None:
    x = randn(2, 3, 9, 7)
    y, indices = tnn.max_pool2d(x, 2, return_indices=True)
    back = tnn.MaxUnpool2d(2)(y, indices, output_size=list(x.shape))
    assert torch.equal(F.max_pool2d(back.clamp(min=0), 2), y.clamp(min=0)) and (back == x).sum() == y.numel()


INDICES = [[[[0, 3], [9, 14]]]]
ERRORS: dict[str, tuple[tuple[int, ...], list[Any], dict[str, Any]]] = {
    "an impossible size": ((1, 1, 2, 2), INDICES, {"output_size": (7, 7)}),
    "one size": ((1, 1, 2, 2), INDICES, {"output_size": (4,)}),
    "indices of another shape": ((1, 1, 2, 1), INDICES, {}),
    "two axes": ((2, 2), INDICES[0][0], {}),
    "no channels": ((1, 0, 2, 2), [[]], {}),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[tuple[int, ...], list[Any], dict[str, Any]]) -> None:
    shape, positions, options = case
    indices = torch.tensor(positions, dtype=torch.int64, device=DEVICE)
    indices = indices.reshape(shape) if 0 in shape else indices
    raises_like(F.max_unpool2d, tnn.max_unpool2d, randn(*shape), indices, **{"kernel_size": 2} | options)


def test_a_size_below_zero() -> None:
    """It raises torch 2.13's exception. Older versions multiply the sizes until they overflow."""
    with pytest.raises(ValueError, match="non-negative spatial dimensions"):
        tnn.max_unpool2d(randn(1, 1, 2, 2), torch.tensor(INDICES, device=DEVICE), 2, padding=4)


def test_errors_of_dtypes() -> None:
    indices = torch.tensor(INDICES, device=DEVICE)
    raises_like(F.max_unpool2d, tnn.max_unpool2d, randn(1, 1, 2, 2), indices.int(), 2)
    raises_like(F.max_unpool2d, tnn.max_unpool2d, randn(1, 1, 2, 2).int(), indices, 2)


@pytest.mark.skipif(DEVICE == "cuda", reason="a device-side assertion ends the process, in torch too")
@pytest.mark.parametrize("index", [-1, 16])
def test_indices_outside(index: int) -> None:
    indices = torch.tensor(INDICES)
    indices[0, 0, 1, 1] = index
    raises_like(F.max_unpool2d, tnn.max_unpool2d, randn(1, 1, 2, 2), indices, 2)
    with pytest.raises(RuntimeError, match="invalid max index"):
        ops.max_unpool2d_backward(randn(1, 1, 4, 4), indices, False)
