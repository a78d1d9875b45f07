"""Draws calls of every operator, over and over, and compares what is launched from notes with what launchers launch.

On a GPU that stands still, in a process of its own: `python -m tests.replays SEED CALLS`. No kernel is compiled; what Triton
would have compiled each by, alignment and all, is part of what is compared.
"""

import bisect
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from bench import still_gpu  # before trinn

import trinn.layers as tnn  # isort: skip
from tests.every import EVERY, Every, results
from trinn.kernels import replay


class Launches:
    """What is launched, with each tensor by the order in which it comes up; nothing is said of those that autograd made."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.kept: list[torch.UntypedStorage] = []  # so that no address is used twice
        self.ends: list[tuple[int, int]] = []  # (end, start) of each, sorted
        self.order: dict[int, int] = {}
        self.seen: list[tuple[Any, ...]] = []

    def know(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        bisect.insort(self.ends, (storage.data_ptr() + storage.nbytes(), storage.data_ptr()))
        return tensor

    def add(self, programs: int, function: Any, args: tuple[Any, ...]) -> None:
        self.seen.append((programs, function, tuple(map(self._plain, args))))

    def _plain(self, arg: Any) -> Any:
        if isinstance(arg, still_gpu.TensorMap):
            return self._plain(arg.address), *arg[1:]
        if not isinstance(arg, Tensor) and not (isinstance(arg, int) and arg > 2**32):
            return arg
        address = arg.data_ptr() if isinstance(arg, Tensor) else arg
        _, start = next(iter(self.ends[bisect.bisect(self.ends, (address + 1,)) :]), (0, address + 1))
        place = (self.order.setdefault(start, len(self.order)), address - start) if start <= address else None
        return place, address % 16


LAUNCHES = Launches()


def shifted(tensor: Tensor, by: int) -> Tensor:
    """The same tensor that many elements into an allocation."""
    room = torch.empty(tensor.numel() + by, dtype=tensor.dtype, device=tensor.device)
    return room[by:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def drawn(rng: random.Random) -> tuple[str, Every]:
    """An operator at a size, of which some repeat."""
    n, c, k = rng.choice((1, 2, 32)), *rng.choices((1, 3, 8, 16, 17, 32, 64), k=2)
    size, taps = rng.choice((5, 8) if n > 2 else (5, 8, 64)), rng.choice((1, 3))
    stride, bias = rng.choice((1, 2)), rng.random() < 0.7
    x, w = (n, c, size, size), (k, c, taps, taps)
    free = {
        f"conv2d {x} {w} {stride} {bias}": Every(
            (lambda x, w, b: tnn.conv2d(x, w, b, stride, 1)) if bias else (lambda x, w: tnn.conv2d(x, w, None, stride, 1)),
            (x, w, (k,)) if bias else (x, w),
        ),
        f"linear {x[:2]} {k}": Every(tnn.linear, ((n, c), (k, c), (k,))),
        f"relu {x}": Every(tnn.relu, (x,)),
    }
    name = rng.choice((*EVERY, *3 * list(free)))
    return name, EVERY.get(name) or free[name]


def know_what_is_made() -> None:
    def known(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: LAUNCHES.know(make(*args, **options))

    for name in ("empty", "empty_like", "empty_strided"):
        setattr(torch, name, known(getattr(torch, name)))


def called(case: Every, tensors: list[Tensor], others: tuple[Tensor, ...]) -> tuple[Any, list[Any]]:
    """The form of all outputs and gradients, and the launches."""
    LAUNCHES.clear()
    for tensor in tensors:
        LAUNCHES.know(tensor)
    outputs = results(case, tensors, others)
    return {name: (t.shape, t.stride(), t.dtype) for name, t in outputs.items()}, LAUNCHES.seen


def main() -> int:
    seed, calls = map(int, sys.argv[1:])
    rng = random.Random(seed)
    still_gpu.stand_in()
    still_gpu.compile_nothing(LAUNCHES.add)
    compiled = torch.compile(lambda *t: tnn.relu(tnn.conv2d(*t)), fullgraph=True, backend="aot_eager")
    compiled(*(torch.ones(shape, requires_grad=True) for shape in ((1, 2, 3, 3), (4, 2, 3, 3), (4,)))).sum().backward()
    with torch.inference_mode():  # where torch calls a copy a view
        for _ in range(4):
            strided = torch.randn(10)[::2]
            tnn.batch_norm(torch.randn(2, 5, 3, 3), strided, strided.square())
    replayed = 0
    replay_one = replay._replay

    def counted(*args: Any) -> Any:
        nonlocal replayed
        replayed += 1
        return replay_one(*args)

    replay._replay = counted  # type: ignore[assignment]
    know_what_is_made()
    hook = triton.knobs.runtime.launch_enter_hook
    for _ in range(calls):
        name, case = drawn(rng)
        others, shift, channels_last = case.others(), rng.choice((0, 0, 1, 8)), rng.random() < 0.3
        mixed = any(t.is_floating_point() for t in others)  # float32 statistics
        dtype = torch.float32 if mixed else rng.choice((torch.float16, torch.float32, torch.float64))
        torch.backends.cudnn.conv.fp32_precision = rng.choice(("tf32", "ieee"))
        order = torch.channels_last if channels_last else torch.preserve_format
        tensors = [t.contiguous(memory_format=order) if t.dim() == 4 else t for t in case.tensors(dtype)]
        tensors = [shifted(t, shift) for t in tensors]
        got = called(case, tensors, others)
        hook.add(print)
        before = replayed
        expected = called(case, tensors, others)
        assert replayed == before, "someone listens"
        hook.remove(print)
        assert got[0] == expected[0], f"{name} {dtype} {shift} {channels_last}"
        for ours, theirs in zip(got[1], expected[1], strict=True):
            assert ours == theirs, f"{name} {dtype} {shift} {channels_last}\n{ours}\n{theirs}"
    print(f"{replayed} of {calls} calls' operators replayed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
