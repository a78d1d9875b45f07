"""The base class of the autograd Functions, and the choice between eager, compiled and transformed calls.

Each Function is written once, in the form required by torch.compile and torch.func: `forward` without a context,
`setup_context` (derived from `kept`) and `backward`. This file derives two twins of it:

- an eager twin in the older form, whose `forward` takes the context: in eager mode the newer form costs 10 us more a call;
- a dual twin with a `jvp`, for forward-mode differentiation (on dual numbers): torch.compile refuses a Function with a `jvp`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Aliases, because `Function.call` runs for every operator and attribute look-ups take time.
_is_dynamo_compiling, _is_tracing, _grad_is_enabled = (
    torch.compiler.is_dynamo_compiling,
    torch._C._is_tracing,
    torch.is_grad_enabled,
)
_is_transformed = torch._C._are_functorch_transforms_active

# The floating-point dtypes supported by the kernels.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Function(torch.autograd.Function):
    """Base class of every autograd Function of trinn. A subclass defines `forward`, `backward` and `kept`; callers use `call`.

    `forward` must name each input and annotate its type, tensors first, since torch.compile mistakes `*inputs` for a context.
    `backward` finds the kept tensors in `ctx.saved_tensors`, the non-tensor inputs in `ctx.constants`, and the shape of the
    first input in `ctx.shape`. It returns the gradients of the inputs; trailing None values may be omitted.
    A subclass must also override `tangent`, unless the output is linear in the first input and only this input has a tangent.
    """

    kept: tuple[str | int, ...] = ()  # the tensors to save for backward: inputs by name, outputs by index
    with_gradient: int | None = None  # only the first `with_gradient` outputs have gradients; None: all have
    generate_vmap_rule = True
    _eager: type[torch.autograd.Function]
    _dual: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if vars(cls).keys() & {"forward", "kept"} and "setup_context" not in vars(cls):
            cls.setup_context = staticmethod(_setup_context_of(cls))  # type: ignore[method-assign]
        if "backward" in vars(cls):
            cls.backward = staticmethod(_padded(cls.backward))  # type: ignore[method-assign]
        cls._eager, cls._dual = _eager_twin(cls), _dual_twin(cls)

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        """The tangent of each output, given the tangents of the inputs; None stands for zero.

        Tensors in `inputs` and `output` are None unless `kept` names them.
        """
        return cls.call(tangents[0], *inputs[1:]) if tangents[0] is not None else None

    @classmethod
    def call(cls, *inputs: Any) -> Any:
        """Apply the cheapest twin that is correct in this call, or plain `forward` if no gradient is required."""
        if _is_dynamo_compiling():
            return cls.apply(*inputs)
        if _is_tracing():
            raise RuntimeError("torch.jit.trace cannot trace trinn's operators; torch.export and torch.compile can")
        if is_forward_mode_active():
            return cls._dual.apply(*map(_sealed, inputs))
        if _is_transformed():
            return cls.apply(*inputs)
        if _grad_is_enabled():
            for value in inputs:
                if isinstance(value, Tensor) and value.requires_grad:
                    return cls._eager.apply(*inputs)
        return cls.forward(*inputs)


def _setup_context_of(function: type[Function]) -> Callable[..., None]:
    """The `setup_context` that saves the tensors named in `kept`, and no reference to other tensors."""
    names, types = list(inspect.signature(function.forward).parameters), get_type_hints(function.forward)
    places = [names.index(k) if isinstance(k, str) else len(names) + k for k in function.kept]
    tensors = sum(types.get(name) in (Tensor, Tensor | None) for name in names)
    first = function.with_gradient

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = (*inputs, *outputs)
        ctx.save_for_backward(*[values[place] for place in places])
        ctx.shape, ctx.constants = inputs[0].shape, inputs[tensors:]
        if first is not None:
            ctx.mark_non_differentiable(*outputs[first:])
            ctx.set_materialize_grads(False)

    return setup_context


def _padded(backward: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """A `backward` that returns a gradient or None for every input, and skips `backward` if every upstream gradient is None.

    Autograd passes None for outputs on which the loss does not depend.
    """

    @functools.wraps(backward)
    def gradients(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        count, found = len(ctx.needs_input_grad), ()
        for gradient in upstream:
            if gradient is not None:
                found = backward(ctx, *upstream)
                break
        found = found if isinstance(found, tuple) else (found,)
        return found + (None,) * (count - len(found))

    return gradients


def _eager_twin(function: type[Function]) -> type[torch.autograd.Function]:
    """The eager twin: its `forward` takes the context."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    return _twin(function, forward=forward)


