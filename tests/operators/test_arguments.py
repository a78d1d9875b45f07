"""Pass every argument of every function and class in many Python, NumPy and torch types: trinn does the same as torch."""

import decimal
import fractions
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

import trinn.layers as tnn
from tests.operators.test_public import FUNCTIONS, MODULES
from tests.support.check import DEVICE, randn

# Valid numbers of arguments that do not accept 2 or 0.7.
INTEGERS: dict[str, int] = {
    "groups": 1,
    "dilation": 1,
    "in_channels": 4,
    "out_channels": 3,
    "num_features": 4,
    "in_features": 6,
}
REALS: dict[str, float] = {"momentum": 0.3, "eps": 0.01}
# Other arguments during the test of one argument. A key may have a remark after a comma: then the argument is tested again.
OTHER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "size": {"scale_factor": None},
    "scale_factor, recomputed": {"recompute_scale_factor": True},
    "scale_factor, area": {"mode": "area"},
    "align_corners": {"mode": "bilinear"},
    "antialias": {"mode": "bilinear"},
    "output_padding": {"stride": 3},
    "padding": {"kernel_size": 5},
}
# Texts of torch's internal errors. trinn raises TypeError or ValueError instead, or treats the value as an integer.
INTERNAL_ERRORS = (
    "could not create a primitive descriptor",
    "INTERNAL ASSERT",
    "Expected scalar.isIntegral",
    "is ambiguous",
    "failed to unpack the object",
)
# torch does not check the types of these arguments; trinn accepts the same types as for max_pool2d.
AS_MAX_POOL2D = {"max_unpool2d": ("kernel_size", "stride", "padding"), "MaxUnpool2d": ("kernel_size", "stride", "padding")}


def values_of(name: str) -> Iterator[tuple[str, Any]]:
    """Yield a valid integer and a valid real number of the argument in many types, and values invalid for most arguments."""
    n, r = INTEGERS.get(name, 2), REALS.get(name, 0.7)
    yield from {
        "int": n, "float": r, "whole float": float(n), "zero": 0, "negative": -1, "True": True, "False": False, "None": None,
        "nan": float("nan"), "infinity": float("inf"), "complex": complex(n), "text": "valid", "object": object(),
        "Fraction": fractions.Fraction(n), "Decimal": decimal.Decimal(n), "more than 64 bits": 2**70,
        "tuple": (n, n), "list": [n, n], "torch.Size": torch.Size((n, n)), "range": range(n, n + 2), "set": {n}, "dict": {n: n},
        "tuple of 1": (n,), "tuple of 3": (n, n, n), "tuple of 4": (n, n, n, n), "empty tuple": (), "empty list": [],
        "tuple with a bool": (True, n), "tuple with None": (None, n), "tuple with text": ("a", n), "tuple of floats": (r, r),
        "tuple with a whole float": (float(n), n),
    }.items()  # fmt: skip
    for integer in (np.int64, np.int32, np.uint8, np.bool_):
        yield f"np.{integer.__name__}", integer(n)
        yield f"tuple of np.{integer.__name__}", (integer(n), integer(n))
    for real in (np.float64, np.float32, np.float16):
        yield f"np.{real.__name__}", real(r)
        yield f"tuple of np.{real.__name__}", (real(r), real(r))
    yield from {"array": np.array(n), "array of 1": np.array([n]), "array of 2": np.array([n, n])}.items()
    yield from {
        "array of real": np.array(r),
        "array of 2 reals": np.array([r, r]),
        "array of 1 x 2": np.array([[n, n]]),
    }.items()
    for dtype in (torch.int64, torch.int32, torch.bool, torch.float64, torch.float32, torch.float16):
        number = torch.tensor(r if dtype.is_floating_point else n, dtype=dtype)
        yield f"{dtype} tensor", number
        yield f"tuple of {dtype} tensors", (number, number)
        yield f"{dtype} tensor of 1", number[None]
        yield f"{dtype} tensor of 2", number.expand(2)
    yield "tensor with a gradient", torch.tensor(r, requires_grad=True)


def plain(value: Any) -> Any:
    """Convert a value to an int or a tuple of ints."""
    try:
        return int(value)
    except (TypeError, ValueError, RuntimeError):
        return tuple(map(int, value))


Outcome = tuple[Tensor, ...] | Exception


def outcome(function: Callable[[Any], Any], value: Any) -> Outcome:
    try:
        result = function(value)
    except Exception as error:
        return error
    return result if isinstance(result, tuple) else (result,)


