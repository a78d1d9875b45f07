"""Launches that use every tile of tuning.py. Most compile to the code of an earlier launch, which is then compiled once."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from bench.shapes import New, Passes, Row, Shape, conv_fused, layer
from trinn.kernels import launchers

POWERS = [2**i for i in range(4, 8)]


def gather(x: Shape, w: Shape, stride: int = 1, padding: int = 0, groups: int = 1) -> Passes:
    """fprop and dgrad of a convolution, the two passes of the gather kernels."""
    size = [(n + 2 * padding - taps) // stride + 1 for n, taps in zip(x[2:], w[2:], strict=True)]
    geometry = (stride, stride), (padding, padding), (1, 1), groups

    def passes(new: New) -> None:
        launchers.conv2d_fprop(new(*x), new(*w), new(w[0]), size, *geometry)
        launchers.conv2d_dgrad(new(x[0], w[0], *size), new(*w), None, x[2:], *geometry)

    return passes


def wgrad(x: Shape, w: Shape, stride: int = 1, padding: int = 0, groups: int = 1) -> Passes:
    """The gradient of a convolution's filters."""
    size = [(n + 2 * padding - taps) // stride + 1 for n, taps in zip(x[2:], w[2:], strict=True)]
    geometry = (stride, stride), (padding, padding), (1, 1), groups
    return lambda new: launchers.conv2d_wgrad(new(*x), new(x[0], w[0], *size), w[2:], *geometry)


def product(m: int, n: int, k: int) -> Passes:
    """(m, k) @ (k, n), with contiguous rows of length k."""
    return lambda new: launchers.linear_fprop(new(m, k), new(n, k), None, None, "")


def scattered_product(m: int, n: int, k: int) -> Passes:
    """A product of about this size with strided operands: the wgrad of a convolution that only the pointer kernel supports."""
    return wgrad((1, n - 1, 4, k // 4), (m - 1, n - 1, 1, 1))


def rows() -> Iterator[Row]:
    """A row for each tile."""
    for arithmetic in ("fp16", "fp32", "fp64"):  # bf16 and tf32 have the same tiles and need no more registers
        for m, n, k in itertools.product(POWERS, POWERS, POWERS[:3]):
            yield f"{m} x {n}, sum of {k}", arithmetic, False, product(m, n, k)
        for m, n, k in itertools.product(POWERS, POWERS[:3], POWERS[:2]):
            yield f"{m} x {n}, scattered sum of {k}", arithmetic, False, scattered_product(m, n, k)
    for i in range(4, 11):
        yield f"ReLU of {2**i}", "fp16", False, layer(lambda nn: nn.ReLU(), (2**i,))


def of_tma_tile(kernel: str, m: int, n: int) -> dict[str, Passes]:
    """Convolutions for a fixed tile of m by n, chosen by the caller for every product.

    For the kernel "conv2d", n is the number of pixels in a TMA box. For "wgrad", n is channels times taps of a program.
    """
    if kernel == "conv2d":
        return {f"tile of {m} x {n}": gather((11, 128, 56, 56), (128, 128, 3, 3), padding=1)}
    at_once = {c: n // c for c in (32, 64, 1 << n.bit_length() - 1) if n // c}
    return {
        f"{m} x {c} channels, 1 x {taps}, by {m} x {n}": wgrad((64, c, 1, 24), (m, c, 1, taps)) for c, taps in at_once.items()
    }


def convolutions() -> Iterator[Row]:
    """Convolutions that use all TMA tiles, with all kinds of operand loads."""
    for name, passes in itertools.chain(_gathers(), _wgrads()):
        yield name, "fp16", True, passes
        if " short" not in name:  # short sums have fewer stages
            yield name, "tf32", False, passes
            yield name, "fp32", True, passes
        if "1 x 1" in name or "fused" in name:  # these read contiguous images without a copy
            yield name, "fp16", False, passes
        if "fused" in name:  # statistics need more registers
            yield name, "bf16", False, passes


def _gathers() -> Iterator[tuple[str, Passes]]:
    # Number of images, and their rows and columns: enough pixels for tiles of 256, 128 and 64 pixels.
    images: Sequence[Shape] = (11, 56), (96, 14), (704, 7), (6, 56), (2, 56), (1, 56)
    for c, taps, (n, size) in itertools.product((64, 128), (3, 1), images):
        x, w, name = (n, c, size, size), (c, c, taps, taps), f"{c} channels, {taps} x {taps}, {n} of {size} x {size}"
        yield name, gather(x, w, padding=taps // 2)
        yield f"{name}, fused", conv_fused(x, w, padding=taps // 2)
    for c, stride, size in itertools.product((40, 48, 64, 80, 96), (1, 2, 3), (28, 33)):
        yield from _both(f"{c} channels, stride {stride}, {size} x {size}", (32, c, size, size), (c, c, 3, 3), stride, 1)
    for c, groups in ((64, 2), (128, 4), (8, 8)):
        yield from _both(f"{groups} groups of {c}", (32, c * groups, 28, 28), (c * groups, c, 3, 3), 1, 1, groups)


def _wgrads() -> Iterator[tuple[str, Passes]]:
    # Programs with each number of taps: taps of one filter row, then, for few channels, taps of one filter column.
    channels = 32, 64, 128, 256, 512, 40, 48, 56, 80, 88, 160, 176, 264
    for pixels, m, c, taps in itertools.product((24, 8), (64, 128), channels, range(1, 12)):
        name = f"{c} channels to {m}, taps of a row of {taps}, {'long' if pixels == 24 else 'short'} sums"
        yield name, wgrad((64, c, 1, pixels + taps - 1), (m, c, 1, taps))
    images, few = ((32, 112), (8, 64), (8, 32)), (1, 2, 3, 4, 6, 12, 24)
    for m, c, taps, stride, (n, size) in itertools.product((64, 128), few, (2, 3, 5, 7, 11), (1, 2, 4), images):
        name = f"{c} channels to {m}, {taps} x {taps}, stride {stride}, {n} of {size} x {size}"
        yield from _both(name, (n, c, size, size), (m, c, taps, taps), stride, taps // 2)
    # Runs of consecutive images and of consecutive columns, of each length.
    runs = (64, 7), (32, 7), (16, 14), (1, 64), (1, 32), (1, 16)
    for m, (n, size), stride, taps in itertools.product((64, 128), runs, (1, 2), (1, 3)):
        name = f"64 channels to {m}, {taps} x {taps}, stride {stride}, {n} of {size} x {size}"
        yield name, wgrad((n, 64, size, size), (m, 64, taps, taps), stride, taps // 2)


def _both(name: str, *conv: Any) -> Iterator[tuple[str, Passes]]:
    yield name, gather(*conv)
    yield name, wgrad(*conv)
