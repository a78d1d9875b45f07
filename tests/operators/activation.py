"""The record of layers/activation.py."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import trinn.layers as tnn
from bench import shapes
from tests.support.check import randn
from tests.support.drawing import Drawing, DrawnCase
from tests.support.record import IMAGE, LARGER, MEDIUM, Arguments, ManyElements, Mutant, Operator, case
from trinn.kernels import ops

# Each activation with the parameters to test, by the name of its function; of some, two sets: backward keeps x or y.
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("relu", {}),
    "relu6": ("relu6", {}),
    "hardtanh": ("hardtanh", {"min_val": -2, "max_val": 1}),
    "hardtanh, rounded bounds": ("hardtanh", {"min_val": -0.7, "max_val": 0.3}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.2}),
    "leaky_relu, negative slope": ("leaky_relu", {"negative_slope": -0.3}),
    "elu": ("elu", {"alpha": 1.3}),
    "elu, negative alpha": ("elu", {"alpha": -0.6}),
    "celu": ("celu", {"alpha": 0.5}),
    "selu": ("selu", {}),
    "silu": ("silu", {}),
    "mish": ("mish", {}),
    "gelu": ("gelu", {}),
    "gelu, tanh": ("gelu", {"approximate": "tanh"}),
    "softplus": ("softplus", {"beta": 2, "threshold": 3}),
    "sigmoid": ("sigmoid", {}),
    "tanh": ("tanh", {}),
    "hardsigmoid": ("hardsigmoid", {}),
    "hardswish": ("hardswish", {}),
}
FUNCTIONS = tuple(dict.fromkeys(function for function, _ in CALLS.values()))
IN_PLACE = ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "hardsigmoid", "hardswish")
UNDERSCORED = ("relu", "hardtanh", "leaky_relu", "elu", "celu", "selu")
MODULES = ("ReLU", "ReLU6", "Hardtanh", "LeakyReLU", "ELU", "CELU", "SELU", "SiLU", "Mish", "GELU", "Softplus", "Sigmoid", "Tanh",
           "Hardsigmoid", "Hardswish", "PReLU")  # fmt: skip


def activation(draw: Drawing) -> DrawnCase:
    shape = tuple(draw.number(0 if draw.seldom() else 1, 6) for _ in range(draw.number(0, 5)))
    name, options = list(CALLS.values())[draw.number(0, len(CALLS) - 1)]
    ours, torchs = getattr(tnn, name), getattr(F, name)
    if name == "hardsigmoid":
        torchs = exact_hardsigmoid
    elif name in IN_PLACE and min(options.values(), default=0) >= 0 and draw.number(0, 1):
        ours, torchs, options = in_place(ours), in_place(torchs), options | {"inplace": True}
    # For some NaN and infinities torch's results depend on the number of elements: test_special_values has them.
    values = draw.values_to_move() if name == "relu" else draw.one_of("normal", "ties", "zeros")
    return DrawnCase(ours, torchs, [draw.tensor(shape, values)], options, moves=name == "relu")


def prelu(draw: Drawing) -> DrawnCase:
    shape = tuple(draw.number(1, 6) for _ in range(draw.number(2, 5)))
    weight = draw.tensor((shape[1] if draw.number(0, 1) else 1,), draw.values_to_sum())
    return DrawnCase(tnn.prelu, F.prelu, [draw.tensor(shape, draw.values_to_sum()), weight], {})


def exact_hardsigmoid(input: Tensor) -> Tensor:
    """torch's has no second derivative, and in float64 its gradient has the error of a 1/6 in float32."""
    return F.relu6(input + 3) / 6


def in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, **options: function(x * 1, **options)


# A call of each kind for the tables of all operators: backward keeps x or y, with and without parameters and second derivatives.
KINDS = ("relu", "relu6", "hardtanh, rounded bounds", "leaky_relu", "elu", "silu", "gelu", "sigmoid", "hardsigmoid")