def _dual_twin(function: type[Function]) -> type[torch.autograd.Function]:
    """The dual twin: its `jvp` calls `tangent` with the inputs and outputs. Tensors that are not kept are None.

    Callers must pass every input through `_sealed`.
    """

    def forward(*inputs: Any) -> Any:
        return function.forward(*map(_opened, inputs))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        shared = _SharedContext(ctx)
        inputs = tuple(map(_opened, inputs))
        function.setup_context(shared, inputs, output)
        values = *inputs, *(output if isinstance(output, tuple) else (output,))
        places = {id(tensor): place for place, tensor in enumerate(shared.kept)}
        ctx.places = tuple(places.get(id(v)) if isinstance(v, Tensor) else None for v in values)
        ctx.values = tuple(None if isinstance(v, Tensor) else v for v in values)
        ctx.set_materialize_grads(False)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        kept = ctx.saved_tensors
        values = [v if place is None else kept[place] for place, v in zip(ctx.places, ctx.values, strict=True)]
        inputs, outputs = tuple(values[: len(tangents)]), tuple(values[len(tangents) :])
        return function.tangent(inputs, outputs if len(outputs) > 1 else outputs[0], tangents)

    return _twin(function, forward=forward, setup_context=setup_context, jvp=jvp, generate_vmap_rule=True)


class _SharedContext:
    """A context with one list of saved tensors for jvp and backward: of two lists, torch.vmap records the axes of one only."""

    def __init__(self, ctx: Any) -> None:
        self.__dict__.update(ctx=ctx, kept=())

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.__dict__.update(kept=tensors)
        self.ctx.save_for_backward(*tensors)
        self.ctx.save_for_forward(*tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ctx, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.ctx, name, value)


class _Sealed:
    """A wrapper that hides a tuple from torch.vmap, which would count its elements as inputs and misplace the tangents."""

    def __init__(self, value: tuple[Any, ...]) -> None:
        self.value = value


def _sealed(value: Any) -> Any:
    return _Sealed(value) if isinstance(value, tuple) else value


def _opened(value: Any) -> Any:
    return value.value if isinstance(value, _Sealed) else value


def _twin(function: type[Function], **members: Any) -> type[torch.autograd.Function]:
    members = {name: staticmethod(m) if callable(m) else m for name, m in members.items()}
    members |= {"backward": staticmethod(function.backward), "__module__": function.__module__}
    return type(function.__name__, (torch.autograd.Function,), members)


class Bilinear(Function):
    """A Function that is linear in each of its first two inputs. A third input may be a bias, added to each output channel."""

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (a, b, *rest), (ta, tb, *others) = inputs, tangents
        found = sum_of_tangents(
            cls.call(ta, b, *rest) if ta is not None else None, cls.call(a, tb, *rest) if tb is not None else None
        )
        # After the bias, a convolution has the size of its result, and a linear layer has no input.
        bias, size = others[0] if others else None, rest[1] if len(rest) > 1 else ()
        return sum_of_tangents(
            found, bias[(..., *(None for _ in size))].expand(len(a), -1, *size) if bias is not None else None
        )


def sum_of_tangents(*tangents: Tensor | None) -> Tensor | None:
    """The sum of the tangents, ignoring None; None if all are None."""
    present = [t for t in tangents if t is not None]
    return sum(present[1:], present[0]) if present else None


def in_shape(y: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape a Function's result. The result is no view: an in-place ReLU would drop the hooks registered on a view."""
    return y if y.shape == shape else torch.ops.aten._unsafe_view(y, shape)


def is_transform_active() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return _is_transformed() or forward_ad._current_level >= 0


def is_forward_mode_active() -> bool:
    """Whether forward-mode differentiation is active. In a graph of torch.compile, only torch.func's stack shows it."""
    if forward_ad._current_level >= 0 or not _is_transformed():
        return forward_ad._current_level >= 0
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The operands of a convolution or a linear layer, cast to autocast's dtype if it is on; float64 is not cast."""
    tensors, device = (x, *others), x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # torch has no autocast for the meta device
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


# By device type, the operators that torch's autocast computes in float32. An operator keeps its dtype if it is not listed here
# and does not call `autocast`.
_IN_FLOAT32 = {"cpu": ("max_unpool2d", "pad2d"), "cuda": ("interpolate", "softplus")}


def autocast_to_float32(x: Tensor, operator: str) -> Tensor:
    """An operator's input, cast to float32 if autocast is on and computes this operator in float32; float64 is not cast."""
    device = x.device.type
    if operator not in _IN_FLOAT32.get(device, ()) or not torch.is_autocast_enabled(device):
        return x
    return x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
