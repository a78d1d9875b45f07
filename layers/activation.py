"""Activations: `relu`, `silu`, `gelu`, `prelu` and others, and their modules.

All but PReLU share three Functions. An activation is a text, its name and its parameters, such as "leaky_relu 0.01";
kernels/device/activations.py has the formulas, and decides whether backward keeps the output or the input. The output costs no
memory, since the next layer keeps it too. In place, an activation whose backward needs the input keeps a copy of it.

    keeps the output    relu, relu6, hardtanh with small whole bounds, leaky_relu with slope >= 0, elu, celu and selu with
                        alpha >= 0, sigmoid, tanh
    keeps the input     silu, mish, gelu, softplus, hardsigmoid, hardswish, prelu, and other parameters of those above
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trinn.kernels import ops
from trinn.kernels.device.activations import keeps_output, parsed

from .function import FLOATS, Function, autocast, autocast_to_float32, in_shape, is_transform_active, sum_of_tangents
from .public import functional, layer
from .window import real_scalar

__all__ = [
    "CELU", "ELU", "GELU", "SELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6",
    "SiLU", "Sigmoid", "Softplus", "Tanh", "celu", "celu_", "elu", "elu_", "gelu", "hardsigmoid", "hardswish", "hardtanh",
    "hardtanh_", "leaky_relu", "leaky_relu_", "mish", "prelu", "relu", "relu6", "relu_", "selu", "selu_", "sigmoid", "silu",
    "softplus", "tanh",
]  # fmt: skip


class ActivationOfInput(Function):
    """y = f(x); keeps x."""

    kept: tuple[str | int, ...] = ("x",)

    @staticmethod
    def forward(x: Tensor, activation: str) -> Tensor:
        return ops.activation_forward(x, activation)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (kept,), (activation,) = ctx.saved_tensors, ctx.constants
        return ActivationBackward.call(dy, kept, activation)

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        return ActivationBackward.call(tangents[0], inputs[0] if inputs[0] is not None else output, inputs[1])


class ActivationOfOutput(ActivationOfInput):
    """y = f(x); keeps y."""

    kept = (0,)


class ActivationInPlace(ActivationOfInput):
    """y = f(x), in place. `copy` is a copy of x, or None if backward needs y."""

    @staticmethod
    def forward(x: Tensor, copy: Tensor | None, activation: str) -> Tensor:  # type: ignore[override]
        ops.activation_(x, activation)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(output)
        ctx.save_for_backward(output if inputs[1] is None else inputs[1])
        ctx.constants = inputs[2:]


class ActivationBackward(Function):
    """dx = dy * f'(x), from what was kept: x or y. Only if f has a second derivative, dy is kept too."""

    @staticmethod
    def forward(dy: Tensor, kept: Tensor, activation: str) -> Tensor:
        return ops.activation_backward(dy, kept, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, kept, activation = inputs
        ctx.save_for_backward(dy if parsed(activation)[0] in _SECOND_DERIVATIVES else None, kept)
        ctx.constants = (activation,)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
        (dy, kept), (activation,), (need_dy, need_kept, _) = ctx.saved_tensors, ctx.constants, ctx.needs_input_grad
        to_dy = ActivationBackward.call(ddx, kept, activation) if need_dy else None
        return to_dy, _second_derivative(ddx, dy, kept, activation) if need_kept else None

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        dy, kept, activation = inputs
        by_dy = cls.call(tangents[0], kept, activation) if tangents[0] is not None else None
        by_kept = _second_derivative(tangents[1], dy, kept, activation) if tangents[1] is not None else None
        found = sum_of_tangents(by_dy, by_kept)
        return found if found is not None else torch.zeros_like(kept)


def _second_derivative(t: Tensor, dy: Tensor, kept: Tensor, activation: str) -> Tensor | None:
    """t * dy times the derivative of f' with respect to what was kept; None if it is 0.

    It consists of torch operators, so autograd can differentiate it any number of times.
    """
    name, parameters = parsed(activation)
    if name not in _SECOND_DERIVATIVES:
        return None
    dtype = torch.promote_types(kept.dtype, torch.float32)
    return (t.to(dtype) * dy.to(dtype) * _SECOND_DERIVATIVES[name](kept.to(dtype), *parameters)).to(kept.dtype)


def _elu2(v: Tensor, below: float, above: float, scale: float) -> Tensor:
    inner = torch.full_like(v, scale) if below >= 0 else below * scale**2 * torch.exp(scale * v)
    return torch.where(v > 0, torch.zeros_like(v), inner)


def _silu2(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _mish2(x: Tensor) -> Tensor:
    s, t = torch.sigmoid(x), torch.tanh(torch.nn.functional.softplus(x))
    return (1 - t * t) * s * (2 + x * (1 - s - 2 * t * s))


def _gelu2(x: Tensor) -> Tensor:
    return (2 - x * x) * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh2(x: Tensor) -> Tensor:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t, first = torch.tanh(scale * (x + cubic * x**3)), scale * (1 + 3 * cubic * x * x)
    return (1 - t * t) * (first + 3 * scale * cubic * x * x - x * t * first * first)


def _softplus2(x: Tensor, beta: float, threshold: float) -> Tensor:
    s = torch.sigmoid(beta * x)
    return torch.where(beta * x > threshold, torch.zeros_like(x), beta * s * (1 - s))


# The derivative of f' with respect to what backward keeps, for activations that are not linear in pieces.
_SECOND_DERIVATIVES: dict[str, Callable[..., Tensor]] = {
    "elu": _elu2,
    "sigmoid": lambda y: 1 - 2 * y,
    "tanh": lambda y: -2 * y,
    "silu": _silu2,
    "mish": _mish2,
    "gelu": _gelu2,
    "gelu_tanh": _gelu_tanh2,
    "softplus": _softplus2,
    "hardswish": lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 3,
}


class PRelu(Function):
    """y = x, but w[c] * x where x < 0. x is (N, C, H, W), and w is (C) or (1)."""

    kept = "x", "w"

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return ops.prelu_forward(x, w.expand(x.shape[1]))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return PReluBackward.call(dy, *ctx.saved_tensors)

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (x, w), (tx, tw) = inputs, tangents
        by_x = PReluBackward.call(tx, x, w)[0] if tx is not None else None
        return sum_of_tangents(by_x, x.clamp(max=0) * tw[:, None, None] if tw is not None else None)


class PReluBackward(Function):
    """The gradients of PRelu: dx, and dw = sum dy * x where x < 0."""

    kept = "dy", "x", "w"

    @staticmethod
    def forward(dy: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        dx, dw = ops.prelu_backward(dy, x, w.expand(x.shape[1]))
        return dx, total_of(dw, w)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor, ddw: Tensor) -> tuple[Any, ...]:
        """Of torch's operators, as `_second_derivative`."""
        dtype = torch.promote_types(ddx.dtype, torch.float32)
        dy, x, w, ddx, ddw = (v.to(dtype) for v in (*ctx.saved_tensors, ddx, ddw))
        slope, ddw, above, zero = w[:, None, None], ddw[:, None, None], x > 0, x.new_zeros(())
        to_dy = torch.where(above, ddx, ddx * slope + ddw * x)
        to_x, to_slope = torch.where(above, zero, ddw * dy), torch.where(above, zero, ddx * dy)
        to_w = to_slope.sum((0, 2, 3)).sum_to_size(w.shape)
        return tuple(v.to(kept.dtype) for v, kept in zip((to_dy, to_x, to_w), ctx.saved_tensors, strict=True))

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (dy, x, w), (tdy, tx, tw) = inputs, tangents
        below = (x <= 0).to(x.dtype)
        to_x, to_w = cls.call(tdy, x, w) if tdy is not None else (None, None)
        if tw is not None:
            to_x = sum_of_tangents(to_x, dy * below * tw[:, None, None])
        if tx is not None:
            to_w = sum_of_tangents(to_w, (tx * dy * below).sum((0, 2, 3)).sum_to_size(w.shape))
        return to_x, to_w


def expanded(w: Tensor | None, channels: int) -> Tensor | None:
    """PReLU's weight, (C) or (1), as (C); a single weight is not copied."""
    return w.expand(channels) if w is not None else None


def total_of(dw: Tensor, w: Tensor) -> Tensor:
    """The gradient of PReLU's weight, given that of each channel (C): itself, or its sum for a single weight."""
    return (dw if w.shape == dw.shape else ops.channel_sum(dw.view(1, 1, -1, 1))).to(w.dtype)


def activation_gradients(dy: Tensor, kept: Tensor, w: Tensor | None, activation: str) -> tuple[Tensor, Tensor | None]:
    """The gradient of an activation's input and, for PReLU, of its weight."""
    if w is None:
        return ActivationBackward.call(dy, kept, activation), None
    return PReluBackward.call(dy, kept, w)


def text(name: str, *parameters: float) -> str:
    """An activation with its parameters, for the operators."""
    return " ".join([name, *(repr(p if type(p) is int else float(p)) for p in parameters)])


def _elu_text(alpha: float) -> str:
    return text("elu", real_scalar(alpha, "elu: alpha must be a float"), 1.0, 1.0)


def _celu_text(alpha: float) -> str:
    alpha = real_scalar(alpha, "celu: alpha must be a float")
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return text("elu", alpha, 1.0, 1 / alpha)


def _gelu_text(approximate: str) -> str:
    if not isinstance(approximate, str):
        raise TypeError(f"gelu(): argument 'approximate' must be str, not {type(approximate).__name__}")
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate argument must be either none or tanh, but got {approximate!r}")
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def activated(input: Tensor, activation: str, inplace: bool = False) -> Tensor:
    """Check the arguments of an activation, and compute it."""
    if input.dtype not in FLOATS:
        activation = _for_integers(input, activation)
    of_output = keeps_output(activation)
    function = ActivationOfOutput if of_output else ActivationOfInput
    if not inplace:
        return function.call(input, activation)
    if not can_write(input):
        return input.copy_(function.call(input if of_output else input.clone(), activation))
    needed = input.requires_grad and torch.is_grad_enabled() and not of_output
    return ActivationInPlace.call(input, input.clone() if needed else None, activation)


def can_write(input: Tensor) -> bool:
    """Whether a kernel can write over the input of an operator in place; if not, `copy_` can. Raises torch's exceptions."""
    if input.is_leaf and input.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    traced = torch.compiler.is_compiling()  # torch.compile reads only sizes, strides and dtypes of tensors
    if not traced and input.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed; clone() makes a normal one."
        )
    if input.numel() > 0 and any(stride == 0 and size > 1 for size, stride in zip(input.shape, input.stride(), strict=True)):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )
    # Transforms support copy_, but not a Function that modifies its input. A kernel cannot write a lazily negated tensor.
    return not is_transform_active() and (traced or not input.is_neg())


