"""The mean of each (H, W) plane of one channel, and its gradient: adaptive average pooling to one pixel."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.support.cases import named
from tests.support.check import DTYPES, randn
from trinn.kernels import ops
from trinn.kernels.reduce import plane_mean
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.settings import settings

CASES: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: randn(3, 5, 4, 6),
    "small planes: several per tile": lambda: randn(4, 37, 7, 7),
    "few large planes, in splits": lambda: randn(2, 1, 41, 83),
    "channels_last": lambda: randn(3, 5, 4, 6).contiguous(memory_format=torch.channels_last),
    "channels_last, past one tile": lambda: randn(2, 70, 7, 7).contiguous(memory_format=torch.channels_last),
    "channels_last, in splits": lambda: randn(1, 3, 61, 53).contiguous(memory_format=torch.channels_last),
    "one pixel": lambda: randn(3, 5, 1, 1),
    "one column": lambda: randn(3, 5, 9, 1),
    "no image": lambda: randn(0, 5, 4, 6),
    "every second channel": lambda: randn(3, 6, 5, 4).contiguous(memory_format=torch.channels_last)[:, ::2],
    "every second row and column": lambda: randn(2, 3, 9, 8)[:, :, 1::2, ::2],
    "transposed planes": lambda: randn(2, 3, 5, 4).mT,
    "images innermost": lambda: randn(3, 4, 6, 5).permute(3, 1, 0, 2),
    "expanded": lambda: randn(1, 3, 1, 5).expand(2, 3, 4, 5),
    "storage offset that breaks alignment": lambda: randn(121)[1:].view(2, 3, 4, 5),
}


@pytest.mark.parametrize("case", named(CASES))
def test_is_torchs(case: Callable[[], Tensor]) -> None:
    x = case()
    torchs = torch.nn.functional.adaptive_avg_pool2d(x, 1)
    y = plane_mean(x)
    torch.testing.assert_close(y, torchs)
    assert y.stride() == torchs.contiguous(memory_format=torch.contiguous_format).stride()
    assert torch.equal(y, plane_mean(x))


def _gradient(dy: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    return ops.avg_pool2d_backward(dy, size, (), (), (), True, None, channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", named(CASES))
def test_gradient_is_each_pixels_share(case: Callable[[], Tensor], channels_last: bool) -> None:
    x = case()
    dy = randn(*x.shape[:2], 2, 1, seed=1)[:, :, :1]
    dx = _gradient(dy, x.shape[2:], channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    torch.testing.assert_close(dx, (dy / (x.shape[2] * x.shape[3])).expand(x.shape), rtol=0, atol=0)
    assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    """Sums are in float32, or in float64 for float64, and are rounded once."""
    x = (randn(2, 3, 31, 29) + 20).to(dtype)
    y, exact = plane_mean(x), x.double().mean((2, 3), keepdim=True)
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype), rtol=torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-6, atol=0)
    dx = _gradient(y, (31, 29), False)
    assert dx.dtype == dtype
    torch.testing.assert_close(dx[..., 5, 7], (y.double() / 899).to(dtype)[..., 0, 0], rtol=torch.finfo(dtype).eps, atol=0)


def test_not_finite() -> None:
    x = randn(2, 2, 5, 5)
    x[0, 0, 2, 3], x[0, 1, 0, 0], x[1, 0, 4, 4] = float("inf"), float("-inf"), float("nan")
    torch.testing.assert_close(plane_mean(x), x.mean((2, 3), keepdim=True), equal_nan=True)


def test_no_pixels() -> None:
    assert plane_mean(randn(2, 3, 0, 4)).isnan().all() and _gradient(randn(2, 3, 1, 1), (0, 4), True).shape == (2, 3, 0, 4)


def test_enough_programs_to_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program or more for each of an H200's 132 multiprocessors."""
    from trinn.kernels import reduce
    from trinn.kernels.device import planes

    monkeypatch.setattr(settings, "wanted_programs", 264)
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(planes, "elementwise_block", lambda elements: 1024)
    monkeypatch.setattr(planes, "INTERPRETED", False)
    started: list[int] = []
    monkeypatch.setattr(reduce, "launch", lambda kernel, programs, *args, **options: started.append(programs))
    for shape in ((1, 8, 512, 512), (64, 2048, 7, 7), (8, 64, 112, 112)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            plane_mean(torch.empty(shape, device="meta", memory_format=memory_format))
            assert started[0] >= 132, (shape, memory_format)
            started.clear()
