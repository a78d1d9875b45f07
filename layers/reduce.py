"""The sum over images and pixels for each channel: the gradient of a bias."""

from typing import Any

from torch import Tensor

from trinn.kernels import ops

from .function import Function


class ChannelSum(Function):
    """db[c] = sum_{n, h, w} dy[n, c, h, w]."""

    @staticmethod
    def forward(dy: Tensor) -> Tensor:
        return ops.channel_sum(dy)

    @staticmethod
    def backward(ctx: Any, ddb: Tensor) -> Tensor:
        return ddb[:, None, None].expand(ctx.shape)