def _for_integers(input: Tensor, activation: str) -> str:
    """The activation for a tensor of no supported floating dtype; raises torch's exception if there is none."""
    name, bounds = parsed(activation)
    exact = name in ("relu", "hardtanh")
    if input.dtype == torch.bool and exact:
        raise RuntimeError(f"Boolean inputs not supported for {name}")
    if not exact or input.is_floating_point() or input.is_complex() or input.is_quantized:
        raise NotImplementedError(f"{name} is not implemented for {input.dtype}")
    if not input.dtype.is_signed and any(bound < 0 for bound in bounds):
        raise RuntimeError(f"cannot do hardtanh on an unsigned type with negative limits, but got {bounds} and {input.dtype}")
    return text(name, *(int(bound) for bound in bounds))


@functional
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), elementwise, as `torch.nn.functional.relu`. NaN stays NaN; the gradient at 0 is 0.

    Args:
        input: any shape and strides; integers too.
        inplace: write the result over `input` and return it.

    Raises:
        NotImplementedError: complex or quantised input, or 8-bit floats.
        RuntimeError: bool input; or in place on a leaf with requires_grad, on an inference tensor outside inference mode,
            or on a tensor whose elements share memory.
    """
    return activated(input, "relu", inplace)


@functional
def relu_(input: Tensor) -> Tensor:
    """`relu(input, inplace=True)`."""
    return relu(input, inplace=True)


@functional
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(input, 0), 6), as `torch.nn.functional.relu6`. Arguments and exceptions as in `relu`."""
    return activated(input, "hardtanh 0 6", inplace)


