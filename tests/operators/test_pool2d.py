"""Max and average pooling: windows, layouts, dtypes, ties, NaN and errors."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, raises_like, randn
from trinn.kernels import ops

INF, NAN = float("inf"), float("nan")


class Pool(NamedTuple):
    """x (N, C, H, W) and the arguments of the pooling."""

    x: tuple[int, ...]
    options: dict[str, Any]


BOTH = {
    "lenet": Pool((2, 3, 8, 8), {"kernel_size": 2}),
    "alexnet: windows overlap": Pool((2, 3, 13, 13), {"kernel_size": 3, "stride": 2}),
    "resnet": Pool((2, 3, 9, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "stride 1": Pool((1, 2, 6, 7), {"kernel_size": (2, 3), "stride": 1, "padding": (1, 0)}),
    "stride larger than the kernel: pixels outside all windows": Pool((2, 2, 9, 9), {"kernel_size": 2, "stride": (3, 4)}),
    "ceil_mode: the last window overhangs": Pool((2, 2, 6, 8), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    "ceil_mode: no window starts in the far padding": Pool((2, 2, 5, 5), {"kernel_size": 2, "padding": 1, "ceil_mode": True}),
    "ceil_mode and padding": Pool((1, 2, 6, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "an empty list for a stride": Pool((1, 2, 6, 6), {"kernel_size": 3, "stride": []}),
    "one-pixel image": Pool((2, 3, 1, 1), {"kernel_size": 3, "padding": 1}),
    "one window": Pool((2, 3, 5, 4), {"kernel_size": (5, 4)}),
    "unbatched": Pool((3, 6, 6), {"kernel_size": 2}),
    "empty batch": Pool((0, 3, 6, 6), {"kernel_size": 2}),
    "more channels than a block": Pool((1, 37, 4, 4), {"kernel_size": 2}),
}
MAX = BOTH | {
    "dilated": Pool((2, 2, 11, 12), {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (2, 3), "padding": (1, 0)}),
    "stride and dilation share a factor": Pool(
        (1, 2, 12, 13), {"kernel_size": 3, "stride": (2, 4), "dilation": (4, 6), "padding": 1}
    ),
    "dilated, ceil_mode": Pool((1, 2, 8, 9), {"kernel_size": 2, "stride": 3, "dilation": 2, "ceil_mode": True}),
    "more taps than a byte can count": Pool((1, 1, 19, 18), {"kernel_size": (18, 17), "stride": 1, "padding": 1}),
}
AVG = BOTH | {
    "padding not counted": Pool((2, 2, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    "padding not counted, ceil_mode": Pool(
        (1, 2, 6, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}
    ),
    "divisor 1": Pool((1, 2, 6, 7), {"kernel_size": 3, "stride": 2, "divisor_override": 1}),
    "divisor -2": Pool((1, 2, 6, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "divisor_override": -2}),
}


@pytest.mark.parametrize("case", named(MAX))
def test_max_equals_torch(case: Pool) -> None:
    check(tnn.max_pool2d, F.max_pool2d, randn(*case.x), **case.options)
    check(tnn.max_pool2d, F.max_pool2d, randn(*case.x), **case.options, return_indices=True)


@pytest.mark.parametrize("case", named(AVG))
def test_avg_equals_torch(case: Pool) -> None:
    check(tnn.avg_pool2d, F.avg_pool2d, randn(*case.x), **case.options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    x = randn(*BOTH["resnet"].x, dtype=dtype)
    check(tnn.max_pool2d, F.max_pool2d, x, **BOTH["resnet"].options, return_indices=True)
    check(tnn.avg_pool2d, F.avg_pool2d, x, **BOTH["resnet"].options)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_max_of_integers(dtype: torch.dtype) -> None:
    x = torch.arange(-32, 32, device=DEVICE).roll(9).view(1, 1, 8, 8).to(dtype)
    got = tnn.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert all(torch.equal(a, b) for a, b in zip(got, F.max_pool2d(x, 3, 2, 1, return_indices=True), strict=True))


def test_argmax_beyond_a_byte() -> None:
    """Taps 289 and 305 of 306 are the maxima."""
    x = torch.arange(2.0 * 18 * 18, device=DEVICE).view(1, 2, 18, 18)
    x[0, 0] = x[0, 0].flip(1)
    check(tnn.max_pool2d, F.max_pool2d, x, kernel_size=(18, 17), stride=1, return_indices=True)


def test_avg_of_integers() -> None:
    """int64 only, rounded towards zero as in torch."""
    x = torch.arange(-32, 32, device=DEVICE).roll(9).view(1, 1, 8, 8)
    for options in ({}, {"count_include_pad": False}, {"divisor_override": -3}):
        got = tnn.avg_pool2d(x, 3, 2, 1, **options)
        assert torch.equal(got.cpu(), F.avg_pool2d(x.cpu(), 3, 2, 1, **options))
    large = x * (2**40 + 1)  # not representable in float32
    assert torch.equal(tnn.avg_pool2d(large, 3, 2, 1).cpu(), F.avg_pool2d(large.cpu(), 3, 2, 1))
    raises_like(F.avg_pool2d, tnn.avg_pool2d, x.to(torch.uint8), 3)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.int64])
def test_window_without_a_pixel(dtype: torch.dtype) -> None:
    """The window reads columns -1 and 2 of an image with two columns.

    The maximum is the smallest value of the dtype. torch's index is outside the row; trinn's is inside the image, and the
    pixel there gets no gradient.
    """
    x = torch.ones(1, 2, 3, 2, dtype=dtype, device=DEVICE, requires_grad=dtype.is_floating_point)
    options: dict[str, Any] = {"kernel_size": (1, 2), "stride": 1, "padding": (0, 1), "dilation": (1, 3)}
    y, indices = tnn.max_pool2d(x, **options, return_indices=True)
    assert torch.equal(y, F.max_pool2d(x, **options))
    assert indices.min() >= 0 and indices.max() < 6
    if x.requires_grad:
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        _, codes = ops.max_pool2d_forward(x.detach(), (3, 1), (1, 2), (1, 1), (0, 1), (1, 3))
        picked = ops.max_pool2d_pick(x.detach(), codes, (3, 2), (1, 2), (1, 1), (0, 1), (1, 3))
        assert torch.equal(dx, torch.zeros_like(x)) and torch.equal(picked, torch.zeros_like(y))


LAYOUTS = {
    "channels_last": lambda: randn(2, 5, 6, 7).contiguous(memory_format=torch.channels_last),
    "channels_last, a slice": lambda: randn(2, 5, 6, 8).contiguous(memory_format=torch.channels_last)[:, :, :, 1:],
    "one channel": lambda: randn(2, 1, 6, 7).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: randn(2, 5, 7, 6).transpose(2, 3),
    "every second row": lambda: randn(2, 5, 12, 7)[:, :, ::2],
    "expanded": lambda: randn(1, 5, 6, 7).expand(2, 5, 6, 7),
    "unbatched, channels innermost": lambda: randn(6, 7, 5).permute(2, 0, 1),
}


@pytest.mark.parametrize("layout", named(LAYOUTS))
def test_layouts(layout: Any) -> None:
    check(tnn.max_pool2d, F.max_pool2d, layout(), kernel_size=3, stride=2, padding=1, return_indices=True)
    check(tnn.avg_pool2d, F.avg_pool2d, layout(), kernel_size=3, stride=2, padding=1)


HARD = {
    "NaN wins": [[1.0, NAN], [3.0, 2.0]],
    "two NaN: the last": [[NAN, 1.0], [2.0, NAN]],
    "all -inf": [[-INF, -INF], [-INF, -INF]],
    "ties: the first": [[2.0, 2.0], [2.0, 2.0]],
    "-0. before 0.": [[-0.0, 0.0], [-1.0, -1.0]],
    "inf": [[1.0, INF], [INF, -INF]],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", named(HARD))
def test_hard_values(values: list[list[float]], dtype: torch.dtype) -> None:
    """Value, index, sign and gradient are torch's, with and without padding."""
    x = torch.tensor([[values]], dtype=dtype, device=DEVICE, requires_grad=True)
    for padding in (0, 1):
        results = []
        for pool in (tnn.max_pool2d, F.max_pool2d):
            y, indices = pool(x, 2, padding=padding, return_indices=True)
            results.append((y, indices, torch.autograd.grad(y, x, torch.ones_like(y))[0]))
        (y, indices, dx), (torchs_y, torchs_indices, torchs_dx) = results
        assert torch.equal(indices, torchs_indices)
        torch.testing.assert_close(y, torchs_y, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(dx, torchs_dx, rtol=0, atol=0)
        assert torch.equal(y.signbit(), torchs_y.signbit()) or y.isnan().any()


def test_infinities_in_a_mean() -> None:
    x = torch.tensor([[[[INF, -INF, 1.0, INF]]]], device=DEVICE)
    torch.testing.assert_close(tnn.avg_pool2d(x, (1, 2)), F.avg_pool2d(x, (1, 2)), equal_nan=True)


POOLS: dict[str, tuple[Any, Any]] = {"max": (tnn.max_pool2d, F.max_pool2d), "avg": (tnn.avg_pool2d, F.avg_pool2d)}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_keeps_the_format(memory_format: torch.memory_format) -> None:
    """The input's gradient has the input's memory format.

    The upstream gradient comes from `flatten` and is contiguous. It must not change the format for all earlier layers.
    """
    for ours, torchs in POOLS.values():
        for kernel in (2, 6):
            x = randn(2, 5, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
            dx, expected = (torch.autograd.grad(pool(x, kernel).flatten(1).square().sum(), x)[0] for pool in (ours, torchs))
            assert dx.stride() == expected.stride() == x.stride()
            torch.testing.assert_close(dx, expected)


def test_avg_is_linear_and_keeps_ones() -> None:
    x, y = randn(1, 2, 6, 6, dtype=torch.float64), randn(1, 2, 6, 6, dtype=torch.float64, seed=1)
    torch.testing.assert_close(tnn.avg_pool2d(x + 2 * y, 2), tnn.avg_pool2d(x, 2) + 2 * tnn.avg_pool2d(y, 2))
    assert torch.equal(tnn.avg_pool2d(torch.ones_like(x), 3, 2, 1, count_include_pad=False), torch.ones(1, 2, 3, 3).to(x))


WINDOW = (3, 3), (2, 2), (1, 1)
ERRORS = {
    "five axes": ((1, 1, 2, 6, 6), {"kernel_size": 2}),
    "kernel larger than the image": ((1, 2, 3, 3), {"kernel_size": 4}),
    "kernel larger than the image, ceil_mode": ((1, 2, 3, 3), {"kernel_size": 9, "stride": 2, "ceil_mode": True}),
    "padding over half the kernel": ((1, 2, 6, 6), {"kernel_size": 3, "padding": 2}),
    "negative padding": ((1, 2, 6, 6), {"kernel_size": 3, "padding": -1}),
    "stride 0": ((1, 2, 6, 6), {"kernel_size": 3, "stride": 0}),
    "kernel 0": ((1, 2, 6, 6), {"kernel_size": 0}),
    "kernel of three": ((1, 2, 6, 6), {"kernel_size": (2, 2, 2)}),
    "no channels": ((2, 0, 6, 6), {"kernel_size": 2}),
    "no rows": ((2, 3, 0, 6), {"kernel_size": 2}),
}


@pytest.mark.parametrize("case", named(ERRORS))
@pytest.mark.parametrize("name", POOLS)
def test_errors(name: str, case: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    ours, torchs = POOLS[name]
    raises_like(torchs, ours, randn(*case[0]), **case[1])


def test_errors_of_one_function() -> None:
    raises_like(F.max_pool2d, tnn.max_pool2d, randn(6, 6), 2)
    with pytest.raises(RuntimeError, match="4D"):  # torch raises an IndexError about its axes
        tnn.avg_pool2d(randn(6, 6), 2)
    raises_like(F.max_pool2d, tnn.max_pool2d, randn(1, 2, 6, 6), 2, dilation=0)
    raises_like(
        F.max_pool2d, tnn.max_pool2d, randn(1, 2, 6, 6), 3, padding=2, dilation=2
    )  # the limit is half of the undilated kernel
    raises_like(F.max_pool2d, tnn.max_pool2d, randn(1, 2, 6, 6) > 0, 2)
    raises_like(F.avg_pool2d, tnn.avg_pool2d, randn(1, 2, 6, 6), 2, divisor_override=0)
