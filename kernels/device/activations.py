"""Activations: for each, the function and its gradient, as device functions. Every kernel with an activation calls these.

A pair `f`, `f_gradient` is computed in the accumulator's dtype:

    f(z, slope, P)                  the value at z
    f_gradient(dy, kept, slope, P)  dy * f'(z)

`P` is the tuple of parameters, such as the two bounds of a hardtanh, and `slope` is the element of PReLU's weight for the
channel. `kept` is the tensor that backward needs, by the table at the end: the output y of the activation if it determines the
gradient, since the next layer keeps it anyway; else its input z.

exp, expm1, log1p and tanh are those of the GPU's mathematical library, with errors of one or two units in the last place;
Triton's own tl.exp multiplies by log2(e) first, so that its error grows with the argument. In the interpreter they are NumPy's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from ..runtime.interpreter import INTERPRETED
from ..runtime.triton_internals import interpreted
from .function import FunctionName, device_function, function_of, name_of
from .precision import divide, widen

_SQRT_HALF = tl.constexpr(0.5**0.5)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_INVERSE_SQRT_2_PI = tl.constexpr(0.3989422804014327)
_CUBIC = tl.constexpr(0.044715)  # of the tanh approximation of GELU

_exp, _expm1, _log1p, _tanh = (
    interpreted(name) if INTERPRETED else getattr(libdevice, name) for name in ("exp", "expm1", "log1p", "tanh")
)


@device_function
def _constant(number, z):
    """A number in the dtype of z: in a comparison and in tl.where, Triton converts a Python float to float32."""
    return tl.full((), number, z.dtype)


@device_function
def relu(z, slope, P):
    return tl.where(z < 0, _constant(0, z), z)


@device_function
def relu_gradient(dy, kept, slope, P):
    return tl.where(kept <= 0, _constant(0, dy), dy)


@device_function
def hardtanh(z, slope, P):
    """z within the bounds P; NaN stays NaN."""
    z = tl.maximum(z, _constant(P[0], z), propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(z, _constant(P[1], z), propagate_nan=tl.PropagateNan.ALL)


@device_function
def hardtanh_gradient(dy, kept, slope, P):
    return tl.where((kept <= _constant(P[0], kept)) | (kept >= _constant(P[1], kept)), _constant(0, dy), dy)


@device_function
def leaky_relu(z, slope, P):
    return tl.where(z > 0, z, z * P[0])


@device_function
def leaky_relu_gradient(dy, kept, slope, P):
    return tl.where(kept > 0, dy, dy * P[0])


@device_function
def elu(z, slope, P):
    """P[0] * (exp(P[2] * z) - 1) below 0, else P[1] * z: ELU, CELU and SELU. A zero keeps its sign for any P[0]."""
    return tl.where(z < 0, _expm1(z * P[2]) * P[0], z * P[1])


@device_function
def elu_gradient(dy, kept, slope, P):
    if P[0] >= 0:  # kept is y
        factor = (kept + P[0]) * P[2]
    else:
        factor = _exp(kept * P[2]) * (P[0] * P[2])
    return dy * tl.where(kept <= 0, factor, _constant(P[1], dy))


@device_function
def sigmoid(z, slope, P):
    return divide(_constant(1, z), 1 + _exp(-z))


@device_function
def sigmoid_gradient(dy, kept, slope, P):
    return dy * (1 - kept) * kept


@device_function
def tanh(z, slope, P):
    return _tanh(z)


@device_function
def tanh_gradient(dy, kept, slope, P):
    return dy * (1 - kept * kept)


@device_function
def silu(z, slope, P):
    return divide(z, 1 + _exp(-z))


@device_function
def silu_gradient(dy, kept, slope, P):
    s = sigmoid(kept, slope, P)
    return dy * s * (1 + kept * (1 - s))


@device_function
def _tanh_of_softplus(z):
    """(tanh(log(1 + e)), e) with e = exp(z): n / (n + 2) with n = e * (e + 2). Above 20 it is 1 in every dtype."""
    e = _exp(tl.where(z > 20, _constant(20, z), z))
    n = e * (e + 2)
    return divide(n, n + 2), e


@device_function
def mish(z, slope, P):
    """z * tanh(log(1 + exp(z)))."""
    t, _e = _tanh_of_softplus(z)
    return z * t


@device_function
def mish_gradient(dy, kept, slope, P):
    t, e = _tanh_of_softplus(kept)
    return dy * (t + kept * divide(e, 1 + e) * (1 - t * t))


@device_function
def gelu(z, slope, P):
    """z * cdf(z), with the cumulative distribution function of the normal distribution."""
    return z * 0.5 * (1 + tl.erf(z * _SQRT_HALF))


@device_function
def gelu_gradient(dy, kept, slope, P):
    cdf = 0.5 * (1 + tl.erf(kept * _SQRT_HALF))
    return dy * (cdf + kept * (_exp(kept * kept * -0.5) * _INVERSE_SQRT_2_PI))


@device_function
def gelu_tanh(z, slope, P):
    """GELU with tanh(sqrt(2 / pi) * (z + 0.044715 * z^3)) in place of the error function."""
    return 0.5 * z * (1 + _tanh((z + z * z * z * _CUBIC) * _SQRT_2_OVER_PI))


@device_function
def gelu_tanh_gradient(dy, kept, slope, P):
    squared = kept * kept
    t = _tanh((kept + squared * kept * _CUBIC) * _SQRT_2_OVER_PI)
    slope = (1 + squared * (3 * _CUBIC)) * _SQRT_2_OVER_PI
    return dy * (0.5 * (1 + t) + 0.5 * kept * ((1 - t * t) * slope))


@device_function
def softplus(z, slope, P):
    """log(1 + exp(P[0] * z)) / P[0], but z where P[0] * z exceeds P[1]."""
    scaled = z * P[0]
    return tl.where(scaled > _constant(P[1], z), z, divide(_log1p(_exp(scaled)), _constant(P[0], z)))


@device_function
def softplus_gradient(dy, kept, slope, P):
    scaled = kept * P[0]
    e = _exp(scaled)
    return tl.where(scaled > _constant(P[1], dy), dy, dy * divide(e, e + 1))


@device_function
def hardsigmoid(z, slope, P):
    return divide(hardtanh(z + 3, slope, (0, 6)), _constant(6, z))


@device_function
def hardsigmoid_gradient(dy, kept, slope, P):
    return tl.where((kept > -3) & (kept < 3), divide(dy, _constant(6, dy)), _constant(0, dy))


@device_function
def hardswish(z, slope, P):
    return divide(z * hardtanh(z + 3, slope, (0, 6)), _constant(6, z))


@device_function
def hardswish_gradient(dy, kept, slope, P):
    inner = dy * (divide(kept, _constant(3, dy)) + 0.5)
    return tl.where(kept <= -3, _constant(0, dy), tl.where(kept < 3, inner, dy))


@device_function
def prelu(z, slope, P):
    return tl.where(z > 0, z, z * slope)


@device_function
def prelu_gradient(dy, kept, slope, P):
    return tl.where(kept > 0, dy, dy * slope)


def _never(*_: float) -> bool:
    return False


def _always(*_: float) -> bool:
    return True


class Activation(NamedTuple):
    """A pair of device functions. `keeps_output` tells from the parameters whether backward keeps the output."""

    value: Any
    gradient: Any
    keeps_output: Callable[..., bool] = _never


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(relu, relu_gradient, _always),
    # In any dtype, the output equals a small whole bound only where it is bounded. Other bounds are rounded.
    "hardtanh": Activation(
        hardtanh, hardtanh_gradient, lambda *bounds: all(float(b).is_integer() and abs(b) <= 256 for b in bounds)
    ),
    "leaky_relu": Activation(leaky_relu, leaky_relu_gradient, lambda slope: slope >= 0),
    "elu": Activation(elu, elu_gradient, lambda below, above, scale: below >= 0),
    "sigmoid": Activation(sigmoid, sigmoid_gradient, _always),
    "tanh": Activation(tanh, tanh_gradient, _always),
    "silu": Activation(silu, silu_gradient),
    "mish": Activation(mish, mish_gradient),
    "gelu": Activation(gelu, gelu_gradient),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_gradient),
    "softplus": Activation(softplus, softplus_gradient),
    "hardsigmoid": Activation(hardsigmoid, hardsigmoid_gradient),
    "hardswish": Activation(hardswish, hardswish_gradient),
    "prelu": Activation(prelu, prelu_gradient),
}


class ActivationName(FunctionName):
    """An activation with its parameters, as a constexpr argument."""

    gradient: Any
    parameters: tuple[float, ...]
    keeps_output: bool


def parsed(activation: str) -> tuple[str, tuple[float, ...]]:
    """The name and the parameters of an activation written as "leaky_relu 0.01"."""
    return _parse(activation) if torch.compiler.is_compiling() else _parse_once(activation)


def _parse(activation: str) -> tuple[str, tuple[float, ...]]:
    name, *parameters = activation.split()
    return name, tuple(int(p) if p.lstrip("-").isdigit() else float(p) for p in parameters)


_parse_once = functools.cache(_parse)


def keeps_output(activation: str) -> bool:
    """Whether backward needs the output of an activation; if not, it needs the input."""
    name, parameters = parsed(activation)
    return ACTIVATIONS[name].keeps_output(*parameters)


@functools.cache
def constant_of(activation: str) -> ActivationName | None:
    """An activation as a constexpr argument; None for the empty name, which stands for no activation."""
    if not activation:
        return None
    name, parameters = parsed(activation)
    member = ACTIVATIONS[name]
    constant = ActivationName(f"{activation}: {name_of(member.value)}, {name_of(member.gradient)}")
    constant.function, constant.gradient, constant.parameters = member.value, member.gradient, parameters
    constant.keeps_output = member.keeps_output(*parameters)
    return constant


@triton.constexpr_function
def _gradient_of(name: ActivationName) -> Any:
    return name.gradient


@triton.constexpr_function
def _parameters_of(name: ActivationName) -> tuple[float, ...]:
    return name.parameters


@triton.constexpr_function
def _keeps_output(name: ActivationName) -> bool:
    return name.keeps_output


@device_function
def activate(z, slope, ACTIVATION: tl.constexpr):
    """The value of an activation; without one, z."""
    if ACTIVATION is not None:
        z = function_of(ACTIVATION)(z, slope, _parameters_of(ACTIVATION))
    return z


@device_function
def activation_gradient(dy, kept, slope, ACTIVATION: tl.constexpr):
    """The gradient of an activation with respect to z, given the gradient of its value."""
    return _gradient_of(ACTIVATION)(dy, kept, slope, _parameters_of(ACTIVATION))


@device_function
def kept_from(z, slope, ACTIVATION: tl.constexpr):
    """What the gradient of an activation needs, computed again from its input z: z or the value."""
    if _keeps_output(ACTIVATION):
        z = activate(z, slope, ACTIVATION)
    return z


def stride_of(slopes: Tensor | None) -> int:
    """The argument `slope_stride` of `load_slopes`."""
    return slopes.stride(0) if slopes is not None else 0


@device_function
def load_slopes(slopes, slope_stride, channel, exists, DTYPE: tl.constexpr):
    """PReLU's slopes of some channels; 0 without slopes, undefined for channels that do not exist."""
    slope = 0.0
    if slopes is not None:
        slope = widen(tl.load(slopes + channel * slope_stride, mask=exists)).to(DTYPE)
    return slope
