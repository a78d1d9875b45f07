"""Every tile that tuning may hand out to a convolution, compared with float64 on small images: what is wrong is never timed.

What Triton makes of a kernel depends on the tile: a pipeline of so many stages, an accumulator shared by so many warps. So
that one tile computes the right numbers says little of the next. Each runs on all shapes below that its kernel takes: with
edges inside tiles, several images, strides, dilation, groups, transposed; every result and gradient by the rule of
bench/rows.py, and twice, with the same bits. `python -m bench conv --tune` starts this, in processes that may crash.
"""

import sys

if "--compile-only" in sys.argv:
    from bench import compiled_only  # noqa: F401  # before triton

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.registry import conv, conv_transpose
from bench.rows import Instance, check, cudnn_benchmark, exact_results, other_bits
from bench.timing import Machine, using
from bench.tune import Item, calls_of, compiling, kind, recorded
from bench.workers import do_in_turn, do_side_by_side
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.tuning import Gemm, GemmTile

# More channels, filters, pixels and taps than a tile has; few of them multiples of it.
_TABLE = (
    conv("3x3 dilation 2", (3, 72, 11, 33), 200, 3, padding=2, dilation=2, bias=True),
    conv("3x3, 2 groups, 33 images", (33, 128, 5, 7), 160, 3, padding=1, groups=2),
    conv("1x1", (3, 128, 8, 31), 264, 1),
    conv_transpose("transposed 4x4 stride 2", (18, 128, 5, 9), 72, 4, 2, 1),
    conv("5x5, 24 channels", (3, 24, 9, 33), 40, 5, padding=2),
    conv("7x7 stride 2, 3 channels", (2, 3, 35, 65), 72, 7, 2, 3),
    conv("11x11 stride 4, 3 channels", (8, 3, 123, 127), 72, 11, 4, 2, bias=True, first=True),
    conv("3x3, 32 groups", (2, 128, 9, 33), 128, 3, padding=1, groups=32),
)
# What contiguous images are read by is another way through a kernel here alone; elsewhere they are copied first.
_CONTIGUOUS = ("1x1", "7x7 stride 2, 3 channels")
SMALL = {case.name: (case, "channels_last") for case in _TABLE}
SMALL |= {f"{case.name}, contiguous": (case, "contiguous") for case in _TABLE if case.name in _CONTIGUOUS}


class Config(NamedTuple):
    """A kernel with an arithmetic, as `kind` names them, and a tile."""

    arithmetic: str
    kind: str
    tile: GemmTile


@functools.cache
def _kinds_of(name: str, arithmetic: str, architecture: str) -> set[str]:
    case, layout = SMALL[name]
    return {kind(call.product) for call in calls_of(case, arithmetic, layout, "meta", architecture)}


def cases_of(config: Config, architecture: str) -> list[str]:
    """The names of those with a product of that kind."""
    return [name for name in SMALL if config.kind in _kinds_of(name, config.arithmetic, architecture)]


def results_of(config: Config, cases: Sequence[str], device: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Those of the cases, with the tile wherever that kernel runs.

    Raises:
        LookupError: it runs in none.
    """
    guess, ran = tuning.guessed_tile, False

    def rule(product: Gemm, architecture: str) -> GemmTile:
        return config.tile if kind(product) == config.kind else guess(product, architecture)

    for name in cases:
        case, layout = SMALL[name]
        with using(config.arithmetic) as dtype, recorded(rule) as calls:
            found = Instance(case, "ours", dtype, layout, device).results()
        if config.kind in {kind(call.product) for call in calls}:  # with another tile it may be left to another kernel
            ran = True
            yield name, found
    if not ran:
        raise LookupError("runs in no small case")


def compiled(item: Item, architecture: str) -> str | None:
    """Compile what a configuration launches; what is wrong with it, if something is."""
    config = _config(item)
    cases = cases_of(config, architecture)
    with compiling(architecture) as faults:
        for _ in results_of(config, cases, "meta"):
            pass
    return faults[0] if faults else None


class Judge:
    """Says what is wrong with a configuration, if something is. What it judges by is not on the GPU, where it could be hit."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.machine, self.architecture = machine, architecture
        self.known: dict[tuple[str, str], list[dict[str, Tensor]]] = {}

    def __call__(self, item: Item) -> str | None:
        config = _config(item)
        with _poisoned():
            got, again = (self._results(config) for _ in range(2))
        for name, results in got.items():
            if wrong := check(results, *self._right(name, config.arithmetic))["wrong"] or other_bits(again[name], results):
                return f"WRONG, {name}: {wrong}"
        return None

    def _results(self, config: Config) -> dict[str, dict[str, Tensor]]:
        found = results_of(config, cases_of(config, self.architecture), self.machine.device)
        return {name: _on_cpu(results) for name, results in found}

    def _right(self, name: str, arithmetic: str) -> list[dict[str, Tensor]]:
        """The results of torch, the exact ones and, where TF32 is allowed, those of numbers cut to it."""
        if (name, arithmetic) not in self.known:
            case, layout = SMALL[name]
            with using(arithmetic) as dtype, cudnn_benchmark(False):
                torchs = Instance(case, "torch", dtype, layout, self.machine.device).results()
                exact = exact_results(case, dtype, self.machine.device)
            self.known[name, arithmetic] = [_on_cpu(results) for results in (torchs, *exact) if results is not None]
        return self.known[name, arithmetic]


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Within, fresh memory is NaN: what is not written must not be what another tile left there."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _on_cpu(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in results.items()}


def _config(item: Item) -> Config:
    arithmetic, kind, tile = item
    return Config(arithmetic, kind, GemmTile(*tile))


def work(args: argparse.Namespace, machine: Callable[[], Machine] = Machine.gpu) -> None:
    """What a process does that gets items."""
    if args.compile_only:
        do_side_by_side(functools.partial(compiled, architecture=args.architecture))
    else:
        judge = Judge(machine(), args.architecture)
        do_in_turn(judge, judge.machine.wait)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", action="store_true", required=True, help="which are read from the input, as JSON")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--architecture", required=True)
    work(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