def calls(nn: Any) -> dict[str, Any]:
    found = {name: case(getattr(nn, CALLS[name][0]), IMAGE, **CALLS[name][1]) for name in KINDS}
    found["relu, in place"] = case(lambda x: nn.relu_(x * 1), IMAGE)
    found["silu, in place"] = case(lambda x: nn.silu(x * 1, True), IMAGE)
    return found | {
        "prelu": case(nn.prelu, IMAGE, (5,), fake_cuda=False),
        "prelu, one weight": case(nn.prelu, IMAGE, (1,), fake_cuda=False),
    }


ELEMENTWISE, PAIRS = "kernels/activation.py", "kernels/device/activations.py"
MUTANTS = (
    Mutant("ReLU: the gradient at zero is 1", PAIRS, "tl.where(kept <= 0, _constant(0, dy), dy)", "tl.where(kept < 0, _constant(0, dy), dy)", "activation"),
    Mutant("ReLU: NaN gets no gradient", PAIRS, "tl.where(kept <= 0, _constant(0, dy), dy)", "tl.where(kept > 0, dy, _constant(0, dy))", "activation"),
    Mutant("ReLU: NaN becomes zero", PAIRS, "tl.where(z < 0, _constant(0, z), z)", "tl.where(z > 0, z, _constant(0, z))", "activation"),
    Mutant("a gradient passes where hardtanh is bounded", PAIRS, "(kept <= _constant(P[0], kept)) | (kept >= _constant(P[1], kept))", "(kept < _constant(P[0], kept)) | (kept > _constant(P[1], kept))", "activation"),
    Mutant("a rounded bound is compared with the output", PAIRS, "lambda *bounds: all(float(b).is_integer() and abs(b) <= 256 for b in bounds)", "_always", "activation"),
    Mutant("the sign of the output is that of the input", PAIRS, "lambda slope: slope >= 0", "_always", "activation"),
    Mutant("constants are rounded to float32", PAIRS, "return tl.full((), number, z.dtype)", "return tl.full((), number, tl.float32).to(z.dtype)", "activation"),
    Mutant("ELU: the slope of the exponent is missing", PAIRS, "factor = (kept + P[0]) * P[2]", "factor = kept + P[0]", "activation"),
    Mutant("SiLU: the derivative of the sigmoid is missing", PAIRS, "return dy * s * (1 + kept * (1 - s))", "return dy * s", "activation"),
    Mutant("softplus is never linear", PAIRS, "tl.where(scaled > _constant(P[1], dy), dy, dy * divide(e, e + 1))", "dy * divide(e, e + 1)", "activation"),
    Mutant("a program is missing", ELEMENTWISE, "_activation_kernel, triton.cdiv(x.numel(), block), x, dy", "_activation_kernel, x.numel() // block, x, dy", "activation"),
    Mutant("memory past the end is read", ELEMENTWISE, "tl.load(x + offset_of(element, sizes, x_strides), mask", "tl.load(x + offset_of(element + 1, sizes, x_strides), mask", "activation bounds"),
    Mutant("PReLU: positive pixels count in the gradient of the weight", ELEMENTWISE, "total += tl.where(value > 0, 0.0, value * upstream)", "total += value * upstream", "activation"),
    Mutant("PReLU: the gradients of channels are rounded before their sum", ELEMENTWISE, "empty(slopes, slopes.shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)", "empty(slopes, slopes.shape)", "activation"),
    Mutant("PReLU: the result for a volume is contiguous", "layers/activation.py", "order = _in_memory(input)", "order = list(range(input.dim()))", "activation"),
    Mutant("PReLU: every channel has the first slope", ELEMENTWISE, "tl.load(slopes + c * slope_stride)", "tl.load(slopes + c * 0)", "activation"),
    Mutant("a kept input is overwritten in place", "layers/activation.py", "input.clone() if needed else None", "None", "activation"),
    Mutant("activations lose their second derivative", "layers/activation.py", "if name not in _SECOND_DERIVATIVES:", "if True:", "activation"),
)  # fmt: skip
OPERATOR = Operator(
    calls=calls,
    precision=lambda nn: {
        name: case(getattr(nn, function), LARGER, **options) for name, (function, options) in CALLS.items()
    } | {"prelu": case(nn.prelu, LARGER, (5,))},
    programs=lambda nn: {
        name: case(getattr(nn, name), MEDIUM, programs=8) for name in FUNCTIONS if name in [kind.split(",")[0] for kind in KINDS]
    } | {"prelu": case(nn.prelu, MEDIUM, (16,), programs=2)},
    draws=(activation, prelu),
    functions={name: Arguments() for name in FUNCTIONS}
    | {f"{name}_": Arguments() for name in UNDERSCORED}
    | {"prelu": Arguments(tensors={"weight": lambda: randn(2)})},
    modules={name: Arguments() for name in MODULES},
    patched={f"F.{name}": lambda x, name=name: getattr(F, name)(x) for name in FUNCTIONS}
    | {f"F.{name}, in place": lambda x, name=name: getattr(F, name)(x * 1, inplace=True) for name in IN_PLACE}
    | {f"F.{name}_": lambda x, name=name: getattr(F, f"{name}_")(x * 1) for name in UNDERSCORED}
    | {
        "torch.relu": lambda x: torch.relu(input=x),
        "torch.relu_": lambda x: torch.relu_(x * 1),
        "Tensor.relu": lambda x: x.relu(),
        "Tensor.relu_": lambda x: (x * 1).relu_(),
        "torch.celu": lambda x: torch.celu(x),
        "torch.celu_": lambda x: torch.celu_(x * 1),
        "torch.selu": lambda x: torch.selu(x),
        "torch.selu_": lambda x: torch.selu_(x * 1),
        "torch.sigmoid": lambda x: torch.sigmoid(x),
        "torch.sigmoid_": lambda x: torch.sigmoid_(x * 1),
        "Tensor.sigmoid": lambda x: x.sigmoid(),
        "Tensor.sigmoid_": lambda x: (x * 1).sigmoid_(),
        "torch.tanh": lambda x: torch.tanh(x),
        "torch.tanh_": lambda x: torch.tanh_(x * 1),
        "Tensor.tanh": lambda x: x.tanh(),
        "Tensor.tanh_": lambda x: (x * 1).tanh_(),
        "F.prelu": lambda x: F.prelu(x, x.new_ones(1)),
        "torch.prelu": lambda x: torch.prelu(x, x.new_ones(1)),
        "Tensor.prelu": lambda x: x.prelu(x.new_ones(4)),
    },
    passes={
        "relu": shapes.layer(lambda nn: nn.ReLU(), (2, 5, 7, 6)),
        "silu": shapes.layer(lambda nn: nn.SiLU(), (2, 5, 7, 6)),
        "prelu": shapes.layer(lambda nn: nn.PReLU(5), (2, 5, 7, 6)),
    },
    many_passes={
        "relu": shapes.layer(lambda nn: nn.ReLU(), (2**33,)),
        "prelu": shapes.layer(lambda nn: nn.PReLU(64), (2**14, 64, 64, 64)),
    },
    last_image={"relu": tnn.relu, "prelu": lambda x: tnn.prelu(x, x.new_ones(1))},
    many_elements={
        "relu": ManyElements(lambda x: ops.activation_forward(x, "relu"), (64,), torch.int8),
        "relu backward": ManyElements(lambda x: ops.activation_backward(x, x, "relu"), (64,)),
        "prelu": ManyElements(lambda x: ops.prelu_forward(x, torch.ones(2, dtype=x.dtype)), (2, 8, 8)),
        "prelu backward": ManyElements(lambda x: ops.prelu_backward(x, x, torch.ones(2, dtype=x.dtype))[0], (2, 8, 8)),
    },
    mutants=MUTANTS,
)  # fmt: skip
