"""Check tiles against float64, so that no wrong tile is ever timed, and time them.

`python -m bench.tune.check ARCHITECTURE [--compile-only]` is the worker process of `python -m bench.tune`.

Triton's code depends on the tile: on the number of pipeline stages, and on the warps that share an accumulator. So one right
tile proves little about the next. Each tile runs on all cases below that its kernel supports: sizes that are no multiple of
the tile, several images, strides, dilation, groups, transposed. Every result and gradient must satisfy `Errors.right` of
bench/time/case.py, and a second run must give the same bits. At the real size, all candidates of a product must compute the
same result.
"""

import sys

if "--compile-only" in sys.argv:
    from bench.compile import without_gpu  # noqa: F401  # before triton

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.registry import conv, conv_transpose, linear
from bench.time.case import Instance, Results, check, cudnn_benchmark, exact_results, other_bits
from bench.time.protocol import Machine, interleaved, using
from bench.tune.tiles import Call, GemmTile, Item, Place, call_at, calls_of, compiling, kind, of_item, recorded, tiles_by
from bench.workers import do_in_turn, do_side_by_side
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.tuning import Gemm

ROUNDS = 9  # samples per candidate
# Tolerance of a result at the real size, relative to its norm. float32 may use TF32.
CLOSE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 2e-3}

# Channels, filters, pixels and taps exceed a tile; few of them are multiples of the tile.
_TABLE = (
    conv("3x3 dilation 2", (3, 72, 11, 33), 200, 3, padding=2, dilation=2, bias=True),
    conv("3x3, 2 groups, 33 images", (33, 128, 5, 7), 160, 3, padding=1, groups=2),
    conv("1x1", (3, 128, 8, 31), 264, 1),
    conv_transpose("transposed 4x4 stride 2", (18, 128, 5, 9), 72, 4, 2, 1),
    conv("5x5, 24 channels", (3, 24, 9, 33), 40, 5, padding=2),
    conv("7x7 stride 2, 3 channels", (2, 3, 35, 65), 72, 7, 2, 3),
    conv("11x11 stride 4, 3 channels", (8, 3, 123, 127), 72, 11, 4, 2, bias=True, first=True),
    conv("3x3, 32 groups", (2, 128, 9, 33), 128, 3, padding=1, groups=32),
    linear("linear", 300, 328, 264),
)
# Only these kernels have a separate code path for contiguous images; other cases copy them to channels_last first.
_CONTIGUOUS = ("1x1", "7x7 stride 2, 3 channels")
SMALL = {case.name: (case, "channels_last") for case in _TABLE}
SMALL |= {f"{case.name}, contiguous": (case, "contiguous") for case in _TABLE if case.name in _CONTIGUOUS}


@functools.cache
def kinds_of(name: str, arithmetic: str, architecture: str) -> set[str]:
    """Return the kinds of products (see tiles.kind) of a small case."""
    case, layout = SMALL[name]
    return {kind(call.product) for call in calls_of(case, arithmetic, layout, "meta", architecture)}


def results_of(arithmetic: str, wanted: str, tile: GemmTile, device: str, architecture: str) -> dict[str, Results]:
    """Run the small cases with the tile for products of the kind `wanted`, and default tiles for others. Return their results.

    Raises:
        LookupError: no case runs this kernel.
    """
    default_tile, results = tuning.default_tile, {}

    def rule(product: Gemm, architecture: str) -> GemmTile:
        return tile if kind(product) == wanted else default_tile(product, architecture)

    for name, (case, layout) in SMALL.items():
        if wanted in kinds_of(name, arithmetic, architecture):
            with using(arithmetic) as dtype, recorded(rule) as calls:
                found = Instance(case, "ours", dtype, layout, device).results()
            if wanted in {kind(call.product) for call in calls}:  # with this tile the launcher may choose another kernel
                results[name] = {result: tensor.cpu() if device != "meta" else tensor for result, tensor in found.items()}
    if not results:
        raise LookupError("no small case runs this kernel")
    return results


