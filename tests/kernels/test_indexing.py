"""The window equation (kernels/device/indexing.py) against brute force, and the memory order of elementwise kernels."""

from itertools import product

import pytest
import torch
import triton
import triton.language as tl

from tests.support.check import DEVICE
from trinn.kernels.device.indexing import Axis, big_from_small, inside, offset_of, small_from_big, split_pixel
from trinn.kernels.runtime.launch import launch
from trinn.kernels.runtime.layout import memory_order

BIGS, SMALLS = 16, 16
AXES = [Axis(*a) for a in product((1, 2, 3, 5), (1, 2, 3, 4), (0, 1, 3), (1, 2, 3, 4))]


@triton.jit
def _axis_kernel(solutions, bigs, AXIS: tl.constexpr, BIGS: tl.constexpr, SMALLS: tl.constexpr):
    big, small = tl.arange(0, BIGS), tl.arange(0, SMALLS)
    first_small, first_tap, hits = small_from_big(big, AXIS)
    tl.store(solutions + big, first_small)
    tl.store(solutions + BIGS + big, first_tap)
    tl.store(solutions + 2 * BIGS + big, hits)
    tl.store(bigs + small, big_from_small(small, AXIS.taps - 1, AXIS))


@pytest.mark.parametrize("axes", [AXES[i::8] for i in range(8)], ids=[f"{i + 1} of 8" for i in range(8)])
def test_equation_and_its_solution(axes: list[Axis]) -> None:
    """big = small * stride - padding + tap * dilation, both ways, for many strides, paddings, dilations and windows.

    For a convolution, `big` is an input row and `small` an output row.
    """
    for axis in axes:
        solutions = torch.empty(3, BIGS, dtype=torch.int32, device=DEVICE)
        bigs = torch.empty(SMALLS, dtype=torch.int32, device=DEVICE)
        launch(_axis_kernel, 1, solutions, bigs, AXIS=axis, BIGS=BIGS, SMALLS=SMALLS, device=bigs.device)
        for big, (small, tap, hits) in enumerate(solutions.T.tolist()):
            found = {(small - i * axis.tap_back, tap + i * axis.tap_step) for i in range(hits)}
            shifted = [(big + axis.padding - t * axis.dilation, t) for t in range(axis.taps)]
            assert found == {(s // axis.stride, t) for s, t in shifted if s % axis.stride == 0}, (axis, big)
            assert hits <= axis.max_hits
        last = (axis.taps - 1) * axis.dilation
        assert bigs.tolist() == [small * axis.stride - axis.padding + last for small in range(SMALLS)]


@triton.jit
def _split_kernel(out, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    pixel = tl.arange(0, BLOCK)
    n, row, col = split_pixel(pixel, HEIGHT, WIDTH)
    tl.store(out + pixel, n * 10000 + row * 100 + col)
    tl.store(out + BLOCK + pixel, inside(pixel - 3, WIDTH).to(tl.int32))


def test_split_pixel_and_inside() -> None:
    out = torch.empty(2, 32, dtype=torch.int32, device=DEVICE)
    launch(_split_kernel, 1, out, HEIGHT=3, WIDTH=5, BLOCK=32, device=out.device)
    assert out[0].tolist() == [(i // 15) * 10000 + i // 5 % 3 * 100 + i % 5 for i in range(32)]
    assert out[1].tolist() == [int(0 <= i - 3 < 5) for i in range(32)]


@triton.jit
def _copy_kernel(x, y, sizes, x_strides, y_strides, elements, BLOCK: tl.constexpr):
    element = tl.arange(0, BLOCK)
    value = tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)
    tl.store(y + offset_of(element, sizes, y_strides), value, mask=element < elements)


LAYOUTS = {
    "dense": (lambda: torch.arange(24.0).view(2, 3, 4), 1),
    "dense, permuted": (lambda: torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1), 1),
    "truncated rows": (lambda: torch.arange(24.0).view(2, 3, 4)[:, :, :3], 2),
    "every second plane, transposed": (lambda: torch.arange(48.0).view(4, 3, 4)[::2].transpose(1, 2), 2),
    "expanded": (lambda: torch.arange(6.0).view(2, 1, 3).expand(2, 4, 3), 3),
    "axes of one element": (lambda: torch.arange(6.0).view(1, 2, 1, 3, 1), 1),
    "no axis": (lambda: torch.tensor(3.0), 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_memory_order(name: str) -> None:
    """Every element is visited once, and contiguous axes are merged."""
    make, axes = LAYOUTS[name]
    x = make().to(DEVICE)
    y = torch.empty_like(x)
    sizes, (x_strides, y_strides) = memory_order(x, y)
    assert len(sizes) == axes
    launch(_copy_kernel, 1, x, y, sizes, x_strides, y_strides, x.numel(), BLOCK=32, device=x.device)
    assert torch.equal(x, y)
