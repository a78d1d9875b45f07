"""Several threads that call layers at the same time get the results of one thread."""

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trinn
from tests.support.check import DEVICE, randn
from tests.support.operator_cases import CASES, Ours, results
from tests.support.record import table
from trinn.kernels.runtime import hardware, launch
from trinn.kernels.runtime.interpreter import INTERPRETED
from trinn.kernels.runtime.settings import settings

THREADS = 4


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Make Python switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(function: Callable[[int], Any]) -> list[Any]:
    """The results of `function(thread)` in several threads with a common start."""
    begin = threading.Barrier(THREADS)

    def work(thread: int) -> Any:
        begin.wait()
        return function(thread)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def test_every_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and second gradients. Each thread runs half of the operators, in its own order."""
    monkeypatch.setattr(settings, "interpreted_block", 1024)
    monkeypatch.setattr(settings, "wanted_programs", 1 if INTERPRETED else settings.wanted_programs)

    def computed(names: list[str]) -> dict[str, dict[str, Tensor]]:
        cases = table("calls", Ours())  # modules per thread, because functional_call replaces parameters
        return {name: results(cases[name], cases[name].tensors(), cases[name].others()) for name in names}

    expected = computed(list(CASES))
    for got in in_threads(lambda thread: computed(random.Random(thread).sample(list(CASES), len(CASES) // 2))):
        for name, tensors in got.items():
            for what, tensor in tensors.items():
                assert torch.equal(tensor, expected[name][what]), f"{name}: {what}"


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    return trinn.convert(nn.Sequential(*layers).to(DEVICE).eval(), fuse=seed % 2 == 0)


def step(model: nn.Module, seed: int) -> list[Tensor]:
    """The output and the gradients."""
    x = randn(2, 2, 6, 6, seed=seed).requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("shared", [True, False], ids=["one network", "a network each"])
def test_networks(shared: bool) -> None:
    networks = [network(0 if shared else thread) for thread in range(THREADS)]
    networks = networks[:1] * THREADS if shared else networks
    expected = [step(model, seed) for seed, model in enumerate(networks)]
    for found, wanted in zip(in_threads(lambda i: [step(networks[i], i) for _ in range(3)]), expected, strict=True):
        for one in found:
            assert all(map(torch.equal, one, wanted))


def test_backward_in_another_thread() -> None:
    """On a GPU, autograd runs backward passes in another thread."""
    x = randn(2, 2, 6, 6).requires_grad_()
    model = network(0)
    expected = step(model, 0)[1:]
    outputs = [model(x) for _ in range(THREADS)]
    for got in in_threads(lambda i: torch.autograd.grad(outputs[i].square().sum(), [x, *model.parameters()])):
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreted", "compiled"])
def test_one_launch_at_a_time(interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Triton's interpreter nor its loading of compiled kernels is thread-safe."""
    monkeypatch.setattr(launch, "INTERPRETED", interpreted)
    monkeypatch.setattr(hardware, "GPU", "cpu")
    monkeypatch.setattr(hardware, "current_device", lambda: None)
    at_once, most = 0, 0

    def run(*_: Any, **__: Any) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        threading.Event().wait(1e-3)  # let another thread start
        at_once -= 1

    kernel = type("Kernel", (SimpleNamespace,), {"__getitem__": lambda self, grid: run})()
    in_threads(lambda _: launch.launch(kernel, 1, device=torch.device("cpu")))
    assert most == 1
