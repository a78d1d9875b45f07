"""The number of interpreted programs: it determines the waiting time of a user without a GPU.

A program costs some milliseconds whatever its size, so the number of programs is a measure of time for every machine.
"""

import itertools
import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

import trinn.layers as tnn
from tests.support.check import randn
from tests.support.every import EVERY, called
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.settings import settings
from trinn.layers.pad2d import pad2d
from trinn.models import AlexNet, LeNet

INTERPRETED_BLOCK, WANTED_PROGRAMS = settings.interpreted_block, settings.wanted_programs  # before conftest.py reduces them
IMAGE, HALF = (4, 16, 64, 64), (4, 16, 32, 32)


class Counter:
    """The number of interpreted programs."""

    programs = 0


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """A counter of programs; tiles have their default sizes."""
    counter, run = Counter(), interpreter.GridExecutor.__call__

    def counted(executor: Any, *args: Any, **options: Any) -> None:
        counter.programs += executor.grid[0]
        run(executor, *args, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    monkeypatch.setattr(settings, "interpreted_block", INTERPRETED_BLOCK)
    monkeypatch.setattr(settings, "wanted_programs", WANTED_PROGRAMS)
    return counter


def _batch_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return tnn.batch_norm(x, torch.zeros(16), torch.ones(16), w, b, training=True)


def _unpool(x: Tensor) -> Tensor:
    indices = torch.arange(32 * 32).mul(4).reshape(32, 32).expand(HALF).contiguous()
    return tnn.max_unpool2d(x, indices, 2)


# Each operator at a medium size: a call, the shapes of its tensors, and the recorded number of programs, forward and backward.
CALLS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], int]] = {
    "conv2d": (lambda x, w, b: tnn.conv2d(x, w, b, padding=1), ((4, 3, 64, 64), (32, 3, 3, 3), (32,)), 4),
    "conv2d, stride 2": (lambda x, w, b: tnn.conv2d(x, w, b, 2, 1), (IMAGE, (32, 16, 3, 3), (32,)), 10),
    "conv2d, groups": (lambda x, w, b: tnn.conv2d(x, w, b, padding=1, groups=4), (IMAGE, (32, 4, 3, 3), (32,)), 16),
    "conv2d, depthwise": (lambda x, w, b: tnn.conv2d(x, w, b, padding=1, groups=16), (IMAGE, (16, 1, 3, 3), (16,)), 17),
    "conv_transpose2d": (lambda x, w, b: tnn.conv_transpose2d(x, w, b, 2, 1), (HALF, (16, 8, 4, 4), (8,)), 10),
    "linear": (tnn.linear, ((128, 400), (120, 400), (120,)), 4),
    "linear, ReLU": (called(tnn.LinearReLU(tnn.Linear(400, 120), tnn.ReLU())), ((128, 400), (120, 400), (120,)), 6),
    "relu": (tnn.relu, (IMAGE,), 8),
    "max_pool2d": (lambda x: tnn.max_pool2d(x, 3, 2, 1), (IMAGE,), 2),
    "avg_pool2d": (lambda x: tnn.avg_pool2d(x, 2), (IMAGE,), 3),
    "adaptive_avg_pool2d": (lambda x: tnn.adaptive_avg_pool2d(x, 6), (IMAGE,), 3),
    "adaptive_max_pool2d": (lambda x: tnn.adaptive_max_pool2d(x, 6), (IMAGE,), 3),
    "max_unpool2d": (_unpool, (HALF,), 65),
    "batch_norm": (_batch_norm, (IMAGE, (16,), (16,)), 5),
    "interpolate, bilinear": (lambda x: tnn.interpolate(x, scale_factor=2, mode="bilinear"), (HALF,), 3),
    "interpolate, antialias": (lambda x: tnn.interpolate(x, (24, 20), mode="bilinear", antialias=True), (IMAGE,), 3),
    "interpolate, nearest": (lambda x: tnn.interpolate(x, scale_factor=2), (HALF,), 3),
    "pad2d": (lambda x: pad2d(x, (1, 1, 1, 1), "reflect"), (IMAGE,), 5),
    "batch norm, addition, ReLU": (
        called(tnn.BNAddReLU2d(tnn.BatchNorm2d(16, track_running_stats=False), tnn.ReLU())), (IMAGE, IMAGE, (16,), (16,)), 4
    ),
    "conv2d, ReLU, max pool": (
        called(tnn.ConvReLUMaxPool2d(tnn.Conv2d(16, 32, 3, padding=1), tnn.ReLU(), tnn.MaxPool2d(2))),
        (IMAGE, (32, 16, 3, 3), (32,)), 7
    ),
    "conv2d, batch norm, ReLU": (
        called(tnn.ConvBNReLU2d(tnn.Conv2d(16, 32, 3, padding=1), tnn.BatchNorm2d(32, track_running_stats=False), tnn.ReLU())),
        (IMAGE, (32, 16, 3, 3), (32,), (32,), (32,)), 9
    ),
}  # fmt: skip


def assert_near(programs: int, recorded: int) -> None:
    """Fail if the number of programs differs from the recorded one by a factor of 1.5."""
    assert recorded / 1.5 < programs < 1.5 * recorded, f"{programs} programs; {recorded} are recorded"


@pytest.mark.parametrize("name", CALLS)
def test_programs_of_a_call(name: str, counter: Counter) -> None:
    function, shapes, recorded = CALLS[name]
    function(*(randn(*shape).requires_grad_() for shape in shapes)).sum().backward()
    assert_near(counter.programs, recorded)


def test_calls_allocate_no_stack_chunk() -> None:
    """`launch.with_large_frame` prevents a new chunk of CPython's stack for every call, at any depth of the stack.

    A new chunk is a new page of memory, so the test counts page faults.
    """

    def leaf() -> None:
        pass

    def calls() -> None:
        for _ in range(1000):
            leaf()

    def at(depth: int, function: Callable[[], None]) -> None:
        function() if depth == 0 else at(depth - 1, function)

    def most_pages(function: Callable[[], None]) -> int:
        pages = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
        for depth in range(300):
            at(depth, function)
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        return max(after - before for before, after in itertools.pairwise(pages))

    calls_with_room = launch.with_large_frame(calls)
    assert min(most_pages(calls_with_room) for _ in range(3)) < 100, "without with_large_frame, a thousand pages at some depth"


def test_every_operator_is_counted() -> None:
    assert {name.split(",")[0] for name in EVERY} == {name.split(",")[0] for name in CALLS}


def test_a_step_of_lenet(counter: Counter) -> None:
    LeNet()(randn(40, 1, 32, 32)).square().mean().backward()
    assert_near(counter.programs, 43)


def test_a_step_of_alexnet(counter: Counter) -> None:
    AlexNet(num_classes=10)(randn(1, 3, 127, 127)).square().mean().backward()
    assert_near(counter.programs, 223)
