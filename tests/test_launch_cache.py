"""Launches from notes (kernels/runtime/launch_cache.py), on a GPU that stands still: they are the launchers' own, and cheap."""

import functools
import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.check import randn
from tests.test_install import ROOT
from trinn.kernels import launchers
from trinn.kernels.runtime import launch_cache

HOPPER = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() >= (9, 0)


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_launches_are_the_launchers() -> None:
    """Drawn sizes, strides, dtypes, alignment and flags, in an order in which each could be taken for another."""
    replayed = re.match(r"(\d+) of (\d+)", run("tests.cached_launches", "0", "400"))
    assert replayed is not None
    assert int(replayed[1]) > int(replayed[2])


@pytest.mark.long
def test_launches_in_threads_are_the_launchers() -> None:
    """Threads that share notes launch on their own tensors."""
    replayed = re.match(r"(\d+) operators replayed in 4 threads", run("tests.cached_launches", "0", "20", "--threads", "4"))
    assert replayed is not None
    assert int(replayed[1]) > 500


def test_launches_with_descriptors_are_the_launchers() -> None:
    """Of a tensor that is given, of one that is made, and of views of both."""
    run("tests.descriptors")


@pytest.mark.skipif(not HOPPER, reason="needs a GPU from Hopper on")
def test_launches_with_descriptors_compute() -> None:
    run("tests.descriptors", "cuda")


def test_copies_are_never_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that copies, on the quiet in inference mode, runs every time."""
    monkeypatch.setattr(launch_cache, "on_gpu", lambda tensor: True)
    strided = randn(6)[::2]
    given = [randn(1, 3, 2, 2), strided, strided.square()]
    for inference in (True, False):
        with torch.inference_mode(inference):
            _, notes = launch_cache.record_call(launchers.batchnorm2d_forward, (*given, None, None, None, False, 1e-5), given)
        assert notes == launch_cache.UNCACHEABLE


def test_wrapped_tensors_go_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pullback called after its transform has ended gets tensors that torch.func wrapped, whose memory nobody may ask for."""
    monkeypatch.setattr(launch_cache, "on_gpu", lambda tensor: True)
    wrapped: list[torch.Tensor] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        wrapped.append(x)
        return x.square()

    torch.func.vjp(function, randn(3))
    assert launch_cache._are_plain((randn(3),)) and not launch_cache._are_plain((randn(3), *wrapped))


def test_tensors_off_the_gpu_are_never_noted() -> None:
    empty = torch.empty(0)
    assert launch_cache.record_call(launchers.relu_forward, (empty,), [empty])[1] == launch_cache.UNCACHEABLE


@functools.cache
def calls() -> dict[str, Any]:
    """How many functions are called, Python's and C's: no clock is read, and the numbers are the same on every run."""
    return json.loads(run("bench.launch_path", "--count", "--json"))


def test_a_launch_is_cheap() -> None:
    """Less than a quarter of Triton's own way, and no launcher's Python around it."""
    for name, (launcher, triton, notes, start) in calls()["operators"].items():
        assert start < triton / 4, name
        assert notes < launcher / 3, name


def test_a_functional_is_cheap() -> None:
    """Not much more than its operator."""
    for name, (operator, whole) in calls()["functionals"].items():
        assert whole < 2.25 * operator, name


def test_forward_and_backward_are_cheap() -> None:
    """Less than twice a Function of torch's that does nothing."""
    found = calls()["autograd"]
    assert found["ours"] < 2 * found["torch's Function"]
