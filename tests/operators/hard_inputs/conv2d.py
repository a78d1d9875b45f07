"""Rows 26-43: convolution."""

from functools import partial
from typing import Any

import torch

import trinn.layers as tnn
from tests.operators.hard_inputs import FLOATS, INF, NAN, TORCH, grads, holds, integers, like_torch, refusal, same
from trinn.kernels.device.precision import conv_precision, matmul_precision
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.launch import intercepted

X, W = (2, 4, 6, 7), (6, 4, 3, 3)


@like_torch(26, "no images: an empty output, and zero gradients of filters and bias")
def _(nn: Any) -> Any:
    w, b = integers(*W), integers(6)
    return grads(nn.conv2d, torch.ones(0, 4, 6, 7), w, b), grads(
        nn.conv2d, torch.ones(0, 6, 6, 7), integers(6, 1, 3, 3), b, groups=6
    )


@holds(27, "no channels: an error; torch returns an output without channels")
def _() -> None:
    x, w = torch.ones(2, 0, 6, 6), torch.ones(4, 0, 3, 3)
    assert refusal(tnn.conv2d, x, w, words="channels") == "RuntimeError"
    assert TORCH.conv2d(x.cpu(), w.cpu(), torch.ones(4, device="cpu")).shape == (2, 0, 4, 4)


@like_torch(28, "no filters")
def _(nn: Any) -> Any:
    return refusal(nn.conv2d, torch.ones(*X), torch.ones(0, 4, 3, 3)), refusal(
        nn.conv2d, torch.ones(*X), torch.ones(6, 4, 0, 3)
    )


@like_torch(29, "no rows, and a kernel larger than the padded image")
def _(nn: Any) -> Any:
    w = torch.ones(*W)
    return (
        refusal(nn.conv2d, torch.ones(2, 4, 0, 7), w, padding=2),
        refusal(nn.conv2d, torch.ones(2, 4, 6, 0), w),
        refusal(
            nn.conv2d,
            torch.ones(2, 4, 1, 7),
            w,
            words="Calculated padded input size per channel: (1 x 7). Kernel size: (3 x 3)",
        ),
        refusal(
            nn.conv2d,
            torch.ones(2, 4, 4, 7),
            w,
            dilation=2,
            words="Calculated padded input size per channel: (4 x 7). Kernel size: (5 x 5)",
        ),
    )


@like_torch(30, "no batch axis")
def _(nn: Any) -> Any:
    return grads(nn.conv2d, integers(4, 6, 7), integers(*W), integers(6)), refusal(nn.conv2d, torch.ones(6, 7), torch.ones(*W))


@like_torch(31, "padding 'same' with an even kernel and with a stride, 'valid', an unknown mode")
def _(nn: Any) -> Any:
    x, w = integers(*X), integers(6, 4, 4, 2)
    return (
        grads(nn.conv2d, x, w, padding="same"),
        grads(nn.conv2d, x, w, padding="same", dilation=(3, 2)),
        grads(nn.conv2d, x, w, padding="valid", stride=2),
        refusal(nn.conv2d, x, w, padding="same", stride=2, words="padding='same' is not supported for strided convolutions"),
        refusal(nn.conv2d, x, w, padding="equal"),
    )


@like_torch(32, "invalid geometry")
def _(nn: Any) -> Any:
    x, w = integers(*X), integers(*W)
    return [
        refusal(nn.conv2d, x, w, padding=-1, words="negative padding is not supported"),
        refusal(nn.conv2d, x, w, stride=0, words="non-positive stride is not supported"),
        refusal(nn.conv2d, x, w, dilation=0, words="dilation"),
        refusal(nn.conv2d, x, w, groups=0, words="non-positive groups is not supported"),
        refusal(nn.conv2d, x, w, groups=4, words="expected weight to be divisible by 4 at dimension 0"),
        refusal(nn.conv2d, x, w, groups=2, words="to have 8 channels, but got 4 channels instead"),
        refusal(nn.conv2d, x, w[:, :3], words="to have 3 channels, but got 4 channels instead"),
        refusal(nn.conv2d, x, w, stride=(1, 2, 3)),
        refusal(nn.conv2d, x, w, stride=1.5),
    ]


@like_torch(33, "operands of different dtypes")
def _(nn: Any) -> Any:
    x, w, b = integers(*X), integers(*W), integers(6)
    return [
        refusal(nn.conv2d, x, w.double(), b),
        refusal(nn.conv2d, x, w, b.double()),
        refusal(nn.conv2d, x.half(), w, b),
        refusal(nn.conv2d, x.bfloat16(), w.half(), b.half()),
    ]


@like_torch(34, "a bias of the wrong length")
def _(nn: Any) -> Any:
    x, w = integers(*X), integers(*W)
    return [
        refusal(nn.conv2d, x, w, torch.ones(shape), words="expected bias to be 1-dimensional with 6")
        for shape in ((5,), (6, 1), (1,), ())
    ]


