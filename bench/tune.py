"""Finds the fastest tile of each kind of matrix product that networks compute on this GPU: `python -m bench.tune`.

The products are those of bench/registry.py. Candidates lie around the tile that the rules of tuning.py guess, and are compiled
side by side, ahead of time. Then a process of its own runs them one after another. It may crash: the candidate it was at is
struck off, and a new process goes on behind it. All candidates of a product must compute the same. The winners go to
kernels/runtime/tiles/, from where tuning.py takes them; a product that no candidate computes clearly faster keeps its guess.

`--compile-only` needs no GPU: it compiles the candidates for an H100 or H200 and says which of them cannot be.
`python -m bench conv --tune` compares the tiles of convolutions with float64 before it gets here.
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
from bench.rows import Instance
from bench.timing import Machine, interleaved, using
from bench.workers import MANY, do_in_turn, do_side_by_side, words, worked_off
from trinn.kernels import launchers, ops
from trinn.kernels.runtime import tuning
from trinn.kernels.runtime.hardware import architecture
from trinn.kernels.runtime.observe import intercepted
from trinn.kernels.runtime.settings import settings
from trinn.kernels.runtime.tuning import Gemm, GemmTile

CLEARLY = 0.97  # of the guess's time
ROUNDS = 9
CANDIDATES = 24  # for a product
PATIENCE = 60.0  # seconds for a candidate, with the start of its process
CLOSE = {torch.float16: 1e-2, torch.bfloat16: 2e-2, torch.float32: 2e-3}  # of the norm of the result; TF32 included
ARITHMETICS = ("bf16", "tf32", "fp32", "fp16")  # what matters most first

Rule = Callable[[Gemm, str], GemmTile]
Item = list[Any]  # what a process gets


class Place(NamedTuple):
    """Where a product is computed: a case of the registry, and the number of the call."""

    arithmetic: str
    name: str
    layout: str
    number: int = 0


class Call(NamedTuple):
    """A launcher with its arguments, which computes one product."""

    product: Gemm
    run: functools.partial[Any]


def kind(product: Gemm) -> str:
    """The kernel and the arithmetic: what decides, together with a tile, what is compiled, but for the geometry."""
    return product.key.rsplit(" ", 3)[0]


def named(tile: GemmTile) -> str:
    return f"{tile.m}x{tile.n}x{tile.k} w{tile.warps} s{tile.stages}"


@contextlib.contextmanager
def patched(module: Any, **names: Any) -> Iterator[None]:
    """Within, these names of a module mean something else."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


@contextlib.contextmanager
def tiles_by(rule: Rule) -> Iterator[list[Gemm]]:
    """Within, tiles follow this rule, and none is one that was measured; the products that one was asked for."""
    asked: list[Gemm] = []

    def tile_of(product: Gemm, architecture: str) -> GemmTile:
        asked.append(product)
        return rule(product, architecture)

    with settings.changed(tile_of=tile_of):
        yield asked


