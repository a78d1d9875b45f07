"""Adaptive average and max pooling: values, layouts, dtypes, ties, NaN and errors."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, raises_like, randn
from trinn.kernels.device.indexing import max_in_bin

INF, NAN = float("inf"), float("nan")


class Adaptive(NamedTuple):
    """x (N, C, H, W) and the size of the result."""

    x: tuple[int, ...]
    size: Any


CASES = {
    "alexnet: as many bins as pixels": Adaptive((2, 3, 6, 6), (6, 6)),
    "resnet: one bin": Adaptive((2, 5, 7, 7), 1),
    "bins divide the image": Adaptive((2, 3, 8, 6), (4, 2)),
    "bins overlap": Adaptive((2, 3, 7, 5), (3, 4)),
    "more bins than pixels": Adaptive((2, 3, 3, 4), (5, 7)),
    "more rows, fewer columns": Adaptive((1, 2, 3, 11), (8, 4)),
    "one axis unchanged": Adaptive((2, 3, 5, 6), (None, 3)),
    "both axes unchanged": Adaptive((1, 2, 3, 4), (None, None)),
    "one-pixel image": Adaptive((2, 3, 1, 1), (2, 3)),
    "unbatched": Adaptive((3, 5, 7), (2, 3)),
    "empty batch": Adaptive((0, 3, 6, 6), 4),
    "a bin of more pixels than a byte can count": Adaptive((1, 1, 17, 18), 1),
    "more channels than a block": Adaptive((1, 37, 5, 4), (2, 2)),
}
POOLS: dict[str, tuple[Any, Any]] = {
    "avg": (tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d),
    "max": (tnn.adaptive_max_pool2d, F.adaptive_max_pool2d),
}


@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: Adaptive) -> None:
    x = randn(*case.x)
    check(tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d, x, output_size=case.size)
    check(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, x, output_size=case.size, return_indices=True)
    check(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, x, output_size=case.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    x = randn(2, 3, 7, 6, dtype=dtype)
    check(tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d, x, output_size=(3, 4))
    check(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, x, output_size=(3, 4), return_indices=True)


LAYOUTS = {
    "channels_last": lambda: randn(2, 5, 6, 7).contiguous(memory_format=torch.channels_last),
    "one channel, channels_last": lambda: randn(2, 1, 6, 7).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: randn(2, 5, 7, 6).transpose(2, 3),
    "every second row, from an odd address": lambda: randn(2, 5, 12, 7)[:, :, 1::2],
    "expanded": lambda: randn(1, 5, 6, 7).expand(2, 5, 6, 7),
    "unbatched, channels innermost": lambda: randn(6, 7, 5).permute(2, 0, 1),
}


@pytest.mark.parametrize("layout", named(LAYOUTS))
@pytest.mark.parametrize("size", [1, (4, 3)])
def test_layouts(layout: Any, size: Any) -> None:
    check(tnn.adaptive_avg_pool2d, F.adaptive_avg_pool2d, layout(), output_size=size)
    check(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, layout(), output_size=size, return_indices=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", POOLS)
def test_gradient_keeps_the_format(name: str, memory_format: torch.memory_format) -> None:
    """The input's gradient has the input's memory format.

    The upstream gradient comes from `flatten` and is contiguous. It must not change the format for all earlier layers.
    """
    ours, torchs = POOLS[name]
    for size in (1, 4):
        x = randn(2, 5, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
        dx, expected = (torch.autograd.grad(pool(x, size).flatten(1).square().sum(), x)[0] for pool in (ours, torchs))
        assert dx.stride() == x.stride()
        torch.testing.assert_close(dx, expected)


HARD = {
    "several NaN: the last": [[NAN, 1.0, 2.0], [NAN, INF, 3.0], [1.0, 2.0, 3.0]],
    "all -inf": [[-INF] * 3] * 3,
    "ties: the first": [[2.0] * 3] * 3,
    "-0. before 0.": [[-0.0, 0.0, -1.0], [-1.0, 0.0, -0.0], [-1.0, -1.0, -1.0]],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", named(HARD))
def test_hard_values(values: list[list[float]], dtype: torch.dtype) -> None:
    """Value, index, sign and gradient are torch's."""
    x = torch.tensor([[values]], dtype=dtype, device=DEVICE, requires_grad=True)
    for size in (1, 2, 5):
        (y, indices, dx), (torchs_y, torchs_indices, torchs_dx) = (
            (y, indices, torch.autograd.grad(y, x, torch.ones_like(y))[0])
            for y, indices in (pool(x, size, return_indices=True) for pool in POOLS["max"])
        )
        assert torch.equal(indices, torchs_indices)
        torch.testing.assert_close(y, torchs_y, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(dx, torchs_dx, rtol=0, atol=0)
        assert torch.equal(y.signbit(), torchs_y.signbit()) or y.isnan().any()


def test_argmax_beyond_a_byte() -> None:
    """Pixels 306 and 323 of a bin of 324 are the maxima."""
    x = torch.arange(2.0 * 18 * 18, device=DEVICE).view(1, 2, 18, 18)
    x[0, 0] = x[0, 0].flip(1)
    check(tnn.adaptive_max_pool2d, F.adaptive_max_pool2d, x, output_size=1, return_indices=True)


def test_infinities_in_a_mean() -> None:
    x = torch.tensor([[[[INF, -INF, 1.0, INF]]]], device=DEVICE)
    for size in (1, 2, (1, 3), (2, 5)):
        torch.testing.assert_close(tnn.adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(x, size), equal_nan=True)


def test_max_in_bin() -> None:
    """Compare with the extents of the bins, for downsampling and upsampling."""
    for size in range(1, 14):
        for bins in range(1, 14):
            extents = [-(-(i + 1) * size // bins) - i * size // bins for i in range(bins)]
            assert max_in_bin(size, bins) == max(extents)
    assert max_in_bin(0, 4) == max_in_bin(4, 0) == 0


BINS: Any = ((), (), ())
ERRORS: dict[str, tuple[tuple[int, ...], Any]] = {
    "five axes": ((1, 1, 2, 6, 6), 2),
    "two axes": ((6, 6), 2),
    "negative size": ((1, 2, 6, 6), -1),
    "one size": ((1, 2, 6, 6), (2,)),
    "three sizes": ((1, 2, 6, 6), (2, 2, 2)),
    "no sizes": ((1, 2, 6, 6), None),
    "a float": ((1, 2, 6, 6), 2.0),
    "no rows": ((2, 3, 0, 6), 2),
}


@pytest.mark.parametrize("case", named(ERRORS))
@pytest.mark.parametrize("name", POOLS)
def test_errors(name: str, case: tuple[tuple[int, ...], Any]) -> None:
    ours, torchs = POOLS[name]
    raises_like(torchs, ours, randn(*case[0]), case[1])


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_unsupported_dtypes(name: str, dtype: torch.dtype) -> None:
    ours, torchs = POOLS[name]
    raises_like(torchs, ours, torch.zeros(1, 2, 6, 6, device=DEVICE).to(dtype), 2)


@pytest.mark.parametrize("name", POOLS)
def test_no_bins(name: str) -> None:
    """The result is empty, as in torch; the gradient is zero, and torch's raises."""
    ours, torchs = POOLS[name]
    x = randn(2, 3, 4, 5).requires_grad_()
    y = ours(x, (0, 2))
    assert y.shape == torchs(x, (0, 2)).shape
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros_like(x))


def test_no_channels() -> None:
    """The mean is an empty tensor; the maximum raises."""
    x = torch.zeros(2, 0, 6, 6, device=DEVICE)
    assert tnn.adaptive_avg_pool2d(x, 2).shape == F.adaptive_avg_pool2d(x, 2).shape
    raises_like(F.adaptive_max_pool2d, tnn.adaptive_max_pool2d, x, 2)