@functional
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """min(max(input, min_val), max_val), as `torch.nn.functional.hardtanh`. Arguments and exceptions as in `relu`.

    Raises:
        ValueError: `min_val` is larger than `max_val`.
    """
    if min_val > max_val:
        raise ValueError(f"min_val cannot be greater than max_val, but got {min_val} and {max_val}")
    return activated(input, _hardtanh_text(min_val, max_val), inplace)


def _hardtanh_text(min_val: float, max_val: float) -> str:
    bounds = (real_scalar(bound, "hardtanh: min_val and max_val must be floats") for bound in (min_val, max_val))
    return text("hardtanh", *(int(bound) if float(bound).is_integer() else bound for bound in bounds))


@functional
def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """`hardtanh(input, min_val, max_val, inplace=True)`; as in torch, `min_val` may be larger."""
    return activated(input, _hardtanh_text(min_val, max_val), True)


@functional
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input, but negative_slope * input where input < 0, as `torch.nn.functional.leaky_relu`.

    Args and exceptions as in `relu`, except for integers.
    """
    return activated(input, _leaky_relu_text(negative_slope), inplace)


def _leaky_relu_text(negative_slope: float) -> str:
    return text("leaky_relu", real_scalar(negative_slope, "leaky_relu: negative_slope must be a float"))


@functional
def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """`leaky_relu(input, negative_slope, inplace=True)`."""
    return leaky_relu(input, negative_slope, inplace=True)


@functional
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input, but alpha * (exp(input) - 1) where input < 0, as `torch.nn.functional.elu`. Floating dtypes, else as `relu`."""
    return activated(input, _elu_text(alpha), inplace)


