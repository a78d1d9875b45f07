"""Rows 44-50: transposed convolution."""

from typing import Any

import torch

from tests.operators.hard_inputs import filled, grads, integers, like_torch, refusal

X, W = (2, 4, 3, 4), (4, 6, 3, 3)


@like_torch(44, "output_padding as large as stride and dilation, or smaller than one of them")
def _(nn: Any) -> Any:
    x, w = integers(*X), integers(*W)
    words = "output padding must be smaller than either stride or dilation"
    return [
        refusal(nn.conv_transpose2d, x, w, stride=s, output_padding=p, dilation=d, words=words)
        for s, p, d in ((2, 2, 1), (1, 1, 1), (2, 3, 3))
    ] + [
        grads(nn.conv_transpose2d, x, w, stride=s, output_padding=p, dilation=d)
        for s, p, d in ((1, 2, 3), (3, 2, 1), (2, 1, 2))
    ]


@like_torch(45, "output_size determines output_padding; an error out of range")
def _(nn: Any) -> Any:
    module = filled(nn.ConvTranspose2d(4, 6, 3, stride=3, padding=1))
    x = integers(*X)
    return [module(x, output_size=size) for size in ([7, 10], [9, 12], (2, 6, 8, 11), torch.Size([8, 10]))] + [
        refusal(
            module,
            x,
            output_size=[6, 10],
            words="requested an output size of [6, 10], but valid sizes range from [7, 10] to [9, 12]",
        ),
        refusal(module, x, output_size=[7, 13]),
        refusal(module, x, output_size=[7]),
    ]


@like_torch(46, "a stride larger than the kernel: gaps with the bias alone")
def _(nn: Any) -> Any:
    ones = torch.ones(1, 1, 2, 2)
    y = nn.conv_transpose2d(ones, torch.ones(1, 1, 1, 1), torch.tensor([7.0]), stride=3)
    return y, grads(nn.conv_transpose2d, integers(*X), integers(4, 6, 2, 1), integers(6), stride=(3, 4), output_padding=(2, 3))


@like_torch(47, "padding larger than the output, and padding wider than the kernel")
def _(nn: Any) -> Any:
    x, w = integers(*X), integers(*W)
    return (
        refusal(nn.conv_transpose2d, x, w, padding=3),
        refusal(nn.conv_transpose2d, x, w, padding=-1, words="negative padding is not supported"),
        grads(nn.conv_transpose2d, x, w, stride=3, padding=4),
    )


@like_torch(48, "padding modes")
def _(nn: Any) -> Any:
    return [refusal(nn.ConvTranspose2d, 4, 6, 3, padding_mode=mode) for mode in ("reflect", "replicate", "circular", "none")]


@like_torch(49, "filters are (channels, filters / groups, rows, columns)")
def _(nn: Any) -> Any:
    x = integers(*X)
    module = filled(nn.ConvTranspose2d(4, 6, (3, 2), groups=2))
    return [
        module.weight.shape == (4, 3, 3, 2),
        module(x).detach(),
        grads(nn.conv_transpose2d, x, integers(4, 3, 3, 2), integers(12), groups=4, stride=2),
        grads(nn.conv_transpose2d, x, integers(4, 1, 3, 2), integers(4), groups=4, stride=2),
        refusal(nn.conv_transpose2d, x, integers(6, 4, 3, 3), words="to have 6 channels, but got 4 channels instead"),
        refusal(nn.conv_transpose2d, x, integers(*W), integers(4)),
    ]


@like_torch(50, "no images, no batch axis, no rows")
def _(nn: Any) -> Any:
    w, b = integers(*W), integers(6)
    return (
        grads(nn.conv_transpose2d, torch.ones(0, 4, 3, 4), w, b, stride=2),
        grads(nn.conv_transpose2d, integers(4, 3, 4), w, b, stride=2),
        refusal(nn.conv_transpose2d, torch.ones(2, 4, 0, 4), w),
        refusal(nn.conv_transpose2d, torch.ones(3, 4), w),
    )
