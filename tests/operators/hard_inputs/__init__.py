"""Hard inputs: numbered rows for tests/operators/test_hard_inputs.py, each an input with frequent errors in operators.

A row of `like_torch` is a function of a namespace. It runs with torch's operators on the CPU and with trinn's on the tested
device, and must return the same result. Results are equal exactly or, if sums are rounded, within some units in the last place
of the largest value. A row of `holds` makes its own assertions.

Random values are small integers, so every sum is exact in any order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trinn.layers as tnn
from tests.support.check import DEVICE
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

INF, NAN = float("inf"), float("nan")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TORCH = SimpleNamespace(**{name: getattr(F, name, getattr(nn, name, None)) for name in vars(tnn)["__all__"]})


class Row(NamedTuple):
    number: int
    name: str
    run: Callable[[], None]


ROWS: list[Row] = []


def like_torch(number: int, name: str, ulps: float = 0) -> Callable[[Callable[[Any], Any]], None]:
    """Decorator: add a row comparing trinn with torch."""

    def add(function: Callable[[Any], Any]) -> None:
        def run() -> None:
            with torch.device("cpu"):
                expected = function(TORCH)
            with torch.device(DEVICE):
                got = function(tnn)
            same(got, expected, "result", ulps)

        ROWS.append(Row(number, name, run))

    return add


def holds(number: int, name: str) -> Callable[[Callable[[], None]], None]:
    """Decorator: add a row with its own assertions."""

    def add(function: Callable[[], None]) -> None:
        def run() -> None:
            with torch.device(DEVICE):
                function()

        ROWS.append(Row(number, name, run))

    return add


def same(got: Any, expected: Any, where: str, ulps: float) -> None:
    """Assert that two results of a row are equal: tensors in shape, dtype and value, all else by `==`."""
    assert isinstance(got, type(expected)), f"{where}: {got!r}, torch has {expected!r}"
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), f"{where}: {len(got)} values, torch has {len(expected)}"
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            same(g, e, f"{where}[{i}]", ulps)
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), f"{where}: {list(got)}, torch has {list(expected)}"
        for key in expected:
            same(got[key], expected[key], f"{where}[{key!r}]", ulps)
    elif isinstance(expected, Tensor):
        finite = expected[expected.isfinite()].abs() if expected.is_floating_point() else expected.new_empty(0)
        atol = ulps * torch.finfo(expected.dtype).eps * float(finite.max()) if finite.numel() else 0.0
        torch.testing.assert_close(
            got, expected, rtol=0, atol=atol, equal_nan=True, check_device=False, msg=lambda m: f"{where}: {m}"
        )
    else:
        assert got == expected, f"{where}: {got!r}, torch has {expected!r}"


def refusal(function: Callable[..., Any], *inputs: Any, words: str = "", **options: Any) -> str:
    """The name of the exception type of a call. Assert that the message contains `words`."""
    try:
        result = function(*inputs, **options)
    except Exception as error:
        assert words in str(error), f"{words!r} is not in {str(error)!r}"
        return type(error).__name__
    raise AssertionError(f"no exception, but {result!r}")


def grads(function: Callable[..., Any], *inputs: Any, upstream: float | None = None, **options: Any) -> list[Any]:
    """All outputs, and the gradients of all float inputs. Upstream gradients are integers, or `upstream` everywhere."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) if isinstance(t, Tensor) else t for t in inputs]
    result = function(*leaves, **options)
    outputs = list(result) if isinstance(result, tuple) else [result]
    ends = [y for y in outputs if y.requires_grad]
    wanted = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
    dys = [integers(*y.shape, dtype=y.dtype, seed=7) if upstream is None else torch.full_like(y, upstream) for y in ends]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(ends, wanted, dys, allow_unused=True))


def outcome(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """The result of a call, or the name of its exception type."""
    try:
        return function(*inputs, **options)
    except Exception as error:
        return type(error).__name__


def integers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, most: int = 3) -> Tensor:
    """Random integers from -most to most, equal on every device."""
    generator = torch.Generator("cpu").manual_seed(seed + sum((i + 1) * size for i, size in enumerate(shape)))
    drawn = torch.randint(-most, most + 1, shape, generator=generator, device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def plane(rows: list[list[float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """The rows as an image (1, 1, H, W)."""
    return torch.tensor([[rows]], dtype=dtype)


@contextmanager
def large_tiles() -> Iterator[None]:
    """Large tiles: the interpreter is then fast enough for a large tensor."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(settings, "interpreted_block", 2**16)
        yield


def filled(module: nn.Module) -> Any:
    """The module, with integers as parameters."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(integers(*parameter.shape, seed=seed))
    return module
