"""2-D convolution: y = x * w, its gradient with respect to the input, and its gradient with respect to the filters.

    fprop   y[n, k, p, q]  = sum_{c, r, s} x[n, c, h, w] * w[k, c, r, s] (+ b[k])
    dgrad   dx[n, c, h, w] = sum_{k, r, s} dy[n, k, p, q] * w[k, c, r, s] (+ b[c])
    wgrad   dw[k, c, r, s] = sum_{n, p, q} dy[n, k, p, q] * x[n, c, h, w]

    each with row h = p * stride - padding + r * dilation, and column w from q and s likewise

The names of the passes are cuDNN's: forward propagation, data gradient, weight gradient. Each pass is an implicit matrix
product: the kernels index its operands in place and never write the matrices to memory.

             M                  N            K (summed over)
    fprop    pixels (n, p, q)   filters k    taps and channels (r, s, c)
    dgrad    pixels (n, h, w)   channels c   taps and filters (r, s, k)
    wgrad    filters k          (r, s, c)    pixels (n, p, q)

A *tap* is a position (r, s) of a filter. Taps and channels share the K axis: with few channels, a block of K spans several
taps.

fprop and dgrad share one kernel, the *gather*: for every destination pixel, it gathers the source pixels under the taps. With
stride t, only some taps hit a dgrad pixel: every t-th one, if stride and dilation have no common factor. A *phase* is the set
of dgrad pixels with equal h mod t and equal w mod t. They share their taps, so a program computes pixels of a single phase.
There are t * t phases, or fewer if the image has fewer than t rows or columns.

wgrad divides its long K axis into *splits*, enough to fill the GPU. One program sums one split; reduce.py adds the partial
sums in a fixed order.

The kernels are in these files:

    depthwise.py       groups of one channel and few filters; most of them continue in depthwise_sliding.py
    tma.py             fprop and dgrad through TMA, Hopper's copy engine
    tma_wgrad.py       wgrad through TMA
    pointer.py         every other case

tma_box.py, few_channels.py and relayout.py prepare operands for TMA. fused.py has the launchers of fused operators. gemm_tile
in runtime/tuning.py chooses the tile of each product, and tma_box.py the shape of a TMA tile. The depthwise files plan their
own.

Every pass takes the size of its result, because the operands do not determine it: a strided convolution rounds down, and the
far edges (bottom, right) may have more padding than the near edges (top, left). `padding` is the near padding.
"""

from math import prod
from typing import Any

from torch import Tensor

from ..copy import dense, dense_or_one, fill
from ..device.epilogue import Epilogue
from ..device.indexing import PoolWindow
from ..runtime.allocate import empty, empty_like
from ..runtime.layout import Ints, is_channels_last
from ..runtime.op import op
from ..runtime.vmap import MergedAxes
from ..statistics2d import PartialStatistics
from .depthwise import depthwise2d_gather, depthwise2d_wgrad, is_depthwise
from .pointer import PointerGather, plan_pointer_gather, run_pointer_gather, run_pointer_wgrad
from .relayout import copy_into, has_strides
from .tma import TmaGather, plan_tma_gather, run_tma_gather
from .tma_wgrad import plan_tma_wgrad, run_tma_wgrad

ONE_PIXEL = PoolWindow(1, 1)
# torch.vmap of x alone merges the mapped axis into the images; of filters too, into the channels, as more groups.
IMAGES_OR_GROUPS = (MergedAxes((0, None, None), (0,)), MergedAxes((1, 0, 0), (1,)))


def empty_fprop(x, w, b, size, stride, padding, dilation, groups):
    return empty(x, (x.shape[0], w.shape[0], *size), is_channels_last(x, w))


def _empty_dgrad(dy, w, b, size, stride, padding, dilation, groups):
    return empty(dy, (dy.shape[0], w.shape[1] * groups, *size), is_channels_last(dy, w))


