"""Under torch.autocast, results and gradients of every operator have torch's dtypes, or the same exception is raised.

Fake tensors give the dtypes for a CPU and a GPU on every machine.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.support.check import DTYPES
from tests.support.operator_cases import CASES, TORCH_CASES, results
from tests.support.record import OperatorCase
from trinn.layers.function import autocast_to_float32

LOWER = (torch.bfloat16, torch.float16)

Outcome = dict[str, torch.dtype] | str
Mode = Callable[[], AbstractContextManager[Any]]


@contextmanager
def nested_disabled(dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast("cpu", dtype), torch.autocast("cpu", enabled=False):
        yield


def called_within(mode: Mode, case: OperatorCase) -> OperatorCase:
    def function(*tensors: Tensor) -> Any:
        with mode():
            return case.function(*tensors)

    return case._replace(function=function)


def outcome(case: OperatorCase, first: torch.dtype, others: torch.dtype) -> Outcome:
    """The dtypes of outputs, gradients and second gradients by name, or the name of an exception."""
    tensors = [t.to("cpu", others if i else first) for i, t in enumerate(case.tensors())]
    try:
        return {name: value.dtype for name, value in results(case, tensors, tuple(t.cpu() for t in case.others())).items()}
    except Exception as error:
        return type(error).__name__


def pairs(case: OperatorCase) -> Iterator[tuple[torch.dtype, torch.dtype]]:
    """Dtypes of the first tensor and of the other tensors."""
    return ((a, b) for a in DTYPES for b in DTYPES if a == b or len(case.shapes) > 1)


MODES: dict[str, Callable[[torch.dtype], tuple[Mode, Mode]]] = {
    "forward": lambda dtype: (partial(torch.autocast, "cpu", dtype), nullcontext),
    "forward and backward": lambda dtype: (nullcontext, partial(torch.autocast, "cpu", dtype)),
    "nested, disabled": lambda dtype: (partial(nested_disabled, dtype), nullcontext),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_dtypes(name: str, mode: str) -> None:
    for lower in LOWER:
        forward, whole = MODES[mode](lower)
        for given in pairs(CASES[name]):
            with whole():
                with FakeTensorMode(allow_non_fake_inputs=True):
                    got = outcome(called_within(forward, CASES[name]), *given)
                expected = outcome(called_within(forward, TORCH_CASES[name]), *given)
            if isinstance(got, dict) and isinstance(expected, dict):  # torch returns some second gradients of zeros
                expected = {key: dtype for key, dtype in expected.items() if key in got or not key.startswith("second")}
            assert got == expected, f"{given} under {lower}: {got}, torch has {expected}"


@contextmanager
def on_a_gpu(dtype: torch.dtype) -> Iterator[None]:
    """Autocast for GPU tensors. Without a GPU, torch.autocast itself does not enable it."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.fake_cuda])
def test_dtypes_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast has a different list of operators for GPUs. Fake GPU tensors select this list."""
    # In deterministic mode, torch resizes with other operators, and autocast does not affect them.
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    for lower in LOWER:
        for given in DTYPES:
            found = []
            for case in (CASES[name], TORCH_CASES[name]):
                with FakeTensorMode(allow_non_fake_inputs=True), on_a_gpu(lower):
                    tensors = [t.to(given) if t.is_floating_point() else t for t in (*case.tensors(), *case.others())]
                    result = case.function(*(torch.empty_like(t, device="cuda") for t in tensors))
                found.append([y.dtype for y in (result if isinstance(result, tuple) else (result,))])
            assert found[0] == found[1], f"{given} under {lower}: {found[0]}, torch has {found[1]}"


def test_other_dtypes_are_unchanged() -> None:
    for operator in ("max_unpool2d", "pad2d", "interpolate"):
        with torch.autocast("cpu", torch.bfloat16):
            for x in (torch.arange(3), torch.ones(2, dtype=torch.float64)):
                assert autocast_to_float32(x, operator) is x
