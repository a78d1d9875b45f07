"""Batch normalisation over the images of several processes: `SyncBatchNorm`."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from trinn.kernels import ops

from .batchnorm2d import batch_norm, check_vectors, count_batch, norm_arguments
from .function import Function, is_transform_active
from .public import layer
from .window import real

__all__ = ["SyncBatchNorm"]

Group = tuple[int, str]  # the number of processes, and torch's name of the group


class SyncBatchNormForward(Function):
    """BatchNormForward with the mean and variance over all processes. `pixels` is the number of pixels of all processes."""

    kept = "x", "mean", "var", "w", "pixels"

    @staticmethod
    def forward(
        x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, b: Tensor | None, pixels: Tensor, eps: float, group: Group
    ) -> Tensor:
        return ops.batchnorm2d_forward(x, mean, var, w, b, None, None, "", eps, False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        need_x, _, _, need_w, need_b, *_ = ctx.needs_input_grad
        dx, dw, db = SyncBatchNormBackward.call(dy, *ctx.saved_tensors, *ctx.constants, need_x)
        return dx, None, None, dw if need_w else None, db if need_b else None


class SyncBatchNormBackward(Function):
    """The gradients dx (None unless `want_x`), dw = sum dy * z and db = sum dy, over this process's images only."""

    @staticmethod
    def forward(
        dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, w: Tensor | None, pixels: Tensor, eps: float, group: Group,
        want_x: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        sums = ops.batchnorm2d_sums(x, dy, mean, var, eps)
        dx = None
        if want_x:
            of_all = _sum(_gathered(sums, group)).view(sums.shape)
            dx = ops.batchnorm2d_backward(x, dy, mean, var, w, of_all, eps, pixels)
        dw, db = sums
        return dx, dw, db

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        raise NotImplementedError("SyncBatchNorm has no second derivative over several processes")


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    group: "distributed.ProcessGroup",
) -> Tensor:
    """`batch_norm` in training, with the statistics of the images of all processes in a group. Every process must call it.

    Args:
        input: (N, C, *), the images of this process; N may differ between processes, and may be 0.
        running_mean, running_var, weight, bias: as in `batch_norm`, the same in all processes.

    Returns:
        The shape, dtype and memory format of `input`. The gradients of weight and bias are sums over this process's images
        only, as in torch; DDP averages them.

    Raises:
        RuntimeError: incompatible sizes, dtypes or devices; running statistics that require a gradient.
        NotImplementedError: under a transform of torch.func or forward-mode differentiation.
    """
    if is_transform_active():
        raise NotImplementedError("SyncBatchNorm over several processes does not work under torch.func and forward-mode AD")
    momentum, eps = real(momentum, "SyncBatchNorm: momentum must be a float"), real(eps, "SyncBatchNorm: eps must be a float")
    channels = input.shape[1]
    check_vectors(input, channels, running_mean, running_var, weight, bias)
    x = input.flatten(3) if input.dim() > 4 else input[(...,) + (None,) * (4 - input.dim())]
    mean, var = ops.batchnorm2d_statistics(x.detach())
    part = torch.cat([mean, var, mean.new_full((1,), _pixels(x))])
    processes = distributed.get_world_size(group), group.group_name
    parts = _gathered(part, processes)
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1]
    mean, var = ops.batchnorm2d_merge(means, variances, counts)
    pixels = _sum(counts)
    if running_mean is not None:
        # `pixels` replaces the count: the host does not have the sum over all processes.
        ops.batchnorm2d_update(running_mean, running_var, mean, var, momentum, 0, pixels)
    return SyncBatchNormForward.call(x, mean, var, weight, bias, pixels, eps, processes).view(input.shape)


def _sum(parts: Tensor) -> Tensor:
    """The sum over the first axis, in a fixed order: all processes get the same bits, on every run."""
    return ops.channel_sum(parts.reshape(len(parts), -1, 1, 1))


def _gathered(part: Tensor, group: Group) -> Tensor:
    """The tensors of all processes, (processes, *). An all-reduce would choose the order of the additions itself."""
    collectives = torch.ops._c10d_functional  # the form supported by torch.compile
    parts = collectives.all_gather_into_tensor(part.contiguous()[None], *group)
    return collectives.wait_tensor(parts)


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _forward(module: nn.SyncBatchNorm, input: Tensor) -> Tensor:
    module._check_input_dim(input)
    module._check_non_zero_input_channels(input)
    group = _others(module) if module.training else None
    count_batch(module)
    arguments = norm_arguments(module)
    if group is None:
        return batch_norm(input, *arguments)
    mean, var, weight, bias, _, momentum, eps = arguments
    return sync_batch_norm(input, mean, var, weight, bias, momentum, eps, group)


def _others(module: nn.SyncBatchNorm) -> "distributed.ProcessGroup | None":
    """The group of all processes with shared statistics, this process included; None if there is only one process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = module.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


@layer
class SyncBatchNorm(nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm on `sync_batch_norm`; in evaluation, or with a single process, on `batch_norm`.

    It also accepts CPU tensors, if kernels are interpreted and the process group's backend supports them, as gloo does.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _forward(self, input)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Convert every batch norm in a module, trinn's or torch's, to this class, as torch's method does.

        Parameters and buffers stay the same tensors.

        Returns:
            `module`, or a new module if `module` itself is a batch norm.
        """
        converted = super().convert_sync_batchnorm(module, process_group)  # it calls this method for the children
        if type(converted) is nn.SyncBatchNorm:
            converted.__class__ = cls
        return converted
