"""Check a tile against float64 on small cases, so that no wrong tile is ever timed.

Triton's code depends on the tile: on the number of pipeline stages, and on the warps that share an accumulator. So one right
tile proves little about the next. Each tile runs on all cases below that its kernel supports: sizes that are no multiple of
the tile, several images, strides, dilation, groups, transposed. Every result and gradient must satisfy `Errors.right` of
bench/time/case.py, and a second run must give the same bits.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch

from bench.registry import conv, conv_transpose, linear
from bench.time.case import Instance, Results, check, cudnn_benchmark, exact_results, other_bits
from bench.time.protocol import Machine, using
from bench.tune.tiles import calls_of, kind, recorded
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


def results_of(
    arithmetic: str, wanted: str, tile: GemmTile, device: str, architecture: str
) -> Iterator[tuple[str, Results]]:  # fmt: skip
    """Run the small cases with the tile for products of the kind `wanted`, and default tiles for others. Yield their results.

    Raises:
        LookupError: no case runs this kernel.
    """
    default_tile, ran = tuning.default_tile, False

    def rule(product: Gemm, architecture: str) -> GemmTile:
        return tile if kind(product) == wanted else default_tile(product, architecture)

    for name, (case, layout) in SMALL.items():
        if wanted in kinds_of(name, arithmetic, architecture):
            with using(arithmetic) as dtype, recorded(rule) as calls:
                found = Instance(case, "ours", dtype, layout, device).results()
            if wanted in {kind(call.product) for call in calls}:  # with this tile the launcher may choose another kernel
                ran = True
                yield name, found
    if not ran:
        raise LookupError("no small case runs this kernel")


class Judge:
    """Check tiles. Keep the verdicts, and the expected results on the CPU, where a wrong kernel cannot overwrite them."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.machine, self.architecture = machine, architecture
        self.verdicts: dict[tuple[str, str, GemmTile], str | None] = {}
        self.expected: dict[tuple[str, str], list[Results]] = {}

    def __call__(self, arithmetic: str, wanted: str, tile: GemmTile) -> str | None:
        """Return the fault of a tile for a kind of product, or None."""
        if (arithmetic, wanted, tile) not in self.verdicts:
            self.verdicts[arithmetic, wanted, tile] = self._fault(arithmetic, wanted, tile)
        return self.verdicts[arithmetic, wanted, tile]

    def _fault(self, arithmetic: str, wanted: str, tile: GemmTile) -> str | None:
        with _poisoned():
            got, again = (
                {name: _on_cpu(results)
                 for name, results in results_of(arithmetic, wanted, tile, self.machine.device, self.architecture)}
                for _ in range(2)
            )  # fmt: skip
        for name, results in got.items():
            if wrong := check(results, *self._right(name, arithmetic))["wrong"] or other_bits(again[name], results):
                return f"WRONG, {name}: {wrong}"
        return None

    def _right(self, name: str, arithmetic: str) -> list[Results]:
        """Return torch's results, the exact results and, where TF32 is allowed, the results for inputs truncated to TF32."""
        if (name, arithmetic) not in self.expected:
            case, layout = SMALL[name]
            with using(arithmetic) as dtype, cudnn_benchmark(False):
                torchs = Instance(case, "torch", dtype, layout, self.machine.device).results()
                exact = exact_results(case, dtype, self.machine.device)
            self.expected[name, arithmetic] = [_on_cpu(results) for results in (torchs, *exact) if results is not None]
        return self.expected[name, arithmetic]


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


def _on_cpu(results: Results) -> Results:
    return {name: tensor.cpu() for name, tensor in results.items()}
