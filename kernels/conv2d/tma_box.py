"""TMA boxes: their shape with the least work, and the images TMA can read in place.

TMA is Hopper's copy engine. A *TMA box* (CUDA's boxDim) is the block of a tensor that one TMA copy moves. A TMA descriptor
holds the address, sizes and strides of a tensor with up to five axes. The innermost axis must be contiguous. The address and
all other strides must be multiples of 16 bytes. Where a box reaches beyond an axis, TMA writes zeros.

A *run* is a sequence of consecutive pixels of one row, or of one pixel in consecutive images. wgrad sums over runs.
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
    """The pixels of the result that one program computes: `images` x `rows` x `columns`.

    For each tap, the pixels of the source under it are one TMA box of the same shape.
    """

    images: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.images * self.rows * self.columns


class GatherAxis(NamedTuple):
    """Height or width in fprop or, if `adjoint`, in dgrad: the sizes of the result and the source."""

    size: int
    source: int
    axis: Axis
    adjoint: bool
    one: bool = False  # whether boxes must have a single pixel along this axis

    def work(self, block: int) -> int:
        """The number of taps multiplied by all boxes of `block` pixels along the axis.

        A box skips the taps outside the image for all of its pixels. In dgrad, a box without taps counts as one: it
        multiplies zeros.
        """
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
    """The `count` of hitting_taps in indexing.py, computed on the host."""
    low, high = -start - reach, size - 1 - start
    first, last = (-(-low // step), high // step) if step > 0 else (-(high // -step), -low // -step)
    return max(0, min(last, taps - 1) - max(first, 0) + 1)


@functools.lru_cache(maxsize=4096)
def best_box(pixels: int, images: int, rows: GatherAxis, columns: GatherAxis, slack: float = 0.0) -> Box:
    """The box with `pixels` pixels (a power of two) that does the least work; ties go to the longest rows.

    A box ties if its work exceeds the least by at most the share `slack`.
    """
    powers = [1 << i for i in range(pixels.bit_length())]
    works_h = {high: rows.work(high) for high in (powers[:1] if rows.one else powers)}
    works_w = {wide: columns.work(wide) for wide in (powers[:1] if columns.one else powers)}
    boxes = [Box(pixels // (h * w), h, w) for h in works_h for w in works_w if h * w <= pixels]
    works = [-(-images // b.images) * works_h[b.rows] * works_w[b.columns] for b in boxes]
    good = [box for box, work in zip(boxes, works, strict=True) if work <= (1 + slack) * min(works)]
    return max(good, key=lambda b: (b.columns, b.rows))


def best_run(most: int, images: int, columns: int) -> tuple[int, bool]:
    """The length of wgrad's runs, at most `most`, and whether a run crosses images; length 0 if every run wastes too much.

    A run wastes its pixels beyond the last image or column. Short runs lose time, because the matrix units wait for data: a run
    of n pixels is assumed to have 0.7 + 0.3 * n / most of the full speed. The best run has the largest product of speed and
    share of useful pixels, and the product must exceed 0.3.
    """
    lengths = [n for n in (most, most // 2, most // 4) if n >= 16 or n == most]
    runs = [(size / (-(-size // n) * n) * (0.7 + 0.3 * n / most), of_images, n)
             for of_images, size in ((True, images), (False, columns)) for n in lengths if size]  # fmt: skip
    share, of_images, length = max(runs, default=(0.0, True, 0))
    return (length, of_images) if share > 0.3 else (0, True)


def tma_descriptor(tensor: Tensor, shape: Ints, strides: Ints, block: Ints) -> TensorDescriptor:
    """A descriptor of a tensor, copied in boxes of shape `block`.

    TMA rounds float32 to TF32 if this version of Triton can request it. Otherwise the matrix unit truncates.
    """
    return TensorDescriptor(
        tensor, list(shape), list(strides), list(block), **(_ROUNDED if tensor.dtype == torch.float32 else {})
    )


def tma_can_read(image: Tensor, innermost: int = 1) -> bool:
    """Whether TMA can read an image in place: `innermost` axis contiguous, address and other strides multiples of 16 bytes.

    The column stride must be below 2^24, so that a merged span of columns fits in int32.
    """
    strides = tma_strides(image, innermost)
    others = [s * image.dtype.itemsize for axis, s in enumerate(strides) if axis != innermost]
    begins = image.data_ptr() % 16 == 0 and all(s > 0 and s % 16 == 0 for s in others)
    return begins and strides[innermost] == 1 and strides[3] < 2**24


def tma_strides(image: Tensor, innermost: int = 1) -> list[int]:
    """The strides of an image for its descriptor.

    torch allows any stride for an axis of one element. Here such an axis has the smallest stride TMA accepts.
    """
    unit = 16 // image.dtype.itemsize
    least = triton.cdiv(image.shape[innermost], unit) * unit
    sizes = enumerate(zip(image.shape, image.stride(), strict=True))
    return [s if size > 1 else 1 if axis == innermost else least for axis, (size, s) in sizes]


def flat_view(image: Tensor) -> Tensor | None:
    """A dense channels_last image with all its pixels as a single row; None for any other image."""
    n, c, h, w = image.shape
    s_n, s_c, s_h, s_w = tma_strides(image)
    dense = (c == 1 or s_c == 1) and (h == 1 or s_h == w * s_w) and (n == 1 or s_n == h * w * s_w)
    dense &= n * h * w < 2**31 - 2**20  # TMA coordinates are int32
    return image.as_strided((1, c, 1, n * h * w), (s_w, 1, s_w, s_w)) if dense else None


def planar_view(image: Tensor) -> Tensor | None:
    """A contiguous image with each (H, W) plane of one channel as a single row; None if TMA cannot read it in place."""
    n, c, h, w = image.shape
    s_n, s_c, s_h, s_w = image.stride()
    rows = (w == 1 or s_w == 1) and (h == 1 or s_h == w)
    aligned = image.data_ptr() % 16 == 0 and all(s * image.dtype.itemsize % 16 == 0 and s > 0 for s in (s_n, s_c))
    return image.as_strided((n, c, 1, h * w), (s_n, s_c, s_c, 1)) if rows and aligned else None
