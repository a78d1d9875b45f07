"""The timing protocol: GPU events, contenders interleaved in every round, medians and quartiles.

No CPU clock is read here. A sample is the time between two events in one stream. To measure GPU work without launch overhead,
the GPU first sleeps until all calls of the sample are queued. A sample is discarded if the GPU woke up before that.
"""

import contextlib
import itertools
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch

from bench.shapes import ARITHMETIC

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)

MOST_SETS = 64  # sets of inputs to rotate
LEAST = 0.5e-3  # seconds per sample; shorter if MOST_CALLS are too few
MOST_CALLS = 20  # calls per sample: all of their kernels must fit into the GPU's launch queue
ROUNDS = 15  # samples per contender


class Clock(Protocol):
    def seconds(self, calls: Sequence[Call], ahead: bool) -> float:
        """Return the GPU time of these calls. With `ahead` all calls are queued before the first starts."""


class EventClock:
    """Time between two events on the GPU."""

    def __init__(self) -> None:
        self.cycles = 1 << 20  # the GPU sleeps this long while calls are queued; about half a millisecond

    def seconds(self, calls: Sequence[Call], ahead: bool) -> float:
        for _ in range(10):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            if ahead:
                torch.cuda._sleep(self.cycles)
            start.record()
            for call in calls:
                call()
            end.record()
            in_time = not start.query()
            torch.cuda.synchronize()
            if in_time or not ahead:
                return start.elapsed_time(end) / 1e3
            self.cycles *= 2
        self.cycles = 1 << 20
        raise RuntimeError("a call waits for the GPU, or the CPU cannot launch it ahead: its time on the GPU is unknown")


class Spread(NamedTuple):
    """Seconds per call: quartiles of the samples."""

    low: float
    median: float
    high: float


def interleaved(
    contenders: Mapping[Name, Sequence[Call]], clock: Clock, ahead: bool = True, rounds: int = ROUNDS, least: float = LEAST
) -> dict[Name, Spread]:
    """Time the calls of each contender, cycling through its calls.

    Every round times all contenders. The starting contender changes from round to round.

    Args:
        ahead: whether the GPU sleeps until all calls of a sample are queued.
        rounds: samples per contender.
        least: seconds per sample; shorter if MOST_CALLS are too few.

    Raises:
        RuntimeError: a call failed, or `ahead` is impossible (see EventClock).
    """
    turns = {name: itertools.cycle(calls) for name, calls in contenders.items()}
    # Warm up, then choose the number of calls per sample from the time of three calls.
    counts: dict[Name, int] = {}
    for name, calls in contenders.items():
        for call in [*calls, calls[0]]:  # compiles, lets cuDNN choose, fills the allocator
            call()
        once = clock.seconds([next(turns[name]) for _ in range(3)], ahead) / 3
        counts[name] = max(1, min(MOST_CALLS, round(least / max(once, 1e-9))))
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            calls = [next(turns[name]) for _ in range(counts[name])]
            samples[name].append(clock.seconds(calls, ahead) / len(calls))
    return {name: Spread(*statistics.quantiles(of, n=4, method="inclusive")) for name, of in samples.items()}


@dataclass
class Machine:
    """The measuring device. Tests use a fake one."""

    device: str = "cuda"
    clock: Clock = field(default_factory=EventClock)
    cache: int = 0  # bytes of the last-level cache

    @staticmethod
    def gpu() -> "Machine":
        torch.backends.cudnn.benchmark = True
        return Machine(cache=torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)

    def sets(self, bytes: int) -> int:
        """Return how many input sets of `bytes` each to rotate, so that no call finds its inputs in the cache."""
        return max(2, min(MOST_SETS, -(-2 * self.cache // max(bytes, 1)) + 1))

    def wait(self) -> None:
        """Wait for the GPU. Raise if its context is broken."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def graphed(self, step: Call) -> Call:
        """Capture a step as a CUDA graph. Return the replay, a single launch."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

        def replay(step: Call = step) -> None:  # `step` keeps the memory of the graph alive
            graph.replay()

        return replay

    def copy_rate(self, bytes: int = 1 << 30) -> float:
        """Return the bytes read and written per second by a large copy."""
        sets = [torch.randn(2, bytes // 4, device=self.device) for _ in range(2)]
        return 2 * bytes / self.time_of([partial(to.copy_, of) for to, of in sets])

    def product_rate(self, arithmetic: str, size: int = 8192) -> float:
        """Return the floating-point operations per second of torch's matrix product on random numbers."""
        with using(arithmetic) as dtype:
            sets = [torch.randn(2, size, size, device=self.device).to(dtype) for _ in range(2)]
            return 2 * size**3 / self.time_of([partial(torch.matmul, *pair) for pair in sets])

    def time_of(self, calls: Sequence[Call]) -> float:
        """Return the median seconds of one of these calls."""
        return interleaved({"calls": calls}, self.clock)["calls"].median


@contextlib.contextmanager
def using(arithmetic: str) -> Iterator[torch.dtype]:
    """Set torch's float32 precision flags for a key of ARITHMETIC and yield its dtype. On exit, restore torch's defaults.

    Set the old flags (allow_tf32): they also set the new ones (fp32_precision), but not vice versa, and torch.compile reads
    the old ones.
    """
    dtype, precision = ARITHMETIC[arithmetic]
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        yield dtype
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
