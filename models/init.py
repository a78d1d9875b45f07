"""Initialisation of a whole model with the functions of torch.nn.init: `init_weights`."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["init_weights"]

Scheme = str | Callable[[Tensor], Any]

# The functions of torch.nn.init, by name, without the trailing underscore.
SCHEMES: dict[str, Callable[..., Any]] = {
    name[:-1]: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")
}
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Initialised(NamedTuple):
    """The state of a parameter after `init_weights`; `scheme` is 'kept' if the parameter was not changed."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    mean: float
    std: float


class Report(list[Initialised]):
    """The result of `init_weights`, one record for each parameter; it prints as a table.

    Attributes:
        seed: the seed that reproduces these weights.
    """

    def __init__(self, records: list[Initialised], seed: int) -> None:
        super().__init__(records)
        self.seed = seed

    def __repr__(self) -> str:
        rows = [("parameter", "shape", "scheme", "mean", "std")]
        rows += [(r.name, " x ".join(map(str, r.shape)) or "1", r.scheme, f"{r.mean:.4f}", f"{r.std:.4f}") for r in self]
        name, shape, scheme, mean, std = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{r[0]:{name}}  {r[1]:{shape}}  {r[2]:{scheme}}  {r[3]:>{mean}}  {r[4]:>{std}}" for r in rows]
        return "\n".join((lines[0], "-" * len(lines[0]), *lines[1:]))


def init_weights(model: nn.Module, scheme: Scheme | Mapping[Any, Scheme], *, seed: int | None = None) -> Report:
    """Initialise the parameters of a model.

        init_weights(model, "xavier_uniform")
        init_weights(model, partial(torch.nn.init.normal_, std=0.01), seed=0)
        init_weights(model, {torch.nn.Conv2d: "kaiming_normal", torch.nn.Linear: "orthogonal", "classifier.6": "zeros"})

    In each layer with a scheme, the parameters are initialised as follows:

    - Weights with two or more axes: by the scheme.
    - Biases: 0. Weights of normalisation layers: 1. Their running statistics are reset.
    - Other parameters with one axis, such as the weight of PReLU: not changed.

    A scheme given for the name or the class of a layer also initialises the layer's weights with one axis. A scheme given for
    the name of a parameter always initialises this parameter.

    Every parameter has its own random numbers, drawn on the CPU with a generator seeded from `seed` and the parameter's name.
    So they do not depend on other layers, the device or earlier draws. torch's global generator keeps its state.

    Args:
        scheme: a function of torch.nn.init, its name (with or without the trailing underscore), or a functools.partial of it
            with arguments. Or a mapping to such schemes from names of parameters, layers and blocks, and from classes of
            layers. A name has precedence over a class, an inner block over an outer one, a derived class over its base.
            torch.nn.Module matches every layer. Layers without a scheme are not changed.
        seed: the seed of the random numbers; None draws one from torch's global generator.

    Returns:
        One record for each parameter, and the seed.

    Raises:
        ValueError: an unknown scheme; a name missing from the model; a scheme unsuited to a parameter's shape; a parameter
            without shape (lazy) or memory (meta device), or computed by a parametrization.
        TypeError: a value is no scheme, or a scheme lacks arguments.

    After these exceptions the model is unchanged.
    """
    schemes = _functions(model, scheme)
    plan = list(_plan(model, schemes))
    seed = int(torch.randint(2**63 - 1, (), device="cpu")) if seed is None else seed
    values = [_drawn(name, parameter, function, seed) for name, parameter, function in plan if function is not None]
    filled = [parameter for _, parameter, function in plan if function is not None]
    with torch.no_grad():
        for parameter, value in zip(filled, values, strict=True):
            parameter.copy_(value)
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and _scheme_of(schemes, path, module)[0] is not None:
            module.reset_running_stats()
    return Report([_record(*each) for each in plan], seed)