def with_infinity(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Ones, with an infinity in a corner of the first plane and a NaN in the last plane."""
    t = torch.ones(*shape, dtype=dtype)
    t[0, 0, 0, 0], t[-1, -1, 1, 1] = INF, NAN
    return t


def infinities(name: str, infinite: str, groups: int, options: dict[str, Any]) -> None:
    """Compare an operator and its gradients with torch in float64, for one infinite operand and zeros or ones in the others.

    torch's float32 and bfloat16 kernels differ from float64, and from each other.
    """

    def results(nn: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        filters, image = (4, 4 // groups, 3, 3), (1, 4, 6, 5)
        x = with_infinity(*image, dtype=dtype) if infinite == "image" else torch.ones(*image, dtype=dtype)
        w = with_infinity(*filters, dtype=dtype) if infinite == "filters" else torch.zeros(*filters, dtype=dtype)
        dy = INF if infinite == "upstream" else 1.0
        return [t.double().cpu() for t in grads(getattr(nn, name), x, w, groups=groups, upstream=dy, **options)]

    with torch.device("cpu"):
        expected = results(TORCH, torch.float64)
    for dtype in (torch.float32, torch.bfloat16) if options == {"padding": 1} else (torch.float32,):
        got = results(tnn, dtype)
        if infinite == "filters" and groups < 4:
            # A matrix product (docs/differences.md). Where only torch's result is finite, ours must be NaN.
            adjoint = 0 if name == "conv_transpose2d" else 1
            got[adjoint] = torch.where(got[adjoint].isnan() & expected[adjoint].isfinite(), expected[adjoint], got[adjoint])
        same(got, expected, str(dtype), 0)


for name in ("conv2d", "conv_transpose2d"):
    for options in ({}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}):
        for groups in (1, 2, 4):
            for number, infinite in ((35, "filters"), (36, "image"), (36, "upstream")):
                geometry = ", ".join(f"{key} {value}" for key, value in {"groups": groups, **options}.items())
                holds(number, f"{name}: infinite {infinite}; {geometry}")(partial(infinities, name, infinite, groups, options))


@like_torch(37, "partial sums, and sums, above the largest float16")
def _(nn: Any) -> Any:
    x = torch.tensor([[200.0, 200, -200], [200, 200, 200]], dtype=torch.float16).reshape(2, 3, 1, 1)
    w = torch.full((2, 3, 1, 1), 200.0, dtype=torch.float16)
    return nn.conv2d(x, w), nn.linear(x.flatten(1), w.flatten(1))


@like_torch(38, "an expanded image and an expanded gradient")
def _(nn: Any) -> Any:
    x, w = integers(1, 4, 1, 1).expand(*X), integers(6, 1, 1, 1).expand(*W)
    leaves = [t.detach().requires_grad_() for t in (x, w)]
    y = nn.conv2d(*leaves, padding=1)
    return [y, *torch.autograd.grad(y.sum(), leaves)]


@like_torch(39, "channels_last images, filters, or both")
def _(nn: Any) -> Any:
    results = []
    for groups in (1, 2, 4):
        x, w = integers(*X), integers(8, 4 // groups, 3, 3)
        last = [t.to(memory_format=torch.channels_last) for t in (x, w)]
        for operands in ((last[0], w), (x, last[1]), last):
            y, dx, dw = grads(nn.conv2d, *operands, padding=1, groups=groups)
            results.append((y, dx, dw, y.stride()))
    return results


@holds(40, "integers, bool and complex numbers raise an error with the dtype")
def _() -> None:
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        x = torch.ones(*X).to(dtype)
        for convolve, w in ((tnn.conv2d, torch.ones(*W)), (tnn.conv_transpose2d, torch.ones(4, 6, 3, 3))):
            assert refusal(convolve, x, w.to(dtype), words=str(dtype)) == "NotImplementedError"
        assert refusal(tnn.linear, x, torch.ones(3, 7).to(dtype), words=str(dtype)) == "NotImplementedError"


@like_torch(41, "widths that no tile divides")
def _(nn: Any) -> Any:
    shapes: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
        (5, 1, 3, {"groups": 5}),
        (5, 1, 3, {"groups": 5, "stride": 2}),
        (1, 1, 5, {}),
        (3, 3, 3, {"stride": 2, "padding": 1}),
        (17, 17, 1, {}),
        (4, 4, 1, {"stride": 2}),
    )
    return [grads(nn.conv2d, integers(1, c, 7, 9), integers(c, g, k, k), **options) for c, g, k, options in shapes]


@like_torch(41, "1x1 with stride 2: unread rows have a zero gradient")
def _(nn: Any) -> Any:
    return grads(nn.conv2d, integers(1, 3, 7, 8), torch.ones(2, 3, 1, 1), stride=2)[1]


@holds(42, "TF32 follows torch's flags: allowed in convolutions, forbidden in matrix products")
def _() -> None:
    device = torch.device("cuda", 0)
    before = torch.backends.cudnn.conv.fp32_precision
    with intercepted(lambda *_: None, "sm_90"):
        try:
            torch.backends.cudnn.conv.fp32_precision = "tf32"
            assert conv_precision(torch.float32, device) == "tf32" and matmul_precision(torch.float32, device) == "tf32x3"
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            assert conv_precision(torch.float32, device) == "tf32x3"
        finally:
            torch.backends.cudnn.conv.fp32_precision = before


@holds(42, "without TF32 a product has all bits of float32")
def _() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        fine = 1 + 2.0**-20
        assert (tnn.conv2d(torch.full(X, fine), torch.ones(1, 4, 1, 1)) == 4 * fine).all()
        assert (tnn.linear(torch.full((3, 4), fine), torch.ones(2, 4)) == 4 * fine).all()
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


@holds(43, "subnormal products, and sums near the largest number")
def _() -> None:
    w = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    for dtype in FLOATS:
        info = torch.finfo(dtype)
        # The interpreter's bfloat16 has no subnormals.
        small = float(info.tiny) * (1.0 if dtype == torch.bfloat16 and INTERPRETED else 0.125)
        for size in (small, float(info.max) / 4):
            x = torch.full((4,), size, dtype=dtype)
            expected = torch.dot(x.double(), w).to(dtype)
            assert tnn.linear(x, w.to(dtype)) == expected
            y = tnn.conv2d(x[:, None, None].expand(4, 2, 2), w.to(dtype)[None, :, None, None])
            assert (y == expected).all()
