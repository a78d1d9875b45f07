"""Convolution without TMA: geometries, layouts, dtypes, gradients, errors. hard_inputs/conv2d.py has more inputs."""

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from torch.autograd import gradcheck, gradgradcheck

import trinn.layers as tnn
from tests.support.cases import CONV, Conv, named
from tests.support.check import DTYPES, check, gradients, raises_like, randn
from trinn.kernels.runtime.layout import index_type

DIFFERENTIATED = {
    "strided, dilated, padded": Conv((1, 2, 6, 5), (2, 2, 2, 2), {"stride": (2, 1), "dilation": (1, 2), "padding": 1}),
    "groups": Conv((2, 4, 4, 3), (4, 2, 2, 3), {"groups": 2, "padding": (0, 1)}),
    "depthwise": Conv((1, 2, 4, 3), (4, 1, 2, 2), {"groups": 2, "stride": 2, "padding": 1}),
    "depthwise, stride 1": Conv((1, 2, 5, 3), (2, 1, 3, 2), {"groups": 2, "padding": 1}),
    "same, even kernel": Conv((1, 2, 4, 3), (3, 2, 2, 2), {"padding": "same"}, bias=False),
}

STRIPS = "depthwise, more rows than one program processes, a width no tile divides"


def operands(case: Conv, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x, w = randn(*case.x, dtype=dtype), randn(*case.w, dtype=dtype, seed=1)
    return x, w, randn(case.w[0], dtype=dtype, seed=2) if case.bias else None


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", named(CONV))
def test_equals_torch(case: Conv) -> None:
    check(tnn.conv2d, F.conv2d, *operands(case), **case.options)


@pytest.mark.parametrize("name", ["stride and dilation coprime", "groups", "depthwise", STRIPS, "1x1: a matrix product"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    check(tnn.conv2d, F.conv2d, *operands(CONV[name], dtype), **CONV[name].options)


@pytest.mark.parametrize("name", ["groups", "depthwise", STRIPS])
@pytest.mark.parametrize("which", ["input", "weight", "both"])
def test_channels_last(which: str, name: str) -> None:
    """The output is channels_last if the input or the weight is."""
    x, w, b = operands(CONV[name])
    if which != "weight":
        x = x.contiguous(memory_format=torch.channels_last)
    if which != "input":
        w = w.contiguous(memory_format=torch.channels_last)
    check(tnn.conv2d, F.conv2d, x, w, b, **CONV[name].options)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", named({name: case for name, case in CONV.items() if name.startswith("depthwise, ")}))
def test_depthwise_channels_last(case: Conv) -> None:
    """In channels_last, the lanes of a tile are channels instead of columns."""
    x, w, b = operands(case)
    check(tnn.conv2d, F.conv2d, x.contiguous(memory_format=torch.channels_last), w, b, **case.options)


def test_any_strides() -> None:
    """Kernels read transposed, sliced, expanded and unaligned operands in place."""
    x, w = randn(2, 14, 9, 6).transpose(1, 3)[:, :, ::2, 1:], randn(5, 6, 3, 3, seed=1).flip(0)
    check(tnn.conv2d, F.conv2d, x[:, :, :, 1:], w, None)
    check(tnn.conv2d, F.conv2d, randn(1, 3, 6, 6).expand(2, 3, 6, 6), randn(1, 3, 3, 3).expand(4, 3, 3, 3), randn(1).expand(4))


def test_skips_unwanted_gradients() -> None:
    x, w, b = operands(CONV["plain"])
    w.requires_grad_()
    y = tnn.conv2d(x, w, b)
    y.sum().backward()
    assert w.grad is not None and x.grad is None and b is not None and b.grad is None


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", named(DIFFERENTIATED))
def test_gradcheck(case: Conv) -> None:
    tensors = [t.requires_grad_() for t in operands(case, torch.float64) if t is not None]
    assert gradcheck(lambda *t: tnn.conv2d(*t, **case.options), tensors, fast_mode=True)
    assert gradgradcheck(lambda *t: tnn.conv2d(*t, **case.options), tensors, fast_mode=True)


@pytest.mark.parametrize(
    "name", ["plain", "stride and dilation share a factor: taps hit every other phase", "depthwise", STRIPS]
)
def test_passes_are_adjoint(name: str) -> None:
    """<conv(x, w), y> = <x, dgrad(y, w)> = <w, wgrad(x, y)>: one trilinear form, to the last digits of float64."""
    case = CONV[name]
    x, w, _ = operands(case, torch.float64)
    y = tnn.conv2d(x, w, **case.options)
    g = randn(*y.shape, dtype=torch.float64, seed=3)
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    dx, dw = torch.autograd.grad(tnn.conv2d(*leaves, **case.options), leaves, g)
    scale = float((y.abs() * g.abs()).sum())
    assert abs(float((y * g).sum() - (x * dx).sum())) <= 1e-14 * scale
    assert abs(float((y * g).sum() - (w * dw).sum())) <= 1e-14 * scale


def test_int32_and_int64_offsets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU uses int32 for small tensors. The interpreter checks each int32 operation for overflow."""
    from trinn.kernels.conv2d import pointer as kernels

    case = CONV["stride and dilation coprime"]
    results = []
    for index in (tl.int32, tl.int64):
        monkeypatch.setattr(kernels, "index_type", lambda *_, index=index: index)
        results.append(gradients(tnn.conv2d, *operands(case), **case.options))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_index_type_counts_strides() -> None:
    """The largest offset decides, not the number of elements: two elements 2^31 apart need int64."""
    assert index_type(torch.empty_strided((2, 1), (2**31, 1), device="meta")) == tl.int64


GEOMETRY = ((2, 1), (1, 2), (2, 1), 1)
X, W, B = (2, 4, 6, 6), (4, 2, 3, 3), (4,)
ERRORS = {
    "input of two axes": ((6, 6), W, B, {}),
    "input of five axes": ((1, 2, 4, 6, 6), W, B, {}),
    "weight of three axes": (X, (4, 4, 3), B, {}),
    "wrong number of channels": ((2, 5, 6, 6), W, B, {"groups": 2}),
    "filters not divisible by groups": (X, (3, 2, 3, 3), None, {"groups": 2}),
    "zero groups": (X, W, B, {"groups": 0}),
    "negative groups": (X, W, B, {"groups": -1}),
    "bias too long": (X, W, (5,), {"groups": 2}),
    "bias of two axes": (X, W, (4, 1), {"groups": 2}),
    "negative padding": (X, W, B, {"groups": 2, "padding": -1}),
    "stride 0": (X, W, B, {"groups": 2, "stride": 0}),
    "dilation 0": (X, W, B, {"groups": 2, "dilation": 0}),
    "kernel larger than the padded image": ((2, 4, 2, 6), W, B, {"groups": 2}),
    "dilated kernel larger than the padded image": (X, W, B, {"groups": 2, "dilation": 4, "padding": 1}),
    "no rows": ((2, 4, 0, 6), W, B, {"groups": 2}),
    "no filters": (X, (0, 4, 3, 3), None, {}),
    "stride of three": (X, W, B, {"groups": 2, "stride": (1, 1, 1)}),
    "same with a stride": (X, W, B, {"groups": 2, "padding": "same", "stride": 2}),
    "unknown padding mode": (X, W, B, {"groups": 2, "padding": "full"}),
    "stride of floats": (X, W, B, {"groups": 2, "stride": 1.5}),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None, dict[str, object]]) -> None:
    *shapes, options = case
    raises_like(F.conv2d, tnn.conv2d, *(randn(*s) if s is not None else None for s in shapes), **options)


@pytest.mark.parametrize(
    "dtypes", [("float64", "float32", "float32"), ("float32", "float16", "float32"), ("float32", "float32", "float64")]
)
def test_mixed_dtypes(dtypes: tuple[str, str, str]) -> None:
    operands = (randn(*s, dtype=getattr(torch, d)) for s, d in zip((X, W, B), dtypes, strict=True))
    raises_like(F.conv2d, tnn.conv2d, *operands, groups=2)


def test_mixed_devices() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        tnn.conv2d(randn(*X), randn(*W).to("meta"), None, groups=2)
