"""The TMA kernels of convolution: all passes against torch, interpreted, or on a Hopper GPU.

TMA is Hopper's copy engine. A TMA box is the block of a tensor moved by one TMA copy. wgrad sums over runs: consecutive columns
of a row, or a pixel in consecutive images.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

import trinn.layers as tnn
from tests.support.cases import Conv, named
from tests.support.check import DEVICE, check, randn
from tests.support.tma import check_fused, operands, tma_everywhere
from trinn.kernels import launchers
from trinn.kernels.conv2d.tma_box import Box, GatherAxis, best_box, best_run
from trinn.kernels.device.indexing import Axis, hitting_taps, small_pixels_hit
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.hardware import architecture_of
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

HOPPER = INTERPRETED or architecture_of(torch.device(DEVICE)) == "sm_90"
pytestmark = pytest.mark.skipif(not HOPPER, reason="this GPU has no TMA")

# The dtype, and torch's flag for float32; "ieee" selects bf16 terms.
ARITHMETIC = {
    "bf16": (torch.bfloat16, "tf32"),
    "fp16": (torch.float16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}

CASES = {
    "3x3": Conv((2, 16, 5, 6), (24, 16, 3, 3), {"padding": 1}),
    "3x3, more images than a box has": Conv((70, 16, 2, 2), (16, 16, 3, 3), {"padding": 1}),
    "more channels than a block, no multiple of it": Conv((2, 48, 3, 4), (40, 48, 1, 3), {"padding": 1}),
    "channels no multiple of 16: filters padded": Conv((2, 24, 4, 5), (16, 24, 3, 3), {"padding": 1}),
    "1x1: all pixels are one row": Conv((2, 32, 6, 5), (24, 32, 1, 1)),
    "1x1, planes of a multiple of 16 bytes: contiguous images are read in place": Conv((2, 32, 4, 6), (24, 32, 1, 1)),
    "1x1, padded": Conv((2, 16, 4, 5), (16, 16, 1, 1), {"padding": (1, 2)}),
    "1x1, stride 2: a view of every other pixel": Conv((2, 16, 6, 7), (16, 16, 1, 1), {"stride": 2}),
    "stride 2, even width: pairs of columns": Conv((3, 16, 5, 6), (16, 16, 3, 3), {"stride": 2, "padding": 1}),
    "stride 2, odd width: boxes of one column": Conv((18, 16, 3, 5), (16, 16, 3, 3), {"stride": 2, "padding": 1}),
    "stride 3 along the rows, dilation along the columns": Conv(
        (2, 16, 7, 5), (16, 16, 2, 3), {"stride": (3, 1), "padding": (2, 0), "dilation": (1, 2)}
    ),
    "stride 3 along the columns": Conv((2, 16, 3, 12), (16, 16, 1, 5), {"stride": (1, 3), "padding": (0, 2)}),
    "stride and dilation share a factor": Conv(
        (2, 16, 7, 6), (16, 16, 3, 2), {"stride": 2, "dilation": (2, 4), "padding": (2, 3)}
    ),
    "dilation 6: most taps are outside the image": Conv((2, 16, 7, 7), (16, 16, 3, 3), {"padding": 6, "dilation": 6}),
    "padding wider than the kernel": Conv((1, 16, 4, 4), (16, 16, 2, 3), {"padding": (4, 5), "stride": 2}),
    "k4 s2 p1: four phases": Conv((2, 16, 6, 4), (16, 16, 4, 4), {"stride": 2, "padding": 1}),
    "k2 s2: phases of one tap": Conv((2, 16, 6, 8), (16, 16, 2, 2), {"stride": 2}),
    "same, even kernel: one more row at the far edge": Conv((2, 16, 4, 5), (16, 16, 4, 2), {"padding": "same"}),
    "groups": Conv((2, 32, 3, 4), (32, 16, 3, 3), {"groups": 2, "padding": 1}),
    "narrow groups: four merged": Conv((2, 32, 4, 5), (32, 4, 3, 3), {"groups": 8, "padding": 1}),
    "narrow groups, more filters than channels, stride 2": Conv(
        (3, 16, 4, 4), (48, 8, 3, 3), {"groups": 2, "padding": 1, "stride": 2}
    ),
    "one-pixel images": Conv((3, 16, 1, 1), (16, 16, 3, 3), {"padding": 1}),
    "one output pixel": Conv((2, 16, 5, 4), (16, 16, 5, 4)),
    "unbatched, no bias": Conv((16, 5, 6), (16, 16, 3, 3), bias=False),
}


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Use TMA wherever possible, and large tiles in other kernels. Yield the names of launched TMA kernels."""
    monkeypatch.setattr(settings, "interpreted_block", 4096)
    with tma_everywhere() as names:
        yield names


