"""Rows 70-74: ReLU."""

from typing import Any

import torch

from tests.operators.hard_inputs import FLOATS, INF, NAN, integers, like_torch, refusal

VALUES = [NAN, -INF, INF, -0.0, 0.0, 1e-40, -1e-40, -1.0, 2.0]


@like_torch(70, "NaN, infinities and both zeros")
def _(nn: Any) -> Any:
    results = [nn.relu(torch.tensor(VALUES, dtype=dtype)) for dtype in FLOATS]
    return results, [y.signbit()[1:] for y in results]


@like_torch(71, "the gradient at 0 is 0, even for a NaN upstream; at NaN it is the upstream gradient")
def _(nn: Any) -> Any:
    results = []
    for dtype in FLOATS:
        for above in (1.0, NAN, INF, -0.0):
            x = torch.tensor(VALUES, dtype=dtype, requires_grad=True)
            dx = torch.autograd.grad(nn.relu(x), x, torch.full_like(x, above))[0]
            results += [dx, dx.nan_to_num(0).signbit()]
    return results


@like_torch(72, "in place: leaves, views, expanded tensors, versions")
def _(nn: Any) -> Any:
    x = integers(4, 6)
    version = x._version
    results = [
        refusal(nn.relu, integers(3).requires_grad_(), inplace=True, words="a leaf Variable that requires grad"),
        refusal(nn.relu, integers(3, 1).expand(3, 4), inplace=True, words="single memory location"),
        nn.relu(x[:, ::2], inplace=True),
        nn.relu_(x.T[1:3]),
        x,
        x._version - version,
    ]
    leaf = integers(4, 6).requires_grad_()
    base = leaf * 1
    nn.relu(base[1:, ::2], inplace=True)
    base.square().sum().backward()
    saved = integers(3).requires_grad_() * 1
    square = saved * saved
    nn.relu_(saved)
    return [*results, leaf.grad, refusal(square.sum().backward, words="modified by an inplace operation")]


@like_torch(73, "integers, bool, complex numbers")
def _(nn: Any) -> Any:
    x = torch.arange(-4, 4)
    taken = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    return [nn.relu(x.to(dtype)) for dtype in taken] + [
        refusal(nn.relu, x.to(dtype)) for dtype in (torch.bool, torch.complex64)
    ]


@like_torch(74, "a dense tensor keeps its strides; no axes, no elements")
def _(nn: Any) -> Any:
    views = (
        integers(3, 4, 5).permute(2, 0, 1),
        integers(2, 3, 4, 5).to(memory_format=torch.channels_last),
        integers(2, 1, 4, 5).transpose(2, 3),
        integers(4, 9)[:, ::2],
        integers(3, 1, 4).expand(3, 5, 4),
        integers(),
        integers(2, 0, 3),
    )
    return [(y, y.stride()) for y in map(nn.relu, views)]