def _empty_wgrad(x, dy, size, stride, padding, dilation, groups):
    return empty(x, (dy.shape[1], x.shape[1] // groups, *size), is_channels_last(x, dy))


def count_flops(x: Any, w: Any, size: Any, **_: Any) -> int:
    """The FLOPs of fprop as torch counts them, without those of a fused operator."""
    return 2 * x[0] * prod(size) * prod(w)


@op(fake=empty_fprop, vmap=IMAGES_OR_GROUPS, flops=count_flops)
def conv2d_fprop(
    x: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """2-D convolution (cross-correlation), as `torch.nn.functional.conv2d`.

        y[n, k, p, q] = sum_{c, r, s} x[n, c, h, w] * w[k, c, r, s] + b[k]    with h = p * stride - padding + r * dilation

    Args:
        x: (N, C, H, W), any strides.
        w: (K, C / groups, R, S), same dtype as `x`.
        b: (K), or None.
        size: (P, Q); windows past the far edge read zeros.
        stride, padding, dilation: in pixels, for height and width; `padding` is at the near edges.

    Returns:
        (N, K, P, Q), channels_last if `x` or `w` is.
    """
    y = empty_fprop(x, w, b, size, stride, padding, dilation, groups)
    plan = plan_gather(x, w, y.shape, is_channels_last(y), stride, padding, dilation, groups)
    run_gather(plan, x, w, Epilogue(bias=b), y, stride, padding, dilation, groups)
    return y


@op(
    fake=_empty_dgrad,
    vmap=IMAGES_OR_GROUPS,
    flops=lambda dy, w, **_: 2 * dy[0] * prod(dy[2:]) * prod(w),
)
def conv2d_dgrad(
    dy: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Gradient of conv2d with respect to its input, which is also a transposed convolution.

        dx[n, c, h, w] = sum_{k, r, s} dy[n, k, p, q] * w[k, c, r, s] + b[c]    with h = p * stride - padding + r * dilation

    Args:
        dy: (N, K, P, Q), any strides.
        w: (K, C / groups, R, S), same dtype as `dy`.
        b: (C), or None.
        size: (H, W).
        stride, padding, dilation: in pixels, for height and width; `padding` is at the near edges.

    Returns:
        (N, C, H, W), channels_last if `dy` or `w` is.
    """
    dx = _empty_dgrad(dy, w, b, size, stride, padding, dilation, groups)
    plan = plan_gather(dy, w, dx.shape, is_channels_last(dx), stride, padding, dilation, groups, adjoint=True)
    run_gather(plan, dy, w, Epilogue(bias=b), dx, stride, padding, dilation, groups, adjoint=True)
    return dx


@op(fake=_empty_wgrad, vmap=(MergedAxes((1, 1), (0,)),), flops=lambda x, dy, size, **_: 2 * x[1] * prod(size) * prod(dy))
def conv2d_wgrad(x: Tensor, dy: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """Gradient of conv2d with respect to its filters.

        dw[k, c, r, s] = sum_{n, p, q} dy[n, k, p, q] * x[n, c, h, w]    with h = p * stride - padding + r * dilation

    Args:
        x: (N, C, H, W), any strides.
        dy: (N, K, P, Q), same dtype as `x`, any strides.
        size: (R, S).
        stride, padding, dilation: in pixels, for height and width; `padding` is at the near edges.

    Returns:
        (K, C / groups, R, S), channels_last if `x` or `dy` is.
    """
    dw = _empty_wgrad(x, dy, size, stride, padding, dilation, groups)
    if dy.numel() == 0:
        return fill(dw, 0.0)
    if is_depthwise(dw, groups):
        return depthwise2d_wgrad(x, dy, dw, stride, padding, dilation)
    if plan := plan_tma_wgrad(x, dy, size, stride, padding, dilation, groups):
        return run_tma_wgrad(plan, dw, groups)
    return run_pointer_wgrad(x, dy, dw, stride, padding, dilation, groups)


def plan_gather(
    source: Tensor, weight: Tensor, shape: Ints, channels_last: bool,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool = False,
) -> TmaGather | PointerGather | None:  # fmt: skip
    """Plan fprop or, if `adjoint`, dgrad for a result of this shape and memory format; None stands for the depthwise kernels.

    Args:
        source, weight: x and w in fprop, dy and w in dgrad.
    """
    if is_depthwise(weight, groups):
        return None
    plan = plan_tma_gather(source, weight, shape, channels_last, stride, padding, dilation, groups, adjoint)
    return plan or plan_pointer_gather(source, weight, shape, stride, groups, adjoint)


def run_gather(
    plan: TmaGather | PointerGather | None, source: Tensor, weight: Tensor, epilogue: Epilogue, result: Tensor,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool = False,
    partials: PartialStatistics | None = None, codes: Tensor | None = None, window: PoolWindow = ONE_PIXEL,
) -> None:  # fmt: skip
    """Fill the result of fprop or, if `adjoint`, of dgrad, and apply the epilogue.

    Args:
        plan: from `plan_gather`.
        source, weight: x and w in fprop, dy and w in dgrad.
        epilogue: its vectors and its residual may have any strides.
        partials: filled with the statistics of each of the `plan.partials` pixel tiles; not for depthwise groups.
        codes: filled with the argmax position of each `window` of a max pooling, whose maxima are then the result; only for a
            PointerGather.
    """
    epilogue = epilogue._replace(
        scale=dense(epilogue.scale), bias=dense(epilogue.bias), slopes=dense_or_one(epilogue.slopes),
        residual=_in_order_of(result, epilogue.residual),
    )  # fmt: skip
    if plan is None:
        depthwise2d_gather(source, weight, epilogue, result, stride, padding, dilation, adjoint)
    elif isinstance(plan, TmaGather):
        run_tma_gather(plan, weight, epilogue, result, padding, dilation, groups, adjoint, partials)
    else:
        run_pointer_gather(
            plan, source, weight, epilogue, result, stride, padding, dilation, groups, adjoint, partials, codes, window
        )


def _in_order_of(result: Tensor, residual: Tensor | None) -> Tensor | None:
    """The residual with the strides of the result: itself, or a copy. None stays None."""
    if residual is None or result.numel() == 0 or has_strides(residual, result.stride()):
        return residual
    return copy_into(residual, empty_like(result))
