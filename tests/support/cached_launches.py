"""Compare launches replayed from the launch cache with the launchers' own launches, for random calls of every operator.

`python -m tests.support.cached_launches SEED CALLS` runs on the stub GPU (a fake driver). Nothing is compiled.
The comparison includes the specialisation by which Triton would compile each kernel, such as dtypes and alignment.

`--stub` requires Triton 3.6. Triton builds and calls its C launchers, and the bytes passed to cuLaunchKernelEx are compared.
Then a quarter as many convolutions are drawn for the TMA kernels, which take tensor maps. TRITON_CACHE_DIR keeps the C
launchers.

`--threads N` makes the calls of one list in each of N threads, in different orders. Meanwhile cached calls are recorded,
replayed and evicted. The launches are compared with the launchers' own launches, recorded before.
"""

import argparse
import bisect
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench import stub_driver, stub_gpu  # before trinn

import trinn.layers as tnn  # isort: skip
from tests.support.operator_cases import CASES, TMA_CASES, Ours, results
from tests.support.record import OperatorCase, table
from tests.support.tma import tma_everywhere
from trinn.kernels.runtime import launch, launch_cache


class Parameter(NamedTuple):
    """A kernel parameter as passed to the driver."""

    kind: str  # C type
    position: Any  # position of the pointed-to memory (see Launches._position); None if the parameter is no pointer
    value: bytes  # the other bytes


