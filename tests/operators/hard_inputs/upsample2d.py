"""Rows 79-89: resizing."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.operators.hard_inputs import FLOATS, INF, NAN, TORCH, grads, holds, integers, like_torch, plane, refusal
from tests.support.check import check, randn
from trinn.kernels.runtime.settings import settings
from trinn.layers.pad2d import pad2d

BILINEAR: dict[str, Any] = {"mode": "bilinear"}
ALIGNED: dict[str, Any] = {"mode": "bilinear", "align_corners": True}
NEAREST: dict[str, Any] = {"mode": "nearest"}
EXACT: dict[str, Any] = {"mode": "nearest-exact"}
ANTIALIASED: dict[str, Any] = {"mode": "bilinear", "antialias": True}


@like_torch(79, "an image of the same size is copied, even with a factor of 1.3")
def _(nn: Any) -> Any:
    x = integers(2, 2, 3, 3) / 8
    return [grads(nn.interpolate, x, scale_factor=1.3, **options) for options in (BILINEAR, ALIGNED)] + [
        grads(nn.interpolate, x, size=3, **options) for options in (BILINEAR, ALIGNED, NEAREST, EXACT)
    ]


@holds(80, "coordinates advance by 1 / scale_factor, unless it is recomputed")
def _() -> None:
    for again in (None, False, True):
        for factor in (1.5, (0.6, 2.3), 0.3):
            options = {**BILINEAR, "scale_factor": factor, "recompute_scale_factor": again}
            check(tnn.interpolate, F.interpolate, randn(1, 2, 7, 7), **options)


@like_torch(80, "the nearest pixel by 1 / scale_factor, unless it is recomputed")
def _(nn: Any) -> Any:
    x = integers(1, 2, 7, 7)
    return [
        grads(nn.interpolate, x, scale_factor=factor, recompute_scale_factor=again, **options)
        for again in (None, True)
        for factor in (1.5, (0.6, 2.3), 0.3)
        for options in (NEAREST, EXACT)
    ]


@like_torch(81, "the size is floor(in * factor) in double precision")
def _(nn: Any) -> Any:
    sizes = ((49, 2.0408163), (3, 7 / 3), (10, 0.7), (100, 0.29), (5, 1.2), (7, 3 / 7))
    return [nn.interpolate(torch.ones(1, 1, n, 2), scale_factor=(factor, 1.0), **BILINEAR) for n, factor in sizes]


@like_torch(82, "align_corners with one pixel in, or one out", ulps=1)
def _(nn: Any) -> Any:
    x = integers(1, 2, 4, 5)
    return [grads(nn.interpolate, x, size=1, **ALIGNED), grads(nn.interpolate, x, size=(1, 5), **ALIGNED)] + [
        grads(nn.interpolate, integers(1, 2, 1, 1), size=(3, 4), **options) for options in (ALIGNED, BILINEAR)
    ]


@holds(83, "shrinking without antialias reads four pixels per output")
def _() -> None:
    for options in (BILINEAR, ALIGNED):
        check(tnn.interpolate, F.interpolate, randn(1, 2, 13, 17), size=(4, 5), **options)


@like_torch(84, "NaN and infinity spread to where their weight is 0", ulps=4)
def _(nn: Any) -> Any:
    x = torch.ones(1, 1, 4, 5)
    x[0, 0, 1, 1], x[0, 0, 3, 4], x[0, 0, 0, 4] = INF, NAN, INF
    return [
        nn.interpolate(x, size=size, **options)
        for options in (BILINEAR, ALIGNED, ANTIALIASED)
        for size in ((8, 10), (7, 9), (2, 3), (4, 10), (4, 5))
    ]


@holds(84, "an infinite upstream gradient reaches every pixel with a weight, and no pixel that is finite in torch")
def _() -> None:
    def gradient(nn: Any, upstream: torch.Tensor, options: Any) -> torch.Tensor:
        x = torch.ones(1, 1, 4, 5, dtype=upstream.dtype, device=upstream.device, requires_grad=True)
        return torch.autograd.grad(nn.interpolate(x, size=upstream.shape[2:], **options), x, upstream)[0].cpu()

    # With one split, the interpreter runs the backward kernel of a GPU instead of a gather.
    one_split = settings.changed(interpreted_rows=64, interpreted_block=4096)
    for tiles in (nullcontext(), one_split):
        with tiles:
            for options in (BILINEAR, ALIGNED, ANTIALIASED, NEAREST, EXACT):
                for size in ((8, 10), (7, 9), (2, 3), (4, 10), (4, 5)):
                    dy = torch.ones(1, 1, *size)
                    dy[0, 0, 0, 0], dy[0, 0, -1, 1], dy[0, 0, 1, -1] = INF, NAN, -INF
                    got, expected = gradient(tnn, dy, options), gradient(TORCH, dy.cpu(), options)
                    reached = gradient(TORCH, (~dy.isfinite()).double().cpu(), options) > 1e-6
                    assert not got[reached].isfinite().any() and got[expected.isfinite()].isfinite().all()
                    finite = expected.isfinite()
                    torch.testing.assert_close(got[finite], expected[finite], rtol=1e-5, atol=0)


@like_torch(85, "empty inputs and outputs, other axes, both or neither of size and factor")
def _(nn: Any) -> Any:
    x = torch.ones(1, 2, 4, 5)
    return [
        [
            nn.interpolate(torch.ones(0, 2, 4, 5), size=3, **options),
            refusal(nn.interpolate, torch.ones(1, 0, 4, 5), size=3, **options),
            refusal(nn.interpolate, torch.ones(1, 2, 0, 5), size=3, **options),
            refusal(nn.interpolate, x, size=0, **options),
            refusal(nn.interpolate, x, scale_factor=0.1, **options),
            refusal(nn.interpolate, x, size=3, scale_factor=2.0, **options),
            refusal(nn.interpolate, x, **options),
            refusal(nn.interpolate, x, size=(3, 4, 5), **options),
            refusal(nn.interpolate, x, scale_factor=(3.0, 4.0, 5.0), **options),
            refusal(nn.interpolate, x, size=3, recompute_scale_factor=True, **options),
            refusal(nn.interpolate, x[0], size=(3, 4), **options),
            refusal(nn.interpolate, x[0], scale_factor=(2.0, 2.0), **options),
            refusal(nn.interpolate, x[0], **options),
            refusal(nn.interpolate, x[0, 0], size=(3, 4), **options),
        ]
        for options in (BILINEAR, ALIGNED, NEAREST, EXACT, ANTIALIASED)
    ]


@like_torch(86, "bytes are rounded, other integers raise an error")
def _(nn: Any) -> Any:
    x = torch.randint(256, (1, 3, 9, 11), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(
        torch.get_default_device()
    )
    return [nn.interpolate(x.to(torch.uint8), size=(5, 16), **options) for options in (NEAREST, EXACT)] + [
        refusal(nn.interpolate, x.to(dtype), size=3, **options)
        for dtype in (torch.int32, torch.bool)
        for options in (BILINEAR, NEAREST)
    ]


@holds(86, "bytes: bilinear within one of the exact value, rounded to the nearest")
def _() -> None:
    x = torch.randint(256, (2, 3, 9, 11), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(torch.uint8)
    for options in (BILINEAR, ALIGNED, ANTIALIASED):
        for size in ((5, 16), (20, 7), (9, 22)):
            exact = F.interpolate(x.double(), size=size, **options)
            got = tnn.interpolate(x.to(torch.get_default_device()), size=size, **options).cpu().double()
            assert (got - exact).abs().max() <= 0.5 + 1e-3
            assert (got - F.interpolate(x, size=size, **options).double()).abs().max() <= 1


@like_torch(87, "channels_last is kept")
def _(nn: Any) -> Any:
    results = []
    for channels in (1, 3, 4, 5):
        for options in (BILINEAR, ALIGNED, NEAREST, EXACT):
            x = integers(2, channels, 4, 5).to(memory_format=torch.channels_last)
            results.append(nn.interpolate(x, scale_factor=2.0, **options).stride())
    return results


@holds(88, "16-bit gradients of a large enlargement are summed in float32")
def _() -> None:
    cases = (
        (BILINEAR, torch.float16, 24),
        (NEAREST, torch.bfloat16, 12),
        (EXACT, torch.bfloat16, 12),
        (BILINEAR, torch.bfloat16, 12),
    )
    for options, dtype, size in cases:  # a sum of fives in 16 bits would be rounded from 2048 or 256 on
        (dx,) = grads(tnn.interpolate, torch.ones(1, 1, 1, 1, dtype=dtype), size=size, upstream=5.0, **options)[1:]
        assert dx == 5 * size * size


@holds(88, "16-bit gradients are summed in float32, in every operator that reads a pixel more than once")
def _() -> None:
    # A sum in 16 bits would lose the ones after a large gradient. It is first and last, for sums in either direction.
    for dtype, large in ((torch.float16, 2048.0), (torch.bfloat16, 256.0)):
        pixel, peak = torch.ones(1, 1, 1, 1, dtype=dtype), plane([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype)
        for function, x in (
            (lambda x: tnn.max_pool2d(x, 3, 1, 1), peak),
            (lambda x: tnn.avg_pool2d(x, 3, 1, 1, divisor_override=1), peak),
            (lambda x: tnn.adaptive_max_pool2d(x, 3), pixel),
            (lambda x: tnn.adaptive_avg_pool2d(x, 3), pixel),
            (lambda x: tnn.interpolate(x, 3, mode="bilinear"), pixel),
            (lambda x: tnn.interpolate(x, 3, mode="bilinear", align_corners=True), pixel),
            (lambda x: tnn.interpolate(x, 3, mode="bilinear", antialias=True), pixel),
            (lambda x: tnn.interpolate(x, 3, mode="nearest"), pixel),
            (lambda x: tnn.interpolate(x, 3, mode="nearest-exact"), pixel),
            (lambda x: tnn.interpolate(x, 3, mode="area"), pixel),
            (lambda x: pad2d(x, (1, 1, 1, 1), "replicate"), pixel),
        ):
            leaf = x.clone().requires_grad_()
            dy = torch.ones(1, 1, 3, 3, dtype=dtype)
            dy[0, 0, 0, 0] = dy[0, 0, 2, 2] = large
            dy[0, 0, 1, 1] = 2
            (dx,) = torch.autograd.grad(function(leaf), leaf, dy)
            assert dx[0, 0, x.shape[2] // 2, x.shape[3] // 2] == 2 * large + 8


@holds(89, "coordinates in float32 for 16 bits, in float64 for float64")
def _() -> None:
    for dtype in FLOATS:
        for options in (BILINEAR, ALIGNED):
            check(tnn.interpolate, F.interpolate, randn(1, 1, 1, 700, dtype=dtype), size=(1, 1001), **options)
