"""Rows 75-78: linear layers."""

from typing import Any

import torch

import trinn.layers as tnn
from tests.operators.hard_inputs import grads, holds, integers, like_torch, outcome, refusal

W = (6, 5)


@like_torch(75, "one axis, many axes, any strides")
def _(nn: Any) -> Any:
    w, b = integers(*W), integers(6)
    inputs = (
        integers(5),
        integers(2, 3, 1, 4, 5),
        integers(5, 3, 4).permute(1, 2, 0),
        integers(3, 4, 10)[:, 1:, ::2],
        integers(3, 1, 5).expand(3, 4, 5),
        integers(21)[1:].reshape(4, 5),
    )
    results = [grads(nn.linear, x, w, b) for x in inputs] + [grads(nn.linear, inputs[1], integers(5, 6).T, b)]
    return results, [nn.linear(x, w, b).stride() for x in inputs]


@like_torch(76, "empty sums, no rows, no outputs")
def _(nn: Any) -> Any:
    b = integers(6)
    return (
        grads(nn.linear, torch.ones(3, 0), torch.ones(6, 0), b),
        grads(nn.linear, torch.ones(3, 0), torch.ones(6, 0)),
        grads(nn.linear, torch.ones(0, 5), integers(*W), b),
        grads(nn.linear, torch.ones(2, 0, 5), integers(*W), b),
        grads(nn.linear, integers(3, 5), torch.ones(0, 5), torch.ones(0)),
    )


@like_torch(77, "a weight of one axis, a bias of no axis")
def _(nn: Any) -> Any:
    x, w = integers(2, 5), integers(*W)
    return (
        grads(nn.linear, x, integers(5)),
        grads(nn.linear, x, w, integers()),
        grads(nn.linear, integers(5), integers(5)),
        outcome(nn.linear, x, w, integers(1)),
        outcome(nn.linear, integers(2, 3, 5), w, integers(1)),
    )


@holds(77, "a weight of one axis and a bias, for several rows: an error in torch, contrary to its documentation")
def _() -> None:
    x, w, b = integers(2, 5), integers(5), integers()
    assert torch.equal(tnn.linear(x, w, b), x @ w + b)


@like_torch(78, "mismatched sizes and dtypes")
def _(nn: Any) -> Any:
    x, w, b = integers(3, 5), integers(*W), integers(6)
    return [
        refusal(nn.linear, x, integers(6, 4), words="shapes cannot be multiplied (3x5 and 4x6)"),
        refusal(nn.linear, x, w, integers(5)),
        refusal(nn.linear, x, w.double(), b),
        refusal(nn.linear, x, w, b.double()),
        refusal(nn.linear, x.half(), w, b),
        refusal(nn.linear, integers(), w),
        refusal(nn.linear, x, integers(2, 6, 5)),
        refusal(nn.linear, x, integers(4)),
    ]
