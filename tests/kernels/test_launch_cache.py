"""Launch cache (kernels/runtime/launch_cache.py) on the stub GPU: replayed launches equal the launchers' own and are cheap."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.check import randn
from tests.tools.test_install import ROOT
from trinn.kernels.runtime import launch_cache
from trinn.kernels.runtime.allocate import empty_like
from trinn.kernels.runtime.launch import launch
from trinn.kernels.runtime.plan import make_plan

HOPPER = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_replayed_launches_equal_the_launchers() -> None:
    """Random calls with random sizes, strides, dtypes, alignments and flags: a wrong cache hit would replay another call."""
    replayed = re.match(r"(\d+) operators replayed in (\d+) calls", run("tests.support.cached_launches", "0", "400"))
    assert replayed is not None
    assert int(replayed[1]) > int(replayed[2])


@pytest.mark.long
def test_replayed_launches_in_threads_equal_the_launchers() -> None:
    """Threads that share the launch cache launch on their own tensors."""
    replayed = re.match(
        r"(\d+) operators replayed in 4 threads", run("tests.support.cached_launches", "0", "20", "--threads", "4")
    )
    assert replayed is not None
    assert int(replayed[1]) > 500


def test_replayed_launches_with_descriptors_equal_the_launchers() -> None:
    """Descriptors of an argument, of an allocated tensor, and of views of both."""
    run("tests.support.descriptors")


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper or newer GPU")
def test_launches_with_descriptors_compute() -> None:
    run("tests.support.descriptors", "cuda")


def is_cached(launcher: Callable[..., Any], *tensors: torch.Tensor) -> bool:
    """Whether the launch cache would keep the plan of a call."""
    plan = make_plan(launcher, tensors)
    compiled = SimpleNamespace(run=None, function=None, packed_metadata=None)
    return launch_cache.without_tensors(plan, [compiled] * len(plan.launches), list(tensors)) is not None


def double(x: torch.Tensor, twice: torch.Tensor | None = None) -> torch.Tensor:
    """A launcher of one kernel: y = 2 * x. It reads `twice` in place of x."""
    y = empty_like(x)
    launch(SimpleNamespace(arg_names=["x", "y"]), 1, x if twice is None else twice, y, device=x.device)
    return y


def test_plans_with_other_tensors_are_never_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that reads, or a launcher that returns, a tensor of unknown origin or an argument; a tensor given twice."""
    assert not is_cached(double, randn(3))  # on the CPU
    monkeypatch.setattr(launch_cache, "on_gpu", lambda tensor: True)
    assert is_cached(double, randn(3)) and is_cached(lambda x: double(x, x[1:]), randn(3))
    x = randn(3)
    assert not is_cached(double, x, x)
    assert not is_cached(lambda x: double(x, x * 1), randn(3))
    with torch.inference_mode():  # torch reports this copy as a view
        assert not is_cached(lambda x: double(x, x.contiguous()), randn(6)[::2])
    for result in (lambda x: x, lambda x: double(x) + 0, lambda x: double(x)[1:]):
        assert not is_cached(result, randn(3))


def test_wrapped_tensors_go_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pullback called after its transform has ended gets tensors wrapped by torch.func, whose memory is inaccessible."""
    monkeypatch.setattr(launch_cache, "on_gpu", lambda tensor: True)
    wrapped: list[torch.Tensor] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        wrapped.append(x)
        return x.square()

    torch.func.vjp(function, randn(3))
    assert launch_cache._are_plain((randn(3),)) and not launch_cache._are_plain((randn(3), *wrapped))


@functools.cache
def calls() -> dict[str, Any]:
    """Return the counts of called Python and C functions. Unlike times, they are the same on every run."""
    return json.loads(run("bench.launch_path", "--count", "--json"))


def test_a_launch_is_cheap() -> None:
    """A cached launch costs less than a quarter of Triton's launch, and a cached call less than a third of the launcher."""
    for name, (launcher, triton, cached, start) in calls()["operators"].items():
        assert start < triton / 4, name
        assert cached < launcher / 3, name


def test_a_functional_is_cheap() -> None:
    """A functional costs less than 2.25 times its operator."""
    for name, (operator, whole) in calls()["functionals"].items():
        assert whole < 2.25 * operator, name


def test_forward_and_backward_are_cheap() -> None:
    """Our convolution costs less than twice an empty torch Function."""
    found = calls()["autograd"]
    assert found["ours"] < 2 * found["empty torch Function"]
