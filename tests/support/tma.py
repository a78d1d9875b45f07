"""Run the TMA kernels of convolution in tests: in the interpreter too, and for fewer channels than on a GPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.cases import Conv
from tests.support.check import check, randn
from trinn.kernels import launchers
from trinn.kernels.conv2d import few_channels, tma, tma_wgrad
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.settings import settings


@contextlib.contextmanager
def tma_everywhere() -> Iterator[list[str]]:
    """Use TMA wherever possible, and store tiles in two parts. Yields the names of launched TMA kernels."""
    names: list[str] = []

    def start(kernel: Any, *args: Any, **options: Any) -> None:
        names.append(kernel.__name__)
        launch.launch(kernel, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (tma, tma_wgrad):
            patch.setattr(module, "launch", start)
        patch.setattr(settings, "interpret_tma", True)
        patch.setattr(tma, "MIN_CHANNELS", 8)
        patch.setattr(tma, "MIN_GROUP_CHANNELS", 16)
        patch.setattr(tma, "MAX_STORED_AT_ONCE", 16)
        patch.setattr(few_channels, "LAUNCH_COST", -(2**40))  # the cost of a window copy is negative: it always pays
        yield names


def operands(case: Conv, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """An image, filters and a bias."""
    x, w = randn(*case.x, dtype=dtype), randn(*case.w, dtype=dtype, seed=1)
    if layout == "channels_last":
        w = w.contiguous(memory_format=torch.channels_last)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
    return x, w, randn(case.w[0], dtype=dtype, seed=2) if case.bias else None


def check_fused(x: Tensor, w: Tensor, shift: Tensor | None, options: dict[str, Any], started: list[str]) -> None:
    """Check a scale, a shift, a residual, ReLU and statistics in the epilogue of the gather kernel.

    `started` has the names of the launched kernels: each of the two calls must launch the gather kernel.
    """
    scale, y = randn(w.shape[0], dtype=x.dtype, seed=3), F.conv2d(x, w, **options)
    stride, padding = (options.get(name, default) for name, default in (("stride", 1), ("padding", 0)))
    geometry = y.shape[2:], (stride, stride), (padding, padding), (1, 1), 1

    residual = torch.empty_like(y).copy_(randn(*y.shape, dtype=x.dtype, seed=4))

    def affine(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return (F.conv2d(x, w, **options) * scale[:, None, None] + shift[:, None, None] + residual).relu().detach()

    def fused(x: Tensor, w: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return launchers.conv2d_affine(x, w, scale, shift, None, residual, "relu", *geometry, False)

    check(fused, affine, x, w, scale, shift, residual)
    y, mean, var = launchers.conv2d_statistics(x, w, shift, *geometry)
    assert started.count("_conv2d_gather_tma_kernel") == 2
    exact = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    for got, expected in zip((var, mean), exact, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=2e-6)
