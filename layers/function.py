"""The one place that knows eager calls, compiled calls and function transforms apart.

An operator's autograd Function is written once. It gets the form that torch.compile and torch.func need: `forward` without a
context, `setup_context`, `backward`. Two twins are derived from it here: one in the older form, since plain eager mode would
pay 10 us a call for the newer; one that can also be differentiated forward, since torch.compile refuses a class with a `jvp`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

_is_read_by_dynamo, _is_tracing, _grad_is_enabled = (
    torch.compiler.is_dynamo_compiling,
    torch._C._is_tracing,
    torch.is_grad_enabled,
)
_is_transformed = torch._C._are_functorch_transforms_active

# The floating dtypes that the kernels compute in.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Function(torch.autograd.Function):
    """Base of every Function of this library: write `forward` and `backward`, and what is `kept` for that; then `call` it.

    `forward` names its inputs one by one, with their types, tensors first; torch.compile takes a `*inputs` for a context.
    In `backward`, `ctx.saved_tensors` are the tensors that are kept, `ctx.constants` the inputs that are no tensors, and
    `ctx.shape` is the shape of the first input. It returns the gradients of the inputs, up to the last that has one. Write
    `tangent` for what is not linear in its first input alone.
    """

    kept: tuple[str | int, ...] = ()  # inputs by name, outputs by number
    with_gradient: int | None = None  # how many of several outputs, from the first on, have gradients; None: all
    generate_vmap_rule = True
    _eager: type[torch.autograd.Function]
    _dual: type[torch.autograd.Function]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls) and "setup_context" not in vars(cls):
            cls.setup_context = staticmethod(_setup_context_of(cls))  # type: ignore[method-assign]
        if "backward" in vars(cls):
            cls.backward = staticmethod(_padded(cls.backward))  # type: ignore[method-assign]
        cls._eager, cls._dual = _eager_twin(cls), _dual_twin(cls)

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        """The tangent of the output, or of each of several, for those of the inputs; None where there is none.

        Of the tensors in `inputs` and `output` there are those that the backward keeps; the others are None.
        """
        return cls.call(tangents[0], *inputs[1:]) if tangents[0] is not None else None

    @classmethod
    def call(cls, *inputs: Any) -> Any:
        """`apply`, by the cheapest way that is right here; no Function at all when nobody asks for a gradient."""
        if _is_read_by_dynamo():
            return cls.apply(*inputs)
        if _is_tracing():
            raise RuntimeError("torch.jit.trace cannot follow trinn's operators; torch.export and torch.compile can")
        if differentiated_forward():
            return cls._dual.apply(*map(_sealed, inputs))
        if _is_transformed():
            return cls.apply(*inputs)
        if _grad_is_enabled():
            for value in inputs:
                if isinstance(value, Tensor) and value.requires_grad:
                    return cls._eager.apply(*inputs)
        return cls.forward(*inputs)


def _setup_context_of(function: type[Function]) -> Callable[..., None]:
    """The `setup_context` that keeps what a Function names, and lets go of all other tensors."""
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
    """A backward that is asked only with a gradient: autograd also has none, for an output that the rest did not depend on.

    It returns a gradient, or None, for every input.
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
    """The same with one `forward` that takes the context."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    return _twin(function, forward=forward)


def _dual_twin(function: type[Function]) -> type[torch.autograd.Function]:
    """The same with a `jvp`, which is `tangent` of what went in and came out: of the tensors, those kept for the backward.

    It is to be applied to inputs that are `_sealed`.
    """

    def forward(*inputs: Any) -> Any:
        return function.forward(*map(_opened, inputs))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        both = _BothWays(ctx)
        inputs = tuple(map(_opened, inputs))
        function.setup_context(both, inputs, output)
        values = *inputs, *(output if isinstance(output, tuple) else (output,))
        places = {id(tensor): place for place, tensor in enumerate(both.kept)}
        ctx.places = tuple(places.get(id(v)) if isinstance(v, Tensor) else None for v in values)
        ctx.values = tuple(None if isinstance(v, Tensor) else v for v in values)
        ctx.set_materialize_grads(False)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        kept = ctx.saved_tensors
        values = [v if place is None else kept[place] for place, v in zip(ctx.places, ctx.values, strict=True)]
        inputs, outputs = tuple(values[: len(tangents)]), tuple(values[len(tangents) :])
        return function.tangent(inputs, outputs if len(outputs) > 1 else outputs[0], tangents)

    return _twin(function, forward=forward, setup_context=setup_context, jvp=jvp, generate_vmap_rule=True)


class _BothWays:
    """A context that keeps for a jvp what it keeps for a backward: torch.vmap remembers the mapped axes of one list alone."""

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
    """A tuple as one thing: torch.vmap counts the elements of one where it looks for tangents."""

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
    """What is linear in each of its first two inputs. A third may be a bias, which each channel of the output gets on top."""

    @classmethod
    def tangent(cls, inputs: tuple[Any, ...], output: Any, tangents: tuple[Tensor | None, ...]) -> Any:
        (a, b, *rest), (ta, tb, *others) = inputs, tangents
        found = added(cls.call(ta, b, *rest) if ta is not None else None, cls.call(a, tb, *rest) if tb is not None else None)
        bias, size = others[0] if others else None, rest[1] if len(rest) > 1 else ()
        return added(found, bias[(..., *(None for _ in size))].expand(len(a), -1, *size) if bias is not None else None)


def added(*tangents: Tensor | None) -> Tensor | None:
    """The sum of those that are there."""
    present = [t for t in tangents if t is not None]
    return sum(present[1:], present[0]) if present else None


def in_shape(y: Tensor, shape: Sequence[int]) -> Tensor:
    """A Function's result in another shape; no view, for hooks on a view are lost where an in-place ReLU writes over it."""
    return y if y.shape == shape else torch.ops.aten._unsafe_view(y, shape)


def transformed() -> bool:
    """Whether one of torch.func's transforms or forward-mode differentiation is at work."""
    return _is_transformed() or forward_ad._current_level >= 0


def differentiated_forward() -> bool:
    """Whether forward-mode differentiation is at work, in a graph of torch.compile too, which enters it by other ways."""
    if forward_ad._current_level >= 0 or not _is_transformed():
        return forward_ad._current_level >= 0
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in levels)


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """The operands of a convolution or a linear layer, in autocast's dtype where it is on; float64 stays."""
    tensors, device = (x, *others), x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # torch knows no autocast for the meta device
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


# What torch's autocast computes in float32, by the kind of device. What neither stands here nor calls `autocast` keeps dtypes.
_IN_FLOAT32 = {"cpu": ("max_unpool2d", "pad2d"), "cuda": ("interpolate",)}


def autocast_up(x: Tensor, operator: str) -> Tensor:
    """An operator's input, in float32 where autocast is on and has it computed so on this kind of device; float64 stays."""
    device = x.device.type
    if operator not in _IN_FLOAT32.get(device, ()) or not torch.is_autocast_enabled(device):
        return x
    return x.float() if x.is_floating_point() and x.dtype != torch.float64 else x
