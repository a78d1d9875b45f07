"""The record of layers/scale_add.py."""

from typing import Any

import torch
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, ManyElements, Mutant, Operator, Samples, case
from trinn.kernels import ops
from trinn.layers.scale_add import is_addable


def add(draw: Drawing) -> DrawnCase:
    shape = tuple(draw.number(0 if draw.seldom() else 1, 6) for _ in range(draw.number(0, 5)))
    tensors: list[Tensor | None] = [draw.tensor(shape, draw.values_to_sum()), draw.tensor(shape, draw.values_to_sum())]
    if draw.number(0, 1):
        return DrawnCase(lambda x, other: tnn.add_(x * 1, other), lambda x, other: (x * 1).add_(other), tensors, {})
    return DrawnCase(tnn.add, torch.add, tensors, {})


def channel_scale(draw: Drawing) -> DrawnCase:
    n, c = draw.number(1, 3), draw.number(1, 5)
    shape = (n, c, draw.number(1, 9), draw.number(1, 9))
    scale = draw.tensor(draw.one_of((n, c, 1, 1), (1, c, 1, 1), (c, 1, 1), shape[3:]), draw.values_to_sum())
    return DrawnCase(tnn.channel_scale, torch.mul, [draw.tensor(shape, draw.values_to_sum()), scale], {}, condition=10.0)


def add_or_torchs(input: Any, other: Any, *, alpha: float = 1, **options: Any) -> Tensor:
    """torch.add by trinn's function, if it takes the arguments."""
    if alpha != 1 or options or not isinstance(other, Tensor) or not is_addable(input, other):
        return torch.add(input, other, alpha=alpha, **options)
    return tnn.add(input, other)


def scale_of(x: Tensor) -> Tensor:
    """(N, C), one scale for all images."""
    return x.new_ones(1, x.shape[1]).expand(x.shape[:2])


FILE = "kernels/scale_add.py"
MUTANTS = (
    Mutant("the sum lacks its last program", FILE, "_add_kernel, triton.cdiv(x.numel(), block), x", "_add_kernel, x.numel() // block, x", "scale_add"),
    Mutant("the second operand has the strides of the first", FILE, "other + offset_of(element, sizes, other_strides)", "other + offset_of(element, sizes, x_strides)", "scale_add"),
    Mutant("a sum in place reads memory that it writes", "layers/scale_add.py", "return (x.storage_offset(), x.stride()) != (other.storage_offset(), other.stride())", "return False", "scale_add"),
    Mutant("every image has the scales of the first", "kernels/device/planes.py", "plane // grid.channels * strides[0]", "plane // grid.channels * 0", "scale_add"),
    Mutant("the gradient of a scale is that of its last tile", FILE, "total += gradient * value", "total = gradient * value", "scale_add"),
    Mutant("the gradient of an activation ignores the residual", FILE, "z += widen(more).to(ACCUMULATOR)", "z += 0 * widen(more).to(ACCUMULATOR)", "fused"),
    Mutant("a layer scale gets the gradient of one image", "layers/scale_add.py", "ops.channel_sum(ds[:, :, None, None])[None]", "ds[:1]", "scale_add"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {
        "add": case(nn.add, IMAGE, IMAGE, per_image=False),
        "channel_scale": case(nn.channel_scale, IMAGE, (2, 5, 1, 1), per_image=False),
        "layer scale, addition": case(nn.channel_scale, IMAGE, (5, 1, 1), IMAGE, per_image=False),
    },
    precision=lambda nn: {
        "add": case(nn.add, LARGER, LARGER),
        "channel_scale": case(nn.channel_scale, LARGER, (3, 5, 1, 1)),
        "layer scale, addition": case(nn.channel_scale, LARGER, (5, 1, 1), LARGER),
    },
    programs=lambda nn: {
        "add": case(nn.add, MEDIUM, MEDIUM, programs=4),
        "channel_scale": case(nn.channel_scale, MEDIUM, (4, 16, 1, 1), programs=4),
        "layer scale, addition": case(nn.channel_scale, MEDIUM, (16, 1, 1), MEDIUM, programs=4),
    },
    draws=(add, channel_scale),
    samples={"add": Samples(add_or_torchs, info="add")},
    fused_modules={"ChannelScale": lambda: tnn.ChannelScale(4)},
    passes={"addition": shapes.additions(2, 5, 7, 6), "channel scale": shapes.channel_scales(2, 5, 7, 6)},
    many_passes={
        "addition": shapes.additions(2**33), "channel scale": shapes.channel_scales(2**14, 64, 64, 64),
    },
    last_image={
        "add": lambda x: tnn.add(x, x),
        "channel_scale": lambda x: tnn.channel_scale(x, x.new_ones(2, 1, 1)),
    },
    many_elements={
        "add": ManyElements(lambda x: ops.add_forward(x, x, ""), (64,), torch.int8),
        "channel scale": ManyElements(lambda x: ops.channel_scale_forward(x, scale_of(x), None, "", 1), (2, 8, 8)),
        "channel scale backward": ManyElements(lambda x: ops.channel_scale_backward(x, x, scale_of(x), 1)[0], (2, 8, 8)),
    },
    mutants=MUTANTS,
)  # fmt: skip