def same(ours: Outcome, torchs: Outcome) -> bool:
    if isinstance(ours, Exception) or isinstance(torchs, Exception):
        return type(ours) is type(torchs)
    try:
        torch.testing.assert_close(ours, torchs, atol=1e-4, rtol=1e-4, equal_nan=True, check_stride=True)
    except AssertionError:
        return False
    return True


def check(name: str, argument: str, ours: Callable[[Any], Any], torchs: Callable[[Any], Any]) -> None:
    """Assert torch's outcome for every type of the argument."""
    wrong = []

    def pool(value: Any) -> Tensor:
        value = _pair(value) if name == "MaxUnpool2d" else value
        return F.max_pool2d(randn(1, 1, 9, 9), **{"kernel_size": 5} | {argument: value})

    for kind, value in values_of(argument):
        expected, got = outcome(torchs, value), outcome(ours, value)
        right = same(got, expected)
        if isinstance(expected, Exception) and any(words in str(expected) for words in INTERNAL_ERRORS):
            right = (
                right or type(got) in (TypeError, ValueError) or same(got, outcome(lambda value: torchs(plain(value)), value))
            )
        elif argument in AS_MAX_POOL2D.get(name, ()):
            pooled = outcome(pool, value)
            right = right or isinstance(got, TypeError) == isinstance(pooled, TypeError)
        if not right:
            wrong.append(f"{name}: {argument}={kind}: torch {_shown(expected)}, trinn {_shown(got)}")
    assert not wrong, "\n".join(wrong)


def _shown(found: Outcome) -> str:
    return repr(found)[:150] if isinstance(found, Exception) else str([tuple(y.shape) for y in found])


def _options(name: str) -> Iterator[str]:
    """The arguments of a function except tensors."""
    for argument in inspect.signature(getattr(tnn, name)).parameters:
        if argument not in FUNCTIONS[name].inputs():
            yield argument
            yield from (key for key in OTHER_ARGUMENTS if key.startswith(f"{argument}, "))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name,argument", [(name, argument) for name in FUNCTIONS for argument in _options(name)])
def test_functions(name: str, argument: str) -> None:
    options = FUNCTIONS[name].options | {k: v for k, v in OTHER_ARGUMENTS.get(argument, {}).items() if k in [*_options(name)]}
    argument = argument.partition(",")[0]

    def call(function: Callable[..., Any], value: Any) -> Any:
        given = {name: tensor.clone() for name, tensor in FUNCTIONS[name].inputs().items()}
        more = {"training": True} if name == "batch_norm" else {}
        result = function(**given, **more | options | {argument: value})
        return (result, *given.values()) if isinstance(result, Tensor) else result  # include the running statistics

    check(
        name, argument,
        lambda value: call(getattr(tnn, name), value), lambda value: call(getattr(F, name), value),
    )  # fmt: skip


def _constructor(name: str) -> list[str]:
    return [
        p for p in inspect.signature(getattr(nn, name).__init__).parameters if p not in ("self", "device", "dtype", "kwargs")
    ]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name,argument", [(name, argument) for name in MODULES if "Lazy" not in name for argument in _constructor(name)]
)
def test_modules(name: str, argument: str) -> None:
    options = MODULES[name].options | {k: v for k, v in OTHER_ARGUMENTS.get(argument, {}).items() if k in _constructor(name)}

    def call(module: Callable[..., nn.Module], value: Any) -> Any:
        torch.manual_seed(0)
        called = module(**options | {argument: value}).to(DEVICE)
        result = called(*MODULES[name].inputs().values())
        return (result, *(b.clone() for b in called.buffers())) if isinstance(result, Tensor) else result

    check(
        name, argument,
        lambda value: call(getattr(tnn, name), value), lambda value: call(getattr(nn, name), value),
    )  # fmt: skip


def _signature(name: str) -> inspect.Signature:
    """torch's signature, parsed from the docstring of built-in functions."""
    function = getattr(F, f"{name}_with_indices", None) or getattr(F, name)
    try:
        return inspect.signature(function)
    except ValueError:
        parameters = function.__doc__.strip().removeprefix(f"{name}(").partition(") -> ")[0]
        return inspect.signature(eval(f"lambda {parameters}: None"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_order_and_defaults(name: str) -> None:
    ours, torchs = inspect.signature(getattr(tnn, name)).parameters.values(), _signature(name).parameters.values()
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in torchs]