@contextlib.contextmanager
def recorded(rule: Rule) -> Iterator[list[Call]]:
    """Within, operators are their launchers, on any device; the calls of those that compute products."""
    calls: list[Call] = []
    with tiles_by(rule) as asked:

        def recording(launcher: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                asked.clear()
                result = launcher(*args)
                if asked:  # of several kernels that it may start, a launcher asks for the tile of the one it starts last
                    detached = (arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
                    calls.append(Call(asked[-1], functools.partial(launcher, *detached)))
                return result

            return call

        with patched(ops, **{name: recording(launcher) for name, launcher in vars(launchers).items()}):
            yield calls


def calls_of(case: registry.Case, arithmetic: str, layout: str, device: str, architecture: str, seed: int = 0) -> list[Call]:
    """The calls of a forward and backward pass that compute products, with random tensors. Nothing runs."""
    with using(arithmetic) as dtype, intercepted(lambda *_: None, architecture):
        with recorded(tuning.guessed_tile) as calls:
            Instance(case, "ours", dtype, layout, device, seed).call("backward")()
    return calls


def places(ops: Sequence[str], names: Sequence[str], arithmetics: Sequence[str]) -> Iterator[Place]:
    """The cases of these operators whose names these patterns fit, or of all; what matters most first."""
    for arithmetic, layout in itertools.product(arithmetics, ("channels_last", "contiguous")):
        for name, case in registry.CASES.items():
            if registry.fits(name, names) and (not ops or case.op in ops) and arithmetic in case.arithmetics:
                yield Place(arithmetic, name, layout)


def products(at: Iterable[Place], architecture: str) -> dict[Place, Gemm]:
    """One of each kind of product."""
    found: dict[str, tuple[Place, Gemm]] = {}
    for place in at:
        calls = calls_of(registry.CASES[place.name], place.arithmetic, place.layout, "meta", architecture)
        for number, call in enumerate(calls):
            found.setdefault(call.product.key, (place._replace(number=number), call.product))
    return dict(found.values())


@functools.cache
def candidates(product: Gemm, most: int, architecture: str) -> list[GemmTile]:
    """The guess, and the tiles next to it that a GPU has room for."""
    guess = tuning.guessed_tile(product, architecture)
    sizes = (64, 128, 256) if _by_tma(product) else (16, 32, 64, 128, 256)
    columns = (*sizes, 192, 320) if product.kernel == "tma wgrad" else sizes  # 3 or 5 taps of 64 channels
    tiles = (GemmTile(*t) for t in itertools.product(sizes, columns, (16, 32, 64, 128), (4, 8), (2, 3, 4, 5)))
    fitting = [tile for tile in tiles if tile != guess and _fits(tile, product, architecture)]
    return [guess, *sorted(fitting, key=lambda tile: _steps(tile, guess))[: most - 1]]


def _by_tma(product: Gemm) -> bool:
    """Whether its kernel is one of conv2d_tma.py, whose wgmma multiplies 64 rows at a time, or as many for each of 8 warps."""
    return product.kernel.startswith("tma ")


def _fits(tile: GemmTile, product: Gemm, architecture: str) -> bool:
    in_planes = product.precision == "bf16x6"  # of bfloat16, whose sums are kept twice
    itemsize = 2 if in_planes else product.dtype.itemsize
    shared = tile.stages * tile.k * (tile.m + tile.n) * itemsize
    accumulators = tile.m * tile.n // (32 * tile.warps)
    sizes = zip((tile.m, tile.n, tile.k), (product.m, product.n, product.k), strict=True)
    least = 64 if _by_tma(product) else 16
    return (
        shared <= _room(architecture) and 2 <= accumulators <= (64 if in_planes else 128)
        and all(block <= max(least, triton.next_power_of_2(size)) for block, size in sizes)
    )  # fmt: skip


def _room(architecture: str) -> int:
    """Bytes of shared memory for a program; of a GPU that is not known, what all have."""
    return SHARED_MEMORY.get(architecture, 99 << 10)


def _steps(tile: GemmTile, guess: GemmTile) -> float:
    """How far two tiles are apart, in doublings; a stage is as far as half of one."""
    blocks = sum(abs(math.log2(a / b)) for a, b in zip(tile[:4], guess[:4], strict=True))
    return blocks + abs(tile.stages - guess.stages) / 2


@contextlib.contextmanager
def compiling(architecture: str) -> Iterator[list[str]]:
    """Within, what is launched is compiled into Triton's cache and does not run; what is wrong with it."""
    faults: list[str] = []

    def compile_it(kernel: Any, programs: int, args: Any, constants: Any) -> None:
        try:
            binary = kernel.warmup(*args, grid=(1,), **constants)
        except Exception as error:  # whatever a compiler may raise
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
    """Compile the function in C by which Triton 3.6 starts a kernel of that signature; newer ones have one for all."""
    with contextlib.suppress(Exception):  # there is no libcuda to link it with, or it has no such function
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(binary.src, binary.metadata)


def compiled(item: Item, architecture: str) -> str | None:
    """Compile a candidate; what is wrong with it, if something is."""
    *place, tile = item
    call = _call(*place, architecture)
    with using(Place(*place).arithmetic), compiling(architecture) as faults, tiles_by(lambda *_: GemmTile(*tile)) as asked:
        call.run()
    if asked[-1].key != call.product.key:
        return "makes the launcher take another kernel"
    return "; ".join(faults) or None


@functools.lru_cache(maxsize=8)
def _call(arithmetic: str, name: str, layout: str, number: int, architecture: str) -> Call:
    return calls_of(registry.CASES[name], arithmetic, layout, "meta", architecture)[number]


class Timer:
    """Times candidates in turn, in microseconds. It keeps what those of a product have in common."""

    def __init__(self, machine: Machine, architecture: str) -> None:
        self.machine, self.architecture = machine, architecture
        self.place: Place | None = None

    def __call__(self, item: Item) -> float | str:
        place, tile = Place(*item[:-1]), GemmTile(*item[-1])
        if place != self.place:
            self.place, self.calls = None, self._calls(place)
        with using(place.arithmetic), tiles_by(lambda *_: tile):
            got = _outputs(self.calls[0])
            if self.place is None:  # the first: the guess, unless something is wrong with it
                self.place, self.expected = place, got
            close = CLOSE[self.calls[0].product.dtype]
            if any(not (g - e).norm() <= close * e.norm() for g, e in zip(got, self.expected, strict=True)):
                return "computes something else"
            timed = interleaved({tile: [call.run for call in self.calls]}, self.machine.clock, rounds=ROUNDS)
        return 1e6 * timed[tile].median

    def _calls(self, place: Place) -> list[Call]:
        """The call with several sets of tensors, to be made in turn."""

        def call(seed: int) -> Call:
            case, device = registry.CASES[place.name], self.machine.device
            return calls_of(case, place.arithmetic, place.layout, device, self.architecture, seed)[place.number]

        first = call(0)
        sets = self.machine.sets(sum(arg.nbytes for arg in first.run.args if isinstance(arg, Tensor)))
        return [first, *map(call, range(1, sets))]


def _outputs(call: Call) -> list[Tensor]:
    result = call.run()
    return [t.float() for t in (result if isinstance(result, tuple) else (result,)) if t.is_floating_point()]


Times = dict[str, dict[str, Any]]  # by Product.key and the tile's name: microseconds, or what is wrong with it


def items_of(wanted: Mapping[Place, Gemm], tiles_of: Callable[[Gemm], Sequence[GemmTile]], times: Times) -> list[Item]:
    """The candidates of products that have no time yet."""
    return [
        [*place, list(tile)]
        for place, product in wanted.items()
        for tile in tiles_of(product)
        if named(tile) not in times.get(product.key, {})
    ]


def settled(items: Iterable[Item], command: Sequence[str], until: float) -> Iterator[tuple[Item, Any]]:
    """(item, what came of it): compiled by the command with --compile-only, side by side, while the command itself runs those
    that are compiled.

    What cannot be compiled, crashes or hangs is said in words.
    """
    struck: list[tuple[Item, str]] = []

    def able() -> Iterator[Item]:
        for item, fault in _compiled(items, command, until):
            if fault:
                struck.append((item, fault))
            else:
                yield item

    for item, found, why in worked_off(able(), command, lambda _: PATIENCE, until):
        yield item, why or found
        while struck:
            yield struck.pop()
    yield from struck


def compile_only(items: Sequence[Item], command: Sequence[str]) -> int:
    """Compile items, without a GPU, and say which cannot be."""
    start = time.monotonic()
    faults = [(item, fault) for item, fault in _compiled(items, command) if fault]
    for item, fault in faults:
        print(*item, fault)
    print(f"{len(items)} candidates compiled in {time.monotonic() - start:.0f} s, {len(faults)} cannot be")
    return 0


def _compiled(items: Iterable[Item], command: Sequence[str], until: float = math.inf) -> Iterator[tuple[Item, str | None]]:
    """What is wrong with each, if something is."""
    for item, fault, why in worked_off(items, [*command, "--compile-only"], lambda _: PATIENCE, until, MANY):
        yield item, why or fault


def add(times: Times, wanted: Mapping[Place, Gemm], item: Item, found: Any) -> None:
    """Keep what came of an item."""
    *place, tile = item
    times.setdefault(wanted[Place(*place)].key, {})[named(GemmTile(*tile))] = found


def winners(wanted: Iterable[Gemm], times: Times, architecture: str) -> dict[str, GemmTile | None]:
    """The fastest tile of each product that was measured, or None for its guess."""
    found: dict[str, GemmTile | None] = {}
    for product in wanted:
        if measured := _measured(product, times):
            guess = measured.get(tuning.guessed_tile(product, architecture), math.inf)
            best = min(measured, key=lambda tile: measured[tile])
            found[product.key] = best if measured[best] < CLEARLY * guess else None
    return found


def _measured(product: Gemm, times: Times) -> dict[GemmTile, float]:
    found = times.get(product.key, {})
    return {GemmTile(*map(int, re.findall(r"\d+", name))): us for name, us in found.items() if isinstance(us, float)}


def path_of(gpu: str) -> Path:
    """Where tuning.py looks for the tiles of a GPU."""
    return tuning.TILES / f"{gpu.lower().replace(' ', '_')}.json"


def record(name: str, found: Mapping[str, GemmTile | None]) -> None:
    """Keep the winners, next to those of products that were not measured this time."""
    path = path_of(name)
    known = json.loads(path.read_text()) if path.exists() else {}
    tiles: dict[str, GemmTile | None] = {**(known["tiles"] if known.get("triton") == triton.__version__ else {}), **found}
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(like)}: {json.dumps(tile)}" for like, tile in sorted(tiles.items()) if tile is not None)
    path.write_text(f'{{\n "gpu": "{name}",\n "triton": "{triton.__version__}",\n "tiles": {{\n{lines}\n }}\n}}\n')


def lines_of(wanted: Iterable[Gemm], times: Times, architecture: str) -> Iterator[str]:
    """What was measured of each product."""
    for product in wanted:
        if measured := _measured(product, times):
            guess = measured.get(tuning.guessed_tile(product, architecture), math.nan)
            best = min(measured, key=lambda tile: measured[tile])
            yield f"{product.key:48} guess {guess:9.1f} us   best {measured[best]:9.1f} us  {named(best)}"


def work(args: argparse.Namespace, machine: Callable[[], Machine] = Machine.gpu) -> None:
    """What a process does that gets items."""
    if args.compile_only:
        do_side_by_side(functools.partial(compiled, architecture=args.architecture))
    else:
        timer = Timer(machine(), args.architecture)
        do_in_turn(timer, timer.machine.wait)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="regular expressions: what has one in its name")
    parser.add_argument("--arithmetics", nargs="+", choices=ARITHMETICS, default=ARITHMETICS, metavar="NAME")
    parser.add_argument("--candidates", type=int, default=CANDIDATES, metavar="N", help="for each product")
    parser.add_argument("--minutes", type=float, default=8, help="then stop, and keep what was found")
    parser.add_argument("--compile-only", action="store_true", help="needs no GPU")
    parser.add_argument("--architecture", default="sm_90", help=argparse.SUPPRESS)
    parser.add_argument("--items", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.items:
        work(args)
        return 0
    if not args.compile_only and not torch.cuda.is_available():
        print("There is no GPU here to measure on; --compile-only needs none.")
        return 1

    if not args.compile_only:
        args.architecture = architecture(torch.device("cuda"))
    command = [sys.executable, "-m", "bench.tune", "--items", "--architecture", args.architecture]
    until = time.monotonic() + 60 * args.minutes
    wanted = products(places((), args.names, args.arithmetics), args.architecture)
    tiles_of = functools.partial(candidates, most=args.candidates, architecture=args.architecture)
    times: Times = {}
    items = items_of(wanted, tiles_of, times)
    print(f"{len(wanted)} kinds of products, {len(items)} candidates", flush=True)
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
