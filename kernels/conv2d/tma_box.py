"""Boxes of pixels that a copy engine moves: which shape wastes the least, and the images that it can take as they lie.

A descriptor says where an image lies: up to five axes, the innermost of which lies side by side, while all others, and the
image itself, begin at multiples of 16 bytes. What a box covers beyond an axis is read as zeros.
"""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device.indexing import Axis
from ..runtime.layout import Ints

_ROUNDED = {"round_f32_to_tf32": True} if "round_f32_to_tf32" in TensorDescriptor.__dataclass_fields__ else {}


class Box(NamedTuple):
    """Pixels that one program computes, of so many images, rows and columns."""

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


class GatherAxis(NamedTuple):
    """One axis of a pass that gathers: the sizes of its result and its source, and whether it is the adjoint."""

    size: int
    source: int
    axis: Axis
    adjoint: bool
    one: bool = False  # a box has a single pixel along it

    def work(self, block: int) -> int:
        """How many taps boxes of so many pixels multiply along the whole axis."""
        taps, stride, padding, dilation = self.axis
        if not self.adjoint:
            starts = range(-padding, self.size * stride - padding, block * stride)
            return sum(_hits(start, (block - 1) * stride, self.source, dilation, taps) for start in starts)
        total = 0
        for phase in range(min(stride, self.size)):
            shifted = phase + padding
            tap = shifted % stride // self.axis.gcd * self.axis.inverse % self.axis.tap_step
            hits = -(-(taps - tap) // self.axis.tap_step) if shifted % self.axis.gcd == 0 else 0
            first = (shifted - tap * dilation) // stride
            starts = range(first, first + -(-self.size // stride), block)
            total += sum(max(1, _hits(start, block - 1, self.source, -self.axis.tap_back, hits)) for start in starts)
        return total


def _hits(start: int, reach: int, size: int, step: int, taps: int) -> int:
    """As indexing.py's hitting_taps."""
    low, high = -start - reach, size - 1 - start
    first, last = (-(-low // step), high // step) if step > 0 else (-(high // -step), -low // -step)
    return max(0, min(last, taps - 1) - max(first, 0) + 1)


@functools.lru_cache(maxsize=4096)
def best_box(pixels: int, images: int, rows: GatherAxis, columns: GatherAxis, slack: float = 0.0) -> Box:
    """The box of so many pixels, a power of two, with which the fewest are multiplied; of several, that with long rows.

    And of those, too, with which at most that share more are, the `slack`.
    """
    powers = [1 << i for i in range(pixels.bit_length())]
    works_h = {high: rows.work(high) for high in (powers[:1] if rows.one else powers)}
    works_w = {wide: columns.work(wide) for wide in (powers[:1] if columns.one else powers)}
    boxes = [Box(pixels // (h * w), h, w) for h in works_h for w in works_w if h * w <= pixels]
    works = [-(-images // b.images) * works_h[b.rows] * works_w[b.columns] for b in boxes]
    good = [box for box, work in zip(boxes, works, strict=True) if work <= (1 + slack) * min(works)]
    return max(good, key=lambda b: (b.columns, b.rows))


def best_run(most: int, images: int, columns: int) -> tuple[int, bool]:
    """The length of the lines of pixels that wgrad sums over, and whether they run along the images; 0 if all waste too much.

    Short ones keep the matrix units waiting.
    """
    lengths = [n for n in (most, most // 2, most // 4) if n >= 16 or n == most]
    lines = [(size / (-(-size // n) * n) * (0.7 + 0.3 * n / most), of_images, n)
             for of_images, size in ((True, images), (False, columns)) for n in lengths if size]  # fmt: skip
    share, of_images, length = max(lines, default=(0.0, True, 0))
    return (length, of_images) if share > 0.3 else (0, True)


def tma_descriptor(tensor: Tensor, shape: Ints, strides: Ints, block: Ints) -> TensorDescriptor:
    """For float32, one that rounds to TF32 on the way where Triton can; elsewhere the matrix unit cuts off what TF32 lacks."""
    return TensorDescriptor(
        tensor, list(shape), list(strides), list(block), **(_ROUNDED if tensor.dtype == torch.float32 else {})
    )


def tma_can_read(image: Tensor, innermost: int = 1) -> bool:
    """Whether boxes can be copied from where it lies: one axis side by side, all else at multiples of 16 bytes.

    Columns must not lie so far apart that some of them as one are more elements than int32 counts.
    """
    strides = tma_strides(image, innermost)
    others = [s * image.dtype.itemsize for axis, s in enumerate(strides) if axis != innermost]
    begins = image.data_ptr() % 16 == 0 and all(s > 0 and s % 16 == 0 for s in others)
    return begins and strides[innermost] == 1 and strides[3] < 2**24


def tma_strides(image: Tensor, innermost: int = 1) -> list[int]:
    """Its strides; of an axis of one element, which may have any, the least that a descriptor takes."""
    unit = 16 // image.dtype.itemsize
    least = triton.cdiv(image.shape[innermost], unit) * unit
    sizes = enumerate(zip(image.shape, image.stride(), strict=True))
    return [s if size > 1 else 1 if axis == innermost else least for axis, (size, s) in sizes]


def flat_view(image: Tensor) -> Tensor | None:
    """All pixels of a channels_last image as one row, if they lie side by side."""
    n, c, h, w = image.shape
    s_n, s_c, s_h, s_w = tma_strides(image)
    side_by_side = (c == 1 or s_c == 1) and (h == 1 or s_h == w * s_w) and (n == 1 or s_n == h * w * s_w)
    side_by_side &= n * h * w < 2**31 - 2**20  # coordinates are int32
    return image.as_strided((1, c, 1, n * h * w), (s_w, 1, s_w, s_w)) if side_by_side else None


def planar_view(image: Tensor) -> Tensor | None:
    """Each image of a contiguous one as a row of pixels, if the copy engine can take them as they lie."""
    n, c, h, w = image.shape
    s_n, s_c, s_h, s_w = image.stride()
    rows = (w == 1 or s_w == 1) and (h == 1 or s_h == w)
    aligned = image.data_ptr() % 16 == 0 and all(s * image.dtype.itemsize % 16 == 0 and s > 0 for s in (s_n, s_c))
    return image.as_strided((n, c, 1, h * w), (s_n, s_c, s_c, 1)) if rows and aligned else None