@functional
def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`elu(input, alpha, inplace=True)`."""
    return elu(input, alpha, inplace=True)


@functional
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input, but alpha * (exp(input / alpha) - 1) where input < 0, as `torch.nn.functional.celu`.

    Floating dtypes, else as `relu`.

    Raises:
        RuntimeError: alpha is 0.
    """
    return activated(input, _celu_text(alpha), inplace)


@functional
def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`celu(input, alpha, inplace=True)`."""
    return celu(input, alpha, inplace=True)


@functional
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """ELU with two constants that keep mean 0 and variance 1, as `torch.nn.functional.selu`.

    Floating dtypes, else as `relu`.
    """
    return activated(input, _SELU, inplace)


@functional
def selu_(input: Tensor) -> Tensor:
    """`selu(input, inplace=True)`."""
    return selu(input, inplace=True)


@functional
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """input * sigmoid(input), also known as swish, as `torch.nn.functional.silu`. Floating dtypes, else as `relu`."""
    return activated(input, "silu", inplace)


@functional
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """input * tanh(softplus(input)), as `torch.nn.functional.mish`. Floating dtypes, else as `relu`."""
    return activated(input, "mish", inplace)


@functional
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """input times the normal distribution function of input, as `torch.nn.functional.gelu`.

    Args:
        input: any shape and strides; float16, bfloat16, float32 or float64.
        approximate: "none", or "tanh" for an approximation by tanh.

    Raises:
        NotImplementedError: another dtype.
        RuntimeError: another `approximate`.
    """
    return activated(input, _gelu_text(approximate))


@functional
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * input)) / beta, but input where beta * input > threshold, as `torch.nn.functional.softplus`.

    Args and exceptions as in `gelu`.
    """
    return activated(autocast_to_float32(input, "softplus"), _softplus_text(beta, threshold))


def _softplus_text(beta: float, threshold: float) -> str:
    return text("softplus", *(real_scalar(value, "softplus: beta and threshold must be floats") for value in (beta, threshold)))


@functional
def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input)), as `torch.sigmoid`. Integers and bools are converted to torch's default dtype."""
    return activated(_float(input), "sigmoid")


@functional
def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent, as `torch.tanh`. Integers and bools are converted to torch's default dtype."""
    return activated(_float(input), "tanh")


def _float(input: Tensor) -> Tensor:
    whole = not (input.is_floating_point() or input.is_complex() or input.is_quantized)
    return input.to(torch.get_default_dtype()) if whole else input


