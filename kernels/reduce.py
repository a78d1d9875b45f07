"""Sums in a fixed order: partial results of a split reduction, and the sum over all but the channels.

    channel_sum   db[c] = sum_{n, h, w} x[n, c, h, w]

A long reduction is cut into parts that fill the GPU. Each part is summed by one program, in the accumulator's precision; a
second pass adds the parts one after the other. There are no atomics, so the same inputs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.epilogue import rectified
from trinn.kernels.launch import empty, index_type, launch
from trinn.kernels.op import op
from trinn.kernels.precision import accumulator
from trinn.kernels.tuning import elementwise_block
from trinn.kernels.walk import channels_of, offsets_of, part_of, pixels_of, walk


@triton.jit
def _sum_partials_kernel(
    partials, total, elements, parts, RELU: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr
):
    """BLOCK elements of the total: the sum over the parts, PARTS of them at a time."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.full((PARTS, BLOCK), 0.0, partials.dtype.element_ty)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS).to(INDEX)
        at = (part * elements)[:, None] + element[None, :]
        acc += tl.load(partials + at, mask=(part < parts)[:, None] & (element < elements)[None, :], other=0.0)
    value = tl.sum(acc, axis=0)
    if RELU:
        value = rectified(value)
    tl.store(total + element, value.to(total.dtype.element_ty), mask=element < elements)


@triton.jit
def _channel_sum_kernel(
    x, partials,
    x_strides,
    sizes, parts, chunks_per_part,
    ACCUMULATOR: tl.constexpr, INDEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sums of a tile's channels over one part of the pixels."""
    channels = sizes[0]
    program = tl.program_id(0)
    part = (program % parts).to(INDEX)
    c = channels_of(program // parts, INDEX, TILE)
    first, last = part_of(part, chunks_per_part, sizes, TILE)
    acc = tl.full((TILE.channels, TILE.pixels), 0.0, ACCUMULATOR)
    for chunk in range(first, last):
        at_outer, at_inner, exists = pixels_of(chunk, sizes, INDEX, TILE)
        at = offsets_of(c, at_outer, at_inner, sizes, x_strides)
        acc += tl.load(x + at, mask=(c < channels)[:, None] & exists[None, :], other=0.0).to(ACCUMULATOR)
    tl.store(partials + part * channels + c, tl.sum(acc, axis=1).to(partials.dtype.element_ty), mask=c < channels)


def partials_of(total: Tensor, parts: int) -> Tensor:
    """Room for that many partial results, each laid out like the total; the total itself if there is only one."""
    if parts == 1:
        return total
    dtype = torch.float64 if total.dtype == torch.float64 else torch.float32
    return torch.empty((parts, total.numel()), dtype=dtype, device=total.device)


def sum_partials(partials: Tensor, total: Tensor, relu: bool = False) -> Tensor:
    """Fill a dense `total` with the sum of its partial results, from `partials_of`; `relu` is for more than one of them."""
    if partials is not total:
        room = elementwise_block(partials.numel())
        at_once = min(triton.next_power_of_2(partials.shape[0]), max(1, room // 16))
        block = room // at_once
        launch(
            _sum_partials_kernel, triton.cdiv(total.numel(), block), partials, total, total.numel(), partials.shape[0],
            RELU=relu, INDEX=index_type(partials), BLOCK=block, PARTS=at_once, device=total.device,
        )  # fmt: skip
    return total


def _empty_channel_sum(x: Tensor) -> Tensor:
    return empty(x, (x.shape[1],))


@op(fake=_empty_channel_sum)
def channel_sum(x: Tensor) -> Tensor:
    """The sum of each channel, which is the gradient of a bias.

    Args:
        x: (N, C, H, W), any strides.

    Returns:
        (C), of the dtype of `x`.
    """
    total = _empty_channel_sum(x)
    if x.numel() == 0:
        return total.zero_()
    path = walk(x)
    parts, chunks = path.parts()
    partials = partials_of(total, parts)
    launch(
        _channel_sum_kernel, path.tiles * parts, x, partials,
        *path.strides,
        path.sizes, parts, chunks,
        ACCUMULATOR=accumulator(x.dtype), INDEX=index_type(x), TILE=path.tile, warps=8, device=x.device,
    )  # fmt: skip
    return sum_partials(partials, total)
