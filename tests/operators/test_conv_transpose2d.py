"""Transposed convolution: geometries, dtypes, output sizes and errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import trinn.layers as tnn
from tests.support.cases import CONV_TRANSPOSE, Conv, named
from tests.support.check import DEVICE, DTYPES, check, gradients, raises_like, randn
from trinn.kernels.conv_transpose2d import conv_transpose2d_dgrad, conv_transpose2d_fprop, conv_transpose2d_wgrad


def operands(case: Conv, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x, w = randn(*case.x, dtype=dtype), randn(*case.w, dtype=dtype, seed=1)
    filters = case.w[1] * case.options.get("groups", 1)
    return x, w, randn(filters, dtype=dtype, seed=2) if case.bias else None


@pytest.mark.parametrize("case", named(CONV_TRANSPOSE))
def test_equals_torch(case: Conv) -> None:
    check(tnn.conv_transpose2d, F.conv_transpose2d, *operands(case), **case.options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype) -> None:
    case = CONV_TRANSPOSE["groups, all arguments"]
    check(tnn.conv_transpose2d, F.conv_transpose2d, *operands(case, dtype), **case.options)


def test_channels_last() -> None:
    x, w, b = operands(CONV_TRANSPOSE["dcgan"])
    check(tnn.conv_transpose2d, F.conv_transpose2d, x.contiguous(memory_format=torch.channels_last), w, b, stride=2, padding=1)


@pytest.mark.parametrize("stride, dilation", [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((2, 2), (3, 1)), ((4, 2), (2, 2))])
def test_is_the_adjoint_of_conv2d(stride: tuple[int, int], dilation: tuple[int, int]) -> None:
    """<conv(x, w), y> = <x, conv_transpose(y, w)>."""
    x, w = randn(2, 3, 11, 12, dtype=torch.float64), randn(4, 3, 3, 2, dtype=torch.float64)
    y = randn(*F.conv2d(x, w, None, stride, 1, dilation).shape, dtype=torch.float64)
    geometry = stride, (1, 1), dilation, 1
    left = (tnn.conv2d(x, w, None, *geometry) * y).sum()
    right = (x * conv_transpose2d_fprop(y, w, None, x.shape[2:], *geometry)).sum()
    torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-13)


def test_launchers_compute_the_gradients() -> None:
    """dgrad and wgrad equal autograd's gradients."""
    x, w, _ = operands(CONV_TRANSPOSE["groups, all arguments"], torch.float64)
    geometry = (2, 3), (1, 1), (1, 2), 2
    size = F.conv_transpose2d(x, w, None, (2, 3), 1, 0, 2, (1, 2)).shape[2:]
    y = conv_transpose2d_fprop(x, w, None, size, *geometry)
    dy = torch.ones_like(y)
    dx = conv_transpose2d_dgrad(dy, w, x.shape[2:], *geometry)
    dw = conv_transpose2d_wgrad(x, dy, w.shape[2:], *geometry)
    expected = gradients(F.conv_transpose2d, x, w, stride=(2, 3), padding=1, groups=2, dilation=(1, 2))
    torch.testing.assert_close((dx, dw), tuple(expected))


@pytest.mark.parametrize("output_size", [(9, 9), (10, 9), [2, 5, 10, 10]])
def test_output_size_picks_output_padding(output_size: list[int], full_float32: None) -> None:
    ours, torchs = (nn.ConvTranspose2d(4, 5, 3, 2, 1).to(DEVICE) for nn in (tnn, torch.nn))
    torchs.load_state_dict(ours.state_dict())
    x = randn(2, 4, 5, 5)
    torch.testing.assert_close(ours(x, output_size), torchs(x, output_size))


def test_output_size_out_of_range() -> None:
    ours, torchs = tnn.ConvTranspose2d(4, 5, 3, 2, 1), torch.nn.ConvTranspose2d(4, 5, 3, 2, 1)
    raises_like(torchs, ours, torch.ones(2, 4, 5, 5), (12, 9))


def test_padding_mode_raises() -> None:
    raises_like(torch.nn.ConvTranspose2d, tnn.ConvTranspose2d, 4, 5, 3, padding_mode="reflect")


X, W, B = (2, 4, 5, 5), (4, 3, 3, 3), (6,)
ERRORS = {
    "input of two axes": ((5, 5), W, None, {}),
    "channels of input and weight differ": ((2, 3, 5, 5), W, B, {"groups": 2}),
    "groups that do not divide the channels": ((2, 5, 5, 5), (5, 3, 3, 3), None, {"groups": 2}),
    "no groups": (X, W, None, {"groups": 0}),
    "bias too short": (X, W, (3,), {"groups": 2}),
    "output padding as large as stride and dilation": (X, W, None, {"output_padding": 2, "stride": 2, "dilation": 2}),
    "negative padding": (X, W, None, {"padding": -1}),
    "stride 0": (X, W, None, {"stride": 0}),
    "dilation 0": (X, W, None, {"dilation": 0}),
    "padding larger than the output": (X, W, None, {"padding": 5}),
}


@pytest.mark.parametrize("case", named(ERRORS))
def test_errors(case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None, dict[str, object]]) -> None:
    *shapes, options = case
    raises_like(F.conv_transpose2d, tnn.conv_transpose2d, *(randn(*s) if s is not None else None for s in shapes), **options)


def test_empty_batches() -> None:
    """For an empty batch, torch accepts an output without rows and too large an output padding."""
    options: dict[str, Any] = {"stride": (4, 1), "padding": 3}
    check(tnn.conv_transpose2d, F.conv_transpose2d, randn(0, 2, 5, 4), randn(2, 3, 4, 3), **options)
    raises_like(F.conv_transpose2d, tnn.conv_transpose2d, randn(1, 2, 5, 4), randn(2, 3, 4, 3), **options)
    raises_like(F.conv_transpose2d, tnn.conv_transpose2d, randn(0, 2, 5, 1), randn(2, 3, 4, 3), **options)
    check(tnn.conv_transpose2d, F.conv_transpose2d, randn(0, 2, 5, 5), randn(2, 3, 4, 3), stride=1, output_padding=1)
