"""The benchmark registry for pytest-benchmark, to compare commits with its tools: `pytest bench --benchmark-only`.

`-k quick` selects the cases of `python -m bench --quick`. CUDA events measure the time. Before each round the GPU sleeps until
the call is in its queue.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.registry import CASES, QUICK, SIDES
from bench.time.case import Contender, Instance, calls_of, check, exact_results, layouts_of
from bench.time.protocol import Call, Machine, using

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ASLEEP = 1 << 23  # cycles, some milliseconds: longer than the host needs to enqueue one call


class Moment:
    """A CUDA event; the difference of two is in seconds."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, start: "Moment") -> float:
        self.event.synchronize()
        return start.event.elapsed_time(self.event) / 1e3


def parameters() -> Iterator[Any]:
    for name, case in CASES.items():
        for arithmetic, side, layout, what in itertools.product(case.arithmetics, SIDES, layouts_of(case), case.works):
            quick = ["quick"] if arithmetic in QUICK.get(name, ()) else []
            label = "-".join([name, what, arithmetic, side, layout, *quick])
            yield pytest.param(name, arithmetic, Contender(side, "eager", layout), what, id=label)


@pytest.mark.benchmark(timer=Moment)
@pytest.mark.parametrize(("name", "arithmetic", "contender", "what"), list(parameters()))
def test_case(name: str, arithmetic: str, contender: Contender, what: str, benchmark: Any) -> None:
    case, machine = CASES[name], Machine.gpu()
    with using(arithmetic) as dtype:
        if contender.side == "ours":
            ours, torchs = (Instance(case, side, dtype, contender.layout, machine.device).results() for side in SIDES)
            assert not check(ours, torchs, *exact_results(case, dtype, machine.device))["wrong"]
        sets = machine.sets(case.works[what].bytes(dtype.itemsize))
        calls = itertools.cycle(calls_of(case, contender, what, dtype, machine.device, sets))

        def asleep() -> tuple[tuple[Call], dict[str, Any]]:
            torch.cuda.synchronize()
            torch.cuda._sleep(ASLEEP)
            return (next(calls),), {}

        run: Callable[[Call], object] = lambda call: call()  # noqa: E731
        benchmark.pedantic(run, setup=asleep, rounds=50, warmup_rounds=sets + 1)