@functional
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(input + 3, 0), 6) / 6, as `torch.nn.functional.hardsigmoid`. Floating dtypes, else as `relu`."""
    return activated(input, "hardsigmoid", inplace)


@functional
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """input * hardsigmoid(input), as `torch.nn.functional.hardswish`. Floating dtypes, else as `relu`."""
    return activated(input, "hardswish", inplace)


@functional
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """input, but weight * input where input < 0, as `torch.nn.functional.prelu`.

    Args:
        input: (N, C, *) or, with a single weight, any shape; float16, bfloat16, float32 or float64.
        weight: (C), or a single element for all channels; same dtype.

    Raises:
        RuntimeError: incompatible sizes, dtypes or devices.
        NotImplementedError: another dtype.
    """
    input, weight = autocast(input, weight)
    check_slopes(input, weight)
    if input.dim() > 4:  # in the order of memory, the axes before the channels are one, and so are those behind
        order = _in_memory(input)
        sizes, channels = [input.shape[axis] for axis in order], order.index(1)
        outer, inner = math.prod(sizes[:channels]), math.prod(sizes[channels + 1 :])
        y = PRelu.call(input.permute(order).reshape(outer, input.shape[1], inner, 1), weight.reshape(-1))
        y = in_shape(y, sizes)
        return y if order == sorted(order) else y.permute([order.index(axis) for axis in range(input.dim())])
    x = input.reshape(1, 1, -1, 1) if input.dim() < 2 else input[(...,) + (None,) * (4 - input.dim())]
    return in_shape(PRelu.call(x, weight.reshape(-1)), input.shape)


def _in_memory(x: Tensor) -> list[int]:
    """The axes, outermost in memory first; an expanded axis keeps its place. TorchDynamo cannot trace a sort of strides."""
    order: list[int] = []
    for axis in range(x.dim()):
        at = axis
        while at > 0 and 0 < x.stride(order[at - 1]) < x.stride(axis):
            at -= 1
        order.insert(at, axis)
    return order


def check_slopes(input: Tensor, weight: Tensor) -> None:
    """Raise torch's exception for a weight of `prelu` of the wrong size, dtype or device."""
    if weight.dim() > 1:
        raise RuntimeError(f"prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {weight.dim()}")
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight.numel() != 1 and input.dim() == 0:
        raise RuntimeError("Not allow zero-dim input tensor.")
    if weight.numel() not in (1, channels):
        raise RuntimeError(
            "Mismatch of parameter numbers and input channel size. Found parameter numbers = "
            f"{weight.numel()} and channel size = {channels}."
        )
    if weight.dtype != input.dtype:
        raise RuntimeError(f"prelu: Type promoting not supported. Got {input.dtype} and {weight.dtype}")
    if weight.device != input.device:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but got input on {input.device} and weight on {weight.device}"
        )
    if input.dtype not in FLOATS:
        raise NotImplementedError(f"prelu: expected float16, bfloat16, float32 or float64, but got {input.dtype}")


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
_SELU = text("elu", _SELU_ALPHA * _SELU_SCALE, _SELU_SCALE, 1.0)

# For each activation without PReLU, its text, given its arguments except `input` and `inplace`.
TEXTS: dict[Callable[..., Tensor], Callable[..., str]] = {
    relu: lambda: "relu",
    relu6: lambda: "hardtanh 0 6",
    hardtanh: _hardtanh_text,
    leaky_relu: _leaky_relu_text,
    elu: _elu_text,
    celu: _celu_text,
    selu: lambda: _SELU,
    silu: lambda: "silu",
    mish: lambda: "mish",
    gelu: _gelu_text,
    softplus: _softplus_text,
    sigmoid: lambda: "sigmoid",
    tanh: lambda: "tanh",
    hardsigmoid: lambda: "hardsigmoid",
    hardswish: lambda: "hardswish",
}


# For each activation, the names of the arguments in its text; PReLU has its weight instead.
_PARAMETERS = {function: tuple(inspect.signature(text_of).parameters) for function, text_of in TEXTS.items()}
_PARAMETERS[prelu] = ("weight",)

# The functions with an argument `inplace`, for torch's names of them that end with an underscore.
IN_PLACE = {relu_: relu, hardtanh_: hardtanh, leaky_relu_: leaky_relu, elu_: elu, celu_: celu, selu_: selu}