def set_precision(arithmetic: str) -> torch.dtype:
    """Set torch's flag for float32 convolutions, and return the dtype."""
    dtype, torch.backends.cudnn.conv.fp32_precision = ARITHMETIC[arithmetic]
    return dtype


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", named(CASES))
def test_equals_torch(case: Conv, layout: str, started: list[str]) -> None:
    check(tnn.conv2d, F.conv2d, *operands(case, set_precision("bf16"), layout), **case.options)
    assert started.count("_conv2d_gather_tma_kernel") == 2, "fprop and dgrad"


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", named(CASES))
def test_tf32(case: Conv, started: list[str]) -> None:
    check(tnn.conv2d, F.conv2d, *operands(case, set_precision("tf32"), "channels_last"), **case.options)
    assert "_conv2d_gather_tma_kernel" in started


@pytest.mark.parametrize("case", named({name: case for name, case in CASES.items() if case.x[0] < 4 and "same" not in name}))
def test_bf16_terms(case: Conv, started: list[str]) -> None:
    """Cases with few images only, because float32 takes six times as long."""
    check(tnn.conv2d, F.conv2d, *operands(case, set_precision("fp32"), "channels_last"), **case.options)
    assert "_conv2d_gather_tma_kernel" in started


@pytest.mark.parametrize("arithmetic", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("images", "stride"), [(16, 1), (19, 2)])
def test_runs_of_images(arithmetic: str, layout: str, images: int, stride: int, started: list[str]) -> None:
    """wgrad along the images, with several taps per program and a partial last run."""
    case = Conv((images, 16, 2, 4), (24, 16, 2, 3), {"stride": stride, "padding": 1}, bias=False)
    check(tnn.conv2d, F.conv2d, *operands(case, set_precision(arithmetic), layout), **case.options)
    assert started.count("_conv2d_wgrad_tma_kernel") == 1


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
def test_more_splits_than_runs(arithmetic: str, monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    """Taps of the first row read one row of an image: 5 runs in 6 splits."""
    monkeypatch.setattr(settings, "wanted_programs", 264)
    case = Conv((16, 16, 5, 5), (16, 16, 3, 3), {"padding": 4, "dilation": 4}, bias=False)
    x, w, _ = operands(case, set_precision(arithmetic), "channels_last")
    check(tnn.conv2d, F.conv2d, x, w, None, **case.options)
    assert started.count("_conv2d_wgrad_tma_kernel") == 1


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_runs_of_all_pixels(arithmetic: str, layout: str, started: list[str]) -> None:
    """wgrad of 1x1 filters treats all pixels as one run, and reads contiguous images in place."""
    x, dy, _ = operands(Conv((3, 16, 4, 8), (3, 32, 4, 8), bias=False), set_precision(arithmetic), "contiguous")
    if layout == "channels_last":
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))

    def torchs(x: Tensor, dy: Tensor) -> Tensor:
        w = torch.zeros(32, 16, 1, 1, dtype=x.dtype, device=x.device, requires_grad=True)
        dw = torch.autograd.grad(F.conv2d(x, w), w, dy)[0]
        return torch.empty_strided(dw.shape, (16, 1, 16, 16) if layout == "channels_last" else (16, 1, 1, 1)).to(dw).copy_(dw)

    check(lambda x, dy: launchers.conv2d_wgrad(x, dy, (1, 1), (1, 1), (0, 0), (1, 1), 1), torchs, x, dy)
    assert started == ["_conv2d_wgrad_tma_kernel"]


