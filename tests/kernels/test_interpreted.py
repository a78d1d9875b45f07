"""The number of interpreted programs: it determines the waiting time of a user without a GPU.

A program costs some milliseconds whatever its size, so the number of programs is a measure of time for every machine.
"""

import itertools
import resource
from collections.abc import Callable
from typing import Any

import pytest
from triton.runtime import interpreter

from tests.support.check import randn
from tests.support.operator_cases import CASES, Ours
from tests.support.record import OperatorCase, table
from trinn.kernels.runtime import launch
from trinn.kernels.runtime.settings import settings
from trinn.models import AlexNet, LeNet

INTERPRETED_BLOCK, WANTED_PROGRAMS = settings.interpreted_block, settings.wanted_programs  # before conftest.py reduces them


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


PROGRAMS: dict[str, OperatorCase] = table("programs", Ours())


def assert_near(programs: int, recorded: int) -> None:
    """Fail if the number of programs differs from the recorded one by a factor of 1.5."""
    assert recorded / 1.5 < programs < 1.5 * recorded, f"{programs} programs; {recorded} are recorded"


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_a_call(name: str, counter: Counter) -> None:
    case = PROGRAMS[name]
    case.function(*(t.requires_grad_() for t in case.tensors())).sum().backward()
    assert_near(counter.programs, case.programs)


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
    assert {name.split(",")[0] for name in CASES} == {name.split(",")[0] for name in PROGRAMS}


def test_a_step_of_lenet(counter: Counter) -> None:
    LeNet()(randn(40, 1, 32, 32)).square().mean().backward()
    assert_near(counter.programs, 43)


def test_a_step_of_alexnet(counter: Counter) -> None:
    AlexNet(num_classes=10)(randn(1, 3, 127, 127)).square().mean().backward()
    assert_near(counter.programs, 223)
