"""2-D convolution fused with the operator after it: the convolution's kernel applies it while the result is in registers.

    affine        y = f(scale[k] * (x * w) + shift[k] + residual)    an activation f; a bias, or a batch normalisation by given
                                                                     statistics; a residual of the shape of y
    activation    the same without scale, and also the argument of f, for the gradient
    max_pool2d    y = max over windows of f(x * w + b)
    statistics    y = x * w + b, and its mean and variance per channel, the first step of a batch normalisation

The gradients are those of the separate operators. Arguments are those of conv2d_fprop.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

from ..device.epilogue import Epilogue
from ..device.indexing import PoolWindow
from ..pool2d import code_type, max_pool2d_forward
from ..runtime.allocate import empty, empty_like
from ..runtime.layout import Ints, has_one_order, is_channels_last
from ..runtime.op import op
from ..runtime.vmap import MergedAxes
from ..statistics2d import batchnorm2d_merge, batchnorm2d_statistics, empty_partial_statistics
from .passes import count_flops, empty_fprop, plan_gather, run_gather
from .pointer import PointerGather

_VMAP = MergedAxes((0, None, None, None, None, 0), (0,)), MergedAxes((1, 0, 0, 0, 0, 1), (1,))
_VMAP_BOTH = MergedAxes((0, None, None, None, 0), (0, 0)), MergedAxes((1, 0, 0, 0, 1), (1, 1))


def _empty_affine(x, w, scale, shift, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint):
    shape = x.shape[0], w.shape[1] * groups if adjoint else w.shape[0], *size
    return empty(x, shape, _channels_last(x, w, shape))


def _empty_both(x, w, b, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint):
    y = _empty_affine(x, w, None, b, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint)
    return y, empty_like(y)


def _channels_last(x, w, shape):
    """Whether the fused result is channels_last. If both orders are the same, activations and batch norm return contiguous."""
    return is_channels_last(x, w) and not has_one_order(shape)


def _count_flops(x: Any, w: Any, size: Any, adjoint: bool, **_: Any) -> int:
    return 2 * x[0] * prod(x[2:] if adjoint else size) * prod(w)


def _empty_max_pool2d(
    x, w, b, activation, size, stride, padding, dilation, groups,
    pooled, window, window_stride, window_padding, window_dilation,
):  # fmt: skip
    shape, channels_last = (x.shape[0], w.shape[0], *pooled), _channels_last(x, w, (x.shape[0], w.shape[0], *size))
    return empty(x, shape, channels_last), empty(x, shape, channels_last, code_type(window))


def _empty_statistics(x, w, b, size, stride, padding, dilation, groups):
    mean = empty(x, (w.shape[0],), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return empty_fprop(x, w, b, size, stride, padding, dilation, groups), mean, empty_like(mean)


@op(fake=_empty_affine, vmap=_VMAP, flops=_count_flops)
def conv2d_affine(
    x: Tensor, w: Tensor, scale: Tensor | None, shift: Tensor | None, slopes: Tensor | None, residual: Tensor | None,
    activation: str, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool,
) -> Tensor:  # fmt: skip
    """An activation of scale * conv2d(x, w) + shift + residual.

    Args:
        scale, shift: (K), any floating dtype; None is 1 and 0.
        slopes: (K), any stride, for "prelu"; else None.
        residual: the shape and dtype of the result, any strides; it is copied if these differ from the result's.
        activation: one of ACTIVATIONS with its parameters; empty for none.
        adjoint: whether to compute conv2d_dgrad, a transposed convolution, in place of conv2d_fprop.

    Returns:
        (N, K, P, Q), channels_last if `x` or `w` is.
    """
    y = _empty_affine(x, w, scale, shift, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint)
    _run(x, w, Epilogue(scale, shift, slopes, activation, residual=residual), y, stride, padding, dilation, groups, adjoint)
    return y


@op(fake=_empty_both, vmap=_VMAP_BOTH, flops=_count_flops)
def conv2d_activation(
    x: Tensor, w: Tensor, b: Tensor | None, slopes: Tensor | None, residual: Tensor | None, activation: str, size: Ints,
    stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y, z): z = conv2d(x, w, b) + residual and its activation y, for activations whose gradient needs z.

    The arguments are those of conv2d_affine.
    """
    y, z = _empty_both(x, w, b, slopes, residual, activation, size, stride, padding, dilation, groups, adjoint)
    _run(x, w, Epilogue(None, b, slopes, activation, z, residual), y, stride, padding, dilation, groups, adjoint)
    return y, z


