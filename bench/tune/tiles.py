"""The matrix products of the benchmark's cases, the candidate tiles of a product, and the file of the fastest tiles."""

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from torch import Tensor

from bench import registry
from bench.compile.code import SHARED_MEMORY, Driver
from bench.time.case import Instance
from bench.time.protocol import using
from bench.workers import words
from trinn.kernels import launchers, ops
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.launch import intercepted
from trinn.kernels.runtime.settings import settings
from trinn.kernels.runtime.tuning import Gemm, GemmTile

CLEARLY = 0.97  # a faster tile must take less than this share of the default tile's time
LEAST_SHARED_MEMORY = 99 << 10  # bytes per program, of all supported GPUs

Rule = Callable[[Gemm, str], GemmTile]
Item = list[Any]  # a Place and a tile, as JSON: the input of a worker process
Found = dict[GemmTile, float | str]  # microseconds, or a fault


class Place(NamedTuple):
    """The origin of a product: a case of the registry, and the number of the call in its passes."""

    arithmetic: str
    name: str
    layout: str
    number: int = 0


def of_item(item: Item) -> tuple[Place, GemmTile]:
    *place, tile = item
    return Place(*place), GemmTile(*tile)


class Call(NamedTuple):
    """A launcher with its arguments, and the product it computes."""

    product: Gemm
    run: functools.partial[Any]


def kind(product: Gemm) -> str:
    """Return the product's key without its sizes. Products of a kind have the same code for the same tile and geometry."""
    return product.key.rsplit(" ", 3)[0]


@contextlib.contextmanager
def tiles_by(rule: Rule) -> Iterator[list[Gemm]]:
    """Choose tiles by `rule` within the context, not by measured tiles. Yield the list of products that requested one."""
    requested: list[Gemm] = []

    def tile_of(product: Gemm, architecture: str) -> GemmTile:
        requested.append(product)
        return rule(product, architecture)

    with settings.changed(tile_of=tile_of):
        yield requested