@functional
def sigmoid_(input: Tensor) -> Tensor:
    """`sigmoid` in place, as `torch.sigmoid_`."""
    return activated(input, "sigmoid", True)


@functional
def tanh_(input: Tensor) -> Tensor:
    """`tanh` in place, as `torch.tanh_`."""
    return activated(input, "tanh", True)


def description(function: Callable[..., Tensor], arguments: Sequence[Any]) -> tuple[str, Tensor | None]:
    """An activation as (its text, PReLU's weight), given its arguments after the input; `inplace` is ignored."""
    if function is prelu:
        return "prelu", arguments[0]
    return TEXTS[function](*arguments[: len(_PARAMETERS[function])]), None


def described(module: Any) -> tuple[str, Tensor | None]:
    """`description` of a call of a module of this file, or of torch's module of the same name."""
    function = MODULES[next(cls for cls in type(module).__mro__ if cls in MODULES)]
    return description(function, [getattr(module, name) for name in _PARAMETERS[function]])


@layer
class ReLU(nn.ReLU):
    """torch.nn.ReLU on `relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return relu(input, self.inplace)


@layer
class Hardtanh(nn.Hardtanh):
    """torch.nn.Hardtanh on `hardtanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return hardtanh(input, self.min_val, self.max_val, self.inplace)


@layer
class ReLU6(nn.ReLU6):
    """torch.nn.ReLU6 on `hardtanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return hardtanh(input, self.min_val, self.max_val, self.inplace)


@layer
class LeakyReLU(nn.LeakyReLU):
    """torch.nn.LeakyReLU on `leaky_relu`."""

    def forward(self, input: Tensor) -> Tensor:
        return leaky_relu(input, self.negative_slope, self.inplace)


@layer
class ELU(nn.ELU):
    """torch.nn.ELU on `elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return elu(input, self.alpha, self.inplace)


@layer
class CELU(nn.CELU):
    """torch.nn.CELU on `celu`."""

    def forward(self, input: Tensor) -> Tensor:
        return celu(input, self.alpha, self.inplace)


@layer
class SELU(nn.SELU):
    """torch.nn.SELU on `selu`."""

    def forward(self, input: Tensor) -> Tensor:
        return selu(input, self.inplace)


@layer
class SiLU(nn.SiLU):
    """torch.nn.SiLU on `silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return silu(input, self.inplace)


@layer
class Mish(nn.Mish):
    """torch.nn.Mish on `mish`."""

    def forward(self, input: Tensor) -> Tensor:
        return mish(input, self.inplace)


@layer
class GELU(nn.GELU):
    """torch.nn.GELU on `gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, self.approximate)


@layer
class Softplus(nn.Softplus):
    """torch.nn.Softplus on `softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return softplus(input, self.beta, self.threshold)


@layer
class Sigmoid(nn.Sigmoid):
    """torch.nn.Sigmoid on `sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return sigmoid(input)


@layer
class Tanh(nn.Tanh):
    """torch.nn.Tanh on `tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return tanh(input)


@layer
class Hardsigmoid(nn.Hardsigmoid):
    """torch.nn.Hardsigmoid on `hardsigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return hardsigmoid(input, self.inplace)


@layer
class Hardswish(nn.Hardswish):
    """torch.nn.Hardswish on `hardswish`."""

    def forward(self, input: Tensor) -> Tensor:
        return hardswish(input, self.inplace)


@layer
class PReLU(nn.PReLU):
    """torch.nn.PReLU on `prelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return prelu(input, self.weight)


# For each of torch's modules, trinn's function.
MODULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ReLU: relu, nn.ReLU6: hardtanh, nn.Hardtanh: hardtanh, nn.LeakyReLU: leaky_relu, nn.ELU: elu, nn.CELU: celu,
    nn.SELU: selu, nn.SiLU: silu, nn.Mish: mish, nn.GELU: gelu, nn.Softplus: softplus, nn.Sigmoid: sigmoid, nn.Tanh: tanh,
    nn.Hardsigmoid: hardsigmoid, nn.Hardswish: hardswish, nn.PReLU: prelu,
}  # fmt: skip
