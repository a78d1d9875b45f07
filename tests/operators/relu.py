"""The record of layers/relu.py."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, Arguments, ManyElements, Mutant, Operator, case
from trinn.kernels import ops


def relu(draw: Drawing) -> DrawnCase:
    shape = tuple(draw.number(0 if draw.seldom() else 1, 6) for _ in range(draw.number(0, 5)))
    ours, torchs = (tnn.relu, F.relu) if draw.number(0, 1) else (in_place(tnn.relu_), in_place(F.relu_))
    return DrawnCase(ours, torchs, [draw.tensor(shape, draw.values_to_move())], {}, moves=True)


def in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x * 1)


MUTANTS = (
    Mutant("ReLU: the gradient at zero is 1", "kernels/relu.py", "tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)", "tl.where(widen(value) < 0, tl.zeros_like(upstream), upstream)", "relu"),
    Mutant("ReLU: NaN gets no gradient", "kernels/relu.py", "tl.where(widen(value) <= 0, tl.zeros_like(upstream), upstream)", "tl.where(widen(value) > 0, upstream, tl.zeros_like(upstream))", "relu"),
    Mutant("ReLU: NaN becomes zero", "kernels/relu.py", "tl.where(widen(value) < 0, tl.zeros_like(value), value)", "tl.where(widen(value) > 0, value, tl.zeros_like(value))", "relu"),
    Mutant("a program is missing", "kernels/relu.py", "_relu_kernel, triton.cdiv(x.numel(), block), x, dy", "_relu_kernel, x.numel() // block, x, dy", "relu"),
    Mutant("memory past the end is read", "kernels/relu.py", "value = tl.load(x + offset_of(element, sizes, x_strides), mask=element < elements)", "value = tl.load(x + offset_of(element + 1, sizes, x_strides), mask=element < elements)", "relu bounds"),
)  # fmt: skip
OPERATOR = Operator(
    calls=lambda nn: {"relu": case(nn.relu, IMAGE), "relu, in place": case(lambda x: nn.relu_(x * 1), IMAGE)},
    precision=lambda nn: {"relu": case(nn.relu, LARGER)},
    programs=lambda nn: {"relu": case(nn.relu, MEDIUM, programs=8)},
    draws=(relu,),
    functions={"relu": Arguments(), "relu_": Arguments()},
    modules={"ReLU": Arguments()},
    patched={
        "F.relu": lambda x: F.relu(x),
        "F.relu, in place": lambda x: F.relu(x * 1, inplace=True),
        "F.relu_": lambda x: F.relu_(x * 1),
        "torch.relu": lambda x: torch.relu(input=x),
        "torch.relu_": lambda x: torch.relu_(x * 1),
        "Tensor.relu": lambda x: x.relu(),
        "Tensor.relu_": lambda x: (x * 1).relu_(),
    },
    passes={"relu": shapes.relu(2, 5, 7, 6)},
    many_passes={"relu": shapes.relu(2**33)},
    last_image={"relu": tnn.relu},
    many_elements={
        "relu": ManyElements(ops.relu_forward, (64,), torch.int8),
        "relu backward": ManyElements(lambda x: ops.relu_backward(x, x), (64,)),
    },
    mutants=MUTANTS,
)