class Launches(threading.local):
    """The launches of this thread. Tensors are numbered in the order of first use; tensors made by autograd have no number."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.kept: list[torch.UntypedStorage] = []  # alive, so that no address is reused
        self.ends: list[tuple[int, int]] = []  # (end, start) addresses of the storages, sorted
        self.order: dict[int, int] = {}
        self.found: list[tuple[Any, ...]] = []

    def track(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        bisect.insort(self.ends, (storage.data_ptr() + storage.nbytes(), storage.data_ptr()))
        return tensor

    def add(self, programs: int, function: Any, args: tuple[Any, ...]) -> None:
        self.found.append((programs, function, tuple(map(self._plain, args))))

    def add_kernel_launch(self, started: stub_driver.KernelLaunch) -> None:
        """Add a launch as it reached the driver, with addresses replaced by positions."""
        parameters = []
        for kind, value in started.parameters:
            position = None
            if kind in ("CUdeviceptr", "CUtensorMap"):  # a tensor map of the stub driver begins with its address
                position, value = self._position(int.from_bytes(value[:8], "little")), value[8:]
            parameters.append(Parameter(kind, position, value))
        self.found.append((*started[:-1], tuple(parameters)))

    def _plain(self, arg: Any) -> Any:
        if isinstance(arg, stub_gpu.TensorMap):
            return self._plain(arg.address), *arg[1:]
        if not isinstance(arg, Tensor) and not (isinstance(arg, int) and arg > 2**32):
            return arg
        return self._position(arg.data_ptr() if isinstance(arg, Tensor) else arg)

    def _position(self, address: int) -> tuple[tuple[int, int] | None, int]:
        """Return (number of the tensor, byte offset from its start), or None, and the address modulo 16."""
        _, start = next(iter(self.ends[bisect.bisect(self.ends, (address + 1,)) :]), (0, address + 1))
        position = (self.order.setdefault(start, len(self.order)), address - start) if start <= address else None
        return position, address % 16


LAUNCHES = Launches()


def shifted(tensor: Tensor, by: int) -> Tensor:
    """Return a copy of the tensor that starts `by` elements into its allocation."""
    room = torch.empty(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
    return room[by:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def drawn(rng: random.Random, operators: Mapping[str, OperatorCase] = CASES) -> tuple[str, OperatorCase]:
    """Draw an operator and its sizes. There are few sizes, so that many calls hit the launch cache."""
    n, c, k = rng.choice((1, 2, 32)), *rng.choices((1, 3, 8, 16, 17, 32, 64), k=2)
    size, taps = rng.choice((5, 8) if n > 2 else (5, 8, 64)), rng.choice((1, 3))
    stride, bias = rng.choice((1, 2)), rng.random() < 0.7
    x, w = (n, c, size, size), (k, c, taps, taps)
    of_drawn_sizes = {
        f"conv2d {x} {w} {stride} {bias}": OperatorCase(
            (lambda x, w, b: tnn.conv2d(x, w, b, stride, 1)) if bias else (lambda x, w: tnn.conv2d(x, w, None, stride, 1)),
            (x, w, (k,)) if bias else (x, w),
        ),
        f"linear {x[:2]} {k}": OperatorCase(tnn.linear, ((n, c), (k, c), (k,))),
        f"relu {x}": OperatorCase(tnn.relu, (x,)),
    }
    name = rng.choice((*operators, *3 * list(of_drawn_sizes)))
    return name, operators.get(name) or of_drawn_sizes[name]


def track_allocations() -> None:
    def tracked(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: LAUNCHES.track(make(*args, **options))

    for name in ("empty", "empty_like", "empty_strided"):
        setattr(torch, name, tracked(getattr(torch, name)))


def called(case: OperatorCase, tensors: list[Tensor], others: tuple[Tensor, ...]) -> tuple[Any, list[Any]]:
    """Return shape, strides and dtype of all outputs and gradients, and the launches."""
    LAUNCHES.clear()
    for tensor in tensors:
        LAUNCHES.track(tensor)
    outputs = results(case, tensors, others)
    return {name: (t.shape, t.stride(), t.dtype) for name, t in outputs.items()}, LAUNCHES.found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare replayed launches with the launchers' own.")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("calls", type=int, nargs="?", default=5000, help="number of random calls; default: 5000")
    parser.add_argument("--threads", type=int, default=0, help="number of threads that make the calls")
    parser.add_argument(
        "--stub", action="store_true", help="compare the bytes that Triton 3.6's C launchers pass to the driver"
    )
    return parser.parse_args()


def drawn_for_tma(rng: random.Random) -> tuple[str, OperatorCase]:
    """Draw a convolution for the TMA kernels, which take tensor maps (see tests/support/tma.py)."""
    n, c, k, size = rng.choice((1, 2, 17)), rng.choice((3, 16, 64)), rng.choice((16, 64, 96)), rng.choice((4, 8, 14))
    taps, stride = rng.choice((1, 3)), rng.choice((1, 2))
    x, w = (n, c, size, size), (k, c, taps, taps)
    of_drawn_sizes = {f"conv2d {x} {w} {stride}": OperatorCase(lambda x, w, b: tnn.conv2d(x, w, b, stride, 1), (x, w, (k,)))}
    name = rng.choice((*TMA_CASES, *3 * list(of_drawn_sizes)))
    return name, TMA_CASES.get(name) or of_drawn_sizes[name]


COUNTS: Counter[str] = Counter()


def count_replays() -> None:
    replay_one = launch_cache._replay

    def counted(*args: Any) -> Any:
        before = len(LAUNCHES.found)
        result = replay_one(*args)
        COUNTS["replayed"] += 1
        COUNTS["launches replayed"] += len(LAUNCHES.found) - before
        return result

    launch_cache._replay = counted  # type: ignore[assignment]


def listener(*_: Any) -> None:
    """A launch hook that does nothing. While a hook is installed, the launch cache is not used."""


class Call(NamedTuple):
    """An operator with its tensors, of a given dtype, memory format and alignment."""

    words: str
    case: OperatorCase
    tensors: list[Tensor]
    others: tuple[Tensor, ...]

    def run(self) -> tuple[Any, list[Any]]:
        """Return shape, strides and dtype of all outputs and gradients, and the launches."""
        return called(self.case, self.tensors, self.others)

    def run_uncached(self) -> tuple[Any, list[Any]]:
        """Run without the launch cache."""
        hook = triton.knobs.runtime.launch_enter_hook
        hook.add(listener)
        before = COUNTS["replayed"]
        expected = self.run()
        assert COUNTS["replayed"] == before, "the launch cache was used despite a launch hook"
        hook.remove(listener)
        return expected


def drawn_call(rng: random.Random, name: str, case: OperatorCase) -> Call:
    others, shift, channels_last = case.others(), rng.choice((0, 0, 1, 8)), rng.random() < 0.3
    mixed = any(t.is_floating_point() for t in others)  # float32 statistics
    dtype = torch.float32 if mixed else rng.choice((torch.float16, torch.float32, torch.float64))
    order = torch.channels_last if channels_last else torch.preserve_format
    tensors = [t.contiguous(memory_format=order) if t.dim() == 4 else t for t in case.tensors(dtype)]
    return Call(f"{name} {dtype} {shift} {channels_last}", case, [shifted(t, shift) for t in tensors], others)


def compare(rng: random.Random, name: str, case: OperatorCase) -> None:
    """Make a call, through the launch cache if it has an entry, and again without the cache."""
    torch.backends.cudnn.conv.fp32_precision = rng.choice(("tf32", "ieee"))
    call = drawn_call(rng, name, case)
    got, expected = call.run(), call.run_uncached()
    assert got[0] == expected[0], call.words
    for ours, theirs in zip(got[1], expected[1], strict=True):
        assert ours == theirs, f"{call.words}\n{ours}\n{theirs}"
        COUNTS["compared"] += 1
        COUNTS["maps"] += sum(isinstance(one, Parameter) and one.kind == "CUtensorMap" for one in ours[-1])


def compare_threads(seed: int, calls: int, threads: int) -> None:
    """Make the calls of a list in threads, and compare each with the same call without the launch cache."""

    def listed() -> list[Call]:
        """Return the calls, with tensors and modules of this thread."""
        rng, of_this_thread = random.Random(seed), table("calls", Ours())
        return [drawn_call(rng, *drawn(rng, of_this_thread)) for _ in range(calls)]

    expected = [call.run_uncached() for call in listed()]

    def yielding(frame: Any, event: str, arg: Any) -> Any:
        """A trace function that yields to another thread at every line of the launch code."""
        if frame.f_code.co_filename not in (launch_cache.__file__, launch.__file__):
            return None
        time.sleep(0)
        return yielding

    def work(thread: int) -> None:
        numbered = list(enumerate(listed())) * 5
        random.Random(thread).shuffle(numbered)
        sys.settrace(yielding)
        for number, call in numbered:
            assert call.run() == expected[number], call.words

    launch_cache.MAX_ENTRIES = 10  # small, so that cached calls are evicted during the test
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def main() -> int:
    given = arguments()
    rng = random.Random(given.seed)
    stub_gpu.stand_in()
    if given.stub:
        stub_driver.install(LAUNCHES.add_kernel_launch)
        stub_driver.compile_nothing()
    else:
        stub_gpu.compile_nothing(LAUNCHES.add)
    compiled = torch.compile(lambda *t: tnn.relu(tnn.conv2d(*t)), fullgraph=True, backend="aot_eager")
    compiled(*(torch.ones(shape, requires_grad=True) for shape in ((1, 2, 3, 3), (4, 2, 3, 3), (4,)))).sum().backward()
    with torch.inference_mode():  # torch reports a copy as a view here
        for _ in range(4):
            strided = torch.randn(10)[::2]
            tnn.batch_norm(torch.randn(2, 5, 3, 3), strided, strided.square())
    count_replays()
    track_allocations()
    calls = given.calls
    if given.threads:
        compare_threads(given.seed, calls, given.threads)
        print(f"{COUNTS['replayed']} operators replayed in {given.threads} threads")
        return 0
    for _ in range(calls):
        compare(rng, *drawn(rng))
    if given.stub:
        launch_cache.clear()
        with tma_everywhere():
            for _ in range(given.calls // 4):
                compare(rng, *drawn_for_tma(rng))
        calls += given.calls // 4
    print(f"{COUNTS['replayed']} operators replayed in {calls} calls")
    if given.stub:
        print(f"{COUNTS['compared']} launches compared byte for byte, {COUNTS['launches replayed']} of them replayed")
        print(f"{COUNTS['maps']} tensor maps among their parameters")
        print(f"{len(stub_driver.SOURCES)} C launchers built or found in Triton's cache")
    return 0


if __name__ == "__main__":
    sys.exit(main())