@pytest.mark.parametrize("arithmetic", ["bf16", "tf32", "fp32"])
def test_runs_of_narrow_groups(arithmetic: str, started: list[str]) -> None:
    """wgrad does not store products of one group's channels with another group's filters."""
    case = Conv((17, 16, 3, 3), (32, 4, 1, 3), {"groups": 4, "padding": (0, 1)}, bias=False)
    check(tnn.conv2d, F.conv2d, *operands(case, set_precision(arithmetic), "channels_last"), **case.options)
    assert started.count("_conv2d_wgrad_tma_kernel") == 1


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 5, "padding": 5}])
def test_runs_of_columns(arithmetic: str, options: dict[str, Any], started: list[str]) -> None:
    """wgrad along the columns, for a few large images."""
    case = Conv((2, 16, 2, 28), (24, 16, 2, 3), options, bias=False)
    check(tnn.conv2d, F.conv2d, *operands(case, set_precision(arithmetic), "channels_last"), **case.options)
    assert started.count("_conv2d_wgrad_tma_kernel") == 1


@pytest.mark.parametrize("taps", [3, 5])
def test_columns_of_taps(taps: int, started: list[str]) -> None:
    """If a row has one tap, a program of wgrad has several taps of a column; the last program may have fewer."""
    case = Conv((16, 24, 5, 3), (16, 24, taps, 1), {"stride": (2, 1), "padding": (1, 0)}, bias=False)
    check(tnn.conv2d, F.conv2d, *operands(case, torch.bfloat16, "channels_last"), **case.options)
    assert started.count("_conv2d_wgrad_tma_kernel") == 1


@pytest.mark.parametrize("arithmetic", ["bf16", "tf32", "fp32"])
def test_transposed(arithmetic: str, started: list[str]) -> None:
    x, w, b = (randn(*size, dtype=set_precision(arithmetic)) for size in ((16, 16, 1, 2), (16, 16, 4, 4), (16,)))
    check(tnn.conv_transpose2d, F.conv_transpose2d, x, w, b, stride=2, padding=1, output_padding=1)
    assert started.count("_conv2d_gather_tma_kernel") == 2 and started.count("_conv2d_wgrad_tma_kernel") == 1


