"""Copies for the TMA kernels: channels or images innermost, and float32 as three bf16 terms whose sum is the number."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.cases import named
from tests.support.check import DEVICE, randn
from trinn.kernels.conv2d.relayout import to_bf16_terms, to_channels_last, to_images_last
from trinn.kernels.runtime.launch import intercepted

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LAST = torch.channels_last
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: randn(3, 5, 6, 7),
    "several tiles along each axis": lambda: randn(18, 19, 4, 8),
    "sizes of 16": lambda: randn(16, 32, 4, 4),
    "channels_last": lambda: randn(3, 5, 6, 7).contiguous(memory_format=LAST),
    "channels_last, a slice of channels and columns": lambda: randn(3, 12, 6, 9).contiguous(memory_format=LAST)[:, 2:8, :, 1:8],
    "every second and third": lambda: randn(6, 13, 6, 7)[1::2, ::3, 1:6, ::2],
    "expanded": lambda: randn(1, 5, 1, 7).expand(3, 5, 6, 7),
    "one number expanded": lambda: randn(1, 1, 1, 1).expand(3, 5, 6, 7),
    "transposed": lambda: randn(5, 3, 7, 6).permute(1, 0, 3, 2),
    "images innermost": lambda: randn(5, 6, 7, 20).permute(3, 0, 1, 2),
    "rows innermost": lambda: randn(3, 5, 7, 6).transpose(2, 3),
    "overlapping windows": lambda: randn(40).as_strided((2, 3, 4, 5), (1, 1, 5, 2)),
    "one image": lambda: randn(1, 5, 6, 7),
    "one channel": lambda: randn(3, 1, 6, 7),
    "one pixel": lambda: randn(3, 5, 1, 1),
    "one element": lambda: randn(1, 1, 1, 1),
    "no images": lambda: randn(0, 5, 6, 7),
    "no channels": lambda: randn(3, 0, 6, 7),
}


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values rounded to a dtype, with the same strides, even if elements share memory."""
    first, last = x.storage_offset(), x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    if x.numel() == 0:
        return x.to(dtype)
    memory = x.as_strided((last + 1,), (1,), 0).to(dtype)
    return memory.as_strided(x.shape, x.stride(), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", named(LAYOUTS))
def test_channels_last(layout: Callable[[], Tensor], dtype: torch.dtype) -> None:
    x = in_dtype(layout(), dtype)
    n, c, h, w = x.shape
    for channels in (c or 1, c + 3, math.ceil((c + 1) / 8) * 8):
        got = to_channels_last(x, channels)
        assert got.shape == (n, channels, h, w) and got.stride() == (h * w * channels, 1, w * channels, channels)
        assert got.dtype == dtype and got.data_ptr() % 16 == 0
        assert torch.equal(got[:, :c], x) and not got[:, c:].any()
    assert c == 0 or torch.equal(to_channels_last(x), x)


def test_channels_last_already() -> None:
    """The input is returned. Strides along axes of one element become canonical."""
    x = randn(3, 8, 6, 7).contiguous(memory_format=LAST)
    assert to_channels_last(x) is x and to_channels_last(x, 8) is x
    for shape, strides in (((1, 8, 6, 7), (3, 1, 56, 8)), ((3, 1, 6, 7), (42, 99, 7, 1)), ((3, 8, 1, 1), (8, 1, 5, 77))):
        x = randn(336).as_strided(shape, strides)
        got, (_, c, h, w) = to_channels_last(x), shape
        assert got.data_ptr() == x.data_ptr() and got.shape == shape and got.stride() == (h * w * c, 1, w * c, c)


def test_channels_last_from_an_odd_address() -> None:
    x = randn(1001)[1:].as_strided((2, 4, 5, 6), (120, 1, 24, 4))
    got = to_channels_last(x)
    assert got.data_ptr() % 16 == 0 and torch.equal(got, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", named(LAYOUTS))
def test_images_last(layout: Callable[[], Tensor], dtype: torch.dtype) -> None:
    """The gaps between rows are not written: fresh memory is NaN here."""
    x = in_dtype(layout(), dtype)
    n, c, h, w = x.shape
    for least in (4, 8):
        pitch = math.ceil(n / least) * least
        got = to_images_last(x, least)
        assert got.dtype == dtype and torch.equal(got, x)
        if x.numel():
            assert got.stride() == (1, pitch, w * c * pitch, c * pitch)
            assert got.as_strided((pitch - n, c, h, w), got.stride(), n).isnan().all()


def torchs_terms(x: Tensor) -> Tensor:
    largest = torch.finfo(torch.bfloat16).max
    first = torch.where(x.isinf(), x, x.clamp(-largest, largest)).bfloat16()
    rest = torch.where(x.isfinite(), x - first.float(), 0)
    second = rest.bfloat16()
    return torch.cat([first, second, (rest - second.float()).bfloat16()], dim=1)


def same_bits(got: Tensor, expected: Tensor) -> bool:
    """Whether both have NaN at the same positions and equal bits elsewhere."""
    nan = expected.isnan()
    return torch.equal(got.isnan(), nan) and torch.equal(got.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])


@pytest.mark.parametrize("layout", named(LAYOUTS))
def test_bf16_terms(layout: Callable[[], Tensor]) -> None:
    x = layout()
    n, c, h, w = x.shape
    got = to_bf16_terms(x)
    assert got.dtype == torch.bfloat16 and got.shape == (n, 3 * c, h, w)
    if x.numel():
        assert got.stride() == (3 * h * w * c, 1, 3 * w * c, 3 * c)
    assert same_bits(got, torchs_terms(x))
    assert torch.equal(got.double().view(n, 3, c, h, w).sum(1), x.double())


def image_of(bits: list[int]) -> Tensor:
    """The float32 numbers with these bits, and their negatives: (1, C, 1, 1)."""
    both = torch.tensor(bits + [b - 2**31 for b in bits], dtype=torch.int32)
    return both.view(torch.float32).view(1, -1, 1, 1).to(DEVICE)


def every_exponent() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    fractions = torch.randint(2**23, (255, 16), generator=generator)
    return image_of((torch.arange(255)[:, None] * 2**23 + fractions).flatten().tolist())


EDGES = {
    "ties, to even": [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x3F80FFFF, 0x3FFF8000],
    "a tie in the second term": [0x3F800080, 0x3F808080, 0x3F808180, 0x3F800180],
    "the largest, which would round to infinity": [0x7F7FFFFF, 0x7F7F8000, 0x7F7F8001, 0x7F7F7FFF, 0x7F7F0000, 0x7F7E8000],
    "infinite": [0x7F800000],
    "NaN of any bits": [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0x7F808000],
    "zero": [0],
    "the smallest with 24 exact bits": [0x08FFFFFF, 0x08800000, 0x08800001],
    "subnormal": [1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x7FFFFF, 0x400000, 0x00800000, 0x00800001],
}


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")
@pytest.mark.parametrize("bits", named(EDGES))
def test_bf16_terms_of_special_values(bits: list[int]) -> None:
    x = image_of(bits)
    got = to_bf16_terms(x)
    assert same_bits(got, torchs_terms(x))
    first, second, third = got.chunk(3, dim=1)
    assert torch.equal(first.isinf(), x.isinf())
    assert not second[~x.isfinite()].any() and not third[~x.isfinite()].any()


def test_bf16_terms_sum_to_the_number() -> None:
    """The sum is exact from 2^-110 on. For smaller numbers the error is at most half of bfloat16's smallest number."""
    x = every_exponent()
    got = to_bf16_terms(x)
    assert same_bits(got, torchs_terms(x))
    error = (got.double().view(3, -1).sum(0) - x.double().flatten()).abs()
    assert not error[x.flatten().abs() >= 2.0**-110].any() and error.max() <= 2.0**-134


def launched(copy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments and constants of the kernel launched by a copy."""
    launches: list[tuple[Any, ...]] = []
    with intercepted(lambda kernel, _, args, constants: launches.append((args, constants)), "sm_90"):
        copy(x)
    (found,) = launches
    return found


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: to_channels_last(x, x.shape[1] + 6),
    "images_last": to_images_last,
    "terms": to_bf16_terms,
}


@pytest.mark.parametrize("copy", named(COPIES))
@pytest.mark.parametrize("layout", named({name: LAYOUTS[name] for name in LAYOUTS if not name.startswith("no ")}))
def test_vector_accesses(layout: Callable[[], Tensor], copy: Callable[[Tensor], Tensor]) -> None:
    """The contiguity hints for the compiler, which the interpreter ignores: a run is aligned to its length and has one mask."""
    (_, _, x_strides, out_strides, sizes, filled, term_pitch), constants = launched(copy, layout())
    tile = constants["TILE"]
    lane, row = (torch.arange(math.ceil(n / t) * t) for n, t in zip(sizes[:2], tile, strict=True))
    outer = torch.zeros(1, dtype=torch.int64)
    for strides, run, lanes, pitch in (
        (x_strides, (constants["X_LANES"], constants["X_ROWS"]), filled, 0),
        (out_strides, (constants["OUT_LANES"], 1), sizes[0], term_pitch),
    ):
        exists = (lane < lanes)[:, None] & (row < sizes[1])[None, :]
        of_outer = outer
        for size, stride in zip(sizes[2], strides[2], strict=True):
            of_outer = (of_outer[:, None] + torch.arange(size) * stride).flatten()
        at = of_outer[:, None, None] + lane[:, None] * strides[0] + row * strides[1]
        for start in (at, at + pitch):
            runs = start.unfold(1, run[0], run[0]).unfold(2, run[1], run[1]).flatten(3).flatten(0, 2)
            length = max(run)
            assert (runs[:, 0] % length == 0).all() and (runs == runs[:, :1] + torch.arange(length)).all()
        masks = exists.unfold(0, run[0], run[0]).unfold(1, run[1], run[1]).flatten(2)
        assert (masks.all(-1) == masks.any(-1)).all()


def test_accesses_of_16_bytes() -> None:
    """Accesses have 16 bytes if the axes allow it. The axes need not be multiples of 16."""
    for dtype, most in ((torch.float16, 8), (torch.float32, 4)):
        x = randn(8, 24, 2, 8).to(dtype)
        for copy in (to_channels_last, to_images_last):
            for image in (x, x.transpose(2, 3).contiguous().transpose(2, 3)):
                _, constants = launched(copy, image)
                assert (constants["X_ROWS"], constants["OUT_LANES"]) == (2 if image is not x else most, most)
        x = x.contiguous(memory_format=LAST)
        assert launched(to_images_last, x)[1]["X_ROWS"] == most
        assert launched(lambda x: to_channels_last(x, 32), x)[1]["X_LANES"] == most
