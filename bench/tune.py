"""Find the fastest tile of each kind of matrix product on this GPU: `python -m bench.tune`.

The products come from the cases of bench/registry.py. The candidates of a product are its default tile, chosen by the rules of
kernels/runtime/tuning.py, and the tiles most similar to it. All cores compile candidates ahead of time; one process runs them
one after another. If the process crashes, its current candidate is rejected and a new process continues with the next. All
candidates of a product must compute the same result. The fastest tiles are written to kernels/runtime/tiles/, where tuning.py
reads them. A product keeps its default tile unless a candidate is clearly faster.

`--compile-only` needs no GPU: it compiles the candidates for an H100 or H200 and prints the ones that fail to compile.
`python -m bench conv --tune` also compares the tiles of convolutions with float64 before timing them.
"""

import sys

if "--compile-only" in sys.argv:
    from bench import compiled_only  # noqa: F401  # before triton

import argparse
import contextlib
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from bench import registry
from bench.machine_code import SHARED_MEMORY, Driver
from bench.time.case import Instance
from bench.time.protocol import Machine, interleaved, using
from bench.workers import MANY, do_in_turn, do_side_by_side, words, worked_off
from trinn.kernels import launchers, ops
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.hardware import architecture_of
from trinn.kernels.runtime.observe import intercepted
from trinn.kernels.runtime.settings import settings
from trinn.kernels.runtime.tuning import Gemm, GemmTile

CLEARLY = 0.97  # a faster tile must take less than this share of the default tile's time
ROUNDS = 9  # samples per candidate
CANDIDATES = 24  # per product
PATIENCE = 60.0  # seconds per candidate, including the start of its process
# Tolerance of a result, relative to its norm. float32 may use TF32.
CLOSE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 2e-3}
ARITHMETICS = ("bf16", "tf32", "fp32", "fp16")  # most important first

Rule = Callable[[Gemm, str], GemmTile]
Item = list[Any]  # input of a worker process, as JSON


class Place(NamedTuple):
    """The origin of a product: a case of the registry, and the number of the call in its passes."""

    arithmetic: str
    name: str
    layout: str
    number: int = 0


class Call(NamedTuple):
    """A launcher with its arguments, and the product it computes."""

    product: Gemm
    run: functools.partial[Any]


def kind(product: Gemm) -> str:
    """Return the product's key without its sizes. Products of a kind have the same code for the same tile and geometry."""
    return product.key.rsplit(" ", 3)[0]


def named(tile: GemmTile) -> str:
    return f"{tile.m}x{tile.n}x{tile.k} w{tile.warps} s{tile.stages}"


