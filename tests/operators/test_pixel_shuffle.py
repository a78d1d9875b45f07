"""Pixel shuffle and its inverse: layouts, leading axes, dtypes, special values, errors. Results have torch's bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trinn
import trinn.layers as tnn
from tests.support.cases import named
from tests.support.check import DEVICE, DTYPES, check, raises_like, randn

LAST = torch.channels_last
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "several blocks": ((3, 18, 5, 7), 3),
    "long rows": ((1, 4, 1, 301), 2),
    "one channel": ((2, 9, 4, 5), 3),
    "one pixel": ((2, 8, 1, 1), 2),
    "factor 1": ((2, 3, 4, 5), 1),
    "unbatched": ((8, 3, 4), 2),
    "two leading axes": ((2, 3, 4, 3, 2), 2),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: (
        x.contiguous(memory_format=LAST) if x.dim() == 4 else x.movedim(-3, -1).contiguous().movedim(-1, -3)
    ),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every second column": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "expanded": lambda x: x[..., :1, :].expand(x.shape),
}


@pytest.mark.parametrize("layout", named(LAYOUTS))
@pytest.mark.parametrize("case", named(SHAPES))
def test_equals_torch(case: tuple[tuple[int, ...], int], layout: Callable[[Tensor], Tensor]) -> None:
    shape, factor = case
    check(tnn.pixel_shuffle, F.pixel_shuffle, layout(randn(*shape)), upscale_factor=factor)
    sizes = shape[-3] // factor**2, shape[-2] * factor, shape[-1] * factor
    check(tnn.pixel_unshuffle, F.pixel_unshuffle, layout(randn(*shape[:-3], *sizes)), downscale_factor=factor)


@pytest.mark.parametrize("shape", [(0, 8, 3, 4), (2, 0, 3, 4), (2, 4, 0, 3), (2, 4, 0, 0), (0, 3, 3)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    """Results and gradients have their shapes. On a CPU torch's inverse returns its input if that is empty."""
    x = randn(*shape).requires_grad_()
    y, torchs = tnn.pixel_shuffle(x, 2), F.pixel_shuffle(x, 2)
    assert y.shape == torchs.shape and y.stride() == torchs.stride()
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape and tnn.pixel_unshuffle(y, 2).shape == shape


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_dtypes(dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, LAST):
        x = (randn(2, 12, 3, 5) * 3).to(dtype).contiguous(memory_format=layout)
        y = tnn.pixel_shuffle(x, 2)
        assert y.dtype == dtype and torch.equal(y, F.pixel_shuffle(x, 2))
        assert torch.equal(tnn.pixel_unshuffle(y, 2), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_special_values(dtype: torch.dtype) -> None:
    """NaN, infinities, zeros with a sign and subnormal numbers keep their bits, forward and backward."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 6e-8, 1e-40, 1.0], dtype=dtype)
    x = special.to(DEVICE).repeat(3).view(1, 4, 2, 3).requires_grad_()
    y = tnn.pixel_shuffle(x, 2)
    (dx,) = torch.autograd.grad(y, x, y.detach())
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(y.detach().view(bits), F.pixel_shuffle(x.detach(), 2).view(bits))
    assert torch.equal(dx.view(bits), x.detach().view(bits))


def test_result_is_no_view() -> None:
    """As in torch, the result has its own memory, with factor 1 too."""
    x = randn(1, 2, 3, 4)
    for function in (tnn.pixel_shuffle, tnn.pixel_unshuffle):
        assert function(x, 1).data_ptr() != x.data_ptr() and torch.equal(function(x, 1), x)


def test_lazily_negated() -> None:
    x = torch.complex(randn(4, 3, 2), randn(4, 3, 2)).conj().imag
    assert x.is_neg()
    check(tnn.pixel_shuffle, F.pixel_shuffle, x, upscale_factor=2)


def test_convert() -> None:
    model = torch.nn.Sequential(torch.nn.PixelUnshuffle(2), torch.nn.PixelShuffle(2)).to(DEVICE)
    x = randn(1, 2, 4, 6)
    trinn.convert(model)
    assert [type(module) for module in model] == [tnn.PixelUnshuffle, tnn.PixelShuffle]
    assert torch.equal(model(x), x)


SHUFFLE_ERRORS: dict[str, tuple[tuple[int, ...], Any, str]] = {
    "factor 0": ((1, 4, 2, 2), 0, "pixel_shuffle expects a positive upscale_factor, but got 0"),
    "factor -2": ((1, 4, 2, 2), -2, "pixel_shuffle expects a positive upscale_factor, but got -2"),
    "channels": ((1, 6, 2, 2), 2, "divisible by the square of upscale_factor, but input.size(-3)=6 is not divisible by 4"),
    "two axes": ((2, 2), 2, "at least 3 dimensions, but got input with 2 dimension(s)"),
    "two axes and factor 0": ((2, 2), 0, "at least 3 dimensions, but got input with 2 dimension(s)"),
    "factor of float": ((1, 4, 2, 2), 2.0, "argument 'upscale_factor' (position 2) must be int"),
    "square too large": ((1, 4, 2, 2), 3037000500, "upscale factor is too large, (upscale_factor)^2 overflowed"),
    "largest square": ((1, 4, 2, 2), 3037000499, "is not divisible by 9223372030926249001"),
}
UNSHUFFLE_ERRORS: dict[str, tuple[tuple[int, ...], Any, str]] = {
    "factor 0": ((1, 4, 2, 2), 0, "pixel_unshuffle expects a positive downscale_factor, but got 0"),
    "height": (
        (1, 4, 3, 2),
        2,
        "expects height to be divisible by downscale_factor, but input.size(-2)=3 is not divisible by 2",
    ),
    "width": ((1, 4, 2, 3), 2, "expects width to be divisible by downscale_factor, but input.size(-1)=3 is not divisible by 2"),
    "both": ((1, 4, 3, 3), 2, "expects height to be divisible by downscale_factor"),
    "one axis": ((2,), 2, "at least 3 dimensions, but got input with 1 dimension(s)"),
    "factor of text": ((1, 4, 2, 2), "2", "argument 'downscale_factor' (position 2) must be int"),
}
ERRORS = [("pixel_shuffle", *case) for case in SHUFFLE_ERRORS.values()]
ERRORS += [("pixel_unshuffle", *case) for case in UNSHUFFLE_ERRORS.values()]


@pytest.mark.parametrize(("name", "shape", "factor", "text"), ERRORS)
def test_errors(name: str, shape: tuple[int, ...], factor: Any, text: str) -> None:
    """torch's exceptions, with torch's texts."""
    ours, torchs, x = getattr(tnn, name), getattr(F, name), randn(*shape)
    raises_like(torchs, ours, x, factor)
    for function in (ours, torchs):
        with pytest.raises(Exception) as raised:
            function(x, factor)
        assert text in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn, torch.complex32])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_dtype_errors(dtype: torch.dtype) -> None:
    raises_like(F.pixel_shuffle, tnn.pixel_shuffle, torch.zeros(1, 4, 2, 2, dtype=dtype), 2)


def test_complex() -> None:
    with pytest.raises(NotImplementedError, match="complex64"):
        tnn.pixel_shuffle(torch.zeros(1, 4, 2, 2, dtype=torch.complex64), 2)
