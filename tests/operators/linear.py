"""The record of layers/linear.py."""

import torch
import torch.nn.functional as F

import trinn.layers as tnn
from bench import shapes
from tests.support.check import randn
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import Arguments, ManyElements, Mutant, Operator, case
from trinn.kernels import ops


def linear(draw: Drawing) -> DrawnCase:
    inputs, outputs = draw.number(0 if draw.seldom() else 1, 40), draw.number(1, 20)
    leading = tuple(draw.number(0 if draw.seldom() else 1, 4) for _ in range(draw.number(0, 3)))
    bias = draw.tensor((outputs,)) if draw.number(0, 1) else None
    x = draw.tensor((*leading, inputs), draw.values_to_sum())
    return DrawnCase(tnn.linear, F.linear, [x, draw.tensor((outputs, inputs + draw.seldom())), bias], {})


MUTANTS = (
    Mutant("every split adds the bias", "kernels/linear.py", "exists & (split == 0)", "exists", "linear"),
    Mutant("the last product of each split is missing", "kernels/linear.py", "last = tl.minimum(first + k_per_split, K)", "last = tl.minimum(first + k_per_split - 1, K)", "linear"),
    Mutant("the bias has no gradient", "layers/linear.py", "ChannelSum.call(dy[:, :, None, None]) if need_b else None", "None", "linear"),
    Mutant("ReLU is applied before the splits are added", "kernels/linear.py", "ACTIVATION=of_splits.constant", "ACTIVATION=epilogue.constant", "fused"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {"linear": case(nn.linear, (3, 37), (19, 37), (19,), saved=(0, 1))},
    dynamic=lambda nn: {f"linear, {axes} axes": case(nn.linear, (2, 3, 4, 7)[-axes:], (5, 7), (5,)) for axes in (1, 3, 4)},
    precision=lambda nn: {"linear": case(nn.linear, (33, 512), (70, 512), (70,))},
    programs=lambda nn: {"linear": case(nn.linear, (128, 400), (120, 400), (120,), programs=4)},
    draws=(linear,),
    functions={"linear": Arguments(tensors={"weight": lambda: randn(3, 5), "bias": lambda: randn(3)})},
    modules={"LazyLinear": Arguments({"out_features": 3}), "Linear": Arguments({"in_features": 5, "out_features": 3})},
    patched={
        "F.linear": lambda x: F.linear(x, x[0, 0], x[0, 0, 0]),
        "nn.Linear": lambda x: torch.nn.Linear(6, 3).to(x.device, x.dtype)(x).shape and F.relu(x),
    },
    passes={"linear": shapes.linear(5, 6, 7)},
    many_passes={"linear": shapes.linear(2**31, 4, 4)},
    last_image={"linear": lambda x: tnn.linear(x.flatten(1), x.new_ones(3, 512))},
    many_elements={
        "linear": ManyElements(lambda x: ops.linear_fprop(x, torch.ones(3, 64, dtype=x.dtype), None, None, ""), (64,)),
        "linear weights": ManyElements(lambda x: ops.linear_wgrad(x, x)[None], (64,)),
    },
    mutants=MUTANTS,
)