def test_views(started: list[str]) -> None:
    """A slice of channels, or every other image, of a channels_last tensor is read in place; misaligned ones are copied."""
    w = randn(16, 16, 3, 3, dtype=torch.bfloat16, seed=1)
    large = randn(4, 48, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    for x in (large[:, 16:32], large[::2, 8:24], large[:, 1:17], large[:1, :16].expand(3, 16, 3, 3), large[:, :16].mT):
        check(tnn.conv2d, F.conv2d, x, w, None, padding=1)
    assert started.count("_conv2d_gather_tma_kernel") == (10 if INTERPRETED else 9), (
        "a GPU's tile is too large for the last dgrad"
    )


def test_results_as_rows(started: list[str]) -> None:
    """20 filters of 1x1: images of one column, and images with planes of a multiple of 16 bytes but other planes in the result.

    A plane is (H, W) of one channel.
    """
    column = randn(2, 16, 3, 1, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    top = randn(2, 16, 8, 5, dtype=torch.bfloat16)[:, :, :3]
    for x in (column, top):
        check(tnn.conv2d, F.conv2d, x, randn(20, 16, 1, 1, dtype=torch.bfloat16, seed=1), None)
    assert started.count("_conv2d_gather_tma_kernel") == 2, "dgrad of 20 filters uses the pointer kernel"


def test_rows_with_gaps(started: list[str]) -> None:
    """1x1 filters merge rows only if all pixels are contiguous, with channels or pixels innermost."""
    w = randn(16, 16, 1, 1, dtype=torch.bfloat16, seed=1)
    for order in (torch.channels_last, torch.contiguous_format):
        large = randn(4, 16, 4, 8, dtype=torch.bfloat16).contiguous(memory_format=order)
        for x in (large[:1, ..., :4], large[:, :, :2], large[1:3, :, 1:], large[::2]):
            check(tnn.conv2d, F.conv2d, x, w, None)
    assert started.count("_conv2d_gather_tma_kernel") == 16


def test_windows_past_the_far_edge(started: list[str]) -> None:
    """Launchers accept a result with windows past the far edge of the image. Pixels outside of the image are zero."""
    x, dy = (randn(18, 16, n, n, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last) for n in (2, 3))
    geometry = (1, 1), (0, 0), (1, 1), 1
    wide, w = F.pad(x, (0, 1, 0, 1)), randn(16, 16, 1, 1, dtype=torch.bfloat16)
    assert torch.equal(launchers.conv2d_wgrad(x, dy, (1, 1), *geometry), launchers.conv2d_wgrad(wide, dy, (1, 1), *geometry))
    assert torch.equal(
        launchers.conv2d_fprop(x, w, None, (3, 3), *geometry), launchers.conv2d_fprop(wide, w, None, (3, 3), *geometry)
    )
    assert started == [
        "_conv2d_wgrad_tma_kernel",
        "_conv2d_wgrad_tma_kernel",
        "_conv2d_gather_tma_kernel",
        "_conv2d_gather_tma_kernel",
    ]


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "case",
    ["3x3", "1x1: all pixels are one row", "stride 2, even width: pairs of columns", "3x3, more images than a box has"],
)
def test_fused(case: str, arithmetic: str, started: list[str]) -> None:
    """A scale, a shift, ReLU and statistics in the epilogue, also for a half tile without pixels."""
    check_fused(*operands(CASES[case], set_precision(arithmetic), "channels_last"), CASES[case].options, started)


@pytest.mark.parametrize("arithmetic", ["bf16", "fp32"])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_residual(layout: str, arithmetic: str, started: list[str]) -> None:
    """A residual, and the activation's input as a second result, in fprop and dgrad."""
    case = Conv((2, 32, 4, 6), (32, 32, 3, 3), {"stride": 2, "padding": 1})
    x, w, _ = operands(case, set_precision(arithmetic), layout)
    dy, order = (
        F.conv2d(x, w, **case.options).sign(),
        torch.channels_last if layout == "channels_last" else torch.contiguous_format,
    )
    for adjoint, plain, source, result in ((False, F.conv2d, x, dy), (True, F.conv_transpose2d, dy, x)):
        size, options = result.shape[2:], case.options | ({"output_padding": 1} if adjoint else {})
        residual = randn(*result.shape, dtype=x.dtype, seed=3).contiguous(memory_format=order)

        def fused(source: Tensor, w: Tensor, residual: Tensor, size: Any = size, adjoint: bool = adjoint) -> tuple[Tensor, ...]:
            geometry = size, (2, 2), (1, 1), (1, 1), 1, adjoint
            return launchers.conv2d_activation(source, w, None, None, residual, "silu", *geometry)

        def apart(
            source: Tensor, w: Tensor, residual: Tensor, plain: Any = plain, options: Any = options
        ) -> tuple[Tensor, ...]:
            z = (plain(source, w, **options) + residual).detach()
            return F.silu(z), z

        check(fused, apart, source, w, residual)
    assert started.count("_conv2d_gather_tma_kernel") == 2


def test_pooled(started: list[str]) -> None:
    """A separate kernel pools the result of a TMA convolution."""
    x, w, b = operands(CASES["3x3"], set_precision("bf16"), "channels_last")
    y, _ = launchers.conv2d_activation_max_pool2d(
        x, w, b, "relu", (5, 6), (1, 1), (1, 1), (1, 1), 1, (2, 3), (2, 2), (2, 2), (0, 0), (1, 1)
    )
    assert torch.equal(y, F.max_pool2d(tnn.conv2d(x, w, b, padding=1).relu(), 2)) and "_conv2d_gather_tma_kernel" in started


def test_bf16_terms_are_as_exact_as_float32() -> None:
    """A long sum of numbers of mixed magnitudes: three bf16 terms are as exact as float32."""
    set_precision("fp32")
    x, w = randn(2, 512, 2, 3), randn(16, 512, 1, 1, seed=1)
    scale = 10.0 ** randn(1, 512, 1, 1, seed=2)
    check(tnn.conv2d, F.conv2d, x * scale, w / scale, None)


@pytest.mark.parametrize("arithmetic", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_not_finite(value: float, arithmetic: str) -> None:
    """An infinity or NaN in a pixel changes only the outputs that read it, with the sign of the filter."""
    x, w, _ = operands(Conv((2, 16, 7, 8), (16, 16, 3, 3)), set_precision(arithmetic), "channels_last")
    x[1, 3, 2, 5] = value
    y, expected = tnn.conv2d(x, w, padding=1), F.conv2d(x.double().cpu(), w.double().cpu(), padding=1)
    assert torch.equal(y.isnan().cpu(), expected.isnan()) and torch.equal(y.isinf().cpu(), expected.isinf())
    assert torch.equal(y[y.isinf()].double().cpu(), expected[expected.isinf()])


def output_and_gradients(nn: Any, x: Tensor, w: Tensor, dy: Tensor, **options: Any) -> list[Tensor]:
    """The output, and the gradients of image and filters."""
    x, w = (t.detach().requires_grad_() for t in (x, w))
    y = nn.conv2d(x, w, **options)
    return [y.detach(), *torch.autograd.grad(y, (x, w), dy)]


def with_infinity(shape: tuple[int, ...], at: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    """A tensor with channels innermost and an infinity at one position."""
    t = randn(*shape, dtype=torch.bfloat16, seed=seed)
    if at:
        t[at] = float("inf")
    return t.contiguous(memory_format=torch.channels_last)


def pairs_with_torch(x: Tensor, w: Tensor, dy: Tensor, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """Pairs of our results and torch's float64 results."""
    of_torch = output_and_gradients(F, *(t.double().cpu() for t in (x, w, dy)), **options)
    return [(a.double().cpu(), b) for a, b in zip(output_and_gradients(tnn, x, w, dy, **options), of_torch, strict=True)]


def test_infinities_over_padding() -> None:
    """docs/differences.md: a tap is skipped if a whole TMA box, or a whole run of wgrad, reads only padding through it."""
    shape, filters, options = (2, 16, 7, 7), (16, 16, 3, 3), {"padding": 6, "dilation": 6}
    x, w, dy = (with_infinity(size, seed=i) for i, size in enumerate((shape, filters, shape)))
    (y, expected), _, _ = pairs_with_torch(x, with_infinity(filters, (3, 2, 0, 0), 1), dy, **options)
    assert expected[:, 3, :6, :6].isnan().all() and not y[expected.isfinite()].isnan().any()
    assert y[:, 3, 6, 6].isinf().all()
    if INTERPRETED:  # a GPU uses other boxes
        assert y[:, 3, 0, 0].isfinite().all()
    _, _, (dw, expected) = pairs_with_torch(x, w, with_infinity(shape, (1, 4, 0, 0), 2), **options)
    assert expected[4, :, 0, 0].isnan().all() and dw[4, :, 0, 0].isfinite().all()
    assert torch.equal(dw.isinf(), expected.isinf())


def test_infinities_of_narrow_groups() -> None:
    """docs/differences.md: infinities spread to the groups merged with theirs, here four, and no further."""
    shape, filters, options = (17, 32, 3, 4), (32, 4, 3, 3), {"padding": 1, "groups": 8}
    x, w, dy = (with_infinity(size, seed=i) for i, size in enumerate((shape, filters, shape)))
    at = 0, 5, 1, 1
    (y, expected), _, (dw, dw_expected) = pairs_with_torch(with_infinity(shape, at), w, dy, **options)
    assert torch.equal(y.isinf(), expected.isinf()) and y[0, :16, :3, :3].isfinite().sum() == 0
    assert y[0, 16:].isfinite().all() and y[1:].isfinite().all()
    assert torch.equal(dw.isfinite(), dw_expected.isfinite())
    (y, _), (dx, expected), _ = pairs_with_torch(x, w, with_infinity(shape, at, 2), **options)
    assert torch.equal(dx.isinf(), expected.isinf()) and dx[0, :16, :3, :3].isfinite().sum() == 0
    assert dx[0, 16:].isfinite().all() and dx[1:].isfinite().all() and y.isfinite().all()
    for got, expected in pairs_with_torch(x, with_infinity(filters, (5, 1, 1, 1), 1), dy, **options):
        assert torch.equal(got.isfinite(), expected.isfinite())


def test_infinities_past_the_last_column() -> None:
    """docs/differences.md: in runs of 16 columns, the second run has zero gradients from the 26th column on."""
    w, dy = with_infinity((24, 16, 2, 3), seed=1), with_infinity((2, 24, 1, 26), seed=2)
    _, _, (dw, expected) = pairs_with_torch(with_infinity((2, 16, 2, 28), (1, 4, 0, 27)), w, dy)
    assert torch.equal(dw.isinf(), expected.isinf()) and not expected.isnan().any()
    assert dw[:, 4, 0, :2].isnan().all() and dw[:, 4, 1].isfinite().all()


@pytest.mark.parametrize(
    ("x", "w", "expected"),
    [
        ((1 + 3 * 2.0**-23) * 2.0**-110, 2.0**30, (1 + 3 * 2.0**-23) * 2.0**-80),
        ((1 + 3 * 2.0**-23) * 2.0**-111, 2.0**30, (1 + 4 * 2.0**-23) * 2.0**-81),
        (2.0**-133, 2.0**30, 2.0**-103),
        (2.0**-134, 2.0**30, 0.0),
        (float("inf"), 2.0**-133, float("inf")),
        (float("inf"), 2.0**-134, float("nan")),
        (2.0**64 * (1 - 2.0**-8), 2.0**64 * (1 - 2.0**-8), 2.0**128 * (1 - 2.0**-8) ** 2),
        (2.0**64 * (1 - 2.0**-9), 2.0**64 * (1 - 2.0**-9), float("inf")),
        (torch.finfo(torch.float32).max, 1.0, torch.finfo(torch.float32).max),
    ],
)
def test_range_of_bf16_terms(x: float, w: float, expected: float) -> None:
    """docs/differences.md: the smallest and the largest numbers, where bf16 terms have fewer bits."""
    set_precision("fp32")
    image, filters = torch.zeros(1, 16, 2, 2, device=DEVICE), torch.zeros(16, 16, 1, 1, device=DEVICE)
    image[:, 0], filters[:, 0] = x, w
    torch.testing.assert_close(tnn.conv2d(image, filters), torch.full_like(image, expected), rtol=0, atol=0, equal_nan=True)


def test_same_bits() -> None:
    x, w, _ = operands(Conv((19, 16, 5, 4), (24, 16, 3, 3)), torch.float32, "contiguous")
    dy = randn(19, 24, 5, 4, seed=3)
    args = (3, 3), (1, 1), (1, 1), (1, 1), 1
    assert torch.equal(launchers.conv2d_wgrad(x, dy, *args), launchers.conv2d_wgrad(x, dy, *args))


@pytest.mark.parametrize(
    "case",
    [
        Conv((2, 12, 5, 5), (16, 12, 3, 3)),  # 24 bytes per pixel
        Conv((2, 16, 5, 5), (6, 16, 3, 3)),  # few filters
        Conv((2, 48, 5, 5), (48, 24, 3, 3), {"groups": 2}),  # a block of channels would reach into the next group
    ],
)
def test_pointer_kernel_instead(case: Conv, started: list[str]) -> None:
    check(tnn.conv2d, F.conv2d, *operands(case, torch.bfloat16, "channels_last"), **case.options)
    assert not started


@triton.jit
def _hits_kernel(found, SIZE: tl.constexpr, AXIS: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr):
    """For each position, 100 * first + count: taps forwards, taps backwards, and pixels that hit the image."""
    start = tl.arange(0, BLOCK) - BLOCK // 2
    first, count = hitting_taps(start, REACH, SIZE, AXIS.taps, AXIS.dilation)
    tl.store(found + tl.arange(0, BLOCK), first * 100 + count)
    first, count = hitting_taps(start, REACH, SIZE, AXIS.taps, -AXIS.dilation)
    tl.store(found + BLOCK + tl.arange(0, BLOCK), first * 100 + count)
    tap = tl.arange(0, BLOCK)
    first, count = small_pixels_hit(tap, tap + REACH, SIZE, SIZE, AXIS)
    tl.store(found + 2 * BLOCK + tl.arange(0, BLOCK), first * 100 + count)


@pytest.mark.parametrize("reach", [0, 3])
@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("axis", [Axis(3, 1, 1, 1), Axis(5, 2, 3, 2), Axis(2, 3, 0, 4)])
def test_taps_and_pixels_that_hit(axis: Axis, size: int, reach: int) -> None:
    """The ranges of taps inside the image, and of pixels a tap moves into the image, equal brute force."""
    block = 32
    found = torch.empty(3, block, dtype=torch.int32, device=DEVICE)
    launch.launch(_hits_kernel, 1, found, SIZE=size, AXIS=axis, REACH=reach, BLOCK=block, device=found.device)
    for i, (forwards, backwards, pixels) in enumerate(found.T.tolist()):
        for code, step in ((forwards, axis.dilation), (backwards, -axis.dilation)):
            taps = [t for t in range(axis.taps) if -reach <= i - block // 2 + t * step < size]
            assert list(range(code // 100, code // 100 + code % 100)) == taps if code % 100 else not taps
        moved = [p * axis.stride - axis.padding + t * axis.dilation for t in range(i, i + reach + 1) for p in range(size)]
        hit = [number % size for number, big in enumerate(moved) if 0 <= big < size]
        first, count = pixels // 100, pixels % 100
        assert (first, first + count - 1) == (min(hit), max(hit)) if hit else count == 0 or reach and axis.stride > 1


@pytest.mark.parametrize("adjoint", [False, True])
def test_work_of_a_box(adjoint: bool) -> None:
    """`GatherAxis.work` counts the products of the kernel along an axis: the taps inside, summed over tiles."""
    for taps, stride, padding, dilation in itertools.product((1, 3, 4), (1, 2, 3), (0, 1, 5), (1, 2, 7)):
        axis = Axis(taps, stride, padding, dilation)
        for block in (1, 4):
            if adjoint:
                work = sum(
                    max(1, sum(any(_hits(p, t, axis, 9) for p in tile) for t in range(taps)))
                    for phase in range(stride)
                    for tile in _tiles(range(phase, 12, stride), -(-12 // stride), block, stride)
                )  # fmt: skip
            else:
                tiles = [range(first, first + block) for first in range(0, 12, block)]
                reach = [(min(tile) * stride - padding, max(tile) * stride - padding) for tile in tiles]
                work = sum(low + t * dilation < 9 and high + t * dilation >= 0 for low, high in reach for t in range(taps))
            assert GatherAxis(12, 9, axis, adjoint).work(block) == work, (axis, block)


def _hits(big: int, tap: int, axis: Axis, size: int) -> bool:
    small, rest = divmod(big + axis.padding - tap * axis.dilation, axis.stride)
    return rest == 0 and 0 <= small < size


def _tiles(pixels: range, count: int, block: int, step: int) -> Iterator[range]:
    """Blocks of a phase's pixels; the last may reach past the edge."""
    for first in range(0, count, block):
        start = pixels.start + first * step
        yield range(start, start + block * step, step)


def test_best_boxes_and_runs() -> None:
    """The best box is one pixel of 64 images if images are small, else a part of a row, or of a column if its width must be 1.

    The best run goes along the images if there are enough of them, else along the columns.
    """
    plain = Axis(3, 1, 1, 1)
    assert best_box(64, 64, GatherAxis(7, 7, plain, False), GatherAxis(7, 7, plain, False)) == Box(64, 1, 1)
    assert best_box(128, 1, GatherAxis(256, 256, plain, False), GatherAxis(256, 256, plain, False)) == Box(1, 1, 128)
    assert best_box(64, 1, GatherAxis(64, 64, plain, False), GatherAxis(64, 64, plain, False, one=True)) == Box(1, 64, 1)
    assert best_run(64, 64, 56) == (64, True)
    assert best_run(64, 2, 128) == (64, False)
    assert best_run(64, 2, 0) == (0, True)