def _run(
    x: Tensor, w: Tensor, epilogue: Epilogue, y: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, adjoint: bool
) -> None:
    plan = plan_gather(x, w, y.shape, is_channels_last(y), stride, padding, dilation, groups, adjoint)
    run_gather(plan, x, w, epilogue, y, stride, padding, dilation, groups, adjoint)


@op(fake=_empty_max_pool2d, vmap=(MergedAxes((0, None, None), (0, 0)), MergedAxes((1, 0, 0), (1, 1))), flops=count_flops)
def conv2d_activation_max_pool2d(
    x: Tensor, w: Tensor, b: Tensor | None, activation: str, size: Ints, stride: Ints, padding: Ints, dilation: Ints,
    groups: int, pooled: Ints, window: Ints, window_stride: Ints, window_padding: Ints, window_dilation: Ints,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The largest value of each window of an activation of conv2d(x, w, b).

    The convolution's kernel also pools if the windows are adjacent and have 2, 4, 8 or 16 pixels: then its tiles consist of
    whole windows. With overlapping windows it would compute pixels several times, so a second kernel pools. A second kernel
    also pools if the convolution is depthwise or runs through TMA, Hopper's copy engine.

    Args:
        size: (P, Q), the size of the convolution's result.
        pooled: the size of the result, (rows, columns).
        window, window_stride, window_padding, window_dilation: as in max_pool2d_forward.

    Returns:
        y and codes as from max_pool2d_forward, channels_last if `x` or `w` is.
    """
    adjacent = (
        tuple(window_stride) == tuple(window) and tuple(pooled) == (size[0] // window[0], size[1] // window[1])
        and max(*window_padding, 0) == 0 and max(window_dilation) == 1 and window[0] * window[1] in (2, 4, 8, 16)
    )  # fmt: skip
    shape, epilogue = (x.shape[0], w.shape[0], *size), Epilogue(bias=b, activation=activation)
    channels_last = _channels_last(x, w, shape)
    plan = plan_gather(x, w, shape, channels_last, stride, padding, dilation, groups)
    if not adjacent or not isinstance(plan, PointerGather):
        y = empty(x, shape, channels_last)
        run_gather(plan, x, w, epilogue, y, stride, padding, dilation, groups)
        return max_pool2d_forward(y, pooled, window, window_stride, window_padding, window_dilation)
    y, codes = _empty_max_pool2d(
        x, w, b, activation, size, stride, padding, dilation, groups,
        pooled, window, window_stride, window_padding, window_dilation,
    )  # fmt: skip
    run_gather(plan, x, w, epilogue, y, stride, padding, dilation, groups, codes=codes, window=PoolWindow(*window))
    return y, codes


@op(fake=_empty_statistics, vmap=(MergedAxes((1, 0, 0), (1, 0, 0)),), flops=count_flops)
def conv2d_statistics(
    x: Tensor, w: Tensor, b: Tensor | None, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """conv2d(x, w, b), and the mean and variance of each channel of the rounded result.

    Returns:
        (N, K, P, Q), channels_last if `x` or `w` is; and (K) and (K), float32, or float64 for a float64 `x`.
    """
    y, mean, var = _empty_statistics(x, w, b, size, stride, padding, dilation, groups)
    plan = plan_gather(x, w, y.shape, is_channels_last(y), stride, padding, dilation, groups)
    if y.numel() == 0 or plan is None:
        run_gather(plan, x, w, Epilogue(bias=b), y, stride, padding, dilation, groups)
        return y, *batchnorm2d_statistics(y)
    partials = empty_partial_statistics(mean, plan.partials)
    run_gather(plan, x, w, Epilogue(bias=b), y, stride, padding, dilation, groups, partials=partials)
    return y, *batchnorm2d_merge(*partials)