@contextlib.contextmanager
def patched(module: Any, **names: Any) -> Iterator[None]:
    """Replace these names of a module within the context."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


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

        with patched(ops, **{name: recording(launcher) for name, launcher in vars(launchers).items()}):
            yield calls


def calls_of(case: registry.Case, arithmetic: str, layout: str, device: str, architecture: str, seed: int = 0) -> list[Call]:
    """Return the calls of a forward and backward pass that compute products, with random tensors. No kernel runs."""
    with using(arithmetic) as dtype, intercepted(lambda *_: None, architecture):
        with recorded(tuning.default_tile) as calls:
            Instance(case, "ours", dtype, layout, device, seed).call("backward")()
    return calls


def places(ops: Sequence[str], names: Sequence[str], arithmetics: Sequence[str]) -> Iterator[Place]:
    """Yield the cases of these operators (default: all) with matching names, the most important first."""
    for arithmetic, layout in itertools.product(arithmetics, ("channels_last", "contiguous")):
        for name, case in registry.CASES.items():
            if registry.fits(name, names) and (not ops or case.op in ops) and arithmetic in case.arithmetics:
                yield Place(arithmetic, name, layout)


def products(at: Iterable[Place], architecture: str) -> dict[Place, Gemm]:
    """Return one product per key, with the place of its first call."""
    found: dict[str, tuple[Place, Gemm]] = {}
    for place in at:
        calls = calls_of(registry.CASES[place.name], place.arithmetic, place.layout, "meta", architecture)
        for number, call in enumerate(calls):
            found.setdefault(call.product.key, (place._replace(number=number), call.product))
    return dict(found.values())


@functools.cache
def candidates(product: Gemm, most: int, architecture: str) -> list[GemmTile]:
    """Return the default tile, then the most similar tiles that fit into registers and shared memory."""
    default = tuning.default_tile(product, architecture)
    sizes = (64, 128, 256) if _by_tma(product) else (16, 32, 64, 128, 256)
    columns = (*sizes, 192, 320) if product.kernel == "tma wgrad" else sizes  # n is channels times taps: here 64 times 3 or 5
    tiles = (GemmTile(*t) for t in itertools.product(sizes, columns, (16, 32, 64, 128), (4, 8), (2, 3, 4, 5)))
    fitting = [tile for tile in tiles if tile != default and _fits(tile, product, architecture)]
    return [default, *sorted(fitting, key=lambda tile: _distance(tile, default))[: most - 1]]


def _by_tma(product: Gemm) -> bool:
    """Whether a TMA kernel computes the product. Its wgmma multiplies 64 rows per warpgroup (4 warps)."""
    return product.kernel.startswith("tma ")


def _fits(tile: GemmTile, product: Gemm, architecture: str) -> bool:
    bf16_terms = product.precision == "bf16x6"  # bfloat16 operands, two accumulators
    itemsize = 2 if bf16_terms else product.dtype.itemsize
    shared = tile.stages * tile.k * (tile.m + tile.n) * itemsize
    accumulators = tile.m * tile.n // (32 * tile.warps)
    sizes = zip((tile.m, tile.n, tile.k), (product.m, product.n, product.k), strict=True)
    least = 64 if _by_tma(product) else 16
    return (
        shared <= _room(architecture) and 2 <= accumulators <= (64 if bf16_terms else 128)
        and all(block <= max(least, triton.next_power_of_2(size)) for block, size in sizes)
    )  # fmt: skip


def _room(architecture: str) -> int:
    """Return the bytes of shared memory per program; for an unknown GPU the minimum of all supported ones."""
    return SHARED_MEMORY.get(architecture, 99 << 10)


def _distance(tile: GemmTile, default: GemmTile) -> float:
    """Return the distance between two tiles, in doublings of a size; one stage counts as half a doubling."""
    blocks = sum(abs(math.log2(a / b)) for a, b in zip(tile[:4], default[:4], strict=True))
    return blocks + abs(tile.stages - default.stages) / 2


@contextlib.contextmanager
def compiling(architecture: str) -> Iterator[list[str]]:
    """Compile launched kernels into Triton's cache within the context, without running them. Yield the list of faults."""
    faults: list[str] = []

    def compile_it(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        try:
            binary = kernel.warmup(*args, grid=(1,), **constants)
        except Exception as error:  # a compiler may raise anything
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            faults.append(words(cause))
            return
        if binary.metadata.shared > _room(architecture):
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


def compiled(item: Item, architecture: str) -> str | None:
    """Compile a candidate. Return its faults, or None."""
    *place, tile = item
    call = _call(*place, architecture)
    with using(Place(*place).arithmetic), compiling(architecture) as faults, tiles_by(lambda *_: GemmTile(*tile)) as requested:
        call.run()
    if requested[-1].key != call.product.key:
        return "the launcher selects another kernel for this tile"
    return "; ".join(faults) or None


@functools.lru_cache(maxsize=8)
def _call(arithmetic: str, name: str, layout: str, number: int, architecture: str) -> Call:
    return calls_of(registry.CASES[name], arithmetic, layout, "meta", architecture)[number]


class Timer:
    """Time candidates, in microseconds. The calls and the expected result are kept between candidates of one product."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.machine, self.architecture = machine, architecture
        self.place: Place | None = None

    def __call__(self, item: Item) -> float | str:
        place, tile = Place(*item[:-1]), GemmTile(*item[-1])
        if place != self.place:
            self.place, self.calls = None, self._calls(place)
        with using(place.arithmetic), tiles_by(lambda *_: tile):
            got = _outputs(self.calls[0])
            if self.place is None:  # the first candidate: the default tile, unless it was rejected
                self.place, self.expected = place, got
            close = CLOSE[self.calls[0].product.dtype]
            if any(not (g - e).norm() <= close * e.norm() for g, e in zip(got, self.expected, strict=True)):
                return "result differs from the first candidate's"
            timed = interleaved({tile: [call.run for call in self.calls]}, self.machine.clock, rounds=ROUNDS)
        return 1e6 * timed[tile].median

    def _calls(self, place: Place) -> list[Call]:
        """Return the call with several sets of tensors, to rotate."""

        def call(seed: int) -> Call:
            case, device = registry.CASES[place.name], self.machine.device
            return calls_of(case, place.arithmetic, place.layout, device, self.architecture, seed)[place.number]

        first = call(0)
        sets = self.machine.sets(sum(arg.nbytes for arg in first.run.args if isinstance(arg, Tensor)))
        return [first, *map(call, range(1, sets))]


def _outputs(call: Call) -> list[Tensor]:
    result = call.run()
    return [t.float() for t in (result if isinstance(result, tuple) else (result,)) if t.is_floating_point()]


Times = dict[str, dict[str, Any]]  # by Gemm.key and the tile's name: microseconds, or a fault


def items_of(wanted: Mapping[Place, Gemm], tiles_of: Callable[[Gemm], Sequence[GemmTile]], times: Times) -> list[Item]:
    """Return the candidates without a time."""
    return [
        [*place, list(tile)]
        for place, product in wanted.items()
        for tile in tiles_of(product)
        if named(tile) not in times.get(product.key, {})
    ]


def settled(items: Iterable[Item], command: Sequence[str], until: float) -> Iterator[tuple[Item, Any]]:
    """Compile and run items. Yield (item, result).

    Processes of `command --compile-only` compile the items, while a process of `command` runs the compiled ones. The result of
    an item that fails to compile, crashes or hangs is the error message.
    """
    rejected: list[tuple[Item, str]] = []

    def compilable() -> Iterator[Item]:
        for item, fault in _compiled(items, command, until):
            if fault:
                rejected.append((item, fault))
            else:
                yield item

    for item, found, why in worked_off(compilable(), command, lambda _: PATIENCE, until):
        yield item, why or found
        while rejected:
            yield rejected.pop()
    yield from rejected


def compile_only(items: Sequence[Item], command: Sequence[str]) -> int:
    """Compile items without a GPU. Print the ones that fail."""
    start = time.monotonic()
    faults = [(item, fault) for item, fault in _compiled(items, command) if fault]
    for item, fault in faults:
        print(*item, fault)
    print(f"{len(items)} candidates compiled in {time.monotonic() - start:.0f} s, {len(faults)} failed")
    return 0


def _compiled(items: Iterable[Item], command: Sequence[str], until: float = math.inf) -> Iterator[tuple[Item, str | None]]:
    """Compile items in worker processes. Yield (item, fault or None)."""
    for item, fault, why in worked_off(items, [*command, "--compile-only"], lambda _: PATIENCE, until, MANY):
        yield item, why or fault


def add(times: Times, wanted: Mapping[Place, Gemm], item: Item, found: Any) -> None:
    """Store the result of an item."""
    *place, tile = item
    times.setdefault(wanted[Place(*place)].key, {})[named(GemmTile(*tile))] = found


def winners(wanted: Iterable[Gemm], times: Times, architecture: str) -> dict[str, GemmTile | None]:
    """Return the fastest tile of each measured product, or None if the default tile is about as fast."""
    found: dict[str, GemmTile | None] = {}
    for product in wanted:
        if measured := _measured(product, times):
            default = measured.get(tuning.default_tile(product, architecture), math.inf)
            best = min(measured, key=lambda tile: measured[tile])
            found[product.key] = best if measured[best] < CLEARLY * default else None
    return found


def _measured(product: Gemm, times: Times) -> dict[GemmTile, float]:
    found = times.get(product.key, {})
    return {GemmTile(*map(int, re.findall(r"\d+", name))): us for name, us in found.items() if isinstance(us, float)}


def path_of(gpu: str) -> Path:
    """Return the path of the tile file of a GPU, from which tuning.py reads."""
    return tuning.TILES / f"{gpu.lower().replace(' ', '_')}.json"


def record(name: str, found: Mapping[str, GemmTile | None]) -> None:
    """Write the fastest tiles of a GPU. Keep stored tiles of other products, unless another version of Triton measured them."""
    path = path_of(name)
    known = json.loads(path.read_text()) if path.exists() else {}
    tiles: dict[str, GemmTile | None] = {**(known["tiles"] if known.get("triton") == triton.__version__ else {}), **found}
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(like)}: {json.dumps(tile)}" for like, tile in sorted(tiles.items()) if tile is not None)
    path.write_text(f'{{\n "gpu": "{name}",\n "triton": "{triton.__version__}",\n "tiles": {{\n{lines}\n }}\n}}\n')


def lines_of(wanted: Iterable[Gemm], times: Times, architecture: str) -> Iterator[str]:
    """Yield one line per measured product: the times of its default tile and its best tile."""
    for product in wanted:
        if measured := _measured(product, times):
            default = measured.get(tuning.default_tile(product, architecture), math.nan)
            best = min(measured, key=lambda tile: measured[tile])
            yield f"{product.key:48} default {default:9.1f} us   best {measured[best]:9.1f} us  {named(best)}"


def work(args: argparse.Namespace, machine: Callable[[], Machine] = Machine.gpu) -> None:
    """Process the items of the input, in a worker process."""
    if args.compile_only:
        do_side_by_side(functools.partial(compiled, architecture=args.architecture))
    else:
        timer = Timer(machine(), args.architecture)
        do_in_turn(timer, timer.machine.wait)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions for names of cases; default: all")
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=ARITHMETICS, metavar="NAME",
                        help=f"{', '.join(ARITHMETICS)}; default: all")  # fmt: skip
    parser.add_argument(
        "--candidates", type=int, default=CANDIDATES, metavar="N", help="tiles per product; default: %(default)s"
    )
    parser.add_argument("--minutes", type=float, default=8, help="time limit; default: %(default)s")
    parser.add_argument("--compile-only", action="store_true", help="compile without a GPU; time nothing")
    parser.add_argument("--architecture", default="sm_90", help=argparse.SUPPRESS)
    parser.add_argument("--items", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.items:
        work(args)
        return 0
    if not args.compile_only and not torch.cuda.is_available():
        print("No GPU found. --compile-only works without one.")
        return 1

    if not args.compile_only:
        args.architecture = architecture_of(torch.device("cuda"))
    command = [sys.executable, "-m", "bench.tune", "--items", "--architecture", args.architecture]
    until = time.monotonic() + 60 * args.minutes
    wanted = products(places((), args.names, args.arithmetics), args.architecture)
    tiles_of = functools.partial(candidates, most=args.candidates, architecture=args.architecture)
    times: Times = {}
    items = items_of(wanted, tiles_of, times)
    print(f"{len(wanted)} products, {len(items)} candidates", flush=True)
    if args.compile_only:
        return compile_only(items, command)
    try:
        for item, found in settled(items, command, until):
            add(times, wanted, item, found)
    finally:
        record(torch.cuda.get_device_name(), winners(wanted.values(), times, args.architecture))
        print(*lines_of(wanted.values(), times, args.architecture), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