@contextlib.contextmanager
def recorded(rule: Rule) -> Iterator[list[Call]]:
    """Call launchers in place of operators within the context, on any device. Yield the list of calls with a product."""
    calls: list[Call] = []
    with tiles_by(rule) as requested:

        def recording(launcher: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                requested.clear()
                result = launcher(*args)
                if requested:  # a launcher may try several kernels; the last requested tile belongs to the launched kernel
                    detached = (arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
                    calls.append(Call(requested[-1], functools.partial(launcher, *detached)))
                return result

            return call

        with mock.patch.dict(vars(ops), {name: recording(launcher) for name, launcher in vars(launchers).items()}):
            yield calls


def calls_of(case: registry.Case, arithmetic: str, layout: str, device: str, architecture: str, seed: int = 0) -> list[Call]:
    """Return the calls of a forward and backward pass that compute products, with random tensors. No kernel runs."""
    with using(arithmetic) as dtype, intercepted(lambda *_: None, architecture):
        with recorded(tuning.default_tile) as calls:
            Instance(case, "ours", dtype, layout, device, seed).call("backward")()
    return calls


def call_at(place: Place, device: str, architecture: str, seed: int = 0) -> Call:
    """Return the call of a place, with random tensors."""
    case = registry.CASES[place.name]
    return calls_of(case, place.arithmetic, place.layout, device, architecture, seed)[place.number]


def products(names: Sequence[str], arithmetics: Sequence[str], architecture: str) -> dict[Place, Gemm]:
    """Return the products of cases with a matching name or operator, one per key, with the place of its first call."""
    found: dict[str, tuple[Place, Gemm]] = {}
    cases = [case for case in registry.CASES.values() if registry.fits(case.name, names) or registry.fits(case.op, names)]
    for arithmetic, layout, case in itertools.product(arithmetics, ("channels_last", "contiguous"), cases):
        if arithmetic in case.arithmetics:
            for number, call in enumerate(calls_of(case, arithmetic, layout, "meta", architecture)):
                found.setdefault(call.product.key, (Place(arithmetic, case.name, layout, number), call.product))
    return dict(found.values())


def candidates(product: Gemm, architecture: str) -> list[GemmTile]:
    """Return the default tile, then all tiles that fit into registers and shared memory, the most similar ones first."""
    default = tuning.default_tile(product, architecture)
    sizes = (64, 128, 256) if product.kernel.startswith("tma ") else (16, 32, 64, 128, 256)
    columns = (*sizes, 192, 320) if product.kernel == "tma wgrad" else sizes  # n is channels times taps: here 64 times 3 or 5
    tiles = (GemmTile(*t) for t in itertools.product(sizes, columns, (16, 32, 64, 128), (4, 8), (2, 3, 4, 5)))
    fitting = [tile for tile in tiles if tile != default and _fits(tile, product, architecture)]

    def distance(tile: GemmTile) -> float:
        """The distance from the default tile, in doublings of a size; one stage counts as half a doubling."""
        blocks = sum(abs(math.log2(a / b)) for a, b in zip(tile[:4], default[:4], strict=True))
        return blocks + abs(tile.stages - default.stages) / 2

    return [default, *sorted(fitting, key=distance)]


def _fits(tile: GemmTile, product: Gemm, architecture: str) -> bool:
    bf16_terms = product.precision == "bf16x6"  # bfloat16 operands, two accumulators
    itemsize = 2 if bf16_terms else product.dtype.itemsize
    shared = tile.stages * tile.k * (tile.m + tile.n) * itemsize
    accumulators = tile.m * tile.n // (32 * tile.warps)
    least = 64 if product.kernel.startswith("tma ") else 16  # TMA kernels use wgmma: 64 rows per warpgroup (4 warps)
    sizes = zip((tile.m, tile.n, tile.k), (product.m, product.n, product.k), strict=True)
    return (
        shared <= SHARED_MEMORY.get(architecture, LEAST_SHARED_MEMORY)
        and 2 <= accumulators <= (64 if bf16_terms else 128)
        and all(block <= max(least, triton.next_power_of_2(size)) for block, size in sizes)
    )


@contextlib.contextmanager
def compiling(architecture: str) -> Iterator[list[str]]:
    """Compile launched kernels into Triton's cache within the context, without running them. Yield the list of faults."""
    faults: list[str] = []

    def compile_it(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        try:
            binary = kernel.warmup(*args, grid=(1,), **constants)
        except Exception as error:  # a compiler may raise anything
            faults.append(words(error))
            return
        if binary.metadata.shared > SHARED_MEMORY.get(architecture, LEAST_SHARED_MEMORY):
            faults.append(f"needs {binary.metadata.shared} bytes of shared memory")
        compile_launcher(binary)

    triton.runtime.driver.set_active(Driver(architecture))
    with intercepted(compile_it, architecture):
        yield faults


def compile_launcher(binary: Any) -> None:
    """Compile Triton 3.6's C launcher for the signature of a kernel. Newer versions have one launcher for all signatures."""
    with contextlib.suppress(Exception):  # no libcuda to link with, or a Triton version without CudaLauncher
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(binary.src, binary.metadata)


def right(found: Found) -> dict[GemmTile, float]:
    """Return the microseconds of the right tiles, the fastest first."""
    return dict(sorted(((tile, us) for tile, us in found.items() if not isinstance(us, str)), key=lambda item: item[1]))


def winner(found: Found, default: GemmTile) -> GemmTile | None:
    """Return the fastest tile of a product, or None if the default tile is about as fast. At least one tile must be right."""
    times = right(found)
    best = next(iter(times))
    return best if times[best] < CLEARLY * times.get(default, math.inf) else None


def path_of(gpu: str) -> Path:
    """Return the path of the tile file of a GPU, from which tuning.py reads."""
    return tuning.TILES / f"{gpu.lower().replace(' ', '_')}.json"


def record(gpu: str, found: Mapping[str, GemmTile | None]) -> None:
    """Write the fastest tiles of a GPU. Keep stored tiles of other products, unless another version of Triton measured them."""
    path = path_of(gpu)
    known = json.loads(path.read_text()) if path.exists() else {}
    tiles: dict[str, GemmTile | None] = {**(known["tiles"] if known.get("triton") == triton.__version__ else {}), **found}
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(like)}: {json.dumps(tile)}" for like, tile in sorted(tiles.items()) if tile is not None)
    path.write_text(f'{{\n "gpu": "{gpu}",\n "triton": "{triton.__version__}",\n "tiles": {{\n{lines}\n }}\n}}\n')
