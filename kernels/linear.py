"""Linear layer: y = x @ w^T + b, and its gradients.

    fprop   y[m, n]  = sum_k x[m, k] * w[n, k] + b[n]
    dgrad   dx[m, k] = sum_n dy[m, n] * w[n, k]
    wgrad   dw[n, k] = sum_m dy[m, n] * x[m, k]

One kernel computes all three as a (M, K) @ b (K, N), since it takes its operands by their strides. In the kernel, M, N and K
are the sizes of the product at hand; in the launchers, they are the sizes of m, n and k above. If a product has few output
tiles and a long sum, the sum is divided into *splits*, enough to fill the GPU. reduce.py adds the sums of the splits in a fixed
order.
"""

from math import prod
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .copy import dense, dense_or_one
from .device.epilogue import NO_EPILOGUE, Epilogue, activate_channels, scale_and_shift
from .device.indexing import cdiv
from .device.precision import accumulator, dot, matmul_precision
from .reduce import partials_of, sum_partials
from .runtime.allocate import empty
from .runtime.launch import launch
from .runtime.layout import index_type
from .runtime.op import op
from .runtime.tuning import Gemm, count_splits, gemm_tile
from .runtime.vmap import MergedAxes


@triton.jit
def _linear_matmul_kernel(
    a, b, scale, bias, slopes, slope_stride, partials, kept,
    a_strides, b_strides, split_stride,
    M, N, K, k_per_split,
    ACTIVATION: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M, BLOCK_N) tile of a (M, K) @ b (K, N), summed over one split of K. The result is contiguous."""
    a_m, a_k = a_strides
    b_k, b_n = b_strides
    m_tiles, n_tiles = cdiv(M, BLOCK_M), cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    m_tile, program = program % m_tiles, program // m_tiles
    n_tile, split = program % n_tiles, program // n_tiles

    m = m_tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = n_tile.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split.to(INDEX) * k_per_split
    last = tl.minimum(first + k_per_split, K)
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, ACCUMULATOR)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(INDEX)
        at = (m * a_m)[:, None] + (k * a_k)[None, :]
        left = tl.load(a + at, mask=(m < M)[:, None] & (k < last)[None, :], other=0.0)
        at = (k * b_k)[:, None] + (n * b_n)[None, :]
        right = tl.load(b + at, mask=(k < last)[:, None] & (n < N)[None, :], other=0.0)
        acc = dot(left, right, acc, PRECISION)
    # The first split adds the bias. Only a single split has an activation; else sum_partials applies it.
    exists = (n < N)[None, :]
    acc = scale_and_shift(acc, scale, bias, n[None, :], exists & (split == 0))
    at = split.to(INDEX) * split_stride + (m * N)[:, None] + n[None, :]
    if kept is not None:
        tl.store(kept + at, acc.to(kept.dtype.element_ty), mask=(m < M)[:, None] & exists)
    acc = activate_channels(acc, slopes, slope_stride, n[None, :], exists, ACTIVATION)
    tl.store(partials + at, acc.to(partials.dtype.element_ty), mask=(m < M)[:, None] & exists)


def _empty_fprop(x: Tensor, w: Tensor, b: Any, slopes: Any, activation: str) -> Tensor:
    return empty(x, (x.shape[0], w.shape[0]))


def _empty_both(x: Tensor, w: Tensor, b: Any, slopes: Any, activation: str) -> tuple[Tensor, Tensor]:
    return _empty_fprop(x, w, b, slopes, activation), _empty_fprop(x, w, b, slopes, activation)


def _count_flops(x: Any, w: Any, **_: Any) -> int:
    return 2 * x[0] * prod(w)


def _empty_dgrad(dy: Tensor, w: Tensor) -> Tensor:
    return empty(dy, (dy.shape[0], w.shape[1]))


def _empty_wgrad(x: Tensor, dy: Tensor) -> Tensor:
    return empty(x, (dy.shape[1], x.shape[1]))


@op(fake=_empty_fprop, vmap=(MergedAxes((0, None, None, None), (0,)),), flops=_count_flops)
def linear_fprop(x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, activation: str) -> Tensor:
    """x @ w^T + b, or an activation of it.

    Args:
        x: (M, K), any strides.
        w: (N, K), same dtype, any strides.
        b: (N), or None.
        slopes: (N), any stride, for "prelu"; else None.
        activation: one of ACTIVATIONS with its parameters; empty for none.

    Returns:
        (M, N), contiguous.
    """
    return _matmul(
        x, w.T, _empty_fprop(x, w, b, slopes, activation), Epilogue(None, dense(b), dense_or_one(slopes), activation)
    )


@op(fake=_empty_both, vmap=(MergedAxes((0, None, None, None), (0, 0)),), flops=_count_flops)
def linear_activation(x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """(y, z): z = x @ w^T + b and its activation y, for activations whose gradient needs z. Arguments as in linear_fprop."""
    y, z = _empty_both(x, w, b, slopes, activation)
    return _matmul(x, w.T, y, Epilogue(None, dense(b), dense_or_one(slopes), activation, z)), z


@op(fake=_empty_dgrad, vmap=(MergedAxes((0, None), (0,)),), flops=lambda dy, w, **_: 2 * dy[0] * prod(w))
def linear_dgrad(dy: Tensor, w: Tensor) -> Tensor:
    """Gradient of linear with respect to its input: dy (M, N) @ w (N, K) -> (M, K)."""
    return _matmul(dy, w, _empty_dgrad(dy, w))


@op(fake=_empty_wgrad, vmap=(), flops=lambda x, dy, **_: 2 * prod(x) * dy[1])
def linear_wgrad(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient of linear with respect to its weight: dy (M, N) transposed @ x (M, K) -> (N, K)."""
    return _matmul(dy.T, x, _empty_wgrad(x, dy))


def _matmul(a: Tensor, b: Tensor, result: Tensor, epilogue: Epilogue = NO_EPILOGUE) -> Tensor:
    """Fill and return a contiguous result: a @ b with an epilogue."""
    (m, k), n = a.shape, b.shape[1]
    precision = matmul_precision(a.dtype, a.device)
    tile = gemm_tile(Gemm("linear", m, n, k, a.dtype, precision), a.device)
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    if tiles == 0:
        return result
    splits = count_splits(tiles, k, tile.k)
    partials = partials_of(result, splits)
    of_splits = epilogue if splits == 1 else Epilogue(bias=epilogue.bias)
    launch(
        _linear_matmul_kernel, tiles * splits, a, b, *of_splits.operands, partials, of_splits.kept,
        a.stride(), b.stride(), result.numel(),
        m, n, k, triton.cdiv(triton.cdiv(k, splits), tile.k) * tile.k,
        ACTIVATION=of_splits.constant, ACCUMULATOR=accumulator(a.dtype), PRECISION=precision,
        INDEX=index_type(a, b, partials),
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, warps=tile.warps, stages=tile.stages, device=a.device,
    )  # fmt: skip
    return sum_partials(partials, result, epilogue)