@functools.cache
def expected(name: str, arithmetic: str, device: str) -> list[Results]:
    """Return torch's results, the exact results and, where TF32 is allowed, the results for inputs truncated to TF32.

    They are on the CPU, where a wrong kernel cannot overwrite them.
    """
    case, layout = SMALL[name]
    with using(arithmetic) as dtype, cudnn_benchmark(False):
        torchs = Instance(case, "torch", dtype, layout, device).results()
        exact = exact_results(case, dtype, device)
    return [{result: t.cpu() for result, t in results.items()} for results in (torchs, *exact) if results is not None]


@functools.cache
def fault_of(arithmetic: str, wanted: str, tile: GemmTile, device: str, architecture: str) -> str | None:
    """Return the fault of a tile for a kind of product, or None."""
    with _poisoned():
        got, again = (results_of(arithmetic, wanted, tile, device, architecture) for _ in range(2))
    for name, results in got.items():
        wrong = check(results, *expected(name, arithmetic, device))["wrong"] or other_bits(again[name], results)
        if wrong:
            return f"WRONG, {name}: {wrong}"
    return None


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Fill new tensors with NaN within the context, so that an unwritten output is wrong, not another tile's result.

    torch fills new tensors in its deterministic mode (torch.utils.deterministic.fill_uninitialized_memory).
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def compiled(item: Item, architecture: str) -> str | None:
    """Compile a candidate, for its product and for the small cases. Return its faults, or None."""
    place, tile = of_item(item)
    call = call_at(place, "meta", architecture)
    with using(place.arithmetic), compiling(architecture) as faults:
        with tiles_by(lambda *_: tile) as requested:
            call.run()
        if requested[-1].key != call.product.key:
            return "the launcher selects another kernel for this tile"
        results_of(place.arithmetic, kind(call.product), tile, "meta", architecture)
    return "; ".join(faults) or None


class Timer:
    """Check and time candidates, in microseconds. Calls and expected result are kept between candidates of one product."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.machine, self.architecture = machine, architecture
        self.place: Place | None = None
        self.calls: list[Call] = []  # with several sets of tensors, to rotate
        self.expected: list[Tensor] | None = None  # the first candidate's: the default tile's, unless it was rejected

    def __call__(self, item: Item) -> float | str:
        place, tile = of_item(item)
        if place != self.place:
            self.place, self.calls, self.expected = None, [], None
            self.calls = self._calls(place)
            self.place = place
        product = self.calls[0].product
        if fault := fault_of(place.arithmetic, kind(product), tile, self.machine.device, self.architecture):
            return fault
        with using(place.arithmetic), tiles_by(lambda *_: tile):
            got = _outputs(self.calls[0])
            self.expected = self.expected or got
            if any(not (g - e).norm() <= CLOSE[product.dtype] * e.norm() for g, e in zip(got, self.expected, strict=True)):
                return "result differs from the first candidate's"
            timed = interleaved({tile: [call.run for call in self.calls]}, self.machine.clock, rounds=ROUNDS)
        return 1e6 * timed[tile].median

    def _calls(self, place: Place) -> list[Call]:
        first = call_at(place, self.machine.device, self.architecture)
        sets = self.machine.sets(sum(arg.nbytes for arg in first.run.args if isinstance(arg, Tensor)))
        return [first, *(call_at(place, self.machine.device, self.architecture, seed) for seed in range(1, sets))]


def _outputs(call: Call) -> list[Tensor]:
    result = call.run()
    return [t.float() for t in (result if isinstance(result, tuple) else (result,)) if t.is_floating_point()]


def main(architecture: str, machine: Machine | None = None) -> None:
    """Process the items of the input, in a worker process."""
    if "--compile-only" in sys.argv:
        do_side_by_side(functools.partial(compiled, architecture=architecture))
    else:
        timer = Timer(machine or Machine.gpu(), architecture)
        do_in_turn(timer, timer.machine.wait)


if __name__ == "__main__":
    main(sys.argv[1])
