"""Batch normalisation over the images of several processes: what each of them computes from what all of them know.

    dx = w * s * (dy - db / m - z * dw / m)    with dw, db and m those of all processes together

Statistics are merged by statistics2d.py, and all else is one process's own, in batchnorm2d.py. Processes exchange their parts,
and each adds them up by itself, in the order of the processes: all have the same bits, on every run.
"""

import triton
import triton.language as tl
from torch import Tensor

from trinn.kernels.launch import empty, index_type, launch
from trinn.kernels.op import op
from trinn.kernels.precision import divided
from trinn.kernels.statistics2d import parts_at_once, pixels_of_all
from trinn.kernels.tuning import elementwise_block


@triton.jit
def _sums_kernel(
    sums, counts, merged,
    counts_stride,
    elements, parts, pixels: tl.float64,
    INDEX: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of the merged sums, part after part."""
    element = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, merged.dtype.element_ty)
    for part in range(0, parts):
        total += tl.load(sums + tl.full((), part, INDEX) * elements + element, mask=element < elements, other=0.0)
    pixels_here = tl.full((), pixels, merged.dtype.element_ty)
    share = divided(pixels_here, pixels_of_all(counts, counts_stride, parts, INDEX, PARTS))
    tl.store(merged + element, total * share, mask=element < elements)


def _empty_merged(sums: Tensor, counts: Tensor, pixels: int) -> Tensor:
    return empty(sums, sums.shape[1:])


@op(fake=_empty_merged)
def sync_batchnorm_sums(sums: Tensor, counts: Tensor, pixels: int) -> Tensor:
    """The sums over all parts of a batch, times one part's share of the pixels: what batchnorm2d_backward takes for that part.

    Args:
        sums: (P, 2, C), any strides; what batchnorm2d_sums returned for each part.
        counts: (P), the same dtype, any stride; how many pixels each part has, 0 allowed.
        pixels: how many this part has.

    Returns:
        (2, C).
    """
    sums = sums.contiguous()
    merged = _empty_merged(sums, counts, pixels)
    parts, block = sums.shape[0], elementwise_block(merged.numel())
    launch(
        _sums_kernel, triton.cdiv(merged.numel(), block), sums, counts, merged,
        counts.stride(0),
        merged.numel(), parts, float(pixels),
        INDEX=index_type(sums), BLOCK=block, PARTS=parts_at_once(sums, parts), device=sums.device,
    )  # fmt: skip
    return merged