def _functions(model: nn.Module, scheme: Any) -> dict[Any, Callable[[Tensor], Any]]:
    """The schemes as functions, by name or class."""
    names = {*dict(model.named_modules()), *dict(model.named_parameters())}
    functions = {}
    for key, value in (scheme if isinstance(scheme, Mapping) else {nn.Module: scheme}).items():
        if not (isinstance(key, str) or isinstance(key, type) and issubclass(key, nn.Module)):
            raise TypeError(f"expected a scheme for a name or a class of modules, but got one for {key!r}")
        if isinstance(key, str) and key not in names:
            raise ValueError(f"{type(model).__name__} has no layer and no parameter '{key}'")
        if isinstance(value, str) and value.removesuffix("_") not in SCHEMES:
            raise ValueError(f"unknown scheme '{value}'; torch.nn.init has {', '.join(SCHEMES)}")
        if not (isinstance(value, str) or callable(value)):
            raise TypeError(f"expected a function of torch.nn.init or its name, but got {value!r}")
        functions[key] = SCHEMES[value.removesuffix("_")] if isinstance(value, str) else value
    return functions


def _plan(model: nn.Module, schemes: dict[Any, Any]) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Any] | None]]:
    """Yield each parameter once, with its name and the function that initialises it; None means no change."""
    seen = set()
    for path, module in model.named_modules():
        function, is_specific = _scheme_of(schemes, path, module)
        if function is not None and is_parametrized(module):
            raise ValueError(f"'{path}' has parametrizations: call init_weights before registering them")
        for name, parameter in module.named_parameters(path, recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if is_lazy(parameter):
                raise ValueError(f"{name} has no shape yet: run the model once before init_weights")
            if parameter.is_meta:
                raise ValueError(f"{name} is on the meta device: call model.to_empty(device=...) before init_weights")
            if name in schemes:
                yield name, parameter, schemes[name]
            elif function is None:
                yield name, parameter, None
            elif "bias" in name.rpartition(".")[2]:
                yield name, parameter, nn.init.zeros_
            elif is_specific or parameter.dim() >= 2:
                yield name, parameter, function
            else:
                yield name, parameter, nn.init.ones_ if isinstance(module, NORMS) else None


def _scheme_of(schemes: dict[Any, Any], path: str, module: nn.Module) -> tuple[Callable[[Tensor], Any] | None, bool]:
    """The scheme of a module, and whether it is specific: given for this module's name, or a class other than nn.Module."""
    parts = path.split(".")
    for outer in (".".join(parts[:depth]) for depth in range(len(parts), -1, -1)):
        if outer in schemes:
            return schemes[outer], outer == path
    for kind in type(module).__mro__:
        if kind in schemes:
            return schemes[kind], kind is not nn.Module
    return None, False


def _drawn(name: str, parameter: Tensor, function: Callable[[Tensor], Any], seed: int) -> Tensor:
    """The new values of a parameter, on the CPU, in at least float32: some functions of torch.nn.init refuse 16 bits."""
    value = torch.empty(parameter.shape, dtype=torch.promote_types(parameter.dtype, torch.float32), device="cpu")
    value.copy_(parameter.detach())  # for a scheme that scales the present values
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        try:
            function(value)
        except ValueError as refusal:
            raise ValueError(f"{_title(function)} does not fit {name} of shape {list(value.shape)}: {refusal}") from refusal
    return value


def _title(function: Any) -> str:
    """The name of a scheme with its arguments, such as 'normal(std=0.01)'."""
    if not isinstance(function, partial):
        return getattr(function, "__name__", repr(function)).removesuffix("_")
    arguments = [*map(str, function.args), *(f"{name}={value}" for name, value in function.keywords.items())]
    return f"{_title(function.func)}({', '.join(arguments)})"


def _record(name: str, parameter: Tensor, function: Callable[[Tensor], Any] | None) -> Initialised:
    values = parameter.detach().double()
    mean, std = float(values.mean()), float(values.std(correction=0))
    return Initialised(name, tuple(parameter.shape), "kept" if function is None else _title(function), mean, std)
