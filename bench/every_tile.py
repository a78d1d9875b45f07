"""Check every candidate tile of a convolution against float64 on small images, so that no wrong tile is ever timed.

Triton's code depends on the tile: on the number of pipeline stages, and on the warps that share an accumulator. So one right
tile proves little about the next. Each tile runs on all shapes below that its kernel supports: sizes that are no multiple of
the tile, several images, strides, dilation, groups, transposed. Every result and gradient must satisfy `Errors.right` of
bench/rows.py, and a second run must give the same bits. `python -m bench conv --tune` runs this module in worker processes,
which may crash.
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
from bench.time.case import Instance, check, cudnn_benchmark, exact_results, other_bits
from bench.time.protocol import Machine, using
from bench.tune import Item, calls_of, compiling, kind, recorded
from bench.workers import do_in_turn, do_side_by_side
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.tuning import Gemm, GemmTile

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
)
# Only these kernels have a separate code path for contiguous images; other cases copy them to channels_last first.
_CONTIGUOUS = ("1x1", "7x7 stride 2, 3 channels")
SMALL = {case.name: (case, "channels_last") for case in _TABLE}
SMALL |= {f"{case.name}, contiguous": (case, "contiguous") for case in _TABLE if case.name in _CONTIGUOUS}


class Config(NamedTuple):
    """A tile, and the kind of product (see tune.kind) that uses it."""

    arithmetic: str
    kind: str
    tile: GemmTile


@functools.cache
def _kinds_of(name: str, arithmetic: str, architecture: str) -> set[str]:
    case, layout = SMALL[name]
    return {kind(call.product) for call in calls_of(case, arithmetic, layout, "meta", architecture)}


def cases_of(config: Config, architecture: str) -> list[str]:
    """Return the names of the small cases with a product of this kind."""
    return [name for name in SMALL if config.kind in _kinds_of(name, config.arithmetic, architecture)]


def results_of(config: Config, cases: Sequence[str], device: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Run the cases with the tile on the kernel of `config`, and default tiles on other kernels. Yield name and results.

    Raises:
        LookupError: no case runs this kernel.
    """
    default_tile, ran = tuning.default_tile, False

    def rule(product: Gemm, architecture: str) -> GemmTile:
        return config.tile if kind(product) == config.kind else default_tile(product, architecture)

    for name in cases:
        case, layout = SMALL[name]
        with using(config.arithmetic) as dtype, recorded(rule) as calls:
            found = Instance(case, "ours", dtype, layout, device).results()
        if config.kind in {kind(call.product) for call in calls}:  # with this tile the launcher may choose another kernel
            ran = True
            yield name, found
    if not ran:
        raise LookupError("no small case runs this kernel")


def compiled(item: Item, architecture: str) -> str | None:
    """Compile the launches of a configuration. Return the first fault, or None."""
    config = _config(item)
    cases = cases_of(config, architecture)
    with compiling(architecture) as faults:
        for _ in results_of(config, cases, "meta"):
            pass
    return faults[0] if faults else None


class Judge:
    """Check configurations. Expected results are kept on the CPU, where a wrong kernel cannot overwrite them."""

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
        """Return torch's results, the exact results and, where TF32 is allowed, the results for inputs truncated to TF32."""
        if (name, arithmetic) not in self.known:
            case, layout = SMALL[name]
            with using(arithmetic) as dtype, cudnn_benchmark(False):
                torchs = Instance(case, "torch", dtype, layout, self.machine.device).results()
                exact = exact_results(case, dtype, self.machine.device)
            self.known[name, arithmetic] = [_on_cpu(results) for results in (torchs, *exact) if results is not None]
        return self.known[name, arithmetic]


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


def _on_cpu(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in results.items()}


def _config(item: Item) -> Config:
    arithmetic, kind, tile = item
    return Config(arithmetic, kind, GemmTile(*tile))


def work(args: argparse.Namespace, machine: Callable[[], Machine] = Machine.gpu) -> None:
    """Process the items of the input, in a worker process."""
    if args.compile_only:
        do_side_by_side(functools.partial(compiled, architecture=args.architecture))
    else:
        judge = Judge(machine(), args.architecture)
        do_in_turn(judge, judge.machine.wait)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", action="store_true", required=True, help="read items from stdin, as JSON")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--architecture", required=True)
    work(parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
